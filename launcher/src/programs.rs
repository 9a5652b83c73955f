//! The programs of a run: where they are, what they can do, and how a worker is called.

pub(crate) mod needs;
pub(crate) mod running;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, ChildStderr, Command};
use vljepa_recipes::protocol::{CaptionScores, Inputs, PROGRESS, SetReport, Weights};

use crate::error::LaunchError;
use crate::process::ending;
use crate::{environment, terminal};

/// Paths of the programs that a run needs.
#[derive(Debug, Clone)]
pub(crate) struct Programs {
    pub worker: PathBuf,
    /// Path of `mpirun`, or `None` if it is not on `PATH`.
    pub mpirun: Option<PathBuf>,
}

/// Build features of the worker, as `vljepa-worker --features` prints them.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Features {
    /// MPI between processes on CPUs.
    #[serde(default)]
    pub mpi: bool,
    /// Decoding of clips.
    #[serde(default)]
    pub video: bool,
    /// Computing on GPUs.
    #[serde(default)]
    pub cuda: bool,
}

impl Programs {
    /// Finds the worker beside this program or on `PATH`, and `mpirun` on `PATH`.
    pub(crate) fn find() -> Result<Self, LaunchError> {
        let beside = std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.to_owned()));
        let path = environment::search_path();
        let find = |name: &str, folders: &[PathBuf]| {
            folders.iter().map(|folder| folder.join(name)).find(|file| is_executable(file))
        };
        let mut folders: Vec<PathBuf> = beside.into_iter().collect();
        folders.extend(path.iter().cloned());
        let worker = find("vljepa-worker", &folders).ok_or_else(|| LaunchError::WorkerMissing {
            beside: folders.first().map(|folder| folder.display().to_string()).unwrap_or_default(),
        })?;
        Ok(Self { worker, mpirun: find("mpirun", &path) })
    }

    /// Asks the worker for its build features.
    pub(crate) async fn features(&self) -> Result<Features, LaunchError> {
        let broken = |why: String| LaunchError::WorkerBroken { worker: self.worker.clone(), why };
        let output = Command::new(&self.worker)
            .arg("--features")
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output();
        let output = tokio::time::timeout(Duration::from_secs(30), output)
            .await
            .map_err(|_| broken("it did not answer `--features` within 30 s".to_owned()))?
            .map_err(|error| broken(error.to_string()))?;
        if !output.status.success() {
            return Err(broken(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
        }
        serde_json::from_slice(&output.stdout)
            .map_err(|error| broken(format!("`--features` printed no valid JSON: {error}")))
    }

    /// Command line of each rank when ranks are started one by one. Ranks on GPUs are, because they
    /// need no MPI.
    pub(crate) fn rank_command(&self, arguments: &WorkerArguments) -> Vec<String> {
        let mut line = vec![self.worker.display().to_string()];
        line.extend(arguments.list());
        line
    }

    /// Command line of an attempt on CPUs: the worker, through `mpirun` if there are several ranks.
    pub(crate) fn train_command(
        &self,
        world_size: usize,
        arguments: &WorkerArguments,
    ) -> Result<Vec<String>, LaunchError> {
        let mut line = Vec::new();
        if world_size > 1 {
            let mpirun =
                self.mpirun.as_ref().ok_or(LaunchError::MpirunMissing { ranks: world_size })?;
            line.push(mpirun.display().to_string());
            // OpenMPI's single-copy path (vader) needs process_vm_readv. Containers forbid that
            // call, and the first large message would fail.
            line.extend(
                "--allow-run-as-root --oversubscribe --bind-to none --mca btl_vader_single_copy_mechanism none -np"
                    .split(' ')
                    .map(str::to_owned),
            );
            line.push(world_size.to_string());
        }
        line.push(self.worker.display().to_string());
        line.extend(arguments.list());
        Ok(line)
    }
}

/// Arguments of `vljepa-worker run`.
#[derive(Debug, Clone)]
pub(crate) struct WorkerArguments {
    pub run: PathBuf,
    /// File with the job as JSON.
    pub job: PathBuf,
    /// Address of the control plane, or `None` for a job without a supervisor.
    pub control: Option<String>,
}

impl WorkerArguments {
    /// The arguments as words of a command line.
    pub(crate) fn list(&self) -> Vec<String> {
        let text = |path: &Path| path.display().to_string();
        let mut list = vec!["run".to_owned(), "--run".to_owned(), text(&self.run)];
        list.extend(["--job".to_owned(), text(&self.job)]);
        if let Some(control) = &self.control {
            list.extend(["--control".to_owned(), control.clone()]);
        }
        list
    }
}

/// Writes a resolved recipe to a temporary file, which the worker reads.
pub(crate) fn recipe_file(yaml: &str) -> Result<tempfile::NamedTempFile, LaunchError> {
    let written = || {
        let mut file = tempfile::NamedTempFile::with_suffix(".yaml")?;
        std::io::Write::write_all(&mut file, yaml.as_bytes())?;
        Ok(file)
    };
    written().map_err(|error: std::io::Error| LaunchError::Start {
        what: "writing the recipe for the worker".to_owned(),
        why: error.to_string(),
    })
}

/// Lets the worker check the files that a resolved recipe names. Relative paths refer to the
/// working directory. Without a time limit: the first check of a large data set reads all headers.
pub(crate) async fn inputs(
    programs: &Programs,
    recipe: &Path,
    skip_missing: bool,
    resumes: bool,
) -> Result<Inputs, LaunchError> {
    let mut arguments = vec!["inputs".as_ref(), recipe.as_os_str()];
    arguments.extend(skip_missing.then_some(OsStr::new("--skip-missing")));
    arguments.extend(resumes.then_some(OsStr::new("--resumes")));
    ask(programs, &arguments).await
}

/// Lets the worker say what a file of weights holds, and copy it to the file `convert`.
pub(crate) async fn weights(
    programs: &Programs,
    file: &Path,
    convert: Option<&Path>,
) -> Result<Weights, LaunchError> {
    let mut arguments = vec!["weights".as_ref()];
    if let Some(to) = convert {
        arguments.extend(["--convert".as_ref(), to.as_os_str()]);
    }
    arguments.extend(["--".as_ref(), file.as_os_str()]);
    ask(programs, &arguments).await
}

/// Lets the worker compare captions with references.
pub(crate) async fn score(
    programs: &Programs,
    hypotheses: &Path,
    references: &[PathBuf],
) -> Result<CaptionScores, LaunchError> {
    let mut arguments = vec!["score".as_ref(), "--".as_ref(), hypotheses.as_os_str()];
    arguments.extend(references.iter().map(|path| path.as_os_str()));
    ask(programs, &arguments).await
}

/// Lets the worker say what this disk holds of the sets in files.
pub(crate) async fn sets(
    programs: &Programs,
    files: &[PathBuf],
) -> Result<Vec<SetReport>, LaunchError> {
    let mut arguments: Vec<&OsStr> = vec!["sets".as_ref(), "--".as_ref()];
    arguments.extend(files.iter().map(|file| file.as_os_str()));
    ask(programs, &arguments).await
}

/// Runs a command of the worker and reads the JSON that it prints.
async fn ask<T: DeserializeOwned>(
    programs: &Programs,
    arguments: &[&OsStr],
) -> Result<T, LaunchError> {
    let broken = |why: String| LaunchError::WorkerBroken { worker: programs.worker.clone(), why };
    let output = Command::new(&programs.worker)
        .args(arguments)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .map_err(|error| broken(error.to_string()))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let said = if said.trim().is_empty() { ending(output.status) } else { said.into_owned() };
        return Err(broken(said.trim().to_owned()));
    }
    let command = arguments[0].display();
    serde_json::from_slice(&output.stdout)
        .map_err(|error| broken(format!("`{command}` printed no valid JSON: {error}")))
}

