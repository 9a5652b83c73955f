//! Tests of rates.
