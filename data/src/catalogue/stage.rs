//! Catalogues of the sources of a stage.

use std::collections::BTreeMap;
use std::sync::Arc;

use vljepa_recipes::Recipe;

use super::Catalogue;
use crate::error::DataError;
use crate::storage::Storage;

/// Catalogues of the sources that a stage uses, by the name of the source, and the storage that
/// their shards are read from. One rank makes them and sends them to the others with
/// [`Self::to_bytes`].
#[derive(Debug, Clone)]
pub struct Catalogues {
    storage: Storage,
    by_source: BTreeMap<String, Arc<Catalogue>>,
}

impl Catalogues {
    /// Opens the catalogues of the sources with a weight in stage number `stage`.
    ///
    /// # Errors
    /// The errors of [`Catalogue::open`], and [`DataError::Recipe`] if the mixture names a source
    /// that the recipe lacks.
    pub fn of_stage(storage: &Storage, recipe: &Recipe, stage: usize) -> Result<Self, DataError> {
        let mixture = recipe.stages.get(stage).map(|stage| &stage.mixture).into_iter().flatten();
        let mut by_source = BTreeMap::new();
        for (name, _) in mixture.filter(|(_, weight)| **weight > 0) {
            let Some(source) = recipe.data.sources.get(name) else {
                let key = format!("stages.{stage}.mixture.{name}");
                return Err(DataError::Recipe { key, reason: "is not among data.sources".into() });
            };
            let catalogue = Catalogue::open(storage, &source.shards, source.catalogue.as_deref())?;
            by_source.insert(name.clone(), Arc::new(catalogue));
        }
        Ok(Self { storage: storage.clone(), by_source })
    }

    /// Catalogue of the source `name`.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Arc<Catalogue>> {
        self.by_source.get(name)
    }

    /// Storage that the shards are read from.
    #[must_use]
    pub fn storage(&self) -> &Storage {
        &self.storage
    }

    /// [`Catalogue::lengths_hash`] of each source.
    #[must_use]
    pub fn lengths_hashes(&self) -> BTreeMap<String, String> {
        let hash = |(name, one): (&String, &Arc<Catalogue>)| (name.clone(), one.lengths_hash());
        self.by_source.iter().map(hash).collect()
    }

    /// The catalogues as bytes for [`Self::from_bytes`].
    ///
    /// # Panics
    /// Never: the paths of shards are UTF-8, as all texts that can be encoded.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let catalogues: BTreeMap<&str, &Catalogue> =
            self.by_source.iter().map(|(name, one)| (name.as_str(), &**one)).collect();
        postcard::to_stdvec(&catalogues).expect("catalogues can be encoded")
    }

    /// Catalogues that another rank has encoded.
    ///
    /// # Errors
    /// [`DataError::Ended`] if the bytes are not those of [`Self::to_bytes`].
    pub fn from_bytes(storage: &Storage, bytes: &[u8]) -> Result<Self, DataError> {
        let catalogues: BTreeMap<String, Catalogue> = postcard::from_bytes(bytes)
            .map_err(|error| DataError::Ended(format!("the catalogues did not arrive: {error}")))?;
        let by_source = catalogues.into_iter().map(|(name, one)| (name, Arc::new(one))).collect();
        Ok(Self { storage: storage.clone(), by_source })
    }
}
