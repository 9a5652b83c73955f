//! `vljepa-launch paper`: which claims of the paper hold for computed tables.

use vljepa_recipes::run_directory::{RunDirectory, RunDirectoryError, atomic_write};

use super::jobs::{row, show_json};
use crate::error::LaunchError;
use crate::record::paper::{Paper, Verdict};
use crate::{cli, report, terminal};

/// Prints the verdict on each claim, and writes the page.
pub(crate) fn paper(arguments: &cli::Paper) -> Result<u8, LaunchError> {
    let cli::Paper { tables, html, json } = arguments;
    let directories: Vec<RunDirectory> = tables
        .iter()
        .map(|table| RunDirectory::open(table))
        .collect::<Result<_, RunDirectoryError>>()?;
    let paper = Paper::collect(&directories)?;
    if let Some(page) = html {
        atomic_write(page, report::paper_page(&paper).as_bytes())?;
    }
    if *json {
        return show_json(&paper);
    }
    let mut rows = vec![row(["verdict", "in the paper", "comparisons", "claim"])];
    rows.extend(paper.claims.iter().map(|judged| {
        let holds = judged.comparisons.iter().filter(|comparison| comparison.holds()).count();
        let comparisons = match (judged.comparisons.len(), judged.missing.len()) {
            (0, _) => "–".to_owned(),
            (all, 0) => format!("{holds} of {all}"),
            (all, _) => format!("{holds} of {all}, some not measured"),
        };
        row([judged.verdict.name(), &judged.claim.place, &comparisons, &judged.claim.claim])
    }));
    terminal::result(&terminal::table(&rows));
    let count = |verdict: Verdict| format!("{} {}", paper.count(verdict), verdict.name());
    let all = [Verdict::Reproduced, Verdict::NotReproduced, Verdict::NotComparable].map(count);
    terminal::note(&all.join(", "));
    if paper.tables.iter().any(|table| !table.replaced.is_empty()) {
        terminal::note("scores are of other sets than the paper's");
    }
    if let Some(page) = html {
        terminal::note(&format!("all tables are in {}", page.display()));
    }
    Ok(0)
}
