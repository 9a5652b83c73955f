//! Tables of text: values separated by commas (RFC 4180) or tabs, with or without quoting.

/// How the values of a table are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    /// Commas; a value may be quoted, with `""` for a quotation mark, and hold line ends.
    Commas,
    /// Tabs; quotation marks have no meaning.
    Tabs,
}

/// Row of a table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Row {
    /// Number of its first line, counted from 1.
    pub(super) line: usize,
    pub(super) values: Vec<String>,
}

/// Table with a header.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) header: Vec<String>,
    pub(super) rows: Vec<Row>,
}

impl Table {
    /// Parses a table whose first row names the columns. Every row has a value for each column.
    ///
    /// # Errors
    /// A message that names the line.
    pub(super) fn parse(text: &str, dialect: Dialect) -> Result<Self, String> {
        let mut rows = rows(text, dialect)?;
        if rows.is_empty() {
            return Err("it is empty, without a header".to_owned());
        }
        let header: Vec<String> =
            rows.remove(0).values.into_iter().map(|name| name.trim().to_owned()).collect();
        for Row { line, values } in &rows {
            if values.len() != header.len() {
                let (found, expected) = (values.len(), header.len());
                return Err(format!("line {line} has {found} values, the header {expected}"));
            }
        }
        Ok(Self { header, rows })
    }

    /// Index of a column.
    ///
    /// # Errors
    /// A message that lists the columns.
    pub(super) fn column(&self, name: &str) -> Result<usize, String> {
        let column = self.header.iter().position(|column| column == name);
        column.ok_or_else(|| {
            format!("it has no column `{name}`; its columns are {}", self.header.join(", "))
        })
    }

    /// Indices of columns.
    pub(super) fn columns<const N: usize>(&self, names: [&str; N]) -> Result<[usize; N], String> {
        let mut columns = [0; N];
        for (column, name) in columns.iter_mut().zip(names) {
            *column = self.column(name)?;
        }
        Ok(columns)
    }
}

/// Rows of a table that may have no header. Blank lines are left out.
///
/// # Errors
/// A message that names the line of a quotation mark that is not closed.
pub(super) fn rows(text: &str, dialect: Dialect) -> Result<Vec<Row>, String> {
    match dialect {
        Dialect::Commas => comma_rows(text),
        Dialect::Tabs => Ok(text
            .lines()
            .zip(1..)
            .filter(|(line, _)| !line.trim().is_empty())
            .map(|(text, line)| Row { line, values: text.split('\t').map(str::to_owned).collect() })
            .collect()),
    }
}

fn comma_rows(text: &str) -> Result<Vec<Row>, String> {
    let (mut rows, mut values, mut value) = (Vec::new(), Vec::new(), String::new());
    let (mut line, mut first_line) = (1, 1);
    // Line of the quotation mark that opened the value.
    let mut quoted = None;
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        line += usize::from(c == '\n');
        match (c, quoted) {
            ('"', Some(_)) if chars.next_if_eq(&'"').is_some() => value.push('"'),
            ('"', Some(_)) => quoted = None,
            (c, Some(_)) => value.push(c),
            ('"', None) if value.is_empty() => quoted = Some(line),
            (',', None) => values.push(std::mem::take(&mut value)),
            ('\r', None) if chars.peek() == Some(&'\n') => {}
            ('\n', None) => {
                values.push(std::mem::take(&mut value));
                push(&mut rows, first_line, std::mem::take(&mut values));
                first_line = line;
            }
            (c, None) => value.push(c),
        }
    }
    if let Some(line) = quoted {
        return Err(format!("the quotation mark in line {line} is not closed"));
    }
    values.push(value);
    push(&mut rows, first_line, values);
    Ok(rows)
}

/// Adds a row unless it is blank.
fn push(rows: &mut Vec<Row>, line: usize, values: Vec<String>) {
    if values.len() > 1 || values.iter().any(|value| !value.trim().is_empty()) {
        rows.push(Row { line, values });
    }
}

#[cfg(test)]
mod tests {
    use super::{Dialect, Table, rows};

    /// The expected values are those of `csv.reader` of Python 3.11.
    #[test]
    fn values_with_commas_quotation_marks_and_line_ends_are_read_as_python_reads_them() {
        let text = "a,b\r\n\"x, y\",\"he said \"\"no\"\"\"\r\n\r\n\"two\nlines\",5\" of it\n,\n";
        let rows = rows(text, Dialect::Commas).unwrap();
        let values: Vec<Vec<&str>> =
            rows.iter().map(|row| row.values.iter().map(String::as_str).collect()).collect();
        let expected =
            [["a", "b"], ["x, y", "he said \"no\""], ["two\nlines", "5\" of it"], ["", ""]];
        assert_eq!(values, expected);
        assert_eq!(rows.iter().map(|row| row.line).collect::<Vec<_>>(), [1, 2, 4, 6]);
    }

    #[test]
    fn a_table_that_is_not_whole_is_refused_with_its_line() {
        let refused = |text| Table::parse(text, Dialect::Commas).unwrap_err();
        assert!(refused("").contains("empty"));
        assert_eq!(refused("a,b\n1\n"), "line 2 has 1 values, the header 2");
        assert!(refused("a\n\"1\n2").contains("line 2 is not closed"));
        let table = Table::parse("a, b\n1,2", Dialect::Commas).unwrap();
        assert_eq!(table.columns(["b", "a"]), Ok([1, 0]));
        assert!(table.column("c").unwrap_err().ends_with("its columns are a, b"));
    }

    #[test]
    fn quotation_marks_in_a_table_with_tabs_are_text() {
        let table = Table::parse("a\tb\r\n\"x\ty\"\r\n", Dialect::Tabs).unwrap();
        assert_eq!(table.rows[0].values, ["\"x", "y\""]);
    }
}
