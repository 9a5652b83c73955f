//! A camera, which the program ffmpeg reads: libavdevice would add 39 packages to the build.

use std::io::PipeReader;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::process::{Child, Command};
use tokio::task::JoinHandle;
use vljepa_recipes::protocol::VideoSource;

use crate::error::LaunchError;
use crate::process::ending;
use crate::programs;
use crate::programs::running::messages;

/// Time in which ffmpeg ends after the end of its output.
const ENDS_IN: Duration = Duration::from_secs(2);

/// A running ffmpeg that writes the pictures of a camera to a pipe. It ends with this value.
pub(super) struct Camera {
    device: PathBuf,
    child: Child,
    said: JoinHandle<String>,
    /// The pipe. The worker opens it by its number in this process.
    output: PipeReader,
}

impl Camera {
    /// Starts ffmpeg, in a group of its own: Ctrl-C asks the worker to end, not the camera.
    pub(super) fn start(device: &Path) -> Result<Self, LaunchError> {
        let ffmpeg = programs::on_path("ffmpeg")
            .ok_or_else(|| LaunchError::FfmpegMissing { device: device.to_owned() })?;
        let failed = |error: std::io::Error| LaunchError::Start {
            what: format!("starting {}", ffmpeg.display()),
            why: error.to_string(),
        };
        let (output, written) = std::io::pipe().map_err(failed)?;
        let mut child = Command::new(&ffmpeg)
            .args(["-nostdin", "-loglevel", "error", "-f", "v4l2", "-i"])
            .arg(device)
            .args(["-an", "-c:v", "libx264", "-preset", "ultrafast", "-tune", "zerolatency"])
            .args(["-f", "mpegts", "-"])
            .stdin(Stdio::null())
            .stdout(written)
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(failed)?;
        let said = tokio::spawn(messages(child.stderr.take()));
        Ok(Self { device: device.to_owned(), child, said, output })
    }

    /// The pipe as the worker opens it.
    pub(super) fn video(&self) -> VideoSource {
        let (process, number) = (std::process::id(), self.output.as_raw_fd());
        VideoSource::Pipe(format!("/proc/{process}/fd/{number}").into())
    }

    /// Why the video is over, if ffmpeg failed. Ends ffmpeg if it still runs.
    pub(super) async fn end(mut self) -> Result<(), LaunchError> {
        let Ok(Ok(status)) = tokio::time::timeout(ENDS_IN, self.child.wait()).await else {
            return Ok(());
        };
        if status.success() {
            return Ok(());
        }
        let said = self.said.await.unwrap_or_default();
        let why = if said.trim().is_empty() { ending(status) } else { said.trim().to_owned() };
        Err(LaunchError::Video {
            video: self.device.display().to_string(),
            error: format!("ffmpeg failed: {why}"),
        })
    }
}
