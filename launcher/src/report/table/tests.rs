//! Tests of the tables of the paper, on rows made by hand.

use vljepa_recipes::paper::{PaperTable, TABLES, Unit};
use vljepa_recipes::protocol::{
    DecodedEmbedding, DecodingCurve, DecodingCurves, DecodingPoints, DecodingScore, LabelCount,
};

use super::{number, page, short, signed, text};
use crate::record::table::{Cell, OwnPoint, OwnRow, PaperComparison};
use vljepa_recipes::load;

fn cell(value: Option<f64>, paper: Option<f64>) -> Cell {
    let difference = value.zip(paper).map(|(value, paper)| value - paper);
    let interval = value.map(|value| [value - 1.0, value + 1.0]);
    Cell { value, interval, paper, difference }
}

/// A row whose cells are those of the paper, each plus `more`.
fn row(paper: &'static PaperTable, name: &str, more: f64) -> OwnRow {
    let twin = paper.row(name);
    let points = match twin {
        Some(twin) if !twin.points.is_empty() => twin
            .points
            .iter()
            .map(|point| OwnPoint {
                samples: Some(point.samples),
                cells: point.values.iter().map(|v| cell(v.map(|v| v + more), *v)).collect(),
            })
            .collect(),
        Some(twin) => vec![OwnPoint {
            samples: None,
            cells: twin.values.iter().map(|v| cell(v.map(|v| v + more), *v)).collect(),
        }],
        None => vec![OwnPoint {
            samples: None,
            cells: vec![cell(Some(more), None); paper.columns.len()],
        }],
    };
    OwnRow {
        name: name.to_owned(),
        twin,
        title: twin.map_or(name, |twin| &twin.name).to_owned(),
        weights: "runs/<a>".to_owned(),
        step: Some(170_000),
        parameters: None,
        samples: Some(3_310_000_000),
        left_out: Vec::new(),
        points,
        metrics: [("m".to_owned(), crate::record::history::Score::default())].into(),
        recipe: None,
        labels: [("m".to_owned(), [("red".to_owned(), LabelCount { right: 3, n: 4 })].into())]
            .into(),
        decoding: [("d".to_owned(), decoding())].into(),
        examples: Vec::new(),
    }
}

fn decoding() -> DecodingCurves {
    let score =
        |frequency: f64| DecodingScore { frequency, decodes_per_s: frequency, cider: frequency };
    let curves = vec![DecodingCurve {
        points: DecodingPoints::Adaptive,
        embedding: DecodedEmbedding::Mean,
        scores: vec![score(2.0), score(0.01)],
    }];
    let (videos, annotations, seconds) = (1, 2, 3.0);
    DecodingCurves { videos, annotations, seconds, compare_at: 1.0, saving: None, curves }
}

fn compared(of: &str, rows: &[(&str, f64)]) -> PaperComparison {
    let paper = &TABLES[of];
    PaperComparison {
        paper,
        replaced: [(paper.columns[0].id.clone(), vec!["my_metric".to_owned()])].into(),
        own: rows.iter().map(|(name, more)| row(paper, name, *more)).collect(),
    }
}

fn recipe(of: &str) -> vljepa_recipes::Recipe {
    let path = format!("{}/../recipes/evaluate/{of}.yaml", env!("CARGO_MANIFEST_DIR"));
    load(path.as_ref(), &[]).unwrap().recipe
}

#[test]
fn every_table_is_drawn_with_its_own_and_the_papers_rows() {
    for of in TABLES.keys() {
        let rows: Vec<(&str, f64)> =
            TABLES[of].rows.iter().map(|row| (&*row.id, 1.5)).chain([("mine", 50.0)]).collect();
        let compared = compared(of, &rows);
        let recipe = recipe(of);
        let page = page(&compared, &recipe).into_string();
        let (terminal, markdown) = (text::terminal(&compared), text::markdown(&compared));
        for row in &TABLES[of].rows {
            for text in [&page, &terminal, &markdown] {
                assert!(text.contains(&row.name), "{of}: {}", row.name);
            }
        }
        for text in [&page, &terminal, &markdown] {
            assert!(text.contains("shows my_metric"), "{of}");
            assert!(
                text.contains("mine") && (text.contains("+1.5") || text.contains("+1.50")),
                "{of}"
            );
            assert!(!text.contains("NaN") && !text.contains("inf%"), "{of}");
        }
        assert!(page.contains("75.0") && page.contains("3 of 4"), "{of}: bars of labels");
        assert!(page.contains("adaptive points, mean embedding"), "{of}: curves of decoding");
        // Paths cannot become elements of the page.
        assert!(!page.contains("<a>") && page.contains("runs/&lt;a&gt;"));
        let widths: Vec<usize> = markdown
            .lines()
            .filter(|line| line.starts_with('|'))
            .map(|line| line.matches(" | ").count())
            .collect();
        assert!(widths.iter().all(|width| [4, 8].contains(width)), "{of}: {widths:?}");
    }
}

#[test]
fn a_wide_table_has_a_line_for_each_column_and_a_narrow_one_for_each_row() {
    let wide = text::terminal(&compared("table1", &[("vl_jepa_base", -1.0), ("vl_jepa_sft", 1.0)]));
    assert!(wide.contains("EgoExo4D"), "{wide}");
    let line = wide.lines().find(|line| line.starts_with("EgoExo4D")).unwrap();
    let cells: Vec<&str> = line.split_whitespace().collect();
    assert_eq!(
        cells,
        ["EgoExo4D", "32.2", "33.2", "−1.0", "31.2–33.2", "69.1", "68.1", "+1.0", "68.1–70.1"]
    );
    // Both rows differ by one from the paper, so that their difference to the default is the
    // paper's own.
    let narrow =
        text::terminal(&compared("table5b", &[("multiplier_0_05", 1.0), ("multiplier_1", 1.0)]));
    let line = narrow.lines().find(|line| line.starts_with("multiplier = 1.00 ")).unwrap();
    assert!(line.contains("24.7 (−3.6)") && line.contains("23.7 (−3.6)"), "{narrow}");
    assert!(narrow.contains("step 170,000") && narrow.contains("3.31B samples seen"));
}

#[test]
fn differences_have_a_sign_and_numbers_are_short() {
    let shown = [0.04, -0.04, 0.06, -12.34].map(|value| signed(value, Unit::Hundredth));
    assert_eq!(shown, ["0.0", "0.0", "+0.1", "−12.3"]);
    assert_eq!(signed(-0.04, Unit::Factor), "−0.04");
    assert_eq!(number(2.85, Unit::Factor), "2.85");
    let shown = [999, 9_999, 12_800, 999_999, 5_000_000, 999_000_000, 3_310_000_000].map(short);
    assert_eq!(shown, ["999", "9,999", "13K", "1M", "5M", "1.00B", "3.31B"]);
}
