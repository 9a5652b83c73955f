//! Sizes at which unfolding is compared.

use super::Grid;

/// (clips, grid): single pixels, patches of 3, a still picture, no clip, and the quickstart's
/// clips, which are large enough for threads.
pub(super) const CASES: [(usize, Grid); 5] = [
    (1, Grid { time: 1, height: 1, width: 1, colours: 3, tubelet: 1, patch: 1 }),
    (2, Grid { time: 4, height: 3, width: 5, colours: 3, tubelet: 2, patch: 3 }),
    (3, Grid { time: 1, height: 2, width: 2, colours: 3, tubelet: 1, patch: 8 }),
    (0, Grid { time: 2, height: 2, width: 2, colours: 3, tubelet: 2, patch: 4 }),
    (9, Grid { time: 8, height: 4, width: 4, colours: 3, tubelet: 2, patch: 8 }),
];
