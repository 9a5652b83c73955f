//! The tensor-core tile in inline PTX: `ldmatrix`, `mma.sync` m16n8k16 on bf16 with f32 sums, `cp.async` into shared memory.
