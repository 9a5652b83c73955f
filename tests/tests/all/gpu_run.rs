//! Training as a worker does it, on an emulated GPU that uses host memory and kernels compiled for
//! the host.

use std::path::{Path, PathBuf};

use vljepa_data::batch::{Batch, Ragged};
use vljepa_kernels::attention::launch::Mode;
use vljepa_kernels::device::cuda::Cuda;
use vljepa_kernels::device::{Upload, UploadBuffer};
use vljepa_kernels::testing::{bytes, indices};
use vljepa_kernels::{Device, KernelError, Packed, Tensor};
use vljepa_model::{Parameter, Recompute};
use vljepa_recipes::protocol::Phase;
use vljepa_recipes::schema::{self, Init, Precision, Trace};
use vljepa_recipes::{Loaded, Recipe, RunDirectory};
use vljepa_worker::checkpoint::{self, CheckpointFolder, Contents, Retention, State};
use vljepa_worker::collectives::{Collectives, Solo};
use vljepa_worker::engine::{Engine, Training};
use vljepa_worker::observe::meter::Meter;
use vljepa_worker::observe::trace::Tracer;
use vljepa_worker::rank::drill::Drills;
use vljepa_worker::rank::generation::Generation;
use vljepa_worker::training::step::{self, Input, StepReport};

use crate::golden::values;
use crate::programs::repository;

const ALONE: Collectives = Collectives::Solo(Solo);

/// Returns the folder of recipes: `VLJEPA_RECIPES`, for tests that run without the repository in
/// which they were built, or the repository's folder.
#[expect(clippy::disallowed_methods, reason = "only tests read this variable")]
fn recipes() -> PathBuf {
    std::env::var("VLJEPA_RECIPES").map_or_else(|_| repository().join("recipes"), PathBuf::from)
}

/// Returns the quickstart's recipe for a GPU, with one layer per encoder to save time.
fn recipe() -> Recipe {
    loaded("true", &[]).recipe
}

/// Like [`recipe`], with an X-encoder that is trained or not, and other changes.
fn loaded(trains_x_encoder: &str, sets: &[&str]) -> Loaded {
    let trains = format!("model.x_encoder.trainable={trains_x_encoder}");
    let changes = [
        trains.as_str(),
        "device=cuda",
        "precision=bf16",
        "deterministic=true",
        "model.x_encoder.num_layers=1",
        "model.predictor.layers=[0, 1]",
    ];
    let path = recipes().join("quickstart.yaml");
    let changes: Vec<String> = changes.iter().chain(sets).map(|&set| set.to_owned()).collect();
    vljepa_recipes::load(&path, &changes).unwrap()
}

/// Returns a batch of five rows, two of which have the same target.
fn batch(seed: u64) -> Batch {
    let (rows, shape) = (5, [5, 2, 32, 32, 3]);
    let ragged = |seed, ends: [i32; 6]| Ragged {
        ids: indices(seed, usize::try_from(ends[5]).unwrap(), 128),
        cu_seqlens: ends.to_vec(),
    };
    Batch {
        stage_step: 0,
        first_row: 0,
        global_batch: rows,
        frames: bytes(seed, shape.iter().product()),
        frames_shape: shape,
        before: std::sync::Arc::from([]),
        query: ragged(seed + 1, [0, 3, 3, 4, 9, 11]),
        target: ragged(seed + 2, [0, 2, 7, 9, 10, 14]),
        output: Ragged::new(),
        target_hashes: vec![1, 2, 1, 3, 4],
        query_texts: vec![String::new(); rows],
        target_texts: vec![String::new(); rows],
        samples: Vec::new(),
        skipped: Vec::new(),
    }
}

