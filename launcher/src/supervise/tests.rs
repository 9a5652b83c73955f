//! The supervisor against workers that behave in chosen ways.
