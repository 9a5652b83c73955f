//! The training job: runs stages, steps, checkpoints and evaluations until the recipe's last step
//! is done and scored.

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::Context;
use vljepa_data::batch::Batch;
use vljepa_data::catalogue::Catalogues;
use vljepa_data::order::ORDER_VERSION;
use vljepa_kernels::Tensor;
use vljepa_model::learning_rate_at;
use vljepa_recipes::clock;
use vljepa_recipes::protocol::{DataWork, FromWorker, Metrics, Outcome, Phase, Resumed};
use vljepa_recipes::schema::Stage;

use crate::checkpoint::{
    self, CheckpointFolder, Contents, Retention, Save, Saver, Settled, State, checkpoint_name,
};
use crate::engine::{Engine, Training};
use crate::error::WorkerError;
use crate::evaluation;
use crate::observe::gauges::Watch;
use crate::observe::meter::{Closed, Meter};
use crate::observe::metrics::{MetricsWriter, Opened, ResumePoint};
use crate::observe::trace::Tracer;
use crate::rank::session::Session;
use crate::training::Learns;
use crate::training::feed::Feed;
use crate::training::record::{warn, write_record};
use crate::training::start::{initialise, save_frozen};
use crate::training::step::{Input, StepReport};

/// Samples that all ranks must have read before the share of bad ones is compared with the recipe's
/// limit. With fewer samples the share means little.
const SAMPLES_BEFORE_SHARE: u64 = 1000;

/// Trains from the newest checkpoint that verifies, or from the start, until the recipe is complete
/// or a stop was requested. Returns the outcome and the last step.
///
/// # Errors
/// Fails if anything keeps this rank from computing the steps that the recipe asks for.
pub fn train<M: Learns>(session: &Session) -> anyhow::Result<(Outcome, u64)> {
    let mut trainer = Trainer::<M>::start(session)?;
    if session.recipe.stages.is_empty() {
        // Nothing is trained, but commands on the run read a checkpoint.
        trainer.save(true)?;
    }
    trainer.evaluate_if_missed()?;
    while trainer.state.stage < session.recipe.stages.len() {
        let outcome = trainer.stage()?;
        trainer.meter.finish();
        if outcome == Outcome::Stopped {
            return Ok((Outcome::Stopped, trainer.state.step));
        }
    }
    trainer.complete()?;
    Ok((Outcome::Completed, trainer.state.step))
}

struct Trainer<'a, M> {
    session: &'a Session,
    engine: Engine<M>,
    training: Training,
    saver: Saver,
    /// Number of saves that this process has begun.
    saves: usize,
    /// Whether the warning about too frequent saves was given.
    warned_slow: bool,
    frozen_hash: Option<String>,
    /// Hash of the shards' numbers of samples for each source of the current stage. Before the
    /// first stage, those of the checkpoint.
    shard_lengths: BTreeMap<String, String>,
    state: State,
    total_steps: u64,
    meter: Meter,
    writer: Option<MetricsWriter>,
    watch: Watch,
}

impl<'a, M: Learns> Trainer<'a, M> {
    fn start(session: &'a Session) -> anyhow::Result<Self> {
        session.control.at(0, Phase::Start);
        let recipe = &session.recipe;
        let ranks = &session.collectives;
        let (mut engine, mut training) = Engine::for_rank(recipe, session.device, ranks.rank_id())?;
        let checkpoints = CheckpointFolder {
            folder: session.run.checkpoints(),
            recipe_hash: session.recipe_hash.clone(),
            order_version: ORDER_VERSION,
            drills: session.drills.clone(),
            generation: session.generation.clone(),
        };
        let leader = session.collectives.rank() == 0;
        if leader {
            checkpoint::clean(&checkpoints.folder)?;
        }
        session.control.at(0, Phase::Load);
        session.drills.at(0, Phase::Load)?;
        let loaded =
            ranks.patiently(|| engine.restore(&mut training, &checkpoints, None, ranks))?;
        for passed in &loaded.passed_over {
            warn(session, format!("a checkpoint does not verify: {passed}"));
        }
        let mut frozen_hash = loaded.frozen.clone();
        if let Some(name) = &loaded.name {
            let read_mb = loaded.reads.bytes / 1_000_000;
            tracing::info!("continuing from {name}, of which this rank has read {read_mb} MB");
        } else {
            ranks.patiently(|| initialise(session, &mut engine))?;
            frozen_hash = save_frozen(session, &engine, &checkpoints)?;
        }
        session.control.at(loaded.state.step, Phase::Start);
        training.optimizer.step = loaded.state.optimizer_steps;
        let (_, buffers) = engine.checkpoint_buffers(&mut training);
        let retention = Retention::of(recipe, &session.run);
        let saver = Saver::new(checkpoints, ranks, &session.control, &buffers, retention)?;
        let writer = leader.then(|| {
            let events = recipe.logging.tensorboard.then(|| session.run.tensorboard());
            let lines = session.run.metrics();
            let State { step, samples, .. } = loaded.state;
            let point = ResumePoint { step, samples };
            let Opened { writer, resumed, trouble } = MetricsWriter::open(&lines, events, point);
            if resumed != Resumed::default() {
                session.control.report(FromWorker::Resumed(resumed));
            }
            trouble.into_iter().for_each(|text| warn(session, text));
            writer
        });
        Ok(Self {
            session,
            engine,
            training,
            saver,
            saves: 0,
            warned_slow: false,
            frozen_hash,
            shard_lengths: loaded.shard_lengths,
            state: loaded.state,
            total_steps: recipe.total_steps(),
            meter: {
                let (wanted, rank) = (recipe.logging.trace.as_ref(), session.collectives.rank());
                let tracer = Tracer::new(wanted, &session.run, rank, session.device);
                Meter::start(recipe, session.device, &session.device_name, tracer)
            },
            writer,
            watch: Watch::default(),
        })
    }

