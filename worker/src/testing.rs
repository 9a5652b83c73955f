//! Helpers of tests.

#![expect(clippy::disallowed_methods, reason = "tests start themselves")]

use std::process::Command;

/// Environment variable that tells a test that it runs in a process of its own.
const ALONE: &str = "VLJEPA_TEST_ALONE";

/// Whether this process runs the test `name` alone. If not, runs it in a process of its own, where
/// it must pass: for tests of what belongs to a process as a whole.
pub(crate) fn is_alone(name: &str) -> bool {
    if std::env::var_os(ALONE).is_some() {
        return true;
    }
    let mut alone = Command::new(std::env::current_exe().unwrap());
    let ended = alone.args([name, "--exact", "--nocapture"]).env(ALONE, "1").output().unwrap();
    let said = [ended.stdout, ended.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(ended.status.success() && said.contains("1 passed"), "{said}");
    false
}
