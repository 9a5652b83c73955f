//! Catalogues of the sources of a stage.

use std::collections::BTreeMap;
use std::sync::Arc;

use vljepa_recipes::Recipe;

use super::Catalogue;
use crate::error::DataError;

/// Catalogues of the sources that a stage uses, by the name of the source. One rank makes them and
/// sends them to the others with [`Self::to_bytes`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Catalogues(BTreeMap<String, Arc<Catalogue>>);

impl Catalogues {
    /// Opens the catalogues of the sources with a weight in stage number `stage`.
    ///
    /// # Errors
    /// The errors of [`Catalogue::open`], and [`DataError::Recipe`] if the mixture names a source
    /// that the recipe lacks.
    pub fn of_stage(recipe: &Recipe, stage: usize) -> Result<Self, DataError> {
        let mixture = recipe.stages.get(stage).map(|stage| &stage.mixture).into_iter().flatten();
        let mut catalogues = BTreeMap::new();
        for (name, _) in mixture.filter(|(_, weight)| **weight > 0) {
            let Some(source) = recipe.data.sources.get(name) else {
                let key = format!("stages.{stage}.mixture.{name}");
                return Err(DataError::Recipe { key, reason: "is not among data.sources".into() });
            };
            let catalogue = Catalogue::open(&source.shards, source.catalogue.as_deref())?;
            catalogues.insert(name.clone(), Arc::new(catalogue));
        }
        Ok(Self(catalogues))
    }

    /// Catalogue of the source `name`.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Arc<Catalogue>> {
        self.0.get(name)
    }

    /// [`Catalogue::lengths_hash`] of each source.
    #[must_use]
    pub fn lengths_hashes(&self) -> BTreeMap<String, String> {
        self.0.iter().map(|(name, catalogue)| (name.clone(), catalogue.lengths_hash())).collect()
    }

    /// The catalogues as bytes for [`Self::from_bytes`].
    ///
    /// # Panics
    /// Never: the paths of shards are UTF-8, as all texts that can be encoded.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let catalogues: BTreeMap<&str, &Catalogue> =
            self.0.iter().map(|(name, catalogue)| (name.as_str(), &**catalogue)).collect();
        postcard::to_stdvec(&catalogues).expect("catalogues can be encoded")
    }

    /// Catalogues that another rank has encoded.
    ///
    /// # Errors
    /// [`DataError::Ended`] if the bytes are not those of [`Self::to_bytes`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, DataError> {
        let catalogues: BTreeMap<String, Catalogue> = postcard::from_bytes(bytes)
            .map_err(|error| DataError::Ended(format!("the catalogues did not arrive: {error}")))?;
        Ok(Self(catalogues.into_iter().map(|(name, one)| (name, Arc::new(one))).collect()))
    }
}
