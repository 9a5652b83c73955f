//! Rules for the key `table`.

use super::{Problem, Problems, check_name};
use crate::paper;
use crate::schema::{
    Device, Loss, Model, ModelKind, Optimizer, Recipe, Row, RowWeights, Table, Task,
};
use crate::suggest::suggestion;

pub(super) fn check(recipe: &Recipe, table: &Table, found: &mut Problems) {
    trained(recipe, found);
    if !paper::TABLES.contains_key(&table.of) {
        let names = || paper::TABLES.keys().map(String::as_str);
        let help = suggestion(&table.of, names())
            .unwrap_or_else(|| format!("write one of {}", names().collect::<Vec<_>>().join(", ")));
        found.add("table.of", format!("`{}` is no table of the paper", table.of), help);
    }
    columns(table, found);
    super::evaluation::tasks(&recipe.evaluation.tasks, found);
    if table.rows.is_empty() {
        let help = "add one: `NAME: {run: DIR}`";
        found.add("table.rows", "is empty", help);
    }
    for (name, row) in &table.rows {
        let key = format!("table.rows.{name}");
        check_name(found, &key, name);
        weights(recipe, row, &key, found);
        of_paper(table, row, &key, found);
    }
}

fn columns(table: &Table, found: &mut Problems) {
    let Some(known) = paper::TABLES.get(&table.of) else { return };
    for (name, metrics) in &table.columns {
        let key = format!("table.columns.{name}");
        if metrics.is_empty() {
            found.add(&key, "is empty", "name the metrics whose mean it shows, or remove it");
        }
        if known.columns.iter().all(|column| column.id != *name) {
            let columns = || known.columns.iter().map(|column| &*column.id);
            let help = suggestion(name, columns()).unwrap_or_else(|| {
                format!("write one of {}", columns().collect::<Vec<_>>().join(", "))
            });
            found.add(key, format!("{} has no column `{name}`", table.of), help);
        }
    }
}

/// Reports keys that only a run with training has. A resolved recipe writes their defaults.
fn trained(recipe: &Recipe, found: &mut Problems) {
    for (key, is_given, why) in [
        ("model", recipe.model != Model::default(), "the rows of a table have their own models"),
        ("init", recipe.init.is_some(), "the rows of a table have their own weights"),
        ("loss", recipe.loss != Loss::default(), "a table trains nothing"),
        ("data.sources", !recipe.data.sources.is_empty(), "a table trains nothing"),
        ("stages", !recipe.stages.is_empty(), "`stages` and `table` are both given"),
        ("optimizer", recipe.optimizer != Optimizer::default(), "a table trains nothing"),
        (
            "evaluation.every_steps",
            recipe.evaluation.every_steps != 0,
            "a table is measured once, not after steps",
        ),
        (
            "evaluation.at_samples",
            !recipe.evaluation.at_samples.is_empty(),
            "a table is measured once, not after samples",
        ),
    ] {
        if is_given {
            found.add(key, why, "remove it");
        }
    }
}

/// Reports a row whose weights are not given exactly once.
fn weights(recipe: &Recipe, row: &Row, key: &str, found: &mut Problems) {
    let given = [row.run.is_some(), row.export.is_some(), row.model.is_some()];
    if given.iter().filter(|given| **given).count() != 1 {
        let what = "must name exactly one of `run`, `export` and `model`";
        found.add(key, what, "keep the key whose weights the row measures");
        return;
    }
    if row.step.is_some() && row.run.is_none() {
        let help = "remove it, or name a `run`";
        found.add(format!("{key}.step"), "only a run has steps", help);
    }
    let measured = !recipe.evaluation.tasks.is_empty();
    match row.weights() {
        Some(RowWeights::Model(model)) => {
            if model.kind != ModelKind::DualEncoder {
                let help = "write `kind: dual_encoder`, or name a `run` or an `export`";
                found.add(
                    format!("{key}.model.kind"),
                    "only a dual encoder has all its weights in published files",
                    help,
                );
                return;
            }
            let of_model = Recipe { model: model.clone(), table: None, ..recipe.clone() };
            let of_kernels = super::kernels_of_row(&of_model);
            // `kernels_of_row` gives the advice about sizes that fits a row of a table.
            let on_host = Recipe { device: Device::Host, ..of_model };
            for problem in super::check(&on_host).into_iter().chain(of_kernels) {
                let is_model = problem.key.starts_with("model.");
                let is_task = problem.key.starts_with("evaluation.tasks");
                if is_model {
                    let key = format!("{key}.{}", problem.key);
                    found.list.push(Problem { key, ..problem });
                } else if is_task && !found.list.contains(&problem) {
                    found.list.push(problem);
                }
            }
        }
        Some(RowWeights::Export(_)) if !measured => {
            let help = "name a `run`, or add tasks to `evaluation.tasks`";
            found.add(format!("{key}.export"), "only a run has scores that were measured", help);
        }
        Some(RowWeights::Run(..) | RowWeights::Export(_)) | None => {}
    }
}

fn of_paper(table: &Table, row: &Row, key: &str, found: &mut Problems) {
    let (Some(paper), Some(known)) = (&row.paper, paper::TABLES.get(&table.of)) else { return };
    if known.row(paper).is_none() {
        let rows = || known.rows.iter().map(|row| &*row.id);
        let help = suggestion(paper, rows())
            .unwrap_or_else(|| format!("write one of {}", rows().collect::<Vec<_>>().join(", ")));
        found.add(format!("{key}.paper"), format!("the paper has no row `{paper}`"), help);
    }
}

/// Returns one warning for each row that the paper does not have, and one for the columns that the
/// tasks do not measure.
pub(super) fn warnings(recipe: &Recipe, table: &Table) -> Vec<String> {
    let Some(known) = paper::TABLES.get(&table.of) else { return Vec::new() };
    let mut warnings = Vec::new();
    for (name, row) in &table.rows {
        if row.paper.is_none() && known.row(name).is_none() {
            let rows = known.rows.iter().map(|row| &*row.id);
            let meant = suggestion(name, rows).map_or_else(String::new, |text| format!("; {text}"));
            warnings.push(format!(
                "table.rows.{name}: it is not compared, because the paper's {} has no row of this \
                 name{meant}",
                table.of
            ));
        }
        if let Some(RowWeights::Model(model)) = row.weights() {
            let of_model = Recipe { model: model.clone(), table: None, ..recipe.clone() };
            let of_row = |text: String| match text.strip_prefix("model.") {
                Some(rest) => format!("table.rows.{name}.model.{rest}"),
                None => text,
            };
            warnings.extend(super::warnings(&of_model).into_iter().map(of_row));
        }
    }
    let tasks = &recipe.evaluation.tasks;
    let measured: Vec<String> = tasks.iter().flat_map(Task::metrics).collect();
    let lacks = |metric: &&String| !measured.contains(*metric);
    let metrics = known.columns.iter().flat_map(|column| table.metrics(column));
    let mut missing: Vec<&String> = metrics.filter(lacks).collect();
    missing.sort();
    missing.dedup();
    if !tasks.is_empty() && !missing.is_empty() {
        let missing: Vec<&str> = missing.into_iter().map(String::as_str).collect();
        warnings.push(format!(
            "evaluation.tasks: {} has columns that no task measures: {}",
            table.of,
            missing.join(", ")
        ));
    }
    warnings
}
