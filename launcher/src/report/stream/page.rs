//! HTML of the page.

use maud::{Markup, PreEscaped, html};
use vljepa_recipes::protocol::{Lag, StreamCaption, StreamEnd, StreamSummary};

use super::{Player, StreamPage};
use crate::report::page::document_with;
use crate::report::plot::{compact, ticks};
use crate::terminal;

/// Captions and queries may contain anything, so they are escaped. The page loads nothing but its
/// own video, and runs nothing but [`SCRIPT`], which has this SHA-256.
pub(super) const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; \
                                 script-src 'sha256-6+ugXXYEHxOfEVhxJrmFhWriAYKJFZ2eoDmdVAS7cFQ='; \
                                 img-src data:; media-src data: file: 'self'";

/// Smallest share of the time axis of a segment whose text is written in its block. In a smaller
/// one a few letters would fit.
const WRITTEN_SHARE: f64 = 0.05;

const STYLE: &str = include_str!("stream.css");
pub(super) const SCRIPT: &str = include_str!("stream.js");

/// Draws the page of a described video.
pub(super) fn page(page: &StreamPage, player: &Player) -> Markup {
    let end_s = end_s(page);
    let body = html! {
        style { (PreEscaped(STYLE)) }
        (header(page))
        @if let Some((_, summary)) = &page.ended { (figures(summary)) }
        main {
            section.watch {
                (screen(page, player))
                (captions(page))
            }
            (timeline(page, end_s))
        }
        script { (PreEscaped(SCRIPT)) }
    };
    document_with(POLICY, &page.name, "stream", &body)
}

/// End of the time axis in seconds.
fn end_s(page: &StreamPage) -> f64 {
    let of_summary = page.ended.as_ref().map_or(0.0, |(_, summary)| summary.video_s);
    let of_curve = page.curve.points().last().map_or(0.0, |point| point.0);
    of_summary.max(of_curve).max(0.001)
}

fn header(page: &StreamPage) -> Markup {
    html! {
        header {
            p.kind { "Described video" }
            h1 { (page.name) " " (state(page)) }
            p.facts {
                @if let Some(start) = &page.start {
                    (start.codec) " · windows of " (compact(start.window_s)) " s each " (compact(start.stride_s)) " s, "
                    (start.frames) " frames · caption = mean of " (start.smoothing) " embeddings · threshold "
                    (compact(start.threshold)) " · checkpoint of step " (terminal::thousands(start.step))
                } @else { "the video was not opened" }
            }
            @if let Some((StreamEnd::Failed { error }, _)) = &page.ended { p.facts.bad { (error) } }
        }
    }
}

fn state(page: &StreamPage) -> Markup {
    let (class, word) = match &page.ended {
        Some((StreamEnd::Finished, _)) => ("good", "complete"),
        Some((StreamEnd::Stopped, _)) => ("plain", "stopped"),
        Some((StreamEnd::Failed { .. }, _)) => ("bad", "cut short"),
        None => ("bad", "no summary"),
    };
    html! { span.state.(class) { (word) } }
}

fn figures(summary: &StreamSummary) -> Markup {
    let lag = |lag: Option<Lag>| {
        let milliseconds = |seconds: f64| format!("{:.1} ms", seconds * 1e3);
        lag.map_or_else(
            || ("–".to_owned(), String::new()),
            |lag| (milliseconds(lag.median_s), format!("99 %: {}", milliseconds(lag.p99_s))),
        )
    };
    let (to_embedding, embedding_below) = lag(summary.to_embedding);
    let (to_text, text_below) = lag(summary.to_text);
    let saving = summary.saving.map_or_else(|| "–".to_owned(), |saving| format!("{saving:.1}×"));
    let all = [
        (
            "shown",
            terminal::duration(summary.video_s),
            format!("in {}", terminal::duration(summary.wall_s)),
        ),
        (
            "captions",
            terminal::thousands(summary.texts),
            format!("of {} windows", terminal::thousands(summary.windows)),
        ),
        ("fewer decodes", saving, "than one per window".to_owned()),
        ("frame to embedding", to_embedding, embedding_below),
        ("frame to text", to_text, text_below),
        (
            "windows dropped",
            terminal::thousands(summary.dropped),
            if summary.dropped == 0 { "the model kept up" } else { "the model was too slow" }
                .to_owned(),
        ),
    ];
    html! {
        section.figures {
            @for (name, value, below) in all {
                div { span { (name) } b { (value) } span { (below) } }
            }
        }
    }
}

/// The video, or the picture of the chosen caption.
fn screen(page: &StreamPage, player: &Player) -> Markup {
    html! {
        div.screen {
            @match player {
                Player::Source(source) => video controls muted playsinline preload="auto" src=(source) {},
                Player::Missing(why) => {
                    @if let Some(picture) = page.captions.iter().find_map(|it| it.picture.as_deref()) {
                        img.shown src=(jpeg(picture)) alt="";
                    }
                    p.note { (why) }
                }
            }
            p.now aria-live="polite" { (page.captions.front().map_or("", |caption| &caption.text)) }
        }
    }
}

