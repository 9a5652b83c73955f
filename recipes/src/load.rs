//! YAML files and `--set` flags to a checked [`Recipe`], with every mistake shown where it was written.
//!
//! Each file and flag becomes a tree that knows its places ([`crate::tree`]); `extends` and the flags are merged there; the recipe
//! is read from the merged tree ([`crate::read`]) and checked across keys ([`crate::check`]).

use std::path::{Path, PathBuf};

use miette::{Diagnostic, NamedSource, SourceSpan};

use crate::check::{self, Problem};
use crate::read::{self, Fault};
use crate::schema::Recipe;
use crate::suggest::suggestion;
use crate::tree::{self, Node, Place, SyntaxFault, Text, Value};

/// Largest recipe file that is read. Anything larger is no recipe but a shard or weights named by mistake.
const MAX_FILE_BYTES: u64 = 4 << 20;

/// A recipe that passed every check.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// What it says.
    pub recipe: Recipe,
    /// The same as YAML: one file, all defaults shown.
    pub yaml: String,
    /// BLAKE3 of [`Recipe::computed`] as YAML, hexadecimal: two recipes of one hash train the same model.
    pub hash: String,
    /// What a person should know before starting; none of it is an error.
    pub warnings: Vec<String>,
}

/// Why a recipe was refused. Print it through `miette::Report`: that shows the lines.
#[derive(Debug, thiserror::Error, Diagnostic)]
pub enum LoadError {
    /// The file cannot be read.
    #[error("cannot read the recipe {}: {reason}", path.display())]
    Unreadable {
        /// Which.
        path: PathBuf,
        /// Why.
        reason: String,
        /// What to do.
        #[help]
        help: Option<String>,
    },
    /// One mistake, with its place.
    #[error(transparent)]
    #[diagnostic(transparent)]
    Mistake(Box<Mistake>),
    /// Several contradictions between keys, each with its place.
    #[error("{} mistakes in this recipe", mistakes.len())]
    Mistakes {
        /// In the order of the recipe's keys.
        #[related]
        mistakes: Vec<Mistake>,
    },
    /// The resolved recipe could not be written as YAML.
    #[error("cannot write the resolved recipe as YAML: {reason}")]
    Resolve {
        /// Why.
        reason: String,
    },
}

/// A mistake and where it was written.
#[derive(Debug, thiserror::Error, Diagnostic)]
#[error("{what}")]
pub struct Mistake {
    /// What is wrong, with the dotted key.
    pub what: String,
    /// Text, line and column for the graphical report.
    #[source_code]
    text: NamedSource<String>,
    /// Its first line, counted from 1.
    pub line: usize,
    /// Its first column, counted from 1.
    pub column: usize,
    /// A few words at the caret.
    label: String,
    #[label("{label}")]
    span: SourceSpan,
    /// What to do.
    #[help]
    pub help: Option<String>,
}

impl Mistake {
    /// The file's path or the flag.
    #[must_use]
    pub fn file(&self) -> &str {
        self.text.name()
    }
}

/// Loads and checks a recipe. `sets` are `--set` values, `a.b.0.c=value` each, applied in order after `extends`.
///
/// # Errors
///
/// The first mistake of syntax, key or type, or all contradictions between keys.
pub fn load(path: &Path, sets: &[String]) -> Result<Loaded, LoadError> {
    let mut loader = Loader::default();
    let mut root = loader.file_with_bases(path, &mut Vec::new())?;
    for set in sets {
        loader.apply(&mut root, set)?;
    }
    let recipe: Recipe = read::read(&root).map_err(|fault| loader.fault(fault))?;
    let problems = check::check(&recipe);
    if !problems.is_empty() {
        return Err(loader.problems(&root, problems));
    }
    resolved(recipe)
}

/// Loads a recipe as a run directory holds it: one file, nothing to extend.
///
/// # Errors
///
/// As [`load`].
pub fn load_resolved(path: &Path) -> Result<Loaded, LoadError> {
    load(path, &[])
}

fn resolved(recipe: Recipe) -> Result<Loaded, LoadError> {
    let yaml = to_yaml(&recipe)?;
    let hash = blake3::hash(to_yaml(&recipe.computed())?.as_bytes()).to_hex().to_string();
    let warnings = check::warnings(&recipe);
    Ok(Loaded { recipe, yaml, hash, warnings })
}

fn to_yaml(recipe: &Recipe) -> Result<String, LoadError> {
    serde_saphyr::to_string(recipe)
        .map_err(|error| LoadError::Resolve { reason: error.to_string() })
}

/// The texts read so far; places refer to them.
#[derive(Default)]
struct Loader {
    texts: Vec<Text>,
}

