//! Reads a remote file through a cache folder, for the tests of processes that share the folder or
//! are killed. Arguments: URL, folder, bytes of the cache, number of rounds. Each round reads the
//! whole file in pieces, in an order that depends on the process, and prints a hash of the bytes.

use std::io::Write;

use vljepa_data::storage::{CacheOptions, Location, Storage, StorageOptions};

/// Length of a piece in bytes. It divides no block, so pieces lie across blocks.
const PIECE: u64 = 777_777;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [url, folder, bytes, rounds] = arguments.as_slice() else {
        return Err("usage: read_storage URL FOLDER BYTES ROUNDS".into());
    };
    let cache = CacheOptions { folder: folder.into(), bytes: bytes.parse()? };
    let storage = Storage::new(StorageOptions { cache: Some(cache), ..StorageOptions::default() })?;
    let file = storage.open(&Location::parse(url)?)?;
    let pieces = file.length().div_ceil(PIECE);
    for round in 0..rounds.parse::<u64>()? {
        let mut whole = vec![0; usize::try_from(file.length())?];
        let first = (u64::from(std::process::id()) + round) % pieces;
        for piece in (first..pieces).chain(0..first) {
            let start = usize::try_from(piece * PIECE)?;
            let end = whole.len().min(start + usize::try_from(PIECE)?);
            file.read_exact_at(&mut whole[start..end], piece * PIECE)?;
        }
        writeln!(std::io::stdout(), "{}", crc32c::crc32c(&whole))?;
    }
    Ok(())
}
