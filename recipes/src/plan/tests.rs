//! Tests of plans: the predicted budget of the paper's stages, and properties that hold for any
//! rates.

use std::path::{Path, PathBuf};

use super::{Plan, Rates, StagePlan, Term, advice, plan, scaling, with_devices};
use crate::schema::Recipe;

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn pretrain(sets: &[&str]) -> Recipe {
    let sets: Vec<String> = sets.iter().map(|&set| set.to_owned()).collect();
    crate::load(&file("pretrain.yaml"), &sets).unwrap().recipe
}

fn ms(stage: &StagePlan, term: Term) -> f64 {
    1e3 * stage.budget.of(term).value
}

/// The budget was added up by hand from the same rates: columns are milliseconds of products,
/// attention, memory-bound kernels and optimizer for 128 images, 128 clips of 8 frames and 80 of
/// 32. The hand count takes texts of 32 tokens, and keeps the Y-encoder (3.9 TFLOP and less) apart.
#[test]
fn the_budget_of_the_paper_s_stages_is_that_of_a_count_by_hand() {
    let sets = ["stages.1.batch=24576", "stages.2.batch=15360"];
    let found = plan(&pretrain(&sets), Rates::h200());
    let by_hand =
        [[175.0, 14.0, 27.0, 9.0], [701.0, 174.0, 110.0, 9.0], [2016.0, 1643.0, 312.0, 9.0]];
    let terms = [Term::Products, Term::Attention, Term::MemoryBound, Term::Optimizer];
    for (stage, expected) in found.stages.iter().zip(by_hand) {
        for (term, expected) in terms.into_iter().zip(expected) {
            let value = ms(stage, term);
            println!("{} {}: {value:.1} ms, by hand {expected}", stage.name, term.name());
            // Texts of 64 tokens instead of 32 add the Y-encoder's own work: up to 8 ms of
            // products.
            let room = 0.06 * expected + 10.0;
            assert!((value - expected).abs() < room, "{} {}: {value}", stage.name, term.name());
        }
    }
}

#[test]
fn no_plan_is_faster_than_its_arithmetic_and_slower_links_never_help() {
    let recipe = pretrain(&[]);
    let rates = Rates::h200();
    let hours = |rates: &Rates| plan(&recipe, rates).hours.value;
    let now = hours(rates);
    assert!(plan(&recipe, rates).least_hours < now);
    let change = |change: fn(&mut Rates)| {
        let mut changed = rates.clone();
        change(&mut changed);
        hours(&changed)
    };
    let slower = [
        change(|rates| rates.within_node_gb_per_s.value /= 4.0),
        change(|rates| rates.between_nodes_gb_per_s.value /= 4.0),
        change(|rates| rates.between_nodes_us.value *= 10.0),
        change(|rates| rates.memory_bound_tb_per_s.value /= 2.0),
        change(|rates| rates.stragglers.value *= 3.0),
        change(|rates| rates.device_hours_per_failure.value /= 10.0),
        change(|rates| rates.products_tflops.values.iter_mut().for_each(|(_, rate)| *rate /= 2.0)),
        change(|rates| {
            let curve = &mut rates.clips.prepared.samples_per_cpu_s;
            curve.values.iter_mut().for_each(|(_, rate)| *rate /= 50.0);
        }),
    ];
    assert!(slower.iter().all(|hours| *hours > now), "{slower:?} {now}");
    let faster = change(|rates| rates.between_nodes_gb_per_s.value *= 4.0);
    assert!(faster <= now, "{faster} {now}");
}

/// Each rank embeds its whole share at once: a second forward pass of GradCache, which more ranks
/// no longer need, would be a gain besides the added GPUs.
#[test]
fn more_gpus_never_take_longer_and_never_cost_less_up_to_the_limit_of_scaling() {
    let mut recipe = pretrain(&[]);
    recipe.stages.iter_mut().for_each(|stage| stage.micro_batch = None);
    let counts = [8, 16, 32, 64, 96, 192, 384, 768, 1024, 2048, 4096];
    let found = scaling(&recipe, Rates::h200(), &counts);
    assert_eq!(found.points.len(), counts.len());
    let limit = found.strong_limit.map_or(usize::MAX, |limit| limit.devices);
    for pair in found.points.windows(2).filter(|pair| pair[1].devices <= limit) {
        let [a, b] = [&pair[0], &pair[1]];
        assert!(b.hours.unwrap() < a.hours.unwrap(), "{} {}", a.devices, b.devices);
        assert!(b.device_hours.unwrap() >= 0.999 * a.device_hours.unwrap(), "{}", b.devices);
    }
    assert!(limit >= 192, "{limit}");
    let too_many = scaling(&recipe, Rates::h200(), &[8192, 16_384]);
    assert!(too_many.points[1].hours.is_none(), "a batch of 12,288 on 16,384 GPUs");
    assert_eq!(
        too_many.strong_limit.map(|limit| (limit.devices, limit.because)),
        Some((8192, None))
    );
}

