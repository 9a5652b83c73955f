//! CLIP's vision transformer, and the pixels with which CLIP was trained.
//!
//! Source: `CLIPVisionModel` of transformers. Learned positions, a cls token, a norm before the
//! first block, no rotations, no bias in the map of patches. `OpenAI`'s models have `quick_gelu`.

use vljepa_kernels::activation::Activation;
use vljepa_kernels::patch_embed::Normalisation;
use vljepa_recipes::schema::{Clip, VisionSizes};

use super::image::Form;

/// Mean and standard deviation of the pixels with which CLIP was trained.
pub(super) const NORMALISATION: Normalisation = Normalisation {
    mean: [0.481_454_66, 0.457_827_5, 0.408_210_73],
    std: [0.268_629_54, 0.261_302_6, 0.275_777_1],
};

pub(super) fn form(keys: &Clip, sizes: VisionSizes, image_size: usize) -> Form {
    Form {
        sizes,
        image_size,
        normalisation: NORMALISATION,
        layer_norm_eps: keys.layer_norm_eps,
        activation: if keys.quick_gelu { Activation::GeluQuick } else { Activation::Gelu },
        patch_bias: false,
        cls_token: true,
        first_norm: true,
        rope_theta: None,
        final_norm: keys.final_norm,
        pool: keys.pool,
    }
}
