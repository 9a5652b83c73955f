//! `vljepa-launch stream`: describes a video while it is shown.

mod camera;
mod output;
mod printer;

use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use vljepa_recipes::protocol::{Job, Speed, StreamJob, VideoSource};
use vljepa_recipes::schema::ModelKind;

use self::camera::Camera;
use self::output::Output;
use self::printer::Printer;
use super::call::{Call, absolute, signals};
use super::jobs::{note_checkpoint, path_error, with_weights};
use crate::cli::{self, StreamSpeed};
use crate::error::LaunchError;
use crate::programs::running::Running;
use crate::supervise::{Signals, StopSignal};
use crate::terminal;

/// Starts of addresses that are connected to.
const SCHEMES: [&str; 2] = ["rtsp://", "rtsps://"];

/// Paths of standard input.
const STANDARD_INPUT: [&str; 4] = ["-", "/dev/stdin", "/dev/fd/0", "/proc/self/fd/0"];

/// Signals in this time are one request to end: `timeout` sends its signal to a program and then to
/// its group.
const ONE_REQUEST: Duration = Duration::from_millis(500);

/// Prints captions as the video changes, and the summary at its end. The first signal ends the
/// stream with the summary, and a second one at once.
pub(crate) async fn stream(arguments: &cli::Stream) -> Result<u8, LaunchError> {
    let directory = with_weights(&arguments.run, arguments.checkpoint)?;
    if let Some(why) = lacks_decoder(&directory.load_recipe()?.recipe.model) {
        return Err(path_error("the run", &arguments.run, why));
    }
    let source = source(&arguments.video)?;
    printer::check_page(arguments)?;
    let (video, camera) = match source {
        Source::Video(video) => (video, None),
        Source::Camera(device) => {
            let camera = Camera::start(&device)?;
            (camera.video(), Some(camera))
        }
    };
    let mut printer = Printer::new(arguments, &video);
    let job = Job::Stream(job(arguments, video, camera.is_some()));
    let Call { programs, arguments: worker, folder, _files } = Call::new(&directory, &job)?;
    let mut requests = Requests { signals: signals()?, first: None };
    let mut running = Running::start(&programs, &worker, &folder)?;
    let output = Output::start()?;
    let read = print_all(&mut running, &mut printer, &output, &mut requests).await?;
    let (ended, printed) = tokio::select! {
        both = async { (running.end().await, output.end().await) } => both,
        error = requests.second() => return Err(error),
    };
    printer.sum_up();
    if let Some(step) = printer.step.filter(|_| !arguments.json) {
        note_checkpoint(&directory, step);
    }
    let seen = match camera {
        Some(camera) if printer.is_over() && requests.first.is_none() => camera.end().await,
        Some(_) | None => Ok(()),
    };
    // The page of a stream that failed shows what came before.
    let page = printer.write_page();
    let ended = ended.map_err(|error| requests.cause(error));
    let code = printed.and(read).and(ended).and(seen).and_then(|()| printer.code());
    match (code, page) {
        (Err(error), Err(of_page)) => {
            terminal::note(&of_page.to_string());
            Err(error)
        }
        (code, page) => page.and(code),
    }
}

/// Prints the events of a worker until its output ends. An error of the outer result is a second
/// signal, and one of the inner result an event that cannot be read, which asks the worker to end.
async fn print_all(
    running: &mut Running,
    printer: &mut Printer<'_>,
    output: &Output,
    requests: &mut Requests,
) -> Result<Result<(), LaunchError>, LaunchError> {
    let mut unprinted = None;
    loop {
        tokio::select! {
            line = running.next(), if unprinted.is_none() => {
                let Some(line) = line else { return Ok(Ok(())) };
                match printer.take(&line) {
                    Ok(text) => unprinted = text,
                    Err(error) => {
                        running.stop();
                        return Ok(Err(error));
                    }
                }
            }
            room = output.room(), if unprinted.is_some() => match (room, unprinted.take()) {
                (Some(room), Some(text)) => room.send(text),
                // Standard output is closed (`| head`) or full.
                (None, _) | (_, None) => running.stop(),
            },
            request = requests.next() => {
                request?;
                running.stop();
            }
        }
    }
}

/// Requests of the user to end.
struct Requests {
    signals: Signals,
    /// The first signal, and when it arrived.
    first: Option<(Instant, StopSignal)>,
}

impl Requests {
    /// Waits for a request. One that comes after another is an error: the stream ends at once.
    async fn next(&mut self) -> Result<(), LaunchError> {
        let signal = self.signals.next().await;
        let (first, _) = *self.first.get_or_insert_with(|| (Instant::now(), signal));
        if first.elapsed() > ONE_REQUEST {
            return Err(LaunchError::Interrupted { exit_code: signal.exit_code(false) });
        }
        Ok(())
    }

    /// Waits for a request after the first.
    async fn second(&mut self) -> LaunchError {
        loop {
            if let Err(error) = self.next().await {
                return error;
            }
        }
    }

    /// The error of a worker: a signal that it had no handler for yet is the user's first one.
    fn cause(&self, error: LaunchError) -> LaunchError {
        match (error, self.first) {
            (LaunchError::Interrupted { .. }, Some((_, signal))) => {
                LaunchError::Interrupted { exit_code: signal.exit_code(false) }
            }
            (error, _) => error,
        }
    }
}

/// Why a model cannot describe a stream, and what can.
fn lacks_decoder(model: &vljepa_recipes::schema::Model) -> Option<&'static str> {
    match model.kind {
        _ if model.decoder().is_some() => None,
        ModelKind::VlJepa | ModelKind::YDecoder | ModelKind::DualEncoder => {
            Some("has no Y-decoder that could write captions; recipes/decoder.yaml trains one")
        }
        ModelKind::Vlm => Some(
            "has a VLM, which has no embeddings to watch; recipes/decoder.yaml trains a Y-decoder",
        ),
    }
}

