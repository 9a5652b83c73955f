//! Rules for evaluation sets.

use super::Problems;
use crate::schema::{
    Candidates, Count, EvaluationSet, PathTemplate, SetFormat, SetTexts, Task, TaskKind,
};

/// Checks a set and whether the task can measure it.
pub(super) fn check(set: &EvaluationSet, task: &Task, key: &str, found: &mut Problems) {
    let of_set = format!("{key}.set");
    super::check_name(found, &format!("{of_set}.name"), &set.name);
    if set.source.trim().is_empty() {
        let help = "say where the annotations and the pictures or videos are published";
        found.add(format!("{of_set}.source"), "is empty", help);
    }
    if set.root.as_os_str().is_empty() {
        found.add(format!("{of_set}.root"), "is empty", "name the folder that holds the set");
    }
    for count in &set.expect.unverified {
        if set.expect.of(*count).is_none() {
            let what = format!("names `{}`, which has no expected count", count.name());
            let help = format!("add `{}: N` beside it, or remove it", count.name());
            found.add(format!("{of_set}.expect.unverified"), what, help);
        }
    }
    let format = &set.format;
    let of_format = format!("{of_set}.format.{}", format.name());
    for template in format.templates() {
        check_template(template, &of_format, found);
    }
    check_files(format, &of_format, found);
    check_kind(set, task, key, found);
}

fn check_files(format: &SetFormat, key: &str, found: &mut Problems) {
    match format {
        SetFormat::CaptionTable { key: columns, .. } if columns.is_empty() => {
            let help = "name the columns that identify a clip: `[video_id]`";
            found.add(format!("{key}.key"), "is empty", help);
        }
        SetFormat::EgoExo4dDescriptions { tasks, .. } if tasks.is_empty() => {
            let help = "name values of `parent_task_name` in `takes`, such as `[Cooking]`";
            found.add(format!("{key}.tasks"), "is empty", help);
        }
        SetFormat::SugarCrepePp { files } if files.is_empty() => {
            found.add(format!("{key}.files"), "is empty", "name at least one file");
        }
        SetFormat::Didemo { seconds: Some(seconds), .. } => {
            found.above_zero(key, &[("seconds", *seconds)]);
        }
        _ => {}
    }
}

fn check_template((name, text, fields): PathTemplate<'_>, key: &str, found: &mut Problems) {
    let key = format!("{key}.{name}");
    if text.is_empty() {
        return found.add(key, "is empty", "name the files, such as `videos/{video_id}.mp4`");
    }
    for part in text.split('{').skip(1) {
        let Some((field, _)) = part.split_once('}') else {
            let what = format!("`{text}` has a `{{` without `}}`");
            return found.add(key, what, "write fields as `{video_id}`");
        };
        let field = field.split(':').next().unwrap_or_default();
        let Some(known) = fields else { continue };
        if !known.contains(&field) {
            let known: Vec<String> = known.iter().map(|field| format!("`{{{field}}}`")).collect();
            let what = format!("`{{{field}}}` is no field of the annotations");
            return found.add(key, what, format!("the fields are {}", known.join(", ")));
        }
    }
}

fn check_kind(set: &EvaluationSet, task: &Task, key: &str, found: &mut Problems) {
    let needed = match task.kind {
        TaskKind::Classification { .. } => SetTexts::Labels,
        TaskKind::Retrieval | TaskKind::Captioning { .. } => SetTexts::Captions,
        TaskKind::QuestionAnswering { .. } => SetTexts::Questions,
        TaskKind::SelectiveDecoding(_) => SetTexts::Annotations,
        TaskKind::WorldPrediction => SetTexts::Actions,
        TaskKind::Triplets => SetTexts::Triplets,
    };
    let name = set.format.name();
    let (held, help) = match set.format.texts() {
        SetTexts::Labels => ("a label per sample", "write `kind: {classification: {…}}`"),
        SetTexts::Captions => ("captions", "write `kind: retrieval` or `kind: {captioning: {…}}`"),
        SetTexts::Questions => ("questions", "write `kind: {question_answering: {…}}`"),
        SetTexts::Annotations => {
            ("annotations of long videos", "write `kind: {selective_decoding: {}}`")
        }
        SetTexts::Actions => ("pictures and actions", "write `kind: world_prediction`"),
        SetTexts::Triplets => ("triplets of texts", "write `kind: triplets`"),
    };
    if set.format.texts() != needed {
        found.add(format!("{key}.kind"), format!("a set of `{name}` holds {held}"), help);
    }
}

/// Whether labels or answers are to come from a set that the task does not have.
pub(super) fn lacks_candidates(task: &Task) -> Option<&'static str> {
    let is_missing = |candidates: &Candidates| *candidates == Candidates::OfSet;
    let missing = match &task.kind {
        TaskKind::Classification { candidates, .. } if is_missing(candidates) => "classification",
        TaskKind::QuestionAnswering { candidates, .. } if is_missing(candidates) => {
            "question_answering"
        }
        _ => return None,
    };
    task.set.is_none().then_some(missing)
}

/// Messages about counts that differ from the expected ones: errors, and warnings for those that
/// are allowed or were never verified. `found` are the counts of the files.
#[must_use]
pub fn count_problems(
    set: &EvaluationSet,
    found: impl Fn(Count) -> usize,
) -> (Vec<String>, Vec<String>) {
    let (mut errors, mut warnings) = (Vec::new(), Vec::new());
    for count in Count::ALL {
        let (is, Some(expected)) = (found(count), set.expect.of(count)) else { continue };
        if is == expected {
            continue;
        }
        let difference = if is < expected {
            format!("{} fewer", expected - is)
        } else {
            format!("{} more", is - expected)
        };
        let mut text =
            format!("{is} {}, where {expected} are expected: {difference}", count.name());
        let known = set.expect.known.iter().find(|known| known.count == count && known.is == is);
        if let Some(known) = known {
            text += &format!("; this is the number of {}", known.means);
        }
        let unverified = set.expect.unverified.contains(&count);
        if unverified {
            text += "; the expected number stems from a paper and was not verified";
        }
        let allowed = set.allow_subset && is < expected;
        if unverified || allowed { warnings.push(text) } else { errors.push(text) }
    }
    (errors, warnings)
}
