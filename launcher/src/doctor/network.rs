//! Network adapters, their distance to the GPUs, and the variables that choose between them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::finding::{Fact, Finding};
use super::machine::{entries, name, read};

/// Beginnings of the names of variables that change how ranks communicate or compute.
pub(super) const PREFIXES: [&str; 7] =
    ["NCCL_", "OMPI_MCA_", "UCX_", "FI_", "CUDA_", "NVSHMEM_", "GLOO_"];

/// Kind of a network adapter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// InfiniBand or RoCE, which NCCL uses without the processor.
    Rdma,
    Ethernet,
}

/// A network adapter, or a port of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Adapter {
    pub name: String,
    pub kind: Kind,
    /// Rate as the kernel writes it, such as `400 Gb/sec (4X NDR)` or `10000 Mb/s`.
    rate: String,
    is_up: bool,
    /// Folder of the PCI device, or `None` for a virtual adapter.
    device: Option<PathBuf>,
}

/// Adapters below `root`, normally `/`. An RDMA adapter also appears as the network interface that
/// belongs to it; such an interface is left out.
pub(super) fn adapters(root: &Path) -> Vec<Adapter> {
    let mut found = Vec::new();
    for path in entries(&root.join("sys/class/infiniband")) {
        let device = path.join("device").canonicalize().ok();
        for port in entries(&path.join("ports")) {
            // The state is a number and a word: `4: ACTIVE`.
            let is_up = read(&port.join("state")).contains("ACTIVE");
            let name = match super::machine::name(&port).as_str() {
                "1" => name(&path),
                port => format!("{}:{port}", name(&path)),
            };
            let rate = read(&port.join("rate")).trim().to_owned();
            let kind = Kind::Rdma;
            found.push(Adapter { name, kind, rate, is_up, device: device.clone() });
        }
    }
    for path in entries(&root.join("sys/class/net")) {
        let Ok(device) = path.join("device").canonicalize() else { continue };
        if found.iter().any(|other| other.device.as_ref() == Some(&device)) {
            continue;
        }
        let is_up = read(&path.join("operstate")).trim() == "up";
        // An interface that is down has no speed, and a virtual one -1.
        let speed = read(&path.join("speed")).trim().parse::<u64>();
        let rate = speed.map_or_else(|_| "unknown rate".to_owned(), |mb| format!("{mb} Mb/s"));
        let (name, kind, device) = (name(&path), Kind::Ethernet, Some(device));
        found.push(Adapter { name, kind, rate, is_up, device });
    }
    found
}

/// Names of all network interfaces, also virtual ones.
pub(super) fn interfaces(root: &Path) -> Vec<String> {
    entries(&root.join("sys/class/net")).iter().map(|path| name(path)).collect()
}

/// Judges the adapters. `spans_nodes` says whether ranks on GPUs communicate between nodes.
pub(super) fn judge(adapters: &[Adapter], spans_nodes: bool) -> Finding {
    let text = |adapter: &Adapter| {
        let state = if adapter.is_up { "" } else { ", down" };
        format!("{} ({}{state})", adapter.name, adapter.rate)
    };
    let of = |kind| adapters.iter().filter(move |adapter| adapter.kind == kind);
    // Ethernet is of interest only where there is nothing faster.
    let shown = if of(Kind::Rdma).next().is_some() { Kind::Rdma } else { Kind::Ethernet };
    let texts: Vec<String> = of(shown).map(text).collect();
    let found = if texts.is_empty() { "no physical adapter".to_owned() } else { texts.join(", ") };
    let down = of(Kind::Rdma).filter(|adapter| !adapter.is_up).count();
    if down > 0 && down < of(Kind::Rdma).count() {
        let help = "check cable and switch: ibstat; or leave it out: NCCL_IB_HCA=^NAME";
        return Finding::warn(Fact::Adapters, found, help);
    }
    let works = of(Kind::Rdma).any(|adapter| adapter.is_up);
    if spans_nodes && !works {
        let help = "NCCL uses TCP, which is slow between nodes: load the driver of InfiniBand or \
                    RoCE, or ask for nodes that have it";
        return Finding::warn(Fact::Adapters, found, help);
    }
    Finding::pass(Fact::Adapters, found)
}

