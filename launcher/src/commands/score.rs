//! `vljepa-launch score`: compares a file of captions with files of references.

use serde_json::{Map, Value};
use vljepa_recipes::protocol::CaptionScores;

use super::jobs::{row, show_json};
use crate::cli::{self, CaptionScore};
use crate::error::LaunchError;
use crate::programs::{self, Programs};
use crate::terminal;

/// Prints the scores of captions.
pub(crate) async fn score(arguments: &cli::Score) -> Result<u8, LaunchError> {
    let cli::Score { metric, hypotheses, references, json } = arguments;
    let (cider, bleu4, rouge_l, n, left_out) =
        match programs::score(&Programs::find()?, hypotheses, references).await? {
            CaptionScores::Scored { cider, bleu4, rouge_l, n, left_out } => {
                (cider, bleu4, rouge_l, n, left_out)
            }
            CaptionScores::Failed { error } => {
                return Err(LaunchError::File { what: error, help: FORMS.to_owned() });
            }
        };
    let all = [
        (CaptionScore::Cider, "cider", cider),
        (CaptionScore::Bleu4, "bleu4", bleu4),
        (CaptionScore::RougeL, "rouge_l", rouge_l),
    ];
    let wanted = all.iter().filter(|(of, ..)| of == metric || *metric == CaptionScore::All);
    if *json {
        let mut result: Map<String, Value> =
            wanted.map(|(_, name, value)| ((*name).to_owned(), Value::from(*value))).collect();
        result.insert("n".to_owned(), Value::from(n));
        return show_json(&result);
    }
    let mut rows = vec![row(["score", "value", "n"])];
    rows.extend(wanted.map(|(_, name, value)| row([name, &format!("{value:.6}"), &n.to_string()])));
    terminal::result(&terminal::table(&rows));
    if left_out > 0 {
        terminal::note(&format!(
            "{left_out} pictures have references but no caption, and do not count"
        ));
    }
    Ok(0)
}

/// What the files must hold.
const FORMS: &str = "give plain text, where lines of the same number belong together, or JSON as \
                     COCO's: [{\"image_id\": 1, \"caption\": \"a cat\"}], and for references also \
                     {\"annotations\": [...]}";
