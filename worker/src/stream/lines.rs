//! Lines of standard input, which become queries.

use std::io::{BufRead, Read};

use crossbeam_channel::{Receiver, bounded};
use nix::sys::signal::{SigSet, Signal};

/// Longest line in bytes. Queries of data sets are far shorter.
pub(super) const LONGEST: u64 = 4096;

/// A line without its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Line {
    Text(String),
    /// The line has more than [`LONGEST`] bytes, which were discarded.
    TooLong,
}

/// Starts to read lines. The channel closes at the end of standard input.
///
/// # Errors
/// If the thread cannot be started.
pub(super) fn read() -> std::io::Result<Receiver<Line>> {
    let (sender, lines) = bounded(1);
    std::thread::Builder::new().name("queries".to_owned()).spawn(move || {
        if !fails_in_the_background() {
            return;
        }
        let mut input = std::io::stdin().lock();
        while let Some(line) = next(&mut input) {
            if sender.send(line).is_err() {
                return;
            }
        }
    })?;
    Ok(lines)
}

/// Lets this thread's reads of a terminal fail while the job is in the background (`&`). The
/// terminal would otherwise stop all its processes by TTIN. Returns false if the thread cannot be
/// protected.
fn fails_in_the_background() -> bool {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGTTIN);
    signals.thread_block().is_ok()
}

/// Next line. `None` at the end, or if nothing can be read.
fn next(input: &mut impl BufRead) -> Option<Line> {
    let mut line = Vec::new();
    let bytes = input.take(LONGEST + 1).read_until(b'\n', &mut line).ok()?;
    if bytes == 0 {
        return None;
    }
    let is_whole = line.last() == Some(&b'\n');
    let text = line.strip_suffix(b"\n").unwrap_or(&line);
    if text.len() as u64 <= LONGEST {
        return Some(Line::Text(String::from_utf8_lossy(text).into_owned()));
    }
    if !is_whole {
        input.skip_until(b'\n').ok()?;
    }
    Some(Line::TooLong)
}

#[cfg(test)]
mod tests {
    use std::io::{BufReader, Read};

    use super::{LONGEST, Line, fails_in_the_background, next};

    fn text(text: &str) -> Line {
        Line::Text(text.to_owned())
    }

    #[test]
    fn lines_are_read_without_panics() {
        let mut input = &b"what?\n\n\xff\xfe\nlast"[..];
        let lines: Vec<Line> = std::iter::from_fn(|| next(&mut input)).collect();
        assert_eq!(lines, [text("what?"), text(""), text("\u{fffd}\u{fffd}"), text("last")]);
    }

    #[test]
    fn a_long_line_is_refused_once_and_in_bounded_memory() {
        let long = std::io::repeat(b'a').take(10_000_000).chain(&b"\nnext\n"[..]);
        let mut input = BufReader::new(long);
        let lines: Vec<Line> = std::iter::from_fn(|| next(&mut input)).collect();
        assert_eq!(lines, [Line::TooLong, text("next")]);
        // A line of the largest length is read, with and without its end.
        let largest = "a".repeat(usize::try_from(LONGEST).unwrap());
        for end in ["", "\n"] {
            assert_eq!(next(&mut format!("{largest}{end}").as_bytes()), Some(text(&largest)));
            let longer = format!("{largest}a{end}");
            assert_eq!(next(&mut longer.as_bytes()), Some(Line::TooLong));
        }
    }

    #[test]
    fn a_job_in_the_background_is_not_stopped_by_its_terminal() {
        use nix::sys::signal::{SigSet, Signal};
        let blocked = std::thread::spawn(|| {
            let before = SigSet::thread_get_mask().unwrap().contains(Signal::SIGTTIN);
            (before, fails_in_the_background(), SigSet::thread_get_mask().unwrap())
        });
        let (before, protected, mask) = blocked.join().unwrap();
        assert!(!before && protected && mask.contains(Signal::SIGTTIN));
    }
}
