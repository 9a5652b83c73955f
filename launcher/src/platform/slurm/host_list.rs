//! Slurm's compressed host lists, such as `node[0-3,7],gpu-a[01-02]b`.

/// Expands a list to its hosts, in order. Numbers keep their leading zeros.
///
/// # Errors
/// If brackets do not match, a range is invalid, or the list has more than [`MAX_HOSTS`] hosts.
pub(crate) fn expand(list: &str) -> Result<Vec<String>, String> {
    let mut hosts = Vec::new();
    for item in split(list)? {
        product(item, String::new(), &mut hosts).map_err(|what| format!("`{list}`: {what}"))?;
    }
    Ok(hosts)
}

/// Largest number of hosts of a list, more than any cluster has. A longer list is a typing error.
const MAX_HOSTS: usize = 1_000_000;

/// Splits a list at commas outside brackets.
fn split(list: &str) -> Result<Vec<&str>, String> {
    let (mut items, mut start, mut inside) = (Vec::new(), 0, false);
    for (at, byte) in list.bytes().enumerate() {
        match byte {
            b'[' if !inside => inside = true,
            b']' if inside => inside = false,
            b'[' | b']' => return Err(format!("`{list}`: brackets do not match")),
            b',' if !inside => {
                items.push(&list[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    if inside {
        return Err(format!("`{list}`: a bracket is not closed"));
    }
    items.push(&list[start..]);
    Ok(items.into_iter().map(str::trim).filter(|item| !item.is_empty()).collect())
}

/// Appends every combination of an item's ranges to `hosts`. `before` is the part that is already
/// expanded.
fn product(item: &str, before: String, hosts: &mut Vec<String>) -> Result<(), String> {
    let Some((prefix, rest)) = item.split_once('[') else {
        if hosts.len() >= MAX_HOSTS {
            return Err(format!("more than {MAX_HOSTS} hosts"));
        }
        hosts.push(before + item);
        return Ok(());
    };
    let (ranges, rest) = rest.split_once(']').ok_or("a bracket is not closed")?;
    for range in ranges.split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let number = |text: &str| {
            text.parse::<usize>().map_err(|_| format!("`{range}` is not a range of numbers"))
        };
        let (low, high) = (number(first)?, number(last)?);
        if low > high || high - low >= MAX_HOSTS {
            return Err(format!("`{range}` is not a range of numbers"));
        }
        for value in low..=high {
            let width = first.len();
            product(rest, format!("{before}{prefix}{value:0width$}"), hosts)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::expand;

    #[test]
    fn lists_are_expanded_as_slurm_means_them() {
        for (list, hosts) in [
            ("", ""),
            ("node7", "node7"),
            ("a,b", "a b"),
            ("node[0-3,7]", "node0 node1 node2 node3 node7"),
            ("gpu[08-11]", "gpu08 gpu09 gpu10 gpu11"),
            ("r[1-2]n[01,03]x,head", "r1n01x r1n03x r2n01x r2n03x head"),
        ] {
            assert_eq!(expand(list).unwrap().join(" "), hosts, "{list}");
        }
    }

    #[test]
    fn what_is_no_list_is_refused_with_the_reason() {
        for (list, reason) in [
            ("n[0-3", "not closed"),
            ("n0-3]", "do not match"),
            ("n[[0]]", "do not match"),
            ("n[3-1]", "`3-1` is not a range"),
            ("n[a-b]", "`a-b` is not a range"),
            ("n[0-99999999]", "is not a range"),
        ] {
            let said = expand(list).unwrap_err();
            assert!(said.contains(reason), "{list}: {said}");
        }
    }
}
