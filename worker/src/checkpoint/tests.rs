//! Tests of saving beside the steps, of parts that fail, of damaged checkpoints, and of shards that
//! are loaded by another number of ranks.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::time::Instant;

use vljepa_kernels::DType;
use vljepa_kernels::testing::normal;
use vljepa_model::{Group, Initial, Parameter};
use vljepa_recipes::protocol::{CheckpointOrder, FromSupervisor, FromWorker, Hello, Outcome, Part};

use super::publish::Draft;
use super::*;
use crate::collectives::{Collectives, Solo, StandIn, Threads};
use crate::rank::control::Control;

const LEN: usize = 640;
static NO_SHARDS: BTreeMap<String, String> = BTreeMap::new();
const ALONE: Collectives = Collectives::Solo(Solo);

fn layout() -> Layout {
    flat_layout(LEN)
}

/// One parameter, and 40 elements of padding.
pub(super) fn flat_layout(len: usize) -> Layout {
    let parameter = Parameter {
        name: "weight".to_owned(),
        shape: vec![2, len / 2 - 20],
        group: Group::Predictor,
        trainable: true,
        decay: true,
        range: 0..len - 40,
        initial: Initial::Constant(0.0),
    };
    Layout { parameters: vec![parameter], trainable_len: len, frozen_len: 0 }
}

pub(super) fn checkpoints(folder: &Path) -> CheckpointFolder {
    CheckpointFolder {
        folder: folder.to_owned(),
        recipe_hash: "recipe".to_owned(),
        order_version: 1,
        drills: Drills::default(),
        generation: Generation::default(),
    }
}

fn state(step: u64) -> State {
    State { step, samples: 8 * step, ..State::default() }
}

pub(super) fn contents(layout: &Layout, step: u64) -> Contents<'_> {
    Contents { layout, frozen_hash: None, state: state(step), shard_lengths: &NO_SHARDS }
}

/// Weights and moments of one rank.
struct Model {
    tensors: [Tensor; 3],
    range: Range<usize>,
}

impl Model {
    fn zeros(range: Range<usize>) -> Self {
        let zeros = |len| Tensor::from_f32(vec![0.0; len], &[len]);
        Self { tensors: [zeros(LEN), zeros(range.len()), zeros(range.len())], range }
    }

    fn random(seed: u64) -> Self {
        let values = |seed| Tensor::from_f32(normal(seed, LEN), &[LEN]);
        Self { tensors: [values(seed), values(seed + 1), values(seed + 2)], range: 0..LEN }
    }

    fn buffers(&mut self) -> Buffers<'_> {
        let [weights, first, second] = &mut self.tensors;
        Buffers { weights, moments: [first, second], range: self.range.clone() }
    }

    fn values(&self, i: usize) -> &[f32] {
        self.tensors[i].view().host_f32("test", "values").unwrap()
    }

    fn save(&mut self, folder: &Path, step: u64, keep: usize) {
        let layout = layout();
        let contents = contents(&layout, step);
        let retention = Retention::newest(keep);
        save(&checkpoints(folder), &ALONE, contents, &self.buffers(), &retention).unwrap();
    }

    fn begin(&mut self, saver: &mut Saver, ranks: &Collectives, step: u64) {
        let (layout, since) = (layout(), Instant::now());
        let save = Save { contents: contents(&layout, step), since, awaited: false };
        saver.begin(ranks, &self.buffers(), save);
    }

    fn load(&mut self, folder: &Path) -> anyhow::Result<Loaded> {
        load_newest(&checkpoints(folder), &ALONE, &layout(), &mut self.buffers())
    }

    fn load_step(&mut self, folder: &Path, step: u64) -> anyhow::Result<Loaded> {
        load_step(&checkpoints(folder), step, &ALONE, &layout(), &mut self.buffers())
    }
}

