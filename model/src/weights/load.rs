//! Reads the tensors of a model from a file, all of them or none, and accepts no others than those
//! that a published file is known to hold beside them.

use std::collections::BTreeSet;
use std::path::Path;

use super::Imported;
use super::files::{Element, Tensors};
use super::naming::Naming;
use super::sizes::PlainNames;
use crate::{Layout, ModelError, Parameters};

pub(super) fn load(
    layout: &Layout,
    namings: Vec<Naming>,
    parameters: &mut Parameters,
    path: &Path,
) -> Result<Imported, ModelError> {
    let mut tensors = Tensors::open(path)?;
    let Found { naming, names, unused } = find(&tensors, namings)?;
    for (piece, name) in naming.pieces.iter().zip(&names) {
        let into = parameters.view_mut(layout, piece.parameter);
        let into = into.part(piece.start, &[piece.elements()]);
        into.write_f32(|into| {
            tensors.read(name, |start, values| {
                if piece.transposed {
                    (start..).zip(values).for_each(|(i, value)| into[piece.index(i)] = *value);
                } else {
                    into[start..start + values.len()].copy_from_slice(values);
                }
            })
        })?;
    }
    let device = parameters.trainable.view().device();
    parameters.refresh(&device.compute_stream())?;
    Ok(Imported { read: names.len(), unused })
}

pub(super) fn check(namings: Vec<Naming>, path: &Path) -> Result<Imported, ModelError> {
    let mut tensors = Tensors::open(path)?;
    let Found { names, unused, .. } = find(&tensors, namings)?;
    names.iter().try_for_each(|name| tensors.read(name, |_, _| {}))?;
    Ok(Imported { read: names.len(), unused })
}

/// Naming of a file, and the tensors of the model in it.
struct Found {
    naming: Naming,
    /// Name of each piece in the file.
    names: Vec<String>,
    /// Names in the file that belong to no piece.
    unused: Vec<String>,
}

/// Finds the naming of a file and each of its pieces.
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
    /// Name in the file of each piece that the file holds.
    pub names: Vec<String>,
    /// Names of the pieces that it does not hold.
    pub missing: Vec<String>,
    /// Pieces that have another shape in the file.
    pub misshapen: Vec<Misshapen>,
    /// Reasons why numbers of pieces cannot be read.
    pub unreadable: Vec<String>,
    /// Names in the file that belong to no piece and that published files are known to have.
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
    /// Whether the file holds all pieces in their shapes, and no unknown tensor.
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
    for piece in &naming.pieces {
        let wanted = format!("{root}{}", piece.name);
        let Some((name, stored)) = plain.get(&wanted) else {
            comparison.missing.push(wanted);
            continue;
        };
        let name = (*name).to_owned();
        if let Element::Other(element) = &stored.element {
            let reason = format!("{name} holds {element}, but f32, bf16 or f16 is needed");
            comparison.unreadable.push(reason);
        } else if stored.shape != piece.shape {
            let (name, found, needed) = (name.clone(), stored.shape.clone(), piece.shape.clone());
            comparison.misshapen.push(Misshapen { name, found, needed });
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
