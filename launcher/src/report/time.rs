//! Times and durations of a report.

use vljepa_recipes::protocol::Metrics;

/// Seconds that rank 0 spent in its phases: the training time without the time between attempts.
pub(super) fn busy_seconds(metrics: &[Metrics]) -> f64 {
    metrics.iter().flat_map(|line| line.phase_s.values()).sum()
}

/// Formats an RFC 3339 time: `2026-11-22T12:00:00.123Z` becomes `2026-11-22 12:00:00 UTC`. Other
/// text stays as it is.
pub(super) fn moment(time: &str) -> String {
    match time.parse::<jiff::Timestamp>() {
        Ok(moment) => moment.strftime("%Y-%m-%d %H:%M:%S UTC").to_string(),
        Err(_) => time.to_owned(),
    }
}

/// Seconds between two RFC 3339 times, or `None` if one of them is invalid.
pub(super) fn between(from: &str, to: &str) -> Option<f64> {
    let (from, to) = (from.parse::<jiff::Timestamp>().ok()?, to.parse::<jiff::Timestamp>().ok()?);
    Some(to.duration_since(from).as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::{between, moment};

    #[test]
    fn moments_are_shown_in_utc_and_broken_ones_as_they_are() {
        assert_eq!(moment("2026-11-22T12:00:00.123Z"), "2026-11-22 12:00:00 UTC");
        assert_eq!(moment("yesterday"), "yesterday");
        let seconds = between("2026-11-22T12:00:00Z", "2026-11-22T12:01:30.5Z").unwrap();
        assert!((seconds - 90.5).abs() < 1e-9);
        assert!(between("x", "y").is_none());
    }
}
