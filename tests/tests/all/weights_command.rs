//! The command `vljepa-launch weights`, on small files in the published forms.

use std::path::Path;
use std::process::Output;

use crate::programs::{command, repository, text};

fn weights(arguments: &[&str]) -> Output {
    command("vljepa-launch").arg("weights").args(arguments).output().unwrap()
}

/// Result of the command as JSON.
fn json(arguments: &[&str]) -> serde_json::Value {
    let output = weights(&[arguments, &["--json"]].concat());
    assert!(output.status.success(), "{}", text(&output));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn file(name: &str) -> String {
    format!("model/tests/weights/{name}")
}

/// Plans a recipe for the host whose X-encoder has these lines, and returns whether it is valid and
/// what is said. GPUs have no kernel for the heads of tiny models.
fn plan(folder: &Path, lines: &str) -> (bool, String) {
    let recipe = folder.join("recipe.yaml");
    let base = repository().join("recipes/pretrain.yaml");
    let head = format!("extends: {}\ndevice: host\nprecision: f32\n", base.display());
    std::fs::write(&recipe, format!("{head}{lines}\n")).unwrap();
    let output = command("vljepa-launch").arg(&recipe).arg("--dry-run").output().unwrap();
    (output.status.success(), text(&output))
}

#[test]
fn the_lines_that_are_printed_make_a_recipe_that_reads_the_file() {
    let folder = tempfile::tempdir().unwrap();
    for name in
        ["vjepa2.pt", "vjepa2_1_dist.pt", "pe.pt", "siglip2.safetensors", "clip.safetensors"]
    {
        let output = weights(&[&file(name)]);
        let said = text(&output);
        assert!(output.status.success(), "{said}");
        let (_, lines) = said.split_once("lines of a recipe:").unwrap();
        let (valid, said) = plan(folder.path(), lines);
        assert!(!valid && said.contains("num_heads"), "the file does not show its heads: {said}");
        let lines = lines.replace("num_heads: null", "num_heads: 2");
        let (valid, said) = plan(folder.path(), &lines);
        assert!(valid, "{name}: {said}");
        let other = lines.replace("num_layers: 2", "num_layers: 3");
        let (valid, said) = plan(folder.path(), &other);
        assert!(!valid && said.contains("tensors are missing"), "{name}: {said}");
    }
}

#[test]
fn a_file_of_pytorch_becomes_one_without_a_pickle() {
    let folder = tempfile::tempdir().unwrap();
    let copy = folder.path().join("new/pe.safetensors");
    let copy = copy.to_str().unwrap();
    let written = json(&[&file("pe.pt"), "--convert", copy]);
    assert_eq!(written["path"], copy);
    let plain = json(&[&file("pe.safetensors")]);
    assert_eq!(written["models"][0]["held"], plain["models"][0]["held"]);
    assert_eq!(written["models"][0]["shown"], plain["models"][0]["shown"]);
    let output = weights(&[copy]);
    let said = text(&output);
    for part in ["PE-core's vision tower: 31 tensors, 7,872 parameters, f16", "hidden_size 16"] {
        assert!(said.contains(part), "{said}");
    }
    let output = weights(&[&file("pe.pt"), "--convert", copy]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output).contains("exists already"), "{}", text(&output));
}

#[test]
fn files_without_a_model_and_damaged_ones_are_refused_and_nothing_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let (out, cut) = (folder.path().join("out"), folder.path().join("cut.pt"));
    let whole = std::fs::read(repository().join(file("vjepa2.pt"))).unwrap();
    std::fs::write(&cut, &whole[..whole.len() / 2]).unwrap();
    for (path, said) in [
        (file("tensors.pt"), "holds no model that a recipe can use: 9 tensors"),
        (file("harmful.pt"), "posix.system"),
        (cut.display().to_string(), "damaged or cut short"),
        ("nowhere.pt".to_owned(), "nowhere.pt"),
        ("model/tests/weights".to_owned(), "name one of its files: clip.safetensors"),
        ("README.md".to_owned(), "README.md"),
    ] {
        for convert in [&[][..], &["--convert", out.to_str().unwrap()]] {
            let output = weights(&[&[path.as_str()], convert].concat());
            let text = text(&output);
            let words = text.replace(['│', '×'], " ");
            let words = words.split_whitespace().collect::<Vec<_>>().join(" ");
            assert_eq!(output.status.code(), Some(2), "{text}");
            assert!(words.contains(said) && !text.contains("panicked"), "{path}: {text}");
            assert!(!out.exists());
        }
    }
}
