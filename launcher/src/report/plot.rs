//! Curves as inline SVG that stretches with the page. Labels are HTML outside the SVG, so their
//! size is the same at any width.

use maud::{Markup, html};

use crate::statistics::to_f64;

/// Largest number of groups of points that are drawn. If there are more points, each group is drawn
/// as its lowest and highest point.
const MAX_POINTS: usize = 400;
/// Width and height of the SVG's coordinate system.
const SIDE: f64 = 1000.0;

/// Range and scale of the value axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Axis {
    /// Linear, from the lowest to the highest value.
    Fitted,
    /// Linear, from zero to the highest value.
    FromZero,
    /// Logarithmic, from the lowest to the highest value.
    Logarithmic,
}

/// A curve with its title and axes.
#[derive(Debug)]
pub(super) struct Plot<'a> {
    pub(super) title: &'a str,
    /// The newest value as text; it is shown beside the title.
    pub(super) newest: String,
    /// Pairs of step, or number of samples, and value, in increasing order.
    pub(super) points: &'a [(u64, f64)],
    /// Number of steps or samples of the run.
    pub(super) total: u64,
    pub(super) axis: Axis,
    /// Whether to draw a smoothed line over the faint raw line.
    pub(super) smooth: bool,
    /// First step or sample and name of each stage.
    pub(super) stages: &'a [(u64, String)],
    /// Steps at which an attempt after the first began.
    pub(super) restarts: &'a [u64],
    /// Whether the plot takes the whole width of the page.
    pub(super) wide: bool,
}

impl Plot<'_> {
    /// Draws the curve, or a note if there is nothing to draw.
    pub(super) fn draw(&self) -> Markup {
        let usable =
            |value: f64| value.is_finite() && (self.axis != Axis::Logarithmic || value > 0.0);
        let points: Vec<(f64, f64)> = self
            .points
            .iter()
            .filter(|(_, value)| usable(*value))
            .map(|(step, value)| (to_f64(*step), *value))
            .collect();
        let left_out = self.points.len() - points.len();
        let range = self.range(&points);
        html! {
            figure.plot.wide[self.wide] {
                figcaption { (self.title) @if !points.is_empty() { b { (self.newest) } } }
                @match range {
                    None => p.nothing { "nothing recorded" },
                    Some(range) => (self.area(&points, range)),
                }
                @if left_out > 0 { p.nothing { (left_out) " values cannot be drawn" } }
            }
        }
    }

    /// Lowest and highest value of the axis, as logarithms for a logarithmic axis; `None` without
    /// points.
    fn range(&self, points: &[(f64, f64)]) -> Option<(f64, f64)> {
        let values = points.iter().map(|(_, value)| self.scaled(*value));
        let (low, high) = values.fold(None, |range: Option<(f64, f64)>, value| {
            Some(range.map_or((value, value), |(low, high)| (low.min(value), high.max(value))))
        })?;
        let low = if self.axis == Axis::FromZero { low.min(0.0) } else { low };
        let span = if high > low { high - low } else { high.abs().max(1e-12) };
        let below = if self.axis == Axis::FromZero { 0.0 } else { 0.06 * span };
        Some((low - below, high + 0.08 * span))
    }

    fn scaled(&self, value: f64) -> f64 {
        if self.axis == Axis::Logarithmic { value.log10() } else { value }
    }

    fn area(&self, points: &[(f64, f64)], (low, high): (f64, f64)) -> Markup {
        let last = points.last().map_or(1.0, |point| point.0);
        let total = to_f64(self.total).max(last).max(1.0);
        let left = |step: f64| 100.0 * step / total;
        let top = |scaled: f64| 100.0 * (high - scaled) / (high - low);
        let place = |(step, value): (f64, f64)| {
            (left(step) * SIDE / 100.0, top(self.scaled(value)) * SIDE / 100.0)
        };
        let raw = path(merge(points).into_iter().map(place));
        let line = if self.smooth {
            path(merge(&smoothed(points, self.stages)).into_iter().map(place))
        } else {
            raw.clone()
        };
        let values = match self.axis {
            Axis::Logarithmic => decades(low, high),
            Axis::Fitted | Axis::FromZero => ticks(low, high, 4),
        };
        let steps: Vec<f64> = ticks(0.0, total, 4).into_iter().filter(|tick| *tick > 0.0).collect();
        html! {
            div.area {
                svg viewBox="0 0 1000 1000" preserveAspectRatio="none" role="img" aria-label=(self.title) {
                    @for value in &values { path.grid d=(across(top(*value))) {} }
                    @if self.smooth { path.raw d=(raw) {} }
                    path.line d=(line) {}
                }
                @for value in &values {
                    span.y style=(format!("top:{:.2}%", top(*value))) { (self.label(*value)) }
                }
                @for step in &steps {
                    span.x style=(format!("left:{:.2}%", left(*step))) { (compact(*step)) }
                }
                @for (index, (step, name)) in self.stages.iter().enumerate() {
                    i.stage.first[index == 0] style=(format!("left:{:.2}%", left(to_f64(*step)))) { @if self.wide { (name) } }
                }
                @for step in self.restarts {
                    i.restart title={ "restarted at step " (step) } style=(format!("left:{:.2}%", left(to_f64(*step)))) {}
                }
            }
        }
    }

    fn label(&self, scaled: f64) -> String {
        compact(if self.axis == Axis::Logarithmic { 10_f64.powf(scaled) } else { scaled })
    }
}

