//! Runs a worker from start to end: joins the collectives and the control connection, opens the
//! log, runs the job, and makes sure that an error or a panic of this rank also ends the other
//! ranks.

use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use vljepa_data::storage::{Storage, StorageOptions};
use vljepa_kernels::Device;
use vljepa_model::{VlJepa, Vlm};
use vljepa_recipes::protocol::{FromWorker, Hello, Job};
use vljepa_recipes::schema::ModelKind;
use vljepa_recipes::{RankId, RunDirectory};

use crate::collectives::{Collectives, record};
use crate::error::WorkerError;
use crate::latency::Protocol;
use crate::rank::control::Control;
use crate::rank::drill::Drills;
use crate::rank::environment::Environment;
use crate::rank::generation::Generation;
use crate::rank::session::Session;
use crate::rank::{device, health, limits, rendezvous, signals};
use crate::training::train;
use crate::{inference, latency, log, measurement, stream, table};

/// Returns the version and the cargo features of this build as JSON.
#[must_use]
pub fn features() -> String {
    serde_json::json!({
        "version": env!("CARGO_PKG_VERSION"),
        "mpi": cfg!(feature = "mpi"),
        "video": cfg!(feature = "video"),
        "cuda": cfg!(feature = "cuda"),
    })
    .to_string()
}

/// Runs a job and returns the text that it prints, if any. If one of several ranks has an error,
/// this function does not return: the supervisor receives the error and the collectives end the
/// other ranks.
///
/// # Errors
/// Fails if the job fails on the only rank, or before another rank depends on this one.
pub fn run(run: &Path, job: &Path, control: Option<&str>) -> anyhow::Result<Option<String>> {
    if let Ok(Job::Check(check)) = read_job(job) {
        return health::check(run, &check).map(Some);
    }
    let environment = Environment::read();
    let input = JobInput::read(run, job)?;
    let wanted = input.world_size();
    let (rank, cpus) = rendezvous::rank_id(&input.loaded.recipe, &environment, wanted)?;
    let opened = open(&input, control, &environment, rank)
        .map_err(|error| give_up(error, rank, cpus.as_ref(), &Control::alone()))?;
    let Opened { storage, device, device_name, control } = opened;
    limits::set();
    let recipe = &input.loaded.recipe;
    let collectives = match cpus {
        Some(cpus) => match rendezvous::await_cpus(recipe, rank, &control) {
            Ok(()) => cpus,
            Err(error) => return Err(give_up(error.into(), rank, Some(&cpus), &control)),
        },
        None => rendezvous::join_gpus(recipe, &environment, device, rank, &control)
            .map_err(|error| give_up(error, rank, None, &control))?,
    };
    if let Err(error) = device::check_distinct(&collectives, &environment, device) {
        return Err(give_up(error, rank, Some(&collectives), &control));
    }
    let JobInput { run, job, mut loaded } = input;
    let data_threads = &mut loaded.recipe.data.threads;
    if *data_threads == 0 {
        *data_threads = environment.cpus(environment.local_world_size);
    }
    let (recipe, recipe_hash) = (loaded.recipe, loaded.hash);
    let drills = Drills::of(&job, collectives.rank());
    let generation = Generation::of(&job, run.job());
    let session = Session {
        run,
        recipe,
        recipe_hash,
        storage,
        collectives,
        control,
        device,
        device_name,
        drills,
        generation,
        build: environment.build,
    };
    finish(&session, work(&session, &job))
}

/// Job, resolved recipe and directory of a run, as read from disk.
struct JobInput {
    run: RunDirectory,
    job: Job,
    loaded: vljepa_recipes::Loaded,
}

impl JobInput {
    fn read(run: &Path, job: &Path) -> anyhow::Result<Self> {
        let job = read_job(job)?;
        let run = RunDirectory::open(run)?;
        let loaded = run.load_recipe()?;
        Ok(Self { run, job, loaded })
    }

    /// Returns the number of ranks of the job.
    fn world_size(&self) -> usize {
        if let Job::Train { world_size, .. } = self.job { world_size } else { 1 }
    }
}

/// Resources that a rank opens by itself.
struct Opened {
    storage: Storage,
    device: Device,
    device_name: String,
    control: Control,
}

