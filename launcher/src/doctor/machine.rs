//! Reading of the files in which Linux describes a machine. A missing file is a normal result.

use std::path::{Path, PathBuf};
use std::time::Duration;

/// Longest list of numbers that is read. More CPUs or nodes than this are a damaged file.
const MOST_NUMBERS: usize = 1 << 16;

/// Content of a file of `/proc` or `/sys`, or an empty text if it cannot be read.
pub(super) fn read(file: &Path) -> String {
    std::fs::read(file)
        .map_or_else(|_| String::new(), |bytes| String::from_utf8_lossy(&bytes).into_owned())
}

/// Entries of a folder, sorted by name; empty if the folder cannot be read.
pub(super) fn entries(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

/// Name of a file or folder.
pub(super) fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Numbers of a list such as `0-3,8`. A part that is no range is left out.
pub(super) fn ranges(list: &str) -> Vec<usize> {
    let mut numbers = Vec::new();
    for part in list.trim().split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        if let (Ok(first), Ok(last)) = (first.trim().parse::<usize>(), last.trim().parse()) {
            let room = MOST_NUMBERS.saturating_sub(numbers.len());
            numbers.extend((first..=last).take(room));
        }
    }
    numbers
}

/// Version of control groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum GroupVersion {
    One,
    Two,
}

/// Folders of the control groups below `root` that limit this process by the controller `name`,
/// such as `cpu`, from the inner to the outer ones: a limit of an outer group holds too. In a
/// container, some may not exist, because the path names a group that only the host sees.
pub(super) fn control_groups(root: &Path, name: &str) -> Vec<(GroupVersion, PathBuf)> {
    let groups = read(&root.join("proc/self/cgroup"));
    let folders = groups.lines().filter_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?);
        let (version, mount) = match controllers {
            "" => (GroupVersion::Two, root.join("sys/fs/cgroup")),
            all if all.split(',').any(|one| one == name) => {
                (GroupVersion::One, root.join("sys/fs/cgroup").join(name))
            }
            _ => return None,
        };
        let inner = Path::new(path.trim_start_matches('/'));
        let folders = inner.ancestors().map(|group| (version, mount.join(group)));
        Some(folders.collect::<Vec<_>>())
    });
    folders.flatten().collect()
}

/// Runs `probe` on a thread of its own. A disk or a driver that hangs then keeps the thread, and
/// not the program.
///
/// # Errors
/// If the probe takes longer than `limit`.
pub(super) async fn within<T: Send + 'static>(
    limit: Duration,
    probe: impl FnOnce() -> T + Send + 'static,
) -> Result<T, String> {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    std::thread::Builder::new()
        .spawn(move || {
            // Nobody waits for a probe that was too slow.
            sender.send(probe()).ok();
        })
        .map_err(|error| format!("starting a thread failed: {error}"))?;
    match tokio::time::timeout(limit, receiver).await {
        Ok(Ok(found)) => Ok(found),
        Ok(Err(_)) => Err("the thread that looks at it panicked".to_owned()),
        Err(_) => Err(format!("no answer within {} s", limit.as_secs())),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::Duration;

    use tempfile::TempDir;

    use super::{entries, name, ranges, read, within};

    /// A folder with files, given as paths and contents.
    pub(crate) fn tree(files: &[(&str, &str)]) -> TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (path, content) in files {
            let path = folder.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        }
        folder
    }

    #[test]
    fn lists_of_numbers_are_read_and_nonsense_is_none() {
        assert_eq!(ranges("0-3,8\n"), [0, 1, 2, 3, 8]);
        assert_eq!(ranges("5"), [5]);
        for none in ["", "\n", "a-b", "3-1", "-"] {
            assert!(ranges(none).is_empty(), "{none}");
        }
        assert_eq!(ranges("0-99999999999").len(), 1 << 16);
    }

    #[test]
    fn missing_files_and_folders_are_empty() {
        let folder = tree(&[("b", "2"), ("a/x", "1")]);
        let names: Vec<String> = entries(folder.path()).iter().map(|path| name(path)).collect();
        assert_eq!(names, ["a", "b"]);
        assert_eq!(read(&folder.path().join("b")), "2");
        assert_eq!(read(&folder.path().join("c")), "");
        assert!(entries(&folder.path().join("c")).is_empty());
    }

    #[tokio::test]
    async fn a_probe_that_hangs_is_given_up() {
        assert_eq!(within(Duration::from_secs(60), || 7).await, Ok(7));
        let (_held, never) = std::sync::mpsc::channel::<()>();
        let hung = within(Duration::from_millis(50), move || never.recv()).await;
        assert!(hung.unwrap_err().contains("no answer within"));
    }
}
