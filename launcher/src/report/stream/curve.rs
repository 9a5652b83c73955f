//! A curve of bounded size, whatever the number of its points.

/// Number of points at which neighbours are merged.
const MOST_POINTS: usize = 4096;

/// Points in the order of time. Of neighbours that are merged, the higher one is kept: a shift is
/// one high point.
#[derive(Debug)]
pub(super) struct Curve {
    points: Vec<(f64, f64)>,
    /// Number of values of a point.
    per_point: usize,
    /// Number of values of the last point.
    filled: usize,
}

impl Default for Curve {
    fn default() -> Self {
        Self { points: Vec::new(), per_point: 1, filled: 1 }
    }
}

impl Curve {
    /// Adds a value at a time, later than those before it.
    pub(super) fn push(&mut self, time: f64, value: f64) {
        match self.points.last_mut() {
            Some(last) if self.filled < self.per_point => {
                self.filled += 1;
                if value > last.1 {
                    *last = (time, value);
                }
            }
            Some(_) | None => {
                self.halve();
                self.points.push((time, value));
                self.filled = 1;
            }
        }
    }

    fn halve(&mut self) {
        if self.points.len() < MOST_POINTS {
            return;
        }
        let higher = |pair: &[(f64, f64)]| pair.iter().copied().max_by(|a, b| a.1.total_cmp(&b.1));
        self.points = self.points.chunks(2).filter_map(higher).collect();
        self.per_point *= 2;
    }

    pub(super) fn points(&self) -> &[(f64, f64)] {
        &self.points
    }
}

#[cfg(test)]
mod tests {
    use super::{Curve, MOST_POINTS};

    #[test]
    fn a_long_curve_keeps_its_peaks_in_bounded_memory() {
        let mut curve = Curve::default();
        for number in 0..1_000_000_u32 {
            let value = if number % 100_000 == 77 { 1.0 } else { 0.25 };
            curve.push(f64::from(number), value);
        }
        let points = curve.points();
        assert!(points.len() <= MOST_POINTS && points.len() > MOST_POINTS / 2, "{}", points.len());
        assert!(points.is_sorted_by(|a, b| a.0 < b.0));
        let peaks = points.iter().filter(|point| point.1 > 0.5);
        assert_eq!(peaks.count(), 10);
        assert!(points.last().unwrap().0 > 999_000.0);
    }

    #[test]
    fn a_short_curve_is_kept_as_it_is() {
        let mut curve = Curve::default();
        let points = [(0.5, 0.0), (1.0, 0.3), (1.5, 0.1)];
        points.iter().for_each(|&(time, value)| curve.push(time, value));
        assert_eq!(curve.points(), points);
    }
}
