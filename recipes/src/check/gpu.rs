//! Sizes for which GPUs have kernels.

use super::{Problem, Problems};
use crate::schema::{
    Device, Model, ModelKind, Pe, Recipe, TaskKind, TextLayers, Update, XEncoder, YDecoder,
};

/// Widths of heads for which there are attention kernels for GPUs, in elements. The host computes
/// any width.
pub const GPU_HEAD_WIDTHS: [usize; 5] = [16, 32, 64, 128, 256];
/// Widths of heads that GPUs compute in encoders and predictors that are not trained. A network
/// that writes texts has none of them.
pub const GPU_FORWARD_HEAD_WIDTHS: [usize; 4] = [72, 80, 96, 192];
/// Largest number of elements of a token that the GPU kernels of norms take.
pub const GPU_NORM_WIDTH: usize = 4096;

/// A network that computes in a recipe.
struct Network {
    /// Name in messages.
    name: &'static str,
    /// Number of elements of a token, and its key.
    hidden: (&'static str, usize),
    /// Number of elements of a head, or `None` if the sizes make no heads, which is reported
    /// elsewhere; and the key that gives the heads their width.
    heads: (&'static str, Option<usize>),
    /// Whether only the forward pass computes it, and it writes no texts.
    forward_only: bool,
}

/// Returns a problem for each size of a recipe for GPUs that has no kernel there.
#[must_use]
pub(crate) fn kernels(recipe: &Recipe) -> Vec<Problem> {
    let help = "choose another size, or write `device: host` and `precision: f32`";
    of_networks(recipe, true, help)
}

/// Returns what [`kernels`] returns for the recipe of a table's row, which nothing trains.
#[must_use]
pub(crate) fn kernels_of_row(recipe: &Recipe) -> Vec<Problem> {
    let help = "leave the row out (`null`), or compute the table on the host: `device: host` and \
                `precision: f32`";
    of_networks(recipe, false, help)
}

fn of_networks(recipe: &Recipe, training: bool, help: &str) -> Vec<Problem> {
    let mut found = Problems::default();
    if recipe.device == Device::Host {
        return found.list;
    }
    let Model { embed_dim, image_size, kind, .. } = recipe.model;
    if matches!(kind, ModelKind::VlJepa | ModelKind::YDecoder) && !embed_dim.is_multiple_of(8) {
        let what = format!("{embed_dim} is no multiple of 8, as GPU kernels need");
        found.add("model.embed_dim", what, help);
    }
    if !compares_texts(recipe) && !image_size.is_multiple_of(2) {
        let what =
            format!("{image_size} is odd, and GPU kernels load four values of a frame at a time");
        found.add("model.image_size", what, help);
    }
    for Network { name, hidden, heads, forward_only } in networks(recipe, training) {
        if hidden.1 > GPU_NORM_WIDTH {
            let what = format!(
                "{} is above the {GPU_NORM_WIDTH} elements of GPU kernels of norms",
                hidden.1
            );
            found.add(hidden.0, what, help);
        }
        let more: &[usize] = if forward_only { &GPU_FORWARD_HEAD_WIDTHS } else { &[] };
        let mut widths = [&GPU_HEAD_WIDTHS[..], more].concat();
        if let Some(width) = heads.1.filter(|width| !widths.contains(width)) {
            widths.sort_unstable();
            let widths: Vec<String> = widths.iter().map(ToString::to_string).collect();
            let widths = widths.join(", ");
            let what =
                format!("{name} has heads of {width} elements, and GPUs compute it with {widths}");
            found.add(heads.0, what, help);
        }
    }
    found.list
}

/// All networks that compute in a recipe, which trains some of them if `training`.
fn networks(recipe: &Recipe, training: bool) -> Vec<Network> {
    let model = &recipe.model;
    let of_x = || x_encoder(model, training && model.x_encoder.trainable());
    let of_y = |trained| y_encoder(model, trained);
    match model.kind {
        ModelKind::VlJepa => {
            let trained = training && model.y_encoder.update() == Update::Train;
            let all = [of_x(), predictor(model, training), of_y(trained)];
            all.into_iter().chain(decoder(model)).collect()
        }
        ModelKind::YDecoder => {
            let all = [of_x(), predictor(model, false), of_y(false)];
            all.into_iter().chain(decoder(model)).collect()
        }
        ModelKind::DualEncoder if compares_texts(recipe) => vec![of_y(false)],
        ModelKind::DualEncoder => {
            [of_x()].into_iter().chain(pooling(&model.x_encoder)).chain([of_y(false)]).collect()
        }
        ModelKind::Vlm => {
            let language_model = model.vlm().map(|keys| Network {
                name: "the language model",
                hidden: ("model.language_model.hidden_size", keys.hidden_size),
                heads: ("model.language_model.head_dim", Some(keys.head_dim)),
                forward_only: false,
            });
            [of_x()].into_iter().chain(language_model).collect()
        }
    }
}

/// Whether a dual encoder compares only texts, so that its X-encoder does not compute.
fn compares_texts(recipe: &Recipe) -> bool {
    let tasks = &recipe.evaluation.tasks;
    recipe.model.kind == ModelKind::DualEncoder
        && !tasks.is_empty()
        && tasks.iter().all(|task| task.kind == TaskKind::Triplets)
}

/// Width of the heads of tokens of `hidden` elements.
fn width(hidden: usize, heads: usize) -> Option<usize> {
    hidden.checked_div(heads).filter(|width| *width > 0 && width * heads == hidden)
}

/// The X-encoder. The attention pooling of SigLIP 2 has the heads of its layers, and a ResNet has
/// no other attention than that of its pooling.
fn x_encoder(model: &Model, trained: bool) -> Network {
    let sizes = model.x_encoder.sizes();
    let name = match model.x_encoder {
        XEncoder::ClipResnet(_) => "the attention pooling of the X-encoder",
        XEncoder::Vjepa2(_)
        | XEncoder::Vjepa2_1(_)
        | XEncoder::Pe(_)
        | XEncoder::Siglip2(_)
        | XEncoder::Clip(_) => "the X-encoder",
    };
    Network {
        name,
        hidden: ("model.x_encoder.hidden_size", sizes.hidden_size),
        heads: ("model.x_encoder.num_heads", width(sizes.hidden_size, sizes.num_heads)),
        forward_only: !trained,
    }
}

/// The attention pooling of a dual encoder, if its heads differ from those of the layers.
fn pooling(x_encoder: &XEncoder) -> Option<Network> {
    match x_encoder {
        XEncoder::Pe(keys) => {
            let key = "model.x_encoder.hidden_size";
            Some(Network {
                name: "the attention pooling of the X-encoder",
                hidden: (key, keys.hidden_size),
                heads: (key, width(keys.hidden_size, Pe::POOLING_HEADS)),
                forward_only: true,
            })
        }
        XEncoder::Vjepa2(_)
        | XEncoder::Vjepa2_1(_)
        | XEncoder::Siglip2(_)
        | XEncoder::Clip(_)
        | XEncoder::ClipResnet(_) => None,
    }
}

fn predictor(model: &Model, trained: bool) -> Network {
    Network {
        name: "the predictor",
        hidden: ("model.predictor.hidden_size", model.predictor.hidden_size),
        heads: ("model.predictor.head_dim", Some(model.predictor.head_dim)),
        forward_only: !trained,
    }
}

fn y_encoder(model: &Model, trained: bool) -> Network {
    let sizes = model.y_encoder.sizes();
    let heads = match sizes.layers {
        TextLayers::Gated { .. } => ("model.y_encoder.head_dim", Some(sizes.head_dim)),
        TextLayers::Plain => {
            ("model.y_encoder.num_heads", width(sizes.hidden_size, sizes.num_heads))
        }
    };
    let hidden = ("model.y_encoder.hidden_size", sizes.hidden_size);
    Network { name: "the Y-encoder", hidden, heads, forward_only: !trained }
}

/// The decoder, which writes texts also where it is not trained.
fn decoder(model: &Model) -> Option<Network> {
    let (hidden, heads) = match model.decoder()? {
        YDecoder::Llama(keys) => {
            (keys.hidden_size, ("model.y_decoder.head_dim", Some(keys.head_dim)))
        }
        YDecoder::Sonar(keys) => {
            let width = width(keys.hidden_size, keys.num_heads);
            (keys.hidden_size, ("model.y_decoder.num_heads", width))
        }
    };
    let hidden = ("model.y_decoder.hidden_size", hidden);
    Some(Network { name: "the Y-decoder", hidden, heads, forward_only: false })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use crate::load;

    /// What is said about a recipe of the folder with these `--set` flags.
    fn said(recipe: &str, sets: &[&str]) -> String {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(recipe);
        let sets: Vec<String> = sets.iter().map(|&set| set.to_owned()).collect();
        match load(&path, &sets) {
            Ok(_) => String::new(),
            Err(error) => format!("{:?}", miette::Report::new(error)).replace("\n  │ ", " "),
        }
    }

    const HOST: [&str; 2] = ["device=host", "precision=f32"];

    /// A recipe, what is changed of it, and the key and the text of the problem, which are empty if
    /// there is no problem.
    #[rustfmt::skip]
    const CHANGES: [(&str, &str, &str, &str); 18] = [
        ("pretrain.yaml", "model.x_encoder.size=vit_l", "", ""),
        ("pretrain.yaml", "model.x_encoder.size=vit_g", "", ""),
        ("pretrain.yaml", "model.x_encoder.size=vit_h", "", ""),
        ("pretrain.yaml", "model.x_encoder={family: vjepa2, size: vit_h, trainable: true}", "x_encoder.num_heads", "X-encoder has heads of 80"),
        ("pretrain.yaml", "model.x_encoder.num_heads=2", "x_encoder.num_heads", "X-encoder has heads of 512"),
        ("pretrain.yaml", "model.x_encoder={family: siglip2, size: so400m16}", "", ""),
        ("pretrain.yaml", "model.x_encoder={family: siglip2, size: g_opt16}", "", ""),
        ("pretrain.yaml", "model.x_encoder={family: pe, size: g14}", "", ""),
        ("pretrain.yaml", "model.y_encoder={family: siglip2_text, size: g_opt16}", "", ""),
        ("pretrain.yaml", "model.y_encoder.head_dim=96", "y_encoder.head_dim", "Y-encoder has heads of 96"),
        ("pretrain.yaml", "model.predictor.head_dim=48", "predictor.head_dim", "predictor has heads of 48"),
        ("decoder.yaml", "model.y_decoder.head_dim=80", "y_decoder.head_dim", "Y-decoder has heads of 80"),
        ("controlled_vl_jepa.yaml", "model.y_decoder.num_heads=8", "", ""),
        ("controlled_vl_jepa.yaml", "model.y_decoder.num_heads=2", "y_decoder.num_heads", "Y-decoder has heads of 512"),
        ("vlm_baseline.yaml", "model.language_model.head_dim=8", "language_model.head_dim", "language model has heads of 8"),
        ("vlm_baseline.yaml", "model.x_encoder={family: pe, size: g14}", "", ""),
        ("pretrain.yaml", "model.embed_dim=1500", "model.embed_dim", "1500 is no multiple of 8"),
        ("pretrain.yaml", "model.predictor.hidden_size=5120", "model.predictor.hidden_size", "5120 is above the 4096"),
    ];

    #[test]
    fn each_size_that_has_no_kernel_on_gpus_is_named_and_the_host_computes_it() {
        for (recipe, set, key, network) in CHANGES {
            let found = said(recipe, &[set]);
            assert_eq!(found.is_empty(), key.is_empty(), "{recipe}, {set}: {found}");
            for part in [key, network, "device: host"] {
                let is_named = found.is_empty() || found.contains(part);
                assert!(is_named, "{recipe}, {set}: {part}: {found}");
            }
            assert_eq!(said(recipe, &[&HOST[..], &[set]].concat()), "", "{recipe}, {set}");
        }
    }

    #[test]
    fn frames_of_an_odd_size_have_no_kernel_on_gpus() {
        let odd = ["model.x_encoder.patch_size=15", "model.image_size=255"];
        let found = said("pretrain.yaml", &odd);
        assert!(found.contains("model.image_size: 255 is odd"), "{found}");
        assert_eq!(said("pretrain.yaml", &[&HOST[..], &odd].concat()), "");
    }

    #[test]
    fn the_pooling_of_a_dual_encoder_has_heads_of_its_own_and_texts_need_no_frames() {
        let of = |size: &str, more: &[&str]| {
            let x = format!("model.x_encoder={{family: pe, size: {size}, weights: w}}");
            let y = format!(
                "model.y_encoder={{family: pe_text, size: {size}, weights: w, tokenizer: t}}"
            );
            said("dual_encoder.yaml", &[&[x.as_str(), y.as_str()], more].concat())
        };
        for size in ["b16", "l14", "g14"] {
            assert_eq!(of(size, &[]), "");
        }
        // Eight heads of the pooling, and twelve of the layers
        let wide = "model.x_encoder.hidden_size=1152";
        let found = of("b16", &[wide, "model.x_encoder.num_heads=12"]);
        let named =
            "model.x_encoder.hidden_size: the attention pooling of the X-encoder has heads of 144";
        assert!(found.contains(named) && !found.contains("num_heads"), "{found}");
        let texts = "evaluation.tasks=[{set: recipes/evaluate/sets/visla.yaml}]";
        let texts = texts.replace("recipes", env!("CARGO_MANIFEST_DIR"));
        assert_eq!(of("b16", &[wide, "model.x_encoder.num_heads=12", &texts]), "");
    }

    #[test]
    fn rows_of_a_table_that_no_gpu_computes_are_named() {
        let row = "table.rows.wide.model={kind: dual_encoder, \
                   x_encoder: {family: siglip2, size: l16, num_heads: 2, weights: w}, \
                   y_encoder: {family: siglip2_text, size: l16, num_heads: 2, weights: w, tokenizer: t}}";
        let table = said("evaluate/table1.yaml", &[row]);
        for part in [
            "table.rows.wide.model.x_encoder.num_heads: the X-encoder has heads of 512",
            "table.rows.wide.model.y_encoder.num_heads: the Y-encoder has heads of 512",
            "leave the row out",
        ] {
            assert!(table.contains(part), "{part}: {table}");
        }
        assert_eq!(said("evaluate/table1.yaml", &[&[row], &HOST[..]].concat()), "");
        let narrow = row.replace("num_heads: 2", "num_heads: 8").replace("l16", "b16");
        assert_eq!(said("evaluate/table1.yaml", &[&narrow]), "", "heads of 96");
    }
}
