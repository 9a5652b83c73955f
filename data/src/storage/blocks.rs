//! Reads parts of remote files in blocks, from the cache folder, from memory or from the server.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use super::cache::DiskCache;
use super::client::wait_for;
use super::flights::{BlockName, Bytes, Flights};
use super::remote::Remote;
use super::version::Version;

/// Size of a block of the cache folder in bytes, and of a request of [`super::Reader`]. At 8 MiB a
/// request takes much longer than its latency of tens of milliseconds, so few connections use the
/// whole network.
pub(super) const BLOCK: u64 = 8 << 20;

/// Size of a block in memory in bytes. Without a cache folder the samples of a shuffled window of
/// a shard are far apart, so most of a larger block would be fetched in vain.
const MEMORY_BLOCK: u64 = 1 << 20;

/// Reads of this length in bytes or longer are requested as they are without a cache folder:
/// a block would save no request.
const DIRECT_READ: u64 = MEMORY_BLOCK / 2;

/// Largest number of blocks in memory: 64 MiB per process, of which a node has eight. They serve
/// samples that are read in order, as in evaluation, from some tens of shards at a time.
const MEMORY_BLOCKS: usize = 64;

/// Remote file that is read in blocks.
pub(super) struct RemoteFile {
    /// URL and version. Two files with the same identity have the same bytes.
    pub(super) identity: Arc<str>,
    pub(super) version: Version,
    pub(super) remote: Remote,
}

impl RemoteFile {
    fn fetch(&self, range: Range<u64>) -> io::Result<Vec<u8>> {
        wait_for(self.remote.clone().read(range, self.version.clone()))
    }

    /// Range of block `number` if the blocks have `size` bytes. The last one may be shorter.
    fn range(&self, number: u64, size: u64) -> Range<u64> {
        number * size..((number + 1) * size).min(self.version.length())
    }
}

/// Blocks of all remote files of a storage.
#[derive(Default)]
pub(super) struct Blocks {
    disk: Option<DiskCache>,
    disk_flights: Flights,
    memory: Mutex<Memory>,
    memory_flights: Flights,
}

#[derive(Default)]
struct Memory {
    clock: u64,
    blocks: BTreeMap<BlockName, (u64, Bytes)>,
}

impl Memory {
    fn get(&mut self, name: &BlockName) -> Option<Bytes> {
        self.clock += 1;
        let clock = self.clock;
        let (used, bytes) = self.blocks.get_mut(name)?;
        *used = clock;
        Some(Arc::clone(bytes))
    }

    fn put(&mut self, name: BlockName, bytes: Bytes) {
        if self.blocks.len() >= MEMORY_BLOCKS {
            let oldest = self.blocks.iter().min_by_key(|(_, (used, _))| *used);
            if let Some(oldest) = oldest.map(|(name, _)| name.clone()) {
                self.blocks.remove(&oldest);
            }
        }
        self.clock += 1;
        self.blocks.insert(name, (self.clock, bytes));
    }
}

impl Blocks {
    pub(super) fn new(disk: Option<DiskCache>) -> Self {
        Self { disk, ..Self::default() }
    }

    /// Fills `buffer` with the bytes at `offset`. They must lie within the file.
    pub(super) fn read(&self, file: &RemoteFile, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let Some(disk) = &self.disk else { return self.read_uncached(file, buffer, offset) };
        for (number, within, part) in parts(buffer, offset, BLOCK) {
            let name = (Arc::clone(&file.identity), number);
            let range = file.range(number, BLOCK);
            if disk.read(&name, range.end - range.start, part, within) {
                continue;
            }
            if disk.is_paused() {
                self.read_uncached(file, part, range.start + as_u64(within))?;
                continue;
            }
            let block = self.fetch_to_disk(disk, file, &name, range)?;
            part.copy_from_slice(&block[within..within + part.len()]);
        }
        Ok(())
    }

