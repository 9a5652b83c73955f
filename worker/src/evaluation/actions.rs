//! Score of WorldPrediction-WM (paper §4.3): which of several actions explains a change.

use std::collections::BTreeMap;

use anyhow::Context as _;

use super::chunks::Answered;
use super::metrics::{Score, cosine};
use super::truth::ActionTruth;

/// Embeddings of one question. An entry is `None` if its picture or clip cannot be read.
#[derive(Debug, Default)]
struct Item<'a> {
    change: Option<&'a [f32]>,
    /// Number of the right action.
    right: Option<usize>,
    actions: BTreeMap<usize, Option<&'a [f32]>>,
}

impl Item<'_> {
    /// Whether the right action is nearer to the change than each other action.
    fn is_right(&self) -> bool {
        let actions: Option<Vec<(usize, &[f32])>> =
            self.actions.iter().map(|(&number, row)| Some((number, (*row)?))).collect();
        let (Some(change), Some(right), Some(actions)) = (self.change, self.right, actions) else {
            return false;
        };
        let similarity = |row: &[f32]| cosine(change, row);
        let Some(own) = actions.iter().find(|(number, _)| *number == right) else { return false };
        let own = similarity(own.1);
        actions.iter().all(|(number, row)| *number == right || own > similarity(row))
    }
}

/// Share of the questions whose right action is nearest to the change.
///
/// # Errors
/// Fails if the rows are not those of whole questions.
pub(super) fn score(rows: &[Answered<Vec<f32>>]) -> anyhow::Result<Score> {
    let mut items: BTreeMap<String, Item<'_>> = BTreeMap::new();
    let mut unread = 0;
    for Answered { row, truth, .. } in rows {
        let row = row.as_deref();
        // The texts of a sample that cannot be read may be unknown too.
        let Ok(ActionTruth { item, action, right }) = serde_json::from_str(truth) else {
            unread += 1;
            continue;
        };
        let item = items.entry(item).or_default();
        match action {
            Some(number) => drop(item.actions.insert(number, row)),
            None => (item.change, item.right) = (row, right),
        }
    }
    anyhow::ensure!(unread == 0, "{unread} samples belong to no question");
    anyhow::ensure!(!items.is_empty(), "the set has no question");
    let chances: Option<Vec<f64>> = items
        .values()
        .map(|item| Some(1.0 / f64::from(u32::try_from(item.actions.len().max(1)).ok()?)))
        .collect();
    let chances = chances.context("a question has too many actions")?;
    #[expect(clippy::cast_precision_loss, reason = "a count of questions")]
    let chance = chances.iter().sum::<f64>() / chances.len() as f64;
    let right = items.values().filter(|item| item.is_right()).count();
    Ok(Score::of_share(right, items.len(), chance, chance))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 40 questions with four actions; `row` makes the embedding of the change (`None`) or of an
    /// action of a question.
    fn rows(row: impl Fn(usize, Option<usize>) -> Option<Vec<f32>>) -> Vec<Answered<Vec<f32>>> {
        let answered = |item: usize, action: Option<usize>| {
            let right = action.is_none().then_some(item % 4);
            let truth = ActionTruth { item: item.to_string(), action, right };
            let truth = serde_json::to_string(&truth).unwrap();
            Answered { row: row(item, action), truth, part: None }
        };
        let actions = |item| {
            std::iter::once(answered(item, None))
                .chain((0..4).map(move |action| answered(item, Some(action))))
        };
        (0..40).flat_map(actions).collect()
    }

    fn unit(i: usize) -> Vec<f32> {
        (0..4).map(|j| f32::from(u8::from(i == j))).collect()
    }

    #[test]
    fn a_copy_of_the_right_action_scores_everything_and_equal_embeddings_nothing() {
        let perfect = |item: usize, action: Option<usize>| Some(unit(action.unwrap_or(item % 4)));
        let whole = score(&rows(perfect)).unwrap();
        assert_eq!((whole.value, whole.n, whole.chance), (1.0, 40, 0.25));
        // Ties count against the right action.
        let equal = score(&rows(|_, _| Some(unit(0)))).unwrap();
        assert_eq!((equal.value, equal.n), (0.0, 40));
        // One change is nearest to a wrong action, one action and one change cannot be read.
        let faulty = |item: usize, action: Option<usize>| match (item, action) {
            (3, None) => Some(unit(0)),
            (5, Some(2)) | (6, None) => None,
            _ => perfect(item, action),
        };
        let some = score(&rows(faulty)).unwrap();
        assert_eq!((some.value, some.n), (37.0 / 40.0, 40));
        assert!(score(&[]).is_err());
    }
}
