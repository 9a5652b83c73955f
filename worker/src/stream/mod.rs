//! Describes a video while it is shown (paper §2, selective decoding): embeds its windows as they
//! come, decodes a text where their meaning changes, and prints each event as a line of JSON.

mod feed;
mod lags;
mod lines;
mod narrator;
mod plan;

use std::io::Write as _;
use std::time::Instant;

use anyhow::Context;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use crossbeam_channel::{Receiver, TryRecvError, bounded, never, select};
use image::ExtendedColorType;
use image::codecs::jpeg::JpegEncoder;
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use vljepa_data::LoadedSample;
use vljepa_data::texts::Texts;
use vljepa_recipes::protocol::{
    StreamCaption, StreamEnd, StreamEvent, StreamJob, StreamStart, StreamSummary, VideoSource,
};
use vljepa_recipes::signals::hangup_is_ignored;

use self::feed::{BATCH, Fed, Feed, Window};
use self::lags::Lags;
use self::lines::{LONGEST, Line};
use self::narrator::{Due, Narrator};
use self::plan::{patience, plan};
use crate::evaluation::embed::Embedder;
use crate::evaluation::shifts::Shifts;
use crate::inference::Loaded;
use crate::rank::session::Session;

/// JPEG quality of pictures. Frames may have few pixels, so that errors of coding are large.
const JPEG_QUALITY: u8 = 92;

/// Describes a video until it ends, or INT, TERM or HUP arrives. Events go to standard output. An
/// error of the video is an event.
///
/// # Errors
/// Fails if there is no checkpoint, the model has no Y-decoder, the device fails, an embedding is
/// not finite, or standard output is closed.
pub(crate) fn stream(session: &Session, job: &StreamJob) -> anyhow::Result<()> {
    let stop = stop_requests().context("signals cannot be received")?;
    // A launcher that is killed cannot end this process, and a silent source never would.
    set_pdeathsig(Signal::SIGTERM).context("the death of the launcher cannot be watched")?;
    let (model, state) = Loaded::of(session, job.step)?;
    let embedder = Embedder::new(&session.recipe, model.embeds())?;
    let (start, request) = plan(session, job, &embedder, state.step);
    let mut stream = Stream {
        narrator: Narrator::new(
            Shifts::new(job.smoothing, job.threshold, embedder.normalises()),
            patience(&start),
        ),
        step: state.step,
        query: start.query.clone(),
        side: request.options.image_size,
        frames: request.options.frames,
        newest: job.pictures.then(Vec::new),
        embedder,
        counts: Counts { opened: Instant::now(), video_s: 0.0, windows: 0, texts: 0 },
        to_embedding: Lags::new(),
        to_text: Lags::new(),
    };
    stream.prepare()?;
    let lines = match job.video {
        VideoSource::StandardInput => never(),
        VideoSource::File(_) | VideoSource::Pipe(_) | VideoSource::Address(_) => lines::read()?,
    };
    let feed = Feed::start(request)?;
    let end = stream.run(&feed, lines, &stop, start)?;
    stream.end(end, &feed)
}

/// A message arrives for each signal that ends the stream.
fn stop_requests() -> std::io::Result<Receiver<()>> {
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    if !hangup_is_ignored() {
        signals.add_signal(SIGHUP)?;
    }
    let (sender, stop) = bounded(1);
    std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        for _ in signals.forever() {
            // A request that waits is enough.
            sender.try_send(()).unwrap_or_default();
        }
    })?;
    Ok(stop)
}

/// State of a stream. It does not grow with the length of the video.
struct Stream<'a> {
    embedder: Embedder<'a>,
    narrator: Narrator,
    /// Step of the checkpoint.
    step: u64,
    query: String,
    /// Side of the model's frames in pixels.
    side: usize,
    /// Number of frames of a window.
    frames: usize,
    /// Pixels of the newest window, or `None` if no pictures are wanted.
    newest: Option<Vec<u8>>,
    counts: Counts,
    to_embedding: Lags,
    to_text: Lags,
}

