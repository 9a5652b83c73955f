//! Checks the result of every collective and times collectives at a step's sizes. `multi_gpu.sh`
//! starts this program once per rank; rank 0 prints lines of JSON. Without GPUs, `mpirun -np 2`
//! runs the same checks over MPI.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "the benchmark's result")]
#![expect(clippy::float_cmp, reason = "sums of whole numbers have no rounding")]

mod join;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use serde_json::json;
use vljepa_kernels::{DType, Device, Stream, Tensor, View, copy};
use vljepa_recipes::schema;
use vljepa_worker::collectives::{Collectives, GradientSum, Shares};
use vljepa_worker::rank::device;
use vljepa_worker::rank::environment::Environment;

#[derive(Debug, Parser)]
struct Arguments {
    /// File through which GPU ranks find each other; it must not exist yet. Without it, the ranks
    /// are those of MPI, or this process alone.
    #[arg(long)]
    meet: Option<PathBuf>,
    /// Rows of the global batch whose embeddings are gathered.
    #[arg(long, default_value_t = 24_576)]
    rows: usize,
    /// Width of the shared embedding.
    #[arg(long, default_value_t = 1536)]
    width: usize,
    /// Gradients that are summed in a step, in millions.
    #[arg(long, default_value_t = 800)]
    million_gradients: usize,
    /// Size of a gradient bucket in MiB.
    #[arg(long, default_value_t = 64)]
    bucket_mib: usize,
    /// Timed repetitions, of which the median counts.
    #[arg(long, default_value_t = 20)]
    repeat: usize,
    /// Passed by `cargo bench`; ignored.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

struct World {
    device: Device,
    stream: Stream,
    collectives: Collectives,
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let (device, name) = open(arguments.meet.is_some())?;
    let collectives = join::join(arguments.meet.as_deref(), device)?;
    device::check_distinct(&collectives, &Environment::read(), device)?;
    let world = World { device, stream: device.compute_stream(), collectives };
    world.check_gathers()?;
    world.check_sums()?;
    world.check_host_values()?;
    world.say(json!({"what": "checks", "passed": true, "device": name}));
    let Arguments { rows, width, million_gradients, bucket_mib, repeat, .. } = *arguments;
    world.time_gather(rows, width, repeat)?;
    world.time_sums("bucket", bucket_mib << 18, bucket_mib << 20, repeat)?;
    world.time_sums("step", million_gradients * 1_000_000, bucket_mib << 20, repeat.min(5))?;
    Ok(())
}

fn open(gpu: bool) -> anyhow::Result<(Device, String)> {
    let changes = if gpu { &["device=cuda", "precision=bf16"][..] } else { &[] };
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../recipes/quickstart.yaml");
    let changes: Vec<String> = changes.iter().map(|c| (*c).to_owned()).collect();
    let recipe = vljepa_recipes::load(path.as_ref(), &changes)?.recipe;
    anyhow::ensure!(gpu == (recipe.device == schema::Device::Cuda), "the recipe's device");
    device::open(&recipe, &Environment::read(), 1)
}

impl World {
    fn ranks(&self) -> usize {
        self.collectives.world_size()
    }

    fn say(&self, mut line: serde_json::Value) {
        if self.collectives.rank() == 0 {
            line["ranks"] = self.ranks().into();
            println!("{line}");
        }
    }

    fn tensor(&self, values: &[f32], shape: &[usize]) -> anyhow::Result<Tensor> {
        let mut there = Tensor::zeros(self.device, DType::F32, shape)?;
        let from = vljepa_kernels::View::from_f32(values, shape);
        copy::copy(&self.stream, from, there.view_mut())?;
        Ok(there)
    }

