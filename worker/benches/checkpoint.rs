//! Times saving and loading a checkpoint of the paper's size, and prints one line of JSON.
//!
//! `cargo bench -p vljepa-worker --bench checkpoint -- --folder FOLDER` writes 0.8 B parameters
//! with both moments (9.6 GB) into FOLDER as the parts of `--ranks` ranks, one after another on
//! this one disk, and deletes them again. It needs the memory of two parts and of the weights. For
//! each rank it times the snapshot, which is the step's stall, and the work of the writing thread
//! (hash, write, fsync). Then it loads the checkpoint from a cold cache as one of these ranks,
//! which verifies every file. The result also has the disk's own rate for as many bytes in the same
//! run, and a complete save of one rank's part of `--of` ranks.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "the benchmark's result")]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use serde_json::json;
use vljepa_kernels::device::Snapshot;
use vljepa_kernels::{DType, Device, Tensor};
use vljepa_model::{Group, Initial, Layout, Parameter};
use vljepa_worker::checkpoint::{
    Buffers, CheckpointFolder, Contents, Entry, FORMAT_VERSION, MANIFEST, Manifest, Retention,
    Save, Saver, State, load_newest, write_part,
};
use vljepa_worker::collectives::{Collectives, Solo};
use vljepa_worker::rank::control::Control;
use vljepa_worker::sharding::Shards;

#[derive(Debug, Parser)]
struct Arguments {
    /// Empty or new folder on the disk that is measured.
    #[arg(long)]
    folder: PathBuf,
    /// Number of trained parameters.
    #[arg(long, default_value_t = 795_864_833)]
    parameters: usize,
    /// Number of ranks whose parts are written one after another.
    #[arg(long, default_value_t = 8)]
    ranks: usize,
    /// World size for the complete save of one rank's part.
    #[arg(long, default_value_t = 192)]
    of: usize,
    /// Passed by `cargo bench`; ignored.
    #[arg(long, hide = true)]
    bench: bool,
}

const ALONE: Collectives = Collectives::Solo(Solo);

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let &Arguments { ref folder, parameters, ranks, of, .. } = arguments;
    anyhow::ensure!(ranks > 0 && of > 0, "at least one rank");
    fs::create_dir_all(folder)?;
    anyhow::ensure!(fs::read_dir(folder)?.next().is_none(), "{} is not empty", folder.display());
    let layout = layout(parameters.next_multiple_of(Layout::ALIGNMENT));
    let bytes = layout.trainable_len * 12;
    let raw_s = raw(&folder.join("raw"), bytes)?;
    let (stalls_s, parts_s, publish_s) = save(folder, &layout, ranks)?;
    let load_s = load(folder, &layout, ranks)?;
    fs::remove_dir_all(folder)?;
    let share = save_share(folder, &layout, of)?;
    fs::remove_dir_all(folder)?;
    let largest = stalls_s.iter().copied().fold(0.0, f64::max);
    let durable_s: f64 = parts_s.iter().sum::<f64>() + publish_s;
    #[expect(clippy::cast_precision_loss, reason = "bytes are far below 2^53")]
    let rate = |seconds: f64| round(bytes as f64 / seconds / 1e9);
    println!(
        "{}",
        json!({
            "parameters": parameters,
            "bytes": bytes,
            "raw_write": {"seconds": round(raw_s), "gb_per_s": rate(raw_s)},
            "save": {
                "parts": ranks,
                "stall_s_of_a_rank": round(largest),
                "durable_s_of_each_part": parts_s.iter().map(|s| round(*s)).collect::<Vec<_>>(),
                "durable_s_of_all_on_one_disk": round(durable_s),
                "gb_per_s": rate(durable_s),
                "of_raw_rate": round(raw_s / durable_s),
            },
            "load": {"seconds": round(load_s), "gb_per_s": rate(load_s)},
            "one_part_of": {
                "ranks": of, "bytes": share.bytes,
                "stall_s": round(share.stall_s), "durable_s": round(share.durable_s),
            },
            "version": env!("CARGO_PKG_VERSION"),
        })
    );
    Ok(())
}

