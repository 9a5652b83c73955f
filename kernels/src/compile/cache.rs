//! The compiler with its cache: cubins on disk, each under the hash of the inputs that determine
//! it.

use std::fs;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::path::{Path, PathBuf};

use super::nvrtc::Compiled;
use super::{CompileError, Cubin, Instructions, Kernel, Nvrtc, Resources, Source};

/// A folder of cubins that several processes may share. A file appears only when it is complete.
#[derive(Debug, Clone)]
pub struct Cache {
    folder: PathBuf,
}

/// Makes cubins of kernels for one architecture, from the cache if it has them.
#[derive(Debug)]
pub struct Compiler {
    nvrtc: Nvrtc,
    cache: Option<Cache>,
    architecture: String,
}

/// A kernel as machine code, and whether the cache held it or holds it now.
#[derive(Debug)]
pub struct Compilation {
    /// The machine code.
    pub cubin: Cubin,
    /// Whether it came from the cache.
    pub cached: bool,
    /// Why it could not be stored in the cache. Every run then compiles it again.
    pub not_stored: Option<CompileError>,
}

impl Cache {
    /// A cache in `folder`, which is created when the first cubin is stored.
    #[must_use]
    pub fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned() }
    }

    fn io<T>(path: &Path, result: std::io::Result<T>) -> Result<T, CompileError> {
        result.map_err(|cause| CompileError::Io { path: path.to_owned(), cause })
    }

    /// Reads one compilation, or returns `None` if the file is missing, cannot be read or is
    /// damaged: a hash guards cubin, PTX and log, and the kernel is then compiled again.
    fn load(&self, key: &str) -> Option<Compiled> {
        decode(&fs::read(self.folder.join(key)).ok()?)
    }

    /// Stores one compilation. A `usable` file that another process has stored meanwhile is kept:
    /// on NFS, a process that reads it would fail if another file took its name.
    fn store(
        &self,
        key: &str,
        compiled: &Compiled,
        usable: impl Fn(Compiled) -> bool,
    ) -> Result<(), CompileError> {
        Self::io(&self.folder, fs::create_dir_all(&self.folder))?;
        let (path, part) = (self.folder.join(key), self.folder.join(temporary(key)));
        let stored = Self::io(&part, fs::write(&part, encode(compiled))).and_then(|()| {
            if fs::hard_link(&part, &path).is_ok() || self.load(key).is_some_and(usable) {
                return Ok(());
            }
            // The file system has no hard links, or the file is damaged.
            Self::io(&path, fs::rename(&part, &path))
        });
        // Report the error of storing, not that of removing the partial file.
        fs::remove_file(&part).ok();
        stored
    }
}

/// A file name that no other thread, process or node sharing the folder uses: 64 random bits.
fn temporary(key: &str) -> String {
    format!("{key}.{:016x}", RandomState::new().build_hasher().finish())
}

fn encode(compiled: &Compiled) -> Vec<u8> {
    let mut body = Vec::new();
    for part in [&compiled.cubin[..], compiled.ptx.as_bytes(), compiled.log.as_bytes()] {
        body.extend(u64::try_from(part.len()).unwrap_or(0).to_le_bytes());
        body.extend(part);
    }
    let mut bytes = blake3::hash(&body).as_bytes().to_vec();
    bytes.extend(body);
    bytes
}

fn decode(bytes: &[u8]) -> Option<Compiled> {
    let (hash, mut body) = bytes.split_at_checked(32)?;
    if blake3::hash(body).as_bytes() != hash {
        return None;
    }
    let mut next = || {
        let (length, rest) = body.split_at_checked(8)?;
        let length = usize::try_from(u64::from_le_bytes(length.try_into().ok()?)).ok()?;
        let (part, rest) = rest.split_at_checked(length)?;
        body = rest;
        Some(part.to_vec())
    };
    let (cubin, ptx, log) = (next()?, next()?, next()?);
    Some(Compiled { cubin, ptx: String::from_utf8(ptx).ok()?, log: String::from_utf8(log).ok()? })
}

impl Compiler {
    /// A compiler for `architecture` (`sm_90a`). Without a cache it compiles every kernel every
    /// time.
    #[must_use]
    pub fn new(nvrtc: Nvrtc, architecture: &str, cache: Option<Cache>) -> Self {
        Self { nvrtc, cache, architecture: architecture.to_owned() }
    }

    /// The NVRTC library that compiles the kernels.
    #[must_use]
    pub fn nvrtc(&self) -> &Nvrtc {
        &self.nvrtc
    }

