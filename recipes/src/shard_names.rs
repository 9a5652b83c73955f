//! Shard names: a folder, one tar file, a list, a name with braces such as
//! `clips-{000000..000127}.tar` or `{a,b}.tar`, or a URL.

use std::path::PathBuf;

/// Whether a `shards` entry is a URL.
#[must_use]
pub fn is_remote(shards: &str) -> bool {
    shards.contains("://")
}

/// Returns the first and the last path of a shard name, which are equal if the name has no braces.
///
/// # Errors
///
/// Returns a description of the faulty brace for the user.
pub(crate) fn first_and_last(shards: &str) -> Result<[PathBuf; 2], String> {
    let mut ends = [String::new(), String::new()];
    let mut rest = shards;
    while let Some((before, inside_and_after)) = rest.split_once('{') {
        let Some((inside, after)) = inside_and_after.split_once('}') else {
            return Err(format!("`{shards}` opens a brace and does not close it"));
        };
        let choices = first_and_last_choice(inside)?;
        for (end, choice) in ends.iter_mut().zip(choices) {
            end.push_str(before);
            end.push_str(&choice);
        }
        rest = after;
    }
    if rest.contains('}') {
        return Err(format!("`{shards}` closes a brace that it does not open"));
    }
    Ok(ends.map(|end| PathBuf::from(end + rest)))
}

/// Returns both ends of a range (`000..127`, the last padded as the first) or of a list (`a,b,c`).
fn first_and_last_choice(inside: &str) -> Result<[String; 2], String> {
    let Some((first, last)) = inside.split_once("..") else {
        let first = inside.split(',').next().unwrap_or_default();
        let last = inside.rsplit(',').next().unwrap_or_default();
        return Ok([first.to_owned(), last.to_owned()]);
    };
    let number = |digits: &str| {
        let plain = digits.bytes().all(|b| b.is_ascii_digit());
        if plain { digits.parse::<u64>().ok() } else { None }
    };
    let (Some(from), Some(to)) = (number(first), number(last)) else {
        return Err(format!("`{{{inside}}}` is not a range of whole numbers"));
    };
    if to < from {
        return Err(format!("`{{{inside}}}` counts backwards"));
    }
    let width = first.len();
    Ok([first.to_owned(), format!("{to:0width$}")])
}

#[cfg(test)]
mod tests {
    use super::first_and_last;

    #[test]
    fn ranges_keep_their_zeros_and_their_ends() {
        for (shards, first, last) in [
            ("a/clips-{000098..000101}.tar", "a/clips-000098.tar", "a/clips-000101.tar"),
            ("{a,b,c}/{0..9}.tar", "a/0.tar", "c/9.tar"),
            ("{08..10}.tar", "08.tar", "10.tar"),
            ("folder", "folder", "folder"),
        ] {
            assert_eq!(
                first_and_last(shards).unwrap(),
                [first.into(), last.into()] as [std::path::PathBuf; 2]
            );
        }
    }

    #[test]
    fn what_is_no_range_is_refused() {
        for bad in ["a{1..", "a{3..1}.tar", "a}.tar", "a{x..y}", "a{-1..3}"] {
            assert!(first_and_last(bad).is_err(), "{bad}");
        }
    }
}
