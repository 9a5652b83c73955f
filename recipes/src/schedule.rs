//! Steps after which a run is scored and saved, and checkpoints that it keeps. They follow from the
//! recipe alone, so a run that is interrupted, or goes on with other ranks, reaches the same ones.

use std::collections::BTreeSet;

use crate::schema::{Recipe, Stage};

impl Recipe {
    /// Number of samples that the run has trained on after `step` steps over all stages.
    #[must_use]
    pub fn samples_after(&self, step: u64) -> u64 {
        let mut left = step;
        self.stages.iter().fold(0, |sum, stage| {
            let steps = left.min(stage.steps);
            left -= steps;
            sum.saturating_add(steps.saturating_mul(stage.batch as u64))
        })
    }

    /// Returns the first step after which the run has trained on at least `samples` samples, or
    /// `None` if all stages have fewer.
    #[must_use]
    pub fn step_of_samples(&self, samples: u64) -> Option<u64> {
        let (mut first, mut left) = (0_u64, samples);
        for Stage { steps, batch, .. } in &self.stages {
            let batch = (*batch).max(1) as u64;
            let of_stage = steps.saturating_mul(batch);
            if left <= of_stage {
                return Some(first.saturating_add(left.div_ceil(batch)));
            }
            first = first.saturating_add(*steps);
            left -= of_stage;
        }
        None
    }

    /// Whether the evaluation tasks are measured after `step` steps. They always are after the last
    /// one.
    #[must_use]
    pub fn is_scored(&self, step: u64) -> bool {
        let evaluation = &self.evaluation;
        let every = evaluation.every_steps;
        step == self.total_steps()
            || (every > 0 && step > 0 && step.is_multiple_of(every))
            || evaluation.at_samples.iter().any(|n| self.step_of_samples(*n) == Some(step))
    }

    /// Whether a checkpoint is written after `step` steps. One always is at the end of a stage.
    #[must_use]
    pub fn is_saved(&self, step: u64) -> bool {
        let checkpoints = &self.checkpoints;
        let every = checkpoints.every_steps;
        (every > 0 && step > 0 && step.is_multiple_of(every))
            || (checkpoints.keep_best.is_some() && self.is_scored(step))
            || self.stage_ends().any(|end| end == step)
            || self.kept_steps().contains(&step)
    }

    /// Steps of the points that `checkpoints.keep_at` names.
    #[must_use]
    pub fn kept_steps(&self) -> BTreeSet<u64> {
        let keep_at = &self.checkpoints.keep_at;
        let ends = self.stage_ends().filter(|_| keep_at.stage_ends);
        ends.chain(keep_at.samples_seen.iter().filter_map(|n| self.step_of_samples(*n))).collect()
    }

    /// Largest number of complete checkpoints that the run directory holds at once.
    #[must_use]
    pub fn most_checkpoints(&self) -> usize {
        let checkpoints = &self.checkpoints;
        let best = checkpoints.keep_best.as_ref().map_or(0, |best| best.count);
        // When the last of the kept steps is saved, it is also the newest checkpoint.
        checkpoints.keep.max(1) + best + self.kept_steps().len()
    }

    /// Number of steps over all stages at the end of each stage.
    pub fn stage_ends(&self) -> impl Iterator<Item = u64> {
        self.stages.iter().scan(0_u64, |end, stage| {
            *end = end.saturating_add(stage.steps);
            Some(*end)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use crate::schema::{KeepAt, KeepBest, Recipe};

    /// Two stages: 10 steps of 8 samples, then 5 steps of 3 samples.
    fn recipe() -> Recipe {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("quickstart.yaml");
        let mut recipe = crate::load(&path, &[]).unwrap().recipe;
        let mut second = recipe.stages[0].clone();
        (recipe.stages[0].steps, recipe.stages[0].batch) = (10, 8);
        (second.steps, second.batch) = (5, 3);
        recipe.stages.push(second);
        recipe.evaluation.every_steps = 0;
        recipe.checkpoints.every_steps = 100;
        recipe
    }

    fn steps(of: impl Fn(u64) -> bool) -> Vec<u64> {
        (0..=20).filter(|step| of(*step)).collect()
    }

    #[test]
    fn samples_and_steps_are_counted_over_stages_of_different_batches() {
        let recipe = recipe();
        let samples = [0, 9, 10, 11, 15, 99].map(|step| recipe.samples_after(step));
        assert_eq!(samples, [0, 72, 80, 83, 95, 95]);
        let steps = [1, 8, 9, 80, 81, 83, 84, 95].map(|n| recipe.step_of_samples(n).unwrap());
        assert_eq!(steps, [1, 1, 2, 10, 11, 11, 12, 15]);
        assert_eq!(recipe.step_of_samples(96), None);
        for n in 1..=95 {
            let step = recipe.step_of_samples(n).unwrap();
            assert!(recipe.samples_after(step) >= n && recipe.samples_after(step - 1) < n, "{n}");
        }
        let mut huge = recipe;
        (huge.stages[0].steps, huge.stages[0].batch) = (u64::MAX, usize::MAX);
        assert_eq!(huge.samples_after(u64::MAX), u64::MAX);
        huge.stages[0].batch = 0;
        assert_eq!(huge.samples_after(9), 0);
    }

    #[test]
    fn the_last_step_is_scored_and_those_that_the_recipe_names() {
        let mut recipe = recipe();
        assert_eq!(steps(|step| recipe.is_scored(step)), [15]);
        recipe.evaluation.every_steps = 6;
        recipe.evaluation.at_samples = vec![8, 82];
        assert_eq!(steps(|step| recipe.is_scored(step)), [1, 6, 11, 12, 15, 18]);
    }

    #[test]
    fn a_checkpoint_is_written_where_one_must_be_kept() {
        let mut recipe = recipe();
        assert_eq!(steps(|step| recipe.is_saved(step)), [10, 15]);
        assert_eq!((recipe.kept_steps(), recipe.most_checkpoints()), (BTreeSet::new(), 3));
        recipe.checkpoints.every_steps = 4;
        recipe.evaluation.every_steps = 7;
        assert_eq!(steps(|step| recipe.is_saved(step)), [4, 8, 10, 12, 15, 16, 20]);
        recipe.checkpoints.keep_best = Some(KeepBest { metric: String::new(), count: 2 });
        assert_eq!(steps(|step| recipe.is_saved(step)), [4, 7, 8, 10, 12, 14, 15, 16, 20]);
        recipe.checkpoints.keep_at = KeepAt { stage_ends: true, samples_seen: vec![9, 80] };
        assert_eq!(steps(|step| recipe.is_saved(step)), [2, 4, 7, 8, 10, 12, 14, 15, 16, 20]);
        assert_eq!(recipe.kept_steps(), BTreeSet::from([2, 10, 15]));
        assert_eq!(recipe.most_checkpoints(), 3 + 2 + 3);
    }
}
