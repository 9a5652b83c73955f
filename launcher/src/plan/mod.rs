//! The plan of a recipe as people and programs read it: ranks, operations, memory, time, data and
//! cost. The only access to the machine is counting the shards that exist on it.

mod report;
mod tables;
mod time;

pub(crate) use report::{PlanReport, RatesOrigin};
pub(crate) use time::{digits, with_error};

use std::fmt;

use vljepa_recipes::cost::cost;
use vljepa_recipes::paper;
use vljepa_recipes::plan::{Rates, plan};
use vljepa_recipes::schema::{Device, Recipe, RowWeights, Table};

use self::tables::row;
use crate::terminal::table;

/// Rows of a table; the first is the header.
pub(crate) type Lines = Vec<Vec<String>>;

/// Tables and notes of a plan, in the order in which they are printed.
#[derive(Debug, Default)]
pub(crate) struct Overview {
    tables: Vec<Lines>,
    notes: Vec<String>,
}

impl Overview {
    /// Plans a recipe. Times are those of a cluster of H200; a recipe for the host has none.
    pub(crate) fn of(recipe: &Recipe) -> Self {
        let rates = (recipe.device == Device::Cuda).then(Rates::h200);
        Self::with_rates(recipe, rates)
    }

    /// Plans a recipe, with times if there are rates.
    pub(crate) fn with_rates(recipe: &Recipe, rates: Option<&Rates>) -> Self {
        if let Some(table) = &recipe.table {
            return Self::of_table(recipe, table);
        }
        let cost = cost(recipe);
        let timed = rates.filter(|_| !recipe.stages.is_empty());
        let timed = timed.map(|rates| (plan(recipe, rates), rates));
        let plan = timed.as_ref().map(|(plan, _)| plan);
        let mut tables = vec![
            tables::facts(recipe, &cost, plan),
            tables::parameters(recipe, &cost),
            tables::stages(recipe, &cost),
            tables::memory(&cost),
        ];
        let mut notes = Vec::new();
        if let Some((plan, rates)) = &timed {
            tables.extend(time::tables(plan));
            notes = time::notes(plan, rates);
        }
        tables.push(tables::sources(recipe));
        Self { tables, notes }
    }

    /// The plan of a table: what is measured. Its rows bring their own models.
    fn of_table(recipe: &Recipe, table: &Table) -> Self {
        let tasks = recipe.evaluation.tasks.len();
        let measures = match tasks {
            0 => "nothing; the runs of the rows have measured their scores".to_owned(),
            tasks => format!("{tasks} tasks for each of {} rows", table.rows.len()),
        };
        let mut facts = vec![row("plan", recipe.name.clone())];
        if tasks > 0 {
            facts.extend(tables::machines(recipe));
        }
        facts.push(row("measures", measures));
        let header = ["row", "weights", "beside the paper's"].map(str::to_owned).to_vec();
        let mut rows = vec![header];
        let known = paper::TABLES.get(&table.of);
        rows.extend(table.rows.iter().map(|(name, row)| {
            let weights = match row.weights() {
                Some(RowWeights::Run(run, Some(step))) => format!("{}, step {step}", run.display()),
                Some(RowWeights::Run(path, None) | RowWeights::Export(path)) => {
                    path.display().to_string()
                }
                Some(RowWeights::Model(model)) => {
                    let path = model.x_encoder.weights().map(|path| path.display().to_string());
                    path.unwrap_or_else(|| "–".to_owned())
                }
                None => "–".to_owned(),
            };
            let twin = known.and_then(|known| known.row(row.in_paper(name)));
            let twin = twin.map_or_else(|| "–".to_owned(), |twin| twin.name.clone());
            vec![name.clone(), weights, twin]
        }));
        Self { tables: vec![facts, rows], notes: Vec::new() }
    }
}

impl fmt::Display for Overview {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A dual encoder has neither stages nor sources, so that their tables have only headers.
        let parts = self.tables.iter().filter(|part| part.len() > 1).map(|part| table(part));
        let all: Vec<String> = parts.chain(self.notes.iter().cloned()).collect();
        f.write_str(&all.join("\n\n"))
    }
}
