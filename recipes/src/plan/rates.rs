//! Rates of a device, a network and a data pipeline: the table from which a plan computes time.
//!
//! A rate was measured, or is predicted. Its `spread` is its relative standard deviation; those of
//! times and sizes are for readers, the others become the error of a plan. Curves are interpolated
//! between their points on logarithmic axes.

use serde::{Deserialize, Serialize};

use super::Estimate;
use crate::schema::Visual;

/// Rates of a cluster of one kind of device. Keys end with their units.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rates {
    /// Device that the rates belong to, such as `NVIDIA H200`.
    pub device: String,
    /// Memory of the device as its driver reports it, MiB.
    pub memory_mib: f64,
    /// Memory that the context, cuBLASLt and NCCL take, MiB.
    pub reserved_mib: Rate,
    /// Peak of dense products in the recipe's precision, 10¹² operations per second, for MFU.
    pub peak_tflops: f64,
    /// Highest rate of products that was ever measured, 10¹² operations per second. No plan is
    /// faster than all operations at this rate.
    pub ceiling_tflops: f64,
    /// Rate of matrix products by the width of the network, 10¹² operations per second.
    pub products_tflops: Curve,
    /// Number of rows at which a product reaches half of that rate.
    pub half_rate_rows: Rate,
    /// Rate of attention by the length of the sequence, 4·N²·width operations per layer.
    pub attention_forward_tflops: Curve,
    /// The same of its backward pass, 10·N²·width operations per layer.
    pub attention_backward_tflops: Curve,
    /// Bytes that memory-bound kernels read and write, 10¹² per second.
    pub memory_bound_tb_per_s: Rate,
    /// Bytes that the optimizer reads and writes, 10¹² per second.
    pub optimizer_tb_per_s: Rate,
    /// Time in which the host issues a kernel or a product, microseconds.
    pub launch_us: Rate,
    /// Rate of the products of the loss over all embeddings, 10¹² operations per second.
    pub loss_tflops: Rate,
    /// Time of a step in which the device waits for the host, milliseconds.
    pub waits_ms: Rate,
    /// Bytes of frames that reach the device, 10⁹ per second.
    pub upload_gb_per_s: Rate,
    /// Bandwidth of one device to others of its node, 10⁹ bytes per second.
    pub within_node_gb_per_s: Rate,
    /// Latency between two devices of a node, microseconds.
    pub within_node_us: Rate,
    /// Bandwidth of one device to other nodes, 10⁹ bytes per second.
    pub between_nodes_gb_per_s: Rate,
    /// Latency between two nodes, microseconds.
    pub between_nodes_us: Rate,
    /// Relative standard deviation of a rank's step time among ranks.
    pub stragglers: Rate,
    /// CPUs of a rank if the recipe does not say how many it has.
    pub cpus_per_rank: f64,
    /// Pictures that one CPU decodes per second.
    pub pictures: Forms,
    /// Clips that one CPU decodes per second.
    pub clips: Forms,
    /// Bytes that a node writes to the storage of checkpoints, 10⁹ per second.
    pub checkpoint_gb_per_s: Rate,
    /// Device-hours between two failures that end an attempt.
    pub device_hours_per_failure: Rate,
    /// Time from a failure to the next step, or from the start to the first step, seconds.
    pub restart_s: Rate,
    /// Power of a device with its share of the node, kilowatt.
    pub kilowatts_per_device: Rate,
}

/// Samples as published, and as `vljepa-shards prepare` stores them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Forms {
    /// As published.
    pub raw: Form,
    /// As `vljepa-shards prepare` stores them.
    pub prepared: Form,
}

/// Size of samples, and how fast one CPU decodes them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Form {
    /// Size of a sample, 10³ bytes.
    pub kilobytes: Rate,
    /// Samples that one CPU decodes per second, by the number of frames.
    pub samples_per_cpu_s: Curve,
}

/// A number with its origin. Exactly one of `measured` and `predicted` is given.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rate {
    /// The value, in the unit that the key names.
    pub value: f64,
    /// Relative standard deviation. Default: 0.
    #[serde(default)]
    pub spread: f64,
    /// Date, machine and command of the measurement.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub measured: Option<String>,
    /// How the value was predicted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub predicted: Option<String>,
}

/// A number that depends on a size. Below the first point the first value holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Curve {
    /// Pairs of size and value, with increasing sizes.
    pub values: Vec<(usize, f64)>,
    /// Relative standard deviation. Default: 0.
    #[serde(default)]
    pub spread: f64,
    /// Date, machine and command of the measurement.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub measured: Option<String>,
    /// How the values were predicted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub predicted: Option<String>,
}

