//! Compares PE's vision tower with a second implementation in PyTorch.

use std::sync::Arc;

use vljepa_kernels::rope::Table;
use vljepa_kernels::testing::{assert_close, assert_differs, bytes};
use vljepa_kernels::{Device, Tensor, View};
use vljepa_model::weights::{self, Source};
use vljepa_model::{Keep, Parameters, Sequence, VlJepa};
use vljepa_recipes::schema;

use crate::golden::{Golden, Machine, load_on, values};
use crate::tiny;

/// Tolerance for outputs, whose size is up to 5; `tests/golden/README.md` derives it.
const TOLERANCE: f32 = 1e-5;

/// Names of the goldens, and whether they have a cls token.
const GOLDENS: [(&str, bool); 2] = [("pe_vision_cls", true), ("pe_vision_d96", false)];

/// Keys of the golden encoder, with those that do not change its weights.
pub fn keys(golden: &Golden, final_norm: bool, pool: usize) -> schema::XEncoder {
    #[expect(clippy::cast_possible_truncation, reason = "an epsilon is f32")]
    let layer_norm_eps = golden.number("layer_norm_eps") as f32;
    schema::XEncoder::Pe(schema::Pe {
        patch_size: golden.size("patch_size"),
        hidden_size: golden.size("width"),
        num_layers: golden.size("layers"),
        num_heads: golden.size("heads"),
        intermediate_size: golden.size("mlp_width"),
        layer_norm_eps,
        cls_token: golden.size("use_cls_token") == 1,
        final_norm,
        pool,
        ..schema::Pe::default()
    })
}

/// The golden model with keys that do not change its weights.
pub fn open_on(
    device: Device,
    name: &str,
    final_norm: bool,
    pool: usize,
) -> (Golden, VlJepa, Parameters) {
    let golden = Golden::open(name);
    let x_encoder = keys(&golden, final_norm, pool);
    let image_size = golden.size("image_size");
    let recipe = schema::Model { image_size, x_encoder, ..tiny::model() };
    let model = VlJepa::new(&recipe, &schema::Loss::default(), device).unwrap();
    let parameters = load_on(device, &model, &[(Source::Pe, golden.weights())]);
    (golden, model, parameters)
}

fn tokens(model: &VlJepa, parameters: &Parameters, frames: View<'_>) -> Vec<f32> {
    let machine = Machine::new();
    let visual =
        model.x_encoder.forward(machine.cx(), parameters, frames, Keep::EVERYTHING).unwrap();
    assert!(visual.saved.is_none(), "a frozen encoder keeps nothing");
    assert_eq!(visual.tokens.shape()[0], visual.rows * visual.tokens_per_row);
    assert_eq!(visual.rows, frames.shape()[0]);
    values(&visual.tokens)
}

#[test]
fn pe_outputs_match_with_and_without_the_last_norm() {
    for (name, _) in GOLDENS {
        for (final_norm, stage) in [(true, "out.ln_post"), (false, "out.last_block")] {
            let (golden, model, parameters) = open_on(Device::Host, name, final_norm, 1);
            let (machine, frames) = (Machine::new(), golden.frames("in.frames"));
            let patches = model.x_encoder.patches(machine.cx(), frames.view()).unwrap();
            let (x, _) = model.x_encoder.embed(machine.cx(), &parameters, &patches).unwrap();
            assert_close(name, &values(&x), golden.get("out.ln_pre"), TOLERANCE);
            let got = tokens(&model, &parameters, frames.view());
            assert_close(name, &got, golden.get(stage), TOLERANCE);
            let other = if final_norm { "out.last_block" } else { "out.ln_post" };
            assert_differs(name, &got, golden.get(other), TOLERANCE);
            // Two clips of one frame have the tokens of one clip of two frames.
            let &[b, t, h, w, c] = frames.shape() else { panic!("five dimensions") };
            let clip = frames.view().reshaped(&[t, b, h, w, c]);
            assert_eq!(tokens(&model, &parameters, clip), got);
        }
    }
}

#[test]
fn pe_rotates_by_column_first_and_starts_at_one_after_a_cls_token() {
    for (name, cls) in GOLDENS {
        let (golden, model, parameters) = open_on(Device::Host, name, true, 1);
        let (machine, encoder) = (Machine::new(), &model.x_encoder);
        let frames = golden.frames("in.frames");
        let patches = encoder.patches(machine.cx(), frames.view()).unwrap();
        let head_dim = golden.size("width") / golden.size("heads");
        let side = golden.size("image_size") / golden.size("patch_size");
        let last_block = |coordinates: Vec<[u8; 2]>| {
            let coordinates: Vec<_> = coordinates.iter().map(|at| at.map(f32::from)).collect();
            let table =
                Table::axial(Device::Host, head_dim, head_dim / 2, &coordinates, 10_000.0).unwrap();
            let (x, sequence) = encoder.embed(machine.cx(), &parameters, &patches).unwrap();
            let sequence = Sequence { tables: vec![Arc::new(table)], ..sequence };
            let x = encoder.stack.forward_blocks(machine.cx(), &parameters, x, &sequence).unwrap();
            let width = x.shape()[1];
            // Without the cls token of each frame.
            let per_frame = values(&x);
            let per_frame = per_frame.chunks((side * side + usize::from(cls)) * width);
            per_frame.flat_map(|f| f[usize::from(cls) * width..].to_vec()).collect::<Vec<_>>()
        };
        let first = u8::from(cls);
        let at = |i: usize| u8::try_from(i).unwrap() + first;
        let with_cls = |patches: Vec<[u8; 2]>| {
            let cls = cls.then_some([0, 0]);
            cls.into_iter().chain(patches).collect::<Vec<_>>()
        };
        let columns: Vec<_> = (0..side * side).map(|i| [at(i % side), at(i / side)]).collect();
        let rows: Vec<_> = columns.iter().map(|&[x, y]| [y, x]).collect();
        let want = golden.get("out.last_block");
        assert_close(name, &last_block(with_cls(columns.clone())), want, TOLERANCE);
        assert_differs(name, &last_block(with_cls(rows)), want, TOLERANCE);
        if cls {
            let from_zero = columns.iter().map(|at| at.map(|p| p - 1)).collect();
            assert_differs(name, &last_block(with_cls(from_zero)), want, TOLERANCE);
        }
    }
}

