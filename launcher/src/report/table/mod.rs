//! A table of the paper with the measured rows: for the terminal, as Markdown, and as a page.

mod details;
mod page;
mod text;
mod whole;

use vljepa_recipes::paper::Unit;
use vljepa_recipes::run_directory::{RunDirectory, atomic_write};
use vljepa_recipes::schema::Recipe;

use crate::error::LaunchError;
use crate::record::table::PaperComparison;
use crate::terminal;

pub(super) use page::page;
pub(super) use whole::whole_page;

/// Writes `table.json` and `table.md`.
pub(super) fn write_files(
    directory: &RunDirectory,
    compared: &PaperComparison,
) -> Result<(), LaunchError> {
    let json = serde_json::to_vec_pretty(compared)
        .map_err(|error| LaunchError::JobFailed { error: error.to_string() })?;
    atomic_write(&directory.table_json(), &json)?;
    atomic_write(&directory.table_markdown(), text::markdown(compared).as_bytes())?;
    Ok(())
}

/// The measured rows beside those of the paper, for the terminal. `None` without any score.
pub(super) fn terminal_text(directory: &RunDirectory, recipe: &Recipe) -> Option<String> {
    let compared = PaperComparison::collect(directory, recipe)?;
    compared.has_scores().then(|| text::terminal(&compared))
}

/// A value of a column: hundredths with one decimal, factors with two.
fn number(value: f64, unit: Unit) -> String {
    // Rounded, a small negative number is zero, which has no sign.
    match unit {
        Unit::Hundredth => format!("{:.1}", (value * 10.0).round() / 10.0 + 0.0),
        Unit::Factor => format!("{:.2}", (value * 100.0).round() / 100.0 + 0.0),
    }
}

/// A difference with its sign.
fn signed(value: f64, unit: Unit) -> String {
    let text = number(value.abs(), unit);
    // A small difference is shown as 0.0.
    let sign = match text.chars().all(|c| c == '0' || c == '.') {
        true => "",
        false if value < 0.0 => "−",
        false => "+",
    };
    sign.to_owned() + &text
}

/// A large number in few characters: `3.31B`, `13M`.
fn short(count: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "two digits are shown")]
    let value = count as f64;
    match count {
        0..=9_999 => terminal::thousands(count),
        10_000..=999_499 => format!("{:.0}K", value / 1e3),
        999_500..=994_999_999 => format!("{:.0}M", value / 1e6),
        _ => format!("{:.2}B", value / 1e9),
    }
}

#[cfg(test)]
mod tests;
