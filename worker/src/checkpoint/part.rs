//! One rank's part of a checkpoint: a safetensors file that is hashed while it is written.

use std::fs::File;
use std::io::Write;
use std::ops::Range;
use std::path::Path;

use anyhow::Context;
use serde_json::json;
use vljepa_recipes::protocol::FileEntry;

use super::TENSORS;
use crate::collectives::record;

/// Bytes that are hashed and then written at once: 1 MiB, so that they are still in the cache for
/// the write.
const BLOCK: usize = 1 << 20;

/// Writes elements `range` of the flat buffers, given as `values` (weights, first and second
/// moment), to the file of `rank` in `folder`, and syncs the file.
///
/// # Errors
/// Fails if the file cannot be written. A partly written file stays.
pub fn write_part(
    folder: &Path,
    rank: usize,
    range: Range<usize>,
    values: [&[f32]; 3],
) -> anyhow::Result<FileEntry> {
    let name = format!("rank-{rank:04}.safetensors");
    let [weights, first, second] = values;
    let tensors = TENSORS.into_iter().zip([weights, first, second]).collect::<Vec<_>>();
    let (bytes, hash) = write_tensors(&folder.join(&name), &tensors)?;
    Ok(FileEntry { name, bytes, blake3: hash.to_hex().to_string(), range })
}

/// Writes f32 vectors as a safetensors file and syncs it. Returns its size in bytes and its hash.
pub(super) fn write_tensors(
    path: &Path,
    tensors: &[(&str, &[f32])],
) -> anyhow::Result<(u64, blake3::Hash)> {
    write_all(path, tensors).with_context(|| format!("cannot write {}", path.display()))
}

fn write_all(path: &Path, tensors: &[(&str, &[f32])]) -> anyhow::Result<(u64, blake3::Hash)> {
    let mut output = Hashed { file: File::create(path)?, hasher: blake3::Hasher::new(), bytes: 0 };
    output.write(&header(tensors)?)?;
    for (_, values) in tensors {
        output.write(bytemuck::cast_slice(values))?;
    }
    output.file.sync_all()?;
    Ok((output.bytes, output.hasher.finalize()))
}

/// Header of a safetensors file: the length of the JSON description and the description, padded so
/// that the data begin at a multiple of eight bytes.
fn header(tensors: &[(&str, &[f32])]) -> anyhow::Result<Vec<u8>> {
    let mut described = serde_json::Map::new();
    let mut start = 0;
    for (name, values) in tensors {
        let end = start + size_of_val(*values);
        let entry = json!({"dtype": "F32", "shape": [values.len()], "data_offsets": [start, end]});
        described.insert((*name).to_owned(), entry);
        start = end;
    }
    let mut text = serde_json::to_vec(&described)?;
    text.resize(text.len().next_multiple_of(8), b' ');
    Ok([&(text.len() as u64).to_le_bytes()[..], &text].concat())
}

/// A file that is being written, with the hash and size of its content so far.
struct Hashed {
    file: File,
    hasher: blake3::Hasher,
    bytes: u64,
}

impl Hashed {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        for block in bytes.chunks(BLOCK) {
            self.hasher.update(block);
            self.file.write_all(block)?;
            self.bytes += block.len() as u64;
            record::of_process().piece_saved();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use safetensors::SafeTensors;

    use super::*;
    use crate::rank::environment::hash_file;

    #[test]
    fn a_part_is_a_safetensors_file_whose_hash_is_that_of_the_file() {
        let folder = tempfile::tempdir().unwrap();
        // More than one block, and not a multiple of a block.
        let values: Vec<f32> = (0u16..300).cycle().take(300_001).map(f32::from).collect();
        let parts = [&values[..], &values[1..], &values[2..]];
        let file = write_part(folder.path(), 3, 64..300_065, parts).unwrap();
        let path = folder.path().join("rank-0003.safetensors");
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(file.bytes, bytes.len() as u64);
        assert_eq!(file.blake3, hash_file(&path).unwrap().to_hex().to_string());
        assert_eq!((file.name.as_str(), file.range), ("rank-0003.safetensors", 64..300_065));
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        for (name, values) in TENSORS.into_iter().zip(parts) {
            let tensor = tensors.tensor(name).unwrap();
            assert_eq!(tensor.shape(), [values.len()]);
            assert!(tensor.data() == bytemuck::cast_slice::<f32, u8>(values), "{name}");
        }
    }

    #[test]
    fn a_file_that_cannot_be_written_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let gone = folder.path().join("gone");
        let error = write_part(&gone, 0, 0..1, [&[1.0]; 3]).unwrap_err();
        assert!(format!("{error:#}").contains("rank-0000.safetensors"), "{error:#}");
        let error = write_tensors(Path::new("/dev/full"), &[("x", &[1.0])]).unwrap_err();
        assert!(format!("{error:#}").contains("No space left"), "{error:#}");
    }
}
