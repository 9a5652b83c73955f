//! What kernels are written with: the tensor-core tile, asynchronous copies, reductions over a plane and a cube.

mod reduce;
mod tile;

pub(crate) use reduce::*;
pub(crate) use tile::*;
