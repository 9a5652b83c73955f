//! Loading and publishing at 192, 1,024 and 4,096 ranks: real loads of a small checkpoint by
//! threads, and the reads of the paper's model on a simulated file system.

use vljepa_kernels::DType;
use vljepa_kernels::testing::normal;
use vljepa_recipes::protocol::FileEntry;

use super::load::pieces;
use super::publish::Draft;
use super::tests::{checkpoints, contents, flat_layout};
use super::*;
use crate::collectives::Threads;

/// Trainable elements of the paper's model.
const TRAINABLE: usize = 795_864_896;
/// Bytes of weights and both moments.
const CHECKPOINT_BYTES: u64 = 12 * TRAINABLE as u64;

/// A shared file system: what it allows to each client and to all together. The values are those of
/// a middling Lustre system.
struct FileSystem {
    open_s: f64,
    opens_per_s: f64,
    client_bytes_per_s: f64,
    bytes_per_s: f64,
}

const SHARED: FileSystem =
    FileSystem { open_s: 2e-3, opens_per_s: 2e4, client_bytes_per_s: 1.5e9, bytes_per_s: 1e11 };

impl FileSystem {
    /// Seconds until all ranks have read.
    #[expect(clippy::cast_precision_loss, reason = "bytes are far below 2^53")]
    fn seconds(&self, ranks: &[Reads]) -> f64 {
        let alone = |reads: &Reads| {
            reads.opens as f64 * self.open_s + reads.bytes as f64 / self.client_bytes_per_s
        };
        let slowest = ranks.iter().map(alone).fold(0.0, f64::max);
        let opens = ranks.iter().map(|reads| reads.opens as f64).sum::<f64>();
        let bytes = ranks.iter().map(|reads| reads.bytes as f64).sum::<f64>();
        slowest.max(opens / self.opens_per_s).max(bytes / self.bytes_per_s)
    }
}

/// The parts that `ranks` ranks write of a model with `len` trainable elements.
fn parts(len: usize, ranks: usize) -> Vec<FileEntry> {
    let shards = Shards::new(len, ranks);
    let part = |rank| {
        let range = shards.of(rank);
        let (name, bytes) = (format!("rank-{rank:04}"), 12 * range.len() as u64);
        FileEntry { name, bytes, blake3: String::new(), range }
    };
    (0..ranks).map(part).collect()
}

/// What each of `ranks` ranks with a sharded optimizer reads to fill its buffers. Real loads are
/// compared with it below.
fn filled(files: &[FileEntry], len: usize, ranks: usize) -> Vec<Reads> {
    let shards = Shards::new(len, ranks);
    let of = |rank: usize| {
        let found: Vec<_> = pieces(files, &shards.of(rank)).collect();
        let elements: usize = found.iter().map(|(_, range)| range.len()).sum();
        // A file stays open from one tensor to the next.
        let opens = if found.len() == 1 { 1 } else { TENSORS.len() * found.len() };
        Reads { opens: opens as u64, bytes: 12 * elements as u64 }
    };
    (0..ranks).map(of).collect()
}

/// What each rank reads to verify the files and then to fill its buffers.
fn reads(files: &[FileEntry], len: usize, ranks: usize) -> Vec<Reads> {
    let of_rank = |(rank, filled): (usize, Reads)| {
        let verified: Vec<_> = files.iter().skip(rank).step_by(ranks).collect();
        Reads {
            opens: filled.opens + verified.len() as u64,
            bytes: filled.bytes + verified.iter().map(|file| file.bytes).sum::<u64>(),
        }
    };
    filled(files, len, ranks).into_iter().enumerate().map(of_rank).collect()
}

#[test]
fn a_checkpoint_is_read_twice_in_all_whatever_the_number_of_ranks_that_wrote_and_load_it() {
    for (wrote, load) in [(192, 192), (1024, 1024), (4096, 4096), (192, 184), (4096, 192)] {
        let reads = reads(&parts(TRAINABLE, wrote), TRAINABLE, load);
        let bytes: u64 = reads.iter().map(|reads| reads.bytes).sum();
        assert_eq!(bytes, 2 * CHECKPOINT_BYTES, "once to verify, once to load");
        let seconds = SHARED.seconds(&reads);
        assert!(seconds < 5.0, "{wrote} to {load} ranks: {seconds:.2} s");
        // If every rank read all parts, which the weights alone would need without a gather:
        let all = Reads { opens: wrote as u64, bytes: 4 * TRAINABLE as u64 };
        let before = SHARED.seconds(&vec![all; load]);
        assert!(before > 10.0 * seconds || load < 1024, "{before:.0} s against {seconds:.2} s");
    }
}

#[test]
fn a_part_lies_in_few_files_and_is_covered_once() {
    let files = parts(TRAINABLE, 192);
    for ranks in [1, 7, 191, 192, 193, 4096] {
        let shards = Shards::new(TRAINABLE, ranks);
        let mut end = 0;
        for rank in 0..ranks {
            let found: Vec<_> = pieces(&files, &shards.of(rank)).collect();
            for (file, range) in &found {
                assert!(range.start == end && file.range.end >= range.end, "{file:?} {range:?}");
                end = range.end;
            }
            assert!(found.len() <= 192 / ranks + 2, "{ranks} ranks open {}", found.len());
        }
        assert_eq!(end, TRAINABLE);
    }
}

#[test]
fn real_ranks_by_the_hundred_publish_and_load_a_checkpoint_of_which_each_reads_its_part() {
    for ranks in [192, 1024] {
        // More rows than ranks, and no multiple.
        let len = Layout::ALIGNMENT * (ranks + 5);
        let folder = tempfile::tempdir().unwrap();
        let [weights, first, second] = [1, 2, 3].map(|seed| normal(seed, len));
        let layout = flat_layout(len);
        let retention = Retention::newest(1);
        let draft =
            Draft::new(&checkpoints(folder.path()), contents(&layout, 7), ranks, &retention);
        draft.make_folder().unwrap();
        let shards = Shards::new(len, ranks);
        let written = (0..ranks).map(|rank| {
            let range = shards.of(rank);
            let values = [&weights, &first, &second].map(|values| &values[range.clone()]);
            write_part(&draft.temporary, rank, range.clone(), values).unwrap()
        });
        draft.publish(written.collect()).unwrap();
        let loaded = Threads::run(ranks, |collectives| {
            let own = shards.of(collectives.rank());
            let padded = |len, room| Tensor::padded(Device::Host, DType::F32, &[len], room);
            let mut all = padded(len, shards.room()).unwrap();
            let mut moments = [(); 2].map(|()| padded(own.len(), shards.slot()).unwrap());
            let [one, two] = &mut moments;
            let mut buffers =
                Buffers { weights: &mut all, moments: [one, two], range: own.clone() };
            let folder = checkpoints(folder.path());
            let loaded = load_newest(&folder, &collectives, &layout, &mut buffers).unwrap();
            let same = |tensor: &Tensor, values: &[f32]| *tensor.to_f32().unwrap() == *values;
            assert!(same(&all, &weights), "rank {} has other weights", collectives.rank());
            assert!(same(&moments[0], &first[own.clone()]) && same(&moments[1], &second[own]));
            loaded.reads
        });
        assert_eq!(loaded, filled(&parts(len, ranks), len, ranks), "as the simulation assumes");
        let bytes: u64 = loaded.iter().map(|reads| reads.bytes).sum();
        assert_eq!(bytes, 12 * len as u64, "each byte once");
    }
}