fn round(value: f64) -> f64 {
    (value * 1e4).round() / 1e4
}

fn layout(len: usize) -> Layout {
    let parameter = Parameter {
        name: "all".to_owned(),
        shape: vec![len],
        group: Group::Predictor,
        trainable: true,
        decay: true,
        range: 0..len,
        initial: Initial::Constant(0.0),
    };
    Layout { parameters: vec![parameter], trainable_len: len, frozen_len: 0 }
}

/// Fills `values` with numbers that no disk can compress. Equal elements of equal tensors get equal
/// numbers.
fn fill(values: &mut [f32], first: usize, tensor: u64) {
    for (value, i) in values.iter_mut().zip(first as u64..) {
        let mixed = (i ^ tensor << 40).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        // The exponent's first bit stays clear, so every number is finite.
        *value = f32::from_bits(u32::try_from(mixed >> 32).unwrap_or(0) & 0xBFFF_FFFF);
    }
}

/// Returns the seconds of a sequential write of `bytes` bytes with fsync.
fn raw(path: &Path, bytes: usize) -> anyhow::Result<f64> {
    let mut block = vec![0.0f32; 1 << 20];
    fill(&mut block, 0, 7);
    let block: &[u8] = bytemuck::cast_slice(&block);
    let started = Instant::now();
    let mut file = File::create(path)?;
    let mut left = bytes;
    while left > 0 {
        let some = left.min(block.len());
        file.write_all(&block[..some])?;
        left -= some;
    }
    file.sync_all()?;
    let seconds = started.elapsed().as_secs_f64();
    fs::remove_file(path)?;
    Ok(seconds)
}

/// Writes the parts of all ranks and publishes the checkpoint. Returns the seconds of each
/// snapshot, of each part, and of the publication.
fn save(folder: &Path, layout: &Layout, ranks: usize) -> anyhow::Result<(Vec<f64>, Vec<f64>, f64)> {
    let len = layout.trainable_len;
    let writing = folder.join(".step-00000001.writing");
    fs::create_dir_all(&writing)?;
    let (mut stalls_s, mut parts_s, mut files) = (Vec::new(), Vec::new(), Vec::new());
    for rank in 0..ranks {
        let range = Shards::new(len, ranks).of(rank);
        let mut tensors = Vec::new();
        for tensor in 0..3 {
            let mut values = vec![0.0; range.len()];
            fill(&mut values, range.start, tensor);
            tensors.push(Tensor::from_f32(values, &[range.len()]));
        }
        let mut room = Vec::new();
        for _ in 0..3 {
            room.push(Snapshot::new(Device::Host, range.len())?);
        }
        let started = Instant::now();
        for (snapshot, tensor) in room.iter_mut().zip(&tensors) {
            snapshot.take(tensor.view())?;
        }
        stalls_s.push(started.elapsed().as_secs_f64());
        drop(tensors);
        let started = Instant::now();
        let values = [room[0].values()?, room[1].values()?, room[2].values()?];
        files.push(write_part(&writing, rank, range, values)?);
        parts_s.push(started.elapsed().as_secs_f64());
    }
    let started = Instant::now();
    let entry = Entry { name: "all".to_owned(), shape: vec![len], start: 0 };
    let manifest = Manifest {
        version: FORMAT_VERSION,
        state: State { step: 1, ..State::default() },
        world_size: ranks,
        recipe_hash: String::new(),
        order_version: 1,
        shard_lengths: BTreeMap::new(),
        parameters: vec![entry],
        files,
        frozen: None,
        hash: String::new(),
    };
    fs::write(writing.join(MANIFEST), manifest.to_json()?)?;
    fs::rename(&writing, folder.join("step-00000001"))?;
    File::open(folder)?.sync_all()?;
    Ok((stalls_s, parts_s, started.elapsed().as_secs_f64()))
}