fn saver(
    folder: &Path,
    ranks: &Collectives,
    control: &Control,
    model: &mut Model,
    keep: usize,
) -> Saver {
    let retention = Retention::newest(keep);
    Saver::new(checkpoints(folder), ranks, control, &model.buffers(), retention).unwrap()
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_save_beside_the_steps_holds_what_stood_there_and_equals_one_that_waits() {
    let folder = tempfile::tempdir().unwrap();
    let [beside, waiting] = ["beside", "waiting"].map(|name| folder.path().join(name));
    let mut model = Model::random(1);
    model.save(&waiting, 3, 2);
    let control = Control::alone();
    let mut saver = saver(&beside, &ALONE, &control, &mut model, 2);
    model.begin(&mut saver, &ALONE, 3);
    // The next step changes all values at once.
    model.tensors = Model::random(9).tensors;
    let saved = saver.wait().unwrap();
    assert_eq!(saved.step, 3);
    let saved = saved.result.unwrap();
    assert_eq!(saved.name, "step-00000003");
    assert!(saved.stall_s <= saved.durable_s);
    assert!(saver.poll().is_none(), "said once");
    for file in ["manifest.json", "rank-0000.safetensors"] {
        let read = |run: &Path| fs::read(run.join("step-00000003").join(file)).unwrap();
        assert!(read(&beside) == read(&waiting), "{file}");
    }
    model.begin(&mut saver, &ALONE, 4);
    assert!(saver.wait().unwrap().result.is_ok(), "the room is used again");
    let mut loaded = Model::zeros(0..LEN);
    assert_eq!(loaded.load(&beside).unwrap().state, state(4));
    assert!((0..3).all(|i| loaded.values(i) == model.values(i)));
}

#[test]
fn a_save_that_fails_leaves_nothing_of_itself_and_the_others_alone() {
    let folder = tempfile::tempdir().unwrap();
    let mut model = Model::random(1);
    model.save(folder.path(), 1, 1);
    let control = Control::alone();
    let mut saver = saver(folder.path(), &ALONE, &control, &mut model, 1);
    fs::create_dir_all(folder.path().join(".step-00000002.writing/rank-0000.safetensors")).unwrap();
    model.begin(&mut saver, &ALONE, 2);
    let error = format!("{:#}", saver.wait().unwrap().result.unwrap_err());
    let told = ["checkpoint step-00000002 could not be written", "rank 0", "rank-0000.safetensors"];
    assert!(told.iter().all(|part| error.contains(part)), "{error}");
    assert_eq!(names(folder.path()), ["step-00000001"]);
    model.begin(&mut saver, &ALONE, 3);
    assert!(saver.wait().unwrap().result.is_ok());
    assert_eq!(names(folder.path()), ["step-00000003"], "keep: 1");
}

/// Starts a supervisor that answers each of rank 0's parts with the next of `orders`. Its thread
/// returns the parts and results that rank 0 reported.
fn supervised(orders: Vec<CheckpointOrder>) -> (Control, std::thread::JoinHandle<Vec<FromWorker>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let thread = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let say = |stream: &mut TcpStream, message: &FromSupervisor| {
            writeln!(stream, "{}", serde_json::to_string(message).unwrap()).unwrap();
        };
        let mut orders = orders.into_iter();
        let mut said = Vec::new();
        for line in BufReader::new(stream.try_clone().unwrap()).lines() {
            match serde_json::from_str(&line.unwrap()).unwrap() {
                FromWorker::Hello(_) => say(&mut stream, &FromSupervisor::Welcome),
                FromWorker::Part { step, part } => {
                    let order = orders.next().unwrap();
                    assert_eq!(order.step(), step);
                    // An order for another step must be ignored by this save.
                    let stale = CheckpointOrder::Settled { step: 0, error: None };
                    say(&mut stream, &FromSupervisor::Checkpoint { order: stale });
                    say(&mut stream, &FromSupervisor::Checkpoint { order });
                    said.push(FromWorker::Part { step, part });
                }
                message @ (FromWorker::Saved { .. } | FromWorker::NotSaved { .. }) => {
                    said.push(message);
                }
                _ => {}
            }
        }
        said
    });
    let hello = Hello {
        token: String::new(),
        rank: 0,
        world_size: 2,
        host: String::new(),
        pid: 1,
        device: String::new(),
        build: String::new(),
        recipe_hash: String::new(),
    };
    (Control::connect(&address, hello, std::time::Duration::from_secs(60)).unwrap(), thread)
}

