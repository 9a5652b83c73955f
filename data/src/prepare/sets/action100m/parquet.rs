//! Reads the rows of a parquet file of Action100M as JSON objects.
//!
//! The crate `parquet` assembles the rows, without arrow. [`wanted`] refuses a schema that the
//! crate cannot assemble before a row is read.

use std::io::{self, BufReader, Read};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use bytes::Bytes;
use parquet::basic::{ConvertedType, LogicalType, Repetition, Type as Physical};
use parquet::errors::{ParquetError, Result as ParquetResult};
use parquet::file::reader::{ChunkReader, FileReader, Length};
use parquet::file::serialized_reader::SerializedFileReader;
use parquet::record::reader::{ReaderIter, TreeBuilder};
use parquet::record::{Field, Row};
use parquet::schema::types::{SchemaDescriptor, Type, TypePtr};
use serde_json::{Map, Value};

use crate::error::panic_text;
use crate::storage::StoredFile;

/// Rows of which a column is decoded at once. Each is a video, and has about a megabyte of text.
const ROWS_AT_ONCE: usize = 16;

/// Longest error text of the crate that is shown, in characters. It can hold whole values.
const LONGEST_ERROR: usize = 300;

/// An open parquet file.
pub(super) struct Table {
    reader: SerializedFileReader<Chunks>,
    columns: Arc<SchemaDescriptor>,
}

impl Table {
    /// Reads the footer, and checks that the file has the columns of the set, and those of the
    /// `texts` of a node.
    pub(super) fn open(file: StoredFile, texts: &[String]) -> Result<Self, String> {
        let length = file.length();
        let reader = guarded(|| SerializedFileReader::new(Chunks(Arc::new(file))))?;
        let rows = reader.metadata().row_groups().iter().map(|group| group.num_rows());
        // A row has a name, so it is longer than a byte. The number of parts depends on it.
        if rows.into_iter().any(|rows| u64::try_from(rows).is_ok_and(|rows| rows > length)) {
            return Err("its footer counts more rows than the file has bytes".to_owned());
        }
        let schema = reader.metadata().file_metadata().schema();
        let columns = wanted(schema, texts)?;
        Ok(Self { reader, columns: Arc::new(SchemaDescriptor::new(Arc::new(columns))) })
    }

    /// Numbers of rows and of nodes in each row group.
    pub(super) fn groups(&self) -> Vec<(usize, usize)> {
        let count = |number: i64| usize::try_from(number).unwrap_or(0);
        let groups = self.reader.metadata().row_groups().iter();
        let sizes = groups.map(|group| {
            let is_start = |path: &[String]| {
                path.first().is_some_and(|first| first == "nodes")
                    && path.last().is_some_and(|last| last == "start")
            };
            let start =
                group.columns().iter().find(|column| is_start(column.column_path().parts()));
            (count(group.num_rows()), start.map_or(0, |column| count(column.num_values())))
        });
        sizes.collect()
    }

    /// Rows `start` to `end` − 1 of a row group. The rows before them are decoded and dropped.
    pub(super) fn rows(&self, group: usize, start: usize, end: usize) -> Result<Rows, String> {
        let groups = self.groups();
        if groups.get(group).is_none_or(|(rows, _)| end > *rows) {
            return Err(format!("it has no rows {start} to {end} in row group {group}"));
        }
        let before: usize = groups[..group].iter().map(|(rows, _)| rows).sum();
        let rows = guarded(|| {
            let group = self.reader.get_row_group(group)?;
            let tree = TreeBuilder::new().with_batch_size(ROWS_AT_ONCE);
            tree.as_iter(Arc::clone(&self.columns), &*group)
        })?;
        let mut rows = Rows { rows, next: before, end: before + end };
        while rows.next < before + start {
            rows.advance()?;
        }
        Ok(rows)
    }
}

/// Number of a row in the file, counted from 0, and its columns.
type NumberedRow = (u64, Map<String, Value>);

/// Rows of a row group.
pub(super) struct Rows {
    rows: ReaderIter,
    /// Number of the next row in the file, counted from 0.
    next: usize,
    end: usize,
}

impl Rows {
    /// The next row, or `None` at the end.
    pub(super) fn next_row(&mut self) -> Result<Option<NumberedRow>, String> {
        if self.next >= self.end {
            return Ok(None);
        }
        let number = u64::try_from(self.next).unwrap_or(u64::MAX);
        Ok(Some((number, object(&self.advance()?))))
    }

