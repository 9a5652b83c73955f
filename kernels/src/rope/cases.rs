//! Shapes of the tests of rope.

use super::{Heads, Table, inv_freq};
use crate::Device;

/// Form of a case's table.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Form {
    /// The form of V-JEPA 2 on a grid of 3 × 4 × 5.
    Axial,
    /// The form of Llama.
    Half,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Case {
    pub(crate) tokens: usize,
    pub(crate) heads: Heads,
    pub(crate) form: Form,
}

/// Positions in the table of every case.
pub(crate) const POSITIONS: usize = 60;

impl Case {
    pub(crate) fn table(self) -> Table {
        match self.form {
            Form::Axial => {
                Table::axial_tiled(Device::Host, self.heads.dim, [3, 4, 5], 10_000.0).unwrap()
            }
            Form::Half => {
                let freq = inv_freq(10_000.0, self.heads.dim);
                Table::rotate_half(Device::Host, self.heads.dim, POSITIONS, &freq).unwrap()
            }
        }
    }
}

const fn case(tokens: usize, query: usize, key_value: usize, dim: usize, form: Form) -> Case {
    Case { tokens, heads: Heads { query, key_value, dim }, form }
}

/// No token, one token, more than a block; grouped heads; widths that vectors do not divide.
pub(crate) const CASES: [Case; 7] = [
    case(0, 2, 1, 16, Form::Half),
    case(1, 3, 3, 10, Form::Axial),
    case(17, 4, 2, 16, Form::Half),
    case(64, 3, 1, 64, Form::Axial),
    case(257, 4, 4, 16, Form::Axial),
    case(130, 3, 1, 18, Form::Half),
    case(65, 2, 2, 64, Form::Half),
];
