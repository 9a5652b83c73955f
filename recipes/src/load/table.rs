//! Short forms of the key `table`.
//!
//! These functions change the tree of a recipe before it is read, so that an error in it keeps its
//! position.

use std::path::Path;

use super::families;
use crate::read::Fault;
use crate::tree::{Entry, Node, Span, Value};

/// Puts the folder `table.runs` before the runs of rows, replaces `run` by a row, and fills in the
/// keys of published models. Returns a warning if the row of `run` is one that the recipe gives to
/// another run.
pub(super) fn expand(root: &mut Node) -> Result<Option<String>, Fault> {
    if root.get("table").is_none() {
        return Ok(None);
    }
    let run = root.take("run");
    let Some(table) = root.get_mut("table") else { return Ok(None) };
    let folder = table.take("runs");
    let Some(Node { value: Value::Map(rows), .. }) = table.get_mut("rows") else {
        return run.map_or(Ok(None), |run| Err(without_row(run.key_span)));
    };
    if let Some(folder) = folder {
        below(rows, &folder)?;
    }
    let warning = match run {
        Some(run) => only(rows, run)?,
        None => None,
    };
    for Entry { key, node, .. } in rows {
        if let Some(model) = node.get_mut("model") {
            families::expand_model(model)
                .map_err(|fault| fault.under(&**key).under("rows").under("table"))?;
        }
    }
    Ok(warning)
}

/// Puts `folder` before the runs of the rows.
fn below(rows: &mut [Entry], folder: &Entry) -> Result<(), Fault> {
    let Value::Text(folder) = &folder.node.value else {
        let what = "`runs` is the folder that holds the runs of the rows";
        let help = "write a path: `runs: runs/miniature`";
        return Err(Fault::in_value(folder.node.span, what, help).under("runs").under("table"));
    };
    for row in rows {
        if let Some(Node { value: Value::Text(run), .. }) = row.node.get_mut("run") {
            *run = Path::new(folder).join(&*run).display().to_string();
        }
    }
    Ok(())
}

/// Keeps one row, with the newest checkpoint of `run`: that which names this run, or else the first
/// row with a run.
fn only(rows: &mut Vec<Entry>, run: Entry) -> Result<Option<String>, Fault> {
    let path = |node: &Node| match &node.value {
        Value::Text(path) => Some(path.clone()),
        _ => None,
    };
    let of_row = |row: &Entry| row.node.get("run").and_then(path);
    let wanted = path(&run.node);
    let same = rows.iter().position(|row| wanted.is_some() && of_row(row) == wanted);
    let first = || rows.iter().position(|row| of_row(row).is_some());
    let Some(index) = same.or_else(first) else { return Err(without_row(run.key_span)) };
    let mut row = rows.swap_remove(index);
    row.node.take("run");
    row.node.take("step");
    row.node.push(run);
    let name = row.key.clone();
    *rows = vec![row];
    let warning = || {
        format!(
            "run: no row has this run, so it is the row `{name}`; for another row, set \
             `table.rows.NAME.run`"
        )
    };
    Ok(same.is_none().then(warning))
}

fn without_row(span: Span) -> Fault {
    let what = "`run` takes the place of a row's run, and no row has one";
    let help = "write the row: `table: {rows: {NAME: {run: DIR}}}`";
    Fault::in_value(span, what, help).under("run")
}
