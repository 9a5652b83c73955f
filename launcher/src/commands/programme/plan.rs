//! `vljepa-launch plan PROGRAMME`: hours of each run, of the longest chain, and of all runs.

use std::fmt;
use std::path::Path;

use serde::Serialize;
use vljepa_recipes::plan::{
    Estimate, EvaluationPlan, Rates, evaluation, longest_chain, measurements, one_after_another,
    plan as plan_of,
};
use vljepa_recipes::schema::{Device, ModelKind, Recipe};
use vljepa_recipes::{Programme, load_rates, row_recipes_with};

use super::load;
use crate::cli::{self, Devices};
use crate::commands::jobs::show_json;
use crate::commands::plan::{on, rates_of};
use crate::error::LaunchError;
use crate::plan::{RatesOrigin, digits, with_error};
use crate::statistics::to_f64;
use crate::terminal;

/// Prints the plan of a programme.
pub(crate) fn plan(arguments: &cli::Plan) -> Result<u8, LaunchError> {
    let cli::Plan { recipe: path, set, gpus, rates, json, html } = arguments;
    let refuse =
        |option, help| Err(LaunchError::ForOneRun { option, programme: path.clone(), help });
    if html.is_some() {
        return refuse("--html", "plan one of its recipes, or take --json");
    }
    if gpus.is_some_and(|gpus| gpus.first < gpus.last) {
        return refuse("a range of --gpus", "name one number of GPUs, or plan one of its recipes");
    }
    let programme = load(path, set)?;
    let given = rates.as_deref().map(load_rates).transpose()?;
    let planned = ProgrammePlan::of(&programme, *gpus, given.as_ref())?;
    if *json && planned.sums.is_none() {
        return Err(LaunchError::NoTimes { recipe: path.clone() });
    }
    if *json {
        return show_json(&planned);
    }
    terminal::result(&planned.to_string());
    Ok(0)
}

/// Plan of a programme; `--json` prints it in this form.
#[derive(Debug, Serialize)]
pub(super) struct ProgrammePlan {
    /// Name of the programme.
    name: String,
    /// Where the rates of the first run with times are from.
    rates: Option<RatesOrigin>,
    /// Plans of the runs in the order in which they can run.
    runs: Vec<RunPlan>,
    /// Number of runs of which some hours, or all, are unknown; the sums are without those.
    at_least: usize,
    /// Sums over the runs, or `None` if no hours are known.
    #[serde(flatten)]
    sums: Option<Sums>,
}

/// Hours of all runs of a programme.
#[derive(Debug, Serialize)]
struct Sums {
    /// Hours of all GPUs together.
    device_hours: Estimate,
    /// Hours if each run starts as soon as those that it needs are complete.
    longest_chain_hours: Estimate,
    /// Directories of the runs of the chain that takes these hours.
    longest_chain: Vec<String>,
    /// Hours if the runs go one after another.
    one_after_another_hours: Estimate,
}

/// Plan of one run of a programme.
#[derive(Debug, Serialize)]
struct RunPlan {
    /// Directory of the run.
    run: String,
    kind: Kind,
    /// Directories of the runs that it needs.
    needs: Vec<String>,
    /// Number of GPUs, or 0 on CPUs.
    gpus: usize,
    /// Hours of training, as `plan RECIPE` says, or `None` if there is none or no rate is known.
    hours: Option<Estimate>,
    /// Hours of all measurements of its tasks, with their start if nothing is trained.
    evaluation_hours: Option<Estimate>,
    /// Tasks and rows of tables that are not in the hours, because too little is known about them.
    not_in_hours: Vec<String>,
    /// Hours of all its GPUs together.
    device_hours: Option<Estimate>,
}

impl RunPlan {
    /// Whether the run computes something whose time is not known at all.
    fn is_untimed(&self) -> bool {
        let computes = matches!(self.kind, Kind::Training | Kind::Evaluation);
        computes && self.hours.is_none() && self.evaluation_hours.is_none()
    }

    /// Hours of training and evaluation.
    fn all_hours(&self) -> Estimate {
        let both = [self.hours, self.evaluation_hours].map(Option::unwrap_or_default);
        one_after_another(&both)
    }
}

/// What a run does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Kind {
    Training,
    /// Measures the rows of a table, or a dual encoder.
    Evaluation,
    /// Collects the scores that other runs have measured.
    Collection,
}

