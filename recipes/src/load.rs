//! Loads a [`Recipe`] from YAML files and `--set` flags and shows each mistake where it was
//! written.
//!
//! Each file and flag becomes a tree that stores positions ([`crate::tree`]). `extends` and the
//! flags are merged as trees. The recipe is deserialized from the merged tree ([`crate::read`]) and
//! then checked across keys ([`crate::check`]).

mod families;
mod hash;
mod programme;
mod published;
mod rates;
mod sets;
mod table;

use std::path::{Path, PathBuf};

use miette::{Diagnostic, NamedSource, SourceSpan};

pub use self::families::Role;
pub use self::programme::{Programme, ProgrammeRun, is_programme, load_programme};
pub use self::published::{PublishedModel, published_models};
pub use self::rates::{load_rates, load_rates_text};
pub use self::sets::load_set;
use crate::check::{self, Problem};
use crate::read::{self, Fault};
use crate::schema::Recipe;
use crate::suggest::suggestion;
use crate::tree::{self, Node, Span, SyntaxFault, Text, Value};

/// Largest recipe file that is read, in bytes. A larger file is probably a shard or a weights file
/// that was named by mistake.
const MAX_FILE_BYTES: u64 = 4 << 20;

/// A recipe that passed every check.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// All keys, with their defaults filled in.
    pub recipe: Recipe,
    /// The recipe as one YAML file that shows all defaults.
    pub yaml: String,
    /// Hexadecimal BLAKE3 hash of [`Recipe::computed`] without the keys that have their default.
    /// Two recipes with the same hash train the same model. A key that a later build adds to the
    /// schema does not change the hash of existing recipes.
    pub hash: String,
    /// Settings that are allowed but probably not intended, one message each.
    pub warnings: Vec<String>,
}

/// Reason why a recipe was refused. Print it with `miette::Report`, which shows the lines at fault.
#[derive(Debug, thiserror::Error, Diagnostic)]
pub enum LoadError {
    /// The recipe file cannot be read.
    #[error("cannot read the recipe {}: {reason}", path.display())]
    Unreadable {
        /// Path as the user gave it.
        path: PathBuf,
        /// Reason for the message.
        reason: String,
        /// Advice to the user.
        #[help]
        help: Option<String>,
    },
    /// A single mistake and its position.
    #[error(transparent)]
    #[diagnostic(transparent)]
    Mistake(Box<Mistake>),
    /// Several problems that [`crate::check`] found, each with its position.
    #[error("{} mistakes in this recipe", mistakes.len())]
    Mistakes {
        /// Mistakes in the order of the recipe's keys.
        #[related]
        mistakes: Vec<Mistake>,
    },
    /// A recipe of a programme was refused.
    #[error("entry {entry} of the programme, {}, cannot be loaded", recipe.display())]
    Entry {
        /// Index of the entry, from 0.
        entry: usize,
        /// File of its recipe.
        recipe: PathBuf,
        /// The only item: why its recipe was refused.
        #[related]
        why: Vec<LoadError>,
    },
    /// The resolved recipe could not be written as YAML.
    #[error("cannot write the resolved recipe as YAML: {reason}")]
    Resolve {
        /// Message of the YAML serializer.
        reason: String,
    },
}

/// A mistake in a recipe and the position where it was written.
#[derive(Debug, thiserror::Error, Diagnostic)]
#[error("{what}")]
pub struct Mistake {
    /// Description of the mistake, with the dotted key.
    pub what: String,
    /// Text that the graphical report quotes.
    #[source_code]
    text: NamedSource<String>,
    /// Line where the mistake starts, counted from 1.
    pub line: usize,
    /// Column where the mistake starts, counted from 1.
    pub column: usize,
    /// Short text that the graphical report puts at the caret.
    label: String,
    #[label("{label}")]
    span: SourceSpan,
    /// Advice to the user.
    #[help]
    pub help: Option<String>,
}

