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

/// Writes hosts as Slurm does: names that differ only in the number at their end share brackets.
/// The order of the prefixes is that of `hosts`; numbers are sorted.
pub(crate) fn compress(hosts: &[String]) -> String {
    // Prefix and number of digits, with the numbers.
    let mut groups: Vec<(&str, usize, Vec<u64>)> = Vec::new();
    for host in hosts {
        let prefix = host.trim_end_matches(|c: char| c.is_ascii_digit());
        let digits = &host[prefix.len()..];
        // A name without a number, or with one that is too long, is a group of its own.
        let (prefix, width, number) = match digits.parse() {
            Ok(number) => (prefix, digits.len(), Some(number)),
            Err(_) => (host.as_str(), 0, None),
        };
        match groups.iter_mut().find(|group| (group.0, group.1) == (prefix, width)) {
            Some(group) => group.2.extend(number),
            None => groups.push((prefix, width, number.into_iter().collect())),
        }
    }
    let text = |(prefix, width, mut numbers): (&str, usize, Vec<u64>)| {
        numbers.sort_unstable();
        numbers.dedup();
        let runs = numbers.chunk_by(|a, b| a + 1 == *b);
        let runs: Vec<String> = runs
            .map(|run| match run {
                [first, .., last] => format!("{first:0width$}-{last:0width$}"),
                [one] => format!("{one:0width$}"),
                [] => String::new(),
            })
            .collect();
        match &numbers[..] {
            [] => prefix.to_owned(),
            [_] => format!("{prefix}{}", runs[0]),
            _ => format!("{prefix}[{}]", runs.join(",")),
        }
    };
    groups.into_iter().map(text).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::{compress, expand};

    #[test]
    fn hosts_are_compressed_as_slurm_writes_them_and_expand_to_the_same() {
        for (hosts, list) in [
            ("", ""),
            ("head", "head"),
            ("node7", "node7"),
            ("node0 node1 node2 node3 node7", "node[0-3,7]"),
            ("node3 node1", "node[1,3]"),
            ("gpu08 gpu09 gpu10 gpu11", "gpu[08-11]"),
            ("n9 n10", "n9,n10"),
            ("r1n01 r1n02 r2n01 head", "r1n[01-02],r2n01,head"),
            ("n99999999999999999999999", "n99999999999999999999999"),
        ] {
            let hosts: Vec<String> = hosts.split_whitespace().map(str::to_owned).collect();
            assert_eq!(compress(&hosts), list);
            let mut sorted = hosts.clone();
            sorted.sort();
            let mut again = vec![list.to_owned()];
            if !list.contains("9999") {
                again = expand(list).unwrap();
            }
            again.sort();
            assert_eq!(again, sorted);
        }
    }

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
