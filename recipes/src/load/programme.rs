//! Programmes: files that list recipes whose runs belong together, such as recipes/paper.yaml.
//!
//! A programme has the keys `name`, `programme` and, if it changes its recipes, `set`. Which run
//! needs which other one is not written there: it follows from the keys of the recipes that name
//! run directories ([`Recipe::needs`]).

use std::path::{Component, Path, PathBuf};

use serde::Deserialize;

use super::{LoadError, Loaded, Loader, Mistake, load, neighbours, read_text};
use crate::check;
use crate::order::{Circle, order};
use crate::read;
use crate::schema::Recipe;
use crate::tree::{Entry, Node, Value};

/// Key that makes a file a programme.
const KEY: &str = "programme";

/// A list of runs, in an order in which each comes after all that it needs.
#[derive(Debug, Clone)]
pub struct Programme {
    /// Name of the programme.
    pub name: String,
    /// Its runs. Those that do not need each other have the order of the file.
    pub runs: Vec<ProgrammeRun>,
}

/// A run of a programme.
#[derive(Debug, Clone)]
pub struct ProgrammeRun {
    /// File of its recipe.
    pub file: PathBuf,
    /// Its run directory.
    pub directory: PathBuf,
    /// The same as an absolute path without links.
    resolved: PathBuf,
    /// Its recipe, changed by `set` of the programme and of the entry, and by the flags.
    pub loaded: Loaded,
    /// Indices in [`Programme::runs`] of the runs whose directories it reads, in increasing order.
    pub needs: Vec<usize>,
    /// Run directories that it reads and no run of the programme makes.
    pub needs_elsewhere: Vec<PathBuf>,
}

impl ProgrammeRun {
    /// Name of the run in messages and tables: its directory.
    #[must_use]
    pub fn name(&self) -> String {
        self.directory.display().to_string()
    }
}

impl Programme {
    /// Index of the run that makes a directory, however the path is written.
    #[must_use]
    pub fn maker(&self, directory: &Path) -> Option<usize> {
        let wanted = resolved(directory);
        self.runs.iter().position(|run| run.resolved == wanted)
    }
}

/// Content of the file of a programme.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ProgrammeFile {
    name: String,
    #[serde(default)]
    set: Vec<String>,
    programme: Vec<EntryKeys>,
}

/// An entry of the list `programme`. A path alone is short for `{recipe: PATH}`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct EntryKeys {
    /// File of the recipe, relative to the file of the programme.
    recipe: PathBuf,
    /// Changes of its keys, as `--set` takes them.
    #[serde(default)]
    set: Vec<String>,
    /// Run directory. Default: `<runs>/<name>` with both values from the recipe.
    #[serde(default)]
    run: Option<PathBuf>,
}

/// Whether the file holds a programme, and not a recipe: whether it has the key `programme`.
///
/// # Errors
///
/// Fails if the file cannot be read or is not YAML.
pub fn is_programme(path: &Path) -> Result<bool, LoadError> {
    let mut loader = Loader::default();
    let index = loader.add(path.display().to_string(), read_text(path)?);
    Ok(loader.parse(index)?.get(KEY).is_some())
}

/// Loads and checks a programme and all of its recipes. `sets` are values of `--set`, which apply
/// to every recipe, after `set` of the programme and of the entry.
///
/// # Errors
///
/// Returns the first mistake of the programme or of one of its recipes: two runs with the same
/// directory, and runs that need each other, are among them.
pub fn load_programme(path: &Path, sets: &[String]) -> Result<Programme, LoadError> {
    let mut loader = Loader::default();
    let index = loader.add(path.display().to_string(), read_text(path)?);
    let mut root = loader.parse(index)?;
    write_out(&mut root);
    let file: ProgrammeFile = read::read(&root).map_err(|fault| loader.fault(fault))?;
    let problems = check::programme_name(&file.name);
    if !problems.is_empty() {
        return Err(loader.problems(&root, problems));
    }
    let at = |key: String, what: String, label: &str, help: Option<String>| {
        loader.mistake(root.span_of(&key), format!("{key}: {what}"), label, help)
    };
    if file.programme.is_empty() {
        let help = "list recipes, each by its path relative to this file".to_owned();
        return Err(at(KEY.to_owned(), "is empty".to_owned(), "here", Some(help)));
    }
    let mut runs: Vec<ProgrammeRun> = Vec::new();
    for (index, entry) in file.programme.iter().enumerate() {
        let recipe = path.parent().unwrap_or_else(|| Path::new("")).join(&entry.recipe);
        if !recipe.is_file() {
            let what = format!("there is no recipe {}", recipe.display());
            let key = format!("{KEY}.{index}.recipe");
            return Err(at(key, what, "this file", neighbours(&recipe)));
        }
        let all: Vec<String> = [&file.set[..], &entry.set, sets].concat();
        let loaded = load(&recipe, &all).map_err(|source| in_entry(index, &recipe, source))?;
        let own = || loaded.recipe.runs.join(&loaded.recipe.name);
        let directory = entry.run.clone().unwrap_or_else(own);
        let resolved = resolved(&directory);
        if let Some(first) = runs.iter().position(|run| run.resolved == resolved) {
            let what = format!(
                "has the run directory {} of entry {first}, {}",
                directory.display(),
                runs[first].file.display()
            );
            let help = "give it another one: `{recipe: FILE, run: DIR}`, or another `name`";
            let key = format!("{KEY}.{index}");
            return Err(at(key, what, "this entry", Some(help.to_owned())));
        }
        let (needs, needs_elsewhere) = (Vec::new(), Vec::new());
        runs.push(ProgrammeRun {
            file: recipe,
            directory,
            resolved,
            loaded,
            needs,
            needs_elsewhere,
        });
    }
    let programme = Programme { name: file.name, runs };
    sorted(programme).map_err(|(index, what)| {
        let help = "a run can only read runs that are complete before it starts".to_owned();
        at(format!("{KEY}.{index}"), what, "closes the circle", Some(help))
    })
}

