//! What a source's `shards` names: a folder, one tar, or a brace range.

use std::path::{Path, PathBuf};

/// Most shards one range may name; more is a slip of the finger (Action100M at 100 clips a shard is 1.2 million).
const MAX_SHARDS: u64 = 4_000_000;

/// What `shards` names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ShardNames {
    /// A folder, of which all `*.tar` are meant, or one tar: the disk decides which.
    Path(PathBuf),
    /// `before{first..last}after`, numbers padded with zeros to `digits`.
    Range {
        /// Text before the brace.
        before: String,
        /// Text after it.
        after: String,
        /// First number.
        first: u64,
        /// Last number, included.
        last: u64,
        /// Digits of each number.
        digits: usize,
    },
}

impl ShardNames {
    /// The path of the i-th shard of a range; the path itself otherwise.
    #[must_use]
    pub fn path(&self, index: u64) -> PathBuf {
        match self {
            Self::Path(path) => path.clone(),
            Self::Range { before, after, first, digits, .. } => {
                let number = first + index;
                PathBuf::from(format!("{before}{number:0digits$}{after}"))
            }
        }
    }

    /// Shards that a range names; 1 otherwise.
    #[must_use]
    pub fn count(&self) -> u64 {
        match self {
            Self::Path(_) => 1,
            Self::Range { first, last, .. } => last - first + 1,
        }
    }
}

/// Reads `shards` as `clips-{000000..000127}.tar`, or as one path.
///
/// # Errors
///
/// What is wrong with a brace range, in words.
pub fn expand(shards: &str) -> Result<ShardNames, String> {
    let Some((before, rest)) = shards.split_once('{') else {
        return match shards.contains('}') {
            true => Err(format!("`{shards}` closes a brace that it does not open")),
            false => Ok(ShardNames::Path(Path::new(shards).to_owned())),
        };
    };
    let (range, after) =
        rest.split_once('}').ok_or_else(|| format!("`{shards}` opens a brace and does not close it"))?;
    if after.contains(['{', '}']) {
        return Err(format!("`{shards}` has more than one range"));
    }
    let bounds = range.split_once("..").and_then(|(first, last)| {
        let plain = |digits: &str| digits.bytes().all(|b| b.is_ascii_digit());
        if !plain(first) || !plain(last) {
            return None;
        }
        Some((first.parse::<u64>().ok()?, last.parse::<u64>().ok()?, first.len()))
    });
    let (first, last, digits) =
        bounds.ok_or_else(|| format!("`{{{range}}}` is not a range of numbers"))?;
    if last < first || last - first >= MAX_SHARDS {
        return Err(format!("`{{{range}}}` counts backwards, or beyond {MAX_SHARDS} shards"));
    }
    Ok(ShardNames::Range { before: before.to_owned(), after: after.to_owned(), first, last, digits })
}

#[cfg(test)]
mod tests {
    use super::{ShardNames, expand};

    #[test]
    fn ranges_keep_their_zeros_and_their_ends() {
        let names = expand("a/clips-{000098..000101}.tar").unwrap();
        let all: Vec<_> = (0..names.count()).map(|i| names.path(i)).collect();
        assert_eq!(all.len(), 4);
        assert_eq!(all[0].to_str(), Some("a/clips-000098.tar"));
        assert_eq!(all[3].to_str(), Some("a/clips-000101.tar"));
        assert_eq!(expand("folder").unwrap(), ShardNames::Path("folder".into()));
    }

    #[test]
    fn what_is_no_range_is_refused() {
        for bad in ["a{1..", "a{1-3}.tar", "a{3..1}.tar", "a{0..9}{0..9}.tar", "a}.tar", "a{x..y}"] {
            assert!(expand(bad).is_err(), "{bad}");
        }
    }
}
