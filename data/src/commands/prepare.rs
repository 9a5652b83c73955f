//! The command `prepare`: makes training-ready shards of a raw set, and shows how far it is.

use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::Result;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use vljepa_data::prepare::{Prepared, Progress, SetCommand, run};

/// Time between two updates of the progress bar.
const BAR_INTERVAL: Duration = Duration::from_millis(200);

/// Time between two lines of progress if standard error is no terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(10);

/// Prepares a set and prints what it holds now.
pub(crate) fn prepare(set: &SetCommand, output: &mut impl Write) -> Result<()> {
    let progress = Progress::default();
    let prepared = std::thread::scope(|scope| {
        // The thread ends when `running` is dropped.
        let (running, ended) = channel::<()>();
        scope.spawn(|| show(&progress, move |time| ended.recv_timeout(time)));
        let prepared = run(set, &progress);
        drop(running);
        prepared
    })?;
    let folder = set.output().into.display();
    let Prepared { up_to_date, shards, stats } = prepared;
    let state = if up_to_date { "up to date" } else { "prepared" };
    writeln!(output, "{folder}: {state}, {} samples in {shards} shards", stats.samples)?;
    if stats.pictures > 0 {
        let (pictures, kept) = (stats.pictures, stats.pictures_kept);
        writeln!(output, "  {pictures} pictures, of which {kept} are kept byte for byte")?;
    }
    if stats.clips > 0 {
        let (clips, seconds) = (stats.clips, stats.clip_seconds);
        let (frames, all) = (stats.frames, stats.source_frames);
        writeln!(output, "  {clips} clips of {seconds:.0} s with {frames} of {all} frames")?;
    }
    for (class, count) in &stats.left_out {
        writeln!(output, "  left out: {count} × {class} (left-out.jsonl)")?;
    }
    Ok(())
}

/// Shows the progress until `wait` says that the preparation has ended: a bar on a terminal, or a
/// line now and then.
fn show(progress: &Progress, wait: impl Fn(Duration) -> Result<(), RecvTimeoutError>) {
    let bar = std::io::stderr().is_terminal().then(bar);
    let begun = Instant::now();
    let interval = if bar.is_some() { BAR_INTERVAL } else { LINE_INTERVAL };
    while wait(interval) == Err(RecvTimeoutError::Timeout) {
        let number = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let (parts, finished) = (number(&progress.parts), number(&progress.finished));
        let message = message(progress, begun.elapsed());
        match &bar {
            Some(bar) => {
                bar.set_length(parts.max(1));
                bar.set_position(finished);
                bar.set_message(message);
            }
            // A closed standard error does not stop the preparation.
            None => {
                drop(writeln!(std::io::stderr().lock(), "{finished} of {parts} parts, {message}"))
            }
        }
    }
    if let Some(bar) = &bar {
        bar.finish_and_clear();
    }
}

fn bar() -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(8));
    let style = "{bar:24.cyan/8} {pos}/{len} parts {wide_msg}";
    bar.with_style(
        ProgressStyle::with_template(style)
            .map_or_else(|_| ProgressStyle::default_bar(), |style| style.progress_chars("━━╌")),
    )
}

#[expect(clippy::cast_precision_loss, reason = "a rate is shown with few digits")]
fn message(progress: &Progress, elapsed: Duration) -> String {
    let number = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    if number(&progress.parts) == 0 {
        return "looking at the set".to_owned();
    }
    let (samples, left_out) = (number(&progress.samples), number(&progress.left_out));
    let rate = samples as f64 / elapsed.as_secs_f64().max(0.001);
    let mib = number(&progress.bytes) >> 20;
    format!("{samples} samples ({rate:.0}/s, {mib} MiB), {left_out} left out")
}
