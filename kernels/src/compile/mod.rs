//! Compiles kernels from CubeCL to cubins: CubeCL emits CUDA C++ without a GPU, NVRTC compiles it
//! to machine code, and a cache on disk keeps the result.
//!
//! A [`Kernel`] is the key of a kernel: everything that determines its code, such as operation,
//! element type, tile sizes and masks. [`Kernel::source`] emits CUDA C++ ([`Source`]), and
//! [`Compiler::compile`] makes a [`Cubin`] from it. A [`Launch`] is one call of a kernel: its
//! buffers, its scalars and the number of blocks. The operations make launches from shapes alone
//! (in the `launch.rs` of each), so a GPU and the tests without a GPU execute the same launches.
//!
//! Sources are compiled for one architecture (`sm_90a`: H100, H200) and stored under the hash of
//! source, architecture and NVRTC version, so that all ranks and all versions of the program can
//! share a cache folder.
//!
//! CubeCL calls a thread a unit, a warp a plane and a block a cube. Names of fields and kernel
//! parameters follow CubeCL; the documentation uses the words of CUDA.

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

pub use cache::{Cache, Compilation, Compiler};
pub use cubin::{Cubin, Instructions, Resources};
pub(crate) use emit::{Emit, emit};
pub use emit::{Group, Parameters, Source};
pub use error::CompileError;
pub use launch::{Launch, Scalar, pack};
pub(crate) use launch::{cubes, offset};
pub use nvrtc::Nvrtc;

macro_rules! kernels {
    ($($(#[$doc:meta])* $variant:ident($operation:ident)),+ $(,)?) => {
        /// Key of a kernel: everything that determines its code. Equal keys emit equal sources.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Kernel {
            $(
                #[doc = concat!(
                    "A kernel of [`", stringify!($operation), "`](crate::", stringify!($operation), ").",
                )]
                $variant(crate::$operation::launch::Kernel),
            )+
        }

        impl Kernel {
            /// Name of the kernel, made from operation and key. It is the symbol in the cubin, and
            /// profilers show it.
            #[must_use]
            pub fn name(self) -> String {
                match self {
                    $(Self::$variant(kernel) => kernel.name(),)+
                }
            }

            /// Whether the kernel adds to its last buffer in an order that differs from run to run.
            #[must_use]
            pub fn sums_atomically(self) -> bool {
                match self {
                    $(Self::$variant(kernel) => kernel.sums_atomically(),)+
                }
            }

            /// Emits the kernel as CUDA C++.
            ///
            /// # Errors
            /// If CubeCL refuses the kernel, which is a bug of this crate.
            pub fn source(self) -> Result<Source, CompileError> {
                let name = self.name();
                match self {
                    $(Self::$variant(kernel) => kernel.emit(&name),)+
                }
            }
        }
    };
}

// One line per operation, sorted by name.
kernels! {
    Activation(activation),
    Adamw(adamw),
    Attention(attention),
    CachedAttention(cached_attention),
    ColumnSums(column_sums),
    CrossEntropy(cross_entropy),
    Distance(distance),
    Embedding(embedding),
    GatedMlp(gated_mlp),
    GlobalNorm(global_norm),
    InfoNce(info_nce),
    LayerNorm(layer_norm),
    Normalize(normalize),
    PatchEmbed(patch_embed),
    Pooling(pooling),
    Rope(rope),
    Rows(rows),
    SigReg(sig_reg),
    VicReg(vic_reg),
}

/// Element type of activations and weights in a kernel. Sums, statistics and optimizer state are
/// always f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Element {
    /// 32-bit IEEE floating point.
    F32,
    /// bfloat16, the type in which GPUs train.
    Bf16,
}

impl Element {
    /// Name of the type in kernel names, such as `bf16`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        }
    }

    /// Number of elements in 16 bytes, the widest load of one thread.
    #[must_use]
    pub fn vector(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 8,
        }
    }

    /// Elements per vector for rows of `width` elements: [`Self::vector`] if that divides `width`,
    /// otherwise 1.
    #[must_use]
    pub fn lanes(self, width: usize) -> usize {
        if width.is_multiple_of(self.vector()) { self.vector() } else { 1 }
    }
}
