//! What launcher and worker both know of signals.

/// Whether this process ignores HUP, as `nohup` makes it do so that a run survives its terminal.
/// HUP is bit 0 of the kernel's mask `SigIgn`.
#[must_use]
pub fn hangup_is_ignored() -> bool {
    std::fs::read_to_string("/proc/self/status")
        .ok()
        .and_then(|status| {
            let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"))?;
            u64::from_str_radix(mask.trim(), 16).ok()
        })
        .is_some_and(|mask| mask & 1 == 1)
}
