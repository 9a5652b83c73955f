//! A YAML tree in which each value stores the position where it was written: the file or `--set`
//! flag, and the byte range in it. Merging keeps the positions, so an error in a recipe that
//! extends others points at the line that set the value.

use std::fmt;

use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::{Location, MessageFormatter, Spanned};

/// A recipe file or a `--set` flag.
#[derive(Debug, Clone)]
pub(crate) struct Text {
    /// Path of the file, or the whole flag.
    pub(crate) name: String,
    /// Content of the file, or `key=value` of the flag.
    pub(crate) text: String,
}

/// Byte range of a value or key in one of the loader's texts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span {
    /// Index into the loader's list of texts.
    pub(crate) text: usize,
    /// Offset of the first byte.
    pub(crate) offset: usize,
    /// Number of bytes; 0 marks a point.
    pub(crate) length: usize,
}

/// A value and its position. A map or list has the position of the key that holds it, because its
/// own first line belongs to its first child.
#[derive(Debug, Clone)]
pub(crate) struct Node {
    pub(crate) span: Span,
    pub(crate) value: Value,
}

#[derive(Debug, Clone)]
pub(crate) enum Value {
    Null,
    Bool(bool),
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Text(String),
    List(Vec<Node>),
    Map(Vec<Entry>),
}

/// A key of a map and its value.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) key: String,
    pub(crate) key_span: Span,
    pub(crate) node: Node,
}

/// A YAML syntax error and its position in bytes.
#[derive(Debug)]
pub(crate) struct SyntaxFault {
    pub(crate) message: String,
    pub(crate) offset: usize,
    pub(crate) length: usize,
    /// Key that appears twice in one map, if that is the error.
    pub(crate) duplicate: Option<String>,
}

/// Parses `text`, which starts at byte `shift` of the loader's text number `index`.
pub(crate) fn parse(text: &str, index: usize, shift: usize) -> Result<Node, SyntaxFault> {
    let options = serde_saphyr::options! {
        strict_booleans: true,
        duplicate_keys: serde_saphyr::DuplicateKeyPolicy::Error,
        reject_unsupported_tags: true,
        with_snippet: false,
    };
    match serde_saphyr::from_str_with_options::<Spanned<Raw>>(text, options) {
        Ok(raw) => Ok(Origin { index, shift }.node(raw, None)),
        Err(error) => Err(syntax_fault(&error, text)),
    }
}

fn syntax_fault(error: &serde_saphyr::Error, text: &str) -> SyntaxFault {
    let error = error.without_snippet();
    let location = error.location().unwrap_or(Location::UNKNOWN);
    let offset = byte_offset(location).min(text.len());
    let length = byte_length(location).min(text.len() - offset);
    if let serde_saphyr::Error::DuplicateMappingKey { key, .. } = error {
        let key = key.clone().unwrap_or_default();
        let message = format!("`{key}` appears twice");
        return SyntaxFault { message, offset, length, duplicate: Some(key) };
    }
    let message = serde_saphyr::UserMessageFormatter.format_message(error).into_owned();
    SyntaxFault { message, offset, length, duplicate: None }
}

fn byte_offset(location: Location) -> usize {
    let span = location.span();
    usize::try_from(span.byte_offset().unwrap_or_else(|| span.offset())).unwrap_or(0)
}

fn byte_length(location: Location) -> usize {
    let span = location.span();
    usize::try_from(span.byte_len().unwrap_or_else(|| span.len())).unwrap_or(0)
}

/// A value as serde-saphyr parses it, before its location becomes a [`Span`].
enum Raw {
    Scalar(Value),
    List(Vec<Spanned<Raw>>),
    Map(Vec<(Spanned<String>, Spanned<Raw>)>),
}

/// Converts parsed values and their locations to nodes of one of the loader's texts.
#[derive(Clone, Copy)]
struct Origin {
    index: usize,
    shift: usize,
}

impl Origin {
    fn span(self, location: Location) -> Span {
        Span {
            text: self.index,
            offset: self.shift + byte_offset(location),
            length: byte_length(location),
        }
    }

    fn node(self, raw: Spanned<Raw>, key: Option<Span>) -> Node {
        let own = self.span(raw.referenced);
        match raw.value {
            Raw::Scalar(Value::Null) => Node { span: key.unwrap_or(own), value: Value::Null },
            Raw::Scalar(value) => Node { span: own, value },
            Raw::List(items) => {
                let items = items.into_iter().map(|item| self.node(item, None)).collect();
                Node { span: key.unwrap_or(own), value: Value::List(items) }
            }
            Raw::Map(entries) => {
                let entries = entries.into_iter().map(|(key, node)| {
                    let key_span = self.span(key.referenced);
                    Entry { key: key.value, key_span, node: self.node(node, Some(key_span)) }
                });
                Node { span: key.unwrap_or(own), value: Value::Map(entries.collect()) }
            }
        }
    }
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RawVisitor)
    }
}

struct RawVisitor;

impl<'de> Visitor<'de> for RawVisitor {
    type Value = Raw;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E: de::Error>(self) -> Result<Raw, E> {
        Ok(Raw::Scalar(Value::Null))
    }