    /// Block `number` of `file`, for a reader that goes through the file in order and keeps the
    /// block itself.
    pub(super) fn whole_block(&self, file: &RemoteFile, number: u64) -> io::Result<Bytes> {
        let range = file.range(number, BLOCK);
        match &self.disk {
            Some(disk) if !disk.is_paused() => {
                let name = (Arc::clone(&file.identity), number);
                self.fetch_to_disk(disk, file, &name, range)
            }
            _ => Ok(file.fetch(range)?.into()),
        }
    }

    /// Reads a block from the cache folder, or else from the server into the cache folder.
    fn fetch_to_disk(
        &self,
        disk: &DiskCache,
        file: &RemoteFile,
        name: &BlockName,
        range: Range<u64>,
    ) -> io::Result<Bytes> {
        self.disk_flights.share(name, || {
            let length = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
            // Another thread or process may have fetched the block in the meantime.
            let mut bytes = vec![0; length];
            if disk.read(name, range.end - range.start, &mut bytes, 0) {
                return Ok(bytes.into());
            }
            let bytes = file.fetch(range)?;
            disk.write(name, &bytes);
            Ok(bytes.into())
        })
    }

    fn read_uncached(&self, file: &RemoteFile, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        if as_u64(buffer.len()) >= DIRECT_READ {
            let bytes = file.fetch(offset..offset + as_u64(buffer.len()))?;
            buffer.copy_from_slice(&bytes);
            return Ok(());
        }
        for (number, within, part) in parts(buffer, offset, MEMORY_BLOCK) {
            let name = (Arc::clone(&file.identity), number);
            let known = || self.memory.lock().unwrap_or_else(PoisonError::into_inner).get(&name);
            let block = match known() {
                Some(block) => block,
                None => self.memory_flights.share(&name, || {
                    if let Some(block) = known() {
                        return Ok(block);
                    }
                    let block: Bytes = file.fetch(file.range(number, MEMORY_BLOCK))?.into();
                    let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
                    memory.put(name.clone(), Arc::clone(&block));
                    Ok(block)
                })?,
            };
            part.copy_from_slice(&block[within..within + part.len()]);
        }
        Ok(())
    }
}

/// Cuts `buffer`, whose first byte is at `offset` of a file, at the file's blocks of `size` bytes.
/// Each part has the number of its block and its start within the block.
fn parts(
    mut buffer: &mut [u8],
    mut offset: u64,
    size: u64,
) -> impl Iterator<Item = (u64, usize, &mut [u8])> {
    std::iter::from_fn(move || {
        if buffer.is_empty() {
            return None;
        }
        let (number, within) = (offset / size, offset % size);
        let length = usize::try_from(size - within).unwrap_or(usize::MAX).min(buffer.len());
        let (part, rest) = std::mem::take(&mut buffer).split_at_mut(length);
        buffer = rest;
        offset += as_u64(length);
        Some((number, usize::try_from(within).unwrap_or(usize::MAX), part))
    })
}

fn as_u64(length: usize) -> u64 {
    u64::try_from(length).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::{MEMORY_BLOCKS, Memory, parts};

    #[test]
    fn a_buffer_is_cut_at_the_blocks() {
        let mut buffer: Vec<u8> = (0..10).collect();
        let cut: Vec<_> = parts(&mut buffer, 6, 4).map(|(n, at, p)| (n, at, p.to_vec())).collect();
        let expected = [(1, 2, vec![0, 1]), (2, 0, vec![2, 3, 4, 5]), (3, 0, vec![6, 7, 8, 9])];
        assert_eq!(cut, expected);
        assert_eq!(parts(&mut [], 6, 4).count(), 0);
    }

    #[test]
    fn memory_is_bounded_and_drops_the_block_used_least_recently() {
        let mut memory = Memory::default();
        let name = |number| (Arc::from("file"), number);
        for number in 0..200 {
            memory.put(name(number), Arc::from([0_u8; 4]));
            assert!(memory.get(&name(0)).is_some(), "block 0 is always in use");
        }
        assert_eq!(memory.blocks.len(), MEMORY_BLOCKS);
        assert!(memory.get(&name(199)).is_some() && memory.get(&name(100)).is_none());
    }
}
