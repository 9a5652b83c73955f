//! Tar of one part of a set, which is cut into shards of about equal size.

use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::DataError;

/// End of a tar: two blocks of zeros.
const TAR_END: [u8; 1024] = [0; 1024];

/// Finished shard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct ShardRecord {
    pub(super) samples: u64,
    pub(super) bytes: u64,
    pub(super) blake3: String,
}

/// Tar of a whole part, which is cut into shards when it is complete.
pub(super) struct Spool {
    pub(super) path: PathBuf,
    archive: tar::Builder<Hashing<BufWriter<File>>>,
    /// Offset at which each sample ends.
    ends: Vec<u64>,
}

impl Spool {
    pub(super) fn create(path: &Path) -> Result<Self, DataError> {
        let options =
            || File::options().read(true).write(true).create(true).truncate(true).open(path);
        let file = options().map_err(DataError::io("create", path))?;
        let archive = tar::Builder::new(Hashing::new(BufWriter::with_capacity(1 << 20, file)));
        Ok(Self { path: path.to_owned(), archive, ends: Vec::new() })
    }

    /// Adds a sample: the ending and the content of each of its files.
    pub(super) fn write<'a>(
        &mut self,
        key: &str,
        members: impl Iterator<Item = (&'static str, &'a [u8])>,
    ) -> io::Result<()> {
        for (extension, content) in members {
            // Nothing in the header depends on the machine or the time.
            let mut header = tar::Header::new_ustar();
            header.set_size(u64::try_from(content.len()).unwrap_or(u64::MAX));
            header.set_mode(0o644);
            self.archive.append_data(&mut header, format!("{key}.{extension}"), content)?;
        }
        self.ends.push(self.archive.get_ref().written);
        Ok(())
    }

    /// Cuts the samples into shards of about `bytes` bytes each, and gives them their names. There
    /// are no shards if there are no samples.
    pub(super) fn finish(
        mut self,
        bytes: u64,
        name: &dyn Fn(usize) -> PathBuf,
    ) -> Result<Vec<ShardRecord>, DataError> {
        let path = self.path.clone();
        let wrong = || DataError::io("write", &path);
        let cuts = cuts(&self.ends, bytes);
        if self.ends.is_empty() {
            fs::remove_file(&path).map_err(DataError::io("remove", &path))?;
            return Ok(Vec::new());
        }
        self.archive.finish().map_err(wrong())?;
        let written = self.archive.into_inner().map_err(wrong())?;
        let (hash, length) = (written.hasher.finalize(), written.written);
        let mut file = written.inner.into_inner().map_err(|error| wrong()(error.into_error()))?;
        if let [samples] = cuts[..] {
            file.sync_all().map_err(wrong())?;
            fs::rename(&path, name(0)).map_err(wrong())?;
            let blake3 = hash.to_hex().to_string();
            return Ok(vec![ShardRecord { samples: count(samples), bytes: length, blake3 }]);
        }
        let mut shards = Vec::new();
        let (mut start, mut first) = (0, 0);
        for (nth, samples) in cuts.into_iter().enumerate() {
            first += samples;
            let end = self.ends[first - 1];
            let cut = copy(&mut file, start..end, &name(nth));
            shards.push(ShardRecord { samples: count(samples), ..cut? });
            start = end;
        }
        fs::remove_file(&path).map_err(DataError::io("remove", &path))?;
        Ok(shards)
    }
}

/// Copies samples of a spool to a shard of their own.
fn copy(
    spool: &mut File,
    range: std::ops::Range<u64>,
    to: &Path,
) -> Result<ShardRecord, DataError> {
    let temporary = to.with_extension("tar.tmp");
    let mut copied = || {
        let mut shard = Hashing::new(File::create(&temporary)?);
        spool.seek(SeekFrom::Start(range.start))?;
        io::copy(&mut spool.take(range.end - range.start), &mut shard)?;
        shard.write_all(&TAR_END)?;
        shard.inner.sync_all()?;
        fs::rename(&temporary, to)?;
        Ok((shard.written, shard.hasher.finalize().to_hex().to_string()))
    };
    let copied = copied().inspect_err(|_| drop(fs::remove_file(&temporary)));
    let (bytes, blake3) = copied.map_err(DataError::io("write", to))?;
    Ok(ShardRecord { samples: 0, bytes, blake3 })
}

/// Numbers of samples of shards of about equal size near `bytes`, if the samples end at `ends`.
fn cuts(ends: &[u64], bytes: u64) -> Vec<usize> {
    let total = ends.last().copied().unwrap_or(0);
    let shards = ((total + bytes / 2) / bytes.max(1)).max(1);
    let mut cuts = Vec::new();
    let mut first = 0;
    for shard in 1..=shards {
        let wanted = total / shards * shard;
        let end =
            if shard == shards { ends.len() } else { ends.partition_point(|&end| end <= wanted) };
        if end > first {
            cuts.push(end - first);
            first = end;
        }
    }
    cuts
}

fn count(samples: usize) -> u64 {
    u64::try_from(samples).unwrap_or(u64::MAX)
}

/// Writer that counts and hashes what is written.
struct Hashing<W> {
    inner: W,
    hasher: blake3::Hasher,
    written: u64,
}

impl<W> Hashing<W> {
    fn new(inner: W) -> Self {
        Self { inner, hasher: blake3::Hasher::new(), written: 0 }
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(bytes)?;
        self.hasher.update(&bytes[..count]);
        self.written += u64::try_from(count).unwrap_or(0);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::cuts;

    #[test]
    fn shards_of_a_part_have_about_equal_bytes() {
        let even: Vec<u64> = (1..=10).map(|n| 10 * n).collect();
        assert_eq!(cuts(&even, 100), [10]);
        assert_eq!(cuts(&even, 1000), [10]);
        assert_eq!(cuts(&even, 70), [10]);
        assert_eq!(cuts(&even, 50), [5, 5]);
        assert_eq!(cuts(&even, 33), [3, 3, 4]);
        // A sample is never divided, and no shard is empty.
        assert_eq!(cuts(&[100, 101], 10), [2]);
        assert_eq!(cuts(&[5, 100, 105], 20), [1, 2]);
        assert_eq!(cuts(&[], 10), [0_usize; 0]);
    }
}
