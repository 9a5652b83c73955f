//! Reads golden files and compares results with them by their published tensor names.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use safetensors::{Dtype, SafeTensors};
use serde_json::Value;
use vljepa_kernels::testing::Comparison;
use vljepa_kernels::{Arena, Device, Packed, Stream, Tensor};
use vljepa_model::weights::Source;
use vljepa_model::{Context, Gradients, Parameters, VlJepa, weights};

/// A golden folder: a config, tensors and, for most, weights. `tests/golden/README.md` states the
/// origin.
pub struct Golden {
    pub folder: PathBuf,
    pub config: Value,
    tensors: BTreeMap<String, (Vec<usize>, Vec<f32>)>,
}

/// A stream and an arena without a size limit, on one device.
pub struct Machine {
    stream: Stream,
    arena: Arena,
}

impl Machine {
    pub fn new() -> Self {
        Self::on(Device::Host)
    }

    pub fn on(device: Device) -> Self {
        Self { stream: device.compute_stream(), arena: Arena::new(device, usize::MAX) }
    }

    pub fn cx(&self) -> Context<'_> {
        Context { stream: &self.stream, arena: &self.arena }
    }
}

/// Returns the folder of all golden folders: `VLJEPA_GOLDEN`, or the one in this repository.
#[expect(clippy::disallowed_methods, reason = "only tests read this variable")]
pub fn root() -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("golden");
    std::env::var("VLJEPA_GOLDEN").map_or(own, PathBuf::from)
}

impl Golden {
    pub fn open(name: &str) -> Self {
        let folder = root().join(name);
        let read = |file: &str| {
            let path = folder.join(file);
            std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
        };
        let config = serde_json::from_slice(&read("config.json")).unwrap();
        let tensors = parse(&read("io.safetensors"));
        Self { config, tensors, folder }
    }

    /// Returns the path of the weights.
    pub fn weights(&self) -> PathBuf {
        self.folder.join("model.safetensors")
    }

    /// Returns an integer of the config.
    pub fn size(&self, key: &str) -> usize {
        usize::try_from(self.config[key].as_u64().unwrap_or_else(|| panic!("{key}"))).unwrap()
    }

    /// Returns a number of the config.
    pub fn number(&self, key: &str) -> f64 {
        self.config[key].as_f64().unwrap_or_else(|| panic!("{key}"))
    }

    /// Returns the values of a tensor.
    pub fn get(&self, name: &str) -> &[f32] {
        &self.tensors.get(name).unwrap_or_else(|| panic!("no {name} in the golden file")).1
    }

    /// Returns the shape of a tensor.
    pub fn shape(&self, name: &str) -> &[usize] {
        &self.tensors[name].0
    }

    /// Returns the value of a tensor with one element.
    pub fn scalar(&self, name: &str) -> f64 {
        f64::from(self.get(name)[0])
    }

    /// Returns the tensor names that begin with `prefix`, with the prefix removed.
    pub fn names(&self, prefix: &str) -> Vec<&str> {
        self.tensors.keys().filter_map(|name| name.strip_prefix(prefix)).collect()
    }

    /// Returns frames (b, T, C, H, W) in the layout (b, T, H, W, C).
    pub fn frames(&self, name: &str) -> Tensor {
        let &[b, t, c, h, w] = self.shape(name) else { panic!("five dimensions") };
        let from = self.get(name);
        let mut to = Vec::with_capacity(from.len());
        for image in from.chunks_exact(c * h * w) {
            to.extend((0..h * w * c).map(|i| image[i % c * h * w + i / c]));
        }
        Tensor::from_f32(to, &[b, t, h, w, c])
    }

    /// Returns padded ids (b, l) as packed sequences without the padding, which `mask` (b, l)
    /// names.
    pub fn packed(&self, ids: &str, mask: &str) -> Packed {
        let kept = self.token_indices(mask);
        let ids = kept.iter().map(|&i| integer(self.get(ids)[i])).collect();
        let length = self.shape(mask)[1];
        let mut ends = vec![0];
        for row in 0..self.shape(mask)[0] {
            ends.push(
                i32::try_from(kept.iter().filter(|&&i| i < (row + 1) * length).count()).unwrap(),
            );
        }
        Packed::new(Device::Host, ids, ends).unwrap()
    }

