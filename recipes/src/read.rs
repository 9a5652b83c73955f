//! A serde deserializer over [`Node`] trees. Its errors name the key, its position, the expected
//! value and, where possible, the value that the user probably meant.

use std::fmt::{self, Display};

use serde::de::{
    self, DeserializeSeed, Deserializer, EnumAccess, Expected, IntoDeserializer, MapAccess,
    SeqAccess, Unexpected, VariantAccess, Visitor,
};

use crate::suggest::suggestion;
use crate::tree::{Entry, Node, Span, Value, describe};

pub(crate) fn read<T: de::DeserializeOwned>(root: &Node) -> Result<T, Fault> {
    T::deserialize(Reader(root)).map_err(|fault| fault.at(root.span))
}

/// An error in one value of a recipe.
#[derive(Debug)]
pub(crate) struct Fault {
    /// Keys that lead to the value, innermost first.
    path: Vec<String>,
    what: String,
    pub(crate) label: &'static str,
    pub(crate) help: Option<String>,
    pub(crate) span: Option<Span>,
}

impl Fault {
    fn new(what: String, label: &'static str, help: Option<String>) -> Self {
        Self { path: Vec::new(), what, label, help, span: None }
    }

    /// A mistake in the value at `span`.
    pub(crate) fn in_value(span: Span, what: &str, help: &str) -> Self {
        Self::new(what.to_owned(), "this value", Some(help.to_owned())).at(span)
    }

    /// Sets the position unless an inner value has set it already.
    fn at(mut self, span: Span) -> Self {
        self.span.get_or_insert(span);
        self
    }

    /// Adds the key or list index that holds the value so far.
    pub(crate) fn under(mut self, key: impl Into<String>) -> Self {
        self.path.push(key.into());
        self
    }
}

impl Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.path.is_empty() {
            let path: Vec<&str> = self.path.iter().rev().map(String::as_str).collect();
            write!(f, "{}: ", path.join("."))?;
        }
        f.write_str(&self.what)
    }
}

impl std::error::Error for Fault {}

impl de::Error for Fault {
    fn custom<T: Display>(message: T) -> Self {
        Self::new(message.to_string(), "here", None)
    }

    fn invalid_type(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        let expected = expected.to_string();
        let what =
            format!("expected {}, found {}", describe_type(&expected), describe_found(&found));
        let boolean = expected == "a boolean";
        let help = match found {
            Unexpected::Str(text) if boolean => as_boolean(text),
            Unexpected::Str(text) if is_number(&expected) && text.parse::<f64>().is_ok() => {
                Some(format!("a number has no quotes: `{text}`"))
            }
            Unexpected::Bool(_)
            | Unexpected::Unsigned(_)
            | Unexpected::Signed(_)
            | Unexpected::Float(_)
                if expected.contains("string") =>
            {
                Some("put it in quotes to make it a string".to_owned())
            }
            Unexpected::Unit => Some("give the key a value, or leave the key out".to_owned()),
            _ => None,
        };
        Self::new(what, "this value", help)
    }

    fn invalid_value(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        let expected = expected.to_string();
        let what =
            format!("expected {}, found {}", describe_type(&expected), describe_found(&found));
        Self::new(what, "this value", None)
    }

    fn invalid_length(length: usize, expected: &dyn Expected) -> Self {
        let what = format!("expected {}, found {length}", describe_type(&expected.to_string()));
        Self::new(what, "this list", None)
    }

    fn unknown_variant(variant: &str, expected: &'static [&'static str]) -> Self {
        let what = format!("`{variant}` is not one of {}", quoted(expected));
        Self::new(what, "unknown value", suggestion(variant, expected.iter().copied()))
    }

    fn unknown_field(field: &str, expected: &'static [&'static str]) -> Self {
        let help = suggestion(field, expected.iter().copied())
            .unwrap_or_else(|| format!("valid keys here are {}", quoted(expected)));
        Self::new(format!("unknown key `{field}`"), "unknown key", Some(help))
    }

    fn missing_field(field: &'static str) -> Self {
        let help = format!("add `{field}: …` here; it has no default");
        Self::new(format!("the key `{field}` is missing"), "in here", Some(help))
    }

    fn duplicate_field(field: &'static str) -> Self {
        Self::new(format!("`{field}` appears twice"), "second time", None)
    }
}