fn checkpoints(folder: &Path) -> CheckpointFolder {
    CheckpointFolder {
        folder: folder.to_owned(),
        recipe_hash: String::new(),
        order_version: 1,
        drills: vljepa_worker::rank::drill::Drills::default(),
        generation: vljepa_worker::rank::generation::Generation::default(),
    }
}

/// Returns the seconds to verify and load the checkpoint as rank 0, with its shard of the moments.
fn load(folder: &Path, layout: &Layout, ranks: usize) -> anyhow::Result<f64> {
    for entry in fs::read_dir(folder.join("step-00000001"))? {
        let file = File::open(entry?.path())?;
        posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED)?;
    }
    let own = Shards::new(layout.trainable_len, ranks).of(0);
    let zeros = |len: usize| Tensor::zeros(Device::Host, DType::F32, &[len]);
    let mut weights = zeros(layout.trainable_len)?;
    let (mut first, mut second) = (zeros(own.len())?, zeros(own.len())?);
    let moments = [&mut first, &mut second];
    let mut buffers = Buffers { weights: &mut weights, moments, range: own.clone() };
    let started = Instant::now();
    load_newest(&checkpoints(folder), &ALONE, layout, &mut buffers)?;
    let seconds = started.elapsed().as_secs_f64();
    check(&weights, 0, 0)?;
    check(&second, own.start, 2)?;
    Ok(seconds)
}

/// Checks that a tensor's elements were loaded as they were saved. Its first element has index
/// `start` in the flat buffer.
fn check(tensor: &Tensor, start: usize, number: u64) -> anyhow::Result<()> {
    let values = tensor.view().host_f32("check", "values")?;
    let mut wanted = vec![0.0; 1 << 16];
    for (i, values) in values.chunks(wanted.len()).enumerate() {
        let wanted = &mut wanted[..values.len()];
        fill(wanted, start + (i << 16), number);
        let same = values.iter().zip(wanted).all(|(a, b)| a.to_bits() == b.to_bits());
        anyhow::ensure!(same, "tensor {number} was not loaded as it was saved");
    }
    Ok(())
}

/// Size of one rank's part and seconds to save it.
struct Share {
    bytes: usize,
    stall_s: f64,
    durable_s: f64,
}

/// Times a complete save: snapshot, writing thread and publication. The second of two saves counts.
fn save_share(folder: &Path, layout: &Layout, ranks: usize) -> anyhow::Result<Share> {
    let Range { start, end } = Shards::new(layout.trainable_len, ranks).of(0);
    let len = end - start;
    let layout = self::layout(len);
    let mut tensors = Vec::new();
    for tensor in 0..3 {
        let mut values = vec![0.0; len];
        fill(&mut values, 0, tensor);
        tensors.push(Tensor::from_f32(values, &[len]));
    }
    let [weights, first, second] = &mut tensors[..] else { unreachable!("three tensors") };
    let buffers = Buffers { weights, moments: [first, second], range: 0..len };
    let control = Control::alone();
    let mut saver =
        Saver::new(checkpoints(folder), &ALONE, &control, &buffers, Retention::newest(1))?;
    let mut share = Share { bytes: len * 12, stall_s: 0.0, durable_s: 0.0 };
    for step in [1, 2] {
        let (state, since) = (State { step, ..State::default() }, Instant::now());
        let shard_lengths = &BTreeMap::new();
        let contents = Contents { layout: &layout, frozen_hash: None, state, shard_lengths };
        let save = Save { contents, since, awaited: false };
        saver.begin(&ALONE, &buffers, save);
        share.stall_s = since.elapsed().as_secs_f64();
        let Some(settled) = saver.wait() else { unreachable!("a save was begun") };
        share.durable_s = settled.result?.durable_s;
    }
    Ok(share)
}
