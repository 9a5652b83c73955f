//! Building blocks of the kernels: the tensor-core tile, asynchronous copies, and reductions over a
//! warp and a block.
//!
//! CubeCL calls a block a cube, a warp a plane and a thread a unit; its API and the names of
//! functions here keep these words.

mod reduce;
mod tile;
mod warpgroup;

pub(crate) use reduce::*;
pub(crate) use tile::*;
pub(crate) use warpgroup::*;
