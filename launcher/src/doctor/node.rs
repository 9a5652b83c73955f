//! All facts of one node.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use vljepa_recipes::Loaded;
use vljepa_recipes::schema::{Device, Recipe, Scheduler};

use super::finding::{Fact, Finding, NodeReport};
use super::{clock, cpus, disk, gpus, libraries, memory, network, programs, rates, slurm, storage};
use crate::error::LaunchError;
use crate::platform::slurm::submit;
use crate::programs::Programs;
use crate::{environment, terminal};

/// What is to be looked at.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Request {
    /// The resolved recipe, or `None` to look at the machine alone.
    pub yaml: Option<String>,
    /// Run directory, or the folder whose disk is looked at.
    pub folder: PathBuf,
    /// Number of nodes that are looked at, at the same time.
    pub nodes: usize,
    /// Rates with which those of the devices are compared, as YAML; `None` measures nothing.
    pub rates: Option<String>,
}

impl Request {
    /// Reads the recipe.
    pub(super) fn load(&self) -> Result<Option<Loaded>, LaunchError> {
        let Some(yaml) = &self.yaml else { return Ok(None) };
        Ok(Some(vljepa_recipes::load_yaml(yaml)?))
    }
}

/// Use of the machine on which the doctor runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    /// Ranks would run here.
    Compute,
    /// Jobs are submitted here, and their ranks run elsewhere.
    Login,
}

/// Looks at this node. Each look has a time limit, and none changes the node.
pub(crate) async fn report(request: &Request) -> Result<NodeReport, LaunchError> {
    let (root, loaded) = (Path::new("/"), request.load()?);
    let recipe = loaded.as_ref().map(|loaded| &loaded.recipe);
    let is_in_job = submit::current_job().is_some();
    let submits = recipe.is_some_and(|recipe| recipe.cluster.scheduler == Scheduler::Slurm);
    let role = if submits && !is_in_job { Role::Login } else { Role::Compute };
    let found = Programs::find();
    let mut report = NodeReport { node: host(), ..NodeReport::default() };
    let findings = &mut report.findings;
    findings.push(programs::look(&found, recipe).await);
    match role {
        Role::Login => findings.push(elsewhere()),
        Role::Compute => {
            let variables = environment::variables(&slurm::PREFIXES);
            let found = cpus::Cpus::of(root, slurm::cpus(&variables));
            findings.push(cpus::judge(&found, recipe));
            findings.extend(cpus::numa(root));
            findings.extend(memory::of_group(root, found.share(), is_in_job));
            findings.push(memory::shared_memory(recipe));
            findings.push(memory::open_files(recipe));
        }
    }
    findings.extend(disk::look(&request.folder, recipe, request.nodes).await);
    if let (Ok(programs), Some(Loaded { recipe, yaml, .. })) = (&found, &loaded) {
        findings.extend(storage::look(programs, recipe, yaml).await);
    }
    if role == Role::Compute {
        devices(root, recipe, found.as_ref().ok(), &mut report).await;
    }
    if let (Some(planned), Some(Loaded { recipe, yaml, .. })) = (&request.rates, &loaded) {
        let gpus = report.gpus.len();
        report.findings.push(match (&found, role) {
            (Ok(programs), Role::Compute) => {
                rates::look(programs, recipe, (yaml, planned), gpus).await
            }
            (Err(_), Role::Compute) => rates::not_measured("vljepa-worker was not found"),
            (_, Role::Login) => rates::not_measured("ranks run on the nodes of a job"),
        });
    }
    if is_in_job {
        report.findings.push(slurm::programs());
    } else {
        report.findings.push(clock::local());
    }
    Ok(report)
}

/// Host name, without the domain, which Slurm does not use.
pub(super) fn host() -> String {
    let name = nix::unistd::gethostname()
        .map_or_else(|_| "unknown".to_owned(), |name| name.to_string_lossy().into_owned());
    name.split('.').next().unwrap_or_default().to_owned()
}

fn elsewhere() -> Finding {
    let found = "ranks run on the nodes of a job, at which the doctor looks inside a job: salloc \
                 --nodes=N vljepa-launch doctor RECIPE";
    Finding::pass(Fact::Node, found)
}

/// GPUs, their libraries and the network.
async fn devices(
    root: &Path,
    recipe: Option<&Recipe>,
    programs: Option<&Programs>,
    report: &mut NodeReport,
) {
    let on_bus = gpus::on_bus(root);
    let adapters = network::adapters(root);
    let infiniband = adapters.iter().any(|adapter| adapter.kind == network::Kind::Rdma);
    report.findings.push(memory::locked_memory(recipe, infiniband));
    let wants = match recipe.map(|recipe| recipe.device) {
        Some(Device::Host) => false,
        Some(Device::Cuda) => true,
        None => !on_bus.is_empty(),
    };
    if wants {
        if let Some(programs) = programs {
            report.findings.extend(libraries::look(programs, recipe).await);
        }
        let visible = environment::variables(&["CUDA_VISIBLE_DEVICES"]);
        let visible = visible.get("CUDA_VISIBLE_DEVICES").map(String::as_str);
        match gpus::list().await {
            Ok(gpus) => {
                report.findings.extend(gpus::judge(&gpus, visible, recipe));
                report.gpus = gpus.iter().map(|gpu| gpu.uuid.clone()).collect();
                let addresses: Vec<String> = gpus.into_iter().map(|gpu| gpu.address).collect();
                report.findings.extend(network::nearest(root, &addresses, &adapters));
            }
            Err(why) => {
                report.findings.push(gpus::unknown(&why, recipe));
                report.findings.extend(network::nearest(root, &on_bus, &adapters));
            }
        }
    } else {
        let why = match recipe {
            Some(_) => "not looked at, because the recipe has device: host",
            None => "none",
        };
        report.findings.push(Finding::pass(Fact::Gpus, why));
    }
    let on_gpus = recipe.filter(|recipe| recipe.device == Device::Cuda);
    let spans_nodes = on_gpus.is_some_and(|recipe| recipe.cluster.nodes > 1);
    let uses_nccl = on_gpus.is_some_and(|recipe| recipe.cluster.world_size() > 1);
    report.findings.push(network::judge(&adapters, spans_nodes));
    let variables = environment::variables(&network::PREFIXES);
    let interfaces = network::interfaces(root);
    report.findings.push(network::variables(&variables, &adapters, &interfaces, uses_nccl));
}

/// `vljepa-launch doctor --node`, which the doctor starts on each node of a job. Standard input
/// holds questions for the time, and then a [`Request`]; standard output gets an answer to each.
/// The end of the input ends the process.
pub(crate) async fn serve() -> Result<u8, LaunchError> {
    let failed = |why: &dyn std::fmt::Display| LaunchError::Start {
        what: "answering the doctor of the job".to_owned(),
        why: why.to_string(),
    };
    for question in std::io::stdin().lines() {
        let question = question.map_err(|error| failed(&error))?;
        let answer = if question == clock::QUESTION {
            clock::answer()
        } else {
            let request = serde_json::from_str(&question).map_err(|error| failed(&error))?;
            let report = report(&request).await?;
            serde_json::to_string(&report).map_err(|error| failed(&error))?
        };
        terminal::result(&answer);
    }
    Ok(0)
}
