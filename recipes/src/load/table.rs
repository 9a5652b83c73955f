//! Short forms of the key `table`.
//!
//! These functions change the tree of a recipe before it is read, so that an error in it keeps its
//! position.

use super::families;
use crate::read::Fault;
use crate::tree::{Entry, Node, Span, Value};

/// Replaces `run` by a row, leaves out rows that are `null`, and fills in the
/// keys of published models.
pub(super) fn expand(root: &mut Node) -> Result<(), Fault> {
    if root.get("table").is_none() {
        return Ok(());
    }
    let run = root.take("run");
    let rows = root.get_mut("table").and_then(|table| table.get_mut("rows"));
    let Some(Node { value: Value::Map(rows), .. }) = rows else {
        return run.map_or(Ok(()), |run| Err(without_row(run.key_span)));
    };
    rows.retain(|row| !matches!(row.node.value, Value::Null));
    if let Some(run) = run {
        let row = rows.iter().position(|row| row.node.get("run").is_some());
        let Some(row) = row else { return Err(without_row(run.key_span)) };
        let mut row = rows.swap_remove(row);
        row.node.take("run");
        row.node.take("step");
        row.node.push(run);
        *rows = vec![row];
    }
    for Entry { key, node, .. } in rows {
        if let Some(model) = node.get_mut("model") {
            families::expand_model(model)
                .map_err(|fault| fault.under(&**key).under("rows").under("table"))?;
        }
    }
    Ok(())
}

fn without_row(span: Span) -> Fault {
    let what = "`run` takes the place of a row's run, and no row has one";
    let help = "write the row: `table: {rows: {NAME: {run: DIR}}}`";
    Fault::in_value(span, what, help).under("run")
}
