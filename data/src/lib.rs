//! WebDataset shards to host batches: order, decoding, tokenising, the synthetic set.
