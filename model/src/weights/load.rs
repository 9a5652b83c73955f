//! Reads the tensors of a model from a file, all of them or none, and accepts no others than those
//! that a published file is known to hold beside them.

use std::collections::BTreeSet;
use std::path::Path;

use super::files::{Element, Tensors};
use super::naming::Naming;
use super::sizes::PlainNames;
use super::{Imported, Order, Piece};
use crate::{Layout, ModelError, Parameters};

pub(super) fn load(
    layout: &Layout,
    namings: Vec<Naming>,
    parameters: &mut Parameters,
    path: &Path,
) -> Result<Imported, ModelError> {
    let mut tensors = Tensors::open(path)?;
    let Found { naming, names, unused } = find(&tensors, namings)?;
    for (piece, name, of_norm) in with_names(&naming, &names) {
        let folded =
            piece.norm.as_ref().map(|norm| norm.read(&mut tensors, of_norm)).transpose()?;
        let into = parameters.view_mut(layout, piece.parameter);
        let into = into.part(piece.start, &[piece.elements()]);
        into.write_f32(|into| {
            tensors.read(name, |start, values| match piece.order {
                Order::Same => into[start..start + values.len()].copy_from_slice(values),
                Order::Transposed | Order::ChannelsLast => {
                    (start..).zip(values).for_each(|(i, value)| into[piece.index(i)] = *value);
                }
            })?;
            if let Some(folded) = &folded {
                folded.multiply(into);
            }
            Ok::<(), ModelError>(())
        })?;
        if let Some((norm, folded)) = piece.norm.as_ref().zip(folded) {
            let bias = parameters.view_mut(layout, norm.bias);
            bias.write_f32(|bias| {
                bias.copy_from_slice(&folded.bias);
                Ok::<(), ModelError>(())
            })?;
        }
    }
    let device = parameters.trainable.view().device();
    parameters.refresh(&device.compute_stream())?;
    Ok(Imported { read: names.len(), unused })
}

pub(super) fn check(namings: Vec<Naming>, path: &Path) -> Result<Imported, ModelError> {
    let mut tensors = Tensors::open(path)?;
    let Found { naming, names, unused } = find(&tensors, namings)?;
    for (piece, name, of_norm) in with_names(&naming, &names) {
        tensors.read(name, |_, _| {})?;
        piece.norm.as_ref().map(|norm| norm.read(&mut tensors, of_norm)).transpose()?;
    }
    Ok(Imported { read: names.len(), unused })
}

/// Pieces with the names in the file of their tensors and of the vectors of their batch norms.
/// `names` are those of all tensors in the order of the pieces.
fn with_names<'a>(
    naming: &'a Naming,
    mut names: &'a [String],
) -> impl Iterator<Item = (&'a Piece, &'a str, &'a [String])> {
    naming.pieces.iter().map(move |piece| {
        let (of_piece, others) = names.split_at(piece.tensors().count());
        names = others;
        (piece, of_piece[0].as_str(), &of_piece[1..])
    })
}

/// Naming of a file, and the tensors of the model in it.
struct Found {
    naming: Naming,
    /// Name in the file of each tensor of the naming.
    names: Vec<String>,
    /// Names in the file that the model does not use.
    unused: Vec<String>,
}

/// Finds the naming of a file and each of its tensors.
fn find(tensors: &Tensors, namings: Vec<Naming>) -> Result<Found, ModelError> {
    let mut first_missing = None;
    for naming in namings.into_iter().filter(|naming| !naming.pieces.is_empty()) {
        let plain = plain_names(tensors, &naming)?;
        if let Some(root) = naming.root(&plain) {
            let Comparison { names, unused, .. } =
                compare(&naming, root, &plain).whole(tensors.path())?;
            return Ok(Found { naming, names, unused });
        }
        first_missing.get_or_insert_with(|| naming.names());
    }
    let names = first_missing.unwrap_or_default();
    Err(ModelError::MissingTensors { path: tensors.path().to_owned(), names })
}