    /// Target architecture of the kernels, `sm_90a`.
    #[must_use]
    pub fn architecture(&self) -> &str {
        &self.architecture
    }

    /// The cubin of `kernel`, from the cache or compiled and then stored there.
    ///
    /// # Errors
    /// If the kernel cannot be emitted or compiled. A cache that cannot be read or written is not
    /// an error: the kernel is compiled again.
    pub fn compile(&self, kernel: Kernel) -> Result<Compilation, CompileError> {
        let source = kernel.source()?;
        let key = self.key(&source);
        let load = |cache: &Cache| cubin(&source, cache.load(&key)?).ok();
        if let Some(cubin) = self.cache.as_ref().and_then(load) {
            return Ok(Compilation { cubin, cached: true, not_stored: None });
        }
        let compiled = self.nvrtc.compile(&source.name, &source.text, &self.architecture)?;
        let cubin = cubin(&source, compiled.clone())?;
        let usable = |stored| self::cubin(&source, stored).is_ok();
        let store = |cache: &Cache| cache.store(&key, &compiled, usable).err();
        let not_stored = self.cache.as_ref().and_then(store);
        Ok(Compilation { cubin, cached: false, not_stored })
    }

    fn key(&self, source: &Source) -> String {
        let mut hash = blake3::Hasher::new();
        let options = self.nvrtc.options().join(" ");
        for part in [&source.text, &self.architecture, &self.nvrtc.version(), &options] {
            hash.update(part.as_bytes());
            hash.update(&[0]);
        }
        format!("{}-{}.cubin", source.name, &hash.finalize().to_hex()[..24])
    }
}

fn cubin(source: &Source, compiled: Compiled) -> Result<Cubin, CompileError> {
    let resources = Resources::read(&compiled.log).ok_or_else(|| CompileError::Cubin {
        kernel: source.name.clone(),
        message: format!("the compiler's log does not list resources:\n{}", compiled.log),
    })?;
    Ok(Cubin {
        name: source.name.clone(),
        units: source.units,
        shared_bytes: source.shared_bytes,
        resources,
        instructions: Instructions::read(&compiled.cubin, &source.name)?,
        image: compiled.cubin,
    })
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::fs;
    use std::sync::Barrier;

    use super::{Cache, Compiled, temporary};

    fn compiled(log: &str) -> Compiled {
        Compiled { cubin: vec![7; 1 << 16], ptx: String::new(), log: log.to_owned() }
    }

    #[test]
    fn threads_that_store_one_kernel_at_once_leave_one_whole_file() {
        const THREADS: usize = 4;
        let folder = tempfile::tempdir().unwrap();
        let (cache, barrier) = (Cache::new(folder.path()), Barrier::new(THREADS));
        std::thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    for round in 0..50 {
                        barrier.wait();
                        cache
                            .store(&format!("kernel-{round}"), &compiled("log"), |_| true)
                            .unwrap();
                    }
                });
            }
        });
        assert_eq!(cache.load("kernel-49"), Some(compiled("log")));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 50, "no part is left");
    }

    #[test]
    fn a_stored_kernel_stays_and_a_damaged_one_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let (cache, path) = (Cache::new(folder.path()), folder.path().join("kernel"));
        let inode = || std::os::unix::fs::MetadataExt::ino(&fs::metadata(&path).unwrap());
        let store = |log, usable| cache.store("kernel", &compiled(log), |_| usable).unwrap();
        store("first", true);
        let before = inode();
        store("second", true);
        assert_eq!((inode(), cache.load("kernel")), (before, Some(compiled("first"))));
        fs::write(&path, "damaged").unwrap();
        assert_eq!(cache.load("kernel"), None);
        store("third", true);
        assert_eq!(cache.load("kernel"), Some(compiled("third")));
        // A whole file from which no kernel can be made.
        store("fourth", false);
        assert_eq!(cache.load("kernel"), Some(compiled("fourth")));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "no part is left");
    }

    #[test]
    fn temporary_names_do_not_repeat() {
        let names: HashSet<String> = (0..1000).map(|_| temporary("kernel")).collect();
        assert_eq!(names.len(), 1000);
        assert!(names.iter().all(|name| name.starts_with("kernel.")));
    }

    #[test]
    fn what_cannot_be_stored_leaves_no_part_behind() {
        let folder = tempfile::tempdir().unwrap();
        // A folder at the path of the file: the partial file is written but cannot be renamed.
        fs::create_dir(folder.path().join("kernel")).unwrap();
        let error = Cache::new(folder.path()).store("kernel", &compiled(""), |_| true).unwrap_err();
        assert!(error.to_string().contains("kernel cache"), "{error}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
