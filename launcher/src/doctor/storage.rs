//! The sources of the recipe: whether the node reads their shards, and how fast.

use std::time::Duration;

use vljepa_recipes::protocol::{CheckName, SourceRate, SourceReport};
use vljepa_recipes::schema::Recipe;

use super::finding::{Fact, Finding};
use crate::platform::health::advice;
use crate::process;
use crate::programs::{Programs, recipe_file};

/// How long the worker may take, and how much longer for each source.
const LIMIT: Duration = Duration::from_secs(20);
const LIMIT_OF_SOURCE: Duration = Duration::from_secs(3);

/// Lets the worker read the sources of the resolved recipe `yaml` for a second each.
pub(super) async fn look(programs: &Programs, recipe: &Recipe, yaml: &str) -> Vec<Finding> {
    if recipe.data.sources.is_empty() || recipe.stages.is_empty() {
        return Vec::new();
    }
    match ask(programs, recipe, yaml).await {
        Ok(reports) => reports.iter().map(judge).collect(),
        Err(why) => vec![Finding::fail(Fact::Storage, why, advice(CheckName::Shards))],
    }
}

async fn ask(
    programs: &Programs,
    recipe: &Recipe,
    yaml: &str,
) -> Result<Vec<SourceReport>, String> {
    let file = recipe_file(yaml).map_err(|error| error.to_string())?;
    let limit = limit(recipe);
    let arguments = ["feed".as_ref(), file.path().as_os_str()];
    let said = process::ask_within(limit, &programs.worker, &arguments).await?;
    serde_json::from_slice(&said).map_err(|error| error.to_string())
}

/// How long reading the sources may take.
pub(super) fn limit(recipe: &Recipe) -> Duration {
    let sources = u32::try_from(recipe.data.sources.len()).unwrap_or(u32::MAX);
    LIMIT + LIMIT_OF_SOURCE.saturating_mul(sources)
}

#[expect(clippy::cast_precision_loss, reason = "a rate needs no more than 53 bits")]
fn judge(SourceReport { source, read }: &SourceReport) -> Finding {
    match read {
        Err(why) => Finding::fail(Fact::Storage, why, advice(CheckName::Shards)),
        Ok(SourceRate { shards, bytes, seconds, threads }) => {
            let rate = *bytes as f64 / seconds.max(1e-6) / 1e6;
            let found = format!(
                "{source}: {shards} shards, {rate:.0} MB/s with {threads} threads, of which the \
                 memory of the node may hold a part"
            );
            Finding::pass(Fact::Storage, found)
        }
    }
}

#[cfg(test)]
mod tests {
    use vljepa_recipes::protocol::{SourceRate, SourceReport};

    use super::judge;
    use crate::doctor::finding::State;

    #[test]
    fn a_source_has_a_rate_or_a_reason() {
        let report = |read| SourceReport { source: "clips".to_owned(), read };
        let rate = SourceRate { shards: 3, bytes: 2_000_000_000, seconds: 1.0, threads: 4 };
        let found = judge(&report(Ok(rate)));
        assert!(found.found.starts_with("clips: 3 shards, 2000 MB/s"), "{found:?}");
        assert_eq!(found.state, State::Pass);
        let missing = judge(&report(Err("data.sources.clips: no such file".to_owned())));
        assert_eq!(missing.state, State::Fail);
    }
}
