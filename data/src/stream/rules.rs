//! Applies the rules of a source: from the texts of a sample to its query and target.

use vljepa_recipes::schema::{TargetRule, TextSource};

use crate::order::mix;
use crate::texts::{Question, Texts};

// Last word of the key of a random draw. It names the choice that the draw makes.
const RULE: u64 = 2;
const QUESTION: u64 = 3;

/// Checks that a rule has a text in this sample.
pub(super) fn check(rules: &[TargetRule], texts: &Texts) -> Result<(), String> {
    if usable_rules(rules, texts)?.is_empty() { Err(no_text_reason(rules)) } else { Ok(()) }
}

/// Chooses the query and the target. A rule is drawn by weight among the rules that the sample has
/// texts for, and then, if the rule uses questions, one of the matching questions is drawn.
pub(super) fn choose<'a>(
    rules: &'a [TargetRule],
    texts: &'a Texts,
    key: u64,
) -> Result<(&'a str, &'a str), String> {
    let usable = usable_rules(rules, texts)?;
    let weights: u64 = usable.iter().map(|(rule, _)| u64::from(rule.weight)).sum();
    let mut draw = mix(&[key, RULE]) % weights.max(1);
    for (rule, found) in &usable {
        let weight = u64::from(rule.weight);
        if draw >= weight {
            draw -= weight;
            continue;
        }
        let count = u64::try_from(found.len()).unwrap_or(u64::MAX);
        let nth = usize::try_from(mix(&[key, QUESTION]) % count.max(1)).unwrap_or(0);
        if let Some(pair) = found.get(nth) {
            return Ok(*pair);
        }
    }
    Err(no_text_reason(rules))
}

/// Rule with the pairs of query and target that it makes of a sample.
type UsableRule<'a> = (&'a TargetRule, Vec<(&'a str, &'a str)>);

/// Rules with a positive weight that have texts in this sample. A text that a rule needs and that
/// cannot be read makes the sample bad.
fn usable_rules<'a>(
    rules: &'a [TargetRule],
    texts: &'a Texts,
) -> Result<Vec<UsableRule<'a>>, String> {
    let mut usable = Vec::new();
    for rule in rules.iter().filter(|rule| rule.weight > 0) {
        let pairs: Vec<_> = match (rule.from, &rule.field) {
            (TextSource::Caption, field) => {
                let caption = match field {
                    Some(field) => texts.field(field)?,
                    None => texts.caption()?,
                };
                caption.into_iter().map(|caption| (&*rule.query, caption)).collect()
            }
            (TextSource::Questions, _) => {
                let questions = texts.questions()?.iter();
                let pair = |question: &'a Question| (&*question.question, &*question.answer);
                questions.filter(|question| matches(rule, question)).map(pair).collect()
            }
        };
        if !pairs.is_empty() {
            usable.push((rule, pairs));
        }
    }
    Ok(usable)
}

fn matches(rule: &TargetRule, question: &Question) -> bool {
    !question.answer.is_empty() && rule.kind.as_ref().is_none_or(|kind| *kind == question.kind)
}

/// Why no rule has a text in this sample.
fn no_text_reason(rules: &[TargetRule]) -> String {
    let missing = rules.iter().filter(|rule| rule.weight > 0).map(|rule| {
        match (rule.from, &rule.field, &rule.kind) {
            (TextSource::Caption, Some(field), _) => format!("no text in `{field}` of its json"),
            (TextSource::Caption, None, _) => {
                "no caption (neither a txt nor `caption` in its json)".to_owned()
            }
            (TextSource::Questions, _, Some(kind)) => format!("no question of kind `{kind}`"),
            (TextSource::Questions, _, None) => "no question".to_owned(),
        }
    });
    format!("the sample has {}", missing.collect::<Vec<_>>().join(" and "))
}
