//! The networks of a model, and the work of their passes for one sample.

use super::layers::{Layers, Pass, product};
use super::memory::real;
use super::operations::Tokens;
use super::parameters::{Parameters, parameters, patch_values};
use super::{vlm, y_decoder};
use crate::schema::{Convolution, Model, ModelKind, Projection, Recompute, XEncoder};

/// A network whose passes are planned by themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum NetworkName {
    /// Encoder of frames.
    XEncoder,
    /// Predictor with the projections of its inputs and its head.
    Predictor,
    /// Encoder of target texts with its head.
    YEncoder,
    /// Decoder that writes the text of an embedding.
    YDecoder,
    /// Projector and language model of a VLM.
    LanguageModel,
}

/// Work of one network for one sample.
#[derive(Debug, Clone, PartialEq)]
pub struct Network {
    /// Which network it is.
    pub name: NetworkName,
    /// Number of elements of a token.
    pub width: usize,
    /// Number of tokens of the sample.
    pub tokens: usize,
    /// Forward pass, before the loss.
    pub forward: Pass,
    /// What is computed again after the loss: the second forward pass of GradCache, and activations
    /// that were not kept.
    pub again: Pass,
    /// Backward pass; empty if nothing is trained.
    pub backward: Pass,
    /// Parameters whose gradients the backward pass completes.
    pub trained: usize,
}

/// Returns the networks of a model in the order of their forward passes, with the work of one
/// sample. The arguments are those of [`super::sample`].
#[must_use]
pub fn networks(
    model: &Model,
    tokens: Tokens,
    embeds_twice: bool,
    recompute: Recompute,
) -> Vec<Network> {
    let counts = parameters(model);
    let mut all = vec![x_encoder(model, tokens.visual, &counts)];
    match model.kind {
        ModelKind::VlJepa | ModelKind::YDecoder => {
            all.push(predictor(model, tokens, &counts));
            all.push(y_encoder(model, tokens.target, &counts));
        }
        ModelKind::DualEncoder => all.push(y_encoder(model, tokens.target, &counts)),
        ModelKind::Vlm => {}
    }
    if let Some(l) = model.vlm() {
        let trained = counts.trainable - all[0].trained;
        all.push(vlm::network(model, l, tokens, recompute, trained));
    }
    if model.kind == ModelKind::YDecoder {
        // All of VL-JEPA is frozen, and runs only for the samples that are seen through it.
        for network in &mut all {
            network.backward = Pass::default();
            network.trained = 0;
            if network.name != NetworkName::YEncoder && tokens.visual == 0 {
                network.forward = Pass::default();
            }
            if network.name == NetworkName::YEncoder && tokens.target == 0 {
                network.forward = Pass::default();
            }
        }
        all.extend(y_decoder::network(model, tokens.output, recompute, counts.trainable));
    } else {
        for network in &mut all {
            network.again = again(model, network, tokens, embeds_twice, recompute);
        }
    }
    if model.y_encoder.update().averages() {
        let y_encoders = all.iter_mut().filter(|network| network.name == NetworkName::YEncoder);
        y_encoders.for_each(|network| network.forward = network.forward.clone().times(2.0));
    }
    all
}

/// What a network computes again after the loss.
fn again(
    model: &Model,
    network: &Network,
    tokens: Tokens,
    embeds_twice: bool,
    recompute: Recompute,
) -> Pass {
    let (layers, [sequences, length]) = match network.name {
        NetworkName::XEncoder => {
            (Layers::x_encoder(&model.x_encoder), sequences(model, tokens.visual))
        }
        NetworkName::Predictor => (Layers::predictor(model), [1, tokens.visual + tokens.query]),
        NetworkName::YEncoder => (Layers::y_encoder(model), [1, tokens.target]),
        // Their own modules know what they compute again.
        NetworkName::YDecoder | NetworkName::LanguageModel => return network.again.clone(),
    };
    let trained = network.backward != Pass::default();
    // A frozen Y-encoder runs again with its micro-batch; only the features of a frozen X-encoder
    // are kept.
    let runs_again = embeds_twice && (trained || network.name != NetworkName::XEncoder);
    let first = if runs_again { network.forward.clone() } else { Pass::default() };
    let saved = match recompute {
        Recompute::Mlp if trained => layers.mlp_again(sequences, length),
        Recompute::Block if trained => layers.forward(sequences, length),
        Recompute::None | Recompute::Mlp | Recompute::Block => Pass::default(),
    };
    first.plus(&saved)
}

