//! The bash of the batch script, with stand-ins for the launcher and Slurm's commands.

#![expect(clippy::disallowed_methods, reason = "these tests start the script and wait for it")]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

/// Scripts that run at the same time.
const AT_ONCE: usize = 8;
const ROUNDS: usize = 40;

/// Has put the job into the queue again and exits within milliseconds of the TERM that Slurm then
/// sends to all processes of the batch step.
const REQUEUES: &str = "#!/bin/bash
[ \"$1\" = supervise ] || exec sleep 100
trap '' TERM
( sleep 0.0$((10 + RANDOM % 9)); kill -CONT 0; kill -TERM 0 ) &
sleep 0.0$((10 + RANDOM % 9))
exit 75
";

fn program(folder: &Path, name: &str, text: &str) {
    let path = folder.join(name);
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// The script of the golden file, with another run and launcher.
fn script(folder: &Path, launcher: &str) -> String {
    let golden = include_str!("../src/platform/slurm/golden/pretrain.sbatch");
    let line = |line: &str| match line.split_once('=') {
        Some(("run", _)) => format!("run={}", folder.display()),
        Some(("launcher", _)) => format!("launcher={}/{launcher}", folder.display()),
        _ => line.to_owned(),
    };
    golden.lines().map(line).collect::<Vec<_>>().join("\n") + "\n"
}

fn start(folder: &Path) -> Child {
    let path = std::env::var_os("PATH").unwrap();
    let mut path: Vec<_> = std::env::split_paths(&path).collect();
    path.insert(0, folder.to_owned());
    Command::new("bash")
        .arg(folder.join("job.sbatch"))
        .env("PATH", std::env::join_paths(path).unwrap())
        .env("SLURM_JOB_ID", "7")
        .env("SLURM_JOB_NUM_NODES", "2")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
        .unwrap()
}

#[test]
fn a_requeued_job_waits_for_its_end_in_whatever_instant_slurm_s_signal_comes() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    program(folder, "srun", "#!/bin/bash\nexec sleep 100\n");
    program(folder, "scontrol", "#!/bin/bash\necho \"$@\" >>\"$(dirname \"$0\")/asked\"\n");
    program(folder, "launch", REQUEUES);
    fs::write(folder.join("job.sbatch"), script(folder, "launch")).unwrap();
    for round in 0..ROUNDS {
        let mut scripts: Vec<Child> = (0..AT_ONCE).map(|_| start(folder)).collect();
        thread::park_timeout(Duration::from_millis(250));
        for script in &mut scripts {
            let ended = script.try_wait().unwrap();
            // Also kills what the script started.
            killpg(Pid::from_raw(script.id().try_into().unwrap()), Signal::SIGKILL).ok();
            script.wait().unwrap();
            assert_eq!(ended, None, "the script of round {round} left before its job was over");
        }
        let asked = fs::read_to_string(folder.join("asked")).unwrap_or_default();
        assert_eq!(asked, "", "a job that goes on keeps its right to be requeued");
    }
}
