//! Reads safetensors files tensor by tensor, so that a file is never in memory as a whole.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use half::{bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use vljepa_recipes::file_kind::{FileKind, HEAD_BYTES};

use super::{Piece, Source};
use crate::{ModelError, Parameters, VlJepa};

/// Largest header that is read, in bytes. Headers of the published files have about 100 kB.
const MAX_HEADER_BYTES: u64 = 100 << 20;

/// Elements of a tensor that are read and converted at once. Bounds the buffers to 8 MiB.
const CHUNK: usize = 1 << 20;

/// Open safetensors file, with its parsed header.
struct Weights<'a> {
    path: &'a Path,
    file: File,
    data_start: u64,
    tensors: BTreeMap<String, TensorInfo>,
}

pub(super) fn load(
    model: &VlJepa,
    parameters: &mut Parameters,
    source: Source,
    path: &Path,
) -> Result<Vec<String>, ModelError> {
    let mut weights = Weights::open(path)?;
    let pieces = source.pieces(model);
    let (found, extra) = weights.find(&pieces, source.optional_prefix())?;
    for (piece, name) in pieces.iter().zip(found) {
        let into = parameters.view_mut(model.layout(), piece.parameter);
        let into = into.part(piece.start, &[piece.elements()]);
        into.write_f32(|into| {
            weights.read(&name, |start, values| {
                into[start..start + values.len()].copy_from_slice(values);
            })
        })?;
    }
    let device = parameters.trainable.view().device();
    parameters.refresh(&device.compute_stream())?;
    Ok(extra)
}

pub(super) fn check(model: &VlJepa, source: Source, path: &Path) -> Result<(), ModelError> {
    let mut weights = Weights::open(path)?;
    let (found, _) = weights.find(&source.pieces(model), source.optional_prefix())?;
    found.iter().try_for_each(|name| weights.read(name, |_, _| {}))
}

impl<'a> Weights<'a> {
    fn open(path: &'a Path) -> Result<Self, ModelError> {
        let io = |source| ModelError::File { path: path.to_owned(), source };
        let bad = |reason: String| ModelError::Format { path: path.to_owned(), reason };
        let mut file = File::open(path).map_err(io)?;
        let bytes = file.metadata().map_err(io)?.len();
        let mut start = Vec::new();
        file.by_ref().take(to_u64(HEAD_BYTES)).read_to_end(&mut start).map_err(io)?;
        if let Some(reason) = other_format(path, &start) {
            return Err(bad(reason));
        }
        let length = start.first_chunk().map_or(u64::MAX, |length| u64::from_le_bytes(*length));
        if length > MAX_HEADER_BYTES || length + 8 > bytes {
            return Err(bad(format!(
                "it is not a safetensors file, or it is cut short: its first 8 bytes announce a \
                 header of {length} bytes, and the file has {bytes} bytes"
            )));
        }
        let header_bytes = length;
        file.seek(SeekFrom::Start(8)).map_err(io)?;
        let mut header = Vec::new();
        file.by_ref().take(header_bytes).read_to_end(&mut header).map_err(io)?;
        let metadata: Metadata = serde_json::from_slice(&header)
            .map_err(|error| bad(format!("not a safetensors file: {error}")))?;
        let data_start = header_bytes + 8;
        let tensors: BTreeMap<String, TensorInfo> =
            metadata.tensors().into_iter().map(|(name, info)| (name, info.clone())).collect();
        let end = tensors.values().map(|info| to_u64(info.data_offsets.1)).max().unwrap_or(0);
        let needed = data_start.saturating_add(end);
        if needed > bytes {
            return Err(bad(format!("the file is cut short: it has {bytes} of {needed} bytes")));
        }
        Ok(Self { path, file, data_start, tensors })
    }

    /// Name of each piece in the file, and the names in the file that belong to no piece.
    fn find(
        &self,
        pieces: &[Piece],
        prefix: &str,
    ) -> Result<(Vec<String>, Vec<String>), ModelError> {
        let path = || self.path.to_owned();
        let (mut found, mut missing) = (Vec::new(), Vec::new());
        for piece in pieces {
            let prefixed = format!("{prefix}{}", piece.name);
            let name = [&prefixed, &piece.name].into_iter().find(|n| self.tensors.contains_key(*n));
            let Some(name) = name else {
                missing.push(prefixed);
                continue;
            };
            let info = &self.tensors[name];
            if info.shape != piece.shape {
                return Err(ModelError::MisshapenTensor {
                    path: path(),
                    name: name.clone(),
                    found: info.shape.clone(),
                    needed: piece.shape.clone(),
                });
            }
            if !matches!(info.dtype, Dtype::F32 | Dtype::BF16 | Dtype::F16) {
                let reason =
                    format!("{name} holds {:?}, but f32, bf16 or f16 is needed", info.dtype);
                return Err(ModelError::Format { path: path(), reason });
            }
            found.push(name.clone());
        }
        if !missing.is_empty() {
            return Err(ModelError::MissingTensors { path: path(), names: missing });
        }
        let used: BTreeSet<&String> = found.iter().collect();
        let extra = self.tensors.keys().filter(|n| !used.contains(n)).cloned().collect();
        Ok((found, extra))
    }

