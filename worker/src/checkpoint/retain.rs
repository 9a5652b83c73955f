//! Retention: which checkpoints stay when a new one is published or scored. The answer follows from
//! the recipe and the files of the run, so a run that was killed keeps the same ones.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use anyhow::Context;
use vljepa_recipes::schema::KeepBest;
use vljepa_recipes::{Recipe, RunDirectory};

use super::load::folders;
use super::publish::half_written;

/// Rules of a recipe that say which checkpoints stay. A checkpoint is deleted only if no rule keeps
/// it.
#[derive(Debug, Clone, Default)]
pub struct Retention {
    /// Number of newest checkpoints that stay. The newest one always does.
    keep: usize,
    /// Steps of [`Recipe::kept_steps`]. The first checkpoint from each of them on stays.
    points: BTreeSet<u64>,
    /// Metric and number of the best checkpoints that stay, with the run that has their scores.
    best: Option<(KeepBest, RunDirectory)>,
}

impl Retention {
    /// Returns the rules of a recipe, for the checkpoints of `run`.
    #[must_use]
    pub fn of(recipe: &Recipe, run: &RunDirectory) -> Self {
        let best = recipe.checkpoints.keep_best.clone();
        Self {
            keep: recipe.checkpoints.keep,
            points: recipe.kept_steps(),
            best: best.map(|best| (best, run.clone())),
        }
    }

    /// Returns the rule that the newest `keep` checkpoints stay.
    #[must_use]
    pub fn newest(keep: usize) -> Self {
        Self { keep, ..Self::default() }
    }

    /// Deletes the checkpoints up to `step` that no rule keeps. Checkpoints of later steps are
    /// deleted as well: they did not verify when this run resumed from an earlier one, and their
    /// steps will be computed again. Temporary folders that a killed run left behind are deleted
    /// too.
    pub(super) fn apply(&self, folder: &Path, step: u64) -> anyhow::Result<()> {
        let (later, present): (Vec<_>, Vec<_>) =
            folders(folder)?.into_iter().partition(|(of, _)| *of > step);
        let steps: BTreeSet<u64> = present.iter().map(|(of, _)| *of).collect();
        let kept = self.kept(&steps, &self.scores(&steps));
        let old = present.into_iter().filter(|(of, _)| !kept.contains(of));
        let old = old.chain(later).map(|(_, path)| path);
        for path in old.chain(half_written(folder)?) {
            fs::remove_dir_all(&path)
                .with_context(|| format!("cannot delete the old checkpoint {}", path.display()))?;
        }
        Ok(())
    }

    /// Scores of `steps` that decide which checkpoints are the best. A step whose evaluation is
    /// still to come has none.
    fn scores(&self, steps: &BTreeSet<u64>) -> BTreeMap<u64, f64> {
        let Some((KeepBest { metric, .. }, run)) = &self.best else { return BTreeMap::new() };
        steps.iter().filter_map(|step| Some((*step, run.score(*step, metric)?))).collect()
    }

