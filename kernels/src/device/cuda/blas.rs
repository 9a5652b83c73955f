//! Matrix products of linear layers, computed by cuBLASLt.

use super::Region;
use crate::compile::Element;

/// out (rows × columns) = left (rows × inner) · right (inner × columns) + bias + addend, all
/// row-major; sums in f32.
///
/// Operands and bias are bf16; the output is bf16 (activations) or f32 (gradients of weights).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Product {
    /// Number of rows of the output.
    pub rows: usize,
    /// Number of columns of the output.
    pub columns: usize,
    /// Length of the summed dimension.
    pub inner: usize,
    /// Left operand, bf16 (rows × inner).
    pub left: Region,
    /// Whether `left` is stored as (inner × rows).
    pub left_transposed: bool,
    /// Right operand, bf16 (inner × columns).
    pub right: Region,
    /// Whether `right` is stored as (columns × inner).
    pub right_transposed: bool,
    /// Vector added to every row, bf16 (columns). The output is then bf16 too.
    pub bias: Option<Region>,
    /// Memory of the result (rows × columns).
    pub out: Region,
    /// Element type of the output.
    pub out_element: Element,
    /// Matrix added to the result, with the shape and element type of the output; often the output
    /// itself.
    pub addend: Option<Region>,
}