#[test]
fn raw_clips_limit_the_stage_of_eight_frames_and_the_plan_says_what_helps() {
    let batch = "stages.1.batch=24576";
    let recipe = pretrain(&["data.sources.action100m.prepared=false", batch]);
    let found = plan(&recipe, Rates::h200());
    let limited = &found.stages[1];
    assert_eq!(limited.limit, Some(Term::Data));
    assert!(limited.hours.value > 24.0, "{} hours", limited.hours.value);
    let changes = advice(&recipe, Rates::h200());
    assert_eq!(changes[0].sets, ["data.sources.action100m.prepared=true"]);
    let then = plan(&pretrain(&[batch]), Rates::h200()).hours.value;
    assert!((changes[0].hours - then).abs() < 1e-9 * then);
    // What is prepared already is not advised.
    let of_prepared = advice(&pretrain(&[]), Rates::h200());
    assert!(of_prepared.iter().all(|change| !change.sets[0].contains("prepared")));
}

#[test]
fn a_stage_that_does_not_fit_is_named_and_no_change_that_does_not_fit_is_advised() {
    let fits = |found: &Plan| found.stages.iter().map(|stage| stage.fits).collect::<Vec<_>>();
    assert_eq!(fits(&plan(&pretrain(&[]), Rates::h200())), [true; 3]);
    let too_large = pretrain(&["stages.2.recompute=none"]);
    assert_eq!(fits(&plan(&too_large, Rates::h200())), [true, true, false]);
    // The advice makes it fit, with the least time.
    let [change] = &advice(&too_large, Rates::h200())[..] else { panic!("one change") };
    let sets: Vec<&str> = change.sets.iter().map(String::as_str).collect();
    let mended = plan(&pretrain(&sets), Rates::h200());
    assert_eq!(
        (fits(&mended), mended.hours.value.to_bits()),
        (vec![true; 3], change.hours.to_bits())
    );
    // One GPU holds no batch of 24,576, and no change of these keys helps.
    let alone = with_devices(&pretrain(&[]), 1).unwrap();
    assert!(advice(&alone, Rates::h200()).is_empty());
    let changes = advice(&pretrain(&[]), Rates::h200());
    let unwise = changes.iter().find(|change| change.sets[0] == "stages.2.recompute=none");
    assert!(unwise.is_none(), "{unwise:?}");
}

#[test]
fn failures_cost_what_is_repeated_and_no_number_is_infinite() {
    let recipe = pretrain(&[]);
    let lost = |hours: f64| {
        let mut rates = Rates::h200().clone();
        rates.device_hours_per_failure.value = hours;
        plan(&recipe, &rates)
    };
    let often = lost(500.0).failures;
    assert!(often.expected_failures > 9.0 && often.lost_fraction > 0.03, "{often:?}");
    let never_ends = lost(1e-6);
    assert!(never_ends.hours.value.is_finite() && never_ends.failures.lost_fraction > 1e5);
    // Repeated work counts by time: 500 steps of 32 frames take 13 times as long as 500 of images.
    let intervals = &often.interval_s;
    assert!(intervals[2] > 10.0 * intervals[0], "{intervals:?}");
}

/// The peak from which a run's metrics compute MFU is the plan's.
#[test]
fn the_peak_of_an_h200_is_that_of_its_metrics() {
    let rates = Rates::h200();
    let known = crate::cost::peak_tflops(&rates.device);
    assert_eq!(known.map(f64::to_bits), Some(rates.peak_tflops.to_bits()));
}

