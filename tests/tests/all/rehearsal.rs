//! Rehearsals of the recipes on a recording GPU: memory of each stage and the planned memory, and
//! the command's output.

use vljepa_kernels::compile::{Kernel, Launch};
use vljepa_kernels::device::cuda::{Order, Product, Record, Region};
use vljepa_recipes::cost::{ASSUMED_TARGET_TOKENS, Pass, cost, longest_sample, networks};
use vljepa_recipes::schema::Stage;
use vljepa_recipes::{PublishedModel, Recipe, Role};
use vljepa_worker::rehearsal::rehearse;

use crate::programs::{command, repository, text};

fn pretrain(changes: &[String]) -> Recipe {
    let path = repository().join("recipes/pretrain.yaml");
    vljepa_recipes::load(&path, changes).unwrap().recipe
}

/// Returns `--set` values that set a key of all three stages.
fn in_every_stage(key: &str, value: &str) -> Vec<String> {
    (0..3).map(|stage| format!("stages.{stage}.{key}={value}")).collect()
}

#[test]
#[expect(clippy::cast_precision_loss, reason = "far fewer than 2^53 bytes")]
fn the_plan_s_memory_is_what_a_rehearsal_needs_within_five_percent() {
    for recompute in ["none", "mlp", "block"] {
        let recipe = pretrain(&in_every_stage("recompute", recompute));
        for tokens in [&[ASSUMED_TARGET_TOKENS; 2][..], &[]] {
            let rehearsed = rehearse(&recipe, None, tokens).unwrap().stages;
            for (stage, planned) in rehearsed.iter().zip(cost(&recipe).stages) {
                let plan = if tokens.is_empty() { planned.most_memory } else { planned.memory };
                let ratio = plan.total() / stage.peak_bytes() as f64;
                println!(
                    "{recompute}, {tokens:?} tokens, {}: {:.2} GB, {ratio:.3} planned",
                    stage.name,
                    stage.peak_bytes() as f64 / 1e9
                );
                assert!((ratio - 1.0).abs() < 0.05, "{} {recompute}: {ratio}", stage.name);
            }
        }
    }
    // A plan for another way to recompute must differ.
    let block = rehearse(&pretrain(&in_every_stage("recompute", "block")), None, &[]).unwrap();
    let wrong = cost(&pretrain(&in_every_stage("recompute", "mlp"))).stages;
    let ratio = wrong[2].most_memory.total() / block.stages[2].peak_bytes() as f64;
    assert!((ratio - 1.0).abs() > 0.05, "{ratio}");
}

#[test]
#[expect(clippy::cast_precision_loss, reason = "far fewer than 2^53 bytes")]
fn the_plan_of_a_vlm_s_memory_is_what_a_rehearsal_needs_within_five_percent() {
    let path = repository().join("recipes/vlm_baseline.yaml");
    for recompute in ["none", "mlp", "block"] {
        let sets = [format!("stages.0.recompute={recompute}")];
        let recipe = vljepa_recipes::load(&path, &sets).unwrap().recipe;
        let stages = rehearse(&recipe, None, &[]).unwrap().stages;
        let plan = cost(&recipe).stages[0].most_memory.total();
        let ratio = plan / stages[0].peak_bytes() as f64;
        println!("{recompute}: {ratio:.3} planned");
        assert!((ratio - 1.0).abs() < 0.05, "{recompute}: {ratio}");
    }
}

/// Weights that are never trained are held in bf16 only.
#[test]
fn a_dual_encoder_needs_its_weights_and_one_batch_of_an_evaluation() {
    let path = repository().join("recipes/dual_encoder.yaml");
    let recipe = vljepa_recipes::load(&path, &[]).unwrap().recipe;
    let rehearsed = rehearse(&recipe, None, &[]).unwrap();
    assert!(rehearsed.stages.is_empty());
    let weights = 2 * cost(&recipe).parameters.total();
    let (least, most) = (weights, weights + weights / 100);
    assert!((least..most).contains(&rehearsed.state_bytes), "{}", rehearsed.state_bytes);
    assert!(rehearsed.evaluation.peak_bytes > rehearsed.state_bytes);
    let error = rehearse(&recipe, Some(weights), &[]).unwrap_err();
    assert!(format!("{error:#}").contains("out of"), "{error:#}");
}

/// The check of a recipe names sizes without a kernel before a start, so it must know them all.
#[test]
fn recipes_know_the_sizes_for_which_gpus_have_kernels() {
    use vljepa_kernels::attention::launch::{FORWARD_HEAD_DIMS, HEAD_DIMS};
    use vljepa_recipes::check::{GPU_FORWARD_HEAD_WIDTHS, GPU_HEAD_WIDTHS, GPU_NORM_WIDTH};
    assert_eq!((GPU_HEAD_WIDTHS, GPU_FORWARD_HEAD_WIDTHS), (HEAD_DIMS, FORWARD_HEAD_DIMS));
    assert_eq!(GPU_NORM_WIDTH, vljepa_kernels::layer_norm::launch::MAX_WIDTH);
}

