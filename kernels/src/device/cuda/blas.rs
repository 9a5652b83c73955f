//! Matrix products of linear layers, as cuBLASLt computes them.

use super::Region;
use crate::compile::Element;

/// out (rows × columns) = left (rows × inner) · right (inner × columns) + bias + addend, all
/// row-major; sums in f32.
///
/// Operands and bias are bf16; the output is bf16 (activations) or f32 (gradients of weights).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Product {
    /// Rows of the output.
    pub rows: usize,
    /// Columns of the output.
    pub columns: usize,
    /// What is summed over.
    pub inner: usize,
    /// Left operand.
    pub left: Region,
    /// Whether `left` is stored (inner × rows).
    pub left_transposed: bool,
    /// Right operand.
    pub right: Region,
    /// Whether `right` is stored (columns × inner).
    pub right_transposed: bool,
    /// Added to every row: (columns).
    pub bias: Option<Region>,
    /// Where the result goes.
    pub out: Region,
    /// Its element type.
    pub out_element: Element,
    /// Added to the result: of the output's shape and element type, and often the output itself.
    pub addend: Option<Region>,
}