impl Mistake {
    /// Path of the recipe file, or the `--set` flag, that holds the mistake.
    #[must_use]
    pub fn file(&self) -> &str {
        self.text.name()
    }
}

/// Loads and checks a recipe. `sets` are values of `--set`, each `a.b.0.c=value`; they are applied
/// in order after `extends`.
///
/// # Errors
///
/// Returns the first mistake of syntax, key or type, or all problems that [`crate::check`] finds.
pub fn load(path: &Path, sets: &[String]) -> Result<Loaded, LoadError> {
    let mut loader = Loader::default();
    let root = loader.file_with_bases(path, &mut Vec::new())?;
    loader.recipe(root, sets)
}

/// Loads a resolved recipe from its text. It has no file, so it cannot extend another recipe.
///
/// # Errors
///
/// Returns the same errors as [`load`].
pub fn load_yaml(yaml: &str) -> Result<Loaded, LoadError> {
    let mut loader = Loader::default();
    let index = loader.add("the resolved recipe".to_owned(), yaml.to_owned());
    let root = loader.parse(index)?;
    loader.recipe(root, &[])
}

/// Loads the resolved recipe of a run directory, which is one file without `extends`.
///
/// # Errors
///
/// Returns the same errors as [`load`].
pub fn load_resolved(path: &Path) -> Result<Loaded, LoadError> {
    load(path, &[])
}

/// Removes the entries of `part.named` whose value is `null`, which an extending recipe or a flag
/// leaves out.
fn leave_out(root: &mut Node, part: &str, named: &str) {
    let node = root.get_mut(part).and_then(|part| part.get_mut(named));
    if let Some(Node { value: Value::Map(entries), .. }) = node {
        entries.retain(|entry| !matches!(entry.node.value, Value::Null));
    }
}

fn resolved(recipe: Recipe, mut warnings: Vec<String>) -> Result<Loaded, LoadError> {
    let yaml = to_yaml(&recipe)?;
    let hash = hash::hash(&recipe.computed())
        .map_err(|error| LoadError::Resolve { reason: error.to_string() })?;
    warnings.extend(check::warnings(&recipe));
    Ok(Loaded { recipe, yaml, hash, warnings })
}

/// Writes a recipe as one YAML file with all keys.
///
/// # Errors
///
/// Fails if a value cannot be written as YAML.
pub fn to_yaml(recipe: &Recipe) -> Result<String, LoadError> {
    serde_saphyr::to_string(recipe)
        .map_err(|error| LoadError::Resolve { reason: error.to_string() })
}

/// Holds the files and flags read so far. A [`Span`] refers to one of them by its index.
#[derive(Default)]
struct Loader {
    texts: Vec<Text>,
    /// Warnings about the merging of files and flags.
    warnings: Vec<String>,
}

/// A `--set` flag: the segments of its key with their positions, and its value.
struct Flag<'a> {
    path: Vec<(&'a str, Span)>,
    value: Node,
}