/// Uploads the batch to a device as a worker's feed does.
fn uploaded(seed: u64, device: Device) -> Batch<Tensor> {
    let upload = |frames: Vec<u8>, shape: [usize; 5]| {
        let mut buffer = UploadBuffer::new(device, frames.len())?;
        buffer.bytes_mut()?.copy_from_slice(&frames);
        Ok::<_, KernelError>(Upload::begin(buffer, &shape)?.arrive()?.0)
    };
    batch(seed).moved(upload).unwrap()
}

fn step(
    (engine, training): &mut (Engine, Training),
    seed: u64,
    micro_batch: Option<usize>,
    recompute: Recompute,
) -> StepReport {
    let batch = uploaded(seed, engine.device());
    let (learning_rate, stop, spoiled, gauged) = (1e-3, false, false, true);
    let input = Input { batch, micro_batch, recompute, learning_rate, stop, spoiled, gauged };
    step::step(engine, training, &ALONE, input, &mut |_| Ok(())).unwrap()
}

/// Returns the bits of the buffers of a checkpoint: weights, first moment, second moment.
fn bits((engine, training): &(Engine, Training)) -> [Vec<u32>; 3] {
    [&engine.parameters.trainable, &training.optimizer.m, &training.optimizer.v]
        .map(|tensor| values(tensor).iter().map(|x| x.to_bits()).collect())
}

fn checkpoints(folder: &Path) -> CheckpointFolder {
    CheckpointFolder {
        folder: folder.to_owned(),
        recipe_hash: "recipe".to_owned(),
        order_version: 1,
        drills: Drills::default(),
        generation: Generation::default(),
    }
}

#[test]
fn a_run_on_a_gpu_learns_and_resumes_bit_for_bit() {
    let gpu = || Device::Cuda(Cuda::for_tests(Mode::Deterministic));
    let mut recipe = recipe();
    let mut undisturbed = Engine::for_training(&recipe, gpu()).unwrap();
    let start = bits(&undisturbed);
    let first = step(&mut undisturbed, 1, None, Recompute::None);

    let folder = tempfile::tempdir().unwrap();
    let state =
        State { step: 1, optimizer_steps: undisturbed.1.optimizer.step, ..State::default() };
    {
        let (engine, training) = &mut undisturbed;
        let (layout, buffers) = engine.checkpoint_buffers(training);
        let shard_lengths = &std::collections::BTreeMap::new();
        let contents = Contents { layout: &layout, frozen_hash: None, state, shard_lengths };
        checkpoint::save(
            &checkpoints(folder.path()),
            &ALONE,
            contents,
            &buffers,
            &Retention::newest(2),
        )
        .unwrap();
    }
    let second = step(&mut undisturbed, 1, None, Recompute::None);
    assert!(first.finite && second.finite && second.loss < first.loss, "{first:?} {second:?}");

    // Another seed makes every value that is not restored differ.
    recipe.seed += 1;
    let mut resumed = Engine::for_training(&recipe, gpu()).unwrap();
    assert_ne!(bits(&resumed), start);
    let loaded =
        resumed.0.restore(&mut resumed.1, &checkpoints(folder.path()), None, &ALONE).unwrap();
    resumed.1.optimizer.step = loaded.state.optimizer_steps;
    assert_eq!(loaded.state, state);
    let again = step(&mut resumed, 1, None, Recompute::None);
    assert_eq!(again, second);
    assert_eq!(bits(&resumed), bits(&undisturbed));
    assert_ne!(bits(&resumed), start);
}

