//! `vljepa-shards prepare` as a user runs it: killed, twice at once, on a full disk, and then
//! training on what it wrote.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use vljepa_data::storage::Storage;
use vljepa_data::{LoadOptions, LoadedSample, SampleReader};
use vljepa_recipes::schema::Preprocessing;

use crate::breakage::SmallDisk;
use crate::programs::{Trial, command, repository, small_set, text, wait_until};

const LIMIT: Duration = Duration::from_secs(120);

const STAGE: &str = "
stages:
  - {name: both, steps: 6, batch: 8, frames: 4, mixture: {images: 1, clips: 1}, mixing: batch, learning_rate: {peak: 1e-3}}
evaluation: {tasks: []}
logging: {every_steps: 1}
cluster: {ranks_per_node: 2}
";

/// Prepares a split of the small set, in shards of at most about 1 MiB.
fn prepare(split: &str, into: &Path) -> Command {
    let mut prepare = command("vljepa-shards");
    let shards = small_set().join("train").join(format!("{split}-000000.tar"));
    prepare.args(["prepare", "webdataset"]).arg(shards).arg("--into").arg(into);
    prepare.args(["--shard-mib", "1", "--threads", "2"]);
    prepare
}

fn complete(mut prepare: Command) -> String {
    let output = prepare.output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    text(&output)
}

/// All files of a folder. Names in the catalogue are random, so it counts as one file.
fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let read = |path: PathBuf| {
        let content = if path.is_dir() { Vec::new() } else { std::fs::read(&path).unwrap() };
        (path.strip_prefix(folder).unwrap().to_owned(), content)
    };
    entries.map(read).collect()
}

/// Many large pictures, so that a preparation takes a while and has many parts.
fn large_pictures(folder: &Path) -> PathBuf {
    let path = folder.join("large.tar");
    let mut builder = tar::Builder::new(std::fs::File::create(&path).unwrap());
    for number in 0..400_u32 {
        let picture = image::RgbImage::from_fn(512, 384, |x, y| {
            let noise = (x * 7919 + y * 104_729 + number * 31).wrapping_mul(2_654_435_761) >> 24;
            image::Rgb([noise, x % 256, y % 256].map(|level| u8::try_from(level).unwrap()))
        });
        let mut jpeg = Vec::new();
        image::codecs::jpeg::JpegEncoder::new_with_quality(&mut jpeg, 60)
            .encode_image(&picture)
            .unwrap();
        let mut header = tar::Header::new_gnu();
        header.set_size(u64::try_from(jpeg.len()).unwrap());
        header.set_mode(0o644);
        builder.append_data(&mut header, format!("{number:04}.jpg"), &jpeg[..]).unwrap();
    }
    builder.finish().unwrap();
    path
}

fn prepare_large(set: &Path, into: &Path) -> Command {
    let mut prepare = command("vljepa-shards");
    prepare.args(["prepare", "webdataset"]).arg(set).arg("--into").arg(into);
    prepare.args(["--shard-mib", "1", "--threads", "2"]);
    prepare
}

/// Numbers of the finished parts.
fn finished(folder: &Path) -> usize {
    let Ok(entries) = std::fs::read_dir(folder.join("vljepa-parts")) else { return 0 };
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.ends_with(".json")).count()
}

#[test]
fn a_killed_preparation_goes_on_and_ends_with_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let set = large_pictures(folder.path());
    let undisturbed = folder.path().join("undisturbed");
    complete(prepare_large(&set, &undisturbed));
    let expected = files(&undisturbed);
    let killed = folder.path().join("killed");
    let mut kills = 0;
    for parts in [1, 3, 6] {
        let mut child = prepare_large(&set, &killed).stdout(std::process::Stdio::null()).spawn();
        let child = child.as_mut().unwrap();
        wait_until(child, LIMIT, "some finished parts", || {
            finished(&killed) >= parts || killed.join("manifest.json").exists()
        });
        kills += usize::from(!killed.join("manifest.json").exists());
        child.kill().unwrap();
        child.wait().unwrap();
    }
    assert!(kills >= 2, "{kills} of 3 kills came before the end");
    let before = finished(&killed);
    // What a process that is killed while it writes leaves.
    if before > 0 {
        std::fs::write(killed.join("vljepa-parts/000999.tar.tmp"), b"half").unwrap();
        std::fs::write(killed.join(".stats.json.1-0.tmp"), b"half").unwrap();
    }
    complete(prepare_large(&set, &killed));
    let ours = files(&killed);
    assert_eq!(ours.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    assert!(ours == expected, "other bytes");
}