    /// Returns those of the checkpoints of `steps` that stay.
    fn kept(&self, steps: &BTreeSet<u64>, scores: &BTreeMap<u64, f64>) -> BTreeSet<u64> {
        let newest = steps.iter().rev().take(self.keep.max(1));
        let points = self.points.iter().filter_map(|point| steps.range(point..).next());
        let mut best: Vec<(&u64, &f64)> = scores.iter().collect();
        // The sort is stable: of equal scores the earlier step comes first.
        best.sort_by(|a, b| b.1.total_cmp(a.1));
        let count = self.best.as_ref().map_or(0, |(best, _)| best.count);
        newest
            .chain(points)
            .chain(best.into_iter().take(count).map(|(step, _)| step))
            .copied()
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::path::Path;

    use vljepa_recipes::RunDirectory;
    use vljepa_recipes::schema::KeepBest;

    use super::Retention;

    /// A run directory whose checkpoints are empty folders.
    struct Run {
        folder: tempfile::TempDir,
        run: RunDirectory,
    }

    impl Run {
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../recipes/quickstart.yaml");
            let recipe = vljepa_recipes::load(&path, &[]).unwrap();
            let (run, _) = RunDirectory::create(&folder.path().join("run"), &recipe).unwrap();
            Self { folder, run }
        }

        fn retention(&self, keep: usize, count: usize, points: &[u64]) -> Retention {
            let best = KeepBest { metric: "r1".to_owned(), count };
            Retention {
                keep,
                points: points.iter().copied().collect(),
                best: (count > 0).then(|| (best, self.run.clone())),
            }
        }

        /// Publishes the checkpoint of a step, and writes its score unless it is `None`.
        fn reach(&self, retention: &Retention, step: u64, score: Option<f64>) {
            std::fs::create_dir(self.run.checkpoint(step)).unwrap();
            retention.apply(&self.run.checkpoints(), step).unwrap();
            if let Some(score) = score {
                self.score(step, &format!(r#"{{"r1": {{"value": {score}}}}}"#));
            }
        }

        fn score(&self, step: u64, text: &str) {
            std::fs::write(self.run.evaluation(step), text).unwrap();
        }

        fn steps(&self) -> Vec<u64> {
            assert!(self.folder.path().exists());
            self.run.checkpoint_steps()
        }
    }

    #[test]
    fn each_rule_keeps_its_own_and_no_other_checkpoint() {
        let run = Run::new();
        let steps: BTreeSet<u64> = (1..=9).collect();
        let scores = BTreeMap::from([(2, 0.5), (4, 0.7), (6, 0.7), (8, 0.1)]);
        let kept = |keep, count, points: &[u64]| {
            let kept = run.retention(keep, count, points).kept(&steps, &scores);
            kept.into_iter().collect::<Vec<_>>()
        };
        assert_eq!(kept(2, 0, &[]), [8, 9]);
        assert_eq!(kept(0, 0, &[]), [9], "the newest stays whatever the recipe says");
        assert_eq!(kept(1, 1, &[]), [4, 9], "of equal scores the earlier step stays");
        assert_eq!(kept(1, 3, &[]), [2, 4, 6, 9]);
        assert_eq!(kept(1, 9, &[]), [2, 4, 6, 8, 9], "a step without a score is not the best");
        assert_eq!(kept(1, 0, &[3, 5, 10]), [3, 5, 9], "step 10 is still to come");
        assert_eq!(kept(3, 2, &[3, 6]), [3, 4, 6, 7, 8, 9]);
        assert_eq!(kept(20, 2, &[3]), (1..=9).collect::<Vec<_>>());
        let none = run.retention(3, 2, &[3]).kept(&BTreeSet::new(), &BTreeMap::new());
        assert_eq!(none, BTreeSet::new());
    }

    #[test]
    fn the_next_checkpoint_stays_for_a_point_whose_own_could_not_be_written() {
        let run = Run::new();
        let steps = BTreeSet::from([2, 5, 7, 9]);
        let kept = run.retention(1, 0, &[3, 4, 7]).kept(&steps, &BTreeMap::new());
        assert_eq!(kept, BTreeSet::from([5, 7, 9]));
    }

    #[test]
    fn the_best_of_all_scores_stay_although_each_is_known_after_its_checkpoint() {
        let scores = [0.3, 0.1, 0.8, 0.5, 0.8, 0.2, 0.9, 0.4];
        for (keep, count) in [(1, 1), (1, 2), (2, 1), (3, 3)] {
            let run = Run::new();
            let retention = run.retention(keep, count, &[]);
            for (step, score) in (1..).zip(scores) {
                run.reach(&retention, step, Some(score));
                assert!(run.steps().len() <= keep + count, "{:?}", run.steps());
            }
            retention.apply(&run.run.checkpoints(), 8).unwrap();
            let all: BTreeSet<u64> = (1..=8).collect();
            let wanted = retention.kept(&all, &(1..).zip(scores).collect());
            assert_eq!(run.steps(), wanted.into_iter().collect::<Vec<_>>(), "{keep} {count}");
        }
    }

    #[test]
    fn the_last_score_lets_the_best_checkpoint_of_before_go() {
        let run = Run::new();
        let retention = run.retention(1, 1, &[]);
        run.reach(&retention, 1, Some(0.5));
        run.reach(&retention, 2, Some(0.9));
        assert_eq!(run.steps(), [1, 2]);
        retention.apply(&run.run.checkpoints(), 2).unwrap();
        assert_eq!(run.steps(), [2]);
    }

    #[test]
    fn scores_that_are_missing_damaged_or_no_numbers_keep_nothing() {
        let run = Run::new();
        let retention = run.retention(1, 1, &[]);
        run.reach(&retention, 1, Some(0.1));
        for (step, text) in [(2, "{"), (3, r#"{"r5": {"value": 1.0}}"#), (4, r#"{"r1": {}}"#)] {
            run.reach(&retention, step, None);
            run.score(step, text);
        }
        run.score(5, r#"{"r1": {"value": null}}"#);
        run.reach(&retention, 5, None);
        run.reach(&retention, 6, None);
        assert_eq!(run.steps(), [1, 6]);
    }

    #[test]
    fn later_checkpoints_go_even_if_a_rule_would_keep_them() {
        let run = Run::new();
        let retention = run.retention(2, 1, &[7]);
        for step in [3, 7, 9] {
            run.reach(&Retention::newest(9), step, Some(0.9));
        }
        run.reach(&retention, 4, None);
        assert_eq!(run.steps(), [3, 4]);
    }
}
