//! Training on remote shards.

use vljepa_recipes::protocol::{Metrics, Phase};

use super::proxy::{Fault, Request};
use super::servers::{put_s3, s3, servers};
use crate::programs::{Trial, small_set, text};

const STAGE: &str = "
stages:
  - {name: both, steps: 6, batch: 8, frames: 4, mixture: {images: 1, clips: 1}, mixing: batch, learning_rate: {peak: 1e-3}}
evaluation: {tasks: []}
logging: {every_steps: 1}
cluster: {ranks_per_node: 2}
";
const LAST: u64 = 6;

/// Whether a request is for more bytes of a file than a check of its version needs.
fn is_for_bytes(request: &Request) -> bool {
    let range = request.range.as_deref().and_then(|range| range.split_once('-'));
    range.is_some_and(|(first, last)| {
        last.parse::<u64>().unwrap() - first.parse::<u64>().unwrap() >= 4096
    })
}

#[test]
fn a_run_on_remote_shards_has_the_bits_of_one_on_local_shards() {
    let trial = Trial::new(STAGE);
    trial.complete("local", &[]);
    for name in ["clips-000000.tar", "images-000000.tar"] {
        put_s3(
            &format!("train/{name}"),
            &std::fs::read(small_set().join("train").join(name)).unwrap(),
        );
    }
    let (proxy, options) = s3();
    let sets = [
        "data.sources.clips.shards=s3://bucket/train/clips-{000000..000000}.tar".to_owned(),
        format!("data.sources.clips.catalogue={}", trial.path("clips").display()),
        format!(
            "data.sources.images.shards=http://{}/buckets/bucket/train/images-000000.tar",
            servers().http
        ),
        format!("data.sources.images.catalogue={}", trial.path("images").display()),
        format!("data.shard_cache={{folder: {}, gib: 1}}", trial.path("blocks").display()),
    ];
    let sets = sets.each_ref().map(String::as_str);
    let run = |name: &str| {
        let mut command = trial.launch(name, &sets);
        command.envs(options.variables.iter().cloned());
        command.output().unwrap()
    };
    proxy.disturb(&[Fault::Status(503), Fault::Cut(1000), Fault::Status(500)]);
    let output = run("remote");
    assert!(output.status.success(), "{}", text(&output));
    assert_eq!(trial.losses("local"), trial.losses("remote"));
    trial.assert_same_bits("local", "remote", LAST);
    assert!(proxy.requests().iter().any(is_for_bytes));
    // The second run finds the catalogue and all blocks.
    let output = run("again");
    assert!(output.status.success(), "{}", text(&output));
    trial.assert_same_bits("local", "again", LAST);
    let requests = proxy.requests();
    assert!(!requests.is_empty() && !requests.iter().any(is_for_bytes), "{requests:?}");
    // A prefix without shards stops the run before it starts.
    let mut nothing = sets;
    nothing[0] = "data.sources.clips.shards=s3://bucket/nothing/";
    let mut command = trial.launch("nothing", &nothing);
    let refused = command.envs(options.variables.iter().cloned()).output().unwrap();
    let said = text(&refused);
    assert!(!refused.status.success() && said.contains("s3://bucket/nothing/"), "{said}");
    assert!(said.contains("data.sources.clips.shards"), "{said}");
    assert!(!trial.path("nothing").exists());
    // Without credentials the run stops before it starts, and says what to do.
    let refused = trial.launch("refused", &sets[..2]).output().unwrap();
    let said = text(&refused);
    assert!(!refused.status.success(), "{said}");
    assert!(said.contains("s3://bucket") && said.contains("AWS_"), "{said}");
    assert!(!trial.path("refused").exists());
}

/// Seconds that rank 0 waited for data, and whether it ever had no batch ready.
fn waits(trial: &Trial, run: &str) -> (f64, bool) {
    let metrics = std::fs::read_to_string(trial.path(run).join("metrics.jsonl")).unwrap();
    let lines: Vec<Metrics> =
        metrics.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let waited = lines.iter().map(|line| line.phase_s.get(&Phase::Data).unwrap_or(&0.0)).sum();
    let empty = |line: &Metrics| line.data.as_ref().unwrap().ready_batches == 0;
    (waited, lines.iter().any(empty))
}

#[test]
fn two_ranks_on_a_slow_source_wait_for_it_and_stay_in_step() {
    let trial = Trial::new(STAGE);
    trial.complete("local", &[]);
    let name = "clips-000000.tar";
    put_s3(&format!("slow/{name}"), &std::fs::read(small_set().join("train").join(name)).unwrap());
    let (proxy, options) = s3();
    let sets = [
        format!("data.sources.clips.shards=s3://bucket/slow/{name}"),
        format!("data.sources.clips.catalogue={}", trial.path("clips").display()),
    ];
    let sets = sets.each_ref().map(String::as_str);
    let complete = |run: &str| {
        let mut command = trial.launch(run, &sets);
        let output = command.envs(options.variables.iter().cloned()).output().unwrap();
        assert!(output.status.success(), "{}", text(&output));
        trial.assert_same_bits("local", run, LAST);
        assert_eq!(trial.losses("local"), trial.losses(run));
        proxy.requests().into_iter().filter(is_for_bytes).count()
    };
    complete("fast");
    proxy.disturb_all(Fault::Slow(4096));
    let requests = complete("slow");
    // Each of these answers takes a pause of 20 ms at least, and each of the two ranks has one
    // thread. The first two batches are read before the first step.
    let pauses_s = f64::from(u32::try_from(requests).unwrap()) * 0.02 / 2.0;
    let ((fast_s, _), (slow_s, empty)) = (waits(&trial, "fast"), waits(&trial, "slow"));
    assert!(slow_s > pauses_s / 2.0, "{slow_s} s of waiting, {pauses_s} s of pauses");
    assert!(slow_s > fast_s && empty, "{slow_s} s and {fast_s} s of waiting");
}
