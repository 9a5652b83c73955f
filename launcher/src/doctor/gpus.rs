//! The GPUs of a node as `nvidia-smi` lists them: number, duplicates, clocks and power limits.

use std::path::Path;
use std::time::Duration;

use vljepa_recipes::schema::{Device, Recipe};

use super::finding::{Fact, Finding};
use super::machine::{entries, read};
use crate::process::{self, Unanswered};
use crate::programs::on_path;

/// Columns of [`Gpu`], in its order.
const QUERY: &str = "--query-gpu=index,name,uuid,pci.bus_id,memory.used,memory.total,\
                     clocks.max.sm,power.limit,power.default_limit,mig.mode.current";
/// The last column of [`Gpu`], whose name depends on the version of `nvidia-smi`.
const REASONS: [&str; 2] = ["clocks_event_reasons.active", "clocks_throttle_reasons.active"];
/// How long `nvidia-smi` may take: it loads the driver if no other process holds it.
const LIMIT: Duration = Duration::from_secs(20);
/// Share of the memory that another process may use, 1/10: as the check before a start allows.
const USED_SHARE: u64 = 10;
/// Bits of `nvmlClocksEventReasons` that slow a GPU down, with their meaning.
const SLOW: [(u64, &str); 5] = [
    (0x2, "an application clock is set"),
    (0x8, "the hardware slows it down"),
    (0x20, "it is too hot (software)"),
    (0x40, "it is too hot (hardware)"),
    (0x80, "the power supply slows it down"),
];

/// A line of `nvidia-smi`. A column that the GPU does not support is `None`.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Gpu {
    pub index: u64,
    pub name: String,
    pub uuid: String,
    /// PCI address as Linux writes it, such as `0000:1b:00.0`.
    pub address: String,
    used_mib: Option<u64>,
    memory_mib: Option<u64>,
    clock_mhz: Option<u64>,
    power_w: Option<f64>,
    default_power_w: Option<f64>,
    is_split: bool,
    reasons: u64,
}

/// PCI addresses of NVIDIA's GPUs below `root`, normally `/`.
pub(super) fn on_bus(root: &Path) -> Vec<String> {
    let devices = entries(&root.join("sys/bus/pci/devices"));
    let is_gpu = |device: &&std::path::PathBuf| {
        // Class 0x03: a display controller, also one without a display.
        read(&device.join("vendor")).trim() == "0x10de"
            && read(&device.join("class")).trim().starts_with("0x03")
    };
    devices.iter().filter(is_gpu).map(|device| super::machine::name(device)).collect()
}

/// Asks `nvidia-smi` for the GPUs.
///
/// # Errors
/// If it is missing, fails or takes longer than [`LIMIT`].
pub(super) async fn list() -> Result<Vec<Gpu>, String> {
    let Some(program) = on_path("nvidia-smi") else {
        return Err("nvidia-smi is not on PATH".to_owned());
    };
    let (format, mut refused) = ("--format=csv,noheader,nounits", String::new());
    for column in REASONS {
        let query = format!("{QUERY},{column}");
        let asked = [query.as_ref(), format.as_ref()];
        match process::ask_within(LIMIT, &program, &asked).await {
            Ok(said) => return parse(&String::from_utf8_lossy(&said)),
            // It does not answer the other question either.
            Err(why @ Unanswered::Timeout { .. }) => return Err(why.to_string()),
            Err(Unanswered::Failed(why)) => refused = why,
        }
    }
    Err(refused)
}

fn parse(csv: &str) -> Result<Vec<Gpu>, String> {
    let lines = csv.lines().filter(|line| !line.trim().is_empty());
    lines.map(|line| gpu(line).ok_or_else(|| format!("nvidia-smi printed `{line}`"))).collect()
}

fn gpu(line: &str) -> Option<Gpu> {
    let mut cells = line.split(',').map(str::trim);
    let mut cell = || cells.next();
    let number = |text: &str| text.parse::<u64>().ok();
    Some(Gpu {
        index: number(cell()?)?,
        name: cell()?.to_owned(),
        uuid: cell()?.to_owned(),
        address: address(cell()?),
        used_mib: number(cell()?),
        memory_mib: number(cell()?),
        clock_mhz: number(cell()?),
        power_w: cell()?.parse().ok(),
        default_power_w: cell()?.parse().ok(),
        is_split: cell()? == "Enabled",
        reasons: cell().and_then(hexadecimal).unwrap_or(0),
    })
}

