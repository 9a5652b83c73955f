//! Where shards are stored: local files, S3, Google Cloud Storage, and web servers.
//!
//! [`Storage::expand`] turns an entry of a recipe into files, [`Storage::open`] opens one, and
//! [`StoredFile::read_exact_at`] reads any part of it. All of this blocks the calling thread, and
//! any thread may call it. A remote file is read in blocks, which a cache folder can keep for all
//! processes of a node. A request that fails for a passing reason is repeated from the byte that
//! was reached, and a file that changes while it is read is an error.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

mod blocks;
mod braces;
mod cache;
mod client;
mod expand;
mod flights;
mod location;
mod options;
mod remote;
mod retry;
mod version;

pub use expand::Found;
pub use location::{Location, RemoteUrl, Scheme};
pub use options::{CacheOptions, StorageOptions};
pub use version::Version;

use crate::error::DataError;
use blocks::{BLOCK, Blocks, RemoteFile};
use cache::DiskCache;
use client::{Clients, wait_for};
use flights::Bytes;
use remote::Remote;

/// Largest file that [`Storage::read`] reads, in bytes. A list of 10 million shards with names of
/// 50 bytes fits.
const LARGEST_READ: u64 = 512 << 20;

/// Access to local and remote files. A process needs one; clones share clients and blocks.
#[derive(Clone)]
pub struct Storage {
    shared: Arc<Shared>,
}

struct Shared {
    options: Arc<StorageOptions>,
    clients: Clients,
    blocks: Blocks,
}

impl Default for Storage {
    /// Storage with the default options, which have no cache folder.
    fn default() -> Self {
        let options = Arc::default();
        let shared = Shared { options, clients: Clients::default(), blocks: Blocks::new(None) };
        Self { shared: Arc::new(shared) }
    }
}

impl std::fmt::Debug for Storage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Storage").field("options", &self.shared.options).finish_non_exhaustive()
    }
}

impl Storage {
    /// Makes a storage. No server is asked before the first file is opened.
    ///
    /// # Errors
    /// [`DataError::Io`] if the cache folder cannot be created, [`DataError::BadLocation`] if its
    /// size is too small.
    pub fn new(options: StorageOptions) -> Result<Self, DataError> {
        let disk = options.cache.as_ref().map(DiskCache::open).transpose()?;
        let (clients, blocks) = (Clients::default(), Blocks::new(disk));
        Ok(Self { shared: Arc::new(Shared { options: Arc::new(options), clients, blocks }) })
    }

    /// Opens a file and finds out its version: one request for a remote file.
    ///
    /// # Errors
    /// [`DataError::Io`] if the file cannot be opened. For a remote file the error says what the
    /// server answered and what to do.
    pub fn open(&self, location: &Location) -> Result<StoredFile, DataError> {
        match location {
            Location::Local(path) => StoredFile::open_local(path),
            Location::Remote(url) => {
                let remote = self.remote(url, "open")?;
                let version =
                    wait_for(remote.clone().version()).map_err(io_error("open", location))?;
                Ok(self.stored(remote, version))
            }
        }
    }

    /// Opens a file whose version is known, from [`Self::expand`] or from an earlier
    /// [`Self::open`]. A remote file costs no request; if it has another version now, the first
    /// read fails.
    ///
    /// # Errors
    /// [`DataError::Io`] if the file cannot be opened, or if a local file has changed.
    pub fn open_known(
        &self,
        location: &Location,
        version: &Version,
    ) -> Result<StoredFile, DataError> {
        match location {
            Location::Local(path) => {
                let file = StoredFile::open_local(path)?;
                match version.change(&file.version) {
                    None => Ok(file),
                    Some(change) => {
                        let text = format!("the file changed while it was in use ({change})");
                        Err(io_error("open", location)(io::Error::other(text)))
                    }
                }
            }
            Location::Remote(url) => Ok(self.stored(self.remote(url, "open")?, version.clone())),
        }
    }

    /// Reads a whole file of at most 512 MiB, such as a list of shards.
    ///
    /// # Errors
    /// [`DataError::Io`] if the file cannot be read or is larger.
    pub fn read(&self, location: &Location) -> Result<Vec<u8>, DataError> {
        let file = self.open(location)?;
        let length = file.length();
        if length > LARGEST_READ {
            let text = format!("it has {length} bytes, but at most {LARGEST_READ} are read");
            return Err(io_error("read", location)(io::Error::other(text)));
        }
        let read = match &file.source {
            Source::Local(local) => {
                let mut bytes = Vec::new();
                local.take(LARGEST_READ).read_to_end(&mut bytes).map(|_| bytes)
            }
            // An empty range cannot be requested.
            Source::Remote { .. } if length == 0 => Ok(Vec::new()),
            Source::Remote { file: stored, .. } => {
                wait_for(stored.remote.clone().read(0..length, file.version.clone()))
            }
        };
        read.map_err(io_error("read", location))
    }

    /// Replaces a small file by `bytes`: other readers see all old or all new bytes.
    ///
    /// # Errors
    /// [`DataError::Io`] if the file cannot be written.
    pub fn write(&self, location: &Location, bytes: &[u8]) -> Result<(), DataError> {
        let written = match location {
            Location::Local(path) => write_local(path, bytes),
            Location::Remote(url) => wait_for(self.remote(url, "write")?.write(bytes.to_owned())),
        };
        written.map_err(io_error("write", location))
    }