/// Starts a worker for a job in the working directory `folder`. Its output is piped, and it is
/// killed when the returned value is dropped.
fn start(
    programs: &Programs,
    arguments: &WorkerArguments,
    folder: &Path,
    stdin: Stdio,
) -> Result<Child, LaunchError> {
    Command::new(&programs.worker)
        .args(arguments.list())
        .current_dir(folder)
        .stdin(stdin)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| LaunchError::JobFailed {
            error: format!("{}: {error}", programs.worker.display()),
        })
}

/// Runs a one-shot job and returns its standard output. `folder` is the working directory, to which
/// relative paths in the recipe refer. `progress` gets each line that says how much is done.
pub(crate) async fn one_shot(
    programs: &Programs,
    arguments: &WorkerArguments,
    folder: &Path,
    progress: impl Fn(&str),
) -> Result<Vec<u8>, LaunchError> {
    let failed = |error: String| LaunchError::JobFailed { error };
    let mut child = start(programs, arguments, folder, Stdio::null())?;
    let said = child.stderr.take();
    let (output, said) = tokio::join!(child.wait_with_output(), messages(said, progress));
    let output = output.map_err(|error| failed(error.to_string()))?;
    let stderr = String::from_utf8_lossy(&said);
    // Warnings: samples that were left out, checkpoints that were skipped.
    let (warnings, error) = if output.status.success() { (&*stderr, "") } else { last(&stderr) };
    if !warnings.trim().is_empty() {
        terminal::note(warnings.trim_end());
    }
    if output.status.success() {
        return Ok(output.stdout);
    }
    let error = error.trim_end();
    Err(failed(if error.is_empty() { ending(output.status) } else { error.to_owned() }))
}

/// What a worker says on standard error until it ends, without the lines for `progress`.
async fn messages(stderr: Option<ChildStderr>, progress: impl Fn(&str)) -> Vec<u8> {
    let mut said = Vec::new();
    let Some(stderr) = stderr else { return said };
    let (mut stderr, mut line) = (BufReader::new(stderr), Vec::new());
    // A pipe that cannot be read has ended.
    while stderr.read_until(b'\n', &mut line).await.is_ok_and(|bytes| bytes > 0) {
        match String::from_utf8_lossy(&line).strip_prefix(PROGRESS) {
            Some(text) => progress(text.trim_end()),
            None => said.extend_from_slice(&line),
        }
        line.clear();
    }
    said
}

/// Splits what a worker said into the lines before its error and the text of the error, which
/// `main` prints last. A worker that was killed has printed none: its last lines stand for it.
fn last(said: &str) -> (&str, &str) {
    let mut starts = said.rmatch_indices("error: ").map(|(start, _)| start);
    let starts_line = |start: &usize| *start == 0 || said[..*start].ends_with('\n');
    if let Some(start) = starts.find(starts_line) {
        return (&said[..start], &said[start + "error: ".len()..]);
    }
    let start = said.trim_end().rmatch_indices('\n').nth(11).map_or(0, |(at, _)| at + 1);
    ("", &said[start..])
}

/// Path of a program in a folder of `PATH`.
pub(crate) fn on_path(name: &str) -> Option<PathBuf> {
    environment::search_path()
        .iter()
        .map(|folder| folder.join(name))
        .find(|file| is_executable(file))
}

fn is_executable(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    std::fs::metadata(file)
        .is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o111 != 0)
}
