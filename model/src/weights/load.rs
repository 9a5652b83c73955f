//! Reads the tensors of a model from a file, all of them or none, and accepts no others than those
//! that a published file is known to hold beside them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::files::{Element, Tensors};
use super::naming::Naming;
use super::{Imported, Source};
use crate::{ModelError, Parameters, VlJepa};

pub(super) fn load(
    model: &VlJepa,
    parameters: &mut Parameters,
    source: Source,
    path: &Path,
) -> Result<Imported, ModelError> {
    let mut tensors = Tensors::open(path)?;
    let Found { naming, names, unused } = find(&tensors, source.namings(model))?;
    for (piece, name) in naming.pieces.iter().zip(&names) {
        let into = parameters.view_mut(model.layout(), piece.parameter);
        let into = into.part(piece.start, &[piece.elements()]);
        into.write_f32(|into| {
            tensors.read(name, |start, values| {
                into[start..start + values.len()].copy_from_slice(values);
            })
        })?;
    }
    let device = parameters.trainable.view().device();
    parameters.refresh(&device.compute_stream())?;
    Ok(Imported { read: names.len(), unused })
}

pub(super) fn check(model: &VlJepa, source: Source, path: &Path) -> Result<Imported, ModelError> {
    let mut tensors = Tensors::open(path)?;
    let Found { names, unused, .. } = find(&tensors, source.namings(model))?;
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
    let path = || tensors.path().to_owned();
    let bad = |reason| ModelError::Format { path: path(), reason };
    let mut chosen = None;
    let mut first_missing = None;
    for naming in namings {
        let mut plain = BTreeMap::new();
        for name in tensors.all().keys() {
            if let Some(other) = plain.insert(naming.plain(name), name) {
                return Err(bad(format!("{other} and {name} are names of one tensor")));
            }
        }
        let Some(first) = naming.pieces.first() else { continue };
        let holds = |root: &&&str| plain.contains_key(&format!("{root}{}", first.name));
        if let Some(root) = naming.roots.iter().find(holds) {
            chosen = Some((*root, plain, naming));
            break;
        }
        first_missing.get_or_insert_with(|| naming.names());
    }
    let Some((root, plain, naming)) = chosen else {
        let names = first_missing.unwrap_or_default();
        return Err(ModelError::MissingTensors { path: path(), names });
    };
    let (mut names, mut missing) = (Vec::new(), Vec::new());
    for piece in &naming.pieces {
        let wanted = format!("{root}{}", piece.name);
        let Some(name) = plain.get(&wanted) else {
            missing.push(wanted);
            continue;
        };
        let stored = &tensors.all()[*name];
        if stored.shape != piece.shape && !matches!(stored.element, Element::Other(_)) {
            return Err(ModelError::MisshapenTensor {
                path: path(),
                name: (*name).clone(),
                found: stored.shape.clone(),
                needed: piece.shape.clone(),
            });
        }
        if let Element::Other(element) = &stored.element {
            return Err(bad(format!("{name} holds {element}, but f32, bf16 or f16 is needed")));
        }
        if !stored.contiguous {
            return Err(bad(format!(
                "{name} is stored transposed or as part of another tensor; save it with \
                 `.contiguous()`"
            )));
        }
        names.push((*name).clone());
    }
    if !missing.is_empty() {
        return Err(ModelError::MissingTensors { path: path(), names: missing });
    }
    let used: BTreeSet<&str> = names.iter().map(String::as_str).collect();
    let unused: Vec<_> = plain.iter().filter(|(_, name)| !used.contains(name.as_str())).collect();
    let unknown: Vec<String> = unused
        .iter()
        .filter(|(plain, _)| !naming.is_known_extra(root, plain))
        .map(|(_, name)| (**name).clone())
        .collect();
    if !unknown.is_empty() {
        return Err(ModelError::UnusedTensors { path: path(), names: unknown });
    }
    let unused = unused.into_iter().map(|(_, name)| (*name).clone()).collect();
    Ok(Found { naming, names, unused })
}
