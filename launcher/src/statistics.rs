//! Median, mean, and counts as numbers.

/// Returns the median of the finite values, or `None` without any. Of an even number of values it
/// is the mean of the two in the middle.
pub(crate) fn median(values: impl IntoIterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.into_iter().filter(|value| value.is_finite()).collect();
    values.sort_by(f64::total_cmp);
    match (values.len(), values.len() / 2) {
        (0, _) => None,
        (count, middle) if count % 2 == 1 => Some(values[middle]),
        (_, middle) => Some(f64::midpoint(values[middle - 1], values[middle])),
    }
}

/// Returns the mean of the finite values, or 0 without any.
#[expect(clippy::cast_precision_loss, reason = "a count of values stays far below 2^53")]
pub(crate) fn mean(values: impl IntoIterator<Item = f64>) -> f64 {
    let values: Vec<f64> = values.into_iter().filter(|value| value.is_finite()).collect();
    values.iter().sum::<f64>() / (values.len() as f64).max(1.0)
}

/// A count as a number.
#[expect(clippy::cast_precision_loss, reason = "steps and samples stay far below 2^53")]
pub(crate) fn to_f64(value: u64) -> f64 {
    value as f64
}

#[cfg(test)]
mod tests {
    use super::{mean, median};

    #[test]
    fn values_that_are_not_finite_are_left_out() {
        let values = [3.0, f64::NAN, 1.0, f64::INFINITY, 8.0, 2.0];
        assert_eq!((median(values), median([5.0, 1.0, 2.0])), (Some(2.5), Some(2.0)));
        assert!(median([f64::NAN]).is_none() && mean([f64::NAN]).abs() < 1e-12);
        assert!((mean(values) - 3.5).abs() < 1e-12);
    }
}
