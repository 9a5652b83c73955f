//! Turns WebDataset shards into batches in host memory: sample order, decoding, tokenising. Also
//! makes shards of raw sets, and writes the synthetic set.
//!
//! [`order`] decides which sample comes at which position of a stage, and [`catalogue`] knows where
//! its bytes are. [`decode`] and [`transform`] turn the bytes into pixels, and [`tokenize`]
//! turns the texts into tokens. [`stream`] runs all of this on threads, ahead of the training step.
//! [`reader`] reads samples one by one, for evaluation and questions, from shards or from one of
//! the published evaluation [`sets`]. [`prepare`] makes shards that are fast to read, and
//! [`feed_rate`] measures how many GPUs a machine feeds. This crate never uses a GPU.

pub mod batch;
pub mod catalogue;
pub mod conversation;
pub mod decode;
pub mod error;
pub mod feed_rate;
mod json;
pub mod order;
pub mod prepare;
pub mod reader;
pub mod sample;
pub mod sets;
pub mod shard_index;
pub mod shards;
pub mod storage;
pub mod stream;
pub mod synthetic;
pub mod tar;
pub mod texts;
pub mod tokenize;
pub mod transform;

#[cfg(test)]
mod fixtures;

pub use batch::{Batch, FrameMemory, Ragged, SampleRef, Skipped};
pub use catalogue::{Catalogue, Catalogues};
pub use conversation::Conversation;
pub use error::DataError;
pub use order::{Location, ORDER_VERSION, Order, Shuffle, SourceLengths};
pub use reader::{LoadOptions, LoadedSample, SampleReader, SampleVideo};
pub use stream::{BatchStream, StreamStats};
pub use texts::{Annotation, Question};
pub use tokenize::{Tokenizer, target_hash};