impl Loader {
    /// A file on top of what it extends. `above` are the files that led here, to refuse a circle.
    fn file_with_bases(
        &mut self,
        path: &Path,
        above: &mut Vec<PathBuf>,
    ) -> Result<Node, LoadError> {
        let text = read_text(path)?;
        let index = self.add(path.display().to_string(), text);
        let mut root = self.parse(index)?;
        let Some(entry) = root.take("extends") else { return Ok(root) };
        let Value::Text(base) = &entry.node.value else {
            let what =
                format!("extends: expected a text, found {}", tree::describe(&entry.node.value));
            let help = "name one recipe, relative to this file: `extends: other.yaml`";
            return Err(self.mistake(entry.node.place, what, "this value", Some(help.to_owned())));
        };
        above.push(canonical(path));
        let base = path.parent().unwrap_or_else(|| Path::new("")).join(base);
        if above.contains(&canonical(&base)) {
            let what = format!("extends: {} leads back to itself", base.display());
            return Err(self.mistake(entry.node.place, what, "closes the circle", None));
        }
        if !base.is_file() {
            let what = format!("extends: there is no recipe {}", base.display());
            let help = neighbours(&base);
            return Err(self.mistake(entry.node.place, what, "this file", help));
        }
        let mut merged = self.file_with_bases(&base, above)?;
        merged.merge(root);
        Ok(merged)
    }

    fn parse(&self, index: usize) -> Result<Node, LoadError> {
        let text = &self.texts[index].text;
        let start = Place { text: index, offset: 0, length: 0 };
        if text.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#')) {
            let what = "the recipe is empty".to_owned();
            let help = "start from recipes/quickstart.yaml, or `extends` a recipe".to_owned();
            return Err(self.mistake(start, what, "nothing here", Some(help)));
        }
        let root = tree::parse(text, index, 0).map_err(|fault| self.syntax(index, 0, fault))?;
        if !matches!(root.value, Value::Map(_)) {
            let what =
                format!("a recipe is keys and values, found {}", tree::describe(&root.value));
            return Err(self.mistake(root.place, what, "here", None));
        }
        Ok(Node { place: start, ..root })
    }

    /// One `--set` flag.
    fn apply(&mut self, root: &mut Node, set: &str) -> Result<(), LoadError> {
        let index = self.add(format!("--set {set}"), set.to_owned());
        let place = |offset, length| Place { text: index, offset, length };
        let Some((path, value)) = set.split_once('=') else {
            let what = format!("--set {set}: there is no `=`");
            let help = "write `--set key.of.the.recipe=value`".to_owned();
            return Err(self.mistake(place(0, set.len()), what, "this flag", Some(help)));
        };
        let mut segments = Vec::new();
        let mut offset = 0;
        for segment in path.split('.') {
            segments.push((segment, place(offset, segment.len())));
            offset += segment.len() + 1;
        }
        if let Some((_, at)) =
            segments.iter().find(|(name, _)| name.trim() != *name || name.is_empty())
        {
            let what = format!("--set {set}: a key is empty or has spaces around it");
            return Err(self.mistake(*at, what, "here", None));
        }
        if path == "extends" {
            let what = "--set cannot change `extends`".to_owned();
            let help = "name the other recipe on the command line".to_owned();
            return Err(self.mistake(place(0, path.len()), what, "this key", Some(help)));
        }
        let start = path.len() + 1;
        let mut node = if value.trim().is_empty() {
            Node { place: place(0, path.len()), value: Value::Null }
        } else {
            tree::parse(value, index, start).map_err(|fault| self.syntax(index, start, fault))?
        };
        if matches!(node.value, Value::Null | Value::List(_) | Value::Map(_)) {
            node.place = place(0, path.len());
        }
        root.set(&segments, node)
            .map_err(|(at, why)| self.mistake(at, format!("--set {path}: {why}"), "here", None))
    }

    fn add(&mut self, name: String, text: String) -> usize {
        self.texts.push(Text { name, text });
        self.texts.len() - 1
    }

    fn syntax(&self, index: usize, shift: usize, fault: SyntaxFault) -> LoadError {
        let place = Place { text: index, offset: shift + fault.offset, length: fault.length };
        if fault.duplicate.is_some() {
            let help = "keep one of the two".to_owned();
            return self.mistake(place, fault.message, "second time", Some(help));
        }
        let text = &self.texts[index].text;
        let tab = tab_in_indentation(text, place.offset);
        let (place, help) = match tab {
            Some(offset) => (
                Place { text: index, offset, length: 1 },
                Some("YAML is indented with spaces; this is a tab".to_owned()),
            ),
            None => (place, None),
        };
        self.mistake(place, format!("this is not YAML: {}", fault.message), "here", help)
    }

    fn fault(&self, fault: Fault) -> LoadError {
        let what = fault.to_string();
        let place = fault.place.unwrap_or(Place { text: 0, offset: 0, length: 0 });
        self.mistake(place, what, fault.label, fault.help)
    }

    fn problems(&self, root: &Node, problems: Vec<Problem>) -> LoadError {
        let mut mistakes: Vec<Mistake> = problems
            .into_iter()
            .map(|problem| {
                let what = format!("{}: {}", problem.key, problem.what);
                self.spot(root.place_of(&problem.key), what, "here", Some(problem.help))
            })
            .collect();
        if mistakes.len() == 1
            && let Some(only) = mistakes.pop()
        {
            return LoadError::Mistake(Box::new(only));
        }
        LoadError::Mistakes { mistakes }
    }

    fn mistake(&self, place: Place, what: String, label: &str, help: Option<String>) -> LoadError {
        LoadError::Mistake(Box::new(self.spot(place, what, label, help)))
    }

    fn spot(&self, place: Place, what: String, label: &str, help: Option<String>) -> Mistake {
        let Text { name, text } = &self.texts[place.text];
        let offset = floor_boundary(text, place.offset);
        let end = floor_boundary(text, place.offset + place.length).max(offset);
        let before = &text[..offset];
        let line = before.matches('\n').count() + 1;
        let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
        let source = NamedSource::new(name, text.clone());
        let source = if name.starts_with("--set") { source } else { source.with_language("yaml") };
        let span = SourceSpan::new(offset.into(), end - offset);
        Mistake { what, text: source, line, column, label: label.to_owned(), span, help }
    }
}