#[test]
fn a_part_that_fails_on_one_rank_drops_the_checkpoint_and_the_next_is_published() {
    let folder = tempfile::tempdir().unwrap();
    let two = Collectives::StandIn(StandIn { world_size: 2 });
    let mut model = Model::random(1);
    model.save(folder.path(), 1, 3);
    // Files that both ranks will write at step 3.
    let elsewhere = tempfile::tempdir().unwrap();
    let part = |rank: usize| {
        let range = Shards::new(LEN, 2).of(rank);
        let values = [0, 1, 2].map(|i| &model.values(i)[range.clone()]);
        write_part(elsewhere.path(), rank, range.clone(), values).unwrap()
    };
    let files = vec![part(0), part(1)];
    let (control, supervisor) = supervised(vec![
        CheckpointOrder::Drop { step: 2, error: "rank 1: no space".to_owned() },
        CheckpointOrder::Publish { step: 3, files: files.clone() },
    ]);
    let mut saver = saver(folder.path(), &two, &control, &mut model, 3);
    model.begin(&mut saver, &two, 2);
    let error = format!("{:#}", saver.wait().unwrap().result.unwrap_err());
    assert!(error.contains("step-00000002") && error.contains("rank 1: no space"), "{error}");
    assert_eq!(names(folder.path()), ["step-00000001"]);

    let writing = folder.path().join(".step-00000003.writing");
    fs::create_dir_all(&writing).unwrap();
    let name = "rank-0001.safetensors";
    fs::copy(elsewhere.path().join(name), writing.join(name)).unwrap();
    model.begin(&mut saver, &two, 3);
    assert!(saver.wait().unwrap().result.is_ok());
    control.report_last(FromWorker::Finished { outcome: Outcome::Stopped, step: 3 });
    let said = supervisor.join().unwrap();
    let own = |step| FromWorker::Part { step, part: Part::Written { file: files[0].clone() } };
    assert_eq!([&said[0], &said[2]], [&own(2), &own(3)]);
    assert!(
        matches!(&said[1], FromWorker::NotSaved { step: 2, error } if error.contains("rank 1"))
    );
    assert!(matches!(&said[3], FromWorker::Saved { step: 3, .. }));
    let mut loaded = Model::zeros(0..LEN);
    assert_eq!(loaded.load(folder.path()).unwrap().name.as_deref(), Some("step-00000003"));
    assert!((0..3).all(|i| loaded.values(i) == model.values(i)));
}

/// Publishes a checkpoint with the parts of three ranks.
fn save_in_three(model: &Model, folder: &Path, step: u64) {
    let (layout, retention) = (layout(), Retention::newest(9));
    let draft = Draft::new(&checkpoints(folder), contents(&layout, step), 3, &retention);
    draft.make_folder().unwrap();
    let part = |rank| {
        let range = Shards::new(LEN, 3).of(rank);
        let values = [0, 1, 2].map(|i| &model.values(i)[range.clone()]);
        write_part(&draft.temporary, rank, range.clone(), values).unwrap()
    };
    draft.publish((0..3).map(part).collect()).unwrap();
}

#[test]
fn shards_of_three_ranks_load_whole_and_as_shards_of_two() {
    let folder = tempfile::tempdir().unwrap();
    let model = Model::random(1);
    save_in_three(&model, folder.path(), 5);
    let halves = [0, 1].map(|rank| Shards::new(LEN, 2).of(rank));
    for own in [0..LEN, halves[0].clone(), halves[1].clone()] {
        let mut loaded = Model::zeros(own.clone());
        assert_eq!(loaded.load(folder.path()).unwrap().state, state(5));
        assert!(loaded.values(0) == model.values(0), "all weights are read");
        assert!((1..3).all(|i| loaded.values(i) == &model.values(i)[own.clone()]), "{own:?}");
    }
}