    /// Returns the indices of the tokens among b·l that are not padding.
    pub fn token_indices(&self, mask: &str) -> Vec<usize> {
        let mask = self.get(mask);
        (0..mask.len()).filter(|&i| mask[i] > 0.5).collect()
    }

    /// Returns the values (n·d) of a padded tensor (b, l, d) without the rows that are padding.
    pub fn unpadded(&self, name: &str, mask: &str) -> Vec<f32> {
        let d = *self.shape(name).last().unwrap();
        let values = self.get(name);
        self.token_indices(mask)
            .iter()
            .flat_map(|&i| &values[i * d..(i + 1) * d])
            .copied()
            .collect()
    }
}

fn parse(bytes: &[u8]) -> BTreeMap<String, (Vec<usize>, Vec<f32>)> {
    let file = SafeTensors::deserialize(bytes).unwrap();
    let mut tensors = BTreeMap::new();
    for (name, view) in file.tensors() {
        let values = match view.dtype() {
            Dtype::F32 => chunks(view.data(), f32::from_le_bytes),
            Dtype::I64 => chunks(view.data(), |bytes| {
                f32::from(i16::try_from(i64::from_le_bytes(bytes)).unwrap())
            }),
            other => panic!("{name} holds {other:?}"),
        };
        tensors.insert(name, (view.shape().to_vec(), values));
    }
    tensors
}

/// Converts little-endian numbers of N bytes.
fn chunks<const N: usize>(bytes: &[u8], number: impl Fn([u8; N]) -> f32) -> Vec<f32> {
    bytes.chunks_exact(N).map(|chunk| number(chunk.try_into().unwrap())).collect()
}

/// Converts an id that was read as a float.
#[expect(clippy::cast_possible_truncation, reason = "ids are small integers")]
pub fn integer(value: f32) -> i32 {
    value as i32
}

/// Reads the weights of `model` from published files. Every tensor of the files must belong to the
/// model.
pub fn load(model: &VlJepa, files: &[(Source, PathBuf)]) -> Parameters {
    load_on(Device::Host, model, files)
}

pub fn load_on(device: Device, model: &VlJepa, files: &[(Source, PathBuf)]) -> Parameters {
    let mut parameters = Parameters::new(model.layout(), device).unwrap();
    parameters.initialise(model.layout(), 1).unwrap();
    for (source, path) in files {
        let imported = weights::load(model, &mut parameters, *source, path).unwrap();
        assert!(imported.unused.is_empty(), "{imported}");
    }
    parameters
}

/// Returns the gradients of one source by their published names.
pub fn published(
    model: &VlJepa,
    gradients: &Gradients,
    source: Source,
) -> BTreeMap<String, Vec<f32>> {
    let mut found = BTreeMap::new();
    for piece in source.pieces(model) {
        if model.layout().get(piece.parameter).trainable {
            let view = gradients.view(model.layout(), piece.parameter);
            let values = view.part(piece.start, &[piece.elements()]);
            let values = values.host_f32("test", "gradient").unwrap();
            let published = (0..piece.elements()).map(|i| values[piece.index(i)]).collect();
            found.insert(piece.name, published);
        }
    }
    found
}

/// Compares values in units of the largest expected element, so that tensors with small gradients
/// are compared as strictly as others.
pub fn relative(got: &[f32], want: &[f32], tolerance: f32) -> Comparison {
    let largest = want.iter().fold(f32::MIN_POSITIVE, |m, v| m.max(v.abs()));
    let scaled = |x: &[f32]| x.iter().map(|v| v / largest).collect::<Vec<_>>();
    Comparison::new(&scaled(got), &scaled(want), tolerance)
}

/// Compares gradients with the golden tensors that have the same names after `prefix`. Returns the
/// largest difference and a description of each tensor that differs.
pub fn compare_gradients(
    got: &BTreeMap<String, Vec<f32>>,
    golden: &Golden,
    prefix: &str,
    tolerance: f32,
) -> (f32, Vec<String>) {
    let (mut worst, mut different) = (0.0_f32, Vec::new());
    assert!(!got.is_empty());
    for (name, values) in got {
        let comparison = relative(values, golden.get(&format!("{prefix}{name}")), tolerance);
        worst = worst.max(comparison.max_difference);
        if !comparison.is_close() {
            different.push(format!("{name}: {comparison}"));
        }
    }
    (worst, different)
}

/// Returns the elements of a tensor as f32.
pub fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.to_f32().unwrap().into_owned()
}