    fn advance(&mut self) -> Result<Row, String> {
        let number = self.next;
        let row = guarded(|| self.rows.next().transpose());
        let row = row.map_err(|error| format!("row {number}: {error}"))?;
        self.next += 1;
        row.ok_or_else(|| format!("it has no row {number}, which its footer promises"))
    }
}

/// Calls the crate. A damaged file can make it panic, which becomes an error like any other; what
/// the panic left half done is not used again, because the error ends the reading.
fn guarded<T>(read: impl FnOnce() -> ParquetResult<T>) -> Result<T, String> {
    let text = match catch_unwind(AssertUnwindSafe(read)) {
        Ok(Ok(read)) => return Ok(read),
        Ok(Err(error)) => error.to_string(),
        Err(panic) => format!("it is damaged, and its reader stopped: {}", panic_text(&*panic)),
    };
    Err(text.chars().take(LONGEST_ERROR).collect())
}

/// The schema of the columns that are read: the three of the set, without the transcript.
fn wanted(schema: &Type, texts: &[String]) -> Result<Type, String> {
    let mut fields = Vec::new();
    for name in ["video_uid", "metadata", "nodes"] {
        let field = schema.get_fields().iter().find(|field| field.name() == name);
        match field {
            Some(field) => {
                let field =
                    if name == "metadata" { without(field, "transcript")? } else { field.clone() };
                readable(&field, name)?;
                fields.push(field);
            }
            None if name == "metadata" => {}
            None => return Err(format!("it has no column `{name}`")),
        }
    }
    let nodes = &fields[fields.len() - 1];
    let Some(node) = element(nodes).filter(|node| node.is_group()) else {
        return Err("the column `nodes` is not a list of structs".to_owned());
    };
    expect(&fields[0], "video_uid", Kind::Text)?;
    for (name, kind) in [("level", Kind::Whole), ("start", Kind::Number), ("end", Kind::Number)] {
        expect(inner(node, name, name)?, name, kind)?;
    }
    for name in texts {
        let mut field = node;
        for part in name.split('.') {
            field = inner(field, part, name)?;
        }
        expect(field, name, Kind::Text)?;
    }
    let schema = Type::group_type_builder("schema").with_fields(fields).build();
    schema.map_err(|error| error.to_string())
}

#[derive(Clone, Copy)]
enum Kind {
    Text,
    Whole,
    Number,
}

fn inner<'a>(group: &'a TypePtr, name: &str, whole: &str) -> Result<&'a TypePtr, String> {
    let fields = if group.is_group() { group.get_fields() } else { &[] };
    let found = fields.iter().find(|field| field.name() == name);
    found.ok_or_else(|| format!("its nodes have no column `{whole}`"))
}

fn expect(field: &Type, name: &str, kind: Kind) -> Result<(), String> {
    let what = match kind {
        Kind::Text => "a string",
        Kind::Whole => "an integer",
        Kind::Number => "a number",
    };
    let right = field.is_primitive()
        && match (kind, field.get_physical_type()) {
            // A column that only holds null is an integer of logical type `Unknown`.
            _ if field.get_basic_info().logical_type_ref() == Some(&LogicalType::Unknown) => true,
            (Kind::Text, Physical::BYTE_ARRAY)
            | (Kind::Whole | Kind::Number, Physical::INT32 | Physical::INT64)
            | (Kind::Number, Physical::FLOAT | Physical::DOUBLE) => true,
            _ => false,
        };
    if right { Ok(()) } else { Err(format!("the column `{name}` is not {what}")) }
}

/// The type of the elements of a list of three levels, as Parquet's specification defines it.
fn element(list: &Type) -> Option<&TypePtr> {
    if list.is_primitive() || list.get_basic_info().converted_type() != ConvertedType::LIST {
        return None;
    }
    let [repeated] = list.get_fields() else { return None };
    if repeated.is_primitive() || repeated.get_basic_info().repetition() != Repetition::REPEATED {
        return None;
    }
    match repeated.get_fields() {
        [element] => Some(element),
        _ => None,
    }
}