/// Loads the newest checkpoint as each of `ranks` ranks, and returns what each has afterwards.
fn load_together(folder: &Path, ranks: usize, sharded: bool) -> Vec<(Loaded, Model)> {
    let shards = Shards::new(LEN, ranks);
    Threads::run(ranks, |collectives| {
        let own = if sharded { shards.of(collectives.rank()) } else { 0..LEN };
        let room = if sharded { shards.slot() } else { shards.room() };
        let moment = || Tensor::padded(Device::Host, DType::F32, &[own.len()], room).unwrap();
        let weights = Tensor::padded(Device::Host, DType::F32, &[LEN], shards.room()).unwrap();
        let tensors = [weights, moment(), moment()];
        let mut model = Model { tensors, range: own };
        let buffers = &mut model.buffers();
        let loaded = load_newest(&checkpoints(folder), &collectives, &layout(), buffers);
        (loaded.unwrap(), model)
    })
}

#[test]
fn any_number_of_ranks_reads_a_checkpoint_once_and_each_has_what_it_needs() {
    let folder = tempfile::tempdir().unwrap();
    let model = Model::random(1);
    save_in_three(&model, folder.path(), 5);
    for ranks in [1, 2, 3, 4, 7, 10, 13] {
        for sharded in [false, true] {
            let loaded = load_together(folder.path(), ranks, sharded);
            let read: u64 = loaded.iter().map(|(loaded, _)| loaded.reads.bytes).sum();
            assert_eq!(read, 12 * LEN as u64, "{ranks} ranks");
            for (loaded, own) in &loaded {
                assert_eq!(loaded.state, state(5));
                assert!(own.values(0) == model.values(0), "{ranks} ranks have all weights");
                let right = (1..3).all(|i| own.values(i) == &model.values(i)[own.range.clone()]);
                assert!(right, "{ranks} ranks, {:?}", own.range);
            }
        }
    }
}

#[test]
fn empty_parts_between_others_hide_nothing_behind_them() {
    let folder = tempfile::tempdir().unwrap();
    let model = Model::random(1);
    let (layout, retention) = (layout(), Retention::newest(9));
    let draft = Draft::new(&checkpoints(folder.path()), contents(&layout, 5), 4, &retention);
    draft.make_folder().unwrap();
    let ends = [0, 64, 64, 512, LEN];
    let part = |rank: usize| {
        let range = ends[rank]..ends[rank + 1];
        let values = [0, 1, 2].map(|i| &model.values(i)[range.clone()]);
        write_part(&draft.temporary, rank, range.clone(), values).unwrap()
    };
    draft.publish((0..4).map(part).collect()).unwrap();
    for ranks in [1, 3] {
        for (_, own) in load_together(folder.path(), ranks, true) {
            assert!(own.values(0) == model.values(0));
            assert!((1..3).all(|i| own.values(i) == &model.values(i)[own.range.clone()]));
        }
    }
}

