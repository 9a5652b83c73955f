//! Rules for `init`.

use super::Problems;
use crate::schema::{Init, Recipe};

pub(super) fn check(recipe: &Recipe, found: &mut Problems) {
    let Some(init) = &recipe.init else { return };
    if init.path().as_os_str().is_empty() {
        found.add(init.key(), "is empty", "name the path, or write `init: null`");
    }
    match init {
        Init::Run(_) | Init::Export(_) => {}
        Init::Weights(_) => return,
    }
    for (key, _) in recipe.model.files() {
        // A run or an export without a Y-decoder leaves the decoder as its own file has it.
        if key.ends_with(".weights") && key != "model.y_decoder.weights" {
            let what = format!("would have no effect: `{}` brings all weights", init.key());
            found.add(key, what, "write `weights: null`, or `init: null`");
        }
    }
}