impl Rate {
    /// The value with its standard deviation.
    #[must_use]
    pub fn estimate(&self) -> Estimate {
        Estimate::new(self.value, self.value * self.spread)
    }

    /// The time of `amount` at this rate, in seconds if the rate is per second.
    pub(super) fn time(&self, amount: f64) -> Estimate {
        let seconds = amount / self.value;
        Estimate::new(seconds, seconds * self.spread)
    }
}

/// What a curve takes beyond its last point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Beyond {
    /// The value of the last point.
    Last,
    /// The line through the last two points.
    Line,
}

impl Curve {
    /// The value at `size`.
    pub(super) fn at(&self, size: usize, beyond: Beyond) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "sizes are small")]
        let ln = |size: usize| (size.max(1) as f64).ln();
        let mut points = self.values.iter().map(|(size, value)| (ln(*size), value.ln()));
        let Some(mut last) = points.next() else { return f64::NAN };
        let x = ln(size);
        if x <= last.0 {
            return last.1.exp();
        }
        let mut slope = 0.0;
        for point in points {
            slope = (point.1 - last.1) / (point.0 - last.0);
            if x <= point.0 {
                return (last.1 + slope * (x - last.0)).exp();
            }
            last = point;
        }
        match beyond {
            Beyond::Last => last.1.exp(),
            Beyond::Line => (last.1 + slope * (x - last.0)).exp(),
        }
    }
}

impl Rates {
    /// Form of the samples of a kind.
    pub(super) fn form(&self, visual: Visual, prepared: bool) -> &Form {
        let forms = match visual {
            Visual::Image => &self.pictures,
            Visual::Video => &self.clips,
        };
        if prepared { &forms.prepared } else { &forms.raw }
    }

    /// All rates and curves.
    fn all(&self) -> Vec<Entry<'_>> {
        let mut all = vec![
            Entry::amount("reserved_mib", &self.reserved_mib),
            Entry::curve("products_tflops", &self.products_tflops),
            Entry::amount("half_rate_rows", &self.half_rate_rows),
            Entry::curve("attention_forward_tflops", &self.attention_forward_tflops),
            Entry::curve("attention_backward_tflops", &self.attention_backward_tflops),
            Entry::rate("memory_bound_tb_per_s", &self.memory_bound_tb_per_s),
            Entry::rate("optimizer_tb_per_s", &self.optimizer_tb_per_s),
            Entry::amount("launch_us", &self.launch_us),
            Entry::rate("loss_tflops", &self.loss_tflops),
            Entry::amount("waits_ms", &self.waits_ms),
            Entry::rate("upload_gb_per_s", &self.upload_gb_per_s),
            Entry::rate("within_node_gb_per_s", &self.within_node_gb_per_s),
            Entry::amount("within_node_us", &self.within_node_us),
            Entry::rate("between_nodes_gb_per_s", &self.between_nodes_gb_per_s),
            Entry::amount("between_nodes_us", &self.between_nodes_us),
            Entry::amount("stragglers", &self.stragglers),
            Entry::rate("checkpoint_gb_per_s", &self.checkpoint_gb_per_s),
            Entry::rate("device_hours_per_failure", &self.device_hours_per_failure),
            Entry::amount("restart_s", &self.restart_s),
            Entry::amount("kilowatts_per_device", &self.kilowatts_per_device),
        ];
        for (kind, forms) in [("pictures", &self.pictures), ("clips", &self.clips)] {
            for (form, of) in [("raw", &forms.raw), ("prepared", &forms.prepared)] {
                let key = |name: &str| format!("{kind}.{form}.{name}");
                all.push(Entry::amount(&key("kilobytes"), &of.kilobytes));
                all.push(Entry::curve(&key("samples_per_cpu_s"), &of.samples_per_cpu_s));
            }
        }
        all
    }

    /// Returns what is wrong with the table: key and reason.
    pub(crate) fn problems(&self) -> Vec<(String, String)> {
        let plain = [
            ("memory_mib", self.memory_mib),
            ("peak_tflops", self.peak_tflops),
            ("ceiling_tflops", self.ceiling_tflops),
            ("cpus_per_rank", self.cpus_per_rank),
        ];
        let mut problems: Vec<(String, String)> = plain
            .into_iter()
            .filter_map(|(key, value)| Some((key.to_owned(), out_of_range(value, true)?)))
            .collect();
        for entry in self.all() {
            problems.extend(entry.problem().map(|reason| (entry.key, reason)));
        }
        let mut above = |key: &str, value: f64, name: &str, most: f64| {
            if value > most {
                problems.push((key.to_owned(), format!("{value} is above {name}, {most}")));
            }
        };
        above("ceiling_tflops", self.ceiling_tflops, "peak_tflops", self.peak_tflops);
        above("reserved_mib", self.reserved_mib.value, "memory_mib", self.memory_mib);
        above("stragglers", self.stragglers.value, "one step", 1.0);
        // The floor of a plan is all operations at the ceiling.
        let curves = [
            ("products_tflops", &self.products_tflops),
            ("attention_forward_tflops", &self.attention_forward_tflops),
            ("attention_backward_tflops", &self.attention_backward_tflops),
        ];
        for (key, curve) in curves {
            let most = curve.values.iter().map(|(_, rate)| *rate).fold(0.0, f64::max);
            above(key, most, "ceiling_tflops", self.ceiling_tflops);
        }
        problems
    }

    /// All rates with their origins.
    #[must_use]
    pub fn origins(&self) -> Vec<Origin> {
        let all = self.all().into_iter();
        all.map(|entry| {
            let [measured, predicted] = entry.origins;
            Origin {
                spread: entry.spread,
                is_measured: measured.is_some(),
                how: measured.or(predicted).unwrap_or_default().to_owned(),
                key: entry.key,
                values: entry.values,
            }
        })
        .collect()
    }

    /// Number of rates that were measured, and of all rates.
    #[must_use]
    pub fn measured(&self) -> [usize; 2] {
        let all = self.all();
        [all.iter().filter(|entry| entry.origins[0].is_some()).count(), all.len()]
    }
}

