//! The page of a plan: time and cost, budget of a step, other numbers of GPUs, and the rates.

use maud::{Markup, html};
use vljepa_recipes::plan::{Origin, Plan, Rates, ScalePoint, Scaling, StagePlan, Term};

use super::chart::{Chart, Curve};
use super::page::document;
use super::percent;
use crate::plan::{Lines, PlanReport, digits, with_error};
use crate::statistics::to_f64;

/// Draws the page.
pub(super) fn page(found: &PlanReport, rates: &Rates) -> Markup {
    let body = html! {
        header {
            p.kind { "VL-JEPA training plan" }
            h1 { (found.name) }
            p.facts {
                (found.plan.group.ranks()) " GPUs on " (found.plan.group.nodes) " nodes · rates of "
                (found.rates.device) ", " (found.rates.measured) " of " (found.rates.all) " measured"
            }
        }
        main {
            (figures(found))
            (budget(&found.plan))
            (tables(found))
            @if let Some(scaling) = &found.scaling { (curves(scaling)) }
            (origins(&rates.origins()))
        }
    };
    document(&found.name, "plan", &body)
}

fn figures(found: &PlanReport) -> Markup {
    let plan = &found.plan;
    let all = [
        (
            "days",
            with_error(plan.hours.times(1.0 / 24.0)),
            format!("at least {:.2}", plan.least_hours / 24.0),
        ),
        (
            "GPU-hours",
            digits(plan.device_hours.value),
            format!("± {}", digits(plan.device_hours.deviation)),
        ),
        (
            "energy, MWh",
            with_error(plan.kilowatt_hours.times(1e-3)),
            "with the share of the nodes".to_owned(),
        ),
        (
            "failures",
            digits(plan.failures.expected_failures),
            format!("cost {} % with saving", digits(100.0 * plan.failures.lost_fraction)),
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

/// Colour of a term, a number of the palette.
fn colour(term: Term) -> usize {
    match term {
        Term::Products => 1,
        Term::Attention => 2,
        Term::MemoryBound => 7,
        Term::Launches => 9,
        Term::Loss => 6,
        Term::Optimizer => 5,
        Term::Communication => 4,
        Term::Stragglers => 8,
        Term::Data => 3,
    }
}

fn budget(plan: &Plan) -> Markup {
    html! {
        section {
            h2 { "Where the time of a step goes" }
            @for stage in &plan.stages { (bar(stage)) }
            ul.legend {
                @for term in Term::ALL { li { i.(format!("t{}", colour(term))) {} (term.name()) } }
            }
        }
    }
}

fn bar(stage: &StagePlan) -> Markup {
    let all = stage.step_s.value;
    let limit = stage.limit.map_or("–", Term::name);
    html! {
        p.note.after {
            b { (stage.name) } ": " (digits(1e3 * all)) " ± " (digits(1e3 * stage.step_s.deviation))
            " ms, " (digits(stage.samples_per_s.value)) " samples/s per GPU, MFU " (percent(stage.mfu))
            ", " (with_error(stage.hours)) " h; limited by " (limit)
        }
        div.phases {
            @for (term, seconds) in &stage.budget.terms_s {
                @if seconds.value > 0.0 {
                    span.(format!("t{}", colour(*term)))
                        title=(format!("{}: {} ms", term.name(), digits(1e3 * seconds.value)))
                        style=(format!("flex-grow:{:.4}", seconds.value / all)) {}
                }
            }
        }
    }
}

fn tables(found: &PlanReport) -> Markup {
    html! {
        section {
            h2 { "Plan" }
            @for lines in found.plan_tables() { (table(&lines)) }
        }
        section {
            h2 { "Alternatives" }
            @for lines in found.tables() { (table(&lines)) }
            ul.notes { @for note in found.notes() { li { (note) } } }
        }
    }
}

fn table(lines: &Lines) -> Markup {
    // The first row of a table with two columns is no header.
    let (header, rows) = match lines.split_first() {
        Some((first, rest)) if first.len() > 2 => (Some(first), rest),
        _ => (None, &lines[..]),
    };
    html! {
        div.scroll {
            table.rows {
                @if let Some(header) = header {
                    thead { tr { @for (at, cell) in header.iter().enumerate() { th.figure[at > 0] { (cell) } } } }
                }
                tbody {
                    @for row in rows {
                        tr { @for (at, cell) in row.iter().enumerate() { td.figure[at > 0 && header.is_some()] { (cell) } } }
                    }
                }
            }
        }
    }
}

fn curves(scaling: &Scaling) -> Markup {
    let of = |name: &str, colour, value: &dyn Fn(&ScalePoint) -> Option<f64>| {
        let points = scaling.points.iter();
        let points = points.filter_map(|point| Some((to_f64(point.devices as u64), value(point)?)));
        Curve { name: name.to_owned(), colour, is_printed: false, points: points.collect() }
    };
    let percent = |share: f64| 100.0 * share;
    let cost = Chart {
        title: "GPU-hours",
        along: "GPUs",
        curves: vec![of("the recipe's batches", 0, &|point| point.device_hours)],
        is_logarithmic: true,
    };
    let speed = Chart {
        title: "Speed per GPU, %",
        along: "GPUs",
        curves: vec![
            of("the recipe's batches", 0, &|point| point.efficiency.map(percent)),
            of("the same share of the batch on each GPU", 1, &|point| {
                Some(percent(point.weak_efficiency))
            }),
        ],
        is_logarithmic: true,
    };
    html! {
        section {
            h2 { "Other numbers of GPUs" }
            div.plots { (cost.draw()) (speed.draw()) }
        }
    }
}

fn origins(origins: &[Origin]) -> Markup {
    html! {
        section {
            details {
                summary { "Rates and where they are from" }
                table.rows {
                    thead { tr { th { "rate" } th.figure { "value" } th.figure { "±, %" } th { "" } th { "from" } } }
                    tbody {
                        @for origin in origins {
                            tr {
                                td { code { (origin.key) } }
                                td.figure { (origin.values.iter().map(|value| digits(*value)).collect::<Vec<_>>().join(", ")) }
                                td.figure { (digits(100.0 * origin.spread)) }
                                td { @if origin.is_measured { "measured" } @else { "predicted" } }
                                td { (origin.how) }
                            }
                        }
                    }
                }
            }
        }
    }
}
