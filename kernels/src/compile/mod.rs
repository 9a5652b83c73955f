//! From a kernel in CubeCL to a cubin: CUDA C++ without a GPU, NVRTC to machine code, a cache on disk.
//!
//! A [`Kernel`] is everything that decides a kernel's code: which operation, element type, tile sizes, masks. [`Kernel::source`]
//! emits it as CUDA C++ ([`Source`]), [`Compiler::compile`] makes it a [`Cubin`]. A [`Launch`] is one kernel with the buffers, the
//! scalars and the number of cubes of one call; operations make launches from shapes alone (`launch.rs` of each), so that what a
//! GPU runs and what the tests execute without one are the same launches.
//!
//! Sources are compiled for one architecture (`sm_90a`: H100, H200) and stored under the hash of source, architecture, options
//! and NVRTC version, so a cache folder can be shared by all ranks and by all versions of the program.

mod cache;
mod cubin;
mod emit;
#[cfg(any(test, feature = "emulator"))]
pub(crate) mod emulator;
mod error;
mod launch;
mod nvrtc;
#[cfg(test)]
mod tests;

pub use cache::{Cache, Compiler};
pub use cubin::{Cubin, Instructions, Resources};
pub(crate) use emit::{Emit, emit};
pub use emit::{Group, Parameters, Source};
pub use error::CompileError;
pub use launch::{Launch, Scalar, pack};
pub(crate) use launch::{cubes, offset};
pub use nvrtc::Nvrtc;

macro_rules! kernels {
    ($($(#[$doc:meta])* $variant:ident($operation:ident)),+ $(,)?) => {
        /// Everything that decides one kernel's code. Two equal keys emit the same source.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Kernel {
            $(
                #[doc = concat!("Of [`", stringify!($operation), "`](crate::", stringify!($operation), ").")]
                $variant(crate::$operation::launch::Kernel),
            )+
        }

        impl Kernel {
            /// The kernel's name, from operation and key: the symbol in the cubin, and what profilers show.
            #[must_use]
            pub fn name(self) -> String {
                match self {
                    $(Self::$variant(kernel) => kernel.name(),)+
                }
            }

            /// Whether it adds to memory in an order that differs from run to run.
            #[must_use]
            pub fn sums_atomically(self) -> bool {
                match self {
                    $(Self::$variant(kernel) => kernel.sums_atomically(),)+
                }
            }

            /// The kernel as CUDA C++.
            ///
            /// # Errors
            /// When CubeCL refuses it, which is a defect of this crate.
            pub fn source(self) -> Result<Source, CompileError> {
                let name = self.name();
                match self {
                    $(Self::$variant(kernel) => kernel.emit(&name),)+
                }
            }
        }
    };
}

// One line per operation, in the order of their names.
kernels! {
    Adamw(adamw),
    Attention(attention),
    ColumnSums(column_sums),
    CrossEntropy(cross_entropy),
    Distance(distance),
    Embedding(embedding),
    GatedMlp(gated_mlp),
    Gelu(gelu),
    GlobalNorm(global_norm),
    InfoNce(info_nce),
    LayerNorm(layer_norm),
    Normalize(normalize),
    PatchEmbed(patch_embed),
    Pooling(pooling),
    Rope(rope),
    Rows(rows),
}

/// Element type of activations and weights in a kernel; sums, statistics and optimizer state are f32 in both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Element {
    /// 32-bit IEEE.
    F32,
    /// bfloat16: what GPUs train in.
    Bf16,
}

impl Element {
    /// As kernel names have it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        }
    }

    /// Elements in 16 bytes, the widest load of one unit.
    #[must_use]
    pub fn vector(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 8,
        }
    }

    /// Elements of a vector in rows of `width`: as many as 16 bytes hold where that divides the width, else 1.
    #[must_use]
    pub fn lanes(self, width: usize) -> usize {
        if width.is_multiple_of(self.vector()) { self.vector() } else { 1 }
    }
}
