//! Files of rates, from which plans compute time.

use std::path::Path;
use std::sync::LazyLock;

use super::{LoadError, Loader, read_text};
use crate::check::Problem;
use crate::plan::Rates;
use crate::read;

const H200: &str = include_str!("../../rates/h200.yaml");

static OF_H200: LazyLock<Rates> = LazyLock::new(|| {
    let text = H200.to_owned();
    of_text("recipes/rates/h200.yaml".to_owned(), text).expect("the file is a part of this program")
});

impl Rates {
    /// Rates of a cluster of H200.
    #[must_use]
    pub fn h200() -> &'static Self {
        &OF_H200
    }

    /// Writes the rates as YAML, in the form of recipes/rates/h200.yaml.
    ///
    /// # Errors
    ///
    /// Fails if a value cannot be written as YAML.
    pub fn to_yaml(&self) -> Result<String, LoadError> {
        serde_saphyr::to_string(self)
            .map_err(|error| LoadError::Resolve { reason: error.to_string() })
    }
}

/// Loads and checks a file of rates.
///
/// # Errors
///
/// Returns the first mistake of syntax, key or type, or all problems of the values.
pub fn load_rates(path: &Path) -> Result<Rates, LoadError> {
    of_text(path.display().to_string(), read_text(path)?)
}

/// Reads a table of rates from its text, as [`load_rates`] does. Errors call it `name`.
///
/// # Errors
///
/// As for [`load_rates`].
pub fn load_rates_text(name: &str, text: &str) -> Result<Rates, LoadError> {
    of_text(name.to_owned(), text.to_owned())
}

fn of_text(name: String, text: String) -> Result<Rates, LoadError> {
    let mut loader = Loader::default();
    let index = loader.add(name, text);
    let root = loader.parse(index)?;
    let rates: Rates = read::read(&root).map_err(|fault| loader.fault(fault))?;
    let help = "recipes/rates/h200.yaml is an example of each key".to_owned();
    let problem = |(key, what)| Problem { key, what, help: help.clone() };
    let problems: Vec<Problem> = rates.problems().into_iter().map(problem).collect();
    if problems.is_empty() { Ok(rates) } else { Err(loader.problems(&root, problems)) }
}
