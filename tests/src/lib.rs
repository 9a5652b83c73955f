//! This library is empty. The tests that cross crates are in `tests/tests`.
