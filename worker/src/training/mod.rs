//! Training: the loop over stages and steps, one step, its batches and its optimizer. Read
//! [`train`] first, then [`step`].

pub mod feed;
pub mod optimize;
pub mod step;
pub mod train;
