//! Scores the captions that a model has written about the samples of a task.

use std::collections::BTreeMap;

use vljepa_recipes::schema::{CaptionMetric, TaskKind};

use super::captions::{self, Captioned, SetScore};
use super::chunks::Answered;
use super::metrics::{Score, majority, names_all, share};
use super::truth::CaptionTruth;

/// Scores of captions of a task of this kind, in the order of [`Task::metrics`]. Each caption has
/// its [`CaptionTruth`] as JSON. A sample that could not be read counts as 0.
///
/// [`Task::metrics`]: vljepa_recipes::schema::Task::metrics
///
/// # Errors
/// Fails if the truth cannot be read.
pub(super) fn scores(written: &[Answered<String>], kind: &TaskKind) -> anyhow::Result<Vec<Score>> {
    let (mut right, mut named, mut captions) = (0, Vec::new(), Vec::new());
    for Answered { row, truth, .. } in written {
        let Some(caption) = row else { continue };
        let CaptionTruth { names, references } = serde_json::from_str(truth)?;
        right += usize::from(names_all(caption, &names));
        named.push(names);
        captions.push(Captioned { hypothesis: caption.clone(), references });
    }
    let TaskKind::Captioning { names, references } = kind else { return Ok(Vec::new()) };
    let n = written.len();
    let mut values = Vec::new();
    if !names.is_empty() {
        // The most frequent combination of names is what a constant caption can get right.
        values.push(Score::of_share(right, n, 0.0, majority(&named)));
    }
    if !references.is_empty() {
        let read = share(captions.len(), n);
        let reached = captions::scores(&captions, CaptionMetric::ALL)?;
        let constant = most_frequent_reference(&captions).to_owned();
        captions.iter_mut().for_each(|caption| caption.hypothesis.clone_from(&constant));
        let baselines = captions::scores(&captions, CaptionMetric::ALL)?;
        let both = reached.into_iter().zip(baselines);
        values.extend(both.map(|(SetScore { value, interval }, baseline)| Score {
            // Those that could not be read have 0.
            interval: interval.map(|ends| ends.map(|end| read * end)),
            ..Score::of_value(read * value, n, 0.0, read * baseline.value)
        }));
    }
    Ok(values)
}

/// The reference that most samples have; of several, the first in the order of their characters.
pub(super) fn most_frequent_reference(captions: &[Captioned]) -> &str {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for reference in captions.iter().flat_map(|caption| &caption.references) {
        *counts.entry(reference).or_default() += 1;
    }
    let most = counts.into_iter().rev().max_by_key(|(_, count)| *count);
    most.map_or("", |(reference, _)| reference)
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use vljepa_recipes::schema::{Task, TaskKind};

    use super::{Answered, CaptionTruth, Score};

    /// Scores by name.
    fn scores(
        written: &[Answered<String>],
        task: &Task,
    ) -> anyhow::Result<std::collections::BTreeMap<String, Score>> {
        let values = super::scores(written, &task.kind)?;
        assert_eq!(values.len(), task.metrics().len());
        Ok(task.metrics().into_iter().zip(values).collect())
    }

    fn task(names: &[&str], references: &[&str]) -> Task {
        let kind = json!({"captioning": {"names": names, "references": references}});
        let task = json!({"name": "c", "kind": kind, "shards": "s"});
        serde_json::from_value(task).unwrap()
    }

    /// A caption with its truth.
    fn written(caption: &str, name: &str, references: &[&str]) -> Answered<String> {
        let references = references.iter().map(|&text| text.to_owned()).collect();
        let truth = CaptionTruth { names: vec![name.to_owned()], references };
        let truth = serde_json::to_string(&truth).unwrap();
        Answered { row: Some(caption.to_owned()), truth, part: None }
    }

    fn close(value: f64, expected: f64) -> bool {
        (value - expected).abs() < 1e-8
    }

    #[test]
    fn a_task_has_the_scores_of_what_it_names() {
        let rows = [
            written("a red cat runs", "cat", &["A red cat runs."]),
            written("a blue bird", "dog", &["A dog in green grass sleeps.", "a dog"]),
        ];
        let both = scores(&rows, &task(&["animal"], &["caption"])).unwrap();
        let names: Vec<&str> = both.keys().map(String::as_str).collect();
        assert_eq!(names, ["c_bleu4", "c_cider", "c_named", "c_rouge_l"]);
        assert!(close(both["c_named"].value, 0.5), "{both:?}");
        // The first caption is right word for word: 10. Of the second only `a` is right, which all
        // pictures have, so that it weighs nothing.
        assert!(close(both["c_cider"].value, 5.0), "{both:?}");
        // Of 10 and 0: the mean is uncertain by 5, and 1.96 times that leaves the range.
        assert_eq!(both["c_cider"].interval, Some([0.0, 10.0]));
        assert!(both.values().all(|score| score.interval.is_some()), "{both:?}");
        // `A dog in green grass sleeps.` comes first. Its picture then has 10.
        assert!(both["c_cider"].baseline > 2.5 && both["c_cider"].baseline < 5.0, "{both:?}");
        assert_eq!(scores(&rows, &task(&["animal"], &[])).unwrap().len(), 1);
        assert_eq!(scores(&rows, &task(&[], &["caption"])).unwrap().len(), 3);
    }

    #[test]
    fn what_cannot_be_read_counts_as_0() {
        let read = || written("a red cat runs", "cat", &["A red cat runs."]);
        let other = || written("the green bird sings", "bird", &["The green bird sings."]);
        let task = task(&["animal"], &["caption"]);
        assert!(matches!(task.kind, TaskKind::Captioning { .. }));
        let lost = || Answered { row: None, truth: String::new(), part: None };
        let found = scores(&[read(), other(), lost(), lost()], &task).unwrap();
        for (metric, whole) in [("c_named", 1.0), ("c_cider", 10.0), ("c_bleu4", 1.0)] {
            assert!(close(found[metric].value, whole / 2.0), "{metric}: {:?}", found[metric]);
            assert_eq!(found[metric].n, 4);
        }
        let none = scores(&[lost()], &task).unwrap();
        assert!(none.values().all(|score| close(score.value, 0.0)), "{none:?}");
    }
}
