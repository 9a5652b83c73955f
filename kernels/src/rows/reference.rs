//! Scatter and gather by their definition. The host also runs this code: one copy per row, as fast
//! as memory allows.

use crate::{Write, parallel};

pub(super) fn scatter(src: &[f32], index: &[i32], d: usize, out: &mut [f32]) {
    for (i, &to) in index.iter().enumerate() {
        let to = to.unsigned_abs() as usize * d;
        out[to..to + d].copy_from_slice(&src[i * d..(i + 1) * d]);
    }
}

pub(super) fn gather(src: &[f32], index: &[i32], d: usize, write: Write, out: &mut [f32]) {
    for (i, &from) in index.iter().enumerate() {
        let from = from.unsigned_abs() as usize * d;
        let (out, src) = (&mut out[i * d..(i + 1) * d], &src[from..from + d]);
        match write {
            Write::Set => out.copy_from_slice(src),
            Write::Add => parallel::add_into(out, src),
        }
    }
}
