//! The GPU kernels of a recipe: what `vljepa-worker compile` builds before a run.

use std::collections::BTreeSet;

use vljepa_kernels::adamw::launch as adamw;
use vljepa_kernels::attention::launch as attention;
use vljepa_kernels::attention::launch::{Pass, Sight};
use vljepa_kernels::compile::{Element, Kernel};
use vljepa_kernels::distance::{Distance, launch as distance};
use vljepa_kernels::info_nce::launch as info_nce;
use vljepa_kernels::layer_norm::launch as norm;
use vljepa_kernels::layer_norm::launch::Form;
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
    loss_keys(&mut keys, &recipe.loss);
    for copied in [false, true] {
        keys.insert(Kernel::Adamw(adamw::Kernel { width: 4, copied }));
    }
    keys
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
        keys.insert(Kernel::LayerNorm(norm::ADD));
    }
}

fn attention_keys(keys: &mut BTreeSet<Kernel>, head_dim: usize, sight: Sight, trained: bool) {
    let passes = if trained { &Pass::ALL[..] } else { &[Pass::Forward][..] };
    for &pass in passes {
        let sight = match pass {
            Pass::Prepare | Pass::Finish => Sight::Full,
            Pass::Forward | Pass::Keys | Pass::KeysFast | Pass::Queries => sight,
        };
        keys.insert(Kernel::Attention(attention::Kernel { pass, head_dim, sight }));
    }
}