#[test]
fn a_run_on_a_gpu_starts_from_the_weights_of_another_run() {
    let gpu = || Device::Cuda(Cuda::for_tests(Mode::Deterministic));
    let Loaded { mut recipe, yaml, hash, .. } = loaded("false", &[]);
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("recipe.yaml"), yaml).unwrap();
    let place = RunDirectory::open(folder.path()).unwrap().checkpoints();
    std::fs::create_dir(&place).unwrap();
    let mut trained = Engine::for_training(&recipe, gpu()).unwrap();
    step(&mut trained, 1, None, Recompute::None);
    {
        let (engine, training) = &mut trained;
        let frozen = checkpoint::save_frozen(&place, &engine.parameters.frozen).unwrap();
        let (layout, buffers) = engine.checkpoint_buffers(training);
        let (frozen_hash, state) = (Some(frozen.as_str()), State::default());
        let shard_lengths = &std::collections::BTreeMap::new();
        let contents = Contents { layout: &layout, frozen_hash, state, shard_lengths };
        let folder = CheckpointFolder { recipe_hash: hash, ..checkpoints(&place) };
        checkpoint::save(&folder, &ALONE, contents, &buffers, &Retention::newest(2)).unwrap();
    }
    recipe.seed += 1;
    recipe.init = Some(Init::Run(folder.path().to_owned()));
    let mut new = Engine::for_training(&recipe, gpu()).unwrap();
    assert_ne!(bits(&new)[0], bits(&trained)[0]);
    assert_ne!(values(&new.0.parameters.frozen), values(&trained.0.parameters.frozen));
    new.0.initialise(&ALONE).unwrap();
    assert_eq!(bits(&new)[0], bits(&trained)[0]);
    assert_eq!(values(&new.0.parameters.frozen), values(&trained.0.parameters.frozen));
    assert!(bits(&new)[1..].concat().iter().all(|bits| *bits == 0), "moments start at zero");
    // The layers read rounded copies of the weights.
    let losses = [&mut new, &mut trained].map(|run| step(run, 2, None, Recompute::None).loss);
    assert_eq!(losses[0].to_bits(), losses[1].to_bits());
}

#[test]
fn the_host_and_a_gpu_take_the_same_step_in_one_piece_or_in_several() {
    let recipe = recipe();
    let on = |device, micro_batch, recompute| {
        let mut run = Engine::for_training(&recipe, device).unwrap();
        step(&mut run, 3, micro_batch, recompute)
    };
    let host = on(Device::Host, None, Recompute::None);
    let gpu = || Device::Cuda(Cuda::for_tests(Mode::Fast));
    for (micro_batch, recompute) in [(None, Recompute::Mlp), (Some(2), Recompute::Block)] {
        let report = on(gpu(), micro_batch, recompute);
        // Some forty operations round to bf16, as in `gpu_step`.
        assert!((report.loss - host.loss).abs() < 0.05, "{report:?} {host:?}");
        let ratio = report.gradient_norm / host.gradient_norm;
        assert!((ratio - 1.0).abs() < 0.05, "{report:?} {host:?}");
    }
    let mut other = Engine::for_training(&recipe, gpu()).unwrap();
    let wrong = step(&mut other, 4, None, Recompute::None);
    assert!((wrong.loss - host.loss).abs() > 0.05, "{wrong:?} {host:?}");
}

#[test]
fn losses_with_a_regulariser_and_gauges_are_the_host_s_but_for_bf16() {
    for kind in ["vic_reg", "sig_reg"] {
        let sets = [&format!("loss.kind={kind}"), "loss.mask_equal_targets=false"];
        let recipe = loaded("true", &sets).recipe;
        let on = |device, seed| {
            let mut run = Engine::for_training(&recipe, device).unwrap();
            step(&mut run, seed, None, Recompute::None)
        };
        let gpu = || Device::Cuda(Cuda::for_tests(Mode::Fast));
        let (host, report, wrong) = (on(Device::Host, 3), on(gpu(), 3), on(gpu(), 4));
        // Some forty operations round to bf16, as in `gpu_step`.
        let apart = |report: &StepReport| (report.loss / host.loss - 1.0).abs();
        assert!(apart(&report) < 0.01, "{kind}: {report:?} {host:?}");
        assert!(apart(&wrong) > 0.01, "{kind}: {wrong:?} {host:?}");
        let ratio = report.gradient_norm / host.gradient_norm;
        assert!((ratio - 1.0).abs() < 0.05, "{kind}: {report:?} {host:?}");
        assert!(report.scale.is_none(), "{kind}: no scale without similarities");
        let [got, want] = [report, host].map(|report| report.gauges.unwrap());
        let rank = got.predicted.effective_rank / want.predicted.effective_rank;
        assert!((rank - 1.0).abs() < 0.02, "{kind}: {got:?} {want:?}");
        assert!((got.alignment - want.alignment).abs() < 0.02, "{kind}: {got:?} {want:?}");
    }
}