    /// Runs one stage to its end, or until all ranks agree to stop.
    fn stage(&mut self) -> anyhow::Result<Outcome> {
        let session = self.session;
        let stage = &session.recipe.stages[self.state.stage];
        let rank = session.collectives.rank();
        let (index, first) = (self.state.stage, self.state.stage_step);
        self.engine.trim()?;
        let id = session.collectives.rank_id();
        let catalogues = self.catalogues()?;
        let mut feed = Feed::open(session.device, &session.recipe, &catalogues, index, id, first)?;
        tracing::info!("stage {} from step {first} of {}", stage.name, stage.steps);
        while self.state.stage_step < stage.steps {
            session.control.at(self.state.step, Phase::Data);
            self.meter.begin(self.state.step, self.is_logged(self.state.step + 1));
            session.drills.at(self.state.step, Phase::Data)?;
            let batch = feed.next().with_context(|| {
                format!("rank {rank}, stage {}, step {}", stage.name, self.state.stage_step)
            })?;
            for bad in &batch.skipped {
                tracing::warn!(
                    "left out {} of {} ({}): {}",
                    bad.key,
                    bad.shard,
                    bad.source,
                    bad.reason
                );
            }
            let learning_rate =
                learning_rate_at(&stage.learning_rate, self.state.stage_step, stage.steps);
            let report = self.step(stage, batch, learning_rate)?;
            self.account(stage, &report, learning_rate, &mut feed)?;
            self.poll_save();
            let ended = self.state.stage_step == stage.steps;
            if ended {
                (self.state.stage, self.state.stage_step) = (self.state.stage + 1, 0);
            }
            if report.stop || session.recipe.is_saved(self.state.step) {
                self.save(ended || report.stop)?;
            }
            if report.stop {
                return Ok(Outcome::Stopped);
            }
            if self.is_scored() {
                self.evaluate()?;
            }
            if ended {
                break;
            }
        }
        Ok(Outcome::Completed)
    }

    /// Catalogues of the stage's sources. Only rank 0 looks at the shards: if every rank did, a
    /// shared file system would answer millions of requests at once.
    fn catalogues(&mut self) -> anyhow::Result<Catalogues> {
        let (session, State { stage, stage_step, step, .. }) = (self.session, self.state);
        let ranks = &session.collectives;
        let bytes = match ranks.rank() {
            0 => Catalogues::of_stage(&session.storage, &session.recipe, stage)?.to_bytes(),
            _ => Vec::new(),
        };
        let bytes = ranks.patiently(|| ranks.broadcast(bytes));
        let catalogues = Catalogues::from_bytes(&session.storage, &bytes)?;
        let found = catalogues.lengths_hashes();
        let saved = std::mem::replace(&mut self.shard_lengths, found.clone());
        if stage_step > 0
            && let Some(name) = found
                .keys()
                .find(|&name| saved.get(name).is_some_and(|lengths| *lengths != found[name]))
        {
            let what = format!(
                "was trained on shards of the source `{name}` with other numbers of samples, so \
                 that the order of the samples would change; restore these shards, or start a new \
                 run"
            );
            return Err(WorkerError::Checkpoint { name: checkpoint_name(step), what }.into());
        }
        Ok(catalogues)
    }

