//! Tensor names of the projections and the temperature, which no published model has. They are the
//! parameters' own names. Of a Y-encoder with a moving average, the projection is the average.

use super::Piece;
use crate::{ParameterId, VlJepa};

pub(super) fn pieces(model: &VlJepa) -> Vec<Piece> {
    let own = |name: &str| name.starts_with("projections.") || name == "logit_scale";
    let parameters = model.layout().parameters.iter().enumerate();
    parameters
        .filter(|(_, parameter)| own(&parameter.name))
        .map(|(i, parameter)| Piece {
            name: parameter.name.clone(),
            shape: parameter.shape.clone(),
            parameter: ParameterId(i),
            start: 0,
        })
        .collect()
}