impl Kind {
    fn of(recipe: &Recipe) -> Self {
        match (&recipe.table, recipe.model.kind) {
            (Some(_), _) if recipe.evaluation.tasks.is_empty() => Self::Collection,
            (Some(_), _) | (None, ModelKind::DualEncoder) => Self::Evaluation,
            (None, ModelKind::VlJepa | ModelKind::YDecoder | ModelKind::Vlm) => Self::Training,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Training => "training",
            Self::Evaluation => "evaluation",
            Self::Collection => "collection",
        }
    }
}

impl ProgrammePlan {
    /// Plans each run as `plan RECIPE` does, and adds their hours.
    pub(super) fn of(
        programme: &Programme,
        gpus: Option<Devices>,
        given: Option<&Rates>,
    ) -> Result<Self, LaunchError> {
        let mut origin = None;
        let mut runs = Vec::with_capacity(programme.runs.len());
        for run in &programme.runs {
            let kind = Kind::of(&run.loaded.recipe);
            let recipe = match kind {
                Kind::Training | Kind::Evaluation => on(&run.loaded.recipe, gpus)
                    .map_err(|error| LaunchError::of_run(run.name(), &error))?,
                Kind::Collection => run.loaded.recipe.clone(),
            };
            let devices = match recipe.device {
                Device::Cuda => recipe.cluster.world_size(),
                Device::Host => 0,
            };
            let rates = rates_of(&recipe, given);
            origin = origin.or(rates.map(RatesOrigin::of));
            let trains = kind == Kind::Training;
            let planned = rates.filter(|_| trains).map(|rates| plan_of(&recipe, rates));
            let measured = match kind {
                Kind::Training | Kind::Evaluation => {
                    rates.map(|rates| evaluation_of(programme, &recipe, rates))
                }
                Kind::Collection => None,
            };
            let needs = run.needs.iter().map(|need| programme.runs[*need].name());
            let mut planned = RunPlan {
                run: run.name(),
                kind,
                needs: needs.collect(),
                gpus: devices,
                hours: planned.map(|planned| planned.hours),
                evaluation_hours: measured.as_ref().map(|measured| measured.hours),
                not_in_hours: measured.map(|measured| measured.unknown).unwrap_or_default(),
                device_hours: None,
            };
            planned.device_hours = rates.filter(|_| devices > 0).map(|_| {
                planned.all_hours().times(to_f64(u64::try_from(devices).unwrap_or(u64::MAX)))
            });
            runs.push(planned);
        }
        let hours: Vec<Estimate> = runs.iter().map(RunPlan::all_hours).collect();
        let of_devices: Vec<Estimate> = runs.iter().filter_map(|run| run.device_hours).collect();
        let needs: Vec<Vec<usize>> = programme.runs.iter().map(|run| run.needs.clone()).collect();
        let chain = longest_chain(&hours, &needs);
        let sums = origin.is_some().then(|| Sums {
            device_hours: one_after_another(&of_devices),
            longest_chain_hours: chain.hours,
            longest_chain: chain.runs.iter().map(|index| runs[*index].run.clone()).collect(),
            one_after_another_hours: one_after_another(&hours),
        });
        let is_partly = |run: &&RunPlan| run.is_untimed() || !run.not_in_hours.is_empty();
        Ok(Self {
            name: programme.name.clone(),
            rates: origin,
            at_least: runs.iter().filter(is_partly).count(),
            sums,
            runs,
        })
    }
}

/// Hours of all measurements of the tasks of a run: after steps and at the end of a training, or of
/// each row of a table.
fn evaluation_of(programme: &Programme, recipe: &Recipe, rates: &Rates) -> EvaluationPlan {
    if !recipe.stages.is_empty() {
        let once = evaluation(recipe, rates);
        let hours = once.hours.times(to_f64(measurements(recipe)));
        return EvaluationPlan { hours, ..once };
    }
    let start = rates.restart_s.estimate().times(1.0 / 3600.0);
    let mut all = EvaluationPlan { hours: start, unknown: Vec::new() };
    if recipe.table.is_none() {
        return all.plus(evaluation(recipe, rates));
    }
    let made = |directory: &Path| {
        let maker = programme.maker(directory)?;
        Some(programme.runs[maker].loaded.recipe.clone())
    };
    for row in row_recipes_with(recipe, &made) {
        match row {
            Ok(row) => {
                let of_row = Recipe { cluster: recipe.cluster.clone(), ..row.recipe };
                let mut of_row = evaluation(&of_row, rates);
                of_row.unknown.retain(|task| !all.unknown.contains(task));
                all = all.plus(of_row);
            }
            Err(problem) => all.unknown.push(problem.key),
        }
    }
    all
}

