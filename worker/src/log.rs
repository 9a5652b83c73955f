//! The log of a worker: a file of a training job, or messages of another job.

use std::fmt;
use std::fs::OpenOptions;
use std::sync::Mutex;

use anyhow::Context;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;
use vljepa_recipes::RunDirectory;
use vljepa_recipes::protocol::{Job, PROGRESS};

/// Opens the log: a file per rank and attempt for training jobs, and standard error, with warnings
/// and the progress of an evaluation, for other jobs. [`crate::job`] logs the error that ends a
/// job; one that is no training job prints it instead.
///
/// # Errors
/// If the file cannot be written.
pub(crate) fn open(run: &RunDirectory, rank: usize, job: &Job) -> anyhow::Result<()> {
    let Job::Train { attempt, .. } = job else {
        tracing_subscriber::fmt()
            .with_writer(std::io::stderr)
            .with_ansi(false)
            .event_format(Message)
            .with_env_filter(EnvFilter::new(
                "warn,vljepa_worker::job=off,vljepa_worker::evaluation::progress=info",
            ))
            .try_init()
            .ok();
        return Ok(());
    };
    let path = run.log(rank, *attempt);
    let file = OpenOptions::new()
        .create(true)
        .append(true)
        .open(&path)
        .with_context(|| format!("cannot write {}", path.display()))?;
    tracing_subscriber::fmt()
        .with_writer(Mutex::new(file))
        .with_ansi(false)
        .with_env_filter(EnvFilter::new("info"))
        .try_init()
        .ok();
    Ok(())
}

/// Format of messages for people: the level and the text, without time and module.
struct Message;

impl<S, N> FormatEvent<S, N> for Message
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        writer.write_str(match *event.metadata().level() {
            Level::ERROR => "error: ",
            Level::INFO => PROGRESS,
            _ => "warning: ",
        })?;
        context.format_fields(writer.by_ref(), event)?;
        writeln!(writer)
    }
}