fn hexadecimal(text: &str) -> Option<u64> {
    u64::from_str_radix(text.strip_prefix("0x")?, 16).ok()
}

/// The address in Linux's form: `nvidia-smi` writes `00000000:1B:00.0`.
fn address(text: &str) -> String {
    let lower = text.to_lowercase();
    match lower.split_once(':') {
        Some((domain, rest)) if domain.len() > 4 => {
            format!("{}:{rest}", &domain[domain.len() - 4..])
        }
        _ => lower,
    }
}

/// Judges the list of GPUs. `visible` is the value of `CUDA_VISIBLE_DEVICES`.
pub(super) fn judge(gpus: &[Gpu], visible: Option<&str>, recipe: Option<&Recipe>) -> Vec<Finding> {
    vec![count(gpus, visible, recipe), clocks(gpus), power(gpus)]
}

/// `nvidia-smi` did not list the GPUs.
pub(super) fn unknown(why: &str, recipe: Option<&Recipe>) -> Finding {
    let help = "install NVIDIA's driver with nvidia-smi; a driver that does not answer needs a \
                restart of the machine";
    match recipe.map(|recipe| recipe.device) {
        Some(Device::Cuda) => Finding::fail(Fact::Gpus, why, help),
        Some(Device::Host) | None => Finding::warn(Fact::Gpus, why, help),
    }
}

fn count(gpus: &[Gpu], visible: Option<&str>, recipe: Option<&Recipe>) -> Finding {
    let names = kinds(gpus.iter().map(|gpu| gpu.name.clone()));
    let mut found = if gpus.is_empty() { "none".to_owned() } else { names };
    let mut wanted = gpus.len();
    if let Some(list) = visible {
        found += &format!("; CUDA_VISIBLE_DEVICES={list}");
        let ids: Vec<&str> = list.split(',').map(str::trim).filter(|id| !id.is_empty()).collect();
        wanted = wanted.min(ids.len());
        if let Some(twice) = repeated(&ids) {
            let found = format!("{found} names GPU {twice} twice");
            return Finding::fail(Fact::Gpus, found, "name each GPU once");
        }
    }
    let uuids: Vec<&str> = gpus.iter().map(|gpu| gpu.uuid.as_str()).collect();
    if let Some(twice) = repeated(&uuids) {
        let found = format!("{found}; {twice} is listed twice");
        return Finding::fail(Fact::Gpus, found, "restart the machine, or leave it out");
    }
    let ranks = recipe.map_or(0, |recipe| recipe.cluster.ranks_per_node);
    if wanted < ranks {
        let found = format!("{found}, but {ranks} ranks need one each");
        let help = "ask Slurm for more GPUs, or lower cluster.ranks_per_node";
        return Finding::fail(Fact::Gpus, found, help);
    }
    if let Some(gpu) = gpus.iter().find(|gpu| gpu.is_split) {
        let found = format!("{found}; GPU {} is split (MIG)", gpu.index);
        return Finding::warn(Fact::Gpus, found, "turn it off: nvidia-smi -mig 0");
    }
    let is_used = |gpu: &&Gpu| match (gpu.used_mib, gpu.memory_mib) {
        (Some(used), Some(all)) => used > all / USED_SHARE,
        _ => false,
    };
    if let Some(gpu) = gpus.iter().find(is_used) {
        let used = gpu.used_mib.unwrap_or(0);
        let found = format!("{found}; another process uses {used} MiB of GPU {}", gpu.index);
        let help = crate::platform::health::advice(vljepa_recipes::protocol::CheckName::Device);
        // A run may hold the GPUs that the doctor looks at.
        return Finding::warn(Fact::Gpus, found, help);
    }
    Finding::pass(Fact::Gpus, found)
}

