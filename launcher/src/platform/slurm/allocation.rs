//! The nodes of the Slurm job that this process belongs to, and the choice of nodes for an attempt.

use vljepa_recipes::protocol::NVLS_VARIABLE;
use vljepa_recipes::schema::{Cluster, Device, Recipe};

use super::host_list;
use crate::environment::SlurmVariables;
use crate::error::LaunchError;
use crate::platform::health::{Reason, Verdict};

/// Standard input of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Input {
    /// No input.
    None,
    /// That of `srun`.
    Own,
}

/// The allocation of a Slurm job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Allocation {
    /// Id of the job.
    pub job: String,
    /// Host names of the nodes, in Slurm's order.
    pub nodes: Vec<String>,
    /// How often the job was requeued.
    pub restarts: u32,
    /// End of the job's time limit, Unix seconds; `None` if `SLURM_JOB_END_TIME` is not set.
    pub end_time: Option<i64>,
}

impl Allocation {
    /// Reads the allocation from the variables of the job.
    ///
    /// # Errors
    /// If `SLURM_JOB_NODELIST` is empty or cannot be parsed.
    pub(crate) fn of(variables: &SlurmVariables) -> Result<Self, LaunchError> {
        let nodes = host_list::expand(&variables.nodes)
            .and_then(|nodes| {
                if nodes.is_empty() {
                    Err("SLURM_JOB_NODELIST is empty".to_owned())
                } else {
                    Ok(nodes)
                }
            })
            .map_err(|why| LaunchError::Start {
                what: "reading the node list of the job".to_owned(),
                why,
            })?;
        Ok(Self {
            job: variables.job.clone(),
            nodes,
            restarts: variables.restarts.unwrap_or(0),
            end_time: variables.end_time,
        })
    }

    /// Command line of an `srun` that runs one process on one node, also if other steps use the
    /// node. The process gets the CPUs of a rank. The step has a name and an input.
    pub(crate) fn on_node(
        &self,
        cluster: &Cluster,
        node: &str,
        (name, input): (&str, Input),
        command: &[String],
    ) -> Vec<String> {
        let cpus = cluster.slurm.cpus_per_rank;
        let options = [
            "srun".to_owned(),
            format!("--jobid={}", self.job),
            format!("--job-name={name}"),
            "--nodes=1".to_owned(),
            "--ntasks=1".to_owned(),
            format!("--nodelist={node}"),
            "--overlap".to_owned(),
            "--mpi=none".to_owned(),
            "--export=ALL".to_owned(),
        ];
        let input = match input {
            Input::None => Some("--input=none".to_owned()),
            Input::Own => None,
        };
        let cpus = (cpus > 0).then(|| format!("--cpus-per-task={cpus}"));
        options.into_iter().chain(input).chain(cpus).chain(command.iter().cloned()).collect()
    }

    /// `srun` and its options for the step of an attempt; the worker's command line follows.
    pub(crate) fn srun(&self, recipe: &Recipe, name: &str, choice: &NodeChoice) -> Vec<String> {
        let nodes = choice.nodes.len();
        let per_node = choice.world_size / nodes.max(1);
        let mut line: Vec<String> = [
            "srun".to_owned(),
            format!("--jobid={}", self.job),
            format!("--job-name={name}"),
            format!("--nodes={nodes}"),
            format!("--nodelist={}", choice.nodes.join(",")),
            format!("--ntasks={}", choice.world_size),
            format!("--ntasks-per-node={per_node}"),
            // Ranks with neighbouring numbers share a node, and on the node a socket: GPU 1 is near
            // the socket of GPU 0. The sockets would be taken in turn without the second `block`.
            "--distribution=block:block".to_owned(),
            "--overlap".to_owned(),
            // Slurm must not end the step: the supervisor ends it after it has received the errors
            // of the other ranks.
            "--kill-on-bad-exit=0".to_owned(),
            "--input=none".to_owned(),
        ]
        .into();
        let exact = recipe.deterministic && recipe.device == Device::Cuda;
        line.push(format!(
            "--export=ALL{}",
            if exact { format!(",{NVLS_VARIABLE}=0") } else { String::new() }
        ));
        let cpus = recipe.cluster.slurm.cpus_per_rank;
        line.extend((cpus > 0).then(|| format!("--cpus-per-task={cpus}")));
        match recipe.device {
            // NCCL can use memory access between the GPUs of a node only if each process sees all
            // of them.
            Device::Cuda => {
                line.extend([format!("--gpus-per-node={per_node}"), "--mpi=none".to_owned()]);
            }
            Device::Host if choice.world_size > 1 => line.push("--mpi=pmix".to_owned()),
            Device::Host => line.push("--mpi=none".to_owned()),
        }
        line
    }
}

/// Number of ranks of an attempt and the nodes on which they run.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct NodeChoice {
    pub world_size: usize,
    /// Host names of the nodes, each with the same number of ranks; empty for a local run.
    pub nodes: Vec<String>,
}

