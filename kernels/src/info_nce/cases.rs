//! Shapes of the tests of `InfoNCE`.

/// Rows of each rank, width of the embedding, α, and the number of different targets (`None`: no
/// masking).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Case {
    pub(crate) ranks: &'static [usize],
    pub(crate) width: usize,
    pub(crate) alpha: f32,
    pub(crate) targets: Option<u64>,
}

const fn case(ranks: &'static [usize], width: usize, alpha: f32, targets: Option<u64>) -> Case {
    Case { ranks, width, alpha, targets }
}

/// One row, even and uneven ranks, a rank without rows, batches that no tile divides, more than one
/// tile of columns, and few different targets.
pub(crate) const CASES: [Case; 10] = [
    case(&[1], 4, 14.3, None),
    case(&[12], 16, 14.3, None),
    case(&[5, 4, 3], 16, 14.3, None),
    case(&[4, 0, 8], 16, 14.3, Some(5)),
    case(&[12], 16, 100.0, Some(3)),
    case(&[65, 1], 7, 14.3, None),
    case(&[64, 64], 16, 100.0, Some(20)),
    case(&[700], 24, 14.3, Some(300)),
    case(&[513, 100], 8, 30.0, None),
    case(&[600], 5, 14.3, Some(1)),
];
