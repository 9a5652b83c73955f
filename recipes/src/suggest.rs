//! Suggestions for misspelt names: the valid name that is most similar.

/// Returns a help text with the most similar candidate, or `None` if no candidate is similar
/// enough.
pub(crate) fn suggestion<'a>(
    typed: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> Option<String> {
    nearest(typed, candidates).map(|name| format!("did you mean `{name}`?"))
}

/// Returns the candidate with the highest Jaro-Winkler similarity above 0.8. A candidate that
/// contains the typed name, or is contained in it, counts as 0.81. The limit of 0.8 accepts
/// swapped, missing and doubled letters and rejects names that only share some letters.
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
