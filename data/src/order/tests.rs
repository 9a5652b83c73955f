//! Tests that the order has each sample once per epoch and each weight once per cycle, and that
//! ranks split it completely.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::json;

use super::{Location, Order, Shuffle, SourceLengths, permute};
use crate::error::DataError;
use vljepa_recipes::schema::Stage;

fn stage(batch: usize, mixing: &str, mixture: &[(&str, u32)]) -> Stage {
    let mixture: BTreeMap<_, _> = mixture.iter().copied().collect();
    serde_json::from_value(json!({
        "name": "s", "steps": 1000, "batch": batch, "frames": 2, "mixture": mixture,
        "mixing": mixing, "learning_rate": {"peak": 0.1},
    }))
    .unwrap()
}

fn sources() -> Vec<SourceLengths> {
    let source = |name: &str, lengths: &[u64]| SourceLengths {
        name: name.to_owned(),
        shard_lengths: lengths.to_vec(),
    };
    vec![source("clips", &[7, 0, 5, 11, 7]), source("images", &[4, 9]), source("unused", &[3])]
}

/// Batches of 8 in 8 lanes at most.
fn order(mixing: &str, lanes: usize, window: usize) -> Order {
    let stage = stage(8, mixing, &[("clips", 6), ("images", 2)]);
    Order::new(42, 1, &stage, &sources(), Shuffle { lanes, window }).unwrap()
}

fn one_source(shard_lengths: Vec<u64>, batch: usize, shuffle: Shuffle) -> Order {
    let sources = [SourceLengths { name: "clips".to_owned(), shard_lengths }];
    Order::new(3, 0, &stage(batch, "sample", &[("clips", 1)]), &sources, shuffle).unwrap()
}

fn by_source(order: &Order, indices: u64, source: usize) -> Vec<Location> {
    let mut draws: Vec<_> =
        (0..indices).map(|i| order.locate(i)).filter(|found| found.source == source).collect();
    draws.sort_by_key(|found| found.draw);
    draws
}

#[test]
fn every_sample_comes_once_per_epoch() {
    for (mixing, lanes, window) in [
        ("sample", 1, 1),
        ("sample", 1, 1000),
        ("sample", 3, 4),
        ("sample", 8, 1),
        ("batch", 1, 4),
        ("batch", 4, 2),
    ] {
        let order = order(mixing, lanes, window);
        for (source, length) in [(0, 30), (1, 13)] {
            let draws = by_source(&order, 4000, source);
            assert!(draws.windows(2).all(|two| two[0].draw < two[1].draw), "draws are numbered");
            let mut orders = BTreeSet::new();
            for epoch in 0..25 {
                let places: Vec<_> = draws
                    .iter()
                    .filter(|found| found.epoch == epoch)
                    .map(|found| (found.shard, found.sample))
                    .collect();
                let distinct: BTreeSet<_> = places.iter().collect();
                let case = format!("{mixing}, {lanes} lanes, window {window}, epoch {epoch}");
                assert_eq!((places.len(), distinct.len()), (length, length), "{case}");
                orders.insert(places);
            }
            // With a window of 1, two shards have only two orders.
            assert!(orders.len() > 1, "epochs repeat each other");
            let lengths = &sources()[source].shard_lengths;
            assert!(draws.iter().all(|f| u64::try_from(f.sample).unwrap() < lengths[f.shard]));
        }
    }
}

#[test]
fn every_cycle_has_exactly_the_weights() {
    // The weights 6 and 2 give cycles with 3 clips and 1 image.
    let by_sample = order("sample", 1, 8);
    for cycle in 0..500 {
        let images = (4 * cycle..4 * cycle + 4).filter(|&i| by_sample.locate(i).source == 1);
        assert_eq!(images.count(), 1, "cycle {cycle}");
    }
    let starts = |i: u64| by_sample.locate(4 * i).source == 1;
    let first = (0..500).filter(|&i| starts(i)).count();
    assert!((80..170).contains(&first), "{first} of 500 cycles start with an image; 125 ± 5σ");
    let by_batch = order("batch", 8, 8);
    for cycle in 0..100 {
        let mut images = 0;
        for batch in 4 * cycle..4 * cycle + 4 {
            let of_batch: BTreeSet<_> =
                (8 * batch..8 * batch + 8).map(|i| by_batch.locate(i).source).collect();
            assert_eq!(of_batch.len(), 1, "a batch mixes sources");
            images += of_batch.iter().sum::<usize>();
        }
        assert_eq!(images, 1);
    }
}

