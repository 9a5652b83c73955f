//! Tests that the order has each sample once per epoch and each weight once per cycle, and that
//! ranks split it completely.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::json;

use super::{Location, Order, SourceLengths, permute};
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

fn order(mixing: &str, window: usize) -> Order {
    let stage = stage(8, mixing, &[("clips", 6), ("images", 2)]);
    Order::new(42, 1, &stage, &sources(), window).unwrap()
}

fn by_source(order: &Order, indices: u64, source: usize) -> Vec<Location> {
    let mut draws: Vec<_> =
        (0..indices).map(|i| order.locate(i)).filter(|found| found.source == source).collect();
    draws.sort_by_key(|found| found.draw);
    draws
}

#[test]
fn every_sample_comes_once_per_epoch() {
    for (mixing, window) in [("sample", 1), ("sample", 4), ("sample", 1000), ("batch", 4)] {
        let order = order(mixing, window);
        for (source, length) in [(0, 30), (1, 13)] {
            let draws = by_source(&order, 2000, source);
            assert!(draws.iter().zip(0..).all(|(found, n)| found.draw == n), "{mixing}: a gap");
            let epochs = draws.chunks_exact(length);
            assert!(epochs.len() >= 30);
            let mut orders = BTreeSet::new();
            for (epoch, draws) in (0..).zip(epochs) {
                assert!(draws.iter().all(|found| found.epoch == epoch));
                let places: Vec<_> =
                    draws.iter().map(|found| (found.shard, found.sample)).collect();
                let distinct: BTreeSet<_> = places.iter().collect();
                assert_eq!(distinct.len(), length, "{mixing}, window {window}, epoch {epoch}");
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
    let by_sample = order("sample", 8);
    for cycle in 0..500 {
        let images = (4 * cycle..4 * cycle + 4).filter(|&i| by_sample.locate(i).source == 1);
        assert_eq!(images.count(), 1, "cycle {cycle}");
    }
    let starts = |i: u64| by_sample.locate(4 * i).source == 1;
    let first = (0..500).filter(|&i| starts(i)).count();
    assert!((80..170).contains(&first), "{first} of 500 cycles start with an image; 125 ± 5σ");
    let by_batch = order("batch", 8);
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
    // The pinned values were computed at order version 1 by a second implementation, in Python. If
    // they change, resumed runs get other samples, so ORDER_VERSION must be raised.
    let pinned = |mixing, window| -> Vec<(usize, usize, usize)> {
        let order = order(mixing, window);
        let places = (0..12).chain([1_000_000_007]).map(|i| order.locate(i));
        places.map(|found| (found.source, found.shard, found.sample)).collect()
    };
    assert_eq!(super::ORDER_VERSION, 1);
    assert_eq!(pinned("sample", 4), PINNED_BY_SAMPLE);
    assert_eq!(pinned("batch", 1000), PINNED_BY_BATCH);
    let order = order("sample", 4);
    let replaced: Vec<_> = (1..5).map(|attempt| order.replacement(7, attempt)).collect();
    let replaced: Vec<_> = replaced.iter().map(|found| (found.shard, found.sample)).collect();
    assert_eq!(replaced, PINNED_REPLACEMENTS);
}

const PINNED_BY_SAMPLE: [(usize, usize, usize); 13] = [
    (1, 1, 1),
    (0, 4, 0),
    (0, 4, 2),
    (0, 4, 3),
    (1, 1, 0),
    (0, 4, 4),
    (0, 4, 5),
    (0, 4, 1),
    (0, 0, 0),
    (1, 1, 2),
    (0, 4, 6),
    (0, 0, 4),
    (0, 3, 5),
];
const PINNED_BY_BATCH: [(usize, usize, usize); 13] = [
    (1, 1, 4),
    (1, 0, 0),
    (1, 1, 3),
    (1, 1, 7),
    (1, 1, 1),
    (1, 1, 0),
    (1, 1, 6),
    (1, 0, 3),
    (0, 3, 1),
    (0, 4, 6),
    (0, 3, 2),
    (0, 4, 0),
    (1, 1, 8),
];
const PINNED_REPLACEMENTS: [(usize, usize); 4] = [(4, 5), (4, 3), (3, 5), (4, 2)];

#[test]
fn another_seed_stage_or_source_list_gives_the_order_it_should() {
    let stage = stage(8, "sample", &[("clips", 3), ("images", 1)]);
    let places = |seed, index, sources: &[SourceLengths]| -> Vec<_> {
        let order = Order::new(seed, index, &stage, sources, 8).unwrap();
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
fn reading_stays_within_a_window() {
    let lengths = vec![1000; 10];
    let sources = [SourceLengths { name: "clips".to_owned(), shard_lengths: lengths }];
    let order = Order::new(3, 0, &stage(8, "sample", &[("clips", 1)]), &sources, 100).unwrap();
    for window in 0..100 {
        let places: Vec<_> = (100 * window..100 * window + 100).map(|i| order.locate(i)).collect();
        let shards: BTreeSet<_> = places.iter().map(|found| found.shard).collect();
        let samples: BTreeSet<_> = places.iter().map(|found| found.sample / 100).collect();
        assert_eq!((shards.len(), samples.len()), (1, 1));
        let sorted = places.windows(2).filter(|two| two[0].sample < two[1].sample).count();
        assert!((25..75).contains(&sorted), "{sorted} of 99 neighbours ascend; about half should");
    }
}

#[test]
fn replacements_are_of_the_same_source_and_repeat() {
    let (order, again) = (order("sample", 8), order("sample", 8));
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
        let error = Order::new(1, 0, &stage(batch, "sample", mixture), &sources(), window);
        let Err(DataError::Recipe { key, .. }) = error else { panic!("accepted: {mixture:?}") };
        key
    };
    assert_eq!(refused(&[("sounds", 1)], 8, 8), "stages.0.mixture.sounds");
    assert_eq!(refused(&[("clips", 0)], 8, 8), "stages.0.mixture");
    assert_eq!(refused(&[("clips", 1)], 0, 8), "stages.0.batch");
    assert_eq!(refused(&[("clips", 1)], 8, 0), "data.shuffle_window");
}