    /// Checks gathers of rows of both dtypes, in equal and uneven shares, also with fewer rows than
    /// ranks.
    fn check_gathers(&self) -> anyhow::Result<()> {
        let width = 12;
        let value = |row: usize, column: usize| (row * 7 + column) as f32;
        for global in [8 * self.ranks(), 8 * self.ranks() + 1, 5, 1] {
            let shares = Shares { global, world_size: self.ranks() };
            let row = |r: usize| (0..width).map(move |c| value(r, c));
            let own: Vec<f32> = shares.rows(self.collectives.rank()).flat_map(row).collect();
            let whole: Vec<f32> = (0..global).flat_map(row).collect();
            for dtype in [DType::F32, DType::Bf16] {
                if dtype == DType::Bf16 && self.device == Device::Host {
                    continue;
                }
                let from = self.tensor(&own, &[own.len() / width, width])?;
                let mut local = Tensor::zeros(self.device, dtype, from.shape())?;
                copy::cast(&self.stream, from.view(), local.view_mut())?;
                let mut out = Tensor::zeros(self.device, dtype, &[global, width])?;
                let (l, o) = (local.view(), out.view_mut());
                self.collectives.all_gather_rows(&self.stream, l, shares, o)?;
                let got = out.to_f32()?;
                // Integers below 256 are exact in bf16.
                let right = got.iter().zip(&whole).all(|(g, w)| g == w || *w >= 256.0);
                anyhow::ensure!(right, "all_gather_rows of {global} rows of {}", dtype.name());
            }
            let hashes: Vec<u64> = (0..global as u64).map(|r| r << 40 | 0xbeef).collect();
            let own = &hashes[shares.rows(self.collectives.rank())];
            let got = self.collectives.all_gather_hashes(own, shares);
            anyhow::ensure!(got == hashes, "all_gather_hashes of {global}");
        }
        Ok(())
    }

    /// Checks sums of integers, which are exact, and of other numbers, whose sums in buckets must
    /// have the same bits when they are repeated.
    fn check_sums(&self) -> anyhow::Result<()> {
        let (rank, ranks) = (self.collectives.rank(), self.ranks());
        for len in [1, 1000, 3_000_001] {
            let own: Vec<f32> = (0..len).map(|i| (i % 1000 + rank) as f32).collect();
            let sum = |i: usize| (ranks * (i % 1000) + ranks * (ranks - 1) / 2) as f32;
            let mut values = self.tensor(&own, &[len])?;
            self.collectives.all_reduce_sum(&self.stream, values.view_mut())?;
            let right = values.to_f32()?.iter().enumerate().all(|(i, v)| *v == sum(i));
            anyhow::ensure!(right, "all_reduce_sum of {len}");
            let room = len.next_multiple_of(ranks);
            let mut values = Tensor::padded(self.device, DType::F32, &[len], room)?;
            copy::copy(&self.stream, View::from_f32(&own, &[len]), values.view_mut())?;
            self.collectives.reduce_scatter_sum(&self.stream, values.with_padding_mut())?;
            let slot = rank * (room / ranks)..((rank + 1) * (room / ranks)).min(len);
            let right = values.to_f32()?[slot.clone()].iter().zip(slot).all(|(v, i)| *v == sum(i));
            anyhow::ensure!(right, "reduce_scatter_sum of {len}");
            self.collectives.all_gather_slots(&self.stream, values.with_padding_mut())?;
            let right = values.to_f32()?.iter().enumerate().all(|(i, v)| *v == sum(i));
            anyhow::ensure!(right, "all_gather_slots of {len}");
        }
        let own: Vec<f32> = (0..100_000).map(|i| ((i * 37 + rank * 11) as f32).sin()).collect();
        let in_buckets = |bytes: usize| -> anyhow::Result<Vec<f32>> {
            let mut values = self.tensor(&own, &[own.len()])?;
            let mut sums = GradientSum::new(&self.collectives, bytes);
            for complete in [17, 40_000, 90_000] {
                sums.ready(&self.stream, values.view_mut(), complete);
            }
            sums.finish(&self.stream, values.view_mut())?;
            Ok(values.to_f32()?.into_owned())
        };
        let (once, again, whole) =
            (in_buckets(64 << 10)?, in_buckets(64 << 10)?, in_buckets(1 << 20)?);
        anyhow::ensure!(once == again, "a sum in buckets does not repeat");
        self.say(json!({"what": "buckets", "same_bits_as_one_sum": once == whole}));
        Ok(())
    }