/// How a GPU and an adapter are connected, nearest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Distance {
    Switch,
    Root,
    Node,
    OtherNode,
}

impl Distance {
    /// Distance of two PCI devices, from their folders below `/sys/devices` and their NUMA nodes.
    fn of(one: &Path, other: &Path) -> Self {
        let common = one.components().zip(other.components()).take_while(|(a, b)| a == b);
        let shared: Vec<String> =
            common.map(|(part, _)| part.as_os_str().to_string_lossy().into_owned()).collect();
        // /sys/devices/pci0000:00/0000:00:01.0/…: a root complex, then bridges.
        match shared.iter().position(|part| part.starts_with("pci")) {
            Some(root) if shared.len() > root + 1 => Self::Switch,
            Some(_) => Self::Root,
            None if numa_node(one) == numa_node(other) => Self::Node,
            None => Self::OtherNode,
        }
    }

    fn text(self) -> &'static str {
        match self {
            Self::Switch => "through one PCIe switch",
            Self::Root => "through one PCIe root",
            Self::Node => "on one NUMA node",
            Self::OtherNode => "on another NUMA node",
        }
    }
}

/// The NUMA node of a PCI device, or `None` if the machine has only one.
fn numa_node(device: &Path) -> Option<usize> {
    // -1 means that the firmware does not say.
    read(&device.join("numa_node")).trim().parse().ok()
}

/// The nearest adapter of each GPU, or `None` without GPUs or RDMA adapters. `gpus` has PCI
/// addresses.
pub(super) fn nearest(root: &Path, gpus: &[String], adapters: &[Adapter]) -> Option<Finding> {
    let rdma: Vec<(&str, &PathBuf)> = adapters
        .iter()
        .filter(|adapter| adapter.kind == Kind::Rdma)
        .filter_map(|adapter| Some((adapter.name.as_str(), adapter.device.as_ref()?)))
        .collect();
    let mut by_distance: BTreeMap<Distance, Vec<String>> = BTreeMap::new();
    for (number, address) in gpus.iter().enumerate() {
        let device = root.join("sys/bus/pci/devices").join(address).canonicalize().ok()?;
        let near = rdma.iter().map(|(name, other)| (Distance::of(&device, other), *name));
        let (distance, name) = near.min_by_key(|(distance, _)| *distance)?;
        by_distance.entry(distance).or_default().push(format!("{number} {name}"));
    }
    let texts: Vec<String> = by_distance
        .iter()
        .map(|(distance, pairs)| format!("{}: {}", distance.text(), pairs.join(", ")))
        .collect();
    if texts.is_empty() {
        return None;
    }
    let found = texts.join("; ");
    if by_distance.contains_key(&Distance::OtherNode) {
        let help = "ask for an adapter on each NUMA node; in a virtual machine, pass the topology \
                    on (NCCL_TOPO_FILE)";
        return Some(Finding::warn(Fact::GpuAdapters, found, help));
    }
    Some(Finding::pass(Fact::GpuAdapters, found))
}

