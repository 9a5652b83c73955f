//! The report's table of the reader threads' work.

use std::collections::BTreeMap;

use maud::{Markup, html};
use vljepa_recipes::protocol::{DataPart, KindWork, Metrics};
use vljepa_recipes::schema::Visual;

use super::Contents;
use crate::statistics::to_f64;
use crate::terminal;

/// Work of rank 0's reader threads on one kind of samples in a whole stage.
#[derive(Debug, Default)]
struct StageWork {
    /// Work on the kind.
    work: KindWork,
    /// Duration of the intervals with work on the kind, in seconds.
    seconds: f64,
}

/// Sums the work of the lines of a stage, by kind.
fn of_stage(metrics: &[Metrics], stage: &str) -> BTreeMap<Visual, StageWork> {
    let mut kinds: BTreeMap<Visual, StageWork> = BTreeMap::new();
    let lines = metrics.iter().filter(|line| line.stage == stage);
    for data in lines.filter_map(|line| line.data.as_ref()) {
        for (kind, work) in &data.kinds {
            let sum = kinds.entry(*kind).or_default();
            sum.seconds += data.seconds;
            sum.work.samples += work.samples;
            sum.work.bytes += work.bytes;
            for (part, seconds) in &work.seconds {
                *sum.work.seconds.entry(*part).or_default() += seconds;
            }
        }
    }
    kinds.retain(|_, sum| sum.work.samples > 0);
    kinds
}

/// Table with the work on each kind of samples in each stage; empty if none was recorded.
pub(super) fn section(contents: &Contents) -> Markup {
    let stages = contents.recipe.stages.iter();
    let rows: Vec<_> = stages
        .flat_map(|stage| {
            let kinds = of_stage(&contents.metrics, &stage.name).into_iter();
            kinds.map(|(kind, sum)| (stage.name.as_str(), kind, sum))
        })
        .collect();
    let ms = |sum: &StageWork, part| {
        let seconds = sum.work.seconds.get(&part).copied().unwrap_or_default();
        format!("{:.2}", 1e3 * seconds / to_f64(sum.work.samples))
    };
    html! {
        @if !rows.is_empty() {
            div.scroll { table {
                thead { tr {
                    th { "stage" } th { "kind" } th { "samples read" } th { "read per second" } th { "MB/s" }
                    @for part in DataPart::ALL { th { (part.name()) ", ms" } }
                } }
                tbody {
                    @for (stage, kind, sum) in &rows {
                        tr {
                            td { (stage) }
                            td { (kind.name()) }
                            td { (terminal::thousands(sum.work.samples)) }
                            td { (format!("{:.1}", to_f64(sum.work.samples) / sum.seconds.max(1e-9))) }
                            td { (format!("{:.2}", to_f64(sum.work.bytes) / 1e6 / sum.seconds.max(1e-9))) }
                            @for part in DataPart::ALL { td { (ms(sum, part)) } }
                        }
                    }
                }
            } }
            p.note.after { "Work of rank 0's reader threads; milliseconds of one thread per sample. Samples that were found in the cache of decoded samples are not counted." }
        }
    }
}

#[cfg(test)]
mod tests {
    use vljepa_recipes::protocol::{DataPart, DataWork, KindWork};
    use vljepa_recipes::schema::Visual;

    use super::of_stage;
    use crate::record::history::tests::line;

    #[test]
    fn the_work_of_a_stage_is_the_sum_of_its_lines() {
        let work = |samples, decode_s| KindWork {
            samples,
            bytes: 1000 * samples,
            seconds: [(DataPart::Decode, decode_s)].into(),
        };
        let with = |step, kinds: &[(Visual, KindWork)]| {
            let kinds = kinds.iter().cloned().collect();
            let data = DataWork { seconds: 2.0, kinds, ..DataWork::default() };
            vljepa_recipes::protocol::Metrics { data: Some(data), ..line(step, 1.0) }
        };
        let (clips, none) = (Visual::Video, KindWork::default());
        let mut metrics = vec![
            with(1, &[(clips, work(3, 0.5)), (Visual::Image, none)]),
            with(2, &[(clips, work(5, 1.5))]),
            line(3, 1.0),
        ];
        let stage = metrics[0].stage.clone();
        let mut other = with(4, &[(clips, work(100, 9.0))]);
        other.stage.push_str(" later");
        metrics.push(other);
        let kinds = of_stage(&metrics, &stage);
        assert_eq!(kinds.keys().collect::<Vec<_>>(), [&clips]);
        let sum = &kinds[&clips];
        assert_eq!((sum.work.samples, sum.work.bytes), (8, 8000));
        let seconds = [sum.seconds, sum.work.seconds[&DataPart::Decode]];
        assert!((seconds[0] - 4.0).abs() < 1e-9 && (seconds[1] - 2.0).abs() < 1e-9, "{seconds:?}");
    }
}
