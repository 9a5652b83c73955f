//! Wall-clock time, read in this one place; durations come from `std::time::Instant`.

use jiff::Timestamp;

/// Now, in UTC.
#[must_use]
pub fn now() -> Timestamp {
    Timestamp::now()
}

/// Now as RFC 3339 text with milliseconds, as run directories write it.
#[must_use]
pub fn now_text() -> String {
    format!("{:.3}", now())
}

/// Now in whole seconds since 1970.
#[must_use]
pub fn now_s() -> i64 {
    now().as_second()
}
