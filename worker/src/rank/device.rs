//! Opens and checks the device of a rank.

use vljepa_kernels::Device;
use vljepa_recipes::{Recipe, schema};

use crate::collectives::Collectives;
use crate::error::WorkerError;
use crate::rank::environment::Environment;
use crate::rank::gpu;

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
        schema::Device::Cuda => {
            let cuda = gpu::open(recipe.deterministic, environment.local_rank)?;
            Ok((Device::Cuda(cuda), cuda.description()?))
        }
    }
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
        schema::Device::Cuda => gpu::examine(recipe.deterministic, ranks),
    }
}

/// Loads NVIDIA's libraries, whose list is empty in a build without the feature `cuda`, and returns
/// a list of [`LibraryReport`](vljepa_recipes::protocol::LibraryReport) as JSON.
///
/// # Errors
/// If the list cannot be encoded. A library that does not load is part of the list.
pub fn libraries() -> anyhow::Result<String> {
    Ok(serde_json::to_string(&gpu::libraries())?)
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
