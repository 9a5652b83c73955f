//! Caches that live across epochs: decoded samples, and the tokens of texts.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::decode::Clip;
use crate::error::DataError;
use crate::texts::Texts;
use crate::tokenize::Tokenizer;

/// Number of texts whose tokens are kept, so that a training set of millions of captions does not
/// fill the memory.
const TEXTS_KEPT: usize = 1 << 16;

/// Decoded sample with its texts.
#[derive(Debug)]
pub(super) struct Decoded {
    pub(super) shard: Arc<str>,
    pub(super) key: String,
    pub(super) clip: Clip,
    pub(super) texts: Texts,
}

/// Indices of the source, the shard in the source, and the sample in the shard.
pub(super) type SampleLocation = (usize, usize, usize);

/// Cache of decoded samples with a limit in bytes. Nothing is evicted: when the cache is full, new
/// samples are not added. In a shuffled order every choice of samples is equally good, and this one
/// never throws a decoded sample away before it is used again.
#[derive(Debug, Default)]
pub(super) struct Cache {
    limit_bytes: u64,
    hits: AtomicU64,
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    bytes: u64,
    samples: HashMap<SampleLocation, Arc<Decoded>>,
}

impl Cache {
    pub(super) fn new(limit_mib: usize) -> Self {
        let limit_bytes = u64::try_from(limit_mib).unwrap_or(u64::MAX).saturating_mul(1 << 20);
        Self { limit_bytes, ..Self::default() }
    }

    pub(super) fn get(&self, location: SampleLocation) -> Option<Arc<Decoded>> {
        if self.limit_bytes == 0 {
            return None;
        }
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let found = kept.samples.get(&location).map(Arc::clone);
        if found.is_some() {
            self.hits.fetch_add(1, Ordering::Relaxed);
        }
        found
    }

    pub(super) fn put(&self, location: SampleLocation, sample: &Arc<Decoded>) {
        if self.limit_bytes == 0 {
            return;
        }
        let bytes = u64::try_from(sample.bytes()).unwrap_or(u64::MAX);
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if bytes <= self.limit_bytes.saturating_sub(kept.bytes)
            && kept.samples.insert(location, Arc::clone(sample)).is_none()
        {
            kept.bytes += bytes;
        }
    }

    /// Number of cached samples, their size in bytes, and number of cache hits.
    pub(super) fn statistics(&self) -> (u64, u64, u64) {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let samples = u64::try_from(kept.samples.len()).unwrap_or(u64::MAX);
        (samples, kept.bytes, self.hits.load(Ordering::Relaxed))
    }
}

impl Decoded {
    /// Approximate size in memory, in bytes.
    fn bytes(&self) -> usize {
        self.clip.bytes() + self.texts.bytes() + self.key.len() + size_of::<Self>()
    }
}

/// Tokenizer with a cache of encoded texts.
#[derive(Debug)]
pub(super) struct CachedTokenizer {
    tokenizer: Tokenizer,
    tokens: Mutex<HashMap<String, Arc<[i32]>>>,
}

impl CachedTokenizer {
    pub(super) fn new(tokenizer: Tokenizer) -> Self {
        Self { tokenizer, tokens: Mutex::default() }
    }

    pub(super) fn encode(&self, text: &str) -> Result<Arc<[i32]>, DataError> {
        let lock = || self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = lock().get(text) {
            return Ok(Arc::clone(known));
        }
        let tokens: Arc<[i32]> = self.tokenizer.encode(text)?.into();
        let mut kept = lock();
        if kept.len() >= TEXTS_KEPT {
            kept.clear();
        }
        kept.insert(text.to_owned(), Arc::clone(&tokens));
        Ok(tokens)
    }
}