#[test]
fn gpus_compute_every_baseline_of_the_tables() {
    let mut rows = 0;
    for table in ["table1_baselines", "table4_baselines"] {
        let path = repository().join("recipes/evaluate").join(table).with_extension("yaml");
        let recipe = vljepa_recipes::load(&path, &[]).unwrap().recipe;
        // Rows of runs that were not trained here are problems.
        for row in vljepa_recipes::row_recipes(&recipe).into_iter().flatten() {
            if let Err(error) = rehearse(&row.recipe, None, &[]) {
                panic!("{table}, {}: {error:#}", row.name);
            }
            rows += 1;
        }
    }
    assert!(rows >= 10, "{rows} rows");
}

#[test]
fn gpus_compute_every_published_encoder_and_predictor_in_training() {
    let mut models = vljepa_recipes::published_models();
    models.retain(|model| match model.role {
        // A ResNet encodes the pictures of a dual encoder only.
        Role::XEncoder => model.family != "clip_resnet",
        Role::Predictor | Role::YEncoder => true,
        Role::YDecoder | Role::LanguageModel => false,
    });
    assert!(models.len() >= 25, "{} models", models.len());
    for PublishedModel { role, family, size, .. } in models {
        let role = role.key();
        // The largest encoders take a few clips at a time in training, and an evaluation 64.
        let mut changes = in_every_stage("micro_batch", "4");
        changes.push("stages.2.frames=16".to_owned());
        changes.push(format!("model.{role}={{family: {family}, size: {size}}}"));
        let recipe = pretrain(&changes);
        if let Err(error) = rehearse(&recipe, None, &[]) {
            panic!("{role} {family} {size}: {error:#}");
        }
    }
}

/// Products, launches and bytes of memory-bound kernels that a step of a rank was planned or
/// recorded to have.
#[derive(Debug)]
struct Work {
    products: f64,
    launches: f64,
    bytes: f64,
}

#[expect(clippy::cast_precision_loss, reason = "far fewer than 2^53")]
fn planned(recipe: &Recipe, stage: &Stage, rows: usize) -> Work {
    let micro_batch = stage.micro_batch.unwrap_or(rows).min(rows);
    let tokens = longest_sample(recipe, stage);
    let networks = networks(&recipe.model, tokens, micro_batch < rows, stage.recompute);
    let passes: Vec<&Pass> =
        networks.iter().flat_map(|n| [&n.forward, &n.again, &n.backward]).collect();
    let sum = |of: fn(&Pass) -> f64| passes.iter().map(|pass| of(pass)).sum::<f64>();
    Work {
        products: rows as f64 * sum(|pass| pass.products),
        launches: rows.div_ceil(micro_batch) as f64 * sum(|pass| pass.launches),
        bytes: 2.0 * rows as f64 * sum(|pass| pass.values),
    }
}

#[expect(clippy::cast_precision_loss, reason = "far fewer than 2^53")]
fn recorded(record: &Record) -> Work {
    let products = record.orders.iter().filter_map(|(_, order)| match order {
        Order::Multiply(Product { rows, columns, inner, .. }) => Some((rows, columns, inner)),
        _ => None,
    });
    let products: f64 = products.map(|(m, n, k)| 2.0 * *m as f64 * *n as f64 * *k as f64).sum();
    let issued = |order: &Order| matches!(order, Order::Launch(_) | Order::Multiply(_));
    let launches = record.orders.iter().filter(|(_, order)| issued(order)).count() as f64;
    let of_kernels: f64 = record.launches().filter(|launch| moves_values(launch)).map(bytes).sum();
    Work { products, launches, bytes: of_kernels }
}

/// Whether a kernel reads and writes the values of tokens. Others read a table of embeddings, of
/// which a step needs some rows, or the optimizer's state.
fn moves_values(launch: &Launch<Region>) -> bool {
    matches!(
        launch.kernel,
        Kernel::Activation(_)
            | Kernel::GatedMlp(_)
            | Kernel::LayerNorm(_)
            | Kernel::PatchEmbed(_)
            | Kernel::Rope(_)
    )
}

#[expect(clippy::cast_precision_loss, reason = "far fewer than 2^53")]
fn bytes(launch: &Launch<Region>) -> f64 {
    launch.buffers.iter().map(|region| region.bytes as f64).sum()
}

