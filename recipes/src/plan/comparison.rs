//! Compares measured rates of a device with those that a plan assumes.

use super::rates::{Beyond, Curve, Rate, Rates};

/// A measured rate beside the planned one.
#[derive(Debug, Clone, PartialEq)]
pub struct Comparison {
    /// What the rate is of, such as `products`.
    pub of: &'static str,
    /// Key in the file of rates, which ends with the unit.
    pub key: &'static str,
    /// Width or length at which a curve was compared: where the device is slowest.
    pub size: Option<usize>,
    /// The measured rate.
    pub measured: f64,
    /// The rate that the plan assumes.
    pub planned: f64,
    /// Speed of the device as a share of the planned speed; 1 is as planned, less is slower.
    pub speed: f64,
    /// Whether the device is slower than the error of the planned rate explains: by more than two
    /// standard deviations, and by more than 10 %.
    pub is_slow: bool,
}

impl Rates {
    /// Compares the rates of a device that `vljepa-worker rates` measures with those of this table.
    #[must_use]
    pub fn compare(&self, measured: &Self) -> Vec<Comparison> {
        let curves = [
            ("products", "products_tflops", [&self.products_tflops, &measured.products_tflops]),
            (
                "attention forward",
                "attention_forward_tflops",
                [&self.attention_forward_tflops, &measured.attention_forward_tflops],
            ),
            (
                "attention backward",
                "attention_backward_tflops",
                [&self.attention_backward_tflops, &measured.attention_backward_tflops],
            ),
        ];
        let rates = [
            (
                "memory-bound kernels",
                "memory_bound_tb_per_s",
                [&self.memory_bound_tb_per_s, &measured.memory_bound_tb_per_s],
            ),
            (
                "optimizer",
                "optimizer_tb_per_s",
                [&self.optimizer_tb_per_s, &measured.optimizer_tb_per_s],
            ),
            ("loss", "loss_tflops", [&self.loss_tflops, &measured.loss_tflops]),
        ];
        let launches = [&self.launch_us, &measured.launch_us];
        let mut all: Vec<Comparison> = Vec::new();
        all.extend(curves.into_iter().filter_map(|(of, key, pair)| slowest(of, key, pair)));
        all.extend(rates.into_iter().map(|(of, key, pair)| single(of, key, pair, false)));
        all.push(single("launches", "launch_us", launches, true));
        all
    }
}

/// The point of a measured curve at which the device is slowest, or `None` without points.
fn slowest(
    of: &'static str,
    key: &'static str,
    [planned, measured]: [&Curve; 2],
) -> Option<Comparison> {
    let points = measured.values.iter().map(|&(size, rate)| {
        let expected = planned.at(size, Beyond::Last);
        compared((of, key), Some(size), [expected, rate], rate / expected, planned.spread)
    });
    points.min_by(|a, b| a.speed.total_cmp(&b.speed))
}

/// `is_time` says that a smaller number is faster.
fn single(
    of: &'static str,
    key: &'static str,
    [planned, measured]: [&Rate; 2],
    is_time: bool,
) -> Comparison {
    let ratio = measured.value / planned.value;
    let speed = if is_time { ratio.recip() } else { ratio };
    compared((of, key), None, [planned.value, measured.value], speed, planned.spread)
}

fn compared(
    (of, key): (&'static str, &'static str),
    size: Option<usize>,
    [planned, measured]: [f64; 2],
    speed: f64,
    spread: f64,
) -> Comparison {
    let least = 1.0 - (2.0 * spread).max(0.1);
    let is_slow = speed.is_nan() || speed < least;
    Comparison { of, key, size, measured, planned, speed, is_slow }
}

#[cfg(test)]
mod tests {
    use super::Rates;

    #[test]
    fn equal_rates_are_as_planned_and_a_slow_one_is_found_at_its_size() {
        let planned = Rates::h200();
        let all = planned.compare(planned);
        assert_eq!(all.len(), 7);
        assert!(all.iter().all(|one| (one.speed - 1.0).abs() < 1e-12 && !one.is_slow), "{all:?}");
        let mut measured = planned.clone();
        for (size, rate) in &mut measured.products_tflops.values {
            *rate *= if *size == 1024 { 0.7 } else { 0.97 };
        }
        measured.launch_us.value *= 4.0;
        measured.loss_tflops.value *= 0.95;
        let slow: Vec<_> =
            planned.compare(&measured).into_iter().filter(|one| one.is_slow).collect();
        let found: Vec<_> = slow.iter().map(|one| (one.of, one.size)).collect();
        assert_eq!(found, [("products", Some(1024)), ("launches", None)]);
        assert!((slow[0].speed - 0.7).abs() < 1e-12 && (slow[1].speed - 0.25).abs() < 1e-12);
        let wrong = [slow[0].planned - 620.0, slow[0].measured - 434.0];
        assert!(wrong.iter().all(|difference| difference.abs() < 1e-9), "{slow:?}");
    }

    #[test]
    fn the_error_of_a_planned_rate_is_no_slow_device_and_a_rate_that_is_no_number_is() {
        let planned = Rates::h200();
        let with = |factor: f64| {
            let mut measured = planned.clone();
            for (_, rate) in &mut measured.attention_forward_tflops.values {
                *rate *= factor;
            }
            planned.compare(&measured)[1].is_slow
        };
        // Two standard deviations of 12 %.
        assert!(!with(0.77) && with(0.75) && with(f64::NAN) && !with(3.0));
    }
}
