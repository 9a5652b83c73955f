//! Reads safetensors files tensor by tensor, so that a file is never in memory as a whole.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use half::{bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};

use super::{Piece, Source};
use crate::{ModelError, Parameters, VlJepa};

/// Largest header that is read, in bytes. Headers of the published files have about 100 kB.
const MAX_HEADER_BYTES: u64 = 100 << 20;

/// Elements of a bf16 or f16 tensor that are read and converted at once. Bounds the buffer to 2
/// MiB.
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
        into.write_f32(|into| weights.read(&name, into))?;
    }
    let device = parameters.trainable.view().device();
    parameters.refresh(&device.compute_stream())?;
    Ok(extra)
}

impl<'a> Weights<'a> {
    fn open(path: &'a Path) -> Result<Self, ModelError> {
        let io = |source| ModelError::File { path: path.to_owned(), source };
        let bad = |reason: String| ModelError::Format { path: path.to_owned(), reason };
        if path.extension().is_some_and(|e| e == "pt" || e == "pth" || e == "bin") {
            let advice =
                "PyTorch pickle files can run code when loaded; use the model's safetensors file";
            return Err(bad(advice.to_owned()));
        }
        let mut file = File::open(path).map_err(io)?;
        let bytes = file.metadata().map_err(io)?.len();
        let mut length = [0; 8];
        file.read_exact(&mut length).map_err(io)?;
        let header_bytes = u64::from_le_bytes(length);
        if header_bytes > MAX_HEADER_BYTES || header_bytes + 8 > bytes {
            let reason = "not a safetensors file: its header is longer than the file or 100 MiB";
            return Err(bad(reason.to_owned()));
        }
        let mut header = Vec::new();
        file.by_ref().take(header_bytes).read_to_end(&mut header).map_err(io)?;
        let metadata: Metadata = serde_json::from_slice(&header)
            .map_err(|error| bad(format!("not a safetensors file: {error}")))?;
        let data_start = header_bytes + 8;
        let tensors: BTreeMap<String, TensorInfo> =
            metadata.tensors().into_iter().map(|(name, info)| (name, info.clone())).collect();
        let end = tensors.values().map(|info| to_u64(info.data_offsets.1)).max().unwrap_or(0);
        if data_start + end > bytes {
            let needed = data_start + end;
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

    /// Reads a tensor into `values` and converts it to f32.
    fn read(&mut self, name: &str, values: &mut [f32]) -> Result<(), ModelError> {
        let io = |source| ModelError::File { path: self.path.to_owned(), source };
        let info = &self.tensors[name];
        let start = self.data_start + to_u64(info.data_offsets.0);
        self.file.seek(SeekFrom::Start(start)).map_err(io)?;
        let convert: fn(&[u8], &mut [f32]) = match info.dtype {
            Dtype::F32 => {
                return self.file.read_exact(bytemuck::cast_slice_mut(values)).map_err(io);
            }
            Dtype::BF16 => |from, to| halves(from, to, |bits| bf16::from_bits(bits).to_f32()),
            _ => |from, to| halves(from, to, |bits| f16::from_bits(bits).to_f32()),
        };
        let mut bytes = vec![0; 2 * CHUNK.min(values.len())];
        for chunk in values.chunks_mut(CHUNK) {
            let bytes = &mut bytes[..2 * chunk.len()];
            self.file.read_exact(bytes).map_err(io)?;
            convert(bytes, chunk);
        }
        Ok(())
    }
}

fn halves(from: &[u8], to: &mut [f32], convert: impl Fn(u16) -> f32) {
    for (value, bytes) in to.iter_mut().zip(from.chunks_exact(2)) {
        *value = convert(u16::from_le_bytes([bytes[0], bytes[1]]));
    }
}

fn to_u64(offset: usize) -> u64 {
    u64::try_from(offset).unwrap_or(u64::MAX)
}