#[test]
fn a_damaged_checkpoint_is_passed_over_with_the_reason_and_never_the_only_hope() {
    let whole = tempfile::tempdir().unwrap();
    let (old, new) = (Model::random(1), Model::random(7));
    save_in_three(&old, whole.path(), 4);
    save_in_three(&new, whole.path(), 8);
    let part = "step-00000008/rank-0001.safetensors";
    let change = |path: &Path, change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = fs::read(path).unwrap();
        change(&mut bytes);
        fs::write(path, bytes).unwrap();
    };
    type Damage<'a> = &'a dyn Fn(&Path);
    let manifest = "step-00000008/manifest.json";
    let step = |b: &mut Vec<u8>| {
        let text = String::from_utf8(std::mem::take(b)).unwrap();
        *b = text.replace("\"step\": 8", "\"step\": 9").into_bytes();
    };
    let cases: [(Damage<'_>, &str); 6] = [
        (&|run| change(&run.join(part), &|b| b[700] ^= 8), "damaged: its hash differs"),
        (&|run| change(&run.join(part), &|b| b.truncate(b.len() - 9)), "bytes instead of"),
        (&|run| fs::remove_file(run.join(part)).unwrap(), "rank-0001.safetensors is missing"),
        (&|run| change(&run.join(manifest), &|b| b.truncate(40)), "manifest"),
        (&|run| change(&run.join(manifest), &step), "manifest.json is damaged: its hash differs"),
        (&|run| fs::remove_file(run.join(manifest)).unwrap(), "no manifest"),
    ];
    for (damage, reason) in cases {
        let run = tempfile::tempdir().unwrap();
        for step in ["step-00000004", "step-00000008"] {
            fs::create_dir(run.path().join(step)).unwrap();
            for file in names(&whole.path().join(step)) {
                let name = Path::new(step).join(file);
                fs::copy(whole.path().join(&name), run.path().join(&name)).unwrap();
            }
        }
        damage(run.path());
        let mut loaded = Model::zeros(0..LEN);
        let found = loaded.load(run.path()).unwrap();
        assert_eq!(found.name.as_deref(), Some("step-00000004"), "{reason}");
        let [said] = &found.passed_over[..] else { panic!("{found:?}") };
        assert!(said.contains("step-00000008") && said.contains(reason), "{said}");
        assert!(loaded.values(0) == old.values(0) && loaded.values(0) != new.values(0));
        fs::remove_dir_all(run.path().join("step-00000004")).unwrap();
        let error = loaded.load(run.path()).unwrap_err().to_string();
        assert!(error.contains("no checkpoint verifies") && error.contains(reason), "{error}");
    }
}

#[test]
fn what_a_kill_left_half_written_goes_and_what_is_whole_stays() {
    let folder = tempfile::tempdir().unwrap();
    let mut model = Model::random(1);
    model.save(folder.path(), 1, 2);
    let half = folder.path().join(".step-00000002.writing");
    fs::create_dir(&half).unwrap();
    fs::write(half.join("rank-0000.safetensors"), [1, 2, 3]).unwrap();
    let mut loaded = Model::zeros(0..LEN);
    assert_eq!(loaded.load(folder.path()).unwrap().name.as_deref(), Some("step-00000001"));
    clean(folder.path()).unwrap();
    assert_eq!(names(folder.path()), ["step-00000001"]);
    clean(&folder.path().join("none")).unwrap();
}

#[test]
fn the_newest_are_kept_and_those_that_a_resumed_run_left_behind_go() {
    let folder = tempfile::tempdir().unwrap();
    let mut model = Model::random(1);
    for step in [1, 2, 3] {
        model.save(folder.path(), step, 2);
    }
    assert_eq!(names(folder.path()), ["step-00000002", "step-00000003"]);
    // The run resumed from step 1, which somebody had restored, because the later checkpoints did
    // not verify.
    model.save(folder.path(), 2, 2);
    assert_eq!(names(folder.path()), ["step-00000002"]);
}

#[test]
fn the_checkpoint_of_a_step_is_read_and_no_other_in_its_place() {
    let folder = tempfile::tempdir().unwrap();
    let models = [2, 4, 6].map(|step| {
        let mut model = Model::random(step);
        model.save(folder.path(), step, 3);
        model
    });
    let mut loaded = Model::zeros(0..LEN);
    for (step, model) in [2, 4, 6].into_iter().zip(&models) {
        assert_eq!(loaded.load_step(folder.path(), step).unwrap().state, state(step));
        assert!((0..3).all(|i| loaded.values(i) == model.values(i)), "{step}");
    }
    let error = loaded.load_step(folder.path(), 5).unwrap_err().to_string();
    let said = "step-00000005: does not exist; the run also has the checkpoints of 2, 4, 6";
    assert!(error.contains(said), "{error}");
    fs::remove_file(folder.path().join("step-00000004/rank-0000.safetensors")).unwrap();
    let error = loaded.load_step(folder.path(), 4).unwrap_err().to_string();
    for said in ["step-00000004: does not verify", "rank-0000.safetensors is missing", "of 2, 6"] {
        assert!(error.contains(said), "{error}");
    }
    // The values of step 6, which was read last, are still there.
    assert!(loaded.values(0) == models[2].values(0));
}
