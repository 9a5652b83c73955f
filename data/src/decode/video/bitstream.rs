//! Splits packets into the units of their codec.

/// NAL units of a packet of H.264 or HEVC, none of them empty. The units follow either start codes
/// or lengths of four bytes. A packet that fits neither gives no units.
pub(super) fn nal_units(data: &[u8]) -> Vec<&[u8]> {
    let by_length = nal_units_by_length(data);
    by_length.unwrap_or_else(|| nal_units_by_start_code(data))
}

fn nal_units_by_length(data: &[u8]) -> Option<Vec<&[u8]>> {
    let mut units = Vec::new();
    let mut rest = data;
    while !rest.is_empty() {
        let (length, after) = rest.split_first_chunk()?;
        let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
        let (unit, after) = after.split_at_checked(length)?;
        if unit.is_empty() {
            return None;
        }
        units.push(unit);
        rest = after;
    }
    Some(units)
}

fn nal_units_by_start_code(data: &[u8]) -> Vec<&[u8]> {
    if !matches!(data, [0, 0, 1, ..] | [0, 0, 0, 1, ..]) {
        return Vec::new();
    }
    let starts: Vec<usize> = start_code_positions(data).collect();
    let ends = starts.iter().skip(1).map(|next| next - 3).chain([data.len()]);
    let units = starts.iter().zip(ends).map(|(&start, end)| &data[start..end]);
    units.filter(|unit| !unit.is_empty()).collect()
}

/// Start codes of a packet of MPEG-1, 2 or 4: the byte behind 00 00 01, and all bytes after it.
pub(super) fn start_codes(data: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    start_code_positions(data)
        .filter_map(|start| data[start..].split_first().map(|(&code, after)| (code, after)))
}

/// Position after each 00 00 01.
fn start_code_positions(data: &[u8]) -> impl Iterator<Item = usize> {
    // A search for the 1 is faster than a comparison of three bytes at each position.
    let ones = data.iter().enumerate().filter(|&(_, &byte)| byte == 1);
    ones.filter(|&(i, _)| i >= 2 && data[i - 2] == 0 && data[i - 1] == 0).map(|(i, _)| i + 1)
}

/// Types and payloads of the open bitstream units (OBU) in a packet of AV1, up to the first one
/// that is damaged.
pub(super) fn obus(data: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    let mut rest = data;
    std::iter::from_fn(move || {
        let (&header, mut after) = rest.split_first()?;
        if header & 0x04 != 0 {
            after = after.get(1..)?;
        }
        let mut length = after.len();
        if header & 0x02 != 0 {
            (length, after) = leb128(after)?;
        }
        let (payload, next) = after.split_at_checked(length)?;
        rest = next;
        Some(((header >> 3) & 0x0f, payload))
    })
}

/// Number with seven bits in each byte, lowest first, and the bytes after it.
fn leb128(data: &[u8]) -> Option<(usize, &[u8])> {
    let mut value = 0;
    for (i, &byte) in data.iter().take(8).enumerate() {
        value |= usize::from(byte & 0x7f) << (7 * i);
        if byte & 0x80 == 0 {
            return Some((value, &data[i + 1..]));
        }
    }
    None
}