    fn step(
        &mut self,
        stage: &Stage,
        batch: Batch<Tensor>,
        learning_rate: f64,
    ) -> anyhow::Result<StepReport> {
        self.meter.count(&self.session.recipe.model, &batch);
        let input = Input {
            batch,
            micro_batch: stage.micro_batch,
            recompute: stage.recompute,
            learning_rate,
            stop: self.session.control.stop_requested(),
            spoiled: self.session.drills.spoil(self.state.step),
            gauged: self.is_logged(self.state.step + 1),
        };
        let (session, number, meter) = (self.session, self.state.step, &mut self.meter);
        let mut enter = |phase| {
            session.control.at(number, phase);
            meter.enter(phase);
            session.drills.at(number, phase)
        };
        let (engine, training) = (&mut self.engine, &mut self.training);
        let of = (&session.recipe, self.state.stage);
        M::step(engine, training, &session.collectives, of, input, &mut enter)
            .with_context(|| format!("rank {}, step {number}", session.collectives.rank()))
    }

    /// Advances the state by one step, and writes a line of metrics if one is due.
    fn account(
        &mut self,
        stage: &Stage,
        report: &StepReport,
        learning_rate: f64,
        feed: &mut Feed,
    ) -> anyhow::Result<()> {
        self.state.step += 1;
        self.state.stage_step += 1;
        self.state.samples += stage.batch as u64;
        self.state.bad_samples += report.bad_samples;
        self.state.optimizer_steps = self.training.optimizer.step;
        self.check_bad_samples()?;
        if report.finite {
            self.state.non_finite_in_a_row = 0;
        } else {
            self.state.non_finite_in_a_row += 1;
            let count = self.state.non_finite_in_a_row;
            self.warn(format!("step {}: gradient not finite, step skipped", self.state.step));
            if count > self.session.recipe.optimizer.non_finite.max_consecutive {
                return Err(WorkerError::NonFinite { count, step: self.state.step }.into());
            }
        }
        if self.is_logged(self.state.step) {
            self.log(stage, report, learning_rate, feed.take_work())?;
        }
        Ok(())
    }

    /// Returns whether a logging interval ends after `step` completed steps.
    fn is_logged(&self, step: u64) -> bool {
        let every = self.session.recipe.logging.every_steps.max(1);
        step.is_multiple_of(every) || step == self.total_steps
    }

    /// Checks the share of bad samples on all ranks against the recipe's limit. The result is the
    /// same on every rank.
    #[expect(clippy::cast_precision_loss, reason = "counts of samples stay far below 2^53")]
    fn check_bad_samples(&self) -> Result<(), WorkerError> {
        let (bad, read) = (self.state.bad_samples, self.state.samples + self.state.bad_samples);
        let allowed = self.session.recipe.data.bad_samples.max_fraction;
        if read > SAMPLES_BEFORE_SHARE && bad as f64 > allowed * read as f64 {
            return Err(WorkerError::TooManyBad { bad, read, allowed });
        }
        Ok(())
    }

    /// Reports the interval to the supervisor, and on rank 0 writes a line of metrics.
    fn log(
        &mut self,
        stage: &Stage,
        report: &StepReport,
        learning_rate: f64,
        data: DataWork,
    ) -> anyhow::Result<()> {
        let closed = self.meter.close(self.state.step);
        let Closed { interval, phase_s, samples_per_s, data_wait_fraction, mfu } = closed;
        let metrics = Metrics {
            step: self.state.step,
            total_steps: self.total_steps,
            stage: stage.name.clone(),
            samples: self.state.samples,
            loss: report.loss,
            gradient_norm: report.gradient_norm,
            learning_rate,
            scale: report.scale,
            gauges: report.gauges,
            samples_per_s,
            data_wait_fraction,
            bad_samples: self.state.bad_samples,
            phase_s,
            tflops: Some(interval.tflops),
            mfu,
            memory_mib: Some(interval.memory_mib),
            device_memory_mib: interval.device_memory_mib,
            data: Some(data),
            time: clock::now_text(),
        };
        self.session.control.report(FromWorker::Interval(interval));
        let rule = &self.session.recipe.logging.collapse;
        let collapsed = report.gauges.map(|gauges| self.watch.take(rule, &gauges, metrics.step));
        if let Some(writer) = &mut self.writer {
            self.session.generation.check()?;
            let trouble = writer.write(&metrics);
            self.session.control.report(FromWorker::Metrics(metrics));
            trouble.into_iter().for_each(|text| self.warn(text));
        }
        // After the line is written: a stop is an error, on every rank.
        if let Some(text) = collapsed.transpose()?.flatten() {
            self.warn(text);
        }
        Ok(())
    }

