//! The sources of the recipe: whether the node reads their shards, and how fast.

use std::time::Duration;

use vljepa_recipes::protocol::{CheckName, SourceRate, SourceReport};
use vljepa_recipes::schema::{Recipe, Scheduler};

use super::finding::{Fact, Finding};
use crate::platform::health::advice;
use crate::process;
use crate::programs::{Programs, recipe_file};

/// How long the worker may take to start and to read the recipe.
const LIMIT: Duration = Duration::from_secs(20);
/// How long a source may take. The worker gives a source up after 20 s.
const LIMIT_OF_SOURCE: Duration = Duration::from_secs(22);

/// Lets the worker read the sources of the resolved recipe `yaml` for a second each.
pub(super) async fn look(programs: &Programs, recipe: &Recipe, yaml: &str) -> Vec<Finding> {
    let names = drawn(recipe);
    if names.is_empty() {
        return Vec::new();
    }
    // The worker reads it. Nothing else of the doctor needs a temporary file.
    let file = match recipe_file(yaml) {
        Ok(file) => file,
        Err(error) => {
            let help = "free space in the folder for temporary files, or name another folder in \
                        TMPDIR";
            return vec![Finding::fail(Fact::Storage, error.to_string(), help)];
        }
    };
    let arguments = ["feed".as_ref(), file.path().as_os_str()];
    let (lines, ended) = process::lines_within(limit(recipe), &programs.worker, &arguments).await;
    judge_all(&names, &lines, ended.map_err(String::from), help(recipe))
}

/// Sources that the worker reads, in its order.
fn drawn(recipe: &Recipe) -> Vec<&str> {
    let names = recipe.data.sources.keys().filter(|name| recipe.draws_from(name));
    names.map(String::as_str).collect()
}

/// How long reading the sources may take.
pub(super) fn limit(recipe: &Recipe) -> Duration {
    let sources = u32::try_from(drawn(recipe).len()).unwrap_or(u32::MAX);
    LIMIT + LIMIT_OF_SOURCE.saturating_mul(sources)
}

/// What to do about a source that cannot be read.
fn help(recipe: &Recipe) -> &'static str {
    match recipe.cluster.scheduler {
        Scheduler::Slurm => advice(CheckName::Shards),
        Scheduler::Local => {
            "make the shards first (recipes/quickstart.sh for the quickstart, vljepa-shards \
             prepare for other data), or correct data.sources"
        }
    }
}

/// Judges the worker's `lines`, one for each of the sources `names`. `ended` says whether the
/// worker succeeded.
fn judge_all(
    names: &[&str],
    lines: &[String],
    ended: Result<(), String>,
    help: &str,
) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut missing = names.to_vec();
    for line in lines {
        match serde_json::from_str::<SourceReport>(line) {
            Ok(report) => {
                missing.retain(|name| *name != report.source);
                findings.push(judge(&report, help));
            }
            Err(error) => {
                let found = format!("vljepa-worker printed `{line}`: {error}");
                findings.push(Finding::fail(Fact::Storage, found, help));
            }
        }
    }
    let why = ended.err();
    if missing.is_empty() && why.is_none() {
        return findings;
    }
    let why = why.unwrap_or_else(|| "vljepa-worker did not report it".to_owned());
    let found = match missing[..] {
        [] => why,
        [hung] => format!("{hung}: {why}"),
        [hung, ref later @ ..] => {
            format!("{hung}: {why}; not looked at after it: {}", later.join(", "))
        }
    };
    findings.push(Finding::fail(Fact::Storage, found, help));
    findings
}

#[expect(clippy::cast_precision_loss, reason = "a rate needs no more than 53 bits")]
fn judge(SourceReport { source, read }: &SourceReport, help: &str) -> Finding {
    match read {
        Err(why) => Finding::fail(Fact::Storage, why, help),
        Ok(SourceRate { shards, bytes, seconds, threads }) => {
            let rate = *bytes as f64 / seconds.max(1e-6) / 1e6;
            let found = format!(
                "{source}: {shards} shards, {rate:.0} MB/s with {threads} threads; part may come from \
                 the page cache"
            );
            Finding::pass(Fact::Storage, found)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use vljepa_recipes::protocol::{SourceRate, SourceReport};

    use super::{help, judge, judge_all};
    use crate::doctor::finding::State;

    #[test]
    fn a_source_has_a_rate_or_a_reason() {
        let report = |read| SourceReport { source: "clips".to_owned(), read };
        let rate = SourceRate { shards: 3, bytes: 2_000_000_000, seconds: 1.0, threads: 4 };
        let found = judge(&report(Ok(rate)), "");
        assert!(found.found.starts_with("clips: 3 shards, 2000 MB/s"), "{found:?}");
        assert_eq!(found.state, State::Pass);
        let missing = judge(&report(Err("data.sources.clips: no such file".to_owned())), "make it");
        assert_eq!(missing.state, State::Fail);
    }
    #[test]
    fn a_source_that_hangs_loses_no_other_result() {
        let read = Ok(SourceRate { shards: 3, bytes: 2_000_000, seconds: 1.0, threads: 4 });
        let line = serde_json::to_string(&SourceReport { source: "a".to_owned(), read }).unwrap();
        let judged = |names: &[&str], lines: &[String], ended: Result<(), &str>| {
            let found = judge_all(names, lines, ended.map_err(str::to_owned), "mount it");
            found.into_iter().map(|one| (one.state, one.found)).collect::<Vec<_>>()
        };
        let all = judged(&["a"], std::slice::from_ref(&line), Ok(()));
        assert!(all.len() == 1 && all[0].0 == State::Pass, "{all:?}");
        let hung = judged(&["a", "b", "c", "d"], std::slice::from_ref(&line), Err("no answer"));
        assert!(hung.len() == 2 && hung[0].0 == State::Pass, "{hung:?}");
        let expected = "b: no answer; not looked at after it: c, d";
        assert_eq!(hung[1], (State::Fail, expected.to_owned()));
        assert_eq!(judged(&["a"], &[], Err("gone"))[0], (State::Fail, "a: gone".to_owned()));
        let silent = judged(&["a"], &[], Ok(()));
        assert!(silent.len() == 1 && silent[0].0 == State::Fail, "{silent:?}");
        let nonsense = judged(&["a"], &["x".to_owned(), line.clone()], Ok(()));
        assert!(nonsense[0].1.contains("`x`") && nonsense[1].0 == State::Pass, "{nonsense:?}");
        assert_eq!(judged(&["a"], &[line], Err("crashed"))[1].0, State::Fail);
    }

    #[test]
    fn a_source_that_is_missing_here_is_to_be_prepared_and_on_slurm_to_be_mounted() {
        let recipe = Path::new(env!("CARGO_MANIFEST_DIR")).join("../recipes/quickstart.yaml");
        let load = |sets: &[String]| vljepa_recipes::load(&recipe, sets).unwrap().recipe;
        assert!(help(&load(&[])).contains("vljepa-shards prepare"));
        assert!(help(&load(&["cluster.scheduler=slurm".to_owned()])).contains("mount"));
    }
}
