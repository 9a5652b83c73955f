//! Tests of the whole model at small sizes: gradients against finite differences, recompute,
//! layout, weights files.
#![expect(unreachable_pub, reason = "modules of one test binary share their helpers")]
#![expect(clippy::unwrap_used, reason = "a helper that panics fails its test")]

mod committed_files;
mod dual_encoder;
mod exported_folder;
mod finite_differences;
mod identify;
mod image_encoder_files;
mod layout;
mod published;
mod step;
mod text_encoder_files;
#[path = "../../../tests/tests/all/tiny.rs"]
mod tiny;
mod vjepa2_1_files;
mod weight_files;
mod y_decoder;

use vljepa_recipes::schema::{EmbeddingGemma, Model, YEncoder};

/// Returns the keys of an `EmbeddingGemma` encoder.
fn gemma(model: &mut Model) -> &mut EmbeddingGemma {
    let YEncoder::EmbeddingGemma(keys) = &mut model.y_encoder else {
        panic!("a family other than embedding_gemma")
    };
    keys
}