impl Sums {
    /// Rows of the table of facts.
    fn facts(&self) -> Vec<Vec<String>> {
        let days = |hours: Estimate| with_error(hours.times(1.0 / 24.0));
        let hours = |hours: Estimate| format!("{} h ({} days)", with_error(hours), days(hours));
        let fact = |name: &str, text: String| vec![name.to_owned(), text];
        vec![
            fact("GPU-hours", with_error(self.device_hours)),
            fact("longest chain", hours(self.longest_chain_hours)),
            fact("", self.longest_chain.join(" → ")),
            fact("one after another", hours(self.one_after_another_hours)),
        ]
    }
}

/// A line for each list of tasks that are not in the hours of some runs.
fn unknown(runs: &[RunPlan]) -> Vec<String> {
    let mut lists: Vec<(&[String], Vec<String>)> = Vec::new();
    for (index, run) in runs.iter().enumerate().filter(|(_, run)| !run.not_in_hours.is_empty()) {
        let number = (index + 1).to_string();
        match lists.iter_mut().find(|(tasks, _)| *tasks == run.not_in_hours) {
            Some((_, numbers)) => numbers.push(number),
            None => lists.push((&run.not_in_hours, vec![number])),
        }
    }
    let line = |(tasks, numbers): (&[String], Vec<String>)| {
        format!("  {}: {}", numbers.join(" "), tasks.join(", "))
    };
    lists.into_iter().map(line).collect()
}

impl fmt::Display for ProgrammePlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let header =
            ["", "run", "kind", "needs", "GPUs", "hours", "±", "evaluation", "±", "GPU-hours"];
        let mut rows = vec![header.map(str::to_owned).to_vec()];
        rows.extend(self.runs.iter().enumerate().map(|(index, run)| self.row(index, run)));
        let name = vec!["programme".to_owned(), format!("{}, {} runs", self.name, self.runs.len())];
        let mut facts = vec![name];
        facts.extend(self.sums.iter().flat_map(Sums::facts));
        write!(f, "{}\n\n{}", terminal::table(&rows), terminal::table(&facts))?;
        let untimed = self.runs.iter().enumerate().filter(|(_, run)| run.is_untimed());
        let untimed: Vec<String> = untimed.map(|(index, _)| (index + 1).to_string()).collect();
        if !untimed.is_empty() {
            let runs = untimed.join(" ");
            write!(
                f,
                "\n\nno rates are known for the devices of {runs}; --rates FILE brings them"
            )?;
        }
        if self.runs.iter().any(|run| !run.not_in_hours.is_empty()) {
            write!(
                f,
                "\n\nhours of evaluation with ≥, and the sums, are without tasks whose numbers of \
                 samples are not in their sets' files, and without tasks that write texts:\n{}",
                unknown(&self.runs).join("\n")
            )?;
        }
        if let Some(RatesOrigin { device, measured, all }) = &self.rates {
            write!(
                f,
                "\n\nrates of {device}: {measured} of {all} were measured, the others are predicted"
            )?;
        }
        Ok(())
    }
}

impl ProgrammePlan {
    /// A line of the table. Needed runs are shown by their numbers.
    fn row(&self, index: usize, run: &RunPlan) -> Vec<String> {
        let number = |value: Option<f64>| value.map_or_else(|| "–".to_owned(), digits);
        let gpus = if run.gpus == 0 { "–".to_owned() } else { run.gpus.to_string() };
        let place = |need: &String| self.runs.iter().position(|other| other.run == *need);
        let places = run.needs.iter().filter_map(place).map(|place| (place + 1).to_string());
        let needs = places.collect::<Vec<_>>().join(" ");
        let at_least = if run.not_in_hours.is_empty() { "" } else { "≥ " }.to_owned();
        vec![
            (index + 1).to_string(),
            run.run.clone(),
            run.kind.name().to_owned(),
            if needs.is_empty() { "–".to_owned() } else { needs },
            gpus,
            number(run.hours.map(|hours| hours.value)),
            number(run.hours.map(|hours| hours.deviation)),
            at_least + &number(run.evaluation_hours.map(|hours| hours.value)),
            number(run.evaluation_hours.map(|hours| hours.deviation)),
            number(run.device_hours.map(|hours| hours.value)),
        ]
    }
}
