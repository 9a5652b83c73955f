//! Rates of the devices, measured by the worker and compared with those that a plan assumes.

use std::path::Path;
use std::time::Duration;

use vljepa_recipes::load_rates_text;
use vljepa_recipes::plan::{Comparison, Rates};
use vljepa_recipes::schema::{Device, Recipe};

use super::finding::{Fact, Finding};
use crate::platform::workers;
use crate::process;
use crate::programs::{Programs, recipe_file};

/// How long the worker may take; it needs about two minutes on a GPU.
pub(super) const LIMIT: Duration = Duration::from_secs(600);

/// Measures all `devices` of this node at once, as they work in a run, and compares each with the
/// rates `planned`, a YAML text. The worker reads the resolved recipe `yaml`.
pub(super) async fn look(
    programs: &Programs,
    recipe: &Recipe,
    (yaml, planned): (&str, &str),
    devices: usize,
) -> Finding {
    let failed = |why: String| {
        let advice = "start `vljepa-worker rates RECIPE` on this node to see its whole output";
        Finding::fail(Fact::Rates, why, advice)
    };
    let (file, planned) =
        match (recipe_file(yaml), load_rates_text("the rates to compare", planned)) {
            (Ok(file), Ok(planned)) => (file, planned),
            (Err(error), _) => return failed(error.to_string()),
            (_, Err(error)) => return failed(error.to_string()),
        };
    // A host has one set of CPUs, which all ranks share.
    let count = if recipe.device == Device::Host { 1 } else { devices };
    if count == 0 {
        return failed("no GPU was found to measure".to_owned());
    }
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = (cpus / count).max(1).to_string();
    let arguments =
        ["rates".as_ref(), file.path().as_os_str(), "--threads".as_ref(), threads.as_ref()];
    let mut asked = tokio::task::JoinSet::new();
    for device in 0..count {
        let (worker, arguments) =
            (programs.worker.clone(), arguments.map(std::ffi::OsStr::to_owned));
        asked.spawn(async move {
            let arguments = arguments.each_ref().map(|argument| argument.as_os_str());
            (device, measured(&worker, &arguments, device, count).await)
        });
    }
    let mut answers = asked.join_all().await;
    answers.sort_by_key(|(device, _)| *device);
    let mut compared = Vec::new();
    for (device, answer) in answers {
        match answer {
            Ok(rates) => compared.push(planned.compare(&rates)),
            Err(why) if count > 1 => return failed(format!("GPU {device}: {why}")),
            Err(why) => return failed(why),
        }
    }
    judge(&compared)
}

/// The finding of a node whose devices were not measured.
pub(super) fn not_measured(why: &str) -> Finding {
    let advice = "measure inside a job or on a machine with both programs: salloc --nodes=N \
                  vljepa-launch doctor RECIPE --bench";
    Finding::warn(Fact::Rates, format!("not measured: {why}"), advice)
}

/// Rates of one device.
async fn measured(
    worker: &Path,
    arguments: &[&std::ffi::OsStr],
    device: usize,
    count: usize,
) -> Result<Rates, String> {
    let variables = workers::rank_variables(device, count);
    let text = process::ask_with(LIMIT, worker, arguments, &variables).await?;
    let text = String::from_utf8_lossy(&text);
    load_rates_text("the measured rates", &text).map_err(|error| error.to_string())
}

/// Judges the devices, each with its comparisons.
fn judge(devices: &[Vec<Comparison>]) -> Finding {
    let Some(first) = devices.first() else {
        return Finding::pass(Fact::Rates, "no device was measured");
    };
    let percent = |speed: f64| format!("{:.0}", 100.0 * speed);
    let kinds = first.iter().enumerate().map(|(kind, one)| {
        let speeds = devices.iter().filter_map(|device| Some(device.get(kind)?.speed));
        let (least, most) = speeds.fold((f64::INFINITY, f64::NEG_INFINITY), |(least, most), s| {
            (least.min(s), most.max(s))
        });
        let (least, most) = (percent(least), percent(most));
        let range = if least == most { least } else { format!("{least}–{most}") };
        format!("{} {range} %", one.of)
    });
    let found = format!("of the planned speed: {}", kinds.collect::<Vec<_>>().join(", "));
    let slow = devices.iter().enumerate().flat_map(|(device, all)| {
        all.iter().filter(|one| one.is_slow).map(move |one| (device, one))
    });
    let slow: Vec<String> = slow
        .map(|(device, one)| {
            let at = one.size.map_or_else(String::new, |size| format!(" at {size}"));
            let Comparison { key, measured, planned, .. } = one;
            let which = if devices.len() > 1 { format!("GPU {device}: ") } else { String::new() };
            format!("{which}{key}{at} is {measured:.3} instead of {planned:.3}")
        })
        .collect();
    if slow.is_empty() {
        return Finding::pass(Fact::Rates, found);
    }
    let advice = "compare clocks, power limits and temperatures (nvidia-smi -q), and other programs \
                  on the node; or plan with measured rates: vljepa-worker rates RECIPE > FILE, then \
                  vljepa-launch plan RECIPE --rates FILE";
    Finding::warn(Fact::Rates, format!("{found}; slower: {}", slow.join("; ")), advice)
}

#[cfg(test)]
mod tests {
    use vljepa_recipes::plan::Rates;

    use super::judge;
    use crate::doctor::finding::State;

    #[test]
    fn a_slow_device_is_named_with_its_rate_and_others_are_a_range() {
        let planned = Rates::h200();
        let with = |factor: f64| {
            let mut measured = planned.clone();
            measured.memory_bound_tb_per_s.value *= factor;
            planned.compare(&measured)
        };
        let good = judge(&[with(0.95), with(1.02)]);
        assert_eq!(good.state, State::Pass);
        assert!(good.found.contains("products 100 %"), "{good:?}");
        assert!(good.found.contains("memory-bound kernels 95–102 %"), "{good:?}");
        let bad = judge(&[with(1.0), with(0.5)]);
        assert_eq!(bad.state, State::Warn);
        let slow = "slower: GPU 1: memory_bound_tb_per_s is 1.750 instead of 3.500";
        assert!(bad.found.ends_with(slow), "{bad:?}");
        let alone = judge(&[with(0.5)]);
        assert!(alone.found.ends_with("slower: memory_bound_tb_per_s is 1.750 instead of 3.500"));
        assert!(alone.advice.unwrap().contains("plan RECIPE --rates"));
    }
}