/// Names of a file without the parts that wrappers put there.
pub(super) fn plain_names<'a>(
    tensors: &'a Tensors,
    naming: &Naming,
) -> Result<PlainNames<'a>, ModelError> {
    let mut plain = PlainNames::new();
    for (name, stored) in tensors.all() {
        if let Some((other, _)) = plain.insert(naming.plain(name), (name, stored)) {
            let reason = format!("{other} and {name} are names of one tensor");
            return Err(ModelError::Format { path: tensors.path().to_owned(), reason });
        }
    }
    Ok(plain)
}

/// Tensors of a file beside those that a model needs.
#[derive(Debug, Default)]
pub(super) struct Comparison {
    /// Name in the file of each tensor of the model that the file holds.
    pub names: Vec<String>,
    /// Names of the tensors of the model that it does not hold.
    pub missing: Vec<String>,
    /// Tensors of the model that have another shape in the file.
    pub misshapen: Vec<Misshapen>,
    /// Reasons why their numbers cannot be read.
    pub unreadable: Vec<String>,
    /// Names in the file that the model does not use and that published files are known to have.
    pub unused: Vec<String>,
    /// Other names in the file.
    pub unknown: Vec<String>,
}

/// A tensor of a file that has another shape than the model needs.
#[derive(Debug)]
pub(super) struct Misshapen {
    pub name: String,
    pub found: Vec<usize>,
    pub needed: Vec<usize>,
}

impl Comparison {
    /// Whether the file holds all tensors in their shapes, and no unknown tensor.
    pub(super) fn fits(&self) -> bool {
        self.missing.is_empty() && self.misshapen.is_empty() && self.unknown.is_empty()
    }

    /// The comparison, if the model can be read from the file.
    pub(super) fn whole(mut self, path: &Path) -> Result<Self, ModelError> {
        let path = path.to_owned();
        if !self.misshapen.is_empty() {
            let Misshapen { name, found, needed } = self.misshapen.swap_remove(0);
            return Err(ModelError::MisshapenTensor { path, name, found, needed });
        }
        if !self.unreadable.is_empty() {
            return Err(ModelError::Format { path, reason: self.unreadable.swap_remove(0) });
        }
        if !self.missing.is_empty() {
            return Err(ModelError::MissingTensors { path, names: self.missing });
        }
        if !self.unknown.is_empty() {
            return Err(ModelError::UnusedTensors { path, names: self.unknown });
        }
        Ok(self)
    }
}

/// Compares the names `plain` of a file, which start with `root`, with those of a model.
pub(super) fn compare(naming: &Naming, root: &str, plain: &PlainNames<'_>) -> Comparison {
    let mut comparison = Comparison::default();
    for (name, shape) in naming.tensors() {
        let wanted = format!("{root}{name}");
        let Some((name, stored)) = plain.get(&wanted) else {
            comparison.missing.push(wanted);
            continue;
        };
        let name = (*name).to_owned();
        if let Element::Other(element) = &stored.element {
            let reason = format!("{name} holds {element}, but f32, bf16 or f16 is needed");
            comparison.unreadable.push(reason);
        } else if stored.shape != shape {
            let (name, found) = (name.clone(), stored.shape.clone());
            comparison.misshapen.push(Misshapen { name, found, needed: shape });
        } else if !stored.contiguous {
            comparison.unreadable.push(format!(
                "{name} is stored transposed or as part of another tensor; save it with \
                 `.contiguous()`"
            ));
        }
        comparison.names.push(name);
    }
    let used: BTreeSet<&str> = comparison.names.iter().map(String::as_str).collect();
    let others = plain.iter().filter(|(_, (name, _))| !used.contains(name));
    let (unused, unknown): (Vec<_>, _) =
        others.partition(|(plain, _)| naming.is_known_extra(root, plain));
    let names = |of: Vec<(&String, &(&str, _))>| {
        of.iter().map(|(_, (name, _))| (*name).to_owned()).collect()
    };
    (comparison.unused, comparison.unknown) = (names(unused), names(unknown));
    comparison
}
