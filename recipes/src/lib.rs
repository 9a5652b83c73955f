//! What a run is: YAML, typed schema, run directory. Never touches a GPU, a network or Slurm.

pub mod clock;
pub mod schema;

pub use schema::Recipe;
