//! Lines of standard input, which become queries.

use std::io::{BufRead, Read};

use crossbeam_channel::{Receiver, bounded};

/// Longest line in bytes. The rest of a longer one is the next line.
const LONGEST: u64 = 4096;

/// Starts to read lines. The channel closes at the end of standard input.
///
/// # Errors
/// If the thread cannot be started.
pub(super) fn read() -> std::io::Result<Receiver<String>> {
    let (sender, lines) = bounded(1);
    std::thread::Builder::new().name("queries".to_owned()).spawn(move || {
        let mut input = std::io::stdin().lock();
        while let Some(line) = next(&mut input) {
            if sender.send(line).is_err() {
                return;
            }
        }
    })?;
    Ok(lines)
}

/// Next line with its end. `None` at the end, or if nothing can be read.
fn next(input: &mut impl BufRead) -> Option<String> {
    let mut line = Vec::new();
    let bytes = input.take(LONGEST).read_until(b'\n', &mut line).ok()?;
    (bytes > 0).then(|| String::from_utf8_lossy(&line).into_owned())
}

#[cfg(test)]
mod tests {
    use super::{LONGEST, next};

    #[test]
    fn lines_are_read_in_bounded_memory_and_without_panics() {
        let mut input = &b"what?\n\n\xff\xfe\nlast"[..];
        let lines: Vec<String> = std::iter::from_fn(|| next(&mut input)).collect();
        assert_eq!(lines, ["what?\n", "\n", "\u{fffd}\u{fffd}\n", "last"]);
        let long = vec![b'a'; 10_000];
        assert_eq!(next(&mut &*long).map(|line| line.len() as u64), Some(LONGEST));
    }
}
