//! Opens and checks the device of a rank.

use vljepa_kernels::Device;
use vljepa_recipes::{Recipe, schema};

use crate::collectives::Collectives;
use crate::error::WorkerError;
use crate::rank::environment::Environment;
#[cfg(feature = "cuda")]
use crate::rank::environment::GpuEnvironment;

/// Opens the recipe's device and returns it with a name for logs. A rank takes the GPU with its
/// local rank as index, or the only GPU if the cluster shows it a single one.
///
/// # Errors
/// Fails if this build does not support the device, the machine does not have it, or a library that
/// it needs is not installed.
pub fn open(
    recipe: &Recipe,
    environment: &Environment,
    threads: usize,
) -> anyhow::Result<(Device, String)> {
    match recipe.device {
        schema::Device::Host => Ok((Device::Host, format!("host, {threads} threads"))),
        #[cfg(not(feature = "cuda"))]
        schema::Device::Cuda => {
            let _ = environment;
            Err(WorkerError::NoCuda.into())
        }
        #[cfg(feature = "cuda")]
        schema::Device::Cuda => {
            let cuda = open_gpu(recipe.deterministic, environment.local_rank)?;
            Ok((Device::Cuda(cuda), cuda.description()?))
        }
    }
}

/// Architecture that kernels are written for: H100 and H200.
#[cfg(feature = "cuda")]
const ARCHITECTURE: &str = "sm_90a";

#[cfg(feature = "cuda")]
fn open_gpu(
    deterministic: bool,
    local_rank: usize,
) -> anyhow::Result<&'static vljepa_kernels::device::cuda::Cuda> {
    use vljepa_kernels::attention::launch::Mode;
    use vljepa_kernels::compile::{Cache, Compiler, Nvrtc};
    use vljepa_kernels::device::cuda::Cuda;

    // Checked first, so that the error on a machine without GPUs is about GPUs and not about NVRTC.
    let visible = Cuda::count()?;
    let environment = GpuEnvironment::read();
    let nvrtc = Nvrtc::open(&environment.libraries)?;
    let compiler = Compiler::new(nvrtc, ARCHITECTURE, Some(Cache::new(&environment.cache)));
    let mode = if deterministic { Mode::Deterministic } else { Mode::Fast };
    let ordinal = if visible == 1 { 0 } else { local_rank };
    Ok(Cuda::open(ordinal, compiler, &environment.libraries, mode)?)
}

/// Checks that the devices of `ranks` ranks on this machine exist and are free, and returns their
/// description.
///
/// # Errors
/// Fails if a device is missing, cannot be opened, or is used by another process.
pub fn examine(recipe: &Recipe, ranks: usize) -> anyhow::Result<String> {
    match recipe.device {
        schema::Device::Host => {
            let cores = std::thread::available_parallelism().map_or(1, usize::from);
            Ok(format!("host, {cores} cores"))
        }
        #[cfg(not(feature = "cuda"))]
        schema::Device::Cuda => {
            let _ = ranks;
            Err(WorkerError::NoCuda.into())
        }
        #[cfg(feature = "cuda")]
        schema::Device::Cuda => examine_gpus(recipe.deterministic, ranks),
    }
}

/// Opens the GPUs in parallel, since each takes a while.
#[cfg(feature = "cuda")]
fn examine_gpus(deterministic: bool, ranks: usize) -> anyhow::Result<String> {
    let visible = vljepa_kernels::device::cuda::Cuda::count()?;
    anyhow::ensure!(
        visible >= ranks,
        "{visible} GPUs are visible, but {ranks} ranks need one each"
    );
    let examine = |number: usize| -> anyhow::Result<String> {
        let cuda = open_gpu(deterministic, number)?;
        let [free, total] = cuda.memory()?.map(|bytes| bytes >> 20);
        // A context takes a few hundred MiB. If more than a tenth is missing, another process uses
        // it.
        anyhow::ensure!(
            free >= total / 10 * 9,
            "GPU {number}: only {free} of {total} MiB are free; another process uses the rest"
        );
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

/// Checks that no two ranks of a machine compute on the same GPU.
///
/// # Errors
/// Returns [`WorkerError::SharedGpu`] on every rank.
pub fn check_distinct(
    collectives: &Collectives,
    environment: &Environment,
    device: Device,
) -> anyhow::Result<()> {
    let own = match device {
        Device::Host => None,
        #[cfg(feature = "cuda")]
        Device::Cuda(cuda) => Some(cuda.bus_address()?),
    };
    let Some(own) = own.map(|bus: String| format!("{bus} of {}", environment.host)) else {
        return Ok(());
    };
    let all = collectives.all_gather_bytes(own.as_bytes());
    for (second, gpu) in all.iter().enumerate() {
        if let Some(first) = all[..second].iter().position(|other| other == gpu) {
            let gpu = String::from_utf8_lossy(gpu).into_owned();
            return Err(WorkerError::SharedGpu { first, second, gpu }.into());
        }
    }
    Ok(())
}
