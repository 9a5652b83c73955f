//! Reads from logs and launcher output how a rank ended.

use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

/// Number of last lines of the launcher output that are searched.
pub(super) const MAX_LINES: usize = 30;
/// Start of what `srun` says of a process that ended by itself and not by a signal.
pub(super) const SRUN_EXIT: &str = "Exited with exit code";
/// Number of bytes at the end of a log that are read.
const TAIL_BYTES: u64 = 16 << 10;

/// The last `count` lines of a file; empty if the file cannot be read.
pub(super) fn last_lines(file: &Path, count: usize) -> Vec<String> {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = std::fs::File::open(file)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
        let mut bytes = Vec::new();
        file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<String> = text.lines().map(str::to_owned).collect();
    lines[lines.len().saturating_sub(count)..].to_vec()
}

/// Rank whose process ended first according to the output of Slurm's PMIx plugin or of `mpirun`.
/// Both kill all other ranks after that, and the ends of their connections may arrive first.
pub(super) fn first_to_end(lines: &[String]) -> Option<usize> {
    let pmix = |line: &String| {
        let (_, source) = line.split_once("Error handler invoked: ")?.1.split_once("source = [")?;
        source.split_once(']')?.0.rsplit_once(':')?.1.parse().ok()
    };
    let mpirun = || {
        let text = lines.join(" ");
        text.split_once("process rank ")?.1.split_once(" with PID ")?.0.parse().ok()
    };
    lines.iter().find_map(pmix).or_else(mpirun)
}

/// How a rank's process ended according to the output of `mpirun`.
pub(super) fn mpirun_ending(lines: &[String], rank: usize) -> Option<String> {
    // OpenMPI wraps this sentence at the width of the terminal.
    let text = lines.join(" ");
    let after = text.split(&format!("process rank {rank} with PID ")).nth(1)?;
    if after.contains("exiting improperly") {
        return Some("an exit in the middle of the run, without an error".to_owned());
    }
    let ending = after.split("exited on ").nth(1)?;
    Some(ending.split('.').next()?.trim().to_owned())
}

/// How a rank's process ended according to the output of `srun`, such as
/// `srun: error: node1: tasks 2-3: Killed`.
pub(super) fn srun_ending(lines: &[String], rank: usize) -> Option<String> {
    lines.iter().find_map(|line| {
        let (_, rest) = line.strip_prefix("srun: error: ")?.split_once(": task")?;
        let (tasks, how) = rest.trim_start_matches('s').trim().split_once(": ")?;
        let holds = |range: &str| {
            let (first, last) = range.split_once('-').unwrap_or((range, range));
            let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
            Some((first..=last).contains(&rank))
        };
        let tasks = tasks.trim_start_matches('[').trim_end_matches(']');
        tasks.split(',').any(|range| holds(range) == Some(true)).then(|| how.trim().to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::{first_to_end, last_lines, mpirun_ending, srun_ending};

    #[test]
    fn the_output_of_srun_says_how_a_rank_ended() {
        let said = [
            "srun: error: node1: tasks 2-3,5: Killed",
            "srun: error: node0: task 0: Exited with exit code 7",
        ];
        let lines = said.map(str::to_owned);
        for (rank, how) in [
            (3, Some("Killed")),
            (5, Some("Killed")),
            (0, Some("Exited with exit code 7")),
            (1, None),
            (4, None),
        ] {
            assert_eq!(srun_ending(&lines, rank).as_deref(), how, "{rank}");
        }
    }

    #[test]
    fn the_output_of_mpirun_says_how_a_rank_ended_across_lines() {
        let said = "----\nmpirun noticed that process rank 1 with PID 0 on node box\nexited on signal 9 (Killed).\n----";
        let lines: Vec<String> = said.lines().map(str::to_owned).collect();
        assert_eq!(mpirun_ending(&lines, 1).as_deref(), Some("signal 9 (Killed)"));
        assert_eq!(mpirun_ending(&lines, 0), None);
        let said =
            "mpirun has exited due to process rank 1 with PID 0 on\nnode vm exiting improperly.";
        let lines: Vec<String> = said.lines().map(str::to_owned).collect();
        assert!(mpirun_ending(&lines, 1).unwrap().starts_with("an exit in the middle"));
    }

    #[test]
    fn the_output_names_the_rank_that_ended_first() {
        let first = |said: &str| first_to_end(&said.lines().map(str::to_owned).collect::<Vec<_>>());
        let slurm = "srun: error: node1: tasks 0-3: Killed\n\
            slurmstepd-node1: error:  mpi/pmix_v4: _errhandler: node1 [1]: pmixp_client_v2.c:211: \
            Error handler invoked: status = -61, source = [slurm.pmix.3604.6:2]";
        assert_eq!(first(slurm), Some(2));
        let mpirun =
            "mpirun noticed that process rank 1 with PID 0 on node box\nexited on signal 9";
        assert_eq!(first(mpirun), Some(1));
        for other in
            ["", "srun: error: node1: tasks 0-3: Killed", "source = [a:1]", "process rank 1"]
        {
            assert_eq!(first(other), None, "{other}");
        }
    }

    #[test]
    fn the_tail_of_a_file_is_read_and_a_missing_file_is_empty() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let text: String = (0..5000).map(|i| format!("line {i}\n")).collect();
        std::fs::write(file.path(), text).unwrap();
        assert_eq!(last_lines(file.path(), 2), ["line 4998", "line 4999"]);
        assert!(last_lines(std::path::Path::new("/nowhere"), 2).is_empty());
    }
}
