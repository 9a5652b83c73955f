//! The embedding table by its definition. The host also runs this code.
//!
//! The gradient uses one thread: it adds rows in the order of the tokens, so that the result
//! repeats, and takes as long as reading `d_out` once.

pub(super) fn forward(table: &[f32], ids: &[i32], scale: f32, d: usize, out: &mut [f32]) {
    for (i, &id) in ids.iter().enumerate() {
        let row = id.unsigned_abs() as usize * d;
        for (out, &value) in out[i * d..(i + 1) * d].iter_mut().zip(&table[row..row + d]) {
            *out = scale * value;
        }
    }
}

pub(super) fn backward(ids: &[i32], d_out: &[f32], scale: f32, d: usize, d_table: &mut [f32]) {
    for (i, &id) in ids.iter().enumerate() {
        let row = id.unsigned_abs() as usize * d;
        for (sum, &value) in d_table[row..row + d].iter_mut().zip(&d_out[i * d..(i + 1) * d]) {
            *sum += scale * value;
        }
    }
}
