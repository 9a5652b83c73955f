//! Parameter counts of the model.

use super::{vlm, y_decoder};
use crate::schema::{Convolution, Model, ModelKind, Projection, TextLayers, TextSizes, XEncoder};

/// Number of parameters of each part of the model.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Parameters {
    /// X-encoder with its patch embedding and final norm.
    pub x_encoder: usize,
    /// Pooling and projection that make one vector of a frame in a dual encoder; 0 otherwise.
    pub x_head: usize,
    /// Transformer layers of the predictor.
    pub predictor_layers: usize,
    /// Final norm of the predictor.
    pub predictor_norm: usize,
    /// Token embedding table of the predictor.
    pub predictor_embedding: usize,
    /// Linear map from visual tokens to the predictor's width.
    pub vision_projection: usize,
    /// Linear map of the query embeddings; 0 unless `model.predictor.text_projection` is set.
    pub text_projection: usize,
    /// Linear map from the predictor's width to the shared embedding.
    pub predictor_head: usize,
    /// Transformer layers and final norm of the Y-encoder.
    pub y_layers: usize,
    /// Token embedding table and learned positions of the Y-encoder.
    pub y_embedding: usize,
    /// Maps of the Y-encoder itself after pooling: Dense layers of EmbeddingGemma if
    /// `model.y_encoder.dense_heads` is set, `text_projection` of PE-core
    /// and CLIP, `head` of SigLIP 2.
    pub y_maps: usize,
    /// Linear map from the Y-encoder to the shared embedding; 0 with `y_encoder.projection: none`.
    pub y_head: usize,
    /// Moving average of the Y-encoder and its head; 0 unless `y_encoder.update` is `ema`.
    pub y_average: usize,
    /// Y-decoder with its token table and its map to the prefix; 0 in a model without one.
    pub y_decoder: usize,
    /// Projector of a VLM's visual tokens; 0 in another model.
    pub projector: usize,
    /// Language model of a VLM with its token table; 0 in another model.
    pub language_model: usize,
    /// Scale of InfoNCE, a single parameter; 0 in a dual encoder, which is not trained.
    pub logit_scale: usize,
    /// Number of trained parameters among all of the above.
    pub trainable: usize,
}

impl Parameters {
    /// Bytes of a checkpoint: trained weights and both moments in f32.
    #[must_use]
    pub fn checkpoint_bytes(&self) -> u64 {
        self.trainable as u64 * 12
    }

    /// Number of all parameters, trained or not.
    #[must_use]
    pub fn total(&self) -> usize {
        self.x_encoder
            + self.x_head
            + self.predictor()
            + self.predictor_embedding
            + self.y_encoder()
            + self.y_head
            + self.y_average
            + self.y_decoder
            + self.projector
            + self.language_model
            + self.logit_scale
    }

    /// Number of parameters that the paper counts as the predictor (§3.1: 490M): layers, norm,
    /// projections and head, without token embeddings.
    #[must_use]
    pub fn predictor(&self) -> usize {
        self.predictor_layers
            + self.predictor_norm
            + self.vision_projection
            + self.text_projection
            + self.predictor_head
    }

    /// Number of parameters of the Y-encoder without its head.
    #[must_use]
    pub fn y_encoder(&self) -> usize {
        self.y_layers + self.y_embedding + self.y_maps
    }

    /// Number of parameters that are not trained.
    #[must_use]
    pub fn frozen(&self) -> usize {
        self.total() - self.trainable
    }
}