    /// Begins a save. Training goes on while it is written, unless `awaited`: then the save is
    /// waited for, and its failure ends the run. Saves at the end of a stage and before a stop are
    /// awaited.
    fn save(&mut self, awaited: bool) -> anyhow::Result<()> {
        let since = Instant::now();
        self.enter(Phase::Checkpoint)?;
        if self.saver.is_writing() && !awaited && !self.warned_slow {
            self.warned_slow = true;
            self.warn(format!(
                "training waits at step {} because the previous checkpoint is still being written; \
                 save less often (checkpoints.every_steps) or to a faster disk; this warning is \
                 not repeated",
                self.state.step
            ));
        }
        self.wait_for_save();
        let session = self.session;
        self.engine.check_agreement(&session.collectives, self.state.step, self.saves)?;
        self.saves += 1;
        let (layout, buffers) = self.engine.checkpoint_buffers(&mut self.training);
        let contents = Contents {
            layout: &layout,
            frozen_hash: self.frozen_hash.as_deref(),
            state: self.state,
            shard_lengths: &self.shard_lengths,
        };
        let save = Save { contents, since, awaited };
        self.saver.begin(&session.collectives, &buffers, save);
        if awaited && let Some(settled) = self.saver.wait() {
            let saved = settled.result?;
            tracing::info!("saved {} in {:.3} s", saved.name, saved.durable_s);
        }
        Ok(())
    }

    /// Logs the result of a save that has ended, if any.
    fn poll_save(&mut self) {
        if let Some(settled) = self.saver.poll() {
            self.note_save(settled);
        }
    }

    fn wait_for_save(&mut self) {
        if let Some(settled) = self.saver.wait() {
            self.note_save(settled);
        }
    }

    /// Logs the result of a save. A failed save does not end the run.
    fn note_save(&self, settled: Settled) {
        match settled.result {
            Ok(saved) => tracing::info!(
                "saved {} during training: the step waited {:.3} s, the checkpoint was durable \
                 after {:.3} s",
                saved.name,
                saved.stall_s,
                saved.durable_s
            ),
            Err(error) => {
                self.warn(format!("{error:#}; training goes on and saves again as planned"))
            }
        }
    }

    /// Whether the tasks are measured at this step during training. The last step is scored when
    /// the run is complete.
    fn is_scored(&self) -> bool {
        let step = self.state.step;
        step != self.total_steps && self.session.recipe.is_scored(step)
    }

    /// Evaluates the checkpoint from which the run continues, if the run ended between the save and
    /// the evaluation of this step.
    fn evaluate_if_missed(&mut self) -> anyhow::Result<()> {
        if !self.is_scored() {
            return Ok(());
        }
        let has_scores = self.session.run.evaluation(self.state.step).exists();
        // Rank 0 decides, because the others may see an older state of a shared file system.
        let missed = self.session.collectives.broadcast(vec![u8::from(!has_scores)]);
        if missed == [1] { self.evaluate() } else { Ok(()) }
    }

    fn evaluate(&mut self) -> anyhow::Result<()> {
        self.enter(Phase::Evaluation)?;
        let session = self.session;
        let evaluated = evaluation::evaluate(
            session,
            &session.recipe,
            &session.run,
            M::evaluated(&self.engine),
        )?;
        self.engine.trim()?;
        for text in &evaluated.failures {
            self.warn(text.clone());
        }
        let step = self.state.step;
        let best = session.recipe.checkpoints.keep_best.as_ref().map(|best| &best.metric);
        if let Some(metric) = best.filter(|metric| !evaluated.scores.contains_key(*metric)) {
            self.warn(format!(
                "the evaluation of step {step} gave no `{metric}`, so its checkpoint cannot be one \
                 of `checkpoints.keep_best`"
            ));
        }
        if let Some(writer) = &mut self.writer {
            session.generation.check()?;
            evaluation::write(&session.run, step, &evaluated)?;
            let values =
                evaluated.scores.into_iter().map(|(name, score)| (name, score.value)).collect();
            let trouble = writer.scores(step, &values);
            session.control.report(FromWorker::Scores { step, values });
            trouble.into_iter().for_each(|text| self.warn(text));
        }
        Ok(())
    }

    /// Scores the trained model and writes the completion record.
    fn complete(&mut self) -> anyhow::Result<()> {
        self.evaluate()?;
        let session = self.session;
        if session.collectives.rank() == 0 {
            let model = M::evaluated(&self.engine);
            let shown = evaluation::write_showcase(&session.recipe, model, &session.run);
            if let Err(error) = shown {
                self.warn(format!("the report shows no samples: {error:#}"));
            }
            if let Err(error) = self.saver.retain(self.state.step) {
                self.warn(format!("{error:#}"));
            }
            write_record(session, &self.state)?;
        }
        // No rank may exit before the record is written.
        session.collectives.patiently(|| session.collectives.barrier());
        Ok(())
    }

    /// Warns the user: in this rank's log, and through the supervisor if this is rank 0.
    fn warn(&self, text: String) {
        warn(self.session, text);
    }

    fn enter(&mut self, phase: Phase) -> anyhow::Result<()> {
        self.session.control.at(self.state.step, phase);
        self.meter.enter(phase);
        self.session.drills.at(self.state.step, phase)
    }
}
