//! Several curves over one axis, as inline SVG with its labels in HTML.

use maud::{Markup, html};

use crate::report::plot::{compact, decades, ticks};

/// Side of the SVG's coordinate system.
const SIDE: f64 = 1000.0;

/// A chart with its curves.
#[derive(Debug)]
pub(super) struct Chart<'a> {
    pub(super) title: &'a str,
    /// Quantity along the horizontal axis.
    pub(super) along: &'a str,
    pub(super) curves: Vec<Curve>,
    /// Whether positions are drawn by their logarithms. They must then be above zero.
    pub(super) is_logarithmic: bool,
}

/// A curve of a chart.
#[derive(Debug, Clone)]
pub(super) struct Curve {
    pub(super) name: String,
    /// Number of the colour.
    pub(super) colour: usize,
    /// Whether the paper prints the values; its curves are dashed.
    pub(super) is_printed: bool,
    /// Positions and values, in the order of positions.
    pub(super) points: Vec<(f64, f64)>,
}

impl Chart<'_> {
    /// Draws the curves from zero to the largest value. Empty if no curve has a point.
    pub(super) fn draw(&self) -> Markup {
        let all = || self.curves.iter().flat_map(|curve| &curve.points);
        if all().next().is_none() {
            return html! {};
        }
        let largest = |values: &mut dyn Iterator<Item = f64>| values.fold(1e-9, f64::max);
        let scaled = |x: f64| if self.is_logarithmic { x.max(1e-9).log10() } else { x };
        let first = all().map(|point| scaled(point.0)).fold(f64::INFINITY, f64::min);
        let last = all().map(|point| scaled(point.0)).fold(f64::NEG_INFINITY, f64::max);
        let first = if self.is_logarithmic { first } else { 0.0 };
        let span = (last - first).max(1e-9);
        let top = 1.08 * largest(&mut all().map(|point| point.1));
        let left = |x: f64| 100.0 * (scaled(x) - first) / span;
        let above = |y: f64| 100.0 * (1.0 - y / top);
        let place = |(x, y): (f64, f64)| (left(x) * SIDE / 100.0, above(y) * SIDE / 100.0);
        html! {
            figure.plot {
                figcaption { (self.title) }
                div.area {
                    svg viewBox="0 0 1000 1000" preserveAspectRatio="none" role="img" aria-label=(self.title) {
                        @for value in ticks(0.0, top, 4) {
                            path.grid d=(format!("M0 {0:.1}H1000", above(value) * SIDE / 100.0)) {}
                        }
                        @for curve in &self.curves {
                            path.line.printed[curve.is_printed].(colour(curve.colour)) d=(path(curve.points.iter().copied().map(place))) {}
                        }
                    }
                    @for curve in &self.curves {
                        @for (x, y) in &curve.points {
                            i.dot.(colour(curve.colour)) title=(format!("{}: {y:.1}", curve.name)) style=(format!("left:{:.2}%;top:{:.2}%", left(*x), above(*y))) {}
                        }
                    }
                    @for value in ticks(0.0, top, 4) {
                        span.y style=(format!("top:{:.2}%", above(value))) { (compact(value)) }
                    }
                    @for position in self.positions(first, last) {
                        span.x style=(format!("left:{:.2}%", left(position))) { (compact(position)) }
                    }
                }
                p.nothing { (self.along) }
                ul.legend {
                    @for curve in &self.curves {
                        li { i.key.(colour(curve.colour)) {} (curve.name) @if curve.is_printed { " (paper, dashed)" } }
                    }
                }
            }
        }
    }
}

impl Chart<'_> {
    /// Labelled positions between two scaled ones.
    fn positions(&self, first: f64, last: f64) -> Vec<f64> {
        if self.is_logarithmic {
            decades(first, last).into_iter().map(|x| 10_f64.powf(x)).collect()
        } else {
            ticks(first, last, 4).into_iter().filter(|tick| *tick > 0.0).collect()
        }
    }
}

fn colour(number: usize) -> String {
    format!("c{}", number % 8 + 1)
}

fn path(points: impl Iterator<Item = (f64, f64)>) -> String {
    let mut text = String::new();
    for (index, (x, y)) in points.enumerate() {
        text += &format!("{}{x:.1} {y:.1}", if index == 0 { "M" } else { "L" });
    }
    text
}
