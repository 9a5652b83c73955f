//! What the kernel says about the clock.

#![expect(unsafe_code, reason = "the system call has no safe wrapper")]

use nix::libc;

/// Whether a time service keeps the clock synchronised, or `None` if the kernel does not say. Works
/// in containers, which share the clock of their host. Needs no privilege, because it changes
/// nothing.
pub(super) fn is_synchronised() -> Option<bool> {
    // SAFETY: all fields are integers, of which zero is a value. No mode means that the call only
    // reads the clock.
    let mut state: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: the pointer is to a value that lives during the call.
    let answer = unsafe { libc::adjtimex(&raw mut state) };
    (answer >= 0).then_some(state.status & libc::STA_UNSYNC == 0)
}
