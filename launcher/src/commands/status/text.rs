//! The state of a run as text.

use super::Status;
use crate::record::rates::{Left, Summary};
use crate::record::stragglers::RankTable;
use crate::terminal::{self, duration, thousands};

/// The state, where the time went, and the slowest ranks.
pub(super) fn text(status: &Status) -> String {
    let mut parts = vec![terminal::table(&facts(status))];
    if status.total_steps > 0 && status.rates.elapsed_s > 0.0 {
        parts.push(terminal::table(&spent(&status.rates)));
    }
    parts.extend(status.ranks.as_ref().map(ranks));
    parts.join("\n\n")
}

fn facts(status: &Status) -> Vec<Vec<String>> {
    let rates = &status.rates;
    let stage = status.stage.as_ref().map_or_else(String::new, |name| format!(", stage {name}"));
    let step = format!("{} of {}{stage}", thousands(status.step), thousands(status.total_steps));
    let mut rows = Vec::new();
    let mut add = |name: &str, value: Option<String>| {
        // A fault can have several lines.
        let line = |value: String| value.split_whitespace().collect::<Vec<_>>().join(" ");
        rows.extend(value.map(|value| vec![name.to_owned(), line(value)]));
    };
    add("run", Some(status.name.clone()));
    add("state", Some(status.state.name().to_owned()));
    add("step", Some(step));
    add("loss", status.loss.map(|loss| format!("{loss:.4}")));
    add("samples/s", speed(rates));
    add("left", rates.left.filter(|_| status.state.is_alive()).map(left));
    add("checkpoint", status.checkpoint.clone());
    add("attempts", Some(status.attempts.to_string()));
    add("fault", status.fault.clone());
    add("job", status.job.clone());
    rows
}

/// Recent rate and rate of the whole run.
fn speed(rates: &Summary) -> Option<String> {
    let whole = rates.whole_run_samples_per_s.map(|rate| format!("{} whole run", number(rate)));
    let recent = rates.recent_samples_per_s;
    let recent = recent.map(|rate| format!("{} {}", number(rate), rates.window()));
    let both: Vec<String> = recent.into_iter().chain(whole).collect();
    (!both.is_empty()).then(|| both.join(", "))
}

/// A rate with four digits or more.
fn number(rate: f64) -> String {
    if rate < 1000.0 {
        return format!("{rate:.1}");
    }
    format!("{rate:.0}").parse().map_or_else(|_| format!("{rate:.0}"), thousands)
}

fn left(left: Left) -> String {
    let stage = duration(left.stage_s);
    match left.later_stages {
        0 => stage,
        count => format!(
            "{stage} in this stage, then about {} in {count} later stage{} (recent rate, scaled by operations per sample)",
            duration(left.later_stages_s),
            if count == 1 { "" } else { "s" }
        ),
    }
}

/// The parts of the elapsed time.
fn spent(rates: &Summary) -> Vec<Vec<String>> {
    let share = |seconds: f64| format!("{:.1}%", 100.0 * seconds / rates.elapsed_s);
    let mut rows = vec![vec!["time".to_owned(), duration(rates.elapsed_s), "share".to_owned()]];
    let parts = rates.rows().into_iter();
    rows.extend(parts.map(|(name, seconds)| vec![name, duration(seconds), share(seconds)]));
    rows
}

/// The table of the slowest ranks as text.
fn ranks(table: &RankTable) -> String {
    let ms = |seconds: f64| format!("{:.1}", 1e3 * seconds);
    let percent = |over: f64| format!("{:+.0}%", 100.0 * over);
    let mut text = format!(
        "ranks at step {} ({}), {} of {} reported; the median rank works {} ms per step",
        thousands(table.step),
        table.time,
        thousands(table.reported as u64),
        thousands(table.world_size as u64),
        ms(table.median_work_s)
    );
    text.extend(table.slowest_text().map(|words| format!("\n{words}")));
    let header = [
        "rank",
        "host",
        "work ms",
        "over",
        "phase",
        "data ms",
        "collective ms",
        "TFLOP/s",
        "MiB",
        "GPU MiB",
    ];
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    rows.extend(table.slowest.iter().map(|row| {
        vec![
            row.rank.to_string(),
            row.host.clone(),
            ms(row.work_s),
            percent(row.over),
            row.phase.name().to_owned(),
            ms(row.data_s),
            ms(row.collective_s),
            format!("{:.3}", row.tflops),
            thousands(row.memory_mib),
            row.device_memory_mib.map_or_else(|| "–".to_owned(), thousands),
        ]
    }));
    text += &format!("\n{}", terminal::table(&rows));
    if table.slowest.len() < table.reported {
        text += "\nonly the slowest ranks are listed";
    }
    text
}
