//! Copies the models of a file of weights to a safetensors file, tensor by tensor.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};

use super::files::{Element, Tensors};
use super::identify::{held, identify};
use vljepa_recipes::protocol::Weights;

use crate::ModelError;

/// Writes the models that a recipe can use from the file `from` to the new safetensors file `to`:
/// their tensors with the heads of image towers and no others, under the family's names, with the
/// bits of the file. Returns what the new file holds, or what `from` holds if it is no model, and
/// then writes nothing.
///
/// # Errors
/// Same as [`identify`]; also if a number is not finite, `to` exists already, or it cannot be
/// written.
pub fn convert(from: &Path, to: &Path) -> Result<Weights, ModelError> {
    let mut tensors = Tensors::open(from)?;
    let models = held(&tensors)?.models;
    if models.is_empty() {
        return identify(from);
    }
    if to.symlink_metadata().is_ok() {
        let reason = "it exists already; name a new file".to_owned();
        return Err(ModelError::Format { path: to.to_owned(), reason });
    }
    // A file with this name is the rest of a conversion that was interrupted.
    let part = PathBuf::from(format!("{}.part", to.display()));
    let names = models.into_iter().flat_map(|model| model.tensors.into_iter().chain(model.head));
    let names = names.collect();
    let written = write(&mut tensors, names, &part).and_then(|()| {
        std::fs::rename(&part, to).map_err(|cause| ModelError::File { path: to.to_owned(), cause })
    });
    if let Err(error) = written {
        std::fs::remove_file(&part).ok();
        return Err(error);
    }
    identify(to)
}

/// Writes tensors to the safetensors file `path`. `names` holds the new name of each and its name
/// in `tensors`.
fn write(
    tensors: &mut Tensors,
    names: BTreeMap<String, String>,
    path: &Path,
) -> Result<(), ModelError> {
    let failed = |cause| ModelError::File { path: path.to_owned(), cause };
    let bad = |reason| ModelError::Format { path: path.to_owned(), reason };
    let mut names: Vec<(String, String)> = names.into_iter().collect();
    // Wide elements come first, so that each tensor is aligned to its elements.
    names.sort_by_key(|(_, name)| Reverse(tensors.all()[name].element.bytes()));
    let (mut infos, mut start) = (Vec::with_capacity(names.len()), 0);
    for (new, name) in &names {
        let stored = &tensors.all()[name];
        let (dtype, width) = match &stored.element {
            Element::F32 => (Dtype::F32, 4),
            Element::Bf16 => (Dtype::BF16, 2),
            Element::F16 => (Dtype::F16, 2),
            Element::Other(other) => return Err(bad(format!("{name} holds {other}"))),
        };
        let shape = stored.shape.clone();
        let end = start + width * shape.iter().product::<usize>();
        infos.push((new.clone(), TensorInfo { dtype, shape, data_offsets: (start, end) }));
        start = end;
    }
    let header = Metadata::new(None, infos).map_err(|error| bad(error.to_string()))?;
    let mut header = serde_json::to_vec(&header).map_err(|error| bad(error.to_string()))?;
    header.resize(header.len().next_multiple_of(8), b' ');
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(failed)?;
    }
    let mut file = BufWriter::new(File::create(path).map_err(failed)?);
    file.write_all(&(header.len() as u64).to_le_bytes()).map_err(failed)?;
    file.write_all(&header).map_err(failed)?;
    for (_, name) in &names {
        let mut written = Ok(());
        tensors.read_bytes(name, |bytes| {
            if written.is_ok() {
                written = file.write_all(bytes);
            }
        })?;
        written.map_err(failed)?;
    }
    let file = file.into_inner().map_err(|error| failed(error.into_error()))?;
    file.sync_all().map_err(failed)
}
