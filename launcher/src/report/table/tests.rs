//! Tests of the tables of the paper, on rows made by hand.

use std::collections::BTreeMap;

use vljepa_recipes::paper::{PaperTable, TABLES, Unit};
use vljepa_recipes::protocol::{
    DecodedEmbedding, DecodingCurve, DecodingCurves, DecodingPoints, DecodingScore, LabelCount,
    Saving,
};

use super::{number, page, short, signed, text, whole_page};
use crate::record::paper::{Judged, Paper, Verdict};
use crate::record::table::{Cell, Count, OwnPoint, OwnRow, PaperComparison};
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
        note: None,
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

/// Curves at two frequencies. Adaptive points are ahead of uniform points, and mean embeddings are
/// ahead of single embeddings.
fn decoding() -> DecodingCurves {
    let curve = |points, embedding, more: f64| {
        let score = |frequency: f64| DecodingScore {
            frequency,
            decodes_per_s: frequency,
            cider: frequency + more,
            interval: None,
        };
        DecodingCurve { points, embedding, scores: vec![score(1.0), score(0.01)] }
    };
    let curves = vec![
        curve(DecodingPoints::Uniform, DecodedEmbedding::Exact, 0.0),
        curve(DecodingPoints::Uniform, DecodedEmbedding::Mean, 0.1),
        curve(DecodingPoints::Adaptive, DecodedEmbedding::Exact, 0.3),
        curve(DecodingPoints::Adaptive, DecodedEmbedding::Mean, 0.4),
    ];
    let saving = Some(Saving { ratio: 2.85, at_least: false });
    let (videos, annotations, seconds) = (1, 2, 3.0);
    DecodingCurves { videos, annotations, seconds, compare_at: 1.0, saving, curves }
}

fn compared(of: &str, rows: &[(&str, f64)]) -> PaperComparison {
    let paper = &TABLES[of];
    PaperComparison {
        paper,
        replaced: [(paper.columns[0].id.clone(), vec!["my_metric".to_owned()])].into(),
        seeds: 1,
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
    assert_eq!(number(-0.004, Unit::Hundredth), "0.0");
    assert_eq!(number(-0.04, Unit::Factor), "-0.04");
    let shown = [999, 9_999, 12_800, 999_999, 5_000_000, 999_000_000, 3_310_000_000].map(short);
    assert_eq!(shown, ["999", "9,999", "13K", "1M", "5M", "1.00B", "3.31B"]);
}

/// A seed of each table that has all rows of the paper, with the paper's own values.
fn printed() -> BTreeMap<String, Vec<PaperComparison>> {
    let all = |of: &String| {
        let rows: Vec<(&str, f64)> = TABLES[of].rows.iter().map(|row| (&*row.id, 0.0)).collect();
        (of.clone(), vec![compared(of, &rows)])
    };
    TABLES.keys().map(all).collect()
}

fn claim<'a>(paper: &'a Paper, id: &str) -> &'a Judged {
    paper.claims.iter().find(|judged| judged.claim.id == id).unwrap()
}

fn own_rows<'a>(paper: &'a Paper, table: &str) -> &'a [OwnRow] {
    &paper.tables.iter().find(|own| std::ptr::eq(own.paper, &raw const TABLES[table])).unwrap().own
}

#[test]
fn the_papers_own_values_reproduce_its_claims_and_others_do_not() {
    let mut seeds = printed();
    let paper = Paper::of(&seeds);
    // The paper prints no numbers of trained parameters, and no scores of the VLM after a third of
    // the samples.
    let open = ["sample_efficiency", "trained_parameters"];
    for judged in &paper.claims {
        let id = &*judged.claim.id;
        let wanted = if open.contains(&id) { Verdict::NotComparable } else { Verdict::Reproduced };
        assert_eq!(judged.verdict, wanted, "{id}");
        assert_eq!(judged.missing.is_empty(), !open.contains(&id), "{id}");
    }
    // A second seed in which one row is lower by 30.
    let rows = [("pretraining", -30.0), ("no_pretraining", 0.0)];
    seeds.get_mut("table5a").unwrap().push(compared("table5a", &rows));
    seeds.remove("table3");
    for (row, trained) in seeds.get_mut("figure3").unwrap()[0].own.iter_mut().zip([50, 100]) {
        row.parameters = Some(Count { trained, total: 200 });
    }
    let paper = Paper::of(&seeds);
    assert_eq!(claim(&paper, "world_modelling").verdict, Verdict::NotComparable);
    assert_eq!(claim(&paper, "trained_parameters").verdict, Verdict::Reproduced);
    let judged = claim(&paper, "pretraining");
    assert_eq!(judged.verdict, Verdict::NotReproduced);
    assert!(judged.comparisons.iter().all(|comparison| comparison.holds_in == 1));
    // Means over both seeds, with the lowest and the highest.
    let cell = own_rows(&paper, "table5a")[0].points[0].cells[0];
    let close = |a: f64, b: f64| (a - b).abs() < 1e-9;
    let [low, high] = cell.interval.unwrap();
    assert!(close(cell.value.unwrap(), 34.0) && close(low, 19.0) && close(high, 49.0));
    // The first seed alone has rows that the second lacks: no mean of them.
    seeds.get_mut("table5b").unwrap().push(compared("table5b", &[("multiplier_1", 0.0)]));
    let paper = Paper::of(&seeds);
    assert_eq!(claim(&paper, "multiplier_slower").verdict, Verdict::NotComparable);
    let with_mean = |row: &&OwnRow| row.points[0].cells[0].value.is_some();
    assert_eq!(own_rows(&paper, "table5b").iter().filter(with_mean).count(), 1);
}