    fn check_host_values(&self) -> anyhow::Result<()> {
        let (rank, ranks) = (self.collectives.rank(), self.ranks());
        let sums = self.collectives.sum([1.0, rank as f64, 0.5]);
        let triangle = (ranks * (ranks - 1) / 2) as f64;
        anyhow::ensure!(sums == [ranks as f64, triangle, 0.5 * ranks as f64], "sum: {sums:?}");
        let said: Vec<u8> = (0..=250u8).cycle().take(40_000_000).collect();
        let own = if rank == 0 { said.clone() } else { Vec::new() };
        anyhow::ensure!(self.collectives.broadcast(own) == said, "broadcast");
        let text = |rank: usize| "x".repeat(rank * 1000).into_bytes();
        let all = self.collectives.all_gather_bytes(&text(rank));
        anyhow::ensure!(all == (0..ranks).map(text).collect::<Vec<_>>(), "all_gather_bytes");
        Ok(())
    }

    fn time_gather(&self, rows: usize, width: usize, repeat: usize) -> anyhow::Result<()> {
        let shares = Shares { global: rows, world_size: self.ranks() };
        let dtype = self.device.activations();
        let own = shares.rows(self.collectives.rank()).len();
        let local = Tensor::zeros(self.device, dtype, &[own, width])?;
        let mut out = Tensor::zeros(self.device, dtype, &[rows, width])?;
        let ms = self.median(repeat, || {
            let (l, o) = (local.view(), out.view_mut());
            Ok(self.collectives.all_gather_rows(&self.stream, l, shares, o)?)
        })?;
        let factor = (self.ranks() - 1) as f64 / self.ranks() as f64;
        self.say_speed("all_gather", rows * width * dtype.bytes(), ms, factor);
        Ok(())
    }

    fn time_sums(
        &self,
        what: &str,
        len: usize,
        bucket: usize,
        repeat: usize,
    ) -> anyhow::Result<()> {
        let mut values = Tensor::zeros(self.device, DType::F32, &[len])?;
        let ms = self.median(repeat, || {
            let sums = GradientSum::new(&self.collectives, bucket);
            Ok(sums.finish(&self.stream, values.view_mut())?)
        })?;
        let factor = 2.0 * (self.ranks() - 1) as f64 / self.ranks() as f64;
        self.say_speed(&format!("all_reduce of a {what}"), len * 4, ms, factor);
        Ok(())
    }

    /// Prints the bytes per second of the result (algorithm bandwidth of nccl-tests) and of each
    /// link of a ring (bus bandwidth).
    fn say_speed(&self, what: &str, bytes: usize, ms: f64, factor: f64) {
        let gb_s = bytes as f64 / ms / 1e6;
        let (ms, rounded) = ((ms * 1e3).round() / 1e3, |x: f64| (x * 100.0).round() / 100.0);
        let (algorithm, bus) = (rounded(gb_s), rounded(gb_s * factor));
        self.say(
            json!({"what": what, "bytes": bytes, "ms": ms, "gb_s": algorithm, "bus_gb_s": bus}),
        );
    }

    fn median(
        &self,
        repeat: usize,
        mut work: impl FnMut() -> anyhow::Result<()>,
    ) -> anyhow::Result<f64> {
        let mut times = Vec::new();
        for _ in 0..repeat.max(1) + 2 {
            // All ranks begin at the same time.
            self.collectives.barrier();
            let since = Instant::now();
            work()?;
            self.stream.synchronize()?;
            times.push(since.elapsed().as_secs_f64() * 1e3);
        }
        let timed = &mut times[2..];
        timed.sort_by(f64::total_cmp);
        Ok(timed[timed.len() / 2])
    }
}
