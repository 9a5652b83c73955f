//! Rewrites a block of lines at the end of a terminal. The earlier output of the terminal stays,
//! and the cursor is hidden only while the block is written.

use std::io::Write;

use console::{Term, measure_text_width, truncate_str};

/// Rows and columns that are assumed if the terminal does not say its size.
const DEFAULT_SIZE: (u16, u16) = (24, 80);

/// The block that was written last.
#[derive(Debug, Default)]
pub(in crate::commands) struct Screen {
    /// Widths of its lines in columns.
    drawn: Vec<usize>,
}

impl Screen {
    /// Replaces the block. Lines that do not fit the terminal are cut, unless `is_last`.
    pub(in crate::commands) fn draw(&mut self, text: &str, is_last: bool) -> std::io::Result<()> {
        let (rows, columns) = Term::stdout().size_checked().unwrap_or(DEFAULT_SIZE);
        let size = (usize::from(rows), usize::from(columns));
        let lines =
            if is_last { text.lines().map(printable).collect() } else { fitted(text, size) };
        let frame = frame(&self.drawn, &lines, size.1);
        self.drawn = lines.iter().map(|line| measure_text_width(line)).collect();
        let mut out = std::io::stdout().lock();
        out.write_all(frame.as_bytes())?;
        out.flush()
    }
}

/// A line without control characters, which could move the cursor.
fn printable(line: &str) -> String {
    line.chars().map(|letter| if letter.is_control() { ' ' } else { letter }).collect()
}

/// The lines that fit `rows` and `columns`. The cursor is in the row below them.
fn fitted(text: &str, (rows, columns): (usize, usize)) -> Vec<String> {
    let all: Vec<String> = text.lines().map(printable).collect();
    let room = rows.saturating_sub(1).max(1);
    let mut lines = all.clone();
    if all.len() > room {
        lines.truncate(room - 1);
        lines.push(format!("… {} more lines", all.len() - lines.len()));
    }
    // Some terminals begin a new row after the last column.
    let width = columns.saturating_sub(1).max(1);
    lines.iter().map(|line| truncate_str(line, width, "…").into_owned()).collect()
}

/// Output that replaces lines of the widths `drawn` by `lines`. A terminal that has become narrower
/// has broken the old lines into several rows.
fn frame(drawn: &[usize], lines: &[String], columns: usize) -> String {
    let up: usize = drawn.iter().map(|width| width.div_ceil(columns.max(1)).max(1)).sum();
    let mut frame = "\x1b[?25l\r".to_owned();
    if up > 0 {
        frame += &format!("\x1b[{up}A");
    }
    frame += "\x1b[J";
    for line in lines {
        frame += line;
        frame.push('\n');
    }
    frame + "\x1b[?25h"
}

#[cfg(test)]
mod tests {
    use super::{fitted, frame, printable};

    #[test]
    fn lines_are_cut_to_the_terminal() {
        let text = "step 12 of 100\nloss 1.5\nstate running";
        assert_eq!(fitted(text, (24, 80)).join("\n"), text);
        assert_eq!(fitted(text, (24, 10)), ["step 12 …", "loss 1.5", "state ru…"]);
        assert_eq!(fitted(text, (3, 80)), ["step 12 of 100", "… 2 more lines"]);
        // The smallest sizes leave one cut line.
        assert_eq!(fitted(text, (0, 0)), ["…"]);
        assert_eq!(printable("a\x1b[2Jb\tc"), "a [2Jb c");
    }

    #[test]
    fn the_rows_of_the_old_block_are_replaced_also_if_the_terminal_became_narrower() {
        let lines = ["new".to_owned()];
        assert_eq!(frame(&[], &lines, 80), "\x1b[?25l\r\x1b[Jnew\n\x1b[?25h");
        assert_eq!(frame(&[40, 0], &lines, 80), "\x1b[?25l\r\x1b[2A\x1b[Jnew\n\x1b[?25h");
        assert_eq!(frame(&[40, 0], &lines, 15), "\x1b[?25l\r\x1b[4A\x1b[Jnew\n\x1b[?25h");
    }
}