/// Counts the parameters of a model. The recipe decides which of them are trained.
#[must_use]
pub fn parameters(model: &Model) -> Parameters {
    let (p, x, y) = (&model.predictor, model.x_encoder.sizes(), model.y_encoder.sizes());
    let bias = |width: usize| if model.projection_bias { width } else { 0 };
    let linear = |input: usize, output: usize| input * output + bias(output);
    if let Some(l) = model.vlm() {
        let [projector, language_model, trained] = vlm::parameters(model, l);
        let x_encoder = x_encoder(model);
        let of_x = if model.x_encoder.trainable() { x_encoder } else { 0 };
        let trainable = of_x + projector + trained;
        return Parameters {
            x_encoder,
            projector,
            language_model,
            trainable,
            ..Parameters::default()
        };
    }
    let encoders = Parameters {
        x_encoder: x_encoder(model),
        y_layers: text_layers(y),
        y_embedding: (y.vocab_size + y.positions) * y.hidden_size,
        y_maps: y.own_maps,
        ..Parameters::default()
    };
    if model.kind == ModelKind::DualEncoder {
        return Parameters { x_head: x_head(model), ..encoders };
    }
    let mut counts = Parameters {
        predictor_layers: p.num_layers()
            * (attention(p.hidden_size, p.num_heads, p.num_kv_heads, p.head_dim)
                + 3 * p.hidden_size * p.intermediate_size
                + 2 * p.hidden_size),
        predictor_norm: p.hidden_size,
        predictor_embedding: p.vocab_size * p.hidden_size,
        vision_projection: linear(x.hidden_size, p.hidden_size),
        text_projection: if p.text_projection { linear(p.hidden_size, p.hidden_size) } else { 0 },
        predictor_head: linear(p.hidden_size, model.embed_dim),
        y_head: match model.y_encoder.projection() {
            Projection::Linear => linear(y.output_size, model.embed_dim),
            Projection::None => 0,
        },
        logit_scale: 1,
        ..encoders
    };
    if let Some(decoder) = model.decoder() {
        let [all, trained] = y_decoder::parameters(model, decoder);
        counts.y_decoder = all;
        if model.learning_decoder().is_some() {
            return Parameters { trainable: trained, ..counts };
        }
    }
    let if_trained = |trained: bool, count: usize| if trained { count } else { 0 };
    if model.y_encoder.update().averages() {
        counts.y_average = counts.y_encoder() + counts.y_head;
    }
    counts.trainable = counts.predictor()
        + counts.y_head
        + counts.y_average
        + counts.logit_scale
        + if_trained(model.x_encoder.trainable(), counts.x_encoder)
        + if_trained(p.train_embeddings, counts.predictor_embedding)
        + if_trained(model.y_encoder.trainable(), counts.y_encoder());
    counts
}

/// Counts the query, key, value and output matrices of a layer, which have no biases.
pub(super) fn attention(hidden: usize, heads: usize, kv_heads: usize, head_dim: usize) -> usize {
    2 * hidden * heads * head_dim + 2 * hidden * kv_heads * head_dim
}

/// Counts the layers of a text encoder and its final norm.
fn text_layers(y: TextSizes) -> usize {
    let (d, f) = (y.hidden_size, y.intermediate_size);
    match y.layers {
        TextLayers::Gated { result_norms } => {
            let norms = (2 + result_norms) * d + 2 * y.head_dim;
            let attention = attention(d, y.num_heads, y.num_kv_heads, y.head_dim);
            y.num_layers * (attention + 3 * d * f + norms) + d
        }
        TextLayers::Plain => y.num_layers * plain_layer(d, f) + 2 * d,
    }
}

/// Counts a layer whose matrices all have biases, and whose two norms have a weight and a bias.
pub(super) fn plain_layer(d: usize, f: usize) -> usize {
    4 * (d * d + d) + (d * f + f) + (f * d + d) + 2 * 2 * d
}

/// Counts the X-encoder. All matrices of a vision transformer have biases, and its norms have a
/// weight and a bias.
fn x_encoder(model: &Model) -> usize {
    let x = model.x_encoder.sizes();
    let d = x.hidden_size;
    let patch_embed = patch_values(model) * d + d;
    let of_family = match &model.x_encoder {
        XEncoder::Vjepa2(_) => 0,
        // Positions.
        XEncoder::Siglip2(_) => (model.image_size / x.patch_size.max(1)).pow(2) * d,
        // Positions, the cls token and the first norm, without the bias of patches.
        XEncoder::Clip(_) => ((model.image_size / x.patch_size.max(1)).pow(2) + 4) * d - d,
        // Positions, the cls token and the first norm, without the bias of patches.
        XEncoder::Pe(keys) => {
            let cls = usize::from(keys.cls_token);
            ((model.image_size / x.patch_size.max(1)).pow(2) + cls + cls + 2) * d - d
        }
        // A map of image patches, and the embeddings of both modalities.
        XEncoder::Vjepa2_1(_) => 3 * x.patch_size * x.patch_size * d + d + 2 * d,
        // Batch norms are folded into the convolutions, which then have biases.
        XEncoder::ClipResnet(keys) => {
            let weights = |map: Convolution| (map.fan_in() + 1) * map.outputs;
            return keys.convolutions().all().map(weights).sum();
        }
    };
    x.num_layers * plain_layer(d, x.intermediate_size) + patch_embed + of_family + 2 * d
}