/// Values of the parameters of a text encoder and its projection, in the order of registration.
fn y_encoder(engine: &Engine, names: [&str; 2]) -> Vec<f32> {
    let layout = engine.model.layout();
    let own = |p: &&Parameter| names.iter().any(|name| p.name.starts_with(name));
    let all = values(&engine.parameters.trainable);
    layout.parameters.iter().filter(own).flat_map(|p| all[p.range.clone()].to_vec()).collect()
}

#[test]
fn the_average_of_the_text_encoder_follows_it_and_makes_the_targets() {
    let average = |engine: &Engine| y_encoder(engine, ["y_encoder.", "projections.y_head."]);
    let trained = |engine: &Engine| y_encoder(engine, ["y_trained.", "no other"]);
    for device in [Device::Host, Device::Cuda(Cuda::for_tests(Mode::Deterministic))] {
        let run = |update: &str| {
            let mut recipe = loaded("true", &[&format!("model.y_encoder.update={update}")]).recipe;
            if device == Device::Host {
                (recipe.device, recipe.precision) = (schema::Device::Host, Precision::F32);
            }
            Engine::for_training(&recipe, device).unwrap()
        };
        let mut alone = run("train");
        let mut moved = run("{ema: {decay: 0.75}}");
        let before = average(&moved.0);
        assert!(!before.is_empty() && trained(&moved.0) == before);
        // An emulated step takes seconds, and every micro-batch is embedded twice.
        let micro_batch = (device == Device::Host).then_some(2);
        let losses =
            [&mut alone, &mut moved].map(|run| step(run, 1, micro_batch, Recompute::None).loss);
        assert!((losses[0] - losses[1]).abs() < 1e-5, "both start the same: {losses:?}");
        let (after, toward) = (average(&moved.0), trained(&moved.0));
        let most = |a: &[f32], b: &[f32]| {
            a.iter().zip(b).fold(0.0f32, |most, (a, b)| most.max((a - b).abs()))
        };
        let both = before.iter().zip(&toward);
        let want: Vec<f32> = both.map(|(a, b)| 0.75 * a + 0.25 * b).collect();
        // Weights are below 4, and two products and a sum round by 2⁻²⁴ of that at most.
        assert!(most(&after, &want) < 1e-6, "{}", most(&after, &want));
        assert!(most(&toward, &before) > 1e-4, "the gradient trains the encoder itself");
        assert!(most(&after, &toward) > 1e-4, "the average stays behind");
        let texts = batch(5).target;
        let packed = Packed::new(device, texts.ids, texts.cu_seqlens).unwrap();
        let target = |engine: &Engine| engine.target(&packed).unwrap().concat();
        let lagging = most(&target(&moved.0), &target(&alone.0));
        assert!(lagging > 1e-5, "targets are those of the average: {lagging}");

        if device != Device::Host {
            continue;
        }
        let mut held = run("{ema: {decay: 1}}");
        let start = average(&held.0);
        for seed in 1..3 {
            step(&mut held, seed, None, Recompute::None);
        }
        assert_eq!(average(&held.0), start);
        let mut latest = run("{ema: {decay: 0}}");
        step(&mut latest, 1, None, Recompute::None);
        assert_eq!(average(&latest.0), trained(&latest.0));
    }
}

