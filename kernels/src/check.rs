//! Checks of arguments that every operation makes once, before it dispatches.

use crate::{KernelError, Result};

/// Checks that the shape `found` equals `needed`.
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

/// Checks that the shape `found` has `N` dimensions, and returns them.
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

/// Checks that every index is at least 0 and below `bound`.
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

/// Checks that a kernel can number its vectors in 32 bits: `rows` rows of `vectors` vectors each. A
/// vector is 16 bytes if that divides the row, otherwise one element. The limit leaves room for the
/// threads of the last block beyond the last vector.
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
    let needed = format!(
        "at most {most} rows of {vectors} vectors fit, because a kernel numbers vectors in 32 bits"
    );
    Err(value(operation, what, rows.to_string(), needed))
}

/// The error for a value that an operation does not support.
pub(crate) fn value(
    operation: &'static str,
    what: &'static str,
    found: impl Into<String>,
    needed: impl Into<String>,
) -> KernelError {
    KernelError::Value { operation, what, found: found.into(), needed: needed.into() }
}
