//! A worker from its start to its end: joins the data plane and the control plane, opens its log, runs the job, and makes sure
//! that an error or a panic of this rank ends the others too.

use std::fs::OpenOptions;
use std::path::Path;
use std::sync::Mutex;

use anyhow::Context;
use tracing_subscriber::EnvFilter;
use vljepa_kernels::Device;
use vljepa_recipes::Recipe;
use vljepa_recipes::RunDirectory;
use vljepa_recipes::protocol::{FromWorker, Hello, Job};

use crate::collectives::Collectives;
use crate::control::Control;
use crate::environment::{Environment, compute_threads};
use crate::error::WorkerError;
use crate::{device, inference, train};

/// What every part of a job needs to know.
#[derive(Debug)]
pub struct Session {
    /// The run directory.
    pub run: RunDirectory,
    /// The resolved recipe.
    pub recipe: Recipe,
    /// Hash of the resolved recipe.
    pub recipe_hash: String,
    /// Data plane.
    pub collectives: Collectives,
    /// Control plane.
    pub control: Control,
    /// What this rank computes on.
    pub device: Device,
    /// The same for people.
    pub device_name: String,
}

/// The cargo features of this build, as JSON.
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

/// Runs a job and returns what it prints, if anything. On an error of one of several ranks this does not return: the
/// supervisor hears of it and the data plane takes the other ranks down.
///
/// # Errors
/// Whatever ended the job, when this is the only rank.
pub fn run(run: &Path, job: &Path, control: Option<&str>) -> anyhow::Result<Option<String>> {
    let environment = Environment::read();
    let collectives = Collectives::join(environment.started_by_mpi)?;
    let rank = collectives.rank();
    match start(run, job, control, &environment, collectives) {
        Ok((session, job)) => finish(&session, work(&session, &job)),
        Err((error, collectives)) if collectives.world_size() > 1 => {
            tracing::error!("rank {rank}: {error:#}");
            report_plainly(rank, &error);
            collectives.abort()
        }
        Err((error, _)) => Err(error),
    }
}

type Started = Result<(Session, Job), (anyhow::Error, Collectives)>;

fn start(
    run: &Path,
    job: &Path,
    control: Option<&str>,
    environment: &Environment,
    collectives: Collectives,
) -> Started {
    let prepared = || {
        let text = std::fs::read(job).with_context(|| format!("cannot read {}", job.display()))?;
        let job: Job = serde_json::from_slice(&text).context("the job file does not parse")?;
        let run = RunDirectory::open(run)?;
        open_log(&run, collectives.rank(), &job)?;
        let loaded = run.load_recipe()?;
        let cluster = &loaded.recipe.cluster;
        let wanted = if matches!(job, Job::Train { .. }) { cluster.world_size() } else { 1 };
        let started = collectives.world_size();
        anyhow::ensure!(started == wanted, WorkerError::WorldSize { started, wanted });
        let threads = if matches!(job, Job::Train { .. }) { cluster.threads_per_rank } else { 0 };
        let threads = compute_threads(threads, environment.local_world_size);
        rayon::ThreadPoolBuilder::new().num_threads(threads).build_global()?;
        let (device, device_name) = device::open(&loaded.recipe, environment, threads)?;
        device::check_distinct(&collectives, environment, device)?;
        let control = match control {
            None => Control::alone(),
            Some(address) => {
                let hello = Hello {
                    token: environment.token.clone(),
                    rank: collectives.rank(),
                    world_size: started,
                    host: environment.host.clone(),
                    pid: std::process::id(),
                    device: device_name.clone(),
                    build: environment.build.clone(),
                    recipe_hash: loaded.hash.clone(),
                };
                Control::connect(address, hello)?
            }
        };
        end_on_panic(&control);
        tracing::info!(
            rank = collectives.rank(),
            world_size = started,
            device = &device_name,
            "started"
        );
        let mut loaded = loaded;
        // The schema's 0: this rank's share of its machine's cores, not of the whole run's.
        let data_threads = &mut loaded.recipe.data.threads;
        *data_threads = compute_threads(*data_threads, environment.local_world_size);
        Ok((run, loaded, control, (device, device_name), job))
    };
    match prepared() {
        Ok((run, loaded, control, (device, device_name), job)) => {
            let (recipe, recipe_hash) = (loaded.recipe, loaded.hash);
            let session =
                Session { run, recipe, recipe_hash, collectives, control, device, device_name };
            Ok((session, job))
        }
        Err(error) => Err((error, collectives)),
    }
}

fn work(session: &Session, job: &Job) -> anyhow::Result<Option<String>> {
    match job {
        Job::Train { .. } => {
            let (outcome, step) = train::train(session)?;
            session.control.report_last(FromWorker::Finished { outcome, step });
            Ok(None)
        }
        Job::Evaluate => inference::evaluate(session).map(Some),
        Job::Ask { file, question, answers } => {
            inference::ask(session, file, question, answers).map(Some)
        }
        Job::Search { shards, text, limit } => {
            inference::search(session, shards, text, *limit).map(Some)
        }
        Job::Export { folder } => inference::export(session, folder).map(Some),
        Job::Import { folder } => inference::import(session, folder).map(Some),
    }
}

fn finish(
    session: &Session,
    result: anyhow::Result<Option<String>>,
) -> anyhow::Result<Option<String>> {
    let Err(error) = result else {
        session.control.finish();
        return result;
    };
    let (step, phase) = session.control.position();
    let rank = session.collectives.rank();
    tracing::error!(rank, step, phase = phase.name(), "{error:#}");
    let text = format!("{error:#}");
    session.control.report_last(FromWorker::Failed { step, phase, error: text });
    session.control.finish();
    if session.collectives.world_size() > 1 {
        report_plainly(rank, &error);
        session.collectives.abort();
    }
    Err(error)
}

/// The last words where the supervisor may not hear any: standard error, which `mpirun` forwards.
#[expect(clippy::print_stderr, reason = "the process ends here")]
fn report_plainly(rank: usize, error: &anyhow::Error) {
    eprintln!("rank {rank}: error: {error:#}");
}

/// A panic is a bug; the rank says so and dies at once, because unwinding would finalize MPI and hang the others.
fn end_on_panic(control: &Control) {
    let control = control.clone();
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        usual(panic);
        // A reading thread catches its panic and names the sample it was at.
        if std::thread::current().name().is_some_and(|name| name.starts_with("data-")) {
            return;
        }
        let (step, phase) = control.position();
        tracing::error!(step, phase = phase.name(), "panic: {panic}");
        let error = format!("panic: {panic}").replace('\n', " ");
        control.report_last(FromWorker::Failed { step, phase, error });
        std::process::abort();
    }));
}

/// Training jobs log to a file per rank and attempt; one-shot jobs log warnings to standard error.
fn open_log(run: &RunDirectory, rank: usize, job: &Job) -> anyhow::Result<()> {
    let Job::Train { attempt } = job else {
        tracing_subscriber::fmt()
            .with_writer(std::io::stderr)
            .with_env_filter(EnvFilter::new("warn"))
            .try_init()
            .ok();
        return Ok(());
    };
    let path = run.log(rank, *attempt);
    let file = OpenOptions::new()
        .create(true)
        .append(true)
        .open(&path)
        .with_context(|| format!("cannot write {}", path.display()))?;
    tracing_subscriber::fmt()
        .with_writer(Mutex::new(file))
        .with_ansi(false)
        .with_env_filter(EnvFilter::new("info"))
        .try_init()
        .ok();
    Ok(())
}
