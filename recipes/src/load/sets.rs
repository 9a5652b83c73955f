//! Files of evaluation sets, which tasks name with `set: FILE`.
//!
//! The file is read when the recipe is, so that the resolved recipe holds the whole set and its
//! mistakes are shown in its file. Its key `task` has defaults of the task's own keys.

use std::path::{Path, PathBuf};

use super::{LoadError, Loader, neighbours, read_text};
use crate::check;
use crate::read;
use crate::schema::Task;
use crate::tree::{Entry, Node, Span, Value};

/// Loads and checks the file of an evaluation set as a task of its own.
///
/// # Errors
///
/// Returns the first mistake of syntax, key or type, or all problems of the set and its task.
pub fn load_set(path: &Path) -> Result<Task, LoadError> {
    let mut loader = Loader::default();
    let set = loader.set_file(path)?;
    let span = set.span;
    let task = with_set(set, Node { span, value: Value::Map(Vec::new()) });
    let read: Task = read::read(&task).map_err(|fault| loader.fault(fault))?;
    let problems = check::set(&read, "task");
    if problems.is_empty() {
        return Ok(read);
    }
    let task = Entry { key: "task".to_owned(), key_span: span, node: task };
    Err(loader.problems(&Node { span, value: Value::Map(vec![task]) }, problems))
}

impl Loader {
    /// Replaces each path of a set under `evaluation.tasks` by the set in that file.
    pub(super) fn read_sets(&mut self, root: &mut Node) -> Result<(), LoadError> {
        let tasks = root.get_mut("evaluation").and_then(|evaluation| evaluation.get_mut("tasks"));
        let Some(Node { value: Value::List(tasks), .. }) = tasks else { return Ok(()) };
        for task in tasks {
            let Some(Node { span, value: Value::Text(path) }) = task.get("set") else { continue };
            let (span, path) = (*span, self.beside(*span, path));
            if !path.is_file() {
                let what = format!("set: there is no file {} of a set", path.display());
                return Err(self.mistake(span, what, "this file", neighbours(&path)));
            }
            let set = self.set_file(&path)?;
            task.take("set");
            let empty = Node { span: task.span, value: Value::Map(Vec::new()) };
            *task = with_set(set, std::mem::replace(task, empty));
        }
        Ok(())
    }

    /// A path relative to the recipe in which it was written, or to the working directory if a flag
    /// gives it.
    fn beside(&self, span: Span, path: &str) -> PathBuf {
        let name = &self.texts[span.text].name;
        if name.starts_with("--set") {
            return PathBuf::from(path);
        }
        Path::new(name).parent().unwrap_or_else(|| Path::new("")).join(path)
    }

    fn set_file(&mut self, path: &Path) -> Result<Node, LoadError> {
        let text = read_text(path)?;
        let index = self.add(path.display().to_string(), text);
        self.parse(index)
    }
}

/// The task of the file of a set, with the set as its key `set`, and changed by the keys of `over`.
fn with_set(mut set: Node, over: Node) -> Node {
    let mut task = match set.take("task") {
        Some(Entry { node: node @ Node { value: Value::Map(_), .. }, .. }) => node,
        // A value that is no map is left in the set, where its reading is refused.
        Some(entry) => {
            set.push(entry);
            Node { span: set.span, value: Value::Map(Vec::new()) }
        }
        None => Node { span: set.span, value: Value::Map(Vec::new()) },
    };
    if let (None, Some(name)) = (task.get("name"), set.get("name")) {
        let entry = Entry { key: "name".to_owned(), key_span: name.span, node: name.clone() };
        task.push(entry);
    }
    task.merge(over);
    task.push(Entry { key: "set".to_owned(), key_span: set.span, node: set });
    task
}
