//! "did you mean": the nearest of the names that would have been right.

/// Help text naming the nearest candidate, when one is near enough to be meant.
pub(crate) fn suggestion<'a>(
    typed: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> Option<String> {
    nearest(typed, candidates).map(|name| format!("did you mean `{name}`?"))
}

/// The nearest candidate by Jaro-Winkler similarity, or one that contains, or is contained in, what was typed. 0.8 keeps swapped,
/// missing and doubled letters and drops words that merely share some.
fn nearest<'a>(typed: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let typed = typed.to_lowercase();
    let score = |name: &str| {
        let similarity = strsim::jaro_winkler(&typed, name);
        let part = typed.len() >= 3 && (name.contains(&typed) || typed.contains(name));
        if part { similarity.max(0.81) } else { similarity }
    };
    candidates
        .into_iter()
        .map(|name| (score(name), name))
        .filter(|(score, _)| *score > 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, name)| name)
}
