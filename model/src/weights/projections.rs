//! Tensor names of the projections and the temperature, which no published model has. They are the
//! parameters' own names. Of a Y-encoder with a moving average, the projection is the average.

use serde_json::json;

use super::sizes::{Shapes, Sizes};
use super::{Order, Piece};
use crate::{Layout, ParameterId};

pub(super) fn pieces(layout: &Layout) -> Vec<Piece> {
    let own = |name: &str| name.starts_with("projections.") || name == "logit_scale";
    let parameters = layout.parameters.iter().enumerate();
    parameters
        .filter(|(_, parameter)| own(&parameter.name))
        .map(|(i, parameter)| Piece {
            name: parameter.name.clone(),
            shape: parameter.shape.clone(),
            parameter: ParameterId(i),
            start: 0,
            order: Order::Same,
            norm: None,
        })
        .collect()
}

/// Widths of the parts between which the projections lie.
pub(super) fn sizes(file: &Shapes<'_>) -> Option<Sizes> {
    let matrix = |which: &str| match *file.shape(&format!("projections.{which}.weight"))? {
        [rows, columns] => Some([rows, columns]),
        _ => None,
    };
    let [predictor, x_encoder] = matrix("vision")?;
    let [embed_dim, _] = matrix("predictor_head")?;
    let y_encoder = match matrix("y_head") {
        Some([_, y_encoder]) => json!({"hidden_size": y_encoder}),
        None => json!({"hidden_size": embed_dim, "projection": "none"}),
    };
    let text_projection = matrix("text").is_some();
    let bias = file.shape("projections.vision.bias").is_some();
    let sizes = Sizes::default()
        .other("x_encoder", json!({"hidden_size": x_encoder, "num_heads": 1}))
        .other("predictor", json!({"hidden_size": predictor, "text_projection": text_projection}))
        .other("y_encoder", y_encoder)
        .other("projection_bias", bias);
    Some(sizes.shown("embed_dim", embed_dim).other("embed_dim", embed_dim))
}