#[test]
fn the_order_is_the_pinned_one() {
    // The pinned values were computed at order version 2 by a second implementation, in Python. If
    // they change, resumed runs get other samples, so ORDER_VERSION must be raised.
    let pinned = |mixing, lanes, window| -> Vec<(usize, usize, usize)> {
        let order = order(mixing, lanes, window);
        let places = (0..12).chain([1_000_000_007]).map(|i| order.locate(i));
        places.map(|found| (found.source, found.shard, found.sample)).collect()
    };
    assert_eq!(super::ORDER_VERSION, 2);
    assert_eq!(pinned("sample", 4, 4), PINNED_BY_SAMPLE);
    assert_eq!(pinned("batch", 8, 1000), PINNED_BY_BATCH);
    let order = order("sample", 4, 4);
    let replaced: Vec<_> = (1..5).map(|attempt| order.replacement(7, attempt)).collect();
    let replaced: Vec<_> = replaced.iter().map(|found| (found.shard, found.sample)).collect();
    assert_eq!(replaced, PINNED_REPLACEMENTS);
}

const PINNED_BY_SAMPLE: [(usize, usize, usize); 13] = [
    (1, 0, 3),
    (0, 2, 2),
    (0, 3, 3),
    (0, 3, 4),
    (1, 1, 4),
    (0, 4, 2),
    (0, 0, 0),
    (0, 4, 6),
    (0, 2, 0),
    (0, 2, 1),
    (1, 0, 1),
    (0, 3, 5),
    (1, 1, 5),
];
const PINNED_BY_BATCH: [(usize, usize, usize); 13] = [
    (1, 0, 2),
    (1, 0, 1),
    (1, 1, 4),
    (1, 1, 1),
    (1, 1, 8),
    (1, 1, 7),
    (1, 1, 6),
    (1, 1, 0),
    (0, 3, 8),
    (0, 2, 1),
    (0, 0, 1),
    (0, 0, 2),
    (1, 1, 8),
];
const PINNED_REPLACEMENTS: [(usize, usize); 4] = [(3, 3), (0, 5), (4, 1), (3, 4)];

#[test]
fn another_seed_stage_or_source_list_gives_the_order_it_should() {
    let stage = stage(8, "sample", &[("clips", 3), ("images", 1)]);
    let places = |seed, index, sources: &[SourceLengths]| -> Vec<_> {
        let shuffle = Shuffle { lanes: 2, window: 8 };
        let order = Order::new(seed, index, &stage, sources, shuffle).unwrap();
        (0..50).map(|i| order.locate(i)).map(|found| (found.shard, found.sample)).collect()
    };
    let base = places(1, 0, &sources());
    assert_eq!(base, places(1, 0, &sources()));
    assert_eq!(
        base,
        places(1, 0, &sources()[..2]),
        "a source that is not drawn does not change the order"
    );
    assert_ne!(base, places(2, 0, &sources()));
    assert_ne!(base, places(1, 1, &sources()));
}

#[test]
fn lanes_have_the_weights_by_themselves_and_a_batch_has_them_almost() {
    // Cycles of 7 draws, batches of 24 rows in 8 lanes of 3 rows.
    let stage = stage(24, "sample", &[("clips", 5), ("images", 2)]);
    let shuffle = Shuffle { lanes: 8, window: 1 };
    let order = Order::new(42, 1, &stage, &sources(), shuffle).unwrap();
    let images = |rows: &[u64]| rows.iter().filter(|&&i| order.locate(i).source == 1).count();
    for lane in 0..8 {
        let draws: Vec<u64> =
            (0..70).flat_map(|step| (0..3).map(move |row| 24 * step + 3 * lane + row)).collect();
        assert!(draws.chunks_exact(7).all(|cycle| images(cycle) == 2), "lane {lane}");
    }
    for step in 0..70 {
        let batch: Vec<u64> = (24 * step..24 * step + 24).collect();
        // 24 · 2/7 = 6.9. A batch in which the lanes begin new cycles has parts of more cycles.
        assert!((6..=9).contains(&images(&batch)), "step {step}: {}", images(&batch));
    }
}

#[test]
fn a_lane_reads_its_stretch_from_beginning_to_end() {
    let order = one_source(vec![1000; 10], 8, Shuffle { lanes: 4, window: 100 });
    let mut seen = BTreeSet::new();
    for lane in 0..4 {
        let draws: Vec<Location> = (0..1250)
            .flat_map(|step| (0..2).map(move |row| 8 * step + 2 * lane + row))
            .map(|index| order.locate(index))
            .collect();
        assert!(draws.iter().all(|found| found.epoch == 0));
        seen.extend(draws.iter().map(|found| (found.shard, found.sample)));
        for window in draws.chunks_exact(100) {
            let shards: BTreeSet<_> = window.iter().map(|found| found.shard).collect();
            let samples: BTreeSet<_> = window.iter().map(|found| found.sample / 100).collect();
            assert_eq!((shards.len(), samples.len()), (1, 1));
            let ascending = window.windows(2).filter(|two| two[0].sample < two[1].sample).count();
            assert!((25..75).contains(&ascending), "{ascending} of 99 neighbours ascend");
        }
        let windows: Vec<_> = draws
            .chunks_exact(100)
            .map(|window| (window[0].shard, window[0].sample / 100))
            .collect();
        let jumps = windows.windows(2).filter(|two| two[0].0 != two[1].0).count();
        assert_eq!(jumps, 2, "2,500 samples lie in three shards, read one after the other");
        let falls = windows.windows(2).filter(|two| two[0].0 == two[1].0 && two[0].1 > two[1].1);
        assert_eq!(falls.count(), 0, "within a shard, windows ascend");
    }
    assert_eq!(seen.len(), 10_000, "the lanes share the source");
}