fn clocks(gpus: &[Gpu]) -> Finding {
    let found = kinds(gpus.iter().map(|gpu| match gpu.clock_mhz {
        Some(mhz) => format!("{mhz} MHz at most"),
        None => "unknown".to_owned(),
    }));
    let reason = |gpu: &Gpu| {
        let reasons = SLOW.iter().filter(|(bit, _)| gpu.reasons & bit != 0);
        reasons.map(|(_, meaning)| format!("GPU {}: {meaning}", gpu.index)).next()
    };
    let slow: Vec<String> = gpus.iter().filter_map(reason).collect();
    let help = "look at `nvidia-smi -q -d CLOCK,PERFORMANCE`; reset clocks with nvidia-smi -rac \
                and nvidia-smi -rgc";
    if !slow.is_empty() {
        return Finding::warn(Fact::GpuClocks, format!("{found}; {}", slow.join("; ")), help);
    }
    let differ = gpus.windows(2).any(|pair| pair[0].clock_mhz != pair[1].clock_mhz);
    if differ {
        let found = format!("{found}: the slowest GPU delays all ranks");
        return Finding::warn(Fact::GpuClocks, found, help);
    }
    Finding::pass(Fact::GpuClocks, found)
}

fn power(gpus: &[Gpu]) -> Finding {
    let watts = |watts: Option<f64>| match watts {
        Some(watts) => format!("{watts:.0} W"),
        None => "unknown".to_owned(),
    };
    let found = kinds(gpus.iter().map(|gpu| watts(gpu.power_w)));
    let is_low = |gpu: &&Gpu| match (gpu.power_w, gpu.default_power_w) {
        (Some(limit), Some(default)) => limit < default,
        _ => false,
    };
    if let Some(gpu) = gpus.iter().find(is_low) {
        let default = watts(gpu.default_power_w);
        let found = format!("{found}; GPU {} has a default of {default}", gpu.index);
        let help = format!("raise it: nvidia-smi -i {} -pl {default}", gpu.index);
        return Finding::warn(Fact::GpuPower, found, help.trim_end_matches(" W"));
    }
    Finding::pass(Fact::GpuPower, found)
}

/// Equal texts in a row as `8 × text`.
fn kinds(texts: impl Iterator<Item = String>) -> String {
    let texts: Vec<String> = texts.collect();
    let runs = texts.chunk_by(|a, b| a == b);
    runs.map(|run| format!("{} × {}", run.len(), run[0])).collect::<Vec<_>>().join(", ")
}

