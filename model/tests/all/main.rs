//! The whole model on small sizes: gradients by finite differences, recompute, layout, files of weights.
#![expect(unreachable_pub, reason = "modules of one test binary share their helpers")]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod finite_differences;
mod layout;
mod step;
#[path = "../../../tests/tests/all/tiny.rs"]
mod tiny;
mod weight_files;
