//! Distribution of lags, in bounded memory whatever their number.

use std::time::Duration;

use vljepa_recipes::protocol::Lag;

/// Shortest lag that is told from 0, in seconds.
const SHORTEST_S: f64 = 1e-5;

/// Ratio of the longest to the shortest lag of a class, and so the largest error of a percentile.
const RATIO: f64 = 1.02;

/// Number of classes. The last one begins at 10⁻⁵ · 1.02¹²⁰⁰ s, 58 hours, and has no end.
const CLASSES: usize = 1201;

/// Counts of lags in classes of equal ratios.
#[derive(Debug, Clone)]
pub(crate) struct Lags {
    counts: Vec<u64>,
}

impl Lags {
    pub(crate) fn new() -> Self {
        Self { counts: vec![0; CLASSES] }
    }

    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "the cast saturates, and the class is bounded"
    )]
    pub(crate) fn add(&mut self, lag: Duration) {
        let class = (lag.as_secs_f64() / SHORTEST_S).log(RATIO).max(0.0) as usize;
        self.counts[class.min(CLASSES - 1)] += 1;
    }

    /// Median and 99th percentile, with an error of 1 %. `None` without lags.
    pub(crate) fn summary(&self) -> Option<Lag> {
        Some(Lag { median_s: self.percentile(50)?, p99_s: self.percentile(99)? })
    }

    /// Middle of the class in which the lag lies that `percent` % of all lags do not exceed.
    fn percentile(&self, percent: u64) -> Option<f64> {
        let total: u64 = self.counts.iter().sum();
        let wanted = (total * percent).div_ceil(100).max(1);
        let mut seen = 0;
        let class = self.counts.iter().position(|count| {
            seen += count;
            seen >= wanted
        })?;
        let class = i32::try_from(class).unwrap_or(i32::MAX);
        Some(SHORTEST_S * RATIO.powi(class) * RATIO.sqrt())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{CLASSES, Lags};

    #[test]
    fn percentiles_are_right_within_one_percent() {
        let mut lags = Lags::new();
        for milliseconds in 1..=1000 {
            lags.add(Duration::from_millis(milliseconds));
        }
        let lag = lags.summary().unwrap();
        // Half of a class, in both directions.
        let is_near = |found: f64, exact: f64| (found / exact - 1.0).abs() < 0.011;
        assert!(is_near(lag.median_s, 0.5) && is_near(lag.p99_s, 0.99), "{lag:?}");
        assert!(!is_near(lag.p99_s, 0.97));
    }

    #[test]
    fn any_lag_is_counted_and_no_lags_have_no_percentiles() {
        let mut lags = Lags::new();
        assert_eq!(lags.summary(), None);
        lags.add(Duration::ZERO);
        assert!(lags.summary().unwrap().p99_s < 2e-5);
        lags.add(Duration::MAX);
        let lag = lags.summary().unwrap();
        assert!(lag.median_s < 2e-5 && lag.p99_s > 200_000.0, "{lag:?}");
        assert_eq!(lags.counts.len(), CLASSES);
    }
}
