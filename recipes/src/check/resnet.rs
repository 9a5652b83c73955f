//! Rules for `model.x_encoder.family: clip_resnet`.

use super::Problems;
use crate::schema::{ClipResnet, Model, ModelKind};

/// Most blocks of a stage of a ResNet. The largest published stage has 36.
const MAX_BLOCKS: usize = 1000;

/// Reports a ResNet whose sizes do not fit, or in a model that needs visual tokens.
pub(super) fn check(model: &Model, x: &ClipResnet, found: &mut Problems) {
    let key = |name: &str| format!("model.x_encoder.{name}");
    match model.kind {
        ModelKind::DualEncoder => {}
        ModelKind::VlJepa | ModelKind::YDecoder | ModelKind::Vlm => {
            let what = "only a dual encoder can have a ResNet: it is a baseline of the paper";
            let help = "write `model.kind: dual_encoder`, or choose a vision transformer";
            found.add(key("family"), what, help);
        }
    }
    found.positive("model.x_encoder", &[("width", x.width), ("num_heads", x.num_heads)]);
    if !x.width.is_multiple_of(2) {
        let what = format!("{} is odd, but the stem begins with half of it", x.width);
        found.add(key("width"), what, "use an even number, such as 64");
    }
    let channels = model.x_encoder.sizes().hidden_size;
    if x.num_heads > 0 && !channels.is_multiple_of(x.num_heads) {
        let what =
            format!("{channels} channels, 32·width, do not divide into {} heads", x.num_heads);
        found.add(key("num_heads"), what, "use a divisor of 32·width, such as width / 2");
    }
    if x.layers.iter().any(|blocks| !(1..=MAX_BLOCKS).contains(blocks)) {
        let what =
            format!("{:?} has a stage without blocks, or with more than {MAX_BLOCKS}", x.layers);
        found.add(key("layers"), what, "RN50 has [3, 4, 6, 3]");
    }
    let image = model.image_size;
    if !image.is_multiple_of(ClipResnet::STRIDE) {
        let what = format!("{image} pixels do not divide by 32, as the ResNet divides them");
        found.add("model.image_size", what, "use a multiple of 32, such as 224");
    }
    if x.trainable {
        let what = "a dual encoder is not trained";
        found.add(key("trainable"), what, "write `trainable: false`");
    }
}

#[cfg(test)]
mod tests {
    use super::super::sizes;
    use crate::schema::{ClipResnet, Loss, Model, ModelKind, XEncoder};

    /// Keys that are refused for a ResNet and frames of so many pixels.
    fn keys(kind: ModelKind, x: ClipResnet, image_size: usize) -> Vec<String> {
        let x_encoder = XEncoder::ClipResnet(x);
        let model = Model { kind, x_encoder, image_size, ..Model::default() };
        let problems = sizes(&model, &Loss::default()).into_iter();
        problems.map(|problem| problem.key).collect()
    }

    #[test]
    fn a_resnet_needs_a_dual_encoder_and_frames_that_it_can_halve() {
        let dual = ModelKind::DualEncoder;
        let resnet = ClipResnet::default;
        assert_eq!(keys(dual, resnet(), 224), Vec::<String>::new());
        assert_eq!(keys(ModelKind::VlJepa, resnet(), 224), ["model.x_encoder.family"]);
        assert_eq!(keys(dual, resnet(), 240), ["model.image_size"]);
        let trained = ClipResnet { trainable: true, ..resnet() };
        assert_eq!(keys(dual, trained, 224), ["model.x_encoder.trainable"]);
        let long = ClipResnet { layers: [3, 4, 6, 1001], ..resnet() };
        assert_eq!(keys(dual, long, 224), ["model.x_encoder.layers"]);
        let none = ClipResnet { width: 0, num_heads: 0, ..resnet() };
        assert_eq!(keys(dual, none, 224), ["model.x_encoder.width", "model.x_encoder.num_heads"]);
    }
}