#[test]
fn two_preparations_into_one_folder_do_not_mix() {
    let folder = tempfile::tempdir().unwrap();
    let set = large_pictures(folder.path());
    let into = folder.path().join("into");
    let mut first = prepare_large(&set, &into).stdout(std::process::Stdio::null()).spawn().unwrap();
    wait_until(&mut first, LIMIT, "the plan", || into.join("plan.json").exists());
    let second = prepare_large(&set, &into).output().unwrap();
    let said = text(&second);
    // If the first has ended meanwhile, the second finds its result.
    assert!(said.contains("another process prepares") || said.contains("up to date"), "{said}");
    assert!(first.wait().unwrap().success());
    let said = complete(prepare_large(&set, &into));
    assert!(said.contains("up to date, 400 samples"), "{said}");
}

#[test]
fn a_full_disk_stops_a_preparation_which_then_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let set = large_pictures(folder.path());
    let undisturbed = folder.path().join("undisturbed");
    complete(prepare_large(&set, &undisturbed));
    let (disk, into) = (folder.path().join("disk"), folder.path().join("disk/into"));
    let small = SmallDisk::mount(&disk, 6);
    let output = prepare_large(&set, &into).output().unwrap();
    let said = text(&output);
    assert!(!output.status.success(), "{said}");
    assert!(said.contains("No space left") && said.contains("same command again"), "{said}");
    assert!(finished(&into) > 0, "finished parts are kept");
    small.resize(64);
    complete(prepare_large(&set, &into));
    assert!(files(&into) == files(&undisturbed), "other bytes");
}

#[test]
fn a_run_trains_on_a_prepared_set() {
    let trial = Trial::new(STAGE);
    let (images, clips) = (trial.path("images"), trial.path("clips"));
    let said = complete(prepare("images", &images));
    assert!(said.contains("prepared") && said.contains("pictures"), "{said}");
    let said = complete(prepare("clips", &clips));
    assert!(said.contains("clips of") && !said.contains("left out"), "{said}");
    let sets = [
        format!("data.sources.images.shards={}", images.display()),
        format!("data.sources.clips.shards={}", clips.display()),
    ];
    trial.complete("prepared", &sets.each_ref().map(String::as_str));
    assert_eq!(trial.bad_samples("prepared"), 0);
    // The pictures are small JPEGs, which are kept byte for byte, and the clips have the same
    // frames with another coding error. So the losses are near those of the raw set.
    trial.complete("raw", &[]);
    let (prepared, raw) = (trial.losses("prepared"), trial.losses("raw"));
    assert_eq!(prepared.len(), 6);
    for ((step, ours, _), (_, theirs, _)) in prepared.iter().zip(&raw) {
        assert!((ours - theirs).abs() < 0.05 * theirs.abs(), "step {step}: {ours}, {theirs}");
    }
}

#[test]
fn what_a_user_can_mistype_is_refused_with_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let into = folder.path().join("into");
    for (arguments, said) in [
        (vec!["no/such.tar"], "no shard found"),
        (vec!["no/such.tar", "--frames-per-second", "0"], "above 0"),
        (vec!["no/such.tar", "--quality", "300"], "300"),
        (vec![], "required"),
    ] {
        let mut prepare = command("vljepa-shards");
        prepare.args(["prepare", "webdataset"]).args(&arguments).arg("--into").arg(&into);
        let output = prepare.output().unwrap();
        assert!(!output.status.success() && text(&output).contains(said), "{}", text(&output));
    }
    let again = prepare("images", &into);
    complete(again);
}

