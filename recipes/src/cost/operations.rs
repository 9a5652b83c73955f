//! Operations of a training sample.

use super::networks::{NetworkName, networks};
use crate::schema::{Model, Recompute};

/// Numbers of tokens of a sample.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tokens {
    /// Visual tokens that the X-encoder makes from the frames.
    pub visual: usize,
    /// Tokens of the query; 0 without a query. Those of a VLM's template, except for the answer's,
    /// are among them.
    pub query: usize,
    /// Tokens of the target text.
    pub target: usize,
    /// Tokens of the text that a Y-decoder or a VLM learns to write, with its end and its template;
    /// 0 in a model without one.
    pub output: usize,
}

impl Tokens {
    /// Tokens of a clip, or of an image that is repeated to `frames`, with its query and target, in
    /// a model without a Y-decoder.
    #[must_use]
    pub fn of(model: &Model, frames: usize, query: usize, target: usize) -> Self {
        Self { visual: visual_tokens(model, frames), query, target, output: 0 }
    }
}

/// Operations of one training sample. A multiply-add counts as 2.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Operations {
    /// Forward pass of the X-encoder.
    pub x_forward: f64,
    /// Forward pass of the predictor with its projections.
    pub predictor_forward: f64,
    /// Forward pass of the Y-encoder with its head.
    pub y_forward: f64,
    /// Forward pass of the Y-decoder, or of a VLM's projector and language model; 0 in a model
    /// without one.
    pub decoder_forward: f64,
    /// Backward pass of all trained parts.
    pub backward: f64,
    /// Repeated forward operations: the second forward pass of GradCache, and the activations that
    /// the backward pass computes again.
    pub recompute: f64,
}

impl Operations {
    /// Sum of all fields.
    #[must_use]
    pub fn total(&self) -> f64 {
        self.x_forward
            + self.predictor_forward
            + self.y_forward
            + self.decoder_forward
            + self.backward
            + self.recompute
    }

    pub(super) fn plus(self, other: Self) -> Self {
        Self {
            x_forward: self.x_forward + other.x_forward,
            predictor_forward: self.predictor_forward + other.predictor_forward,
            y_forward: self.y_forward + other.y_forward,
            decoder_forward: self.decoder_forward + other.decoder_forward,
            backward: self.backward + other.backward,
            recompute: self.recompute + other.recompute,
        }
    }

    pub(super) fn times(self, factor: f64) -> Self {
        Self {
            x_forward: self.x_forward * factor,
            predictor_forward: self.predictor_forward * factor,
            y_forward: self.y_forward * factor,
            decoder_forward: self.decoder_forward * factor,
            backward: self.backward * factor,
            recompute: self.recompute * factor,
        }
    }
}

/// Returns the number of visual tokens of a clip, or of an image that is repeated to `frames`.
#[must_use]
pub(super) fn visual_tokens(model: &Model, frames: usize) -> usize {
    let tubelets = frames.div_ceil(model.x_encoder.sizes().tubelet_size.max(1)).max(1);
    tubelets * model.x_encoder.tokens_of_tubelet(model.image_size)
}

/// Estimates the operations of one training sample.
///
/// `embeds_twice` means that the forward pass runs a second time before the backward pass
/// (GradCache). The forward pass of a frozen X-encoder still runs once, because its features are
/// kept. `recompute` names the activations that the backward pass computes again.
#[must_use]
pub fn sample(
    model: &Model,
    tokens: Tokens,
    embeds_twice: bool,
    recompute: Recompute,
) -> Operations {
    let networks = networks(model, tokens, embeds_twice, recompute);
    networks.iter().fold(Operations::default(), |sum, network| {
        let forward = network.forward.operations();
        let of = |name: NetworkName| if network.name == name { forward } else { 0.0 };
        sum.plus(Operations {
            x_forward: of(NetworkName::XEncoder),
            predictor_forward: of(NetworkName::Predictor),
            y_forward: of(NetworkName::YEncoder),
            decoder_forward: of(NetworkName::YDecoder) + of(NetworkName::LanguageModel),
            backward: network.backward.operations(),
            recompute: network.again.operations(),
        })
    })
}

#[cfg(test)]
mod tests {
    use super::{Tokens, sample, visual_tokens};
    use crate::schema::{ClipResnet, Model, Recompute, XEncoder};

