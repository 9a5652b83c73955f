//! Numbers of the comparisons that a claim is made of.

use vljepa_recipes::claims::{DecodingClaim, Evidence, Relation};
use vljepa_recipes::paper::{SAME_SAMPLES, TABLES, Unit};
use vljepa_recipes::protocol::{DecodedEmbedding, DecodingCurve, DecodingCurves, DecodingPoints};

use super::Comparison;
use crate::record::table::{Cell, OwnPoint, OwnRow, PaperComparison};
use crate::statistics::to_f64;

/// A comparison, or the names of rows or columns that were not measured.
type Found = Result<Comparison, Vec<String>>;

/// Comparisons of a piece of evidence by the seeds of its table.
pub(super) fn compared(evidence: &Evidence, seeds: &[PaperComparison]) -> Vec<Found> {
    match evidence {
        Evidence::Scores { table, columns, row, relation, than, after } => {
            let of =
                |column: &String| of_scores(table, seeds, column, [row, than], *relation, *after);
            columns.iter().map(of).collect()
        }
        Evidence::Trained { table, row, of, share } => {
            vec![trained(table, seeds, [row, of], *share)]
        }
        Evidence::Decoding { table, row, claim } => decoding(table, seeds, row, *claim),
    }
}

/// Compares the scores of two rows in a column. A row that was not measured has the value that the
/// paper prints, if the column shows the paper's sets.
fn of_scores(
    table: &str,
    seeds: &[PaperComparison],
    column: &str,
    rows: [&str; 2],
    relation: Relation,
    after: f64,
) -> Found {
    let names = rows.map(|row| row_name(table, row));
    let known = TABLES.get(table).and_then(|paper| {
        let index = paper.columns.iter().position(|own| own.id == column)?;
        Some((index, &paper.columns[index]))
    });
    let Some((index, of)) = known else { return Err(vec![column.to_owned()]) };
    let is_measured = rows.map(|row| seeds.iter().all(|seed| own_row(seed, row).is_some()));
    let absent = || {
        let names = names.iter().zip(is_measured).filter(|(_, is_measured)| !is_measured);
        let names: Vec<String> = names.map(|(name, _)| name.clone()).collect();
        if names.is_empty() { vec![of.title.clone()] } else { names }
    };
    if seeds.is_empty() || is_measured == [false; 2] {
        return Err(names.to_vec());
    }
    let cells = |seed: &PaperComparison| -> Option<[Cell; 2]> {
        let last = |row: &&str| own_row(seed, row)?.points.last()?.samples;
        let wanted = rows.iter().filter_map(last).max().map(|last| after * to_f64(last));
        let cell = |row: &str, is_measured: bool| match is_measured {
            true => measured(own_row(seed, row)?, index, wanted, after),
            false if seed.replaced.contains_key(column) => None,
            false => {
                let value = seed.paper.row(row)?.after(after)?[index];
                Some(Cell { value, ..Cell::default() }).filter(|cell| cell.value.is_some())
            }
        };
        Some([cell(rows[0], is_measured[0])?, cell(rows[1], is_measured[1])?])
    };
    let Some(cells) = seeds.iter().map(cells).collect::<Option<Vec<[Cell; 2]>>>() else {
        return Err(absent());
    };
    let overlaps = match cells.as_slice() {
        [[Cell { interval: Some(a), .. }, Cell { interval: Some(b), .. }]] => {
            a[0] <= b[1] && b[0] <= a[1]
        }
        _ => false,
    };
    let values = cells.iter().map(|pair| pair.map(|cell| cell.value.unwrap_or_default())).collect();
    let names = [0, 1].map(|side| match is_measured[side] {
        true => names[side].clone(),
        false => format!("{} (printed)", names[side]),
    });
    let is_replaced = seeds.iter().any(|seed| seed.replaced.contains_key(column));
    let comparison = comparison(of.title.clone(), names, relation, Some(of.unit), values);
    Ok(Comparison { is_replaced, overlaps, ..comparison })
}

/// The measured cell of a row, and of a curve after about `wanted` samples.
fn measured(row: &OwnRow, column: usize, wanted: Option<f64>, after: f64) -> Option<Cell> {
    let is_there = |point: &&OwnPoint| match (point.samples, wanted) {
        (Some(samples), Some(wanted)) => (to_f64(samples) - wanted).abs() <= SAME_SAMPLES * wanted,
        // A single score after all samples.
        _ => after >= 1.0,
    };
    let cell = row.points.iter().rev().find(is_there)?.cells.get(column)?;
    cell.value.is_some().then_some(*cell)
}

/// Compares the trained parameters of two rows.
fn trained(table: &str, seeds: &[PaperComparison], rows: [&str; 2], share: f64) -> Found {
    let count =
        |seed: &PaperComparison, row: &str| Some(to_f64(own_row(seed, row)?.parameters?.trained));
    let lacks =
        |row: &&str| seeds.is_empty() || seeds.iter().any(|seed| count(seed, row).is_none());
    let absent: Vec<String> =
        rows.iter().filter(|row| lacks(row)).map(|row| row_name(table, row)).collect();
    if !absent.is_empty() {
        return Err(absent);
    }
    let ratio =
        |seed: &PaperComparison| Some([count(seed, rows[0])? / count(seed, rows[1])?, share]);
    let values: Vec<[f64; 2]> = seeds.iter().filter_map(ratio).collect();
    let [first, second] = rows.map(|row| row_name(table, row));
    let names = [format!("{first} / {second}"), String::new()];
    let title = "Trained parameters".to_owned();
    Ok(comparison(title, names, Relation::About, Some(Unit::Factor), values))
}