/// Chooses the nodes of an attempt from the healthy nodes: the first `cluster.nodes` of them, or
/// all if there are fewer and the recipe allows fewer nodes. Pure.
///
/// # Errors
/// If there are too few healthy nodes, with the reasons why nodes were left out.
pub(crate) fn choose(cluster: &Cluster, verdict: &Verdict) -> Result<NodeChoice, String> {
    let Verdict { healthy, failed } = verdict;
    let left_out = |(node, why): &(String, Vec<Reason>)| format!("{node}: {}", reasons(why));
    let enough = healthy.len() >= cluster.nodes;
    if healthy.is_empty() || !(enough || cluster.restart.allow_fewer_nodes) {
        let fewer =
            if cluster.restart.allow_fewer_nodes { "" } else { " and does not allow fewer" };
        return Err(format!(
            "only {} of {} nodes are healthy, the recipe wants {}{fewer}; left out: {}",
            healthy.len(),
            healthy.len() + failed.len(),
            cluster.nodes,
            failed.iter().map(left_out).collect::<Vec<_>>().join("; ")
        ));
    }
    let nodes: Vec<String> = healthy.iter().take(cluster.nodes).cloned().collect();
    Ok(NodeChoice { world_size: nodes.len() * cluster.ranks_per_node, nodes })
}

/// The reasons as text, separated by commas.
pub(crate) fn reasons(reasons: &[Reason]) -> String {
    reasons.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use vljepa_recipes::schema::{Cluster, RestartPolicy};

    use super::{Allocation, NodeChoice, choose};
    use crate::environment::SlurmVariables;
    use crate::platform::health::{Reason, Verdict};

    fn reports(lost: &[usize]) -> Verdict {
        let mut verdict = Verdict::default();
        for i in 0..5 {
            let node = format!("n{i}");
            if lost.contains(&i) {
                let detail = "no answer".to_owned();
                let reason = Reason { check: None, detail, may_pass: true };
                verdict.failed.push((node, vec![reason]));
            } else {
                verdict.healthy.push(node);
            }
        }
        verdict
    }

    fn cluster(nodes: usize, allow_fewer_nodes: bool) -> Cluster {
        let restart =
            RestartPolicy { allow_fewer_nodes, spare_nodes: 1, ..RestartPolicy::default() };
        Cluster { nodes, ranks_per_node: 8, restart, ..Cluster::default() }
    }

    #[test]
    fn a_spare_takes_the_place_of_a_lost_node() {
        let names = |p: &NodeChoice| p.nodes.join(" ");
        let whole = choose(&cluster(4, false), &reports(&[])).unwrap();
        assert_eq!((names(&whole).as_str(), whole.world_size), ("n0 n1 n2 n3", 32));
        let one_lost = choose(&cluster(4, false), &reports(&[1])).unwrap();
        assert_eq!((names(&one_lost).as_str(), one_lost.world_size), ("n0 n2 n3 n4", 32));
    }

    #[test]
    fn fewer_nodes_take_part_only_where_the_recipe_allows_it() {
        let answer = choose(&cluster(4, false), &reports(&[1, 3])).unwrap_err();
        assert!(answer.contains("3 of 5 nodes") && answer.contains("n3: no answer"), "{answer}");
        let fewer = choose(&cluster(4, true), &reports(&[1, 3])).unwrap();
        assert_eq!((fewer.nodes.len(), fewer.world_size), (3, 24));
        assert!(choose(&cluster(4, true), &reports(&[0, 1, 2, 3, 4])).is_err());
    }

    #[test]
    fn neighbouring_ranks_share_a_node_and_a_socket() {
        let pretrain = Path::new(env!("CARGO_MANIFEST_DIR")).join("../recipes/pretrain.yaml");
        let recipe = vljepa_recipes::load(&pretrain, &[]).unwrap().recipe;
        let nodes = ["n0", "n1"].map(str::to_owned).to_vec();
        let allocation =
            Allocation { job: "7".to_owned(), nodes: nodes.clone(), restarts: 0, end_time: None };
        let line =
            allocation.srun(&recipe, "step", &NodeChoice { world_size: 16, nodes }).join(" ");
        for option in ["--ntasks-per-node=8", "--distribution=block:block", "--cpus-per-task=12"] {
            assert!(line.contains(option), "{line}");
        }
    }

    #[test]
    fn an_allocation_is_what_the_environment_says() {
        let variables = SlurmVariables {
            job: "7".to_owned(),
            nodes: "n[0-1]".to_owned(),
            restarts: None,
            end_time: Some(5),
        };
        let found = Allocation::of(&variables).unwrap();
        assert_eq!((found.nodes.join(" ").as_str(), found.restarts), ("n0 n1", 0));
        let broken = SlurmVariables { nodes: "n[0".to_owned(), ..variables };
        assert!(Allocation::of(&broken).is_err());
    }
}