/// About `count` ticks between `low` and `high`: multiples of 1, 2 or 5 times a power of ten.
pub(super) fn ticks(low: f64, high: f64, count: u32) -> Vec<f64> {
    let rough = (high - low) / f64::from(count);
    let decade = 10_f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].map(|m| m * decade).into_iter().find(|s| *s >= rough);
    let Some(step) = step.filter(|step| step.is_normal()) else { return Vec::new() };
    let first = (low / step).ceil();
    (0..20).map(|i| (first + f64::from(i)) * step).take_while(|tick| *tick <= high).collect()
}

/// Ticks of a logarithmic axis, as logarithms: 1, 2 and 5 times the powers of ten between `low` and
/// `high`, or the powers alone if there are more than three.
pub(super) fn decades(low: f64, high: f64) -> Vec<f64> {
    let powers: Vec<f64> =
        (0..40).map(|i| low.floor() + f64::from(i)).take_while(|x| *x <= high).collect();
    let factors: &[f64] = if powers.len() > 3 { &[1.0] } else { &[1.0, 2.0, 5.0] };
    let all = powers.iter().flat_map(|power| factors.iter().map(move |f| power + f.log10()));
    all.filter(|x| *x >= low && *x <= high).collect()
}

/// Thins out the points: each group is replaced by its lowest and its highest point, in the order
/// of steps. Up to two points per group are kept unchanged.
fn merge(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let size = points.len().div_ceil(MAX_POINTS).max(1);
    if size < 3 {
        return points.to_vec();
    }
    points
        .chunks(size)
        .flat_map(|group| {
            let by_value = |a: &&(f64, f64), b: &&(f64, f64)| a.1.total_cmp(&b.1);
            let low = group.iter().min_by(by_value).copied();
            let high = group.iter().max_by(by_value).copied();
            let (Some(low), Some(high)) = (low, high) else { return Vec::new() };
            if low.0 < high.0 { vec![low, high] } else { vec![high, low] }
        })
        .collect()
}

/// Replaces each value by the mean over neighbouring points of the same stage. The window holds
/// about a fortieth of all points.
fn smoothed(points: &[(f64, f64)], stages: &[(u64, String)]) -> Vec<(f64, f64)> {
    let reach = (points.len() / 80).max(2);
    let stage = |step: f64| stages.partition_point(|(first, _)| to_f64(*first) < step);
    let mean = |index: usize| {
        let (step, _) = points[index];
        let near = &points[index.saturating_sub(reach)..points.len().min(index + reach + 1)];
        let same = || near.iter().filter(|(s, _)| stage(*s) == stage(step));
        same().map(|(_, value)| value).sum::<f64>() / to_f64(same().count() as u64)
    };
    (0..points.len()).map(|index| (points[index].0, mean(index))).collect()
}

fn path(points: impl Iterator<Item = (f64, f64)>) -> String {
    let mut text = String::new();
    for (index, (x, y)) in points.enumerate() {
        text += &format!("{}{x:.1} {y:.1}", if index == 0 { "M" } else { "L" });
    }
    text
}