/// Returns the number of sequences that the X-encoder's attention sees, and their length, for a
/// sample of so many visual tokens.
fn sequences(model: &Model, visual: usize) -> [usize; 2] {
    let patches = (model.image_size / model.x_encoder.sizes().patch_size.max(1)).pow(2);
    let frames = visual / model.x_encoder.tokens_of_tubelet(model.image_size).max(1);
    match &model.x_encoder {
        XEncoder::Vjepa2(_) | XEncoder::Vjepa2_1(_) => [1, visual],
        XEncoder::Pe(keys) => [frames, patches + usize::from(keys.cls_token)],
        XEncoder::Siglip2(_) => [frames, patches],
        XEncoder::Clip(_) => [frames, patches + 1],
        // The attention pooling is no part of the encoder.
        XEncoder::ClipResnet(_) => [frames, 0],
    }
}

fn x_encoder(model: &Model, visual: usize, counts: &Parameters) -> Network {
    let x = model.x_encoder.sizes();
    let [sequences, length] = sequences(model, visual);
    let layers = Layers::x_encoder(&model.x_encoder);
    let trained = if model.x_encoder.trainable() { counts.x_encoder } else { 0 };
    let mut network = Network {
        name: NetworkName::XEncoder,
        width: x.hidden_size,
        tokens: sequences * length,
        forward: Pass::default(),
        again: Pass::default(),
        backward: Pass::default(),
        trained,
    };
    if let XEncoder::ClipResnet(keys) = &model.x_encoder {
        let pixels = |map: Convolution| (model.image_size >> map.halvings).pow(2);
        let maps = keys.convolutions();
        network.tokens = visual;
        network.forward = Pass {
            products: real(sequences)
                * maps
                    .all()
                    .map(|map| product(pixels(map), map.fan_in() * map.outputs))
                    .sum::<f64>(),
            // The patches of the input, the product, and its activation.
            values: real(sequences)
                * maps
                    .all()
                    .map(|map| real(pixels(map) * (map.fan_in() + 3 * map.outputs)))
                    .sum::<f64>(),
            launches: 3.0 * real(maps.all().count()),
            ..Pass::default()
        };
        return network;
    }
    let patches = patch_values(model);
    let embedding = Pass {
        // Pixels of one byte are read; patches, and tokens with positions, are written.
        values: real(sequences * length) * (1.5 * real(patches) + real(4 * x.hidden_size)),
        launches: 4.0,
        ..Pass::of_product(sequences * length, patches * x.hidden_size)
    };
    network.forward = layers.forward(sequences, length).plus(&embedding);
    if trained > 0 {
        let backward = layers.backward(sequences, length, layers.count);
        network.backward = backward.plus(&embedding.times(2.0));
    }
    network
}

fn predictor(model: &Model, tokens: Tokens, counts: &Parameters) -> Network {
    let (p, x) = (&model.predictor, model.x_encoder.sizes());
    let rows = tokens.visual + tokens.query;
    let layers = Layers::predictor(model);
    let text_projection = if p.text_projection { p.hidden_size * p.hidden_size } else { 0 };
    let ends = Pass {
        // Tokens are put into one sequence, and normalised after the last layer.
        values: real(rows * 4 * p.hidden_size),
        launches: 6.0,
        ..Pass::of_product(tokens.visual, x.hidden_size * p.hidden_size)
            .plus(&Pass::of_product(tokens.query, text_projection))
            .plus(&Pass::of_product(1, p.hidden_size * model.embed_dim))
    };
    let trained = |trains: bool, count: usize| if trains { count } else { 0 };
    let of_y = trained(model.y_encoder.trainable(), counts.y_encoder()) + counts.y_head;
    let of_x = trained(model.x_encoder.trainable(), counts.x_encoder);
    Network {
        name: NetworkName::Predictor,
        width: p.hidden_size,
        tokens: rows,
        forward: layers.forward(1, rows).plus(&ends),
        again: Pass::default(),
        backward: layers.backward(1, rows, layers.count).plus(&ends.times(2.0)),
        trained: counts.trainable.saturating_sub(of_y + of_x),
    }
}

fn y_encoder(model: &Model, target: usize, counts: &Parameters) -> Network {
    let y = model.y_encoder.sizes();
    let layers = Layers::y_encoder(model);
    let head = match model.y_encoder.projection() {
        Projection::Linear => y.output_size * model.embed_dim,
        Projection::None => 0,
    };
    let ends = Pass {
        // The rows of the token table, and the norm after the last layer.
        values: real(target * 4 * y.hidden_size),
        launches: 6.0,
        ..Pass::of_product(1, head + y.own_maps)
    };
    let trained = model.y_encoder.trainable();
    let backward = if trained {
        layers.backward(1, target, layers.count).plus(&ends.clone().times(2.0))
    } else {
        Pass::default()
    };
    Network {
        name: NetworkName::YEncoder,
        width: y.hidden_size,
        tokens: target,
        forward: layers.forward(1, target).plus(&ends),
        again: Pass::default(),
        backward,
        trained: if trained { counts.y_encoder() + counts.y_head } else { counts.y_head },
    }
}