/// Counts the head of a dual encoder's image tower.
fn x_head(model: &Model) -> usize {
    let x = model.x_encoder.sizes();
    let d = x.hidden_size;
    // A query, and the parts of a layer except for its first norm.
    let attention_pooling = |f: usize| d + plain_layer(d, f) - 2 * d;
    match &model.x_encoder {
        XEncoder::Clip(_) => model.embed_dim * d,
        XEncoder::Siglip2(_) => attention_pooling(x.intermediate_size),
        XEncoder::Pe(_) => attention_pooling(4 * d) + model.embed_dim * d,
        // Positions of the pixels and of their mean; queries, keys and values; the output.
        XEncoder::ClipResnet(_) => {
            let pixels = model.x_encoder.tokens_of_tubelet(model.image_size);
            (pixels + 1) * d + 3 * (d * d + d) + model.embed_dim * (d + 1)
        }
        XEncoder::Vjepa2(_) | XEncoder::Vjepa2_1(_) => 0,
    }
}

/// Returns the number of values of one tubelet with three colours.
pub(super) fn patch_values(model: &Model) -> usize {
    let x = model.x_encoder.sizes();
    3 * x.tubelet_size * x.patch_size * x.patch_size
}

#[cfg(test)]
mod tests {
    use super::parameters;
    use crate::schema::{
        Clip, ClipSize, ClipText, ClipTextSize, EmbeddingGemma, Model, Pe, PeSize, PeText,
        PeTextSize, Qwen3Embedding, Qwen3EmbeddingSize, Siglip2, Siglip2Size, Siglip2Text,
        Siglip2TextSize, Sonar, VJepa2, VJepa2_1, VJepa2_1Size, VJepa2Size, XEncoder, YEncoder,
    };

    #[test]
    fn the_default_model_has_the_published_counts() {
        let counts = parameters(&Model::default());
        assert_eq!(counts.x_encoder, 303_885_312);
        assert_eq!(counts.predictor_layers, 486_572_032);
        assert_eq!(counts.predictor_layers / 8, 60_821_504);
        assert_eq!(counts.predictor_norm, 2_048);
        assert_eq!(counts.vision_projection, 2_099_200);
        assert_eq!(counts.predictor_head, 3_147_264);
        assert_eq!(counts.predictor(), 491_820_544);
        assert_eq!(counts.predictor_embedding, 262_668_288);
        assert_eq!(counts.y_embedding, 201_326_592);
        assert_eq!(counts.y_layers, 101_536_512);
        assert_eq!(counts.y_encoder(), 302_863_104);
        assert_eq!(counts.y_head, 1_181_184);
        // 303.9 + 491.8 + 262.7 + 302.9 + 1.2 million: 1.362 billion.
        assert_eq!(counts.total(), 1_362_418_433);
        assert_eq!(counts.trainable, 491_820_544 + 302_863_104 + 1_181_184 + 1);
    }

    #[test]
    fn published_sizes_have_the_published_counts() {
        for (size, count) in [
            (VJepa2Size::VitL, 303_885_312),
            (VJepa2Size::VitH, 631_648_000),
            (VJepa2Size::VitG, 1_012_173_952),
            (VJepa2Size::VitG384, 1_012_173_952),
        ] {
            let x_encoder = XEncoder::Vjepa2(VJepa2::of_size(size));
            assert_eq!(parameters(&Model { x_encoder, ..Model::default() }).x_encoder, count);
        }
        for (size, count) in [
            (VJepa2_1Size::VitB, 86_833_152),
            (VJepa2_1Size::VitL, 304_680_960),
            (VJepa2_1Size::VitG, 1_013_267_968),
            (VJepa2_1Size::VitGigantic, 1_845_216_768),
        ] {
            let keys = VJepa2_1::of_size(size);
            // The published encoder has four norms, of which the last one makes the tokens.
            let unused_norms = 3 * 2 * keys.hidden_size;
            let x_encoder = XEncoder::Vjepa2_1(keys);
            let counts = parameters(&Model { x_encoder, ..Model::default() });
            assert_eq!(counts.x_encoder + unused_norms, count);
        }
        for (size, count) in
            [(PeSize::B16, 85_799_424), (PeSize::L14, 303_507_456), (PeSize::G14, 1_851_736_576)]
        {
            let (x_encoder, image_size) = (XEncoder::Pe(Pe::of_size(size)), size.image_size());
            let model = Model { x_encoder, image_size, ..Model::default() };
            assert_eq!(parameters(&model).x_encoder, count);
        }
        for (size, count) in [
            (Siglip2Size::B16, 85_843_200),
            (Siglip2Size::L16, 303_361_024),
            (Siglip2Size::So400m16, 412_649_712),
            (Siglip2Size::GOpt16, 1_134_838_272),
        ] {
            let x_encoder = XEncoder::Siglip2(Siglip2::of_size(size));
            assert_eq!(parameters(&Model { x_encoder, ..Model::default() }).x_encoder, count);
        }
        for (size, count) in [
            (ClipSize::B32, 87_456_000),
            (ClipSize::B16, 85_799_424),
            (ClipSize::L14, 303_179_776),
            (ClipSize::L14At336, 303_507_456),
        ] {
            let (x_encoder, image_size) = (XEncoder::Clip(Clip::of_size(size)), size.image_size());
            let model = Model { x_encoder, image_size, ..Model::default() };
            assert_eq!(parameters(&model).x_encoder, count);
        }
    }

