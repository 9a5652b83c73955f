//! Damaged texts: captions, json, tokenizers and recipes.

use vljepa_data::Tokenizer;
use vljepa_data::texts::Texts;
use vljepa_recipes::cost::cost;

use super::fuzz;
use crate::programs::{repository, small_set};

const JSON: &str = r#"{"caption": "a red circle ", "label": 3, "url": "http://a.b/c.jpg",
  "questions": [{"question": "how many", "answer": 3, "kind": "count"},
    {"question": "what colour", "answer": "red"}, {"question": "who", "answer": null}],
  "nodes": [{"start": 0.5, "gpt": {"action": {"brief": "N/A"}}}], "exif": "{\"a\": [1, 2]}"}"#;

#[test]
fn a_damaged_json_gives_clean_texts_or_a_reason() {
    fuzz("fuzzing::texts::a_damaged_json_gives_clean_texts_or_a_reason", 30_000, |_, draw| {
        let json = (draw.below(8) > 0).then(|| Ok(draw.damaged_text(JSON)));
        let txt = (draw.below(4) > 0).then(|| Ok(draw.damaged_text("a red circle\n")));
        let texts = Texts::parse(txt, json);
        let caption = texts.caption().ok().flatten();
        let label = texts.field("label").ok().flatten();
        let clean = |text: &str| {
            let edge = |c: char| c.is_whitespace() || c == '\u{feff}';
            !text.is_empty() && !text.starts_with(edge) && !text.ends_with(edge)
        };
        assert!(caption.into_iter().chain(label).all(clean), "{caption:?} {label:?}");
        if let Ok(questions) = texts.questions() {
            assert!(questions.len() < 100);
        }
        assert!(texts.bytes() < 100_000);
        texts.questions().is_ok()
    });
}

#[test]
fn a_damaged_tokenizer_is_refused_or_encodes() {
    let tokenizer = std::fs::read_to_string(small_set().join("tokenizer.json")).unwrap();
    fuzz("fuzzing::texts::a_damaged_tokenizer_is_refused_or_encodes", 3000, |folder, draw| {
        let path = folder.join("tokenizer.json");
        std::fs::write(&path, draw.damaged_text(&tokenizer)).unwrap();
        let Ok(tokenizer) = Tokenizer::load(&path, 16, 1 << 20) else { return false };
        if let Ok(ids) = tokenizer.encode("a red circle is moving left \u{feff}é \0") {
            assert!(ids.len() <= 16, "{ids:?}");
        }
        true
    });
}

#[test]
fn a_damaged_recipe_is_refused_or_has_a_plan() {
    let recipes = ["pretrain", "finetune", "quickstart"].map(|name| {
        let path = repository().join("recipes").join(name).with_extension("yaml");
        std::fs::read_to_string(path).unwrap()
    });
    fuzz("fuzzing::texts::a_damaged_recipe_is_refused_or_has_a_plan", 3000, |folder, draw| {
        // The recipe that finetune.yaml extends.
        std::fs::write(folder.join("pretrain.yaml"), &recipes[0]).unwrap();
        let path = folder.join("recipe.yaml");
        let recipe = draw.pick(&recipes);
        std::fs::write(&path, draw.damaged_text(recipe)).unwrap();
        match vljepa_recipes::load(&path, &[]) {
            Ok(loaded) => {
                assert!(!cost(&loaded.recipe).stages.is_empty());
                true
            }
            Err(error) => {
                assert!(!format!("{:?}", miette::Report::new(error)).is_empty());
                false
            }
        }
    });
}