/// Prepares a set of one item, and returns the item's sample.
fn only_sample(arguments: &[&str], into: &Path) -> LoadedSample {
    let mut prepare = command("vljepa-shards");
    prepare.arg("prepare").args(arguments).arg("--into").arg(into);
    complete(prepare);
    let reader = SampleReader::open(&Storage::default(), into.to_str().unwrap(), None).unwrap();
    assert_eq!(reader.len(), 1, "{arguments:?}");
    let preprocessing = Preprocessing::default();
    reader.load(0, &LoadOptions { frames: 2, image_size: 32, preprocessing }).unwrap()
}

#[test]
fn published_annotations_and_their_media_become_samples_with_their_texts() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let cases = repository().join("data/tests/cases");
    std::fs::copy(cases.join("h264_closed.mp4"), path("v1.mp4")).unwrap();
    std::fs::copy(cases.join("progressive.jpg"), path("p.jpg")).unwrap();
    let root = path("");
    let write = |name: &str, text: &str| std::fs::write(path(name), text).unwrap();

    write(
        "action.jsonl",
        r#"{"video_uid": ["v1"], "metadata": [{"title": "a title"}], "nodes": [[
            {"node_id": "n1", "parent_id": null, "level": 0, "start": 0.0, "end": 0.5,
             "plm_caption": "a bar", "gpt": {"action": {"brief": "move the bar", "detailed": "N/A"}}},
            {"node_id": "n2", "parent_id": "n1", "level": 1, "start": 0.0, "end": 0.4,
             "gpt": {"action": {"brief": "N/A"}}}]]}"#
            .replace('\n', " ")
            .as_str(),
    );
    let action = ["action100m", "--annotations", &path("action.jsonl"), "--videos", &root];
    let sample = only_sample(&action, &folder.path().join("action"));
    assert_eq!(sample.texts.field("gpt.action.brief").unwrap(), Some("move the bar"));
    assert_eq!(sample.texts.field("gpt.action.detailed").unwrap(), None);
    assert_eq!(sample.texts.field("plm_caption").unwrap(), Some("a bar"));

    write(
        "narration.json",
        r##"{"v1": {"narration_pass_1": {"narrations": [
            {"timestamp_sec": 0.5, "timestamp_frame": 15, "narration_text": "#C C moves a bar"}]}}}"##,
    );
    let ego = ["ego4d", "--narrations", &path("narration.json"), "--videos", &root];
    let sample = only_sample(&ego, &folder.path().join("ego"));
    assert_eq!(sample.texts.caption().unwrap(), Some("C moves a bar"));

    write(
        "plm.jsonl",
        r#"{"image": "p.jpg", "conversations": [{"from": "human", "value": "<image>\nwhat is it?"}, {"from": "assistant", "value": "a gradient"}]}"#,
    );
    let registry = format!("one: {{annotation: {}, root_dir: {root}}}\n", path("plm.jsonl"));
    write("registry.yaml", &registry);
    let plm = ["plm", "--registry", &path("registry.yaml")];
    let sample = only_sample(&plm, &folder.path().join("plm"));
    let [question] = sample.texts.questions().unwrap() else { panic!("{:?}", sample.texts) };
    assert_eq!((&*question.question, &*question.answer), ("what is it?", "a gradient"));

    write(
        "plm.jsonl",
        r#"{"video": "v1.mp4", "start_time": 0.25, "conversations": [{"from": "human", "value": "<video>\nwhat moves?"}, {"from": "assistant", "value": "a bar"}]}"#,
    );
    only_sample(&plm, &folder.path().join("to-the-end"));
    let record = std::fs::read_to_string(folder.path().join("to-the-end/stats.json")).unwrap();
    assert!(record.contains("\"clips\": 1"), "{record}");

    // Other options are refused with what has changed.
    let mut other = command("vljepa-shards");
    other.arg("prepare").args(ego).args(["--alpha", "2"]).arg("--into");
    let refused = other.arg(folder.path().join("ego")).output().unwrap();
    assert!(!refused.status.success());
    assert!(text(&refused).contains("--alpha: 4.9 then, 2 now"), "{}", text(&refused));
}