fn across(top: f64) -> String {
    format!("M0 {0:.1}H1000", top * SIDE / 100.0)
}

/// A number in few characters: `12k`, `350`, `0.25`, `5e-4`.
pub(super) fn compact(value: f64) -> String {
    let trim = |text: String| {
        if text.contains('.') {
            text.trim_end_matches('0').trim_end_matches('.').to_owned()
        } else {
            text
        }
    };
    match value.abs() {
        size if size < 1e-12 => "0".to_owned(),
        size if size >= 999_950.0 => trim(format!("{:.1}", value / 1e6)) + "M",
        size if size >= 10_000.0 => trim(format!("{:.1}", value / 1e3)) + "k",
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 1.0 => trim(format!("{value:.2}")),
        size if size >= 0.01 => trim(format!("{value:.3}")),
        _ => {
            let text = format!("{value:.1e}");
            text.replace(".0e", "e")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Axis, Plot, compact, decades, merge, smoothed, ticks};

    fn draw(points: &[(u64, f64)], axis: Axis) -> String {
        Plot {
            title: "loss",
            newest: String::new(),
            points,
            total: 100,
            axis,
            smooth: true,
            stages: &[],
            restarts: &[],
            wide: false,
        }
        .draw()
        .into_string()
    }

    #[test]
    fn ticks_are_round_numbers_inside_the_range() {
        assert_eq!(ticks(0.0, 1311.0, 4), [0.0, 500.0, 1000.0]);
        assert_eq!(ticks(0.9, 4.1, 4), [1.0, 2.0, 3.0, 4.0]);
        assert!(ticks(1.0, 1.0, 4).is_empty());
    }

    #[test]
    fn logarithmic_ticks_are_ones_twos_and_fives_or_powers_of_ten() {
        let values = |low: f64, high: f64| -> Vec<String> {
            decades(low.log10(), high.log10()).iter().map(|x| compact(10_f64.powf(*x))).collect()
        };
        assert_eq!(values(0.6, 4.0), ["1", "2"]);
        assert_eq!(values(0.04, 4.0), ["0.05", "0.1", "0.2", "0.5", "1", "2"]);
        assert_eq!(values(0.0005, 20.0), ["1e-3", "0.01", "0.1", "1", "10"]);
    }

    #[test]
    fn smoothing_does_not_reach_across_stages() {
        let points: Vec<(f64, f64)> =
            (1..=200).map(|i| (f64::from(i), if i <= 100 { 1.0 } else { 9.0 })).collect();
        let stages = [(0, "a".to_owned()), (100, "b".to_owned())];
        assert_eq!(smoothed(&points, &stages), points);
        assert_ne!(smoothed(&points, &[]), points);
    }

    #[test]
    fn numbers_are_short() {
        for (value, text) in [
            (0.0, "0"),
            (0.0005, "5e-4"),
            (0.00012, "1.2e-4"),
            (0.25, "0.25"),
            (3.0, "3"),
            (512.4, "512"),
            (12_000.0, "12k"),
            (1_500_000.0, "1.5M"),
        ] {
            assert_eq!(compact(value), text);
        }
    }

    #[test]
    fn merging_keeps_spikes_and_smoothing_keeps_constants() {
        let mut points: Vec<(f64, f64)> = (0..10_000).map(|i| (f64::from(i), 1.0)).collect();
        points[7777].1 = 9.0;
        let merged = merge(&points);
        assert!(merged.len() <= 800 && merged.contains(&(7777.0, 9.0)));
        points[7777].1 = 1.0;
        assert!(smoothed(&points, &[]).iter().all(|(_, v)| (v - 1.0).abs() < 1e-9));
    }

    #[test]
    fn plots_of_few_equal_or_broken_values_are_drawn_or_say_why_not() {
        assert!(draw(&[], Axis::Fitted).contains("nothing recorded"));
        assert!(draw(&[(1, f64::NAN)], Axis::Fitted).contains("nothing recorded"));
        for points in [vec![(1, 2.0)], vec![(1, 2.0), (2, 2.0)], vec![(1, 0.0), (2, f64::INFINITY)]]
        {
            for axis in [Axis::Fitted, Axis::FromZero, Axis::Logarithmic] {
                let page = draw(&points, axis);
                assert!(!page.contains("NaN") && !page.contains("inf"), "{page}");
            }
        }
    }
}
