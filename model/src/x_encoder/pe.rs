//! PE-core's vision tower.
//!
//! Source: `core/vision_encoder/pe.py` in facebookresearch/perception_models. Learned positions,
//! rotations over columns and rows, a norm before the first block, no bias in the map of patches.

use vljepa_kernels::activation::Activation;
use vljepa_recipes::schema::{Pe, VisionSizes};

use super::image::{Form, HALVES};

pub(super) fn form(keys: &Pe, sizes: VisionSizes, image_size: usize) -> Form {
    Form {
        sizes,
        image_size,
        normalisation: HALVES,
        layer_norm_eps: keys.layer_norm_eps,
        activation: Activation::Gelu,
        patch_bias: false,
        cls_token: keys.cls_token,
        first_norm: true,
        rope_theta: Some(keys.rope_theta),
        final_norm: keys.final_norm,
        pool: keys.pool,
    }
}