/// Translates serde's name of an expected type for people who write recipes.
fn describe_type(expected: &str) -> String {
    match expected {
        "u8" | "u16" | "u32" | "u64" | "usize" => "a whole number, 0 or more".to_owned(),
        "i8" | "i16" | "i32" | "i64" | "isize" => "a whole number".to_owned(),
        "f32" | "f64" => "a number".to_owned(),
        "a boolean" => "`true` or `false`".to_owned(),
        "a string" | "path string" => "a string".to_owned(),
        "a sequence" => "a list".to_owned(),
        "a map" => "keys and values".to_owned(),
        other if other.starts_with("struct ") => "keys and values".to_owned(),
        other => other.replace("an array of length", "a list of length"),
    }
}

fn is_number(expected: &str) -> bool {
    matches!(expected, "u8" | "u16" | "u32" | "u64" | "usize" | "f32" | "f64")
}

fn describe_found(found: &Unexpected<'_>) -> String {
    match found {
        Unexpected::Bool(value) => describe(&Value::Bool(*value)),
        Unexpected::Unsigned(value) => describe(&Value::Unsigned(*value)),
        Unexpected::Signed(value) => describe(&Value::Signed(*value)),
        Unexpected::Float(value) => describe(&Value::Float(*value)),
        Unexpected::Str(value) => describe(&Value::Text((*value).to_owned())),
        Unexpected::Unit => describe(&Value::Null),
        Unexpected::Seq => describe(&Value::List(Vec::new())),
        Unexpected::Map => describe(&Value::Map(Vec::new())),
        other => other.to_string(),
    }
}

/// Suggests `true` or `false` for a word such as `yes` or `off`.
fn as_boolean(text: &str) -> Option<String> {
    match text.to_lowercase().as_str() {
        "yes" | "on" | "y" | "true" => Some("write `true`".to_owned()),
        "no" | "off" | "n" | "false" => Some("write `false`".to_owned()),
        _ => None,
    }
}

fn quoted(names: &[&str]) -> String {
    names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

/// Deserializer of one node.
#[derive(Clone, Copy)]
struct Reader<'a>(&'a Node);

impl<'de> Reader<'de> {
    fn any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match &self.0.value {
            Value::Null => visitor.visit_unit(),
            Value::Bool(value) => visitor.visit_bool(*value),
            Value::Unsigned(value) => visitor.visit_u64(*value),
            Value::Signed(value) => visitor.visit_i64(*value),
            Value::Float(value) => visitor.visit_f64(*value),
            Value::Text(value) => visitor.visit_str(value),
            Value::List(items) => {
                let mut list = Items { items, next: 0 };
                let value = visitor.visit_seq(&mut list)?;
                if list.next < items.len() {
                    let what = format!("expected {} values, found {}", list.next, items.len());
                    return Err(Fault::new(what, "this list", None));
                }
                Ok(value)
            }
            Value::Map(entries) => visitor.visit_map(Entries { entries, next: 0 }),
        }
    }
}