    fn visit_none<E: de::Error>(self) -> Result<Raw, E> {
        self.visit_unit()
    }

    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Raw, E> {
        Ok(Raw::Scalar(Value::Bool(value)))
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Raw, E> {
        Ok(Raw::Scalar(Value::Unsigned(value)))
    }

    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Raw, E> {
        Ok(Raw::Scalar(u64::try_from(value).map_or(Value::Signed(value), Value::Unsigned)))
    }

    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Raw, E> {
        Ok(Raw::Scalar(Value::Float(value)))
    }

    fn visit_str<E: de::Error>(self, value: &str) -> Result<Raw, E> {
        Ok(Raw::Scalar(Value::Text(value.to_owned())))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Raw, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = list.next_element()? {
            items.push(item);
        }
        Ok(Raw::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Raw, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(Raw::Map(entries))
    }
}

impl Node {
    /// Merges `over` into this node: maps are merged key by key; any other value is replaced.
    pub(crate) fn merge(&mut self, over: Node) {
        match (&mut self.value, over.value) {
            (Value::Map(base), Value::Map(entries)) => {
                self.span = over.span;
                for entry in entries {
                    match base.iter_mut().find(|there| there.key == entry.key) {
                        Some(there) => {
                            there.key_span = entry.key_span;
                            there.node.merge(entry.node);
                        }
                        None => base.push(entry),
                    }
                }
            }
            (value, replacement) => {
                *value = replacement;
                self.span = over.span;
            }
        }
    }

    /// Sets the value at a path and creates missing maps on the way. `path` holds the segments of
    /// the dotted key with their positions in the flag.
    ///
    /// # Errors
    ///
    /// Returns the position of the segment that cannot be followed, and the reason.
    pub(crate) fn set(&mut self, path: &[(&str, Span)], value: Node) -> Result<(), (Span, String)> {
        let Some(((segment, span), rest)) = path.split_first() else {
            *self = value;
            return Ok(());
        };
        if let Value::List(items) = &mut self.value {
            let count = items.len();
            let item = segment.parse::<usize>().ok().and_then(|index| items.get_mut(index));
            return match item {
                Some(item) => item.set(rest, value),
                None => Err((
                    *span,
                    format!("`{segment}` is not an index into a list of length {count}"),
                )),
            };
        }
        if matches!(self.value, Value::Null) {
            self.value = Value::Map(Vec::new());
        }
        let Value::Map(entries) = &mut self.value else {
            return Err((
                *span,
                format!("`{segment}` cannot be a key of {}", describe(&self.value)),
            ));
        };
        if let Some(entry) = entries.iter_mut().find(|entry| entry.key == *segment) {
            return entry.node.set(rest, value);
        }
        let mut node = Node { span: *span, value: Value::Null };
        node.set(rest, value)?;
        entries.push(Entry { key: (*segment).to_owned(), key_span: *span, node });
        Ok(())
    }

    /// Returns the position that set the value at a dotted path, or that of its nearest ancestor in
    /// the tree if the value is a default.
    pub(crate) fn span_of(&self, path: &str) -> Span {
        let mut node = self;
        let mut span = self.span;
        for segment in path.split('.').filter(|segment| !segment.is_empty()) {
            let next = match &node.value {
                Value::Map(entries) => {
                    entries.iter().find(|entry| entry.key == segment).map(|entry| &entry.node)
                }
                Value::List(items) => {
                    segment.parse::<usize>().ok().and_then(|index| items.get(index))
                }
                Value::Null
                | Value::Bool(_)
                | Value::Unsigned(_)
                | Value::Signed(_)
                | Value::Float(_)
                | Value::Text(_) => None,
            };
            let Some(next) = next else { return span };
            node = next;
            span = node.span;
        }
        span
    }

    /// Returns the value of a key, or `None` if this node is not a map or lacks the key.
    pub(crate) fn get(&self, key: &str) -> Option<&Self> {
        let Value::Map(entries) = &self.value else { return None };
        entries.iter().find(|entry| entry.key == key).map(|entry| &entry.node)
    }

    /// Same as [`Self::get`], for a change.
    pub(crate) fn get_mut(&mut self, key: &str) -> Option<&mut Self> {
        let Value::Map(entries) = &mut self.value else { return None };
        entries.iter_mut().find(|entry| entry.key == key).map(|entry| &mut entry.node)
    }

    /// Adds an entry to a map.
    pub(crate) fn push(&mut self, entry: Entry) {
        if let Value::Map(entries) = &mut self.value {
            entries.push(entry);
        }
    }

    /// Removes a key from a map and returns its entry.
    pub(crate) fn take(&mut self, key: &str) -> Option<Entry> {
        let Value::Map(entries) = &mut self.value else { return None };
        let index = entries.iter().position(|entry| entry.key == key)?;
        Some(entries.remove(index))
    }
}

/// Describes a value for an error message.
pub(crate) fn describe(value: &Value) -> String {
    match value {
        Value::Null => "nothing".to_owned(),
        Value::Bool(value) => format!("`{value}`"),
        Value::Unsigned(value) => format!("the number {value}"),
        Value::Signed(value) => format!("the number {value}"),
        Value::Float(value) => format!("the number {value}"),
        Value::Text(value) => format!("the string `{value}`"),
        Value::List(_) => "a list".to_owned(),
        Value::Map(_) => "keys and values".to_owned(),
    }
}