#[test]
fn an_evaluation_on_a_gpu_gives_the_host_s_embeddings() {
    let recipe = recipe();
    let embed = |device, seed| {
        let engine = Engine::for_inference(&recipe, device).unwrap();
        let Batch { frames, frames_shape, query, target, .. } = batch(seed);
        let packed = |text: Ragged| Packed::new(device, text.ids, text.cu_seqlens).unwrap();
        let frames = Tensor::from_u8(frames, &frames_shape);
        let predicted = engine.predict(frames, &packed(query)).unwrap();
        [predicted.concat(), engine.target(&packed(target)).unwrap().concat()]
    };
    let host = embed(Device::Host, 5);
    let gpu = |seed| embed(Device::Cuda(Cuda::for_tests(Mode::Fast)), seed);
    // The elements belong to unit vectors, and some forty operations round to bf16.
    let far = |got: &[Vec<f32>; 2]| {
        let pairs = got.concat().into_iter().zip(host.concat());
        pairs.fold(0.0f32, |most, (a, b)| most.max((a - b).abs()))
    };
    let right = far(&gpu(5));
    assert!(right > 0.0 && right < 0.03, "{right}");
    assert!(far(&gpu(6)) > 0.1, "another batch");
}

#[test]
fn a_trace_of_a_gpu_s_step_shows_its_kernels_within_the_step() {
    let device = Device::Cuda(Cuda::for_one_test(Mode::Fast));
    let recipe = recipe();
    let mut run = Engine::for_training(&recipe, device).unwrap();
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("recipe.yaml"), "").unwrap();
    let directory = RunDirectory::open(folder.path()).unwrap();
    let wanted = Trace { first_step: 0, steps: 1, ranks: vec![0] };
    let tracer = Tracer::new(Some(&wanted), &directory, 0, device);
    let mut meter = Meter::start(&recipe, device, "emulated GPU", tracer);
    for number in 0..2 {
        meter.begin(number, number == 1);
        let batch = uploaded(1, device);
        meter.count(&recipe.model, &batch);
        let input = Input {
            batch,
            micro_batch: None,
            recompute: Recompute::None,
            learning_rate: 1e-3,
            stop: false,
            spoiled: false,
            gauged: false,
        };
        let mut enter = |phase| {
            meter.enter(phase);
            Ok(())
        };
        step::step(&mut run.0, &mut run.1, &ALONE, input, &mut enter).unwrap();
    }
    // The phases are measured in the second step only and count for both steps.
    let interval = meter.close(2).interval;
    assert_eq!(interval.steps, 2);
    assert!(interval.device_memory_mib.unwrap() > 0, "{interval:?}");
    for phase in [Phase::Forward, Phase::Backward, Phase::Optimizer] {
        assert!(interval.phase_s[&phase] > 0.0, "{interval:?}");
    }
    assert!(!directory.trace(0, 1).exists(), "only the first step is traced");

    let text = std::fs::read(directory.trace(0, 0)).unwrap();
    let trace: serde_json::Value = serde_json::from_slice(&text).unwrap();
    let spans: Vec<_> = trace["traceEvents"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|event| event["ph"] == "X")
        .map(|event| {
            let number = |key: &str| event[key].as_f64().unwrap();
            let name = event["name"].as_str().unwrap().to_owned();
            (name, event["tid"].as_u64().unwrap(), number("ts"), number("ts") + number("dur"))
        })
        .collect();
    let (_, _, start, end) = spans.iter().find(|span| span.0 == "step 0").unwrap();
    let kernels: Vec<_> = spans.iter().filter(|span| span.1 > 0).collect();
    assert!(kernels.len() > 50, "{} kernels", kernels.len());
    assert!(kernels.iter().any(|span| span.0.contains("adamw")), "{kernels:?}");
    // The clocks of the GPU and the host start within a millisecond of each other.
    let inside = |span: &&&(String, u64, f64, f64)| span.2 >= start - 1e3 && span.3 <= end + 1e3;
    assert_eq!(kernels.iter().filter(inside).count(), kernels.len());
}