#[test]
fn the_planned_work_of_a_step_is_what_a_rehearsal_orders() {
    for recompute in ["none", "mlp", "block"] {
        let recipe = pretrain(&in_every_stage("recompute", recompute));
        let rehearsed = rehearse(&recipe, None, &[ASSUMED_TARGET_TOKENS; 2]).unwrap().stages;
        for (stage, found) in recipe.stages.iter().zip(&rehearsed) {
            let [plan, real] = [planned(&recipe, stage, found.rows), recorded(found.steady())];
            println!("{recompute}, {}: {plan:?} {real:?}", stage.name);
            // The plan leaves out products of single rows. It counts a value that is changed in
            // place twice, and adds copies, whose kernels are not among those that are counted.
            assert!((plan.products / real.products - 1.0).abs() < 0.005, "{plan:?} {real:?}");
            assert!((plan.launches / real.launches - 1.0).abs() < 0.05, "{plan:?} {real:?}");
            assert!((plan.bytes / real.bytes - 1.0).abs() < 0.1, "{plan:?} {real:?}");
        }
    }
    // The work of another way to recompute must differ.
    let recipe = pretrain(&in_every_stage("recompute", "none"));
    let tokens = [ASSUMED_TARGET_TOKENS; 2];
    let found = &rehearse(&recipe, None, &tokens).unwrap().stages[2];
    let other = pretrain(&in_every_stage("recompute", "block"));
    let [wrong, real] = [planned(&other, &other.stages[2], found.rows), recorded(found.steady())];
    assert!(wrong.products / real.products > 1.2 && wrong.bytes / real.bytes > 1.2, "{wrong:?}");
}

#[test]
fn every_stage_of_pretraining_fits_the_gpu_that_its_comments_name() {
    // An H200 reports 143,771 MiB and an H100 81,559 MiB. 2 GiB of it are for the context, cuBLASLt
    // and NCCL.
    let h200 = (143_771 - 2048) << 20;
    rehearse(&pretrain(&[]), Some(h200), &[]).unwrap();
    let h100 = (81_559 - 2048) << 20;
    rehearse(&pretrain(&settings_for_80_gb()), Some(h100), &[]).unwrap();
    let error = rehearse(&pretrain(&[]), Some(h100), &[]).unwrap_err();
    let text = format!("{error:#}");
    assert!(text.contains("stage video-32") && text.contains("out of"), "{text}");
}

/// Returns the `--set` arguments for GPUs of 80 GB, which a comment of the recipe gives between
/// backticks.
fn settings_for_80_gb() -> Vec<String> {
    let recipe = std::fs::read_to_string(repository().join("recipes/pretrain.yaml")).unwrap();
    let quoted =
        recipe.split('`').find(|text| text.starts_with("--set ") && text.contains(".recompute="));
    let arguments = quoted.expect("the recipe names settings for 80 GB").split(" --set ");
    arguments.map(|argument| argument.trim_start_matches("--set ").to_owned()).collect()
}

#[test]
fn a_run_holds_no_more_memory_in_a_stage_than_that_stage_alone_needs() {
    let all = rehearse(&pretrain(&[]), None, &[]).unwrap();
    let images = all.stages[0].peak_bytes();
    let mut backwards = pretrain(&[]);
    backwards.stages.reverse();
    let after_the_longest = rehearse(&backwards, None, &[]).unwrap();
    let again = after_the_longest.stages[2].peak_bytes();
    assert_eq!(after_the_longest.stages[2].name, "images");
    // Some pages of 2 MiB are shared with tensors of the stage before.
    assert!(again.abs_diff(images) < 64 << 20, "{again} bytes, alone {images}");
}

#[test]
#[expect(clippy::cast_precision_loss, reason = "far fewer than 2^53 bytes")]
fn texts_of_another_length_in_every_step_need_no_more_than_the_longest() {
    let recipe = pretrain(&[]);
    let longest = rehearse(&recipe, None, &[]).unwrap();
    let lengths = [64, 300, 17, 512, 33, 450];
    let mixed = rehearse(&recipe, None, &lengths).unwrap();
    for (stage, bound) in mixed.stages.iter().zip(&longest.stages) {
        let (needed, bound) = (stage.peak_bytes(), bound.peak_bytes());
        println!("{}: {:.3} of the longest", stage.name, needed as f64 / bound as f64);
        // Other text lengths fragment the heap by up to 5 %.
        assert!(needed <= bound / 100 * 105, "{}: {needed} bytes, {bound}", stage.name);
    }
}

#[test]
fn a_rehearsal_prints_a_line_for_each_stage_and_names_a_stage_that_does_not_fit() {
    let rehearse = |arguments: &[&str]| {
        let mut command = command("vljepa-worker");
        let output =
            command.args(["rehearse", "recipes/pretrain.yaml"]).args(arguments).output().unwrap();
        (output.status.success(), text(&output))
    };
    let (ok, said) = rehearse(&[]);
    assert!(ok, "{said}");
    for stage in ["images", "video-8", "video-32", "evaluation"] {
        assert!(said.contains(&format!("| pretrain, {stage} |")), "{said}");
    }
    let (ok, said) = rehearse(&["--memory-gib", "40"]);
    assert!(!ok && said.contains("stage images") && said.contains("out of"), "{said}");
    let (ok, said) = rehearse(&["--set", "stages.0.recompute=everything"]);
    assert!(!ok && said.contains("recompute") && !said.contains("panicked"), "{said}");
    let table = "recipes/evaluate/table2.yaml";
    let output = command("vljepa-worker").args(["rehearse", table]).output().unwrap();
    assert!(!output.status.success() && text(&output).contains("has no model of its own"));
}
