//! The screen of a terminal after a program has written to it: enough of one for tests of programs
//! that rewrite lines.

/// Returns the rows that a terminal of `columns` shows after `output`, without blanks at their
/// ends. Knows new lines, returns, and the sequences that move the cursor up, clear what follows,
/// and hide and show the cursor.
/// Panics at another sequence, and if the cursor stays hidden.
pub(crate) fn screen(output: &str, columns: usize) -> Vec<String> {
    let mut rows: Vec<Vec<char>> = vec![Vec::new()];
    let (mut row, mut column, mut is_hidden) = (0_usize, 0_usize, false);
    let mut letters = output.chars();
    while let Some(letter) = letters.next() {
        match letter {
            '\n' => (row, column) = (row + 1, 0),
            '\r' => column = 0,
            '\x1b' => {
                assert_eq!(letters.next(), Some('['), "only control sequences");
                let mut sequence = String::new();
                while !sequence.ends_with(|letter: char| letter.is_ascii_alphabetic()) {
                    sequence.extend(letters.next());
                }
                match sequence.as_str() {
                    "J" => {
                        rows.truncate(row + 1);
                        rows[row].truncate(column);
                    }
                    "?25l" => is_hidden = true,
                    "?25h" => is_hidden = false,
                    up => {
                        let count = up.strip_suffix('A').and_then(|count| count.parse().ok());
                        let count: usize = count.unwrap_or_else(|| panic!("sequence {up}"));
                        row = row.saturating_sub(count);
                    }
                }
            }
            letter => {
                if column == columns {
                    (row, column) = (row + 1, 0);
                }
                if rows.len() <= row {
                    rows.resize(row + 1, Vec::new());
                }
                if rows[row].len() <= column {
                    rows[row].resize(column + 1, ' ');
                }
                rows[row][column] = letter;
                column += 1;
            }
        }
        if rows.len() <= row {
            rows.resize(row + 1, Vec::new());
        }
    }
    assert!(!is_hidden, "the cursor stays hidden");
    rows.iter().map(|row| row.iter().collect::<String>().trim_end().to_owned()).collect()
}
