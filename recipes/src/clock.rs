//! The only place that reads the wall clock. Durations come from `std::time::Instant`.

use jiff::Timestamp;

/// Returns the current time in UTC.
#[must_use]
pub fn now() -> Timestamp {
    Timestamp::now()
}

/// Returns the current time as RFC 3339 text with milliseconds, the format of run directories.
#[must_use]
pub fn now_text() -> String {
    format!("{:.3}", now())
}

/// Returns the current time in whole seconds since 1970.
#[must_use]
pub fn now_s() -> i64 {
    now().as_second()
}

/// Returns the seconds from 1970 to an RFC 3339 time, or `None` if the text is no such time.
#[must_use]
pub fn seconds_of(text: &str) -> Option<f64> {
    Some(text.parse::<Timestamp>().ok()?.as_duration().as_secs_f64())
}
