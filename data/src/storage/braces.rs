//! Brace ranges in names: `clips-{000000..000127}.tar`, `{a,b}.tar`.

/// Largest number of names that the brace ranges of an entry may expand to.
const LONGEST_RANGE: u64 = 10_000_000;

/// Largest number of brace ranges in an entry. Paths need one per level of folders at most.
const MOST_RANGES: usize = 16;

/// Largest number of digits in a range: those of the largest `u64`.
const MOST_DIGITS: usize = 20;

/// Names that `text` stands for, in order. A text without braces stands for itself.
///
/// # Errors
/// What is wrong with a range.
pub(super) fn expand_braces(text: &str) -> Result<Vec<String>, String> {
    if text.matches('{').count() > MOST_RANGES {
        return Err(format!("it has more than {MOST_RANGES} ranges"));
    }
    expand(text)
}

fn expand(text: &str) -> Result<Vec<String>, String> {
    let Some((before, rest)) = text.split_once('{') else { return Ok(vec![text.to_owned()]) };
    let (inside, after) = rest.split_once('}').ok_or("a `{` has no `}`")?;
    let choices: Vec<String> = match inside.split_once("..") {
        Some((first, last)) => {
            let number = |text: &str| -> Result<u64, String> {
                text.parse().map_err(|_| format!("`{text}` in `{{{inside}}}` is not a number"))
            };
            let (from, to) = (number(first)?, number(last)?);
            if to < from || to - from >= LONGEST_RANGE {
                return Err(format!("`{{{inside}}}` is empty or too long"));
            }
            let width = first.len();
            if width > MOST_DIGITS {
                return Err(format!("`{first}` has more than {MOST_DIGITS} digits"));
            }
            (from..=to).map(|n| format!("{n:0width$}")).collect()
        }
        None => inside.split(',').map(str::to_owned).collect(),
    };
    let endings = expand(after)?;
    let count = u64::try_from(choices.len().saturating_mul(endings.len())).unwrap_or(u64::MAX);
    if count > LONGEST_RANGE {
        return Err("its ranges expand to too many files".to_owned());
    }
    let joined = |choice: &String| {
        endings.iter().map(|ending| format!("{before}{choice}{ending}")).collect::<Vec<_>>()
    };
    Ok(choices.iter().flat_map(joined).collect())
}

#[cfg(test)]
mod tests {
    use super::expand_braces;

    #[test]
    fn braces_expand_with_their_width_and_in_order() {
        let names = expand_braces("a-{08..11}.tar").unwrap();
        assert_eq!(names, ["a-08.tar", "a-09.tar", "a-10.tar", "a-11.tar"]);
        let names = expand_braces("{x,y}/{0..1}.tar").unwrap();
        assert_eq!(names, ["x/0.tar", "x/1.tar", "y/0.tar", "y/1.tar"]);
    }

    #[test]
    fn braces_that_cannot_be_read_are_refused() {
        for (text, said) in [
            ("a-{0..3.tar", "has no `}`"),
            ("a-{a..b}.tar", "`a` in `{a..b}` is not a number"),
            ("a-{3..1}.tar", "empty or too long"),
            ("a-{0..99999999999}.tar", "empty or too long"),
            ("{0..9999999}{0..9999999}", "too many files"),
            (&"{a}".repeat(100_000), "more than 16 ranges"),
            (&format!("{{{}..1}}", "0".repeat(70_000)), "more than 20 digits"),
        ] {
            let reason = expand_braces(text).unwrap_err();
            assert!(reason.contains(said), "{text}: {reason}");
        }
    }
}