/// The last character boundary at or before `offset`, inside the text.
fn floor_boundary(text: &str, offset: usize) -> usize {
    text.floor_char_boundary(offset.min(text.len()))
}

/// The tab that indents the line of `offset` or a neighbour: parsers notice tabs late, or on the way to the next line.
fn tab_in_indentation(text: &str, offset: usize) -> Option<usize> {
    let offset = floor_boundary(text, offset);
    let line = text[..offset].rfind('\n').map_or(0, |newline| newline + 1);
    let above = text[..line.saturating_sub(1)].rfind('\n').map_or(0, |newline| newline + 1);
    let below = text[offset..].find('\n').map_or(text.len(), |newline| offset + newline + 1);
    [line, above, below].into_iter().find_map(|start| {
        let indentation: &str =
            text[start..].split(|c: char| !c.is_whitespace() || c == '\n').next()?;
        indentation.find('\t').map(|tab| start + tab)
    })
}

fn canonical(path: &Path) -> PathBuf {
    path.canonicalize().unwrap_or_else(|_| path.to_owned())
}

fn read_text(path: &Path) -> Result<String, LoadError> {
    let refuse = |reason: &str, help: Option<String>| {
        Err(LoadError::Unreadable { path: path.to_owned(), reason: reason.to_owned(), help })
    };
    let metadata = match std::fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return refuse("there is no such file", neighbours(path));
        }
        Err(error) => return refuse(&error.to_string(), None),
    };
    if metadata.is_dir() {
        let help = "name one of the recipes in it, such as recipes/quickstart.yaml".to_owned();
        return refuse("it is a folder", recipes_in(path).or(Some(help)));
    }
    if !metadata.is_file() {
        return refuse("it is not a file", None);
    }
    if metadata.len() > MAX_FILE_BYTES {
        let reason = format!("it has {} bytes, more than any recipe", metadata.len());
        return refuse(&reason, Some("a recipe is a YAML file of a few kilobytes".to_owned()));
    }
    match std::fs::read(path).map(String::from_utf8) {
        Ok(Ok(text)) => Ok(text),
        Ok(Err(error)) => {
            let at = error.utf8_error().valid_up_to();
            refuse(&format!("it is not UTF-8 text (byte {at})"), None)
        }
        Err(error) => refuse(&error.to_string(), None),
    }
}

/// Recipes of a folder, by name.
fn recipe_names(folder: &Path) -> Vec<String> {
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.ends_with(".yaml") || name.ends_with(".yml"))
        .collect();
    names.sort();
    names
}

fn recipes_in(folder: &Path) -> Option<String> {
    let names = recipe_names(folder);
    (!names.is_empty()).then(|| format!("recipes in it: {}", names.join(", ")))
}

/// Help for a recipe that is not there.
fn neighbours(path: &Path) -> Option<String> {
    let folder = path.parent()?;
    let names = recipe_names(folder);
    let typed = path.file_name()?.to_str()?;
    suggestion(typed, names.iter().map(String::as_str)).or_else(|| recipes_in(folder))
}

#[cfg(test)]
mod mistakes;
#[cfg(test)]
mod tests;
