//! A worker from its start to its end: joins the data plane and the control plane, opens its log, runs the job, and makes sure
//! that an error or a panic of this rank ends the others too.

use std::fs::OpenOptions;
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use anyhow::Context;
use tracing_subscriber::EnvFilter;
use vljepa_kernels::Device;
use vljepa_recipes::Recipe;
use vljepa_recipes::RunDirectory;
use vljepa_recipes::protocol::{FromWorker, Hello, Job};

use crate::collectives::{Collectives, record};
use crate::control::Control;
use crate::drill::Drills;
use crate::environment::{Environment, compute_threads};
use crate::error::WorkerError;
use crate::generation::Generation;
use crate::{device, health, inference, rendezvous, signals, train};

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
    /// Faults that this rank makes on purpose.
    pub drills: Drills,
    /// Whether this attempt is still the newest.
    pub generation: Generation,
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
/// Whatever ended the job, when this is the only rank, or no other one depends on it yet.
pub fn run(run: &Path, job: &Path, control: Option<&str>) -> anyhow::Result<Option<String>> {
    if let Ok(Job::Check(check)) = read_job(job) {
        return health::check(run, &check).map(Some);
    }
    let environment = Environment::read();
    let order = Order::read(run, job)?;
    let wanted = order.world_size();
    let (place, cpus) = rendezvous::place(&order.loaded.recipe, &environment, wanted)?;
    let opened = open(&order, control, &environment, place)
        .map_err(|error| give_up(error, place, cpus.as_ref(), &Control::alone()))?;
    let Opened { device, device_name, control } = opened;
    let recipe = &order.loaded.recipe;
    let collectives = match cpus {
        Some(cpus) => cpus,
        None => rendezvous::join_gpus(recipe, &environment, device, place, &control)
            .map_err(|error| give_up(error, place, None, &control))?,
    };
    if let Err(error) = device::check_distinct(&collectives, &environment, device) {
        return Err(give_up(error, place, Some(&collectives), &control));
    }
    let Order { run, job, mut loaded } = order;
    // The schema's 0: this rank's share of its machine's cores, not of the whole run's.
    let data_threads = &mut loaded.recipe.data.threads;
    *data_threads = compute_threads(*data_threads, environment.local_world_size);
    let (recipe, recipe_hash) = (loaded.recipe, loaded.hash);
    let drills = Drills::of(&job, collectives.rank());
    let generation = Generation::of(&job, run.job());
    let session = Session {
        run,
        recipe,
        recipe_hash,
        collectives,
        control,
        device,
        device_name,
        drills,
        generation,
    };
    finish(&session, work(&session, &job))
}

/// What is to be done.
struct Order {
    run: RunDirectory,
    job: Job,
    loaded: vljepa_recipes::Loaded,
}

impl Order {
    fn read(run: &Path, job: &Path) -> anyhow::Result<Self> {
        let job = read_job(job)?;
        let run = RunDirectory::open(run)?;
        let loaded = run.load_recipe()?;
        Ok(Self { run, job, loaded })
    }

    /// Ranks of the job.
    fn world_size(&self) -> usize {
        if let Job::Train { world_size, .. } = self.job { world_size } else { 1 }
    }
}

/// What a rank has of its own.
struct Opened {
    device: Device,
    device_name: String,
    control: Control,
}

/// Opens this rank's log and device and connects it to the supervisor.
fn open(
    order: &Order,
    control: Option<&str>,
    environment: &Environment,
    [rank, world_size]: [usize; 2],
) -> anyhow::Result<Opened> {
    let Order { run, job, loaded } = order;
    open_log(run, rank, job)?;
    let (started, wanted) = (world_size, order.world_size());
    anyhow::ensure!(started == wanted, WorkerError::WorldSize { started, wanted });
    let cluster = &loaded.recipe.cluster;
    let threads = if matches!(job, Job::Train { .. }) { cluster.threads_per_rank } else { 0 };
    let threads = compute_threads(threads, environment.local_world_size);
    rayon::ThreadPoolBuilder::new().num_threads(threads).build_global()?;
    let (device, device_name) = device::open(&loaded.recipe, environment, threads)?;
    #[cfg(feature = "cuda")]
    if let Device::Cuda(cuda) = device {
        // One rank's choices are enough: GPUs of a run are of one kind.
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
            signals::pass_on(&control)?;
            control
        }
    };
    end_on_panic(&control);
    tracing::info!(rank, world_size, device = &device_name, "started");
    Ok(Opened { device, device_name, control })
}

/// The last words of a rank that could not start. Returns only where no other rank waits for this one inside of a data plane.
fn give_up(
    error: anyhow::Error,
    [rank, world_size]: [usize; 2],
    collectives: Option<&Collectives>,
    control: &Control,
) -> anyhow::Error {
    tracing::error!("rank {rank}: {error:#}");
    let (step, phase) = control.position();
    control.report_last(FromWorker::Failed { step, phase, error: format!("{error:#}") });
    if let Some(collectives) = collectives.filter(|_| world_size > 1) {
        report_plainly(rank, &error);
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
            let (outcome, step) = train::train(session)?;
            session.control.report_last(FromWorker::Finished { outcome, step });
            Ok(None)
        }
        Job::Check(check) => health::check(session.run.root(), check).map(Some),
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
    let Err(error) = result else { return result };
    let (step, phase) = session.control.position();
    let rank = session.collectives.rank();
    tracing::error!(rank, step, phase = phase.name(), "{error:#}");
    let text = format!("{error:#}");
    session.control.report_last(FromWorker::Failed { step, phase, error: text });
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
        tracing::error!("{}", record::of_process().describe());
        let error = format!("panic: {panic}").replace('\n', " ");
        control.report_last(FromWorker::Failed { step, phase, error });
        std::process::abort();
    }));
}

/// Training jobs log to a file per rank and attempt; one-shot jobs log warnings to standard error.
fn open_log(run: &RunDirectory, rank: usize, job: &Job) -> anyhow::Result<()> {
    let Job::Train { attempt, .. } = job else {
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