/// Judges the variables of this process that begin with [`PREFIXES`]. `uses_nccl` says whether
/// ranks communicate by NCCL.
pub(super) fn variables(
    variables: &BTreeMap<String, String>,
    adapters: &[Adapter],
    interfaces: &[String],
    uses_nccl: bool,
) -> Finding {
    let set: Vec<String> =
        variables.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let found = if set.is_empty() { "none is set".to_owned() } else { set.join(" ") };
    let value = |name: &str| variables.get(name).map(|value| value.trim());
    let socket = value("NCCL_SOCKET_IFNAME").filter(|list| !list.is_empty());
    if let Some(list) = socket.filter(|list| !selects(list, interfaces)) {
        let found = format!("{found}: no interface matches NCCL_SOCKET_IFNAME={list}");
        let help = format!("name one of: {}", interfaces.join(", "));
        return if uses_nccl {
            Finding::fail(Fact::FabricVariables, found, help)
        } else {
            Finding::warn(Fact::FabricVariables, found, help)
        };
    }
    let rdma: Vec<String> = adapters
        .iter()
        .filter(|adapter| adapter.kind == Kind::Rdma)
        .map(|adapter| adapter.name.clone())
        .collect();
    let hca = value("NCCL_IB_HCA").filter(|list| !list.is_empty() && !rdma.is_empty());
    let mut problems = Vec::new();
    if hca.is_some_and(|list| !selects(list, &rdma)) {
        problems.push(("no adapter matches NCCL_IB_HCA", "correct or unset it"));
    }
    if let Some(list) = value("OMPI_MCA_btl_tcp_if_include") {
        // An entry may also be a network, such as 10.0.0.0/8.
        let mut names = list.split(',').map(str::trim).filter(|name| !name.contains('/'));
        if names.any(|name| !interfaces.iter().any(|interface| interface == name)) {
            let what = "OMPI_MCA_btl_tcp_if_include names an interface that this node lacks";
            problems.push((what, "correct or unset it"));
        }
    }
    let slow = [
        ("NCCL_IB_DISABLE", "1", "NCCL does not use InfiniBand", !rdma.is_empty()),
        ("NCCL_P2P_DISABLE", "1", "GPUs of a node exchange data through the host", true),
        ("NCCL_SHM_DISABLE", "1", "ranks of a node communicate through the network", true),
        ("CUDA_LAUNCH_BLOCKING", "1", "the host waits for every kernel", true),
    ];
    for (name, wrong, what, matters) in slow {
        if matters && value(name) == Some(wrong) {
            problems.push((what, "unset the variable, which is meant for debugging"));
        }
    }
    match problems.first() {
        None => Finding::pass(Fact::FabricVariables, found),
        Some((_, help)) => {
            let what: Vec<&str> = problems.iter().map(|(what, _)| *what).collect();
            Finding::warn(Fact::FabricVariables, format!("{found}: {}", what.join("; ")), *help)
        }
    }
}