fn job(arguments: &cli::Stream, video: VideoSource, of_camera: bool) -> StreamJob {
    let speed = match (arguments.speed, &video) {
        (Some(StreamSpeed::Own), _) | (None, VideoSource::Address(_)) => Speed::Own,
        (None, _) if of_camera => Speed::Own,
        // A pipe waits for its reader, so that nothing has to be dropped.
        (Some(StreamSpeed::Fast), _)
        | (None, VideoSource::File(_) | VideoSource::Pipe(_) | VideoSource::StandardInput) => {
            Speed::Fast
        }
    };
    StreamJob {
        step: arguments.checkpoint.step,
        video,
        speed,
        query: arguments.query.clone(),
        window_s: arguments.window,
        stride_s: arguments.stride,
        frames: arguments.frames.map(|n| usize::try_from(n).unwrap_or(usize::MAX)),
        smoothing: arguments.smoothing,
        threshold: arguments.threshold,
        pictures: arguments.html.is_some(),
    }
}

/// What the user names.
#[derive(Debug, PartialEq, Eq)]
enum Source {
    Video(VideoSource),
    /// Device of a camera.
    Camera(PathBuf),
}

fn source(video: &str) -> Result<Source, LaunchError> {
    if STANDARD_INPUT.contains(&video) {
        return Ok(Source::Video(VideoSource::StandardInput));
    }
    let refused = |why: &str| Err(path_error("the video", Path::new(&shown(video)), why));
    if SCHEMES.iter().any(|scheme| video.starts_with(scheme)) {
        return Ok(Source::Video(VideoSource::Address(video.to_owned())));
    }
    if video.contains("://") {
        return refused(
            "is not an address of RTSP (rtsp:// or rtsps://); download it, or pipe it to `-`",
        );
    }
    let path = Path::new(video);
    match std::fs::metadata(path).map(|data| data.file_type()) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => refused("does not exist"),
        Err(error) => refused(&format!("cannot be read: {error}")),
        Ok(kind) if kind.is_file() => Ok(Source::Video(VideoSource::File(absolute(path)))),
        Ok(kind) if kind.is_fifo() => Ok(Source::Video(VideoSource::Pipe(absolute(path)))),
        Ok(kind) if kind.is_char_device() && is_camera(path) => Ok(Source::Camera(absolute(path))),
        Ok(kind) if kind.is_char_device() => refused("is a device, but not a camera (/dev/video*)"),
        Ok(_) => refused("is neither a file nor a pipe"),
    }
}

/// Whether a device, or the device that a link names, is called as Linux calls cameras.
fn is_camera(device: &Path) -> bool {
    let target = std::fs::canonicalize(device).unwrap_or_else(|_| device.to_owned());
    [device, &target].iter().any(|path| {
        path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"video"))
    })
}

/// The video as pages and messages show it: an address without user and password.
fn shown(video: &str) -> String {
    let Some((scheme, rest)) = video.split_once("://") else { return video.to_owned() };
    let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    format!("{scheme}://{host}{path}")
}

#[cfg(test)]
mod tests {
    use vljepa_recipes::protocol::VideoSource;

    use super::{Source, shown, source};

    #[test]
    fn a_video_is_a_file_a_pipe_standard_input_or_an_address() {
        let video = |name: &str| match source(name).unwrap() {
            Source::Video(video) => video,
            Source::Camera(device) => panic!("{device:?} is not a camera"),
        };
        for name in ["-", "/dev/stdin", "/dev/fd/0", "/proc/self/fd/0"] {
            assert_eq!(video(name), VideoSource::StandardInput);
        }
        let address = "rtsp://me:secret@camera/1";
        assert_eq!(video(address), VideoSource::Address(address.to_owned()));
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).display().to_string();
        std::fs::write(path("a.mp4"), b"x").unwrap();
        assert_eq!(video(&path("a.mp4")), VideoSource::File(path("a.mp4").into()));
        nix::unistd::mkfifo(&*path("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert_eq!(video(&path("pipe")), VideoSource::Pipe(path("pipe").into()));
        for (wrong, said) in [
            (path("none.mp4"), "does not exist"),
            (folder.path().display().to_string(), "neither a file nor a pipe"),
            ("https://me:secret@x/a.mp4".to_owned(), "https://x/a.mp4 is not an address of RTSP"),
            ("/dev/null".to_owned(), "is a device, but not a camera"),
        ] {
            let error = source(&wrong).unwrap_err().to_string();
            assert!(error.contains(said) && !error.contains("secret"), "{error}");
        }
    }

    #[test]
    fn a_character_device_with_the_name_of_a_camera_is_one() {
        let folder = tempfile::tempdir().unwrap();
        let device = folder.path().join("video0");
        std::os::unix::fs::symlink("/dev/null", &device).unwrap();
        assert_eq!(source(&device.display().to_string()).unwrap(), Source::Camera(device));
        let file = folder.path().join("video1");
        std::fs::write(&file, b"x").unwrap();
        let found = source(&file.display().to_string()).unwrap();
        assert_eq!(found, Source::Video(VideoSource::File(file)));
    }

    #[test]
    fn user_and_password_of_an_address_are_not_shown() {
        for (address, public) in [
            ("rtsp://me:p@ss@camera:554/a@b?c=d", "rtsp://camera:554/a@b?c=d"),
            ("rtsps://camera/1", "rtsps://camera/1"),
            ("rtsp://me@camera", "rtsp://camera"),
            ("a@b.mp4", "a@b.mp4"),
        ] {
            assert_eq!(shown(address), public);
        }
    }
}