/// The first text that occurs twice.
fn repeated<'a>(texts: &[&'a str]) -> Option<&'a str> {
    texts.iter().enumerate().find(|(at, text)| texts[..*at].contains(text)).map(|(_, text)| *text)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use vljepa_recipes::Recipe;

    use super::{Gpu, address, judge, on_bus, parse, unknown};
    use crate::doctor::finding::{Finding, State};
    use crate::doctor::machine::tests::tree;

    /// Two GPUs in the format of `nvidia-smi --format=csv,noheader,nounits`.
    const TWO: &str = "\
0, NVIDIA H200, GPU-11111111-aaaa, 00000000:1B:00.0, 1, 143771, 1980, 700.00, 700.00, \
Disabled, 0x0000000000000001
1, NVIDIA H200, GPU-22222222-bbbb, 00000000:43:00.0, 1, 143771, 1980, 700.00, 700.00, \
Disabled, 0x0000000000000001
";

    fn recipe(ranks: usize) -> Recipe {
        let recipe = Path::new(env!("CARGO_MANIFEST_DIR")).join("../recipes/quickstart.yaml");
        let ranks = format!("cluster.ranks_per_node={ranks}");
        let sets = ["device=cuda".to_owned(), "precision=bf16".to_owned(), ranks];
        vljepa_recipes::load(&recipe, &sets).unwrap().recipe
    }

    /// Findings about [`TWO`] after a replacement of its last line's text.
    fn changed(from: &str, to: &str) -> Vec<Finding> {
        let (first, second) = TWO.split_once('\n').unwrap();
        let changed = second.replace(from, to);
        assert_ne!(changed, second, "the text to replace is there");
        judge(&parse(&format!("{first}\n{changed}")).unwrap(), None, None)
    }

    fn states(findings: &[Finding]) -> [State; 3] {
        [findings[0].state, findings[1].state, findings[2].state]
    }

    #[test]
    fn healthy_gpus_pass() {
        let gpus = parse(TWO).unwrap();
        let findings = judge(&gpus, None, Some(&recipe(2)));
        assert_eq!(states(&findings), [State::Pass; 3], "{findings:?}");
        let found: Vec<&str> = findings.iter().map(|finding| finding.found.as_str()).collect();
        assert_eq!(found, ["2 × NVIDIA H200", "2 × 1980 MHz at most", "2 × 700 W"]);
        assert_eq!(gpus[1].address, "0000:43:00.0");
        // A column that the GPU does not support.
        let old = changed("1980, 700.00, 700.00, Disabled", "[N/A], [N/A], [N/A], [N/A]");
        assert_eq!(states(&old), [State::Pass, State::Warn, State::Pass]);
    }

    #[test]
    fn each_fault_of_a_gpu_is_named() {
        use State::{Fail, Pass, Warn};
        for (from, to, expected, said) in [
            ("GPU-22222222-bbbb", "GPU-11111111-aaaa", [Fail, Pass, Pass], "listed twice"),
            ("Disabled", "Enabled", [Warn, Pass, Pass], "GPU 1 is split"),
            ("43:00.0, 1,", "43:00.0, 80000,", [Warn, Pass, Pass], "uses 80000 MiB of GPU 1"),
            ("1980", "1200", [Pass, Warn, Pass], "the slowest GPU"),
            ("0x0000000000000001", "0x0000000000000048", [Pass, Warn, Pass], "GPU 1: the hardware"),
            ("700.00, 700.00", "500.00, 700.00", [Pass, Pass, Warn], "GPU 1 has a default of 700"),
        ] {
            let findings = changed(from, to);
            assert_eq!(states(&findings), expected, "{to}: {findings:?}");
            assert!(findings.iter().any(|finding| finding.found.contains(said)), "{findings:?}");
        }
    }

    #[test]
    fn too_few_gpus_and_one_that_is_named_twice_fail() {
        let gpus = parse(TWO).unwrap();
        let state =
            |visible: Option<&str>, ranks| judge(&gpus, visible, Some(&recipe(ranks)))[0].state;
        assert_eq!(state(None, 3), State::Fail);
        assert_eq!(state(Some("0,1"), 2), State::Pass);
        assert_eq!(state(Some("0"), 2), State::Fail);
        assert_eq!(state(Some("0,0"), 2), State::Fail);
        assert_eq!(judge(&[], None, Some(&recipe(1)))[0].state, State::Fail);
        assert_eq!(unknown("nvidia-smi: not found", None).state, State::Warn);
        assert_eq!(unknown("nvidia-smi: not found", Some(&recipe(1))).state, State::Fail);
    }

    #[test]
    fn what_is_no_list_of_gpus_is_refused() {
        assert_eq!(parse("").unwrap(), Vec::<Gpu>::new());
        for wrong in ["No devices were found", "0, NVIDIA H200"] {
            assert!(parse(wrong).unwrap_err().contains(wrong));
        }
        for (text, expected) in [("00000000:1B:00.0", "0000:1b:00.0"), ("1b", "1b"), ("", "")] {
            assert_eq!(address(text), expected);
        }
    }

    #[test]
    fn gpus_are_found_on_the_bus_without_a_driver() {
        let machine = tree(&[
            ("sys/bus/pci/devices/0000:1b:00.0/vendor", "0x10de\n"),
            ("sys/bus/pci/devices/0000:1b:00.0/class", "0x030200\n"),
            ("sys/bus/pci/devices/0000:1c:00.0/vendor", "0x10de\n"),
            ("sys/bus/pci/devices/0000:1c:00.0/class", "0x068000\n"),
            ("sys/bus/pci/devices/0000:1d:00.0/vendor", "0x15b3\n"),
        ]);
        assert_eq!(on_bus(machine.path()), ["0000:1b:00.0"]);
        assert!(on_bus(tree(&[]).path()).is_empty());
    }
}
