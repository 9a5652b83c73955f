//! `README.md` of an exported model: what it is, how it was trained, its scores, and how Python
//! loads it.

use vljepa_recipes::cost::{self, Parameters};
use vljepa_recipes::schema::Recipe;
use vljepa_recipes::{Loaded, RunDirectory};

use crate::record::history;
use crate::record::provenance::RunRecord;
use crate::report;
use crate::terminal::thousands;

/// Text of the card of the run's weights after `step` steps. `unsupported` is the reason why
/// transformers cannot run the model, if it cannot.
pub(crate) fn text(
    directory: &RunDirectory,
    loaded: &Loaded,
    step: u64,
    unsupported: Option<&str>,
) -> String {
    let recipe = &loaded.recipe;
    [
        introduction(recipe, step),
        usage(unsupported),
        parameters(cost::parameters(&recipe.model)),
        data(RunRecord::read(directory).as_ref(), &loaded.hash),
        scores(directory, recipe, step),
    ]
    .concat()
}

fn introduction(recipe: &Recipe, step: u64) -> String {
    let what = match recipe.model.learning_decoder() {
        None => {
            "A VL-JEPA ([arXiv 2512.10942](https://arxiv.org/abs/2512.10942)): it predicts the \
             embedding of a text about a picture or a clip."
        }
        Some(_) => {
            "The Y-decoder of a VL-JEPA ([arXiv 2512.10942](https://arxiv.org/abs/2512.10942)): it \
             writes the text of an embedding."
        }
    };
    format!(
        "# {}\n\n{what} Recipe `{}` (`recipe.yaml`), step {}, {} \
         samples.\n\n",
        recipe.name,
        recipe.name,
        thousands(step),
        thousands(recipe.samples_after(step)),
    )
}

fn usage(unsupported: Option<&str>) -> String {
    if let Some(reason) = unsupported {
        return format!(
            "Python cannot run this model: {reason}. The weights have their published names.\n\n"
        );
    }
    "```python\n\
     import sys; sys.path.append(\"FOLDER\")   # this folder; needs torch, transformers and pillow\n\
     from PIL import Image\n\
     from modeling_vl_jepa import VlJepa\n\
     model = VlJepa.from_pretrained(\"FOLDER\")\n\
     print(model.rank([Image.open(\"picture.jpg\")], \"what is it?\", [\"a cat\", \"a dog\"]))\n\
     ```\n\n\
     Each part also loads by itself in transformers: `AutoModel.from_pretrained(\"FOLDER/predictor\")`. \
     `VJEPA2Model` then reports that the tensors of its own predictor are missing; VL-JEPA does not \
     use them. SONAR's encoder is `M2M100Encoder`, which `AutoModel` does not know. The predictor's \
     layers attend to both sides only with the mask of `modeling_vl_jepa.py`.\n\n"
        .to_owned()
}

fn parameters(counts: Parameters) -> String {
    let rows = [
        ("X-encoder", counts.x_encoder),
        ("predictor, with projections", counts.predictor()),
        ("token embeddings of the predictor", counts.predictor_embedding),
        ("Y-encoder", counts.y_encoder()),
        ("projection of the Y-encoder", counts.y_head),
    ];
    let decoder = ("Y-decoder", counts.y_decoder);
    let rows = rows.into_iter().chain((decoder.1 > 0).then_some(decoder));
    let mut text = "| part | parameters |\n|---|---:|\n".to_owned();
    for (part, count) in rows {
        text += &format!("| {part} | {} |\n", thousands(count as u64));
    }
    text + "\n"
}

fn data(record: Option<&RunRecord>, recipe_hash: &str) -> String {
    let mut text =
        "| source | shards | bytes | hash of names and sizes |\n|---|---:|---:|---|\n".to_owned();
    for (name, list) in record.iter().flat_map(|record| &record.shards) {
        let (count, bytes) = (thousands(list.count as u64), thousands(list.bytes));
        text += &format!("| {name} | {count} | {bytes} | `{}` |\n", list.hash);
    }
    let commit = record.and_then(|record| record.git.as_ref()).map(|git| git.commit.as_str());
    text += &format!("\nHash of the recipe: `{recipe_hash}`.");
    if let Some(commit) = commit {
        text += &format!(" Commit of the trainer: `{commit}`.");
    }
    text + "\n\n"
}

/// Table of the scores of the weights after `step` steps.
fn scores(directory: &RunDirectory, recipe: &Recipe, step: u64) -> String {
    let rows = report::score_rows(history::scores_of(&directory.evaluation(step)), recipe);
    if rows.is_empty() {
        return "These weights have no scores.\n".to_owned();
    }
    let mut text =
        "| score | value | 95 % | chance | majority | samples | |\n|---|---:|---:|---:|---:|---:|---|\n"
            .to_owned();
    for row in rows {
        text += &format!("| {} |\n", row.join(" | "));
    }
    text
}
