//! One process per device: runs one job of a recipe.