    fn remote(&self, url: &RemoteUrl, action: &'static str) -> Result<Remote, DataError> {
        Remote::new(url, &self.shared.clients, &self.shared.options)
            .map_err(DataError::io(action, url.to_string()))
    }

    fn stored(&self, remote: Remote, version: Version) -> StoredFile {
        let path: Arc<str> = remote.url.to_string().into();
        let identity = format!("{path}\n{version:?}").into();
        let file = RemoteFile { identity, version: version.clone(), remote };
        let source = Source::Remote { file: Box::new(file), shared: Arc::clone(&self.shared) };
        StoredFile { path, version, source }
    }
}

fn io_error(action: &'static str, location: &Location) -> impl FnOnce(io::Error) -> DataError {
    DataError::io(action, location.to_string())
}

fn write_local(path: &Path, bytes: &[u8]) -> io::Result<()> {
    /// Distinguishes the temporary files of a process.
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let temporary = path.with_file_name(format!(".{name}.{}-{number}.tmp", std::process::id()));
    let written = || {
        let mut file = File::create(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    };
    written().inspect_err(|_| drop(fs::remove_file(&temporary)))
}

/// Open file, local or remote. Threads may share it. An open remote file holds no connection.
pub struct StoredFile {
    path: Arc<str>,
    version: Version,
    source: Source,
}

enum Source {
    Local(File),
    Remote { file: Box<RemoteFile>, shared: Arc<Shared> },
}

impl std::fmt::Debug for StoredFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StoredFile").field("path", &self.path).finish_non_exhaustive()
    }
}

impl StoredFile {
    /// Opens the local file at `path`.
    pub(crate) fn open_local(path: &Path) -> Result<Self, DataError> {
        let file = File::open(path).map_err(DataError::io("open", path))?;
        let metadata = file.metadata().map_err(DataError::io("open", path))?;
        let version = Version::local(&metadata);
        let path = path.to_string_lossy().into();
        Ok(Self { path, version, source: Source::Local(file) })
    }

    /// Path or URL, as shown in messages.
    #[must_use]
    pub fn path(&self) -> &Arc<str> {
        &self.path
    }

    /// Length of the file in bytes when it was opened.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.version.length()
    }

    /// Version of the file when it was opened.
    #[must_use]
    pub fn version(&self) -> &Version {
        &self.version
    }

    /// Fills `buffer` with the bytes at `offset`.
    ///
    /// # Errors
    /// If the file ends earlier or cannot be read, or if a remote file has changed. The error does
    /// not repeat [`Self::path`].
    pub fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        match &self.source {
            Source::Local(file) => file.read_exact_at(buffer, offset),
            Source::Remote { file, shared } => {
                let length = u64::try_from(buffer.len()).unwrap_or(u64::MAX);
                if offset.checked_add(length).is_none_or(|end| end > self.length()) {
                    let text = format!(
                        "bytes {offset} to {} are wanted, but the file has {}",
                        offset.saturating_add(length),
                        self.length()
                    );
                    return Err(io::Error::new(io::ErrorKind::UnexpectedEof, text));
                }
                shared.blocks.read(file, buffer, offset)
            }
        }
    }

    /// Reader that goes through the file from its beginning. It requests 8 MiB at a time, and
    /// nothing of the parts that are skipped by seeking, apart from what a request covers.
    #[must_use]
    pub fn reader(&self) -> Reader<'_> {
        Reader { file: self, position: 0, block: None }
    }
}

/// Reads a [`StoredFile`] from front to back. Made by [`StoredFile::reader`].
#[derive(Debug)]
pub struct Reader<'a> {
    file: &'a StoredFile,
    position: u64,
    /// Block of a remote file that was read last, and its number.
    block: Option<(u64, Bytes)>,
}

impl Read for Reader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = match &self.file.source {
            Source::Remote { file, shared } => {
                if self.position >= self.file.length() || buffer.is_empty() {
                    return Ok(0);
                }
                let number = self.position / BLOCK;
                let block = match &self.block {
                    Some((held, block)) if *held == number => Arc::clone(block),
                    _ => shared.blocks.whole_block(file, number)?,
                };
                let within = usize::try_from(self.position % BLOCK).unwrap_or(usize::MAX);
                let count = buffer.len().min(block.len() - within);
                buffer[..count].copy_from_slice(&block[within..within + count]);
                self.block = Some((number, block));
                count
            }
            Source::Local(file) => file.read_at(buffer, self.position)?,
        };
        self.position += u64::try_from(count).unwrap_or(0);
        Ok(count)
    }
}

impl Seek for Reader<'_> {
    fn seek(&mut self, target: SeekFrom) -> io::Result<u64> {
        let position = match target {
            SeekFrom::Start(position) => Some(position),
            SeekFrom::Current(distance) => self.position.checked_add_signed(distance),
            SeekFrom::End(distance) => self.file.length().checked_add_signed(distance),
        };
        self.position = position.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.position)
    }
}

#[cfg(test)]
mod tests;