/// Checks that all values of a column can be assembled and become JSON.
fn readable(field: &Type, path: &str) -> Result<(), String> {
    let refused = || Err(format!("the column `{path}` has a type that cannot be read: {field:?}"));
    let info = field.get_basic_info();
    if !info.has_repetition() || info.repetition() == Repetition::REPEATED {
        return refused();
    }
    if field.is_primitive() {
        let plain = match field.get_physical_type() {
            Physical::BOOLEAN | Physical::FLOAT | Physical::DOUBLE => true,
            Physical::INT32 | Physical::INT64 => matches!(
                info.converted_type(),
                ConvertedType::NONE
                    | ConvertedType::INT_8
                    | ConvertedType::INT_16
                    | ConvertedType::INT_32
                    | ConvertedType::INT_64
                    | ConvertedType::UINT_8
                    | ConvertedType::UINT_16
                    | ConvertedType::UINT_32
                    | ConvertedType::UINT_64
            ),
            Physical::BYTE_ARRAY => info.converted_type() == ConvertedType::UTF8,
            Physical::INT96 | Physical::FIXED_LEN_BYTE_ARRAY => false,
        };
        return if plain { Ok(()) } else { refused() };
    }
    match info.converted_type() {
        ConvertedType::LIST => match element(field) {
            Some(element) => readable(element, &format!("{path}.{}", element.name())),
            None => refused(),
        },
        ConvertedType::NONE if !field.get_fields().is_empty() => {
            let inner = |field: &TypePtr| readable(field, &format!("{path}.{}", field.name()));
            field.get_fields().iter().try_for_each(inner)
        }
        _ => refused(),
    }
}

/// The struct without one of its columns.
fn without(group: &TypePtr, name: &str) -> Result<TypePtr, String> {
    if !group.is_group() {
        return Err(format!("the column `{}` is not a struct", group.name()));
    }
    let info = group.get_basic_info();
    let kept = group.get_fields().iter().filter(|field| field.name() != name).cloned().collect();
    let mut builder = Type::group_type_builder(group.name()).with_fields(kept);
    if info.has_repetition() {
        builder = builder.with_repetition(info.repetition());
    }
    builder.build().map(Arc::new).map_err(|error| error.to_string())
}

fn object(row: &Row) -> Map<String, Value> {
    row.get_column_iter().map(|(name, field)| (name.clone(), value(field))).collect()
}

/// The JSON value of a field of a type that [`readable`] accepts. A number that is not finite
/// becomes `null`.
fn value(field: &Field) -> Value {
    match field {
        Field::Bool(truth) => Value::from(*truth),
        Field::Byte(number) => Value::from(*number),
        Field::Short(number) => Value::from(*number),
        Field::Int(number) => Value::from(*number),
        Field::Long(number) => Value::from(*number),
        Field::UByte(number) => Value::from(*number),
        Field::UShort(number) => Value::from(*number),
        Field::UInt(number) => Value::from(*number),
        Field::ULong(number) => Value::from(*number),
        Field::Float(number) => Value::from(*number),
        Field::Double(number) => Value::from(*number),
        Field::Str(text) => Value::from(&**text),
        Field::Group(row) => Value::Object(object(row)),
        Field::ListInternal(list) => list.elements().iter().map(value).collect(),
        _ => Value::Null,
    }
}

/// A file as the crate reads it.
struct Chunks(Arc<StoredFile>);

impl Length for Chunks {
    fn len(&self) -> u64 {
        self.0.length()
    }
}

impl ChunkReader for Chunks {
    type T = BufReader<Cursor>;

    fn get_read(&self, start: u64) -> ParquetResult<Self::T> {
        Ok(BufReader::new(Cursor { file: Arc::clone(&self.0), position: start }))
    }

    fn get_bytes(&self, start: u64, length: usize) -> ParquetResult<Bytes> {
        let end = u64::try_from(length).ok().and_then(|length| start.checked_add(length));
        if end.is_none_or(|end| end > self.0.length()) {
            let text = format!(
                "{length} bytes at {start} are needed, but the file has {}; it was cut, so fetch \
                 it again",
                self.0.length()
            );
            return Err(ParquetError::EOF(text));
        }
        let mut bytes = vec![0; length];
        self.0.read_exact_at(&mut bytes, start)?;
        Ok(bytes.into())
    }
}

/// Reads a file from a position on.
struct Cursor {
    file: Arc<StoredFile>,
    position: u64,
}

impl Read for Cursor {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.file.length().saturating_sub(self.position);
        let count = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        self.file.read_exact_at(&mut buffer[..count], self.position)?;
        self.position += u64::try_from(count).unwrap_or(0);
        Ok(count)
    }
}
