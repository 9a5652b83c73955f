//! Checks that every operation makes once, before it dispatches.

use crate::{KernelError, Result};

/// `found` must equal `needed`.
pub(crate) fn shape(
    operation: &'static str,
    what: &'static str,
    found: &[usize],
    needed: &[usize],
) -> Result<()> {
    if found == needed {
        return Ok(());
    }
    let (found, needed) = (format!("{found:?}"), format!("{needed:?}"));
    Err(KernelError::Shape { operation, what, found, needed })
}

/// `found` must have `N` dimensions, which are returned.
pub(crate) fn rank<const N: usize>(
    operation: &'static str,
    what: &'static str,
    found: &[usize],
) -> Result<[usize; N]> {
    found.try_into().map_err(|_| {
        let (found, needed) = (format!("{found:?}"), format!("{N} dimensions"));
        KernelError::Shape { operation, what, found, needed }
    })
}

/// Every index must lie in 0..bound, which stands for `of`.
pub(crate) fn indices(
    operation: &'static str,
    what: &'static str,
    values: &[i32],
    bound: usize,
) -> Result<()> {
    let outside = |&v: &i32| usize::try_from(v).map_or(true, |v| v >= bound);
    match values.iter().position(outside) {
        None => Ok(()),
        Some(i) => {
            let found = format!("{} at [{i}]", values[i]);
            Err(value(operation, what, found, format!("must be from 0 to below {bound}")))
        }
    }
}

/// A kernel that numbers the vectors of `rows` rows in 32 bits, `vectors` in each row, must be able
/// to: a vector is 16 bytes wide where that divides the row, else one element. The units of the
/// last cube are numbered too.
#[cfg(feature = "cuda")]
pub(crate) fn numbered(
    operation: &'static str,
    what: &'static str,
    rows: usize,
    vectors: usize,
) -> Result<()> {
    const LARGEST: usize = u32::MAX as usize - 1024;
    let most = LARGEST / vectors.max(1);
    if rows <= most {
        return Ok(());
    }
    let needed = format!("a kernel numbers vectors in 32 bits: at most {most} rows of {vectors}");
    Err(value(operation, what, rows.to_string(), needed))
}

/// The error of a value that an operation does not support.
pub(crate) fn value(
    operation: &'static str,
    what: &'static str,
    found: impl Into<String>,
    needed: impl Into<String>,
) -> KernelError {
    KernelError::Value { operation, what, found: found.into(), needed: needed.into() }
}
