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