/// A rate of the table and where it is from.
#[derive(Debug, Clone, PartialEq)]
pub struct Origin {
    /// Key in the file of rates.
    pub key: String,
    /// The value, or the values of a curve.
    pub values: Vec<f64>,
    /// Relative standard deviation.
    pub spread: f64,
    /// Whether the rate was measured.
    pub is_measured: bool,
    /// Date, machine and command, or how the rate was predicted.
    pub how: String,
}

struct Entry<'a> {
    key: String,
    values: Vec<f64>,
    /// Sizes of a curve's values.
    sizes: Vec<usize>,
    /// Whether something is divided by the value, so that it may not be zero.
    divides: bool,
    spread: f64,
    /// `measured` and `predicted`.
    origins: [Option<&'a str>; 2],
}

/// Largest value of a rate: far above all machines, and far below the largest f64.
const MOST: f64 = 1e15;

/// Says how a value is out of its range, or `None` if it is not.
fn out_of_range(value: f64, divides: bool) -> Option<String> {
    let least = if divides { "above zero" } else { "at least zero" };
    let right = value.is_finite() && (value > 0.0 || !divides && value >= 0.0);
    if !right {
        return Some(format!("{value} is not a number {least}"));
    }
    (value > MOST).then(|| format!("{value:e} is above {MOST:e}"))
}

impl<'a> Entry<'a> {
    /// A rate by which something is divided.
    fn rate(key: &str, rate: &'a Rate) -> Self {
        let origins = [rate.measured.as_deref(), rate.predicted.as_deref()];
        let (key, divides) = (key.to_owned(), true);
        Self {
            key,
            values: vec![rate.value],
            sizes: vec![0],
            spread: rate.spread,
            origins,
            divides,
        }
    }

    /// A time, a size or a share, which may be zero.
    fn amount(key: &str, rate: &'a Rate) -> Self {
        Self { divides: false, ..Self::rate(key, rate) }
    }

    fn curve(key: &str, curve: &'a Curve) -> Self {
        let origins = [curve.measured.as_deref(), curve.predicted.as_deref()];
        let (sizes, values) = curve.values.iter().copied().unzip();
        Self { key: key.to_owned(), values, sizes, spread: curve.spread, origins, divides: true }
    }

    fn problem(&self) -> Option<String> {
        if self.values.is_empty() {
            return Some("`values` is empty".to_owned());
        }
        let wrong = self.values.iter().find_map(|value| out_of_range(*value, self.divides));
        if wrong.is_some() {
            return wrong;
        }
        if self.sizes.windows(2).any(|pair| pair[0] >= pair[1]) {
            return Some("the sizes in `values` do not increase".to_owned());
        }
        if !(0.0..1.0).contains(&self.spread) {
            return Some(format!("spread: {} is not from 0 to below 1", self.spread));
        }
        match self.origins {
            [None, None] => Some("say with `measured` or `predicted` where it is from".to_owned()),
            [Some(_), Some(_)] => Some("has both `measured` and `predicted`".to_owned()),
            [Some(_), None] | [None, Some(_)] => None,
        }
    }
}