    /// Columns: frames; query and target tokens; TFLOP of X forward, predictor forward, predictor
    /// forward and backward, Y forward and backward, total; samples/s at 790 TFLOP/s; the same if
    /// all trained parts run forward twice. The values are computed by hand from the published
    /// widths, to three decimals. The tolerance of `0.0006` covers their rounding and the 6 MFLOP
    /// of the head, which the table leaves out.
    const TABLE: [(usize, usize, usize, [f64; 5], f64, f64); 7] = [
        (2, 0, 32, [0.162, 0.254, 0.763, 0.020, 0.945], 836.0, 655.0),
        (2, 0, 64, [0.162, 0.254, 0.763, 0.040, 0.965], 819.0, 641.0),
        (2, 32, 32, [0.162, 0.287, 0.860, 0.020, 1.042], 758.0, 592.0),
        (8, 0, 64, [0.725, 1.069, 3.208, 0.040, 3.973], 199.0, 156.0),
        (16, 0, 64, [1.656, 2.276, 6.829, 0.040, 8.525], 93.0, 73.0),
        (32, 0, 64, [4.136, 5.102, 15.307, 0.040, 19.483], 40.5, 32.0),
        (32, 512, 512, [4.136, 5.893, 17.678, 0.370, 22.184], 35.6, 28.0),
    ];

    #[test]
    fn operations_of_the_paper_s_model_match_the_table() {
        let model = Model::default();
        for (frames, query, target, expected, plain, recomputed) in TABLE {
            let tokens = Tokens::of(&model, frames, query, target);
            let found = sample(&model, tokens, false, Recompute::None);
            let values = [
                found.x_forward,
                found.predictor_forward,
                3.0 * found.predictor_forward,
                3.0 * found.y_forward,
                found.total(),
            ];
            for (value, expected) in values.iter().zip(expected) {
                assert!(
                    (value / 1e12 - expected).abs() < 0.0006,
                    "{frames} frames: {value} {expected}"
                );
            }
            let rate = |operations: f64| 790e12 / operations;
            let half_digit = if plain < 50.0 { 0.06 } else { 0.6 };
            assert!(
                (rate(found.total()) - plain).abs() < half_digit,
                "{frames}: {}",
                rate(found.total())
            );
            let twice = sample(&model, tokens, true, Recompute::None).total();
            assert!((rate(twice) - recomputed).abs() < 0.6, "{frames}: {}", rate(twice));
            // Recomputed layers are nearly all of the forward pass; the hidden layers of their MLPs
            // are about half of it.
            let [mlp, block] = [Recompute::Mlp, Recompute::Block]
                .map(|recompute| sample(&model, tokens, false, recompute).recompute);
            let forward = found.predictor_forward + found.y_forward;
            assert!(block < forward && block > 0.98 * forward, "{frames}: {block} {forward}");
            assert!(mlp < 0.6 * forward && mlp > 0.3 * forward, "{frames}: {mlp} {forward}");
        }
    }

    /// By hand for RN50 and frames of 224²: the three convolutions of the stem at 112², and stages
    /// of 3, 4, 6 and 3 blocks at 56², 28², 14² and 7².
    #[test]
    fn a_resnet_s_convolutions_are_counted_at_the_size_of_their_output() {
        let x_encoder = XEncoder::ClipResnet(ClipResnet::default());
        let model = Model { x_encoder, image_size: 224, ..Model::default() };
        let visual = visual_tokens(&model, 8);
        assert_eq!(visual, 8 * 49);
        let stem = 112.0 * 112.0 * 9.0 * (3.0 * 32.0 + 32.0 * 32.0 + 32.0 * 64.0);
        let mut by_hand = stem;
        for (stage, blocks) in [3.0, 4.0, 6.0, 3.0].into_iter().enumerate() {
            let power = 2.0_f64.powi(i32::try_from(stage).unwrap());
            let (inner, pixels) = (64.0 * power, (56.0 / power).powi(2));
            let (inputs, larger) = if stage == 0 { (64.0, 1.0) } else { (2.0 * inner, 4.0) };
            // The first block maps before it halves, and has a shortcut.
            by_hand += pixels * larger * (inputs * inner + 9.0 * inner * inner)
                + pixels * (4.0 * inner * inner + 4.0 * inputs * inner);
            by_hand += (blocks - 1.0) * pixels * (8.0 + 9.0) * inner * inner;
        }
        let tokens = Tokens { visual, ..Tokens::default() };
        let found = sample(&model, tokens, false, Recompute::None).x_forward;
        assert!((found / (8.0 * 2.0 * by_hand) - 1.0).abs() < 1e-12, "{found} {by_hand}");
        assert!((2.0 * by_hand / 10.734_452_736e9 - 1.0).abs() < 1e-12, "{by_hand}");
    }

    #[test]
    fn an_image_has_one_tubelet_of_tokens() {
        let model = Model::default();
        assert_eq!(visual_tokens(&model, 1), 256);
        assert_eq!(visual_tokens(&model, 2), 256);
        assert_eq!(visual_tokens(&model, 8), 1024);
    }
}
