//! Sets of questions about pictures: GQA, TallyQA, POPE, POPEv2 and CLEVR.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

use super::OpenSet;
use super::entries::{Entries, Id};
use super::files::Annotations;
use super::items::{Asked, Published, Template, own_texts};
use crate::error::DataError;

/// Largest answer of TallyQA.
const LARGEST_TALLY: u32 = 15;

/// GQA. The answers to choose from are those of training and validation, so a few right answers
/// are not among them.
pub(super) fn gqa(
    root: &Path,
    questions: &Path,
    answers: &Path,
    images: &str,
) -> Result<OpenSet, DataError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Question {
        question: String,
        answer: String,
        image_id: Id,
    }
    let labels: Vec<String> = Annotations::read(root, answers)?.json()?;
    let annotations = Annotations::read(root, questions)?;
    let template = Template { root, text: images, annotations: &annotations };
    let mut asked = Asked::default();
    let Entries(database): Entries<Question> = annotations.json()?;
    for (id, Question { question, answer, image_id: Id(image) }) in database {
        let path = template.path(&[("image_id", &image)])?;
        let published = Published { id, question: &question, answer: &answer, kind: "" };
        asked.add(&image, path, published).map_err(|reason| annotations.wrong(reason))?;
    }
    Ok(asked.into_set(own_texts(labels)))
}

/// `TallyQA`. The kind of a question is `simple` or `complex`.
pub(super) fn tally_qa(root: &Path, questions: &Path, images: &str) -> Result<OpenSet, DataError> {
    #[derive(Deserialize)]
    struct Question {
        answer: Id,
        image: String,
        issimple: Value,
        question: String,
        question_id: Id,
    }
    let annotations = Annotations::read(root, questions)?;
    let template = Template { root, text: images, annotations: &annotations };
    let mut asked = Asked::default();
    for question in annotations.json::<Vec<Question>>()? {
        let (Id(id), Id(answer)) = (question.question_id, question.answer);
        // The published file has the numbers 0 and 1; copies have truth values.
        let kind = match &question.issimple {
            Value::Bool(true) => "simple",
            Value::Bool(false) => "complex",
            value if value.as_f64() == Some(1.0) => "simple",
            value if value.as_f64() == Some(0.0) => "complex",
            value => {
                let reason = format!("`issimple` of the question {id} is {value}");
                return Err(annotations.wrong(reason));
            }
        };
        let path = template.path(&[("image", &question.image)])?;
        let published = Published { id, question: &question.question, answer: &answer, kind };
        let added = asked.add(&question.image, path, published);
        added.map_err(|reason| annotations.wrong(reason))?;
    }
    let labels = (0..=LARGEST_TALLY).map(|count| count.to_string());
    Ok(asked.into_set(own_texts(labels)))
}

/// POPE. The kind of a question is its file: `random`, `popular` or `adversarial`.
pub(super) fn pope(root: &Path, files: [&PathBuf; 3], images: &str) -> Result<OpenSet, DataError> {
    #[derive(Deserialize)]
    struct Question {
        question_id: Id,
        image: String,
        text: String,
        label: String,
    }
    let mut asked = Asked::default();
    for (kind, file) in ["random", "popular", "adversarial"].into_iter().zip(files) {
        let annotations = Annotations::read(root, file)?;
        let template = Template { root, text: images, annotations: &annotations };
        for (number, question) in annotations.json_lines::<Question>()? {
            let wrong = |reason| annotations.wrong(format!("line {number}: {reason}"));
            let Question { question_id: Id(id), image, text, label } = question;
            let answer = yes_or_no(&label).map_err(wrong)?;
            let path = template.path(&[("image", &image)])?;
            let id = format!("{kind} {id}");
            let published = Published { id, question: &text, answer, kind };
            asked.add(&image, path, published).map_err(wrong)?;
        }
    }
    Ok(asked.into_set(own_texts(YES_AND_NO.map(str::to_owned))))
}

/// `POPEv2`: half of the pictures are edited so that they lack the object.
pub(super) fn pope_v2(root: &Path, questions: &Path, images: &str) -> Result<OpenSet, DataError> {
    #[derive(Deserialize)]
    struct Question {
        image_name: String,
        query: String,
        label: String,
    }
    let annotations = Annotations::read(root, questions)?;
    let template = Template { root, text: images, annotations: &annotations };
    let mut asked = Asked::default();
    for Question { image_name: image, query, label } in annotations.json::<Vec<Question>>()? {
        let answer = yes_or_no(&label).map_err(|reason| annotations.wrong(reason))?;
        let path = template.path(&[("image_name", &image)])?;
        // The questions have no ids of their own.
        let id = format!("{query} {image}");
        let published = Published { id, question: &query, answer, kind: "" };
        asked.add(&image, path, published).map_err(|reason| annotations.wrong(reason))?;
    }
    Ok(asked.into_set(own_texts(YES_AND_NO.map(str::to_owned))))
}

/// CLEVR. The answers to choose from are those that appear in the file.
pub(super) fn clevr(root: &Path, questions: &Path, images: &str) -> Result<OpenSet, DataError> {
    #[derive(Deserialize)]
    struct File {
        questions: Vec<Question>,
    }
    #[derive(Deserialize)]
    struct Question {
        question_index: Id,
        question: String,
        answer: String,
        image_filename: String,
    }
    let annotations = Annotations::read(root, questions)?;
    let template = Template { root, text: images, annotations: &annotations };
    let (mut asked, mut answers) = (Asked::default(), BTreeSet::new());
    for question in annotations.json::<File>()?.questions {
        let Question { question_index: Id(id), question, answer, image_filename: image } = question;
        let path = template.path(&[("image_filename", &image)])?;
        let published = Published { id, question: &question, answer: &answer, kind: "" };
        asked.add(&image, path, published).map_err(|reason| annotations.wrong(reason))?;
        answers.insert(answer);
    }
    Ok(asked.into_set(own_texts(answers)))
}

/// Answers of POPE and `POPEv2`.
const YES_AND_NO: [&str; 2] = ["no", "yes"];

fn yes_or_no(label: &str) -> Result<&'static str, String> {
    let answer = YES_AND_NO.into_iter().find(|answer| label.trim().eq_ignore_ascii_case(answer));
    answer.ok_or_else(|| format!("the label `{label}` is neither yes nor no"))
}
