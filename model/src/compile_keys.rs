//! The GPU kernels of a recipe: what `vljepa-worker compile` builds before a run.

use std::collections::BTreeSet;

use vljepa_kernels::adamw::launch as adamw;
use vljepa_kernels::attention::launch as attention;
use vljepa_kernels::attention::launch::Sight;
use vljepa_kernels::column_sums::launch as column_sums;
use vljepa_kernels::compile::{Element, Kernel};
use vljepa_kernels::distance::{Distance, launch as distance};
use vljepa_kernels::embedding::launch as embedding;
use vljepa_kernels::gated_mlp::{Activation, launch as gated_mlp};
use vljepa_kernels::gelu::{Gelu, launch as gelu};
use vljepa_kernels::global_norm::launch as global_norm;
use vljepa_kernels::info_nce::launch as info_nce;
use vljepa_kernels::layer_norm::launch as norm;
use vljepa_kernels::layer_norm::launch::Form;
use vljepa_kernels::normalize::launch as normalize;
use vljepa_kernels::patch_embed::launch as patch_embed;
use vljepa_kernels::pooling::launch as pooling;
use vljepa_kernels::rope::{Heads, Pairing, launch as rope};
use vljepa_kernels::rows::launch as rows;
use vljepa_kernels::rows::launch::Pass;
use vljepa_recipes::schema::{self, Recipe};

/// Every kernel that training or evaluating `recipe` on a GPU launches, in bf16.
#[must_use]
pub fn compile_keys(recipe: &Recipe) -> BTreeSet<Kernel> {
    let mut keys = BTreeSet::new();
    let model = &recipe.model;
    let x = &model.x_encoder;
    attention_keys(&mut keys, x.hidden_size / x.num_heads, Sight::Full, x.trainable);
    let predictor = &model.predictor;
    let sight = match predictor.attention {
        schema::Attention::Bidirectional => Sight::Full,
        schema::Attention::Causal => Sight::Causal,
    };
    attention_keys(&mut keys, predictor.head_dim, sight, true);
    let y = &model.y_encoder;
    for sight in [Sight::Full, Sight::Window] {
        attention_keys(&mut keys, y.head_dim, sight, true);
    }
    norm_keys(&mut keys, Form::Layer, x.hidden_size, x.trainable);
    norm_keys(&mut keys, Form::Rms, predictor.hidden_size, true);
    norm_keys(&mut keys, Form::RmsOnePlus, y.hidden_size, true);
    // Gemma normalises the heads of q and k as well.
    norm_keys(&mut keys, Form::RmsOnePlus, y.head_dim, true);
    token_keys(&mut keys, recipe);
    bias_keys(&mut keys, recipe);
    loss_keys(&mut keys, &recipe.loss);
    for copied in [false, true] {
        keys.insert(Kernel::Adamw(adamw::Kernel { width: 4, copied }));
    }
    keys
}