/// Opens this rank's log and device, and connects to the supervisor.
fn open(
    input: &JobInput,
    control: Option<&str>,
    environment: &Environment,
    RankId { rank, world_size }: RankId,
) -> anyhow::Result<Opened> {
    let JobInput { run, job, loaded } = input;
    log::open(run, rank, job)?;
    let (started, wanted) = (world_size, input.world_size());
    anyhow::ensure!(started == wanted, WorkerError::WorldSize { started, wanted });
    let cluster = &loaded.recipe.cluster;
    let threads = if matches!(job, Job::Train { .. }) { cluster.threads_per_rank } else { 0 };
    let cpus = environment.cpus(environment.local_world_size);
    let threads = if threads == 0 { cpus } else { threads };
    rayon::ThreadPoolBuilder::new().num_threads(threads).build_global()?;
    let (device, device_name) = device::open(&loaded.recipe, environment, threads)?;
    if let Device::Cuda(cuda) = device {
        // All GPUs of a run are of one kind, so the choices of rank 0 are enough.
        let writes = rank == 0 && matches!(job, Job::Train { .. });
        cuda.keep_algorithms(&run.algorithms(), writes)?;
    }
    let control = match control {
        None => Control::alone(),
        Some(address) => {
            let hello = Hello {
                token: environment.token.clone(),
                rank,
                world_size,
                host: environment.host.clone(),
                pid: std::process::id(),
                device: device_name.clone(),
                build: environment.build.clone(),
                recipe_hash: loaded.hash.clone(),
            };
            let silence = Duration::from_secs(cluster.control.silence_s);
            let control = Control::connect(address, hello, silence)?;
            signals::forward(&control)?;
            control
        }
    };
    end_on_panic(&control);
    tracing::info!(rank, world_size, cpus, device = &device_name, "started");
    let storage = Storage::new(StorageOptions::of(&loaded.recipe.data))?;
    Ok(Opened { storage, device, device_name, control })
}

/// Reports the error of a rank that could not start. Returns only if no other rank waits for this
/// one in a collective.
fn give_up(
    error: anyhow::Error,
    RankId { rank, world_size }: RankId,
    collectives: Option<&Collectives>,
    control: &Control,
) -> anyhow::Error {
    tracing::error!("rank {rank}: {error:#}");
    let (step, phase) = control.position();
    control.report_last(FromWorker::Failed { step, phase, error: format!("{error:#}") });
    if let Some(collectives) = collectives.filter(|_| world_size > 1) {
        print_error(rank, &error);
        collectives.abort();
    }
    error
}

fn read_job(file: &Path) -> anyhow::Result<Job> {
    let text = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    serde_json::from_slice(&text).context("the job file does not parse")
}

fn work(session: &Session, job: &Job) -> anyhow::Result<Option<String>> {
    match job {
        Job::Train { .. } => {
            let (outcome, step) = match (&session.recipe.table, session.recipe.model.kind) {
                (Some(table), _) => table::measure(session, table)?,
                (None, ModelKind::VlJepa | ModelKind::YDecoder) => train::train::<VlJepa>(session)?,
                (None, ModelKind::Vlm) => train::train::<Vlm>(session)?,
                (None, ModelKind::DualEncoder) => measurement::measure(session)?,
            };
            session.control.report_last(FromWorker::Finished { outcome, step });
            Ok(None)
        }
        Job::Check(check) => health::check(session.run.path(), check).map(Some),
        Job::Evaluate { step } => inference::evaluate(session, *step).map(Some),
        Job::Ask { step, file, question, answers } => {
            inference::ask(session, *step, file, question, answers).map(Some)
        }
        Job::Latency { step, file, frames, repeats, query } => {
            let protocol = Protocol { frames: *frames, repeats: *repeats };
            latency::latency(session, *step, file, protocol, query.as_deref()).map(Some)
        }
        Job::Caption { step, files, query } => {
            inference::caption(session, *step, files, query.as_deref()).map(Some)
        }
        Job::Stream(job) => stream::stream(session, job).map(|()| None),
        Job::Search { step, shards, text, limit } => {
            inference::search(session, *step, shards, text, *limit).map(Some)
        }
        Job::Export { step, folder } => inference::export(session, *step, folder).map(Some),
    }
}

fn finish(
    session: &Session,
    result: anyhow::Result<Option<String>>,
) -> anyhow::Result<Option<String>> {
    let Err(error) = result else { return result };
    let (step, phase) = session.control.position();
    let rank = session.collectives.rank();
    tracing::error!(rank, step, phase = phase.name(), "{error:#}");
    let text = format!("{error:#}");
    session.control.report_last(match error.downcast_ref() {
        Some(WorkerError::Collapsed { .. }) => FromWorker::Ended { step, phase, error: text },
        _ => FromWorker::Failed { step, phase, error: text },
    });
    if session.collectives.world_size() > 1 {
        print_error(rank, &error);
        session.collectives.abort();
    }
    Err(error)
}

/// Prints the error to standard error, which `mpirun` forwards, in case there is no supervisor.
#[expect(clippy::print_stderr, reason = "the process ends here")]
fn print_error(rank: usize, error: &anyhow::Error) {
    eprintln!("rank {rank}: error: {error:#}");
}

/// Installs a panic hook. A panic is a bug: the rank reports it and aborts at once, because
/// unwinding would finalize MPI and leave the other ranks waiting.
fn end_on_panic(control: &Control) {
    let control = control.clone();
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        usual(panic);
        // A data thread catches its own panic and names the sample that caused it.
        if std::thread::current().name().is_some_and(|name| name.starts_with("data-")) {
            return;
        }
        let (step, phase) = control.position();
        tracing::error!(step, phase = phase.name(), "panic: {panic}");
        tracing::error!("{}", record::of_process().describe());
        let error = format!("panic: {panic}").replace('\n', " ");
        control.report_last(FromWorker::Failed { step, phase, error });
        std::process::abort();
    }));
}
