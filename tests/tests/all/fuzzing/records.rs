//! Damaged checkpoints and messages of the control plane.

use std::collections::BTreeMap;
use std::path::Path;

use vljepa_kernels::Tensor;
use vljepa_model::{Group, Initial, Layout, Parameter};
use vljepa_recipes::protocol::{Checked, Drill, FromSupervisor, FromWorker, Job};
use vljepa_worker::checkpoint::{
    Buffers, CheckpointFolder, Contents, Loaded, Retention, State, load_newest, save,
};
use vljepa_worker::collectives::{Collectives, Solo};
use vljepa_worker::rank::drill::Drills;
use vljepa_worker::rank::generation::Generation;

use super::fuzz;

const LEN: usize = 64;
const ALONE: Collectives = Collectives::Solo(Solo);

fn layout() -> Layout {
    let parameter = Parameter {
        name: "weight".to_owned(),
        shape: vec![2, 20],
        group: Group::Predictor,
        trainable: true,
        decay: true,
        range: 0..40,
        initial: Initial::Constant(0.0),
    };
    Layout { parameters: vec![parameter], trainable_len: LEN, frozen_len: 0 }
}

fn checkpoints(folder: &Path) -> CheckpointFolder {
    CheckpointFolder {
        folder: folder.to_owned(),
        recipe_hash: "recipe".to_owned(),
        order_version: 2,
        drills: Drills::default(),
        generation: Generation::default(),
    }
}

/// Weights and moments.
fn tensors(value: f32) -> [Tensor; 3] {
    [0.0, 1.0, 2.0].map(|offset| Tensor::from_f32(vec![value + offset; LEN], &[LEN]))
}

fn buffers(tensors: &mut [Tensor; 3]) -> Buffers<'_> {
    let [weights, first, second] = tensors;
    Buffers { weights, moments: [first, second], range: 0..LEN }
}

fn save_step(folder: &Path, step: u64) {
    let lengths = BTreeMap::from([("clips".to_owned(), "0123".to_owned())]);
    let state = State { step, samples: 8 * step, stage_step: step, ..State::default() };
    let layout = layout();
    let contents = Contents { layout: &layout, frozen_hash: None, state, shard_lengths: &lengths };
    save(
        &checkpoints(folder),
        &ALONE,
        contents,
        &buffers(&mut tensors(step as f32)),
        &Retention::newest(9),
    )
    .unwrap();
}

/// What a run loads, with all values of its buffers.
fn load(folder: &Path) -> anyhow::Result<(Loaded, Vec<f32>)> {
    let mut tensors = tensors(0.0);
    let loaded = load_newest(&checkpoints(folder), &ALONE, &layout(), &mut buffers(&mut tensors))?;
    let values = tensors
        .iter()
        .flat_map(|tensor| tensor.view().host_f32("test", "values").unwrap().to_vec());
    let values = values.collect();
    Ok((loaded, values))
}

#[test]
fn a_damaged_checkpoint_is_passed_over_or_refused() {
    let test = "fuzzing::records::a_damaged_checkpoint_is_passed_over_or_refused";
    fuzz(test, 200, |folder, draw| {
        let folder = folder.join("checkpoints");
        std::fs::create_dir_all(&folder).unwrap();
        save_step(&folder, 3);
        save_step(&folder, 5);
        let (whole, newest) = load(&folder).unwrap();
        assert_eq!(whole.state.step, 5);
        let name = draw.pick(&["manifest.json", "rank-0000.safetensors"]);
        let file = &folder.join("step-00000005").join(name);
        let bytes = std::fs::read(file).unwrap();
        let damaged = match std::str::from_utf8(&bytes) {
            Ok(text) => draw.damaged_text(text),
            Err(_) => draw.damaged(&bytes),
        };
        std::fs::write(file, &damaged).unwrap();
        let accepted = match load(&folder) {
            Ok((loaded, values)) if loaded.state.step == 3 => {
                assert!(loaded.passed_over[0].starts_with("step-00000005: "), "{loaded:?}");
                assert_eq!(values[..2], [3.0, 3.0]);
                false
            }
            Ok((loaded, values)) => {
                assert_eq!((loaded, values), (whole, newest), "damage went unnoticed");
                true
            }
            Err(error) => {
                assert!(format!("{error:#}").contains("step-00000005"), "{error:#}");
                false
            }
        };
        std::fs::remove_dir_all(&folder).unwrap();
        accepted
    });
}

#[test]
fn a_damaged_message_is_refused_or_means_what_it_says() {
    let test = "fuzzing::records::a_damaged_message_is_refused_or_means_what_it_says";
    let messages = [
        r#"{"message": "heartbeat", "step": 5, "phase": "forward", "collective": 7}"#,
        r#"{"message": "saved", "step": 5, "name": "step-5", "stall_s": 0.5, "durable_s": 1e3}"#,
        r#"{"message": "knock", "token": "secret"}"#,
        r#"{"message": "rendezvous", "id": "AAAA"}"#,
        r#"{"message": "part", "step": 4, "part": {"part": "written", "file": {"name": "r",
            "bytes": 5, "blake3": "00", "range": {"start": 0, "end": 7}}}}"#,
        r#"{"job": "train", "attempt": 1, "world_size": 2, "drills": []}"#,
        "kill:rank=1,step=7,attempt=2",
        "slow:rank=0,step=3,phase=forward,seconds=0.5",
    ];
    fuzz(test, 50_000, |_, draw| {
        let message = draw.pick(&messages);
        let bytes = draw.damaged_text(message);
        // Whatever is accepted can be sent on and read again.
        let mut accepted = false;
        if let Ok(message) = serde_json::from_slice::<FromWorker>(&bytes) {
            let text = serde_json::to_string(&message).unwrap();
            assert_eq!(serde_json::from_str::<FromWorker>(&text).unwrap(), message, "{text}");
            accepted = true;
        }
        if let Ok(job) = serde_json::from_slice::<Job>(&bytes) {
            let text = serde_json::to_string(&job).unwrap();
            assert_eq!(serde_json::from_str::<Job>(&text).unwrap(), job, "{text}");
        }
        drop(serde_json::from_slice::<FromSupervisor>(&bytes));
        drop(serde_json::from_slice::<Checked>(&bytes));
        if let Ok(drill) = String::from_utf8_lossy(&bytes).parse::<Drill>() {
            let text = serde_json::to_string(&drill).unwrap();
            assert_eq!(serde_json::from_str::<Drill>(&text).unwrap(), drill, "{text}");
            accepted = true;
        }
        accepted
    });
}
