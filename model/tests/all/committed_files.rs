//! Small weights files in the published forms, which `model/tests/weights/make.py` wrote.

use std::path::{Path, PathBuf};

use vljepa_kernels::Device;
use vljepa_model::weights::{Imported, Source, check, load};
use vljepa_model::{Parameters, VlJepa};

pub fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/weights").join(name)
}

/// Returns the frozen parameters.
pub fn weights(parameters: &Parameters) -> Vec<f32> {
    parameters.frozen.view().host_f32("test", "weights").unwrap().to_vec()
}

/// Reads a file into the frozen parameters of a model, and checks it too.
pub fn read(model: &VlJepa, source: Source, path: &Path) -> (Vec<f32>, Imported) {
    let mut parameters = Parameters::new(model.layout(), Device::Host).unwrap();
    let imported = load(model, &mut parameters, source, path).unwrap();
    check(model, source, path).unwrap();
    (weights(&parameters), imported)
}
