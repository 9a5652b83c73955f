//! Damaged inputs for everything that reads files and messages of others: no panic, no hang, no
//! unbounded memory, and no wrong result.
//!
//! Each test draws its inputs from a fixed seed, so that every run tests the same ones.
//! `VLJEPA_FUZZ_SEED` chooses another seed, and `VLJEPA_FUZZ_FACTOR` multiplies the number of
//! inputs.

mod draw;
mod media;
mod records;
mod shards;
mod texts;
mod weights;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, setrlimit};

use self::draw::Draw;
use crate::programs::text;

/// Address space that a process with damaged inputs may use, in bytes. The largest picture that is
/// decoded has 300 MB, and a decoder may hold a few copies of it.
const MEMORY: u64 = 4 << 30;

/// Time after which an input counts as one that never ends.
const LIMIT: Duration = Duration::from_secs(60);

/// Names the folder of a process that tests damaged inputs.
const FOLDER: &str = "VLJEPA_FUZZ_FOLDER";

#[expect(clippy::disallowed_methods, reason = "a person chooses seed and number of inputs")]
fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect("a number"))
}

/// Runs `check` with `count` inputs in a process of its own, which may use [`MEMORY`] and at most
/// [`LIMIT`] for each input. `test` is the full name of the calling test. `check` gets a folder for
/// its files, and returns whether the input was accepted: at least one of a hundred inputs must be,
/// and one must not.
#[expect(clippy::disallowed_methods, reason = "runs this test in a process of its own")]
fn fuzz(test: &str, count: u64, check: impl Fn(&Path, &mut Draw) -> bool) {
    let seed = variable("VLJEPA_FUZZ_SEED").unwrap_or(0);
    let count = count * variable("VLJEPA_FUZZ_FACTOR").unwrap_or(1);
    if let Some(folder) = std::env::var_os(FOLDER) {
        return check_all(Path::new(&folder), seed, count, check);
    }
    let folder = tempfile::tempdir().unwrap();
    let output = Command::new(std::env::current_exe().unwrap())
        .args([test, "--exact", "--nocapture"])
        .env(FOLDER, folder.path())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let printed = text(&output);
    let ran = printed.contains("1 passed") || !output.status.success();
    assert!(ran, "no test has the name {test}");
    let end = printed.len().saturating_sub(4000);
    let end = (end..).find(|&at| printed.is_char_boundary(at)).unwrap();
    assert!(output.status.success(), "{}: {}", output.status, &printed[end..]);
}

#[expect(clippy::print_stdout, reason = "the number of inputs, for a person")]
fn check_all(folder: &Path, seed: u64, count: u64, check: impl Fn(&Path, &mut Draw) -> bool) {
    setrlimit(Resource::RLIMIT_AS, MEMORY, MEMORY).unwrap();
    let current = &AtomicU64::new(0);
    let (started, mut accepted) = (Instant::now(), 0);
    std::thread::scope(|scope| {
        let (done, watched) = std::sync::mpsc::channel::<()>();
        scope.spawn(move || watch(current, &watched));
        for number in 0..count {
            current.store(number, Ordering::Relaxed);
            let draw = &mut Draw::new(seed, number);
            match catch_unwind(AssertUnwindSafe(|| check(folder, draw))) {
                Ok(is_accepted) => accepted += u64::from(is_accepted),
                Err(_) => panic!("input {number} of seed {seed} fails"),
            }
        }
        drop(done);
    });
    let seconds = started.elapsed().as_secs_f64();
    println!("{count} inputs of seed {seed} in {seconds:.1} s, {accepted} accepted");
    assert!((count / 100..=count - count / 100).contains(&accepted), "{accepted} of {count}");
}

/// Ends the process if the same input is current for [`LIMIT`].
#[expect(clippy::print_stdout, reason = "the reason for the end of the process")]
fn watch(current: &AtomicU64, watched: &std::sync::mpsc::Receiver<()>) {
    use std::sync::mpsc::RecvTimeoutError::Timeout;
    let (mut last, mut since) = (0, Instant::now());
    while watched.recv_timeout(Duration::from_millis(200)) == Err(Timeout) {
        let now = current.load(Ordering::Relaxed);
        if now != last {
            (last, since) = (now, Instant::now());
        }
        if since.elapsed() > LIMIT {
            println!("input {now} is still read after {} s", LIMIT.as_secs());
            std::process::abort();
        }
    }
}

#[test]
fn the_inputs_of_a_seed_are_always_the_same() {
    let bytes: Vec<u8> = (0..200).collect();
    let inputs = |seed| -> Vec<Vec<u8>> {
        (0..20).map(|number| Draw::new(seed, number).damaged(&bytes)).collect()
    };
    assert_eq!(inputs(1), inputs(1));
    assert_ne!(inputs(1), inputs(2));
    assert!(inputs(1).iter().filter(|input| **input != bytes).count() > 15);
}
