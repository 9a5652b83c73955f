//! Shapes in the tests of cached attention.

use crate::testing::{Random, indices};
use crate::{Device, Packed};

/// Query heads, key/value heads, head width, rows of the pool, and lengths of the lists.
pub(crate) type Case = (usize, usize, usize, usize, &'static [usize]);

/// Every head width of the kernels; groups of 1, 3, 4 and more heads than a block takes; lists of
/// one row, shorter and longer than the rows that a block reads at a time; no query.
pub(crate) const CASES: [Case; 7] = [
    (2, 1, 16, 70, &[1, 70, 33]),
    (3, 1, 32, 40, &[5, 40]),
    (8, 2, 64, 300, &[1, 257, 16, 17]),
    (2, 2, 64, 9, &[2, 9, 4]),
    (18, 2, 128, 30, &[7, 30]),
    (4, 1, 256, 20, &[20, 3]),
    (4, 2, 16, 3, &[]),
];

/// Lists of the given lengths with rows below `pool`. The first two queries share a prefix.
pub(crate) fn lists(seed: u64, pool: usize, lengths: &[usize]) -> Packed {
    let mut random = Random::new(seed);
    let (mut rows, mut ends) = (Vec::new(), vec![0]);
    for len in lengths {
        rows.extend(indices(if rows.is_empty() { seed } else { random.bits() }, *len, pool));
        ends.push(i32::try_from(rows.len()).unwrap());
    }
    if let [first, second, ..] = lengths {
        let shared = (*first).min(*second);
        rows.copy_within(..shared, *first);
    }
    Packed::new(Device::Host, rows, ends).unwrap()
}

/// The same lists without the last row of each list that has more than one.
pub(crate) fn without_last_rows(lists: &Packed) -> Packed {
    let (mut rows, mut ends) = (Vec::new(), vec![0]);
    for query in 0..lists.lengths.rows() {
        let range = lists.lengths.range(query);
        let kept = range.start..range.end - usize::from(range.len() > 1);
        rows.extend(&lists.host_ids()[kept]);
        ends.push(i32::try_from(rows.len()).unwrap());
    }
    Packed::new(Device::Host, rows, ends).unwrap()
}

/// The pool (p, g, hd) with the key/value heads in reverse order.
pub(crate) fn other_heads(pool: &[f32], kv_heads: usize, head_dim: usize) -> Vec<f32> {
    let row = |row: &[f32]| row.chunks_exact(head_dim).rev().flatten().copied().collect::<Vec<_>>();
    pool.chunks_exact(kv_heads * head_dim).flat_map(row).collect()
}
