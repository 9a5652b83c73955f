//! The header of a safetensors file.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};

use safetensors::Dtype;
use safetensors::tensor::Metadata;

use super::{Element, Stored};

/// Largest header that is read, in bytes. Headers of published files have about 100 kB.
pub(super) const MAX_HEADER_BYTES: u64 = 100 << 20;

/// Tensors of a safetensors file, by name. `file` is its index among the files that are read.
///
/// # Errors
/// A message if it is damaged or cut short.
pub(super) fn tensors(file: &mut File, index: usize) -> Result<BTreeMap<String, Stored>, String> {
    let io = |error: std::io::Error| error.to_string();
    let bytes = file.metadata().map_err(io)?.len();
    file.seek(SeekFrom::Start(0)).map_err(io)?;
    let mut start = Vec::new();
    file.by_ref().take(8).read_to_end(&mut start).map_err(io)?;
    let length = start.first_chunk().map_or(u64::MAX, |length| u64::from_le_bytes(*length));
    if length > MAX_HEADER_BYTES || length + 8 > bytes {
        return Err(format!(
            "it is not a safetensors file, or it is cut short: its first 8 bytes announce a \
             header of {length} bytes, and the file has {bytes} bytes"
        ));
    }
    let mut header = Vec::new();
    file.by_ref().take(length).read_to_end(&mut header).map_err(io)?;
    let metadata: Metadata = serde_json::from_slice(&header)
        .map_err(|error| format!("not a safetensors file: {error}"))?;
    let data_start = length + 8;
    let mut found = BTreeMap::new();
    let mut needed = data_start;
    let infos: BTreeMap<_, _> = metadata.tensors().into_iter().collect();
    for (name, info) in infos {
        let [start, end] = [info.data_offsets.0, info.data_offsets.1]
            .map(|offset| data_start.saturating_add(u64::try_from(offset).unwrap_or(u64::MAX)));
        needed = needed.max(end);
        let element = match info.dtype {
            Dtype::F32 => Element::F32,
            Dtype::BF16 => Element::Bf16,
            Dtype::F16 => Element::F16,
            other => Element::Other(format!("{other:?}")),
        };
        let shape = info.shape.clone();
        found.insert(name, Stored { file: index, start, shape, element, contiguous: true });
    }
    if needed > bytes {
        return Err(format!("the file is cut short: it has {bytes} of {needed} bytes"));
    }
    Ok(found)
}
