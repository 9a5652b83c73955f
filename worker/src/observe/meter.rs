//! Measures this rank once per logging interval: seconds per phase, operations and memory. Also
//! records traces of chosen steps.

use std::collections::BTreeMap;
use std::time::Instant;

use vljepa_data::batch::{Batch, Ragged};
use vljepa_kernels::Device;
use vljepa_recipes::Recipe;
use vljepa_recipes::cost::{Tokens, peak_tflops, useful_operations};
use vljepa_recipes::protocol::{Interval, Phase};
use vljepa_recipes::schema::{Model, Precision};

use crate::observe::metrics::PhaseClock;
use crate::observe::trace::Tracer;

/// Phases whose work a GPU does after the host has issued it.
const ISSUED: [Phase; 4] = [Phase::Forward, Phase::Collective, Phase::Backward, Phase::Optimizer];

/// Measurements of one rank since the last logging interval.
#[derive(Debug)]
pub struct Meter {
    device: Device,
    /// Peak of the device in TFLOP/s, or `None` if it is unknown for the recipe's precision.
    peak_tflops: Option<f64>,
    phases: PhaseClock,
    /// Clock of a step in which every phase waits for the GPU, so that its time includes the GPU's
    /// work. Only the last step of an interval on a GPU is measured so.
    drained: Option<PhaseClock>,
    window: Window,
    tracer: Tracer,
}

/// Counts since the last interval ended.
#[derive(Debug)]
struct Window {
    since: Instant,
    steps: u64,
    samples: u64,
    operations: f64,
}

impl Window {
    fn start() -> Self {
        Self { since: Instant::now(), steps: 0, samples: 0, operations: 0.0 }
    }
}

/// Measurements of a finished interval.
#[derive(Debug)]
pub struct Closed {
    /// Measurements that are sent to the supervisor.
    pub interval: Interval,
    /// Seconds per phase on the host clock, without waiting for the GPU.
    pub phase_s: BTreeMap<Phase, f64>,
    /// Samples of all ranks per second.
    pub samples_per_s: f64,
    /// Share of the interval in which the step waited for data.
    pub data_wait_fraction: f64,
    /// [`Interval::tflops`] as a share of the device's peak, or `None` if the peak is unknown.
    pub mfu: Option<f64>,
}

impl Meter {
    /// Starts measuring in [`Phase::Start`]. `device_name` is the name that the device reports; the
    /// peak is looked up by it.
    #[must_use]
    pub fn start(recipe: &Recipe, device: Device, device_name: &str, tracer: Tracer) -> Self {
        let peak_tflops = match recipe.precision {
            Precision::Bf16 => peak_tflops(device_name),
            Precision::F32 => None,
        };
        let (phases, window) = (PhaseClock::start(Phase::Start), Window::start());
        Self { device, peak_tflops, phases, drained: None, window, tracer }
    }

    /// Begins step `step` (counted from 0), which first waits for its batch. `last` says that a
    /// logging interval ends with this step.
    pub fn begin(&mut self, step: u64, last: bool) {
        self.tracer.begin(step);
        self.enter(Phase::Data);
        let measured = last && self.device != Device::Host;
        self.drained = measured.then(|| PhaseClock::start(Phase::Data));
    }

    /// Counts the time from now on as time of `phase`.
    pub fn enter(&mut self, phase: Phase) {
        if let Some(drained) = &mut self.drained {
            // The same error is returned again when the device's result is used.
            if let Err(error) = self.device.compute_stream().synchronize() {
                tracing::warn!("phases are not measured: {error}");
            }
            drained.enter(phase);
        }
        self.phases.enter(phase);
        self.tracer.enter(phase);
    }

    /// Counts this rank's rows of a step.
    pub fn count<F>(&mut self, model: &Model, batch: &Batch<F>) {
        let length = |ragged: &Ragged, row: usize| {
            let [start, end] = [ragged.cu_seqlens[row], ragged.cu_seqlens[row + 1]];
            usize::try_from(end - start).unwrap_or_default()
        };
        let frames = batch.frames_shape[1];
        let rows = 0..batch.rows();
        let operations = rows.map(|row| {
            let query = length(&batch.query, row);
            // A VLM has no Y-encoder.
            let target = if model.vlm().is_none() { length(&batch.target, row) } else { 0 };
            let all = Tokens::of(model, frames, query, target);
            let tokens = match model.learning_decoder() {
                None if model.vlm().is_some() => {
                    let query = batch.before.len() + query;
                    Tokens { query, output: length(&batch.output, row), target: 0, ..all }
                }
                None => all,
                // A Y-decoder's step runs one of the encoders.
                Some(_) if frames > 0 => {
                    Tokens { target: 0, output: length(&batch.output, row), ..all }
                }
                Some(_) => {
                    Tokens { target, output: length(&batch.output, row), ..Tokens::default() }
                }
            };
            useful_operations(model, tokens)
        });
        self.window.operations += operations.sum::<f64>();
        self.window.samples += batch.global_batch as u64;
        self.window.steps += 1;
    }

