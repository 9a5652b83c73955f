//! Compiling kernels once: cubins on disk under the hash of what they were made from.

use std::fs;
use std::path::{Path, PathBuf};

use super::nvrtc::Compiled;
use super::{CompileError, Cubin, Instructions, Kernel, Nvrtc, Resources, Source};

/// A folder of cubins. Several processes may share it: files appear whole or not at all.
#[derive(Debug, Clone)]
pub struct Cache {
    folder: PathBuf,
}

/// Makes cubins of kernels for one architecture, out of the cache where it has them.
#[derive(Debug)]
pub struct Compiler {
    nvrtc: Nvrtc,
    cache: Option<Cache>,
    architecture: String,
}

impl Cache {
    /// A cache in `folder`, which is made when the first cubin is stored.
    #[must_use]
    pub fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned() }
    }

    fn io<T>(path: &Path, result: std::io::Result<T>) -> Result<T, CompileError> {
        result.map_err(|source| CompileError::Io { path: path.to_owned(), source })
    }

    /// The file of one compilation: image, then log, each behind its hash, so that a damaged file is compiled again.
    fn load(&self, key: &str) -> Result<Option<Compiled>, CompileError> {
        let path = self.folder.join(key);
        let bytes = match fs::read(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            read => Self::io(&path, read)?,
        };
        Ok(decode(&bytes))
    }

    fn store(&self, key: &str, compiled: &Compiled) -> Result<(), CompileError> {
        Self::io(&self.folder, fs::create_dir_all(&self.folder))?;
        let path = self.folder.join(key);
        let part = self.folder.join(format!("{key}.{}", std::process::id()));
        Self::io(&part, fs::write(&part, encode(compiled)))?;
        Self::io(&path, fs::rename(&part, &path))
    }
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
    /// A compiler for `architecture` (`sm_90a`); without a cache everything is compiled every time.
    #[must_use]
    pub fn new(nvrtc: Nvrtc, architecture: &str, cache: Option<Cache>) -> Self {
        Self { nvrtc, cache, architecture: architecture.to_owned() }
    }

    /// The NVRTC in use.
    #[must_use]
    pub fn nvrtc(&self) -> &Nvrtc {
        &self.nvrtc
    }

    /// What kernels are compiled for: `sm_90a`.
    #[must_use]
    pub fn architecture(&self) -> &str {
        &self.architecture
    }

    /// The cubin of `kernel`, and whether it came out of the cache.
    ///
    /// # Errors
    /// When the kernel cannot be emitted or compiled, or the cache cannot be read or written. A damaged file in the cache is
    /// not an error: it is compiled again.
    pub fn compile(&self, kernel: Kernel) -> Result<(Cubin, bool), CompileError> {
        let source = kernel.source()?;
        let key = self.key(&source);
        if let Some(cache) = &self.cache
            && let Some(compiled) = cache.load(&key)?
        {
            return Ok((cubin(&source, compiled)?, true));
        }
        let compiled = self.nvrtc.compile(&source.name, &source.text, &self.architecture)?;
        if let Some(cache) = &self.cache {
            cache.store(&key, &compiled)?;
        }
        Ok((cubin(&source, compiled)?, false))
    }

    fn key(&self, source: &Source) -> String {
        let mut hash = blake3::Hasher::new();
        for part in [&source.text, &self.architecture, &self.nvrtc.version()] {
            hash.update(part.as_bytes());
            hash.update(&[0]);
        }
        format!("{}-{}.cubin", source.name, &hash.finalize().to_hex()[..24])
    }
}

fn cubin(source: &Source, compiled: Compiled) -> Result<Cubin, CompileError> {
    let resources = Resources::read(&compiled.log).ok_or_else(|| CompileError::Cubin {
        kernel: source.name.clone(),
        message: format!("no resources in the compiler's log:\n{}", compiled.log),
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
