//! Recipes, their typed schema, run directories, and the protocol between workers and supervisor.
//! This crate never touches a GPU, a network or Slurm.

pub mod check;
pub mod claims;
pub mod clock;
pub mod cost;
pub mod file_kind;
mod load;
pub mod node;
mod order;
pub mod paper;
pub mod plan;
pub mod protocol;
mod rank;
mod read;
pub mod run_directory;
mod schedule;
pub mod schema;
mod shard_names;
pub mod signals;
mod suggest;
mod table;
mod tree;
pub mod weight_index;

pub use check::Problem;
pub use load::{
    LoadError, Loaded, Mistake, Programme, ProgrammeRun, PublishedModel, Role, is_programme, load,
    load_programme, load_rates, load_rates_text, load_resolved, load_set, load_yaml,
    published_models, to_yaml,
};
pub use rank::RankId;
pub use run_directory::{RunDirectory, RunDirectoryError};
pub use schema::Recipe;
pub use shard_names::is_remote;
pub use table::{
    Awaited, RowRecipe, check_files, check_files_with, is_absent, row_recipes, row_recipes_with,
};