/// Mean of the tokens of each square of pool² tokens, of frames of side² tokens.
fn means(tokens: &[f32], width: usize, side: usize, pool: usize) -> Vec<f32> {
    let mut out = Vec::new();
    for frame in tokens.chunks(side * side * width) {
        for square in 0..(side / pool).pow(2) {
            let (row, column) = (square / (side / pool) * pool, square % (side / pool) * pool);
            for element in 0..width {
                let inside = (0..pool * pool).map(|i| {
                    let token = (row + i / pool) * side + column + i % pool;
                    f64::from(frame[token * width + element])
                });
                #[expect(
                    clippy::cast_precision_loss,
                    clippy::cast_possible_truncation,
                    reason = "a mean of at most nine f32"
                )]
                out.push((inside.sum::<f64>() / (pool * pool) as f64) as f32);
            }
        }
    }
    out
}

#[test]
fn pooled_tokens_are_means_of_squares() {
    for ((name, _), pool) in GOLDENS.into_iter().zip([2, 3]) {
        let (golden, model, parameters) = open_on(Device::Host, name, true, pool);
        let frames = golden.frames("in.frames");
        let (width, side) =
            (golden.size("width"), golden.size("image_size") / golden.size("patch_size"));
        let got = tokens(&model, &parameters, frames.view());
        let want = means(golden.get("out.ln_post"), width, side, pool);
        assert_close(name, &got, &want, TOLERANCE);
        // Runs of pool² tokens are other means.
        let runs = golden.get("out.ln_post").chunks(pool * pool * width);
        let wrong: Vec<_> = runs.flat_map(|run| means(run, width, pool, pool)).collect();
        if side > pool {
            assert_differs(name, &got, &wrong, TOLERANCE);
        }
    }
}

#[test]
fn frames_of_another_size_than_the_learned_positions_are_refused() {
    let (golden, model, parameters) = open_on(Device::Host, GOLDENS[0].0, true, 1);
    let side = golden.size("image_size") + golden.size("patch_size");
    let frames = Tensor::from_f32(vec![0.0; side * side * 3], &[1, 1, side, side, 3]);
    let error = model
        .x_encoder
        .forward(Machine::new().cx(), &parameters, frames.view(), Keep::Nothing)
        .unwrap_err()
        .to_string();
    assert!(error.contains("26") && error.contains("17, as many as learned positions"), "{error}");
}

#[test]
fn pe_takes_bytes_as_numbers_from_minus_one_to_one() {
    let (golden, model, parameters) = open_on(Device::Host, GOLDENS[0].0, true, 1);
    let side = golden.size("image_size");
    let shape = [1, 1, side, side, 3];
    let pixels = bytes(6, shape.iter().product());
    let scaled = |middle: f32| {
        let values = pixels.iter().map(|&p| (f32::from(p) / 255.0 - middle) / 0.5).collect();
        tokens(&model, &parameters, Tensor::from_f32(values, &shape).view())
    };
    let got = tokens(&model, &parameters, View::from_u8(&pixels, &shape));
    assert_close("bytes", &got, &scaled(0.5), TOLERANCE);
    assert_differs("ImageNet's mean of green", &got, &scaled(0.456), TOLERANCE);
}

#[test]
fn a_file_may_hold_later_blocks_only_if_the_last_norm_is_left_out() {
    let golden = Golden::open("pe_vision_cls");
    let load = |final_norm| {
        let x_encoder = match keys(&golden, final_norm, 1) {
            schema::XEncoder::Pe(pe) => schema::XEncoder::Pe(schema::Pe { num_layers: 1, ..pe }),
            other => other,
        };
        let image_size = golden.size("image_size");
        let recipe = schema::Model { image_size, x_encoder, ..tiny::model() };
        let model = VlJepa::new(&recipe, &schema::Loss::default(), Device::Host).unwrap();
        let mut parameters = Parameters::new(model.layout(), Device::Host).unwrap();
        weights::load(&model, &mut parameters, Source::Pe, &golden.weights())
    };
    let unused = load(false).unwrap().unused;
    assert_eq!(unused.len(), 12, "the second block: {unused:?}");
    let error = load(true).unwrap_err().to_string();
    assert!(error.contains("resblocks.1."), "{error}");
}
