//! `SigLIP` 2's vision tower at fixed resolution.
//!
//! Source: `SiglipVisionModel` of transformers. Learned positions, tanh GELU, no cls token, no
//! rotations, a bias in the map of patches.

use vljepa_kernels::activation::Activation;
use vljepa_recipes::schema::{Siglip2, VisionSizes};

use super::image::{Form, HALVES};

pub(super) fn form(keys: &Siglip2, sizes: VisionSizes, image_size: usize) -> Form {
    Form {
        sizes,
        image_size,
        normalisation: HALVES,
        layer_norm_eps: keys.layer_norm_eps,
        activation: Activation::GeluTanh,
        patch_bias: true,
        cls_token: false,
        first_norm: false,
        rope_theta: None,
        final_norm: true,
        pool: keys.pool,
    }
}
