//! The report's curves of the scores over the samples that the run had seen.

use maud::{Markup, html};

use super::plot::{Axis, Plot, compact};
use super::{Contents, NamedScore, Scale};

/// One curve per score; empty with fewer than two evaluations. Controls have no curves.
pub(super) fn section(contents: &Contents) -> Markup {
    if contents.evaluations.len() < 2 {
        return html! {};
    }
    html! {
        details {
            summary { "Scores over samples seen" }
            div.plots {
                @for score in contents.scores.iter().filter(|score| score.control.is_none()) {
                    (curve(contents, score))
                }
            }
        }
    }
}

fn curve(Contents { recipe, evaluations, .. }: &Contents, score: &NamedScore) -> Markup {
    let (factor, unit) = match score.scale {
        Scale::Fraction => (100.0, ", %"),
        Scale::Cider | Scale::Ratio => (1.0, ""),
    };
    let values = evaluations.iter().filter_map(|(step, scores)| {
        Some((recipe.samples_after(*step), factor * scores.get(&score.name)?.value))
    });
    let points: Vec<(u64, f64)> = values.collect();
    let starts = [0].into_iter().chain(recipe.stage_ends()).map(|step| recipe.samples_after(step));
    let names = recipe.stages.iter().map(|stage| stage.name.clone());
    Plot {
        title: &format!("{}{unit}", score.name),
        newest: points.last().map(|point| compact(point.1)).unwrap_or_default(),
        points: &points,
        total: recipe.samples_after(u64::MAX),
        axis: Axis::FromZero,
        smooth: false,
        stages: &starts.zip(names).collect::<Vec<_>>(),
        restarts: &[],
        wide: false,
    }
    .draw()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::section;
    use crate::record::history::{Score, Scores};
    use crate::report::{Contents, NamedScore, Scale};
    use vljepa_recipes::schema::Control;

    fn score(value: f64) -> Score {
        Score { value, n: 9, ..Score::default() }
    }

    #[test]
    fn scores_are_drawn_over_samples_and_controls_are_not() {
        let recipe = Path::new(env!("CARGO_MANIFEST_DIR")).join("../recipes/quickstart.yaml");
        let mut contents = Contents::empty(vljepa_recipes::load(&recipe, &[]).unwrap());
        let named = |name: &str, control| {
            let control = Some(control).filter(|control| *control != Control::None);
            let scale = if name == "cider" { Scale::Cider } else { Scale::Fraction };
            NamedScore { name: name.to_owned(), score: score(0.5), scale, control }
        };
        contents.scores = vec![
            named("r1", Control::None),
            named("cider", Control::None),
            named("collapsed", Control::Collapsed),
        ];
        let scores = |value| {
            Scores::from([
                ("r1".to_owned(), score(value)),
                ("cider".to_owned(), score(2.0 * value)),
            ])
        };
        contents.evaluations = vec![(500, scores(0.25))];
        assert_eq!(section(&contents).into_string(), "");
        contents.evaluations.push((1500, scores(0.625)));
        let page = section(&contents).into_string();
        assert!(page.contains("r1, %") && page.contains("62.5") && !page.contains("collapsed"));
        assert!(page.contains(">cider<b>1.25</b>"), "{page}");
        // 1,500 steps of 128 samples: the axis counts samples.
        assert!(page.contains("150k"), "{page}");
    }
}
