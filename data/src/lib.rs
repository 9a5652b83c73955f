//! WebDataset shards to host batches: order, decoding, tokenising, the synthetic set.
//!
//! [`order`] says which sample stands at which place of the run, [`shard_index`] where its bytes are, [`decode`] and [`transform`]
//! make pixels of them, [`tokenize`] makes tokens of its texts, and [`stream`] does all of it on threads, ahead of the step.
//! [`reader`] reads samples one by one, for evaluation and questions. Never touches a GPU.

pub mod batch;
pub mod decode;
pub mod error;
pub mod order;
pub mod reader;
pub mod sample;
pub mod shard_index;
pub mod shards;
pub mod stream;
pub mod synthetic;
pub mod tar;
pub mod tokenize;
pub mod transform;

#[cfg(test)]
mod fixtures;

pub use batch::{Batch, FrameMemory, Ragged, SampleRef, Skipped};
pub use error::DataError;
pub use order::{Location, ORDER_VERSION, Order, SourceLengths};
pub use reader::{LoadOptions, LoadedSample, SampleReader};
pub use sample::Question;
pub use stream::{BatchStream, StreamStats};
pub use tokenize::{Tokenizer, target_hash};
