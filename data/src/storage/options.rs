//! Options of a storage: time limits, retries and the cache folder.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use vljepa_recipes::schema::Data;

/// Options of a [`super::Storage`]. The defaults suit object stores in the same region.
#[derive(Clone)]
pub struct StorageOptions {
    /// Longest time to connect to a server. Default: 5 s, because a connection within a region
    /// takes milliseconds, and a lost packet is sent again after 1 s and 3 s.
    pub connect_timeout: Duration,
    /// Longest time without a byte from the server, before or in a response. Default: 30 s, far
    /// above the slowest first byte that object stores document (a few seconds under load).
    pub read_timeout: Duration,
    /// Time after which a read, listing or write is no longer retried. Default: 300 s. Object
    /// stores recover from `503 Slow Down` and from a failed zone within minutes.
    pub retry_timeout: Duration,
    /// Folder for blocks of remote files. Default: `None`, so remote files are read again in each
    /// epoch.
    pub cache: Option<CacheOptions>,
    /// Settings by the names of environment variables (`AWS_…`, `GOOGLE_…`). They replace the
    /// process's environment variables of the same names. Default: none.
    pub variables: Vec<(String, String)>,
}

impl StorageOptions {
    /// Options that a recipe sets. The others have their defaults.
    #[must_use]
    pub fn of(data: &Data) -> Self {
        let cache = data
            .shard_cache
            .as_ref()
            .map(|cache| CacheOptions { folder: cache.folder.clone(), bytes: cache.gib << 30 });
        Self { cache, ..Self::default() }
    }
}

impl Default for StorageOptions {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(5),
            read_timeout: Duration::from_secs(30),
            retry_timeout: Duration::from_secs(300),
            cache: None,
            variables: Vec::new(),
        }
    }
}

impl fmt::Debug for StorageOptions {
    /// Shows the names of the variables without their values, which may be secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { connect_timeout, read_timeout, retry_timeout, cache, variables } = self;
        let names: Vec<&String> = variables.iter().map(|(name, _)| name).collect();
        f.debug_struct("StorageOptions")
            .field("connect_timeout", connect_timeout)
            .field("read_timeout", read_timeout)
            .field("retry_timeout", retry_timeout)
            .field("cache", cache)
            .field("variables", &names)
            .finish()
    }
}

/// Cache of blocks of remote files in a folder, which all processes of a node share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheOptions {
    /// Folder of the cache. It is created if it does not exist. Other files in it are left alone.
    pub folder: PathBuf,
    /// Largest number of bytes that the cache's files hold together, at least
    /// [`CacheOptions::LEAST_BYTES`].
    pub bytes: u64,
}

impl CacheOptions {
    /// Smallest size of a cache in bytes: 16 blocks of 8 MiB. With fewer, the processes of a node
    /// would remove each other's blocks before they are read.
    pub const LEAST_BYTES: u64 = 128 << 20;
}