    /// Ends the interval; `step` is the number of completed steps of the run.
    #[expect(clippy::cast_precision_loss, reason = "counts of an interval are small")]
    pub fn close(&mut self, step: u64) -> Closed {
        let Window { since, steps, samples, operations } =
            std::mem::replace(&mut self.window, Window::start());
        let seconds = since.elapsed().as_secs_f64().max(1e-9);
        let phase_s = self.phases.take();
        let mut own = phase_s.clone();
        if let Some(mut drained) = self.drained.take() {
            let of_step = drained.take();
            for phase in ISSUED {
                let seconds = of_step.get(&phase).copied().unwrap_or_default();
                own.insert(phase, seconds * steps as f64);
            }
        }
        let tflops = operations / seconds / 1e12;
        let waited = phase_s.get(&Phase::Data).copied().unwrap_or_default();
        let interval = Interval {
            step,
            steps,
            seconds,
            phase_s: own,
            tflops,
            memory_mib: resident_mib(),
            device_memory_mib: device_mib(self.device),
        };
        Closed {
            interval,
            phase_s,
            samples_per_s: samples as f64 / seconds,
            data_wait_fraction: (waited / seconds).min(1.0),
            mfu: self.peak_tflops.map(|peak| tflops / peak),
        }
    }

    /// Stops measuring, and writes a trace that is still being recorded.
    pub fn finish(&mut self) {
        self.tracer.finish();
    }
}

/// Returns the resident memory of this process in MiB, or 0 if the system does not report it.
fn resident_mib() -> u64 {
    let text = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.trim().split(' ').next()?.parse::<u64>().ok()).unwrap_or(0) / 1024
}

/// Returns the memory in use on the GPU in MiB, or `None` on the host or if the device does not
/// report it.
fn device_mib(device: Device) -> Option<u64> {
    match device {
        Device::Host => None,
        Device::Cuda(cuda) => {
            let [free, all] = cuda.memory().ok()?;
            Some((all.saturating_sub(free) >> 20) as u64)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::observe::trace::Tracer;

    fn recipe() -> Recipe {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../recipes/quickstart.yaml");
        vljepa_recipes::load(&path, &[]).unwrap().recipe
    }

    fn batch(queries: &[i32], targets: &[i32], global_batch: usize) -> Batch {
        let ragged = |ends: &[i32]| Ragged {
            ids: vec![0; usize::try_from(*ends.last().unwrap()).unwrap()],
            cu_seqlens: ends.to_vec(),
        };
        let rows = queries.len() - 1;
        Batch {
            stage_step: 0,
            first_row: 0,
            global_batch,
            frames: vec![0; rows * 2 * 32 * 32 * 3],
            frames_shape: [rows, 2, 32, 32, 3],
            before: std::sync::Arc::from([]),
            query: ragged(queries),
            target: ragged(targets),
            output: Ragged::new(),
            target_hashes: vec![0; rows],
            query_texts: vec![String::new(); rows],
            target_texts: vec![String::new(); rows],
            samples: Vec::new(),
            skipped: Vec::new(),
        }
    }

    #[test]
    fn an_interval_counts_the_operations_of_the_real_lengths_on_this_rank() {
        let recipe = recipe();
        let mut meter = Meter::start(&recipe, Device::Host, "host", Tracer::none());
        meter.begin(0, true);
        meter.count(&recipe.model, &batch(&[0, 3, 3], &[0, 2, 7], 8));
        meter.enter(Phase::Forward);
        std::thread::park_timeout(std::time::Duration::from_millis(5));
        let Closed { interval, samples_per_s, mfu, .. } = meter.close(1);
        let expected =
            [[3, 2], [0, 5]].map(|[query, target]| Tokens::of(&recipe.model, 2, query, target));
        let expected: f64 = expected.iter().map(|&t| useful_operations(&recipe.model, t)).sum();
        let counted = interval.tflops * 1e12 * interval.seconds;
        assert!((counted / expected - 1.0).abs() < 1e-9, "{counted} {expected}");
        assert!((samples_per_s * interval.seconds - 8.0).abs() < 1e-6);
        assert_eq!((interval.steps, interval.step, mfu), (1, 1, None));
        assert!(interval.memory_mib > 0);
        let phases: f64 = interval.phase_s.values().sum();
        assert!(phases >= 0.005 && phases <= interval.seconds + 1e-3, "{interval:?}");
        let empty = meter.close(1).interval;
        assert_eq!((empty.steps, empty.phase_s.get(&Phase::Data)), (0, None));
    }

    #[test]
    fn utilisation_is_known_for_bf16_on_a_known_gpu_alone() {
        let mut recipe = recipe();
        let known = |recipe: &Recipe, name: &str| {
            Meter::start(recipe, Device::Host, name, Tracer::none()).peak_tflops.is_some()
        };
        assert!(!known(&recipe, "NVIDIA H200, GPU 0"), "f32 has another peak");
        recipe.precision = Precision::Bf16;
        assert!(known(&recipe, "NVIDIA H200, GPU 0") && !known(&recipe, "emulated GPU"));
    }
}