#[test]
fn every_recipe_that_trains_has_a_plan_on_gpus_and_on_the_host() {
    let mut planned = 0;
    for folder in ["", "ablations", "miniature"] {
        for entry in std::fs::read_dir(file(folder)).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_none_or(|extension| extension != "yaml")
                || crate::is_programme(&path).unwrap()
            {
                continue;
            }
            let recipe = crate::load(&path, &[]).unwrap().recipe;
            let found = plan(&recipe, Rates::h200());
            let all = [found.hours, found.device_hours, found.kilowatt_hours];
            let finite = all.iter().all(|one| one.value.is_finite() && one.deviation.is_finite());
            assert!(finite, "{}: {found:?}", path.display());
            assert!(found.least_hours <= found.steps_hours.value, "{}", path.display());
            assert!(found.stages.iter().all(|stage| stage.mfu < 1.0), "{}", path.display());
            for changes in recipe.readings.values() {
                crate::load(&path, changes).unwrap();
            }
            planned += found.stages.len();
        }
    }
    assert!(planned > 40, "{planned} stages");
}

#[test]
fn gpus_are_whole_nodes_or_a_part_of_one() {
    let recipe = pretrain(&[]);
    let of = |count| with_devices(&recipe, count).map(|recipe| recipe.cluster);
    assert_eq!(of(4).map(|cluster| (cluster.nodes, cluster.ranks_per_node)), Some((1, 4)));
    assert_eq!(of(64).map(|cluster| (cluster.nodes, cluster.ranks_per_node)), Some((8, 8)));
    assert!(of(12).is_none() && of(0).is_none());
}

/// Each reading of each recipe loads, so that a plan never stops at one.
#[test]
fn the_readings_of_the_pretraining_are_the_three_of_its_video_batch() {
    let recipe = pretrain(&[]);
    let names: Vec<&str> = recipe.readings.keys().map(String::as_str).collect();
    assert_eq!(names, ["video_batch_15360", "video_batch_24576"]);
    let hours: Vec<f64> = recipe
        .readings
        .values()
        .map(|sets| {
            let read = crate::load(&file("pretrain.yaml"), sets).unwrap().recipe;
            plan(&read, Rates::h200()).hours.value
        })
        .collect();
    let own = plan(&recipe, Rates::h200()).hours.value;
    assert!(own < hours[0] && hours[0] < hours[1], "{own} {hours:?}");
}

#[test]
fn a_rate_without_an_origin_or_with_a_wrong_value_is_refused_by_its_key() {
    let text = std::fs::read_to_string(file("rates/h200.yaml")).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rates.yaml");
    let refused = |from: &str, to: &str| {
        assert!(text.contains(from), "{from}");
        std::fs::write(&path, text.replacen(from, to, 1)).unwrap();
        format!("{:?}", miette::Report::new(crate::load_rates(&path).unwrap_err()))
    };
    for (from, to, said) in [
        ("{value: 10, spread: 0.25, predicted:", "{value: 10, spread: 0.25, guessed:", "guessed"),
        (
            "{value: 3.5, spread: 0.1, predicted:",
            "{value: 0, spread: 0.1, predicted:",
            "above zero",
        ),
        ("{value: 25, spread: 0.2,", "{value: 25, spread: 1.5,", "spread: 1.5"),
        ("device: NVIDIA H200\n", "", "device"),
        ("peak_tflops: 989.5", "peak_tflops: -1", "above zero"),
        ("peak_tflops: 989.5", "peak_tflops: 700", "790 is above peak_tflops, 700"),
        ("[2048, 670]", "[2048, 800]", "800 is above ceiling_tflops, 790"),
        ("[8, 231]", "[8, 0]", "0 is not a number above zero"),
        ("[[8, 231], [16, 109]", "[[16, 231], [16, 109]", "do not increase"),
        ("stragglers: {value: 0.01", "stragglers: {value: 1.0e+300", "stragglers"),
        ("reserved_mib: {value: 2048", "reserved_mib: {value: 200000", "above memory_mib"),
        (
            "waits_ms: {value: 3.5, spread: 0.3, predicted:",
            "waits_ms: {value: 3.5, spread: 0.3} #",
            "where it is from",
        ),
        ("[1024, 620]", "[512, 620]", "do not increase"),
        ("values: [[256, 195], [1024, 275], [4096, 295]]", "values: []", "`values` is empty"),
    ] {
        let error = refused(from, to);
        assert!(error.contains(said), "{said}: {error}");
    }
    std::fs::write(&path, &text).unwrap();
    assert_eq!(&crate::load_rates(&path).unwrap(), Rates::h200());
}
