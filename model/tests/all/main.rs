//! The whole model on small sizes: gradients by finite differences, recompute, layout, files of weights.

mod finite_differences;
mod layout;
mod step;
#[path = "../../../tests/tests/all/tiny.rs"]
mod tiny;
mod weight_files;