    /// Reads a tensor, converts it to f32 and passes it to `take` in parts, each with the index of
    /// its first element.
    fn read(&mut self, name: &str, mut take: impl FnMut(usize, &[f32])) -> Result<(), ModelError> {
        let io = |source| ModelError::File { path: self.path.to_owned(), source };
        let info = &self.tensors[name];
        let elements: usize = info.shape.iter().product();
        let start = self.data_start + to_u64(info.data_offsets.0);
        self.file.seek(SeekFrom::Start(start)).map_err(io)?;
        let size = if info.dtype == Dtype::F32 { 4 } else { 2 };
        let mut bytes = vec![0; size * CHUNK.min(elements)];
        let mut values = vec![0.0; CHUNK.min(elements)];
        for first in (0..elements).step_by(CHUNK) {
            let count = CHUNK.min(elements - first);
            let (bytes, values) = (&mut bytes[..size * count], &mut values[..count]);
            self.file.read_exact(bytes).map_err(io)?;
            match info.dtype {
                Dtype::F32 => {
                    for (value, bytes) in values.iter_mut().zip(bytes.as_chunks().0) {
                        *value = f32::from_le_bytes(*bytes);
                    }
                }
                Dtype::BF16 => halves(bytes, values, |bits| bf16::from_bits(bits).to_f32()),
                _ => halves(bytes, values, |bits| f16::from_bits(bits).to_f32()),
            }
            if let Some(nth) = values.iter().position(|value| !value.is_finite()) {
                return Err(ModelError::NotFinite {
                    path: self.path.to_owned(),
                    name: name.to_owned(),
                    index: first + nth,
                    value: values[nth],
                });
            }
            take(first, values);
        }
        Ok(())
    }
}

/// Says what a file is that starts with `start` and holds no safetensors, and which file to name
/// instead. `None` if it may be a safetensors file.
fn other_format(path: &Path, start: &[u8]) -> Option<String> {
    let pytorch = path.extension().is_some_and(|e| e == "pt" || e == "pth" || e == "bin");
    if pytorch || start.starts_with(b"PK\x03\x04") || start.starts_with(b"\x80\x02") {
        return Some(
            "it is a pickle of PyTorch, which could run code when it is loaded; name the model's \
             safetensors file"
                .to_owned(),
        );
    }
    if let Some(FileKind { what, advice }) = FileKind::of(start) {
        return Some(format!("the file {what}; {advice}"));
    }
    for (magic, format) in [(&b"GGUF"[..], "GGUF"), (b"\x89HDF", "HDF5")] {
        if start.starts_with(magic) {
            return Some(format!("it is a {format} file; name the model's safetensors file"));
        }
    }
    // A safetensors file starts with the length of its header, in eight bytes, and the header.
    let text = start.strip_prefix(b"\xef\xbb\xbf").unwrap_or(start).trim_ascii_start();
    (text.first() == Some(&b'{')).then(|| json_reason(path))
}

/// Says what a JSON file is that was named instead of weights.
fn json_reason(path: &Path) -> String {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let index = File::open(path)
        .ok()
        .and_then(|file| serde_json::from_reader::<_, Index>(file.take(MAX_HEADER_BYTES)).ok());
    let Some(Index { weight_map }) = index else {
        return "it is a JSON file; name the model's safetensors file".to_owned();
    };
    let files: BTreeSet<String> = weight_map.into_values().collect();
    let names = files.iter().take(3).cloned().collect::<Vec<_>>().join(", ");
    let more = if files.len() > 3 { ", …" } else { "" };
    // A part of a model is named such as `model-00001-of-00002.safetensors`.
    let is_part = |name: &String| name.contains("-of-") && !name.contains("-of-00001.");
    if files.len() == 1 && !files.iter().any(is_part) {
        return format!("it is the index of the weights, not the weights; name {names} beside it");
    }
    format!(
        "it is the index of the weights, not the weights, which are in several files ({names}\
         {more}); join these into one safetensors file and name that file"
    )
}

fn halves(from: &[u8], to: &mut [f32], convert: impl Fn(u16) -> f32) {
    for (value, bytes) in to.iter_mut().zip(from.chunks_exact(2)) {
        *value = convert(u16::from_le_bytes([bytes[0], bytes[1]]));
    }
}

fn to_u64(offset: usize) -> u64 {
    u64::try_from(offset).unwrap_or(u64::MAX)
}
