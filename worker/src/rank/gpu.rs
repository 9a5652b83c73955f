//! Opens the GPUs of a machine, and connects the ranks that compute on GPUs.

use std::fmt::Display;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context;
use vljepa_kernels::attention::launch::Mode;
use vljepa_kernels::compile::{Cache, Compiler, Nvrtc};
use vljepa_kernels::device::cuda::Cuda;
use vljepa_recipes::protocol::{
    FromWorker, LibraryName, LibraryReport, LoadedLibrary, NVLS_VARIABLE, RELEASE_LIMIT_S,
};
use vljepa_recipes::{RankId, Recipe};

use crate::collectives::nccl::{Id, Library, Nccl, TimeOuts};
use crate::rank::control::Control;
use crate::rank::environment::GpuEnvironment;

/// Architecture that kernels are written for: H100 and H200.
const ARCHITECTURE: &str = "sm_90a";

/// Opens the GPU of the rank with number `local_rank` on this machine: the GPU with this number, or
/// the only GPU that the cluster shows to the rank.
///
/// # Errors
/// Fails if there is no such GPU, or if a library is missing.
pub(crate) fn open(deterministic: bool, local_rank: usize) -> anyhow::Result<&'static Cuda> {
    // Checked first, so that the error on a machine without GPUs is about GPUs and not about NVRTC.
    let visible = Cuda::count()?;
    let environment = GpuEnvironment::read();
    let nvrtc = Nvrtc::open(&environment.libraries)?;
    let compiler = Compiler::new(nvrtc, ARCHITECTURE, Some(Cache::new(&environment.cache)));
    let mode = if deterministic { Mode::Deterministic } else { Mode::Fast };
    let ordinal = if visible == 1 { 0 } else { local_rank };
    Ok(Cuda::open(ordinal, compiler, &environment.libraries, mode)?)
}

/// Opens the GPUs of `ranks` ranks on this machine in parallel, since each takes a while, and
/// returns their description.
///
/// # Errors
/// Fails if a GPU is missing, cannot be opened, or is used by another process.
pub(crate) fn examine(deterministic: bool, ranks: usize) -> anyhow::Result<String> {
    let visible = Cuda::count()?;
    anyhow::ensure!(
        visible >= ranks,
        "{visible} GPUs are visible, but {ranks} ranks need one each"
    );
    let examine = |number: usize| -> anyhow::Result<String> {
        let cuda = open(deterministic, number)?;
        wait_for_memory(|| Ok(cuda.memory()?.map(|bytes| bytes >> 20)), RELEASE_TIMEOUT)
            .with_context(|| format!("GPU {number}"))?;
        cuda.description().map_err(Into::into)
    };
    let found: Vec<anyhow::Result<String>> = std::thread::scope(|scope| {
        let started: Vec<_> =
            (0..ranks).map(|number| scope.spawn(move || examine(number))).collect();
        let ended = started.into_iter().map(|thread| {
            thread
                .join()
                .unwrap_or_else(|_| Err(anyhow::anyhow!("the thread that opens a GPU panicked")))
        });
        ended.collect()
    });
    let names = found.into_iter().collect::<anyhow::Result<Vec<String>>>()?;
    Ok(format!("{} × {}", names.len(), names.first().map_or("", |name| name.as_str())))
}

/// Time in which a process that was killed gives back its GPU.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(RELEASE_LIMIT_S as u64);
/// Pause between two looks at the free memory.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);

/// Waits until `memory`, free and total MiB, is nearly all free.
///
/// # Errors
/// Fails if some memory is still in use after `limit`: another process uses the GPU.
fn wait_for_memory(
    memory: impl Fn() -> anyhow::Result<[usize; 2]>,
    limit: Duration,
) -> anyhow::Result<()> {
    let since = Instant::now();
    loop {
        let [free, total] = memory()?;
        // A context takes a few hundred MiB.
        if free >= total / 10 * 9 {
            return Ok(());
        }
        let waited = since.elapsed();
        anyhow::ensure!(
            waited < limit,
            "only {free} of {total} MiB are free after {:.0} s; another process uses the rest",
            waited.as_secs_f64()
        );
        std::thread::park_timeout(LOOK_INTERVAL);
    }
}

/// Loads each of NVIDIA's libraries that a run on GPUs needs. No GPU is opened.
pub(crate) fn libraries() -> Vec<LibraryReport> {
    let libraries = GpuEnvironment::read().libraries;
    let loaded = |version, path: PathBuf| LoadedLibrary { version, path: Some(path) };
    let driver = Cuda::driver_version().map(|version| LoadedLibrary { version, path: None });
    let nvrtc =
        Nvrtc::open(&libraries).map(|found| loaded(found.version(), found.path().to_owned()));
    let cublaslt = Cuda::cublaslt(&libraries).map(|(version, path)| loaded(version, path));
    let nccl =
        Library::open(&libraries).map(|found| loaded(found.version(), found.path().to_owned()));
    vec![
        report(LibraryName::Driver, driver),
        report(LibraryName::Nvrtc, nvrtc),
        report(LibraryName::CublasLt, cublaslt),
        report(LibraryName::Nccl, nccl),
    ]
}

fn report<E: Display>(name: LibraryName, found: Result<LoadedLibrary, E>) -> LibraryReport {
    LibraryReport { name, found: found.map_err(|error| error.to_string()) }
}

/// Joins NCCL with the other ranks, through the id that rank 0 makes and the supervisor relays.
/// Waits for them up to the recipe's start timeout. `nvls_off` says that NCCL is kept from reducing
/// inside of NVLink switches.
///
/// # Errors
/// Fails if a rank does not join, or if NCCL is missing or fails.
pub(crate) fn join(
    recipe: &Recipe,
    nvls_off: bool,
    cuda: &'static Cuda,
    rank: RankId,
    control: &Control,
) -> anyhow::Result<Nccl> {
    let library = Library::open(&GpuEnvironment::read().libraries)?;
    tracing::info!("NCCL {} from {}", library.version(), library.path().display());
    if recipe.deterministic && !nvls_off {
        tracing::warn!(
            "the recipe is deterministic, but NCCL may reduce inside of NVLink switches; \
             set {NVLS_VARIABLE}=0 for every rank"
        );
    }
    let own = match rank.rank {
        0 => Some(library.unique_id()?.text()),
        _ => None,
    };
    let seconds = Duration::from_secs;
    let cluster = &recipe.cluster;
    let (start, collective) =
        (seconds(cluster.start_timeout_s), seconds(cluster.collective_timeout_s));
    let id = Id::parse(&control.rendezvous(own, start)?)?;
    let supervisor = control.clone();
    let last_words = Box::new(move |error: &str| {
        let (step, phase) = supervisor.position();
        let error = error.to_owned();
        supervisor.report_last(FromWorker::Failed { step, phase, error });
    });
    let time_outs = TimeOuts { start, collective };
    Nccl::join(library, id, rank, cuda, time_outs, last_words)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::time::Duration;

    use super::wait_for_memory;

    #[test]
    fn a_gpu_whose_last_process_is_still_ending_is_waited_for_and_one_in_use_is_not() {
        let looks = Cell::new(0);
        let ending = || {
            looks.set(looks.get() + 1);
            Ok([if looks.get() < 4 { 40_000 } else { 140_000 }, 141_000])
        };
        wait_for_memory(ending, Duration::from_secs(60)).unwrap();
        assert_eq!(looks.get(), 4);
        let error = wait_for_memory(|| Ok([40_000, 141_000]), Duration::ZERO).unwrap_err();
        assert!(error.to_string().starts_with("only 40000 of 141000 MiB are free"), "{error}");
    }
}
