//! Files of weights: safetensors, several safetensors files with an index, and PyTorch's `.pt` and
//! `.pth`. Tensors are read one by one, so that a file is never in memory as a whole.

mod pickle;
mod pytorch;
mod safetensors;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use half::{bf16, f16};
use vljepa_recipes::file_kind::{FileKind, HEAD_BYTES};
use vljepa_recipes::weight_index;

use crate::ModelError;

/// Elements of a tensor that are read and converted at once. Bounds the buffers to 8 MiB.
const CHUNK: usize = 1 << 20;

/// Type of the elements of a tensor in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Element {
    F32,
    Bf16,
    F16,
    /// A type that weights here do not have, as the file names it.
    Other(String),
}

impl Element {
    /// Bytes of an element. `None` for types that are not read.
    pub(super) fn bytes(&self) -> Option<usize> {
        match self {
            Self::F32 => Some(4),
            Self::Bf16 | Self::F16 => Some(2),
            Self::Other(_) => None,
        }
    }
}

/// Where and how a tensor is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stored {
    /// Index of the file.
    file: usize,
    /// First byte of the tensor in the file.
    start: u64,
    /// Shape of the tensor.
    pub shape: Vec<usize>,
    /// Type of its elements.
    pub element: Element,
    /// Whether the elements lie in the order of the shape, one after the other.
    pub contiguous: bool,
}

/// Open files of one model's weights.
pub(super) struct Tensors {
    /// The file that was named.
    path: PathBuf,
    files: Vec<(PathBuf, File)>,
    tensors: BTreeMap<String, Stored>,
}

impl Tensors {
    /// Opens a file, or the files of an index, and finds their tensors. The format is that of the
    /// content, not of the name.
    pub(super) fn open(path: &Path) -> Result<Self, ModelError> {
        let io = |cause| ModelError::File { path: path.to_owned(), cause };
        let bad = |reason| ModelError::Format { path: path.to_owned(), reason };
        let mut file = File::open(path).map_err(io)?;
        let mut start = Vec::new();
        let head = u64::try_from(HEAD_BYTES).unwrap_or(u64::MAX);
        file.by_ref().take(head).read_to_end(&mut start).map_err(io)?;
        let mut files = Vec::new();
        let tensors = match Format::of(&start).map_err(bad)? {
            Format::PyTorch => pytorch::tensors(&file).map_err(bad)?,
            Format::Safetensors => safetensors::tensors(&mut file, 0).map_err(bad)?,
            Format::Index => {
                file.seek(SeekFrom::Start(0)).map_err(io)?;
                let parts = weight_index::read(&file).map_err(bad)?;
                return Self::of_index(path, parts);
            }
        };
        files.push((path.to_owned(), file));
        Ok(Self { path: path.to_owned(), files, tensors })
    }

    fn of_index(
        path: &Path,
        parts: BTreeMap<String, BTreeSet<String>>,
    ) -> Result<Self, ModelError> {
        let (mut files, mut tensors) = (Vec::new(), BTreeMap::new());
        for (name, names) in parts {
            let part = path.with_file_name(name);
            let bad = |reason| ModelError::Format { path: part.clone(), reason };
            let mut file = File::open(&part)
                .map_err(|cause| ModelError::File { path: part.clone(), cause })?;
            let found = safetensors::tensors(&mut file, files.len()).map_err(bad)?;
            let missing: Vec<String> =
                names.into_iter().filter(|name| !found.contains_key(name)).collect();
            if !missing.is_empty() {
                return Err(ModelError::MissingTensors { path: part, names: missing });
            }
            for (name, stored) in found {
                if tensors.insert(name.clone(), stored).is_some() {
                    return Err(bad(format!("{name} is also in another file of the index")));
                }
            }
            files.push((part, file));
        }
        Ok(Self { path: path.to_owned(), files, tensors })
    }

    /// The file that was named.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// All tensors, by name.
    pub(super) fn all(&self) -> &BTreeMap<String, Stored> {
        &self.tensors
    }

