//! Boxes of MP4 (ISO 14496-12): a length of four bytes that counts itself, four bytes of type, and
//! the content.

/// A box: its type and its content.
pub(super) type Boxed<'a> = (&'a [u8], &'a [u8]);

/// Boxes that follow each other in `bytes`, up to the first one that is not complete. A complete
/// `mdat` box is not needed, because the table of the frames says where each of them ends.
pub(super) fn boxes(mut bytes: &[u8]) -> impl Iterator<Item = Boxed<'_>> {
    std::iter::from_fn(move || {
        let (length, kind) = (number(bytes, 0)?, bytes.get(4..8)?);
        let (header, length) = match length {
            0 => (8, u64::try_from(bytes.len()).ok()?),
            1 => (16, (u64::from(number(bytes, 8)?) << 32) | u64::from(number(bytes, 12)?)),
            length => (8, u64::from(length)),
        };
        let length = usize::try_from(length).ok()?;
        let end = if kind == b"mdat" { length.min(bytes.len()) } else { length };
        let content = bytes.get(header..end)?;
        bytes = bytes.get(length..).unwrap_or_default();
        Some((kind, content))
    })
}

/// Content of the only box of a type in `bytes`. `None` if there is no such box or another one.
pub(super) fn only<'a>(bytes: &'a [u8], kind: &[u8; 4]) -> Option<&'a [u8]> {
    let mut found = boxes(bytes).filter(|(other, _)| other == kind);
    let (_, content) = found.next()?;
    found.next().is_none().then_some(content)
}

/// Whether `bytes` hold a box of a type.
pub(super) fn has(bytes: &[u8], kind: &[u8; 4]) -> bool {
    boxes(bytes).any(|(other, _)| other == kind)
}

/// Number of four bytes at an offset.
pub(super) fn number(bytes: &[u8], offset: usize) -> Option<u32> {
    let four = bytes.get(offset..)?.first_chunk()?;
    Some(u32::from_be_bytes(*four))
}

/// Entries of `N` numbers each, after the version and the number of entries. `None` if entries are
/// missing.
pub(super) fn entries<const N: usize>(table: &[u8]) -> Option<Vec<[u32; N]>> {
    let count = usize::try_from(number(table, 4)?).ok()?;
    let length = count.checked_mul(4 * N)?;
    let entries = table.get(8..)?.get(..length)?;
    let entry = |entry: &[u8]| {
        let mut numbers = entry.as_chunks().0.iter().map(|four| u32::from_be_bytes(*four));
        std::array::from_fn(|_| numbers.next().unwrap_or(0))
    };
    Some(entries.chunks_exact(4 * N).map(entry).collect())
}

/// A box with this content.
pub(super) fn boxed(kind: &[u8; 4], parts: &[&[u8]]) -> Vec<u8> {
    let length = 8 + parts.iter().map(|part| part.len()).sum::<usize>();
    let mut all = u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes().to_vec();
    all.extend_from_slice(kind);
    parts.iter().for_each(|part| all.extend_from_slice(part));
    all
}

/// Numbers of four bytes each.
pub(super) fn numbers(numbers: &[u32]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_be_bytes()).collect()
}