    #[test]
    fn published_text_encoders_have_the_published_counts() {
        let qwen3 = |size| YEncoder::Qwen3Embedding(Qwen3Embedding::of_size(size));
        let pe = |size| YEncoder::PeText(PeText::of_size(size));
        let clip = |size| YEncoder::ClipText(ClipText::of_size(size));
        let siglip2 = |size| YEncoder::Siglip2Text(Siglip2Text::of_size(size));
        for (y_encoder, count) in [
            (qwen3(Qwen3EmbeddingSize::B0_6), 595_776_512),
            (qwen3(Qwen3EmbeddingSize::B4), 4_021_774_336),
            (qwen3(Qwen3EmbeddingSize::B8), 7_567_295_488),
            // `sonar_text_encoder.pt` has 3,064,513,202 bytes: four of each parameter and 0.15 MB.
            (YEncoder::Sonar(Sonar::default()), 766_091_264),
            (pe(PeTextSize::B16), 353_986_560),
            (pe(PeTextSize::L14), 353_986_560),
            (pe(PeTextSize::G14), 537_233_920),
            (clip(ClipTextSize::B32), 63_428_096),
            (clip(ClipTextSize::L14), 123_650_304),
            (clip(ClipTextSize::Rn50), 63_690_240),
            (siglip2(Siglip2TextSize::B16), 282_303_744),
            (siglip2(Siglip2TextSize::L16), 565_570_560),
            (siglip2(Siglip2TextSize::So400m16), 707_782_896),
            (siglip2(Siglip2TextSize::GOpt16), 708_225_648),
        ] {
            assert_eq!(parameters(&Model { y_encoder, ..Model::default() }).y_encoder(), count);
        }
    }

    #[test]
    fn switches_change_what_they_name() {
        let base = parameters(&Model::default());
        let mut model = Model {
            x_encoder: XEncoder::Vjepa2(VJepa2 { trainable: true, ..VJepa2::default() }),
            y_encoder: YEncoder::EmbeddingGemma(EmbeddingGemma {
                dense_heads: true,
                ..EmbeddingGemma::default()
            }),
            projection_bias: false,
            ..Model::default()
        };
        model.predictor.text_projection = true;
        let counts = parameters(&model);
        assert_eq!(counts.y_maps, 4_718_592);
        assert_eq!(counts.text_projection, 2048 * 2048);
        assert_eq!(counts.predictor_head, base.predictor_head - 1536);
        assert_eq!(counts.frozen(), counts.predictor_embedding);
    }

    /// Counts of the published files without the scale of the similarities and SigLIP 2's bias. The
    /// 26,624 channels of RN50's convolutions have one bias each instead of weight and bias of a
    /// batch norm.
    #[test]
    fn dual_encoders_have_the_published_counts() {
        let recipe = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("dual_encoder.yaml");
        for (family, text, size, count) in [
            ("clip", "clip_text", "b32", 151_277_312),
            ("clip", "clip_text", "l14", 427_616_512),
            ("clip_resnet", "clip_text", "rn50", 102_007_136 - 26_624),
            ("siglip2", "siglip2_text", "b16", 375_234_048),
            ("siglip2", "siglip2_text", "g_opt16", 1_871_885_424 - 320 * 1536),
            ("pe", "pe_text", "b16", 447_659_520),
            ("pe", "pe_text", "l14", 671_137_792),
            ("pe", "pe_text", "g14", 2_419_266_560),
        ] {
            let sets = [
                "device=host".to_owned(),
                "precision=f32".to_owned(),
                format!("model.x_encoder={{family: {family}, size: {size}}}"),
                format!("model.y_encoder={{family: {text}, size: {size}}}"),
            ];
            let counts = parameters(&crate::load(&recipe, &sets).unwrap().recipe.model);
            assert_eq!((counts.total(), counts.trainable), (count, 0), "{family} {size}");
        }
    }
}