fn jpeg(base64: &str) -> String {
    format!("data:image/jpeg;base64,{base64}")
}

/// Captions with the queries at the times from which they are asked.
fn captions(page: &StreamPage) -> Markup {
    let first = page.start.as_ref().map(|start| start.query.as_str());
    let before =
        first.into_iter().chain(page.captions.iter().map(|caption| caption.query.as_str()));
    html! {
        ol.captions {
            @if let Some(query) = first.filter(|query| !query.is_empty()) { li.ask { "“" (query) "”" } }
            @if page.left_out > 0 {
                li.ask { "The first " (terminal::thousands(page.left_out)) " captions are not on this page." }
            }
            @for ((number, caption), before) in page.captions.iter().enumerate().zip(before) {
                @if caption.query != before {
                    li.ask { "“" (caption.query) "” from " (terminal::clock(query_s(page, caption))) }
                }
                (entry(number, caption))
            }
            @if page.captions.is_empty() { li.ask { "no caption" } }
        }
    }
}

/// When the query of a caption was asked.
fn query_s(page: &StreamPage, caption: &StreamCaption) -> f64 {
    let mut asked = page.queries.iter().rev();
    let found = asked.find(|(at, query)| *query == caption.query && *at <= caption.seen_s);
    found.map_or(caption.start_s, |(at, _)| *at)
}

fn entry(number: usize, caption: &StreamCaption) -> Markup {
    html! {
        li data-number=(number) data-start=(format!("{:.3}", caption.start_s)) tabindex="0" role="button"
            title=(format!("decoded {} ms after the change", compact(caption.lag_s * 1e3))) {
            @match &caption.picture {
                Some(picture) => img src=(jpeg(picture)) alt="" {},
                None => i.none {},
            }
            time { (terminal::clock(caption.start_s)) }
            span { (caption.text) }
        }
    }
}

/// The variance of the embeddings with the threshold, and the segments below it on the same axis.
fn timeline(page: &StreamPage, end_s: f64) -> Markup {
    let points = page.curve.points();
    let threshold = page.start.as_ref().map(|start| start.threshold);
    let highest = points.iter().map(|point| point.1).fold(threshold.unwrap_or(0.0), f64::max);
    let highest = if highest > 0.0 { highest * 1.08 } else { 1.0 };
    let (left, top) = (|s: f64| 100.0 * s / end_s, |value: f64| 100.0 * (1.0 - value / highest));
    let mut line = String::new();
    for (index, &(time, value)) in points.iter().enumerate() {
        let command = if index == 0 { 'M' } else { 'L' };
        line += &format!("{command}{:.2} {:.2}", 10.0 * left(time), 10.0 * top(value));
    }
    html! {
        section {
            figure.plot.wide.timeline data-end=(format!("{end_s:.3}")) {
                figcaption {
                    span { "Variance of the last embeddings; a new caption begins above the threshold" }
                    span { "click to go there" }
                }
                div.area {
                    @for value in ticks(0.0, highest, 4) {
                        span.y style=(format!("top:{:.2}%", top(value))) { (compact(value)) }
                    }
                    svg viewBox="0 0 1000 1000" preserveAspectRatio="none" role="img" aria-label="variance over time" {
                        @for value in ticks(0.0, highest, 4) { path.grid d=(format!("M0 {:.1}H1000", 10.0 * top(value))) {} }
                        path.line d=(line) {}
                        @if let Some(threshold) = threshold { path.threshold d=(format!("M0 {:.1}H1000", 10.0 * top(threshold))) {} }
                    }
                    @for second in time_ticks(end_s) {
                        span.x style=(format!("left:{:.3}%", left(second))) { (clock_of_axis(second)) }
                    }
                    (segments(page, end_s))
                    i.playhead {}
                }
            }
        }
    }
}

/// A block for each segment, as long as it lasts.
fn segments(page: &StreamPage, end_s: f64) -> Markup {
    let ends = page.captions.iter().skip(1).map(|caption| caption.start_s).chain([end_s]);
    html! {
        div.segments {
            @for (number, (caption, end)) in page.captions.iter().zip(ends).enumerate() {
                @let share = ((end - caption.start_s) / end_s).max(0.0);
                span data-number=(number) title=(format!("{}  {}", terminal::clock(caption.start_s), caption.text))
                    style=(format!("left:{:.3}%;width:{:.3}%", 100.0 * caption.start_s / end_s, 100.0 * share)) {
                    @if share > WRITTEN_SHARE { (caption.text) }
                }
            }
        }
    }
}

/// Seconds at about eight ticks of the time axis: a whole number of seconds, minutes or hours
/// apart.
fn time_ticks(end_s: f64) -> Vec<f64> {
    let steps = [
        1.0, 2.0, 5.0, 10.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0, 7200.0,
        21_600.0,
    ];
    let step = steps.into_iter().find(|step| end_s / step <= 10.0).unwrap_or(86_400.0);
    (0..u32::MAX).map(|n| f64::from(n) * step).take_while(|s| *s <= end_s * 0.99).collect()
}

fn clock_of_axis(seconds: f64) -> String {
    terminal::clock(seconds).trim_end_matches(".0").to_owned()
}