/// Keys `family` and `size` of a role that flags set.
fn chosen_by_flags(flags: &[Flag<'_>], role: Role, span: Span) -> Node {
    let mut chosen = Node { span, value: Value::Map(Vec::new()) };
    for Flag { path, value } in flags {
        if let [("model", _), (name, _), (key @ ("family" | "size"), at)] = path[..]
            && name == role.key()
        {
            let set = chosen.set(&[(key, at)], value.clone());
            debug_assert!(set.is_ok(), "a key of a map can be set");
        }
    }
    chosen
}

impl Loader {
    /// Applies the flags `sets` to the merged files, reads the recipe, checks and resolves it.
    fn recipe(mut self, mut root: Node, sets: &[String]) -> Result<Loaded, LoadError> {
        self.read_sets(&mut root)?;
        let flags: Vec<Flag<'_>> =
            sets.iter().map(|set| self.flag(set)).collect::<Result<_, _>>()?;
        for role in Role::ALL {
            let chosen = chosen_by_flags(&flags, role, root.span);
            self.warnings.extend(families::leave_published(&mut root, role, &chosen));
        }
        for flag in flags {
            self.apply(&mut root, flag)?;
        }
        // A flag may name another set.
        self.read_sets(&mut root)?;
        for (part, named) in [("data", "sources"), ("table", "rows")] {
            leave_out(&mut root, part, named);
        }
        let warning = table::expand(&mut root).map_err(|fault| self.fault(fault))?;
        self.warnings.extend(warning);
        families::expand(&mut root).map_err(|fault| self.fault(fault))?;
        let recipe: Recipe = read::read(&root).map_err(|fault| self.fault(fault))?;
        let problems = check::check(&recipe);
        if !problems.is_empty() {
            return Err(self.problems(&root, problems));
        }
        resolved(recipe, self.warnings)
    }

    /// Loads a file and merges it over the file that it extends. `above` holds the files that
    /// extend this one, to detect a cycle.
    fn file_with_bases(
        &mut self,
        path: &Path,
        above: &mut Vec<PathBuf>,
    ) -> Result<Node, LoadError> {
        let text = read_text(path)?;
        let index = self.add(path.display().to_string(), text);
        let mut root = self.parse(index)?;
        programme::refuse(self, &root)?;
        let Some(entry) = root.take("extends") else { return Ok(root) };
        let Value::Text(base) = &entry.node.value else {
            let what =
                format!("extends: expected a string, found {}", tree::describe(&entry.node.value));
            let help = "name one recipe, relative to this file: `extends: other.yaml`";
            return Err(self.mistake(entry.node.span, what, "this value", Some(help.to_owned())));
        };
        above.push(canonical(path));
        let base = path.parent().unwrap_or_else(|| Path::new("")).join(base);
        if above.contains(&canonical(&base)) {
            let what =
                format!("extends: {} extends itself, directly or through others", base.display());
            return Err(self.mistake(entry.node.span, what, "closes the cycle", None));
        }
        if !base.is_file() {
            let what = format!("extends: there is no recipe {}", base.display());
            let help = neighbours(&base);
            return Err(self.mistake(entry.node.span, what, "this file", help));
        }
        let mut merged = self.file_with_bases(&base, above)?;
        for role in Role::ALL {
            if let Some(over) = root.get("model").and_then(|model| model.get(role.key())) {
                self.warnings.extend(families::leave_published(&mut merged, role, over));
            }
        }
        families::leave_parts(&mut merged, &root);
        // They are changes of the base's own keys.
        merged.take("readings");
        merged.merge(root);
        Ok(merged)
    }

    fn parse(&self, index: usize) -> Result<Node, LoadError> {
        let text = &self.texts[index].text;
        let start = Span { text: index, offset: 0, length: 0 };
        if text.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#')) {
            let what = "the recipe is empty".to_owned();
            let help = "start from recipes/quickstart.yaml, or `extends` a recipe".to_owned();
            return Err(self.mistake(start, what, "nothing here", Some(help)));
        }
        let root = tree::parse(text, index, 0).map_err(|fault| self.syntax(index, 0, fault))?;
        if !matches!(root.value, Value::Map(_)) {
            let what =
                format!("a recipe must be keys and values, found {}", tree::describe(&root.value));
            return Err(self.mistake(root.span, what, "here", None));
        }
        Ok(Node { span: start, ..root })
    }

    /// Parses a `--set` flag.
    fn flag<'a>(&mut self, set: &'a str) -> Result<Flag<'a>, LoadError> {
        let index = self.add(format!("--set {set}"), set.to_owned());
        let span = |offset, length| Span { text: index, offset, length };
        let Some((path, value)) = set.split_once('=') else {
            let what = format!("--set {set}: the `=` is missing");
            let help = "write `--set key.of.the.recipe=value`".to_owned();
            return Err(self.mistake(span(0, set.len()), what, "this flag", Some(help)));
        };
        let mut segments = Vec::new();
        let mut offset = 0;
        for segment in path.split('.') {
            segments.push((segment, span(offset, segment.len())));
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
            return Err(self.mistake(span(0, path.len()), what, "this key", Some(help)));
        }
        let start = path.len() + 1;
        let mut node = if value.trim().is_empty() {
            Node { span: span(0, path.len()), value: Value::Null }
        } else {
            tree::parse(value, index, start).map_err(|fault| self.syntax(index, start, fault))?
        };
        if matches!(node.value, Value::Null | Value::List(_) | Value::Map(_)) {
            node.span = span(0, path.len());
        }
        Ok(Flag { path: segments, value: node })
    }

    fn apply(&self, root: &mut Node, flag: Flag<'_>) -> Result<(), LoadError> {
        root.set(&flag.path, flag.value).map_err(|(at, why)| {
            let path: Vec<&str> = flag.path.iter().map(|(segment, _)| *segment).collect();
            self.mistake(at, format!("--set {}: {why}", path.join(".")), "here", None)
        })
    }

    fn add(&mut self, name: String, text: String) -> usize {
        self.texts.push(Text { name, text });
        self.texts.len() - 1
    }

    fn syntax(&self, index: usize, shift: usize, fault: SyntaxFault) -> LoadError {
        let span = Span { text: index, offset: shift + fault.offset, length: fault.length };
        if fault.duplicate.is_some() {
            let help = "keep one of the two".to_owned();
            return self.mistake(span, fault.message, "second time", Some(help));
        }
        let text = &self.texts[index].text;
        let tab = tab_in_indentation(text, span.offset);
        let (span, help) = match tab {
            Some(offset) => (
                Span { text: index, offset, length: 1 },
                Some("YAML is indented with spaces; this is a tab".to_owned()),
            ),
            None => (span, None),
        };
        self.mistake(span, format!("this is not YAML: {}", fault.message), "here", help)
    }

    fn fault(&self, fault: Fault) -> LoadError {
        let what = fault.to_string();
        let span = fault.span.unwrap_or(Span { text: 0, offset: 0, length: 0 });
        self.mistake(span, what, fault.label, fault.help)
    }

    fn problems(&self, root: &Node, problems: Vec<Problem>) -> LoadError {
        let mut mistakes: Vec<Mistake> = problems
            .into_iter()
            .map(|problem| {
                let what = format!("{}: {}", problem.key, problem.what);
                self.spot(root.span_of(&problem.key), what, "here", Some(problem.help))
            })
            .collect();
        if mistakes.len() == 1
            && let Some(only) = mistakes.pop()
        {
            return LoadError::Mistake(Box::new(only));
        }
        LoadError::Mistakes { mistakes }
    }

    fn mistake(&self, span: Span, what: String, label: &str, help: Option<String>) -> LoadError {
        LoadError::Mistake(Box::new(self.spot(span, what, label, help)))
    }

    fn spot(&self, span: Span, what: String, label: &str, help: Option<String>) -> Mistake {
        let Text { name, text } = &self.texts[span.text];
        let offset = floor_boundary(text, span.offset);
        let end = floor_boundary(text, span.offset + span.length).max(offset);
        let before = &text[..offset];
        let line = before.matches('\n').count() + 1;
        let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
        let source = NamedSource::new(name, text.clone());
        let source = if name.starts_with("--set") { source } else { source.with_language("yaml") };
        let span = SourceSpan::new(offset.into(), end - offset);
        Mistake { what, text: source, line, column, label: label.to_owned(), span, help }
    }
}

/// Returns the last character boundary in the text that is at or before `offset`.
fn floor_boundary(text: &str, offset: usize) -> usize {
    text.floor_char_boundary(offset.min(text.len()))
}

/// Returns the offset of a tab that indents the line of `offset` or a neighbouring line. The parser
/// may report a tab only on the next line.
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
        let reason =
            format!("it has {} bytes; a recipe has at most {MAX_FILE_BYTES}", metadata.len());
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

/// Returns the names of a folder's recipes in alphabetical order.
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

/// Suggests another recipe of the folder for a path that does not exist.
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
#[cfg(test)]
mod tests_table;