/// Everything between products: activations, rotations, tables, patches, pooling, rows.
fn token_keys(keys: &mut BTreeSet<Kernel>, recipe: &Recipe) {
    const ELEMENT: Element = Element::Bf16;
    let model = &recipe.model;
    let (x, predictor, y) = (&model.x_encoder, &model.predictor, &model.y_encoder);
    let trained = |trained| if trained { &[false, true][..] } else { &[false][..] };
    for &backward in trained(x.trainable) {
        let lanes = ELEMENT.lanes(x.intermediate_size);
        let kernel = gelu::Kernel { backward, kind: Gelu::Erf, element: ELEMENT, lanes };
        keys.insert(Kernel::Gelu(kernel));
    }
    let (tubelet, patch) = (x.tubelet_size, x.patch_size);
    keys.insert(Kernel::PatchEmbed(patch_embed::Kernel { tubelet, patch, element: ELEMENT }));
    let gates = [
        (Activation::Silu, predictor.intermediate_size),
        (Activation::GeluTanh, y.intermediate_size),
    ];
    for backward in [false, true] {
        for (activation, width) in gates {
            let lanes = ELEMENT.lanes(width);
            let kernel = gated_mlp::Kernel { backward, activation, element: ELEMENT, lanes };
            keys.insert(Kernel::GatedMlp(kernel));
        }
        for width in [predictor.hidden_size, y.hidden_size] {
            let lanes = ELEMENT.lanes(width);
            let pooling = pooling::Kernel { backward, element: ELEMENT, lanes };
            keys.insert(Kernel::Pooling(pooling));
            let embedding = embedding::Kernel { backward, element: ELEMENT, lanes };
            keys.insert(Kernel::Embedding(embedding));
            for pass in [Pass::Scatter, Pass::Gather { add: backward }, Pass::Add] {
                keys.insert(Kernel::Rows(rows::Kernel { pass, element: ELEMENT, lanes }));
            }
        }
        keys.insert(Kernel::Normalize(normalize::Kernel { backward, element: ELEMENT }));
    }
    // The weights' first copies, and gradients of embeddings that nothing normalises.
    let cast = rows::Kernel { pass: Pass::Cast, element: Element::F32, lanes: 4 };
    keys.insert(Kernel::Rows(cast));
    keys.extend([1, 4].map(|lanes| Kernel::GlobalNorm(global_norm::Kernel::Squares { lanes })));
    keys.insert(Kernel::GlobalNorm(global_norm::Kernel::Control));

    let mut rope = |pairing, pass| {
        keys.insert(Kernel::Rope(rope::Kernel { pass, pairing, element: ELEMENT }));
    };
    let dim = x.hidden_size / x.num_heads;
    let heads = Heads { query: x.num_heads, key_value: x.num_heads, dim };
    rope(Pairing::Adjacent, rope::Pass::Split { heads, rotated: true });
    if x.trainable {
        rope(Pairing::Adjacent, rope::Pass::Merge { heads, rotated: true });
    }
    let heads = Heads {
        query: predictor.num_heads,
        key_value: predictor.num_kv_heads,
        dim: predictor.head_dim,
    };
    rope(Pairing::Half, rope::Pass::Split { heads, rotated: true });
    rope(Pairing::Half, rope::Pass::Merge { heads, rotated: true });
    // Gemma normalises the heads of q and k between the split and the rotation.
    let heads = Heads { query: y.num_heads, key_value: y.num_kv_heads, dim: y.head_dim };
    rope(Pairing::Half, rope::Pass::Split { heads, rotated: false });
    rope(Pairing::Half, rope::Pass::Merge { heads, rotated: false });
    for transposed in [false, true] {
        rope(Pairing::Half, rope::Pass::Rotate { dim: y.head_dim, transposed });
    }
}

/// Gradients of the biases of linear layers.
fn bias_keys(keys: &mut BTreeSet<Kernel>, recipe: &Recipe) {
    let model = &recipe.model;
    let (x, predictor) = (&model.x_encoder, &model.predictor);
    let encoder = [x.hidden_size, 3 * x.hidden_size, x.intermediate_size];
    let projections = [predictor.hidden_size, model.embed_dim];
    let encoder = encoder.into_iter().filter(|_| x.trainable);
    let projections = projections.into_iter().filter(|_| model.projection_bias);
    for width in encoder.chain(projections) {
        keys.extend(column_sums::Kernel::all(Element::Bf16, width).map(Kernel::ColumnSums));
    }
}

fn loss_keys(keys: &mut BTreeSet<Kernel>, loss: &schema::Loss) {
    let distance = match loss.kind {
        schema::LossKind::InfoNce => {
            let kernels = info_nce::Kernel::all(loss.mask_equal_targets);
            keys.extend(kernels.map(Kernel::InfoNce));
            return;
        }
        schema::LossKind::Cosine => Distance::Cosine,
        schema::LossKind::L1 => Distance::L1,
        schema::LossKind::L2 => Distance::L2,
    };
    keys.extend(distance::Kernel::all(distance, Element::Bf16).map(Kernel::Distance));
}

fn norm_keys(keys: &mut BTreeSet<Kernel>, form: Form, width: usize, trained: bool) {
    let mut insert = |pass| {
        keys.insert(Kernel::LayerNorm(norm::Kernel { pass, element: Element::Bf16, width }));
    };
    for flag in [false, true] {
        insert(norm::Pass::Forward { form, added: flag });
        if trained {
            insert(norm::Pass::Backward { form, add: flag });
        }
    }
    if trained {
        let [_, total] = column_sums::Kernel::all(Element::F32, width);
        keys.insert(Kernel::ColumnSums(total));
    }
}

fn attention_keys(keys: &mut BTreeSet<Kernel>, head_dim: usize, sight: Sight, trained: bool) {
    let passes = if trained { &attention::Pass::ALL[..] } else { &[attention::Pass::Forward][..] };
    for &pass in passes {
        let sight = match pass {
            attention::Pass::Prepare | attention::Pass::Finish => Sight::Full,
            attention::Pass::Forward
            | attention::Pass::Keys
            | attention::Pass::KeysFast
            | attention::Pass::Queries => sight,
        };
        keys.insert(Kernel::Attention(attention::Kernel { pass, head_dim, sight }));
    }
}
