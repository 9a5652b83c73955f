//! Parameters, operations and bytes of a recipe, from the schema alone.