/// Compares the curves of selective decoding of a row.
fn decoding(table: &str, seeds: &[PaperComparison], row: &str, claim: DecodingClaim) -> Vec<Found> {
    let curves = |seed: &PaperComparison| own_row(seed, row)?.decoding.values().next().cloned();
    let all: Option<Vec<DecodingCurves>> = seeds.iter().map(curves).collect();
    let Some(all) = all.filter(|all| !all.is_empty()) else {
        return vec![Err(vec![row_name(table, row)])];
    };
    let [uniform, adaptive] = [DecodingPoints::Uniform, DecodingPoints::Adaptive];
    let [exact, pooled] = [DecodedEmbedding::Exact, DecodedEmbedding::Mean];
    let leads = |title: &str, name: &str, a: Kind, b: Kind| {
        let values: Option<Vec<[f64; 2]>> = all.iter().map(|curves| ahead(curves, a, b)).collect();
        let names = [name.to_owned(), "frequencies".to_owned()];
        let title = title.to_owned();
        let unknown = || vec![row_name(table, row)];
        let values = values.ok_or_else(unknown)?;
        Ok(comparison(title, names, Relation::All, None, values))
    };
    match claim {
        DecodingClaim::Saving => {
            let values: Option<Vec<[f64; 2]>> = all.iter().map(saving).collect();
            let names = [row_name(table, row), String::new()];
            let title = "Saving of decodes".to_owned();
            let of =
                |values| comparison(title, names, Relation::Higher, Some(Unit::Factor), values);
            vec![values.map(of).ok_or_else(|| vec!["a score that uniform points lose".to_owned()])]
        }
        DecodingClaim::AdaptivePoints => vec![
            leads(
                "Single embeddings",
                "adaptive points ahead at",
                (adaptive, exact),
                (uniform, exact),
            ),
            leads(
                "Mean embeddings",
                "adaptive points ahead at",
                (adaptive, pooled),
                (uniform, pooled),
            ),
        ],
        DecodingClaim::MeanEmbeddings => vec![
            leads(
                "Uniform points",
                "mean embeddings ahead at",
                (uniform, pooled),
                (uniform, exact),
            ),
            leads(
                "Adaptive points",
                "mean embeddings ahead at",
                (adaptive, pooled),
                (adaptive, exact),
            ),
        ],
    }
}

/// Points and embeddings of a curve of selective decoding.
type Kind = (DecodingPoints, DecodedEmbedding);

fn curve(curves: &DecodingCurves, (points, embedding): Kind) -> Option<&DecodingCurve> {
    curves.curves.iter().find(|curve| curve.points == points && curve.embedding == embedding)
}

/// Number of frequencies at which curve `a` is above curve `b`, and number of all.
fn ahead(curves: &DecodingCurves, a: Kind, b: Kind) -> Option<[f64; 2]> {
    let (a, b) = (&curve(curves, a)?.scores, &curve(curves, b)?.scores);
    let above = a.iter().zip(b).filter(|(a, b)| a.cider > b.cider).count();
    Some([to_f64(above as u64), to_f64(a.len() as u64)])
}

/// The saving, and 1, which is none. The saving is 0 if adaptive points never reach the score of
/// uniform points, and unknown if uniform points reach it at every frequency.
fn saving(curves: &DecodingCurves) -> Option<[f64; 2]> {
    if let Some(saving) = curves.saving {
        return Some([saving.ratio, 1.0]);
    }
    let ciders = |points| {
        let curve = curve(curves, (points, DecodedEmbedding::Mean))?;
        Some(curve.scores.iter().map(|score| (score.frequency, score.cider)).collect::<Vec<_>>())
    };
    let distance = |frequency: f64| (frequency - curves.compare_at).abs();
    let uniform = ciders(DecodingPoints::Uniform)?;
    let wanted = uniform.into_iter().min_by(|a, b| distance(a.0).total_cmp(&distance(b.0)))?.1;
    let reaches = ciders(DecodingPoints::Adaptive)?.iter().any(|score| score.1 >= wanted);
    (!reaches).then_some([0.0, 1.0])
}

fn comparison(
    of: String,
    names: [String; 2],
    relation: Relation,
    unit: Option<Unit>,
    values: Vec<[f64; 2]>,
) -> Comparison {
    let holds_in = values.iter().filter(|pair| relation.holds(**pair)).count();
    Comparison { of, is_replaced: false, names, relation, unit, values, holds_in, overlaps: false }
}

/// The row that is compared with the paper's row `id`, if it has a score.
fn own_row<'a>(table: &'a PaperComparison, id: &str) -> Option<&'a OwnRow> {
    let has_score = |row: &OwnRow| {
        row.points.iter().flat_map(|point| &point.cells).any(|cell| cell.value.is_some())
    };
    let is_it = |row: &&OwnRow| row.twin.is_some_and(|twin| twin.id == id) && has_score(row);
    table.own.iter().find(is_it)
}

/// Name of a row in the paper.
fn row_name(table: &str, id: &str) -> String {
    let row = TABLES.get(table).and_then(|paper| paper.row(id));
    row.map_or(id, |row| &row.name).to_owned()
}
