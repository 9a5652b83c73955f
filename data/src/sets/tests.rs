//! Tests of each format on tiny files in the published form, and of files that are wrong.

mod actions;
mod captions;
mod classes;
mod counts;
mod descriptions;
mod questions;

use std::path::Path;

use serde_json::{Value, json};
use vljepa_recipes::schema::EvaluationSet;

use super::{OpenSet, SetSample};

/// Writes files below a folder, with their folders.
fn write(folder: &Path, files: &[(&str, &str)]) {
    for (name, text) in files {
        let path = folder.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
}

/// A set of a format, whose files are in the folder.
fn set(folder: &Path, format: &Value) -> EvaluationSet {
    let set = json!({"name": "tiny", "source": "here", "root": folder, "format": format});
    serde_json::from_value(set).unwrap()
}

fn read(folder: &Path, format: &Value) -> OpenSet {
    OpenSet::read(&set(folder, format)).unwrap_or_else(|error| panic!("{error}"))
}

fn refused(folder: &Path, format: &Value) -> String {
    OpenSet::read(&set(folder, format)).expect_err("the files are wrong").to_string()
}

/// Key, file and segment of each sample.
fn outline(folder: &Path, set: &OpenSet) -> Vec<String> {
    let line = |sample: &SetSample| {
        let Some(visual) = &sample.visual else { return sample.key.clone() };
        let path = visual.path.strip_prefix(folder).unwrap().display();
        let seconds = visual.seconds.as_ref();
        let seconds = seconds.map_or_else(String::new, |s| format!(" {}-{}", s.start, s.end));
        format!("{} {path}{seconds}", sample.key)
    };
    set.samples.iter().map(line).collect()
}

/// A field of the json of all samples.
fn fields<'a>(set: &'a OpenSet, name: &str) -> Vec<&'a str> {
    set.samples.iter().map(|sample| sample.texts.field(name).unwrap().unwrap()).collect()
}

/// Labels with their first texts.
fn labels(set: &OpenSet) -> Vec<(&str, &str)> {
    set.labels.iter().map(|(label, texts)| (label.as_str(), texts[0].as_str())).collect()
}

/// Text with the line ends and the byte order mark of Windows.
fn windows(text: &str) -> String {
    format!("\u{feff}{}", text.replace('\n', "\r\n"))
}

/// Asserts that a set reads the same after its annotation file was written by Windows.
fn same_from_windows(folder: &Path, format: &Value, file: &str) {
    let before = read(folder, format);
    let text = std::fs::read_to_string(folder.join(file)).unwrap();
    write(folder, &[(file, &windows(&text))]);
    assert_eq!(read(folder, format), before, "{file}");
    write(folder, &[(file, &text)]);
}