/// Whether NCCL's list selects a name: prefixes, `=` before exact names, `^` before those to leave
/// out. A port after a colon is not compared.
fn selects(list: &str, names: &[String]) -> bool {
    let (excludes, list) = match list.strip_prefix('^') {
        Some(rest) => (true, rest),
        None => (false, list),
    };
    let (exact, list) = match list.strip_prefix('=') {
        Some(rest) => (true, rest),
        None => (false, list),
    };
    let matches = |name: &String| {
        list.split(',').any(|entry| {
            let entry = entry.trim().split(':').next().unwrap_or_default();
            if exact { name == entry } else { name.starts_with(entry) }
        })
    };
    names.iter().any(|name| matches(name) != excludes)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::os::unix::fs::symlink;

    use super::{Adapter, Kind, adapters, interfaces, judge, nearest, selects, variables};
    use crate::doctor::finding::State;
    use crate::doctor::machine::tests::tree;

    /// A node with GPUs on both NUMA nodes and one adapter, behind the same switch as the first.
    fn machine() -> tempfile::TempDir {
        let machine = tree(&[
            ("sys/devices/pci0000:00/0000:00:01.0/0000:01:00.0/numa_node", "0\n"),
            ("sys/devices/pci0000:00/0000:00:01.0/0000:02:00.0/numa_node", "0\n"),
            ("sys/devices/pci0000:80/0000:80:01.0/0000:81:00.0/numa_node", "1\n"),
            ("sys/class/infiniband/mlx5_0/ports/1/state", "4: ACTIVE\n"),
            ("sys/class/infiniband/mlx5_0/ports/1/rate", "400 Gb/sec (4X NDR)\n"),
            ("sys/class/net/ib0/operstate", "up\n"),
            ("sys/class/net/eth0/operstate", "up\n"),
            ("sys/class/net/eth0/speed", "25000\n"),
            ("sys/class/net/lo/operstate", "unknown\n"),
            ("sys/devices/virtual/x", ""),
            ("sys/bus/pci/devices/x", ""),
        ]);
        let sys = machine.path().join("sys");
        let link = |from: &str, to: &str| symlink(sys.join(to), sys.join(from)).unwrap();
        let switch = "devices/pci0000:00/0000:00:01.0";
        link("bus/pci/devices/0000:01:00.0", &format!("{switch}/0000:01:00.0"));
        link("bus/pci/devices/0000:81:00.0", "devices/pci0000:80/0000:80:01.0/0000:81:00.0");
        link("class/infiniband/mlx5_0/device", &format!("{switch}/0000:02:00.0"));
        link("class/net/ib0/device", &format!("{switch}/0000:02:00.0"));
        link("class/net/eth0/device", "devices/virtual");
        machine
    }

    #[test]
    fn adapters_are_listed_once_and_each_gpu_has_its_nearest() {
        let machine = machine();
        let found = adapters(machine.path());
        let names: Vec<&str> = found.iter().map(|adapter| adapter.name.as_str()).collect();
        assert_eq!(names, ["mlx5_0", "eth0"], "ib0 belongs to mlx5_0");
        assert_eq!(judge(&found, true).found, "mlx5_0 (400 Gb/sec (4X NDR))");
        let near = |gpus: &[&str]| {
            let gpus: Vec<String> = gpus.iter().map(|gpu| (*gpu).to_owned()).collect();
            nearest(machine.path(), &gpus, &found)
        };
        let one = near(&["0000:01:00.0"]).unwrap();
        assert_eq!(one.state, State::Pass);
        assert_eq!(one.found, "through one PCIe switch: 0 mlx5_0");
        let two = near(&["0000:01:00.0", "0000:81:00.0"]).unwrap();
        assert_eq!(two.state, State::Warn);
        assert!(two.found.ends_with("on another NUMA node: 1 mlx5_0"), "{two:?}");
        assert_eq!(near(&[]), None);
        assert_eq!(near(&["0000:99:00.0"]), None);
        let bare = tree(&[]);
        assert!(adapters(bare.path()).is_empty() && interfaces(bare.path()).is_empty());
        assert_eq!(judge(&[], false).state, State::Pass);
        assert_eq!(judge(&[], true).state, State::Warn);
    }

    #[test]
    fn a_port_that_is_down_is_a_warning() {
        let mut found = adapters(machine().path());
        let second = Adapter { name: "mlx5_1".to_owned(), is_up: false, ..found[0].clone() };
        assert_eq!(second.kind, Kind::Rdma);
        found.push(second);
        let finding = judge(&found, true);
        assert_eq!(finding.state, State::Warn);
        assert!(finding.found.contains("mlx5_1 (400 Gb/sec (4X NDR), down)"), "{finding:?}");
    }

    #[test]
    fn variables_are_compared_with_what_the_node_has() {
        let machine = machine();
        let (adapters, interfaces) = (adapters(machine.path()), interfaces(machine.path()));
        let state = |name: &str, value: &str| {
            let set = BTreeMap::from([(name.to_owned(), value.to_owned())]);
            variables(&set, &adapters, &interfaces, true).state
        };
        for (name, value, expected) in [
            ("NCCL_SOCKET_IFNAME", "eth", State::Pass),
            ("NCCL_SOCKET_IFNAME", "=eth", State::Fail),
            ("NCCL_SOCKET_IFNAME", "bond0,ens", State::Fail),
            ("NCCL_SOCKET_IFNAME", "^lo", State::Pass),
            ("NCCL_IB_HCA", "mlx5", State::Pass),
            ("NCCL_IB_HCA", "mlx4", State::Warn),
            ("NCCL_IB_DISABLE", "1", State::Warn),
            ("NCCL_IB_DISABLE", "0", State::Pass),
            ("CUDA_LAUNCH_BLOCKING", "1", State::Warn),
            ("OMPI_MCA_btl_tcp_if_include", "lo,10.0.0.0/8", State::Pass),
            ("OMPI_MCA_btl_tcp_if_include", "ens1", State::Warn),
            ("NCCL_DEBUG", "INFO", State::Pass),
        ] {
            assert_eq!(state(name, value), expected, "{name}={value}");
        }
        assert_eq!(variables(&BTreeMap::new(), &[], &[], true).found, "none is set");
        let wrong = BTreeMap::from([("NCCL_SOCKET_IFNAME".to_owned(), "bond0".to_owned())]);
        let unused = variables(&wrong, &adapters, &interfaces, false);
        assert_eq!(unused.state, State::Warn, "no rank uses NCCL");
        assert!(selects("=mlx5_0:1", &["mlx5_0".to_owned()]));
    }
}