#[test]
fn a_batch_of_the_paper_mixes_shards_and_a_rank_reads_few() {
    // The first stage of recipes/pretrain.yaml over a billion samples: 192 ranks of 128 rows.
    let shuffle = Shuffle { lanes: 1536, window: 1024 };
    let order = one_source(vec![10_000; 100_000], 24_576, shuffle);
    let shards = |indices: &mut dyn Iterator<Item = u64>| -> BTreeSet<usize> {
        indices.map(|index| order.locate(index).shard).collect()
    };
    for step in [0, 5_000, 30_000] {
        let start = step * 24_576;
        let mixed = shards(&mut (start..start + 24_576)).len();
        assert!((1536..=2 * 1536).contains(&mixed), "step {step} has samples of {mixed} shards");
        for rank in [0, 77, 191] {
            let rows = move |step| (0..128).map(move |row| step * 24_576 + rank * 128 + row);
            // 100 steps read 1,600 samples in each of the rank's 8 lanes.
            let read = shards(&mut (step..step + 100).flat_map(rows)).len();
            assert!((8..=16).contains(&read), "rank {rank} opens {read} shards");
        }
    }
}

#[test]
fn a_small_source_is_shuffled_as_a_whole() {
    // A stretch is not shorter than a window: 300 samples in windows of 100 have 3 stretches at
    // most, and 2 of them divide 8 lanes. One window holds the whole source.
    for (window, stretches) in [(100, 2), (300, 1), (1000, 1)] {
        let order = one_source(vec![100; 3], 8, Shuffle { lanes: 8, window });
        assert_eq!(order.sources[0].stretches, stretches);
        let first: BTreeSet<_> =
            (0..300).map(|i| order.locate(i)).map(|found| (found.shard, found.sample)).collect();
        assert!(stretches > 1 || first.len() == 300, "an epoch is the first 300 rows");
    }
}

#[test]
fn replacements_are_of_the_same_source_and_repeat() {
    let (order, again) = (order("sample", 8, 8), order("sample", 8, 8));
    for index in 0..100 {
        let here = order.locate(index);
        let mut places = BTreeSet::new();
        for attempt in 1..=20 {
            let other = order.replacement(index, attempt);
            assert_eq!(other, again.replacement(index, attempt));
            assert_eq!((other.source, other.draw), (here.source, here.draw));
            places.insert((other.shard, other.sample));
        }
        assert!(places.len() > 5, "replacements of {index} are always the same");
    }
}

#[test]
fn permutations_are_bijections_and_fair() {
    for size in (1..70).chain([1000, 1024, 1025]) {
        for key in 0..3 {
            let image: BTreeSet<_> = (0..size).map(|place| permute(key, size, place)).collect();
            assert_eq!(image, (0..size).collect(), "size {size}");
        }
    }
    // Under 10,000 keys, the image of 3 in 0..10 should be each index 1,000 times, with σ = 30. The
    // limits are five σ.
    let mut counts = [0; 10];
    for key in 0..10_000 {
        counts[usize::try_from(permute(key, 10, 3)).unwrap()] += 1;
    }
    assert!(counts.iter().all(|count| (850..1150).contains(count)), "{counts:?}");
}

#[test]
fn what_cannot_be_drawn_is_refused() {
    let refused = |mixture: &[(&str, u32)], batch, window| {
        let (stage, shuffle) = (stage(batch, "sample", mixture), Shuffle { lanes: 4, window });
        let error = Order::new(1, 0, &stage, &sources(), shuffle);
        let Err(DataError::Recipe { key, .. }) = error else { panic!("accepted: {mixture:?}") };
        key
    };
    assert_eq!(refused(&[("sounds", 1)], 8, 8), "stages.0.mixture.sounds");
    assert_eq!(refused(&[("clips", 0)], 8, 8), "stages.0.mixture");
    assert_eq!(refused(&[("clips", 1)], 0, 8), "stages.0.batch");
    assert_eq!(refused(&[("clips", 1)], 8, 0), "data.shuffle_window");
}
