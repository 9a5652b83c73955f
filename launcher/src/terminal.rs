//! Output to the terminal: results go to standard output, everything else to standard error. A
//! closed pipe (`| head`) is not an error.

use std::io::{IsTerminal, Write};

use crate::environment;

/// Prints a result to standard output.
pub(crate) fn result(text: &str) {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{text}").and_then(|()| out.flush()).ok();
}

/// Prints a message to standard error.
pub(crate) fn note(text: &str) {
    writeln!(std::io::stderr().lock(), "{text}").ok();
}

/// Whether standard error is a terminal.
pub(crate) fn is_watched() -> bool {
    std::io::stderr().is_terminal()
}

/// Whether standard output is a terminal that can move its cursor.
pub(crate) fn can_rewrite() -> bool {
    std::io::stdout().is_terminal() && !environment::has_dumb_terminal()
}

/// A number with thousands separators: `1,234,567`.
pub(crate) fn thousands(value: u64) -> String {
    let digits = value.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// A duration with suitable units: `8.4 s`, `3 min 05 s`, `2 h 07 min`, `1 d 03 h`.
pub(crate) fn duration(seconds: f64) -> String {
    let whole = std::time::Duration::try_from_secs_f64(seconds.max(0.0)).map_or(0, |d| d.as_secs());
    match whole {
        0..=59 => format!("{:.1} s", seconds.max(0.0)),
        60..=3599 => format!("{} min {:02} s", whole / 60, whole % 60),
        3600..=86_399 => format!("{} h {:02} min", whole / 3600, whole % 3600 / 60),
        _ => format!("{} d {:02} h", whole / 86_400, whole % 86_400 / 3600),
    }
}

/// Seconds of a video as its players show them: `0:12.5`, `1:02:03.0`.
pub(crate) fn clock(seconds: f64) -> String {
    let tenths = std::time::Duration::try_from_secs_f64(seconds.max(0.0))
        .map_or(0, |duration| (duration.as_millis() + 50) / 100);
    let (hours, minutes) = (tenths / 36_000, tenths / 600 % 60);
    let seconds = format!("{:02}.{}", tenths / 10 % 60, tenths % 10);
    if hours > 0 {
        format!("{hours}:{minutes:02}:{seconds}")
    } else {
        format!("{minutes}:{seconds}")
    }
}

/// Formats rows as a table with aligned columns; the first row is the header. Columns that contain
/// only numbers are aligned right.
pub(crate) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max()
    };
    let numeric = |column: usize| {
        rows.iter()
            .skip(1)
            .filter_map(|row| row.get(column))
            .all(|cell| cell == "–" || cell.replace([',', '%'], "").trim().parse::<f64>().is_ok())
    };
    let shape: Vec<(usize, bool)> =
        (0..columns).map(|column| (width(column).unwrap_or(0), numeric(column))).collect();
    let mut out = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, (width, right)) in row.iter().zip(&shape) {
            let padding = " ".repeat(width - cell.chars().count());
            line +=
                &if *right { format!("{padding}{cell}  ") } else { format!("{cell}{padding}  ") };
        }
        out += line.trim_end();
        out.push('\n');
    }
    out.truncate(out.trim_end().len());
    out
}

#[cfg(test)]
mod tests {
    use super::{clock, duration, table, thousands};

    #[test]
    fn numbers_and_durations_read_as_people_write_them() {
        assert_eq!(thousands(0), "0");
        assert_eq!(thousands(999), "999");
        assert_eq!(thousands(1_605_123_456), "1,605,123,456");
        assert_eq!(duration(-1.0), "0.0 s");
        assert_eq!(duration(59.94), "59.9 s");
        assert_eq!(duration(185.0), "3 min 05 s");
        assert_eq!(duration(97_200.0), "1 d 03 h");
        assert_eq!(duration(f64::NAN), "0.0 s");
    }

    #[test]
    fn times_of_a_video_are_those_of_a_player() {
        let texts = [0.0, 12.25, 59.97, 83.0, 3723.04, f64::NAN].map(clock);
        assert_eq!(texts, ["0:00.0", "0:12.3", "1:00.0", "1:23.0", "1:02:03.0", "0:00.0"]);
    }

    #[test]
    fn a_table_aligns_words_left_and_numbers_right() {
        let row = |a: &str, b: &str| vec![a.to_owned(), b.to_owned()];
        let text = table(&[row("name", "value"), row("a", "9.5"), row("long", "10.5")]);
        assert_eq!(text, "name  value\na       9.5\nlong   10.5");
    }
}
