//! Compares segments of sequences with scikit-learn's clusters.

use std::collections::BTreeMap;

use serde::Deserialize;
use vljepa_worker::evaluation::segments::segments;

use crate::golden;

#[derive(Deserialize)]
struct Sequence {
    embeddings: Vec<Vec<f32>>,
    /// Borders in the order in which they disappear.
    removed: Vec<usize>,
    /// The same without the sizes of segments in the cost.
    wrong: Vec<usize>,
}

/// First embeddings of the segments that are left without some borders.
fn starts(length: usize, removed: &[usize]) -> Vec<usize> {
    (0..length).filter(|start| !removed.contains(start)).collect()
}

#[test]
fn segments_are_the_clusters_of_scikit_learn_at_every_count() {
    let text = std::fs::read(golden::root().join("ward.json")).unwrap();
    let sequences: BTreeMap<String, Sequence> = serde_json::from_slice(&text).unwrap();
    let mut mistakes = 0;
    for (name, Sequence { embeddings, removed, wrong }) in sequences {
        let length = embeddings.len();
        for count in 1..=length {
            let found = segments(&embeddings, count);
            let found: Vec<usize> = found.into_iter().map(|segment| segment.start).collect();
            assert_eq!(found, starts(length, &removed[..length - count]), "{name}, {count}");
            mistakes += usize::from(found != starts(length, &wrong[..length - count]));
        }
    }
    assert!(mistakes > 50, "only {mistakes} partitions show that sizes count");
}