    /// Reads a tensor, converts it to f32 and passes it to `take` in parts, each with the index of
    /// its first element.
    pub(super) fn read(
        &mut self,
        name: &str,
        mut take: impl FnMut(usize, &[f32]),
    ) -> Result<(), ModelError> {
        self.parts(name, |first, values, _| take(first, values))
    }

    /// Reads a tensor and passes its bytes to `take` in parts. Its numbers are finite.
    pub(super) fn read_bytes(
        &mut self,
        name: &str,
        mut take: impl FnMut(&[u8]),
    ) -> Result<(), ModelError> {
        self.parts(name, |_, _, bytes| take(bytes))
    }

    /// Reads a tensor in parts: the index of the first element, the elements, and their bytes.
    fn parts(
        &mut self,
        name: &str,
        mut take: impl FnMut(usize, &[f32], &[u8]),
    ) -> Result<(), ModelError> {
        let stored = &self.tensors[name];
        let (path, file) = &mut self.files[stored.file];
        let io = |cause| ModelError::File { path: path.clone(), cause };
        let elements: usize = stored.shape.iter().product();
        file.seek(SeekFrom::Start(stored.start)).map_err(io)?;
        let size = stored.element.bytes().unwrap_or(0);
        let mut bytes = vec![0; size * CHUNK.min(elements)];
        let mut values = vec![0.0; CHUNK.min(elements)];
        for first in (0..elements).step_by(CHUNK) {
            let count = CHUNK.min(elements - first);
            let (bytes, values) = (&mut bytes[..size * count], &mut values[..count]);
            file.read_exact(bytes).map_err(io)?;
            match stored.element {
                Element::F32 => {
                    for (value, bytes) in values.iter_mut().zip(bytes.as_chunks().0) {
                        *value = f32::from_le_bytes(*bytes);
                    }
                }
                Element::Bf16 => halves(bytes, values, |bits| bf16::from_bits(bits).to_f32()),
                Element::F16 => halves(bytes, values, |bits| f16::from_bits(bits).to_f32()),
                Element::Other(_) => {}
            }
            if let Some(nth) = values.iter().position(|value| !value.is_finite()) {
                return Err(ModelError::NotFinite {
                    path: path.clone(),
                    name: name.to_owned(),
                    index: first + nth,
                    value: values[nth],
                });
            }
            take(first, values, bytes);
        }
        Ok(())
    }
}

/// Format of a file.
enum Format {
    Safetensors,
    Index,
    PyTorch,
}

impl Format {
    /// Format of a file that starts with `start`, or what it is instead.
    fn of(start: &[u8]) -> Result<Self, String> {
        // A safetensors file starts with the length of its header, in eight bytes, and the header.
        // The length may look like the first bytes of another format.
        let length = start.first_chunk().map_or(u64::MAX, |length| u64::from_le_bytes(*length));
        if length <= safetensors::MAX_HEADER_BYTES && start.get(8) == Some(&b'{') {
            return Ok(Self::Safetensors);
        }
        if start.starts_with(b"PK\x03\x04") {
            return Ok(Self::PyTorch);
        }
        if start.starts_with(b"\x80\x02") {
            return Err(
                "it is a pickle as PyTorch wrote it before version 1.6; load it with `torch.load` \
                 and save it with `torch.save` of a newer version"
                    .to_owned(),
            );
        }
        if let Some(FileKind { what, advice }) = FileKind::of(start) {
            return Err(format!("the file {what}; {advice}"));
        }
        for (magic, format) in [(&b"GGUF"[..], "GGUF"), (b"\x89HDF", "HDF5")] {
            if start.starts_with(magic) {
                return Err(format!("it is a {format} file; name the model's safetensors file"));
            }
        }
        let text = start.strip_prefix(b"\xef\xbb\xbf").unwrap_or(start).trim_ascii_start();
        Ok(if text.first() == Some(&b'{') { Self::Index } else { Self::Safetensors })
    }
}

fn halves(from: &[u8], to: &mut [f32], convert: impl Fn(u16) -> f32) {
    for (value, bytes) in to.iter_mut().zip(from.as_chunks().0) {
        *value = convert(u16::from_le_bytes(*bytes));
    }
}

#[cfg(test)]
mod tests;
