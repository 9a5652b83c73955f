//! Encoders of several families in one recipe key: `family` names the keys that may stand beside
//! it.
//!
//! Each role (X-encoder, Y-encoder) is a closed enum with one struct of keys per family. Published
//! sizes are values of `size`, from which the loader fills in all keys of the family that a recipe
//! leaves out.

use std::fmt;
use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{DeserializeOwned, Deserializer, Error, MapAccess, Visitor};
use serde_json::{Map, Value};

/// A role that encoders of several families can take.
pub(crate) trait Role: Sized + Default {
    /// Values of `family`.
    type Family: DeserializeOwned + Default;

    /// Reads the other keys of a family.
    fn keys<'de, D: Deserializer<'de>>(family: Self::Family, keys: D) -> Result<Self, D::Error>;
}

/// Reads a role from a map. Without `family`, the keys belong to the default family.
///
/// If `family` is the first key, the other keys are read one after the other, so that an error
/// names its position. Otherwise they are collected first.
pub(crate) fn deserialize<'de, R: Role, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<R, D::Error> {
    deserializer.deserialize_map(RoleVisitor(PhantomData))
}

struct RoleVisitor<R>(PhantomData<R>);

impl<'de, R: Role> Visitor<'de> for RoleVisitor<R> {
    type Value = R;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a map")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<R, A::Error> {
        let Some(mut key) = map.next_key::<String>()? else { return Ok(R::default()) };
        if key == "family" {
            let family = map.next_value()?;
            return R::keys(family, MapAccessDeserializer::new(map));
        }
        let mut collected = Map::new();
        loop {
            collected.insert(key, map.next_value()?);
            let Some(next) = map.next_key()? else { break };
            key = next;
        }
        let family = match collected.remove("family") {
            Some(family) => serde_json::from_value(family).map_err(A::Error::custom)?,
            None => R::Family::default(),
        };
        R::keys(family, Value::Object(collected)).map_err(A::Error::custom)
    }
}
