//! Tensor names of the projections and the temperature, which no published model has. They are the
//! parameters' own names.

use super::Piece;
use crate::{Group, ParameterId, VlJepa};

pub(super) fn pieces(model: &VlJepa) -> Vec<Piece> {
    let own = |group| match group {
        Group::YProjection | Group::Projections | Group::LogitScale => true,
        Group::XEncoder | Group::Predictor | Group::YEncoder => false,
    };
    let parameters = model.layout().parameters.iter().enumerate();
    parameters
        .filter(|(_, parameter)| own(parameter.group))
        .map(|(i, parameter)| Piece {
            name: parameter.name.clone(),
            shape: parameter.shape.clone(),
            parameter: ParameterId(i),
            start: 0,
        })
        .collect()
}