struct Counts {
    opened: Instant,
    /// End of the last window.
    video_s: f64,
    windows: u64,
    texts: u64,
}

impl Stream<'_> {
    /// Embeds one black window and decodes one text, so that the first window does not wait for the
    /// kernels of a single window. Those of larger batches may still be compiled later.
    fn prepare(&self) -> anyhow::Result<()> {
        let sample = sample(vec![0; self.frames * self.side * self.side * 3]);
        let embeddings = self.embedder.samples(&[(&sample, &*self.query)])?;
        self.embedder.captions(&embeddings)?;
        Ok(())
    }

    /// Handles what comes until the end. Returns why the stream has ended.
    fn run(
        &mut self,
        feed: &Feed,
        mut lines: Receiver<Line>,
        stop: &Receiver<()>,
        start: StreamStart,
    ) -> anyhow::Result<StreamEnd> {
        let mut start = Some(start);
        loop {
            let fed = select! {
                recv(stop) -> _ => return Ok(StreamEnd::Stopped),
                recv(lines) -> line => {
                    match line {
                        Ok(line) => self.ask(line)?,
                        Err(_) => lines = never(),
                    }
                    continue;
                }
                recv(feed.received) -> fed => fed.context("the thread that reads the video is gone")?,
            };
            let ended = match fed {
                Fed::Opened(codec, began) => {
                    self.counts.opened = began;
                    if let Some(start) = start.take() {
                        emit(&StreamEvent::Opened(StreamStart {
                            codec: codec.to_owned(),
                            ..start
                        }))?;
                    }
                    None
                }
                Fed::Window(first) => {
                    let (windows, ended) = waiting(first, &feed.received);
                    self.describe(windows)?;
                    ended
                }
                Fed::Ended(error) => Some(error),
            };
            if let Some(error) = ended {
                return Ok(error.map_or(StreamEnd::Finished, |error| StreamEnd::Failed { error }));
            }
        }
    }

    /// Makes a line of standard input the query of the windows that follow.
    fn ask(&mut self, line: Line) -> anyhow::Result<()> {
        match self.query_of(&line) {
            Ok(query) => {
                self.tell_rest()?;
                query.clone_into(&mut self.query);
                emit(&StreamEvent::Query { at_s: self.counts.video_s, query: query.to_owned() })
            }
            Err(why) => {
                let why = format!("{why}; the query stays `{}`", self.query);
                emit(&StreamEvent::Refused { why })
            }
        }
    }

    /// Query that a line is, or why it is not one.
    fn query_of<'l>(&self, line: &'l Line) -> Result<&'l str, String> {
        let query = match line {
            Line::Text(text) => text.trim(),
            Line::TooLong => {
                return Err(format!("a line of more than {LONGEST} bytes is not a query"));
            }
        };
        if query.is_empty() {
            return Err("an empty line is not a query".to_owned());
        }
        self.embedder.check_query(query).map_err(|error| format!("{error:#}"))?;
        Ok(query)
    }

    /// Embeds windows, and tells the segments that are due.
    fn describe(&mut self, windows: Vec<Window>) -> anyhow::Result<()> {
        let (times, samples): (Vec<_>, Vec<_>) = windows
            .into_iter()
            .map(|Window { seconds, arrived, pixels }| ((seconds, arrived), sample(pixels)))
            .unzip();
        let asked: Vec<_> = samples.iter().map(|sample| (sample, self.query.as_str())).collect();
        let embeddings = self.embedder.samples(&asked)?;
        let embedded = Instant::now();
        for (((seconds, arrived), sample), embedding) in
            times.into_iter().zip(samples).zip(embeddings)
        {
            anyhow::ensure!(
                embedding.iter().all(|number| number.is_finite()),
                "the embedding of the window at {:.2} s is not finite with the checkpoint of step {}; \
                 choose another one with --step",
                seconds.start,
                self.step
            );
            let lag = embedded.saturating_duration_since(arrived);
            self.to_embedding.add(lag);
            self.counts.windows += 1;
            self.counts.video_s = seconds.end;
            if let Some(newest) = &mut self.newest {
                *newest = sample.frames;
            }
            let due = self.narrator.push(&seconds, arrived, &embedding);
            emit(&StreamEvent::Window {
                start_s: seconds.start,
                end_s: seconds.end,
                variance: self.narrator.variance(),
                lag_s: lag.as_secs_f64(),
            })?;
            due.map_or(Ok(()), |due| self.tell(due))?;
        }
        Ok(())
    }

    /// Decodes the text of a segment. Its picture is one of the newest window.
    fn tell(&mut self, due: Due) -> anyhow::Result<()> {
        let text = self.embedder.captions(&[due.embedding])?.pop().unwrap_or_default();
        let lag = due.begun.arrived.elapsed();
        self.to_text.add(lag);
        self.counts.texts += 1;
        let picture = self.newest.as_deref().map(|pixels| self.picture(pixels));
        emit(&StreamEvent::Caption(StreamCaption {
            start_s: due.begun.start_s,
            seen_s: self.counts.video_s,
            text,
            query: self.query.clone(),
            lag_s: lag.as_secs_f64(),
            picture: picture.transpose()?,
        }))
    }

    /// Tells the segment that was not steady yet, because the query changes or the stream ends.
    fn tell_rest(&mut self) -> anyhow::Result<()> {
        self.narrator.finish().map_or(Ok(()), |due| self.tell(due))
    }

    /// Middle frame of a window as a JPEG in base64.
    fn picture(&self, pixels: &[u8]) -> anyhow::Result<String> {
        let frame = self.side * self.side * 3;
        let middle = pixels.chunks_exact(frame).nth(self.frames / 2).unwrap_or_default();
        let side = u32::try_from(self.side)?;
        let mut jpeg = Vec::new();
        JpegEncoder::new_with_quality(&mut jpeg, JPEG_QUALITY).encode(
            middle,
            side,
            side,
            ExtendedColorType::Rgb8,
        )?;
        Ok(STANDARD.encode(jpeg))
    }

    /// Tells the rest, and what was done.
    #[expect(clippy::cast_precision_loss, reason = "streams have fewer windows than 2^52")]
    fn end(mut self, end: StreamEnd, feed: &Feed) -> anyhow::Result<()> {
        self.tell_rest()?;
        let Counts { opened, video_s, windows, texts } = self.counts;
        let summary = StreamSummary {
            video_s,
            wall_s: opened.elapsed().as_secs_f64(),
            windows,
            texts,
            saving: (texts > 0).then(|| windows as f64 / texts as f64),
            dropped: feed.left_out().dropped(),
            damaged: feed.left_out().damaged(),
            to_embedding: self.to_embedding.summary(),
            to_text: self.to_text.summary(),
        };
        emit(&StreamEvent::Ended { end, summary })
    }
}

/// Takes at most [`BATCH`] queued windows, and the end of the stream if it follows them.
fn waiting(first: Window, received: &Receiver<Fed>) -> (Vec<Window>, Option<Option<String>>) {
    let mut windows = vec![first];
    while windows.len() < BATCH {
        match received.try_recv() {
            Ok(Fed::Window(window)) => windows.push(window),
            Ok(Fed::Ended(error)) => return (windows, Some(error)),
            // The video is open. A thread that is gone is noticed when the next is waited for.
            Ok(Fed::Opened(..)) | Err(TryRecvError::Empty | TryRecvError::Disconnected) => break,
        }
    }
    (windows, None)
}

/// A sample without texts.
fn sample(frames: Vec<u8>) -> LoadedSample {
    LoadedSample { key: String::new(), shard: String::new(), frames, texts: Texts::default() }
}

/// Prints an event.
fn emit(event: &StreamEvent) -> anyhow::Result<()> {
    let line = serde_json::to_string(event)?;
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}").and_then(|()| out.flush()).context("an event cannot be printed")
}