#[test]
fn the_page_of_all_tables_has_claims_and_measured_columns() {
    let mut seeds = printed();
    seeds.get_mut("table1").unwrap()[0].own.retain(|row| row.name.starts_with("vl_jepa"));
    seeds.get_mut("table1").unwrap()[0].own[0].note = Some("a <b>twin</b>".to_owned());
    for row in &mut seeds.get_mut("table1").unwrap()[0].own {
        row.points[0].cells[1].value = None;
    }
    let rows = [("vl_jepa", 1.0), ("vlm", 0.0)];
    seeds.get_mut("figure3").unwrap().push(compared("figure3", &rows));
    let page = whole_page(&Paper::of(&seeds)).into_string();
    for text in ["not comparable", "Llama's weights help", "in 2 of 2 seeds", "means of 2 seeds"] {
        assert!(page.contains(text), "{text}");
    }
    assert!(page.contains("a &lt;b&gt;twin&lt;/b&gt;") && !page.contains("SSv2</th>"));
    assert!(page.contains("EK100</th>") && !page.contains("NaN"));
    // 15.3 is the mean of 14.8 and 15.8.
    assert!(page.contains("<b>15.3</b>") && page.contains("14.8–15.8"));
}

#[test]
fn rows_that_nobody_can_measure_have_the_values_that_the_paper_prints() {
    let mut seeds = printed();
    let retain = |table: &mut PaperComparison| {
        table.own.retain(|row| row.name.starts_with("vl_jepa"));
    };
    retain(&mut seeds.get_mut("table1").unwrap()[0]);
    retain(&mut seeds.get_mut("table2").unwrap()[0]);
    let paper = Paper::of(&seeds);
    // The first column of these tables shows another set, which is not compared with print.
    let judged = claim(&paper, "zero_shot");
    assert_eq!((judged.verdict, judged.comparisons.len()), (Verdict::Reproduced, 1));
    assert_eq!(judged.comparisons[0].names[1], "PE-Core ViT-G (printed)");
    assert_eq!(judged.missing.iter().collect::<Vec<_>>(), ["PE-Core ViT-G"]);
    let judged = claim(&paper, "question_answering");
    assert_eq!((judged.verdict, judged.comparisons.len()), (Verdict::Reproduced, 3));
    // POPEv2: 86.3 is comparable with 91.3, and 80 is not.
    let cell = &mut seeds.get_mut("table2").unwrap()[0].own[0].points[0].cells[3];
    cell.value = Some(80.0);
    assert_eq!(claim(&Paper::of(&seeds), "question_answering").verdict, Verdict::NotReproduced);
    // Without any measured row, nothing is compared.
    seeds.get_mut("table2").unwrap()[0].own.clear();
    let judged = Paper::of(&seeds);
    assert_eq!(claim(&judged, "question_answering").verdict, Verdict::NotComparable);
}

#[test]
fn curves_are_compared_after_the_same_samples_or_not_at_all() {
    let verdicts = |change: fn(&mut Vec<OwnRow>)| {
        let mut seeds = printed();
        change(&mut seeds.get_mut("figure3").unwrap()[0].own);
        let paper = Paper::of(&seeds);
        ["first_samples", "embeddings"].map(|id| claim(&paper, id).verdict)
    };
    let (yes, open) = (Verdict::Reproduced, Verdict::NotComparable);
    assert_eq!(verdicts(|_| ()), [yes, yes]);
    // The VLM has trained on a third of the samples only.
    assert_eq!(verdicts(|rows| rows[1].points.truncate(2)), [yes, open]);
    // Both have only their last score.
    let last = |rows: &mut Vec<OwnRow>| rows.iter_mut().for_each(|row| drop(row.points.drain(..2)));
    assert_eq!(verdicts(last), [open, yes]);
    assert_eq!(
        verdicts(|rows| rows.iter_mut().for_each(|row| row.points[0].samples = Some(900_000))),
        [open, yes]
    );
}

#[test]
fn a_saving_that_is_a_bound_or_never_reached_is_judged_by_the_curves() {
    let verdict = |change: &dyn Fn(&mut DecodingCurves)| {
        let mut seeds = printed();
        let row = &mut seeds.get_mut("figure4").unwrap()[0].own[0];
        row.decoding.values_mut().for_each(change);
        let paper = Paper::of(&seeds);
        ["saving", "adaptive_points", "mean_embeddings"].map(|id| claim(&paper, id).verdict)
    };
    let (yes, no, open) = (Verdict::Reproduced, Verdict::NotReproduced, Verdict::NotComparable);
    assert_eq!(verdict(&|_| ()), [yes; 3]);
    let bound = |curves: &mut DecodingCurves| curves.saving.as_mut().unwrap().at_least = true;
    assert_eq!(verdict(&bound)[0], yes);
    // Uniform points have the score even at the lowest frequency.
    assert_eq!(verdict(&|curves| curves.saving = None)[0], open);
    let never = |curves: &mut DecodingCurves| {
        curves.saving = None;
        curves.curves[3].scores.iter_mut().for_each(|score| score.cider = 0.05);
    };
    assert_eq!(verdict(&never), [no, no, no]);
}
