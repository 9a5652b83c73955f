//! `SIGReg` by its definition, in f64.

/// `factor` times the statistic of each of `directions` directions, from all projections (g, m).
pub(super) fn statistics(projections: &[f32], directions: usize, factor: f32) -> Vec<f64> {
    let rows = projections.len() as f64 / directions as f64;
    let points: Vec<f64> = (0..17).map(|i| -5.0 + 10.0 * f64::from(i) / 16.0).collect();
    let integrand = |direction: usize, t: f64| {
        let column = projections.iter().skip(direction).step_by(directions);
        let (mut real, mut imaginary) = (0.0, 0.0);
        for &x in column {
            let (sine, cosine) = (t * f64::from(x)).sin_cos();
            (real, imaginary) = (real + cosine, imaginary + sine);
        }
        let window = (-t * t / 2.0).exp();
        ((real / rows - window).powi(2) + (imaginary / rows).powi(2)) * window
    };
    let statistic = |direction| {
        let values: Vec<f64> = points.iter().map(|&t| integrand(direction, t)).collect();
        let area: f64 = values.windows(2).map(|two| (two[0] + two[1]) / 2.0 * 10.0 / 16.0).sum();
        f64::from(factor) * rows * area
    };
    (0..directions).map(statistic).collect()
}