impl<'de> Deserializer<'de> for Reader<'de> {
    type Error = Fault;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.any(visitor).map_err(|fault| fault.at(self.0.span))
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match &self.0.value {
            Value::Null => visitor.visit_none(),
            Value::Bool(_)
            | Value::Unsigned(_)
            | Value::Signed(_)
            | Value::Float(_)
            | Value::Text(_)
            | Value::List(_)
            | Value::Map(_) => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Fault> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        let variant = match &self.0.value {
            Value::Text(name) => Variant { name, span: self.0.span, node: None },
            Value::Map(entries) => {
                // A recipe that extends another one removes the other's choice with `null`.
                let is_chosen =
                    |entry: &&Entry| entries.len() == 1 || !matches!(entry.node.value, Value::Null);
                let chosen: Vec<_> = entries.iter().filter(is_chosen).collect();
                let [Entry { key: name, key_span, node }] = chosen[..] else {
                    let found: Vec<&str> = chosen.iter().map(|entry| entry.key.as_str()).collect();
                    let found = if found.is_empty() { "none".to_owned() } else { quoted(&found) };
                    let what = format!("expected one of {}, found {found}", quoted(variants));
                    let help = "give one of them a value, and write `null` for the others";
                    let fault = Fault::new(what, "in here", Some(help.to_owned()));
                    return Err(fault.at(self.0.span));
                };
                Variant { name, span: *key_span, node: Some(node) }
            }
            other => {
                let what =
                    format!("expected one of {}, found {}", quoted(variants), describe(other));
                return Err(Fault::new(what, "this value", None).at(self.0.span));
            }
        };
        visitor.visit_enum(variant).map_err(|fault| fault.at(self.0.span))
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct
        seq tuple tuple_struct map struct identifier ignored_any
    }
}

struct Items<'a> {
    items: &'a [Node],
    next: usize,
}

impl<'de> SeqAccess<'de> for &mut Items<'de> {
    type Error = Fault;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Fault> {
        let Some(item) = self.items.get(self.next) else { return Ok(None) };
        let index = self.next;
        self.next += 1;
        seed.deserialize(Reader(item))
            .map(Some)
            .map_err(|fault| fault.at(item.span).under(index.to_string()))
    }
}

struct Entries<'a> {
    entries: &'a [Entry],
    next: usize,
}

impl<'de> MapAccess<'de> for Entries<'de> {
    type Error = Fault;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Fault> {
        let Some(entry) = self.entries.get(self.next) else { return Ok(None) };
        let key: de::value::StrDeserializer<'_, Fault> = entry.key.as_str().into_deserializer();
        seed.deserialize(key).map(Some).map_err(|fault| fault.at(entry.key_span))
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Fault> {
        let entry = &self.entries[self.next];
        self.next += 1;
        seed.deserialize(Reader(&entry.node))
            .map_err(|fault| fault.at(entry.node.span).under(entry.key.as_str()))
    }
}

/// An enum variant, written as `name` (then `node` is `None`) or as `name: {…}`.
struct Variant<'a> {
    name: &'a str,
    span: Span,
    node: Option<&'a Node>,
}

impl<'de> EnumAccess<'de> for Variant<'de> {
    type Error = Fault;
    type Variant = Self;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Self), Fault> {
        let name: de::value::StrDeserializer<'_, Fault> = self.name.into_deserializer();
        let value = seed.deserialize(name).map_err(|fault| fault.at(self.span))?;
        Ok((value, self))
    }
}

impl<'de> Variant<'de> {
    fn content(&self, needs: &str) -> Result<Reader<'de>, Fault> {
        let what = || format!("`{}` needs {needs}", self.name);
        self.node.map(Reader).ok_or_else(|| Fault::new(what(), "here", None).at(self.span))
    }
}

impl<'de> VariantAccess<'de> for Variant<'de> {
    type Error = Fault;

    fn unit_variant(self) -> Result<(), Fault> {
        match self.node {
            None => Ok(()),
            Some(_) => {
                let what = format!("`{}` takes no keys", self.name);
                let help = format!("write `{}` alone", self.name);
                Err(Fault::new(what, "here", Some(help)).at(self.span))
            }
        }
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, Fault> {
        let reader = self.content("a value")?;
        seed.deserialize(reader).map_err(|fault| fault.under(self.name))
    }

    fn tuple_variant<V: Visitor<'de>>(self, _length: usize, visitor: V) -> Result<V::Value, Fault> {
        let reader = self.content("a list")?;
        reader.deserialize_any(visitor).map_err(|fault| fault.under(self.name))
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        let reader = self.content(&format!("keys: {}", quoted(fields)))?;
        reader.deserialize_any(visitor).map_err(|fault| fault.under(self.name))
    }
}
