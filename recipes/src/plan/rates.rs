//! Rates of a device, a network and a data pipeline: the table from which a plan computes time.
//!
//! A rate was measured, or is predicted. Its `spread` is its relative standard deviation. Curves
//! are interpolated between their points on logarithmic axes.

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

    /// All rates and curves: their key, their values, their spread and their origin.
    fn all(&self) -> Vec<Entry<'_>> {
        let forms = [("pictures", &self.pictures), ("clips", &self.clips)];
        let forms = forms.iter().flat_map(|(kind, forms)| {
            [("raw", &forms.raw), ("prepared", &forms.prepared)].map(|(form, of)| {
                [
                    Entry::rate(format!("{kind}.{form}.kilobytes"), &of.kilobytes),
                    Entry::curve(format!("{kind}.{form}.samples_per_cpu_s"), &of.samples_per_cpu_s),
                ]
            })
        });
        let rates = [
            ("reserved_mib", &self.reserved_mib),
            ("half_rate_rows", &self.half_rate_rows),
            ("memory_bound_tb_per_s", &self.memory_bound_tb_per_s),
            ("optimizer_tb_per_s", &self.optimizer_tb_per_s),
            ("launch_us", &self.launch_us),
            ("loss_tflops", &self.loss_tflops),
            ("waits_ms", &self.waits_ms),
            ("upload_gb_per_s", &self.upload_gb_per_s),
            ("within_node_gb_per_s", &self.within_node_gb_per_s),
            ("within_node_us", &self.within_node_us),
            ("between_nodes_gb_per_s", &self.between_nodes_gb_per_s),
            ("between_nodes_us", &self.between_nodes_us),
            ("stragglers", &self.stragglers),
            ("checkpoint_gb_per_s", &self.checkpoint_gb_per_s),
            ("device_hours_per_failure", &self.device_hours_per_failure),
            ("restart_s", &self.restart_s),
            ("kilowatts_per_device", &self.kilowatts_per_device),
        ];
        let curves = [
            ("products_tflops", &self.products_tflops),
            ("attention_forward_tflops", &self.attention_forward_tflops),
            ("attention_backward_tflops", &self.attention_backward_tflops),
        ];
        let rates = rates.map(|(key, rate)| Entry::rate(key.to_owned(), rate));
        let curves = curves.map(|(key, curve)| Entry::curve(key.to_owned(), curve));
        rates.into_iter().chain(curves).chain(forms.flatten()).collect()
    }

    /// Returns what is wrong with the table: key and reason.
    pub(crate) fn problems(&self) -> Vec<(String, String)> {
        let plain = [
            ("memory_mib", self.memory_mib),
            ("peak_tflops", self.peak_tflops),
            ("ceiling_tflops", self.ceiling_tflops),
            ("cpus_per_rank", self.cpus_per_rank),
        ];
        let plain = plain.into_iter().filter(|(_, value)| !(value.is_finite() && *value > 0.0));
        let mut problems: Vec<(String, String)> = plain
            .map(|(key, value)| (key.to_owned(), format!("{value} is not above zero")))
            .collect();
        let curves = [
            ("products_tflops", &self.products_tflops),
            ("attention_forward_tflops", &self.attention_forward_tflops),
            ("attention_backward_tflops", &self.attention_backward_tflops),
        ];
        for (key, curve) in curves {
            if curve.values.windows(2).any(|pair| pair[0].0 >= pair[1].0) {
                problems.push((format!("{key}.values"), "sizes do not increase".to_owned()));
            }
        }
        for entry in self.all() {
            problems.extend(entry.problem().map(|reason| (entry.key, reason)));
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
    spread: f64,
    /// `measured` and `predicted`.
    origins: [Option<&'a str>; 2],
}

impl<'a> Entry<'a> {
    fn rate(key: String, rate: &'a Rate) -> Self {
        let origins = [rate.measured.as_deref(), rate.predicted.as_deref()];
        Self { key, values: vec![rate.value], spread: rate.spread, origins }
    }

    fn curve(key: String, curve: &'a Curve) -> Self {
        let origins = [curve.measured.as_deref(), curve.predicted.as_deref()];
        Self {
            key,
            values: curve.values.iter().map(|(_, value)| *value).collect(),
            spread: curve.spread,
            origins,
        }
    }

    fn problem(&self) -> Option<String> {
        // Some latencies and waits may be zero; a rate that divides may not.
        let may_be_zero = ["_us", "_ms", "_s", "_mib", "_rows", "stragglers"];
        let divides =
            !may_be_zero.iter().any(|end| self.key.ends_with(end)) || self.key.ends_with("per_s");
        let wrong = self
            .values
            .iter()
            .find(|value| !value.is_finite() || **value < 0.0 || (divides && **value <= 0.0));
        if let Some(wrong) = wrong {
            let least = if divides { "above zero" } else { "at least zero" };
            return Some(format!("{wrong} is not a number {least}"));
        }
        if self.values.is_empty() {
            return Some("`values` is empty".to_owned());
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
