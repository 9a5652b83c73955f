//! Writes safetensors files straight from the flat buffers, without a copy if they are in host
//! memory.

use std::borrow::Cow;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use safetensors::Dtype;
use safetensors::tensor::View;

use super::{Order, Piece};
use crate::{Layout, ModelError, Parameters};

/// Shape and values of a piece, as `safetensors` serialises them.
struct Borrowed<'a> {
    shape: &'a [usize],
    values: Cow<'a, [f32]>,
}

impl View for Borrowed<'_> {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(bytemuck::cast_slice(&self.values))
    }

    fn data_len(&self) -> usize {
        size_of_val(&*self.values)
    }
}

/// Writes `pieces` to the safetensors file `path`.
pub(super) fn write(
    layout: &Layout,
    parameters: &Parameters,
    pieces: &[Piece],
    path: &Path,
) -> Result<(), ModelError> {
    let file = |cause| ModelError::File { path: path.to_owned(), cause };
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(file)?;
    }
    let mut tensors = Vec::with_capacity(pieces.len());
    for piece in pieces {
        let values = parameters.view(layout, piece.parameter);
        let values = values.part(piece.start, &[piece.elements()]);
        let mut values = values.to_f32()?;
        if piece.order != Order::Same {
            values =
                (0..piece.elements()).map(|i| values[piece.index(i)]).collect::<Vec<_>>().into();
        }
        tensors.push((piece.name.as_str(), Borrowed { shape: &piece.shape, values }));
    }
    safetensors::serialize_to_file(tensors, None, path).map_err(|error| match error {
        safetensors::SafeTensorError::IoError(source) => file(source),
        other => ModelError::Format { path: path.to_owned(), reason: other.to_string() },
    })?;
    // `safetensors` writes through a temporary file that only its owner may read. Other users may
    // read exported weights.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o644)).map_err(file)
}