/// Writes the entries that are a path alone as `{recipe: PATH}`.
fn write_out(root: &mut Node) {
    let Some(Node { value: Value::List(entries), .. }) = root.get_mut(KEY) else { return };
    for entry in entries {
        if matches!(entry.value, Value::Text(_)) {
            let span = entry.span;
            let empty = Node { span, value: Value::Map(Vec::new()) };
            let node = std::mem::replace(entry, empty);
            entry.push(Entry { key: "recipe".to_owned(), key_span: span, node });
        }
    }
}

fn in_entry(index: usize, recipe: &Path, source: LoadError) -> LoadError {
    LoadError::Entry { entry: index, recipe: recipe.to_owned(), why: vec![source] }
}

/// Fills in the needs of the runs, and puts each run after those that it needs.
///
/// # Errors
///
/// Returns the index of an entry whose run needs itself, directly or through others, and the
/// reason.
fn sorted(mut programme: Programme) -> Result<Programme, (usize, String)> {
    for index in 0..programme.runs.len() {
        let recipe: &Recipe = &programme.runs[index].loaded.recipe;
        let (mut here, mut elsewhere) = (Vec::new(), Vec::new());
        for need in recipe.needs() {
            match programme.maker(need) {
                Some(maker) if here.contains(&maker) => {}
                Some(maker) => here.push(maker),
                None => elsewhere.push(need.to_owned()),
            }
        }
        let run = &mut programme.runs[index];
        (run.needs, run.needs_elsewhere) = (here, elsewhere);
    }
    let needs: Vec<Vec<usize>> = programme.runs.iter().map(|run| run.needs.clone()).collect();
    let order = order(&needs).map_err(|Circle(circle)| {
        let named = |index: &usize| format!("entry {index} ({})", programme.runs[*index].name());
        let all: Vec<String> = circle.iter().chain(circle.first()).map(named).collect();
        let what = format!("runs need each other: {}", all.join(" needs "));
        (circle.first().copied().unwrap_or(0), what)
    })?;
    let mut place = vec![0; order.len()];
    for (position, index) in order.iter().enumerate() {
        place[*index] = position;
    }
    let mut runs: Vec<(usize, ProgrammeRun)> = place.iter().copied().zip(programme.runs).collect();
    runs.sort_by_key(|(position, _)| *position);
    let runs = runs.into_iter().map(|(_, mut run)| {
        run.needs = run.needs.iter().map(|need| place[*need]).collect();
        run.needs.sort_unstable();
        run
    });
    Ok(Programme { runs: runs.collect(), ..programme })
}

/// Absolute path without `.`, `..` and, in the part of it that exists, symbolic links.
fn resolved(path: &Path) -> PathBuf {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let mut found = PathBuf::new();
    for part in absolute.components() {
        match part {
            Component::ParentDir => drop(found.pop()),
            Component::CurDir => {}
            Component::Prefix(_) | Component::RootDir | Component::Normal(_) => {
                found.push(part);
                // The parent of a link is that of the folder to which it leads.
                if let Ok(real) = found.canonicalize() {
                    found = real;
                }
            }
        }
    }
    found
}

/// Refuses a programme where a recipe is expected.
pub(super) fn refuse(loader: &Loader, root: &Node) -> Result<(), LoadError> {
    let Some(list) = root.get(KEY) else { return Ok(()) };
    let what = format!("{KEY}: this file is a programme of runs, and a recipe is expected here");
    let help = "name one of its recipes; a recipe itself has no key `programme`".to_owned();
    Err(loader.mistake(list.span, what, "this key", Some(help)))
}

impl LoadError {
    /// All mistakes of the error, in their order.
    #[must_use]
    pub fn mistakes(&self) -> Vec<&Mistake> {
        match self {
            Self::Mistake(mistake) => vec![mistake],
            Self::Mistakes { mistakes } => mistakes.iter().collect(),
            Self::Entry { why, .. } => why.iter().flat_map(Self::mistakes).collect(),
            Self::Unreadable { .. } | Self::Resolve { .. } => Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests;
