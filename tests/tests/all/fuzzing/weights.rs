//! Damaged weights, in safetensors and in files of PyTorch.

use vljepa_kernels::Device;
use vljepa_model::VlJepa;
use vljepa_model::weights::{Source, check, identify};
use vljepa_recipes::protocol::Weights;
use vljepa_recipes::schema::Loss;

use super::fuzz;
use crate::programs::repository;
use crate::tiny;

#[test]
fn damaged_weights_are_refused_or_whole() {
    let folder = repository().join("model/tests/weights");
    let names = ["vjepa2.pt", "vjepa2.safetensors", "tensors.pt", "tensors4.pt"];
    let files = names.map(|name| std::fs::read(folder.join(name)).unwrap());
    // The sizes of `vjepa2.pt`.
    let mut recipe = tiny::model();
    tiny::vjepa2(&mut recipe).patch_size = 8;
    let model = VlJepa::new(&recipe, &Loss::default(), Device::Host).unwrap();
    fuzz("fuzzing::weights::damaged_weights_are_refused_or_whole", 6000, |folder, draw| {
        let path = folder.join("weights");
        let file = draw.pick(&files);
        std::fs::write(&path, draw.damaged(file)).unwrap();
        match check(&model, Source::VJepa2, &path) {
            Ok(_) => true,
            Err(error) => {
                assert!(error.to_string().len() < 10_000, "{error}");
                false
            }
        }
    });
}

#[test]
fn damaged_weights_are_recognised_if_they_can_be_read() {
    let folder = repository().join("model/tests/weights");
    let names = ["vjepa2.pt", "vjepa2.safetensors"];
    let files = names.map(|name| std::fs::read(folder.join(name)).unwrap());
    let mut recipe = tiny::model();
    tiny::vjepa2(&mut recipe).patch_size = 8;
    let model = VlJepa::new(&recipe, &Loss::default(), Device::Host).unwrap();
    let test = "fuzzing::weights::damaged_weights_are_recognised_if_they_can_be_read";
    fuzz(test, 400, |folder, draw| {
        let path = folder.join("weights");
        let file = draw.pick(&files);
        std::fs::write(&path, draw.damaged(file)).unwrap();
        let known = matches!(identify(&path), Ok(Weights::Known(_)));
        assert!(known || check(&model, Source::VJepa2, &path).is_err());
        known
    });
}
