//! Tests of whole preparations: that nothing is lost, invented or changed by threads, and that a
//! folder is never used for two different preparations.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::sets::WebDatasetArgs;
use super::{FrameRate, OutputArgs, Prepared, Progress, SetCommand, run};
use crate::fixtures::{numbered, png, storage, write_tar};
use crate::reader::{LoadOptions, SampleReader};

/// Command for the tars of `from`, with small shards.
fn command(from: &Path, into: &Path) -> SetCommand {
    let output = OutputArgs {
        into: into.to_owned(),
        name: "shard".to_owned(),
        short_side: 16,
        quality: 90,
        frames_per_second: FrameRate::AtMost(8),
        shard_mib: 1,
        threads: 2,
    };
    let shards = vec![from.display().to_string()];
    SetCommand::WebDataset { set: WebDatasetArgs { shards }, output }
}

fn changed(command: &SetCommand, change: impl Fn(&mut OutputArgs)) -> SetCommand {
    let SetCommand::WebDataset { set, mut output } = command.clone() else { panic!("{command:?}") };
    change(&mut output);
    SetCommand::WebDataset { set, output }
}

fn prepare(command: &SetCommand) -> Result<Prepared, String> {
    run(command, &Progress::default()).map_err(|error| error.to_string())
}

/// All files under a folder but the catalogue, whose file names are random.
fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            files.insert(path.strip_prefix(folder).unwrap().to_owned(), fs::read(&path).unwrap());
        } else {
            assert!(path.ends_with(crate::catalogue::FOLDER), "{} is left over", path.display());
        }
    }
    files
}

/// Three tars with `samples` pictures each of random pixels, which JPEG cannot make small, and one
/// sample without a picture.
fn noisy_set(folder: &Path, samples: u32) {
    for shard in 0..3 {
        let mut members = vec![(format!("{shard}-text.txt"), b"no picture".to_vec())];
        for number in 0..samples {
            let mut state = u64::from(1000 * shard + number);
            let picture = image::RgbImage::from_fn(100, 100, |_, _| {
                state = crate::order::mix(&[state]);
                image::Rgb(std::array::from_fn(|byte| state.to_le_bytes()[byte]))
            });
            let picture = image::DynamicImage::ImageRgb8(picture);
            let png = crate::fixtures::encoded(&picture, image::ImageFormat::Png);
            members.push((format!("{shard}-{number:04}.png"), png));
            members.push((format!("{shard}-{number:04}.txt"), format!("{number}").into_bytes()));
        }
        write_tar(&folder.join(format!("{shard}.tar")), &members);
    }
}

#[test]
fn captions_questions_and_all_fields_are_kept() {
    let (from, into) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let into = into.path().join("new/folder");
    let mut members = numbered(0, 3);
    let fields = json!({
        "url": "https://example.org/3", "license": "CC BY 4.0", "nested": {"list": [1, null, "ä"]},
        "vljepa": {"width": 9}, "score": 0.5,
    });
    members.push(("003.webp".to_owned(), png(4, 4, 3)));
    members.push(("003.json".to_owned(), fields.to_string().into_bytes()));
    write_tar(&from.path().join("a.tar"), &members);
    let prepared = prepare(&command(from.path(), &into)).unwrap();
    assert_eq!((prepared.up_to_date, prepared.shards, prepared.stats.samples), (false, 1, 4));
    assert_eq!((prepared.stats.captions, prepared.stats.pictures), (3, 4));
    let reader = SampleReader::open(&storage(), into.to_str().unwrap(), None).unwrap();
    let options = LoadOptions { frames: 1, image_size: 8, preprocessing: Default::default() };
    for number in 0..3_u8 {
        let sample = reader.load(usize::from(number), &options).unwrap();
        assert_eq!(sample.key, format!("a/{number:03}"));
        let caption = format!("a picture number {number}");
        assert_eq!(sample.texts.caption(), Ok(Some(&*caption)));
        assert_eq!(sample.texts.questions().unwrap()[0].answer, number.to_string());
    }
    let tar = fs::read(into.join("shard-000000.tar")).unwrap();
    let mut archive = tar::Archive::new(&tar[..]);
    let json = archive
        .entries()
        .unwrap()
        .map(Result::unwrap)
        .find(|entry| entry.path().unwrap().ends_with("003.json"));
    let ours: Value = serde_json::from_reader(json.unwrap()).unwrap();
    let mut expected = fields;
    expected["vljepa"] = json!({"width": 4, "height": 4, "codec": "png", "earlier": {"width": 9}});
    assert_eq!(ours, expected);
}

#[test]
fn the_result_does_not_depend_on_the_number_of_threads() {
    let (from, into) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    noisy_set(from.path(), 40);
    let first = command(from.path(), &into.path().join("one"));
    prepare(&changed(&first, |it| it.threads = 1)).unwrap();
    let one = files(&into.path().join("one"));
    for threads in [2, 7] {
        let folder = into.path().join(threads.to_string());
        prepare(&changed(&first, |it| {
            it.threads = threads;
            it.into = folder.clone();
        }))
        .unwrap();
        assert!(files(&folder) == one, "{threads} threads");
    }
    let other = into.path().join("other");
    prepare(&changed(&first, |it| {
        it.quality = 80;
        it.into = other.clone();
    }))
    .unwrap();
    assert!(files(&other) != one, "another option shows");
}

#[test]
fn manifest_statistics_and_list_agree_with_the_shards() {
    let (from, into) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    noisy_set(from.path(), 400);
    let one = changed(&command(from.path(), into.path()), |it| it.short_side = 100);
    let prepared = prepare(&one).unwrap();
    let files = files(into.path());
    let parsed = |name: &str| -> Value { serde_json::from_slice(&files[Path::new(name)]).unwrap() };
    let manifest = parsed("manifest.json");
    let shards = manifest["shards"].as_array().unwrap();
    assert_eq!(shards.len(), prepared.shards);
    let mut sizes = Vec::new();
    for (number, shard) in shards.iter().enumerate() {
        let name = format!("shard-{number:06}.tar");
        assert_eq!(shard["name"], *name);
        let tar = &files[Path::new(&name)];
        assert_eq!(shard["bytes"], tar.len());
        assert_eq!(shard["blake3"], blake3::hash(tar).to_hex().to_string());
        sizes.push(tar.len());
    }
    // 1,200 noisy pictures are several MiB.
    let (least, most) = (sizes.iter().min().unwrap(), sizes.iter().max().unwrap());
    assert!(sizes.len() >= 5 && 10 * least >= 8 * most, "shards of about equal size: {sizes:?}");
    assert!((1 << 19..3 << 19).contains(most), "of about 1 MiB: {sizes:?}");
    let stats = parsed("stats.json");
    assert_eq!(stats["samples"], 1200);
    assert_eq!(manifest["samples"], 1200);
    assert_eq!(stats["left_out"], json!({"no picture or clip": 3}));
    assert_eq!(stats["formats"], json!({"png": 1200}));
    let list = String::from_utf8(files[Path::new("left-out.jsonl")].clone()).unwrap();
    let lines: Vec<Value> = list.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 3);
    assert!(lines[1]["item"].as_str().unwrap().ends_with("1.tar: 1-text"), "{list}");
    assert_eq!(lines[1]["reason"], "it has none");
}

#[test]
fn a_damaged_picture_and_a_key_that_comes_twice_are_left_out() {
    let (from, into) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut members = numbered(0, 2);
    members.push(("x.png".to_owned(), b"no picture".to_vec()));
    members.push(("y.png".to_owned(), png(3, 3, 3)[..40].to_vec()));
    members.push(("?/000.png".to_owned(), png(3, 3, 3)));
    let path = from.path().join("a.tar");
    write_tar(&path, &members);
    // The crate writes no name with a dot as its folder, as GNU tar does.
    let mut tar = fs::read(&path).unwrap();
    let header = tar.windows(9).position(|name| name == b"?/000.png").unwrap();
    let mut block = tar::Header::from_byte_slice(&tar[header..header + 512]).clone();
    block.as_mut_bytes()[0] = b'.';
    block.set_cksum();
    tar[header..header + 512].copy_from_slice(block.as_bytes());
    fs::write(&path, tar).unwrap();
    let prepared = prepare(&command(from.path(), into.path())).unwrap();
    assert_eq!(prepared.stats.samples, 2);
    let left_out = [("key".to_owned(), 1), ("picture".to_owned(), 2)];
    assert_eq!(prepared.stats.left_out, left_out.into());
    let list = fs::read_to_string(into.path().join("left-out.jsonl")).unwrap();
    assert!(list.contains("\"a/x\"") && list.contains("neither a JPEG nor a PNG"), "{list}");
}

#[test]
fn a_finished_folder_is_up_to_date_and_stays_as_it_is() {
    let (from, into) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    write_tar(&from.path().join("a.tar"), &numbered(0, 3));
    let command = command(from.path(), into.path());
    prepare(&command).unwrap();
    let before = files(into.path());
    let again = prepare(&command).unwrap();
    assert!(again.up_to_date && again.stats.samples == 3);
    assert!(files(into.path()) == before);
    fs::write(into.path().join("shard-000000.tar"), b"damaged").unwrap();
    let error = prepare(&command).unwrap_err();
    assert!(error.contains("shard-000000.tar has 7 bytes"), "{error}");
}

#[test]
fn another_set_or_other_options_are_refused_with_the_change() {
    let (from, into) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    write_tar(&from.path().join("a.tar"), &numbered(0, 3));
    let first = command(from.path(), into.path());
    prepare(&first).unwrap();
    let before = files(into.path());
    let refused = |command: &SetCommand| prepare(command).unwrap_err();
    let error = refused(&changed(&first, |it| it.short_side = 17));
    assert!(error.contains("--short-side was 16 and is 17 now"), "{error}");
    let error = refused(&changed(&first, |it| it.frames_per_second = FrameRate::All));
    assert!(error.contains("--frames-per-second was 8 and is all now"), "{error}");
    write_tar(&from.path().join("b.tar"), &numbered(0, 3));
    let error = refused(&first);
    assert!(error.contains("number of shards: 1 then, 2 now"), "{error}");
    let other = tempfile::tempdir().unwrap();
    fs::copy(from.path().join("a.tar"), other.path().join("a.tar")).unwrap();
    let error = refused(&command(other.path(), into.path()));
    assert!(error.contains("shards: ") && error.contains(" then, "), "{error}");
    for (change, said) in [
        ((|it| it.quality = 0) as fn(&mut OutputArgs), "--quality is 0"),
        (|it| it.short_side = 1, "--short-side is 1"),
        (|it| it.shard_mib = 0, "--shard-mib is 0"),
        (|it| it.name = "a/b".to_owned(), "--name is `a/b`"),
        (|it| it.name = String::new(), "--name is ``"),
    ] {
        let error = refused(&changed(&first, change));
        assert!(error.contains(said), "{error}");
    }
    assert!(files(into.path()).iter().all(|(name, bytes)| before[name] == *bytes));
}

#[test]
fn a_folder_with_other_files_is_refused_and_untouched() {
    let from = tempfile::tempdir().unwrap();
    write_tar(&from.path().join("a.tar"), &numbered(0, 3));
    let error = prepare(&command(from.path(), from.path())).unwrap_err();
    assert!(error.contains("`a.tar`") && error.contains("new or empty folder"), "{error}");
    assert_eq!(fs::read_dir(from.path()).unwrap().count(), 1);
    let error = prepare(&command(from.path(), &from.path().join("a.tar"))).unwrap_err();
    assert!(error.contains("a.tar"), "{error}");
    // A plan or a folder of the same name that another program has written.
    for (name, said) in [("plan.json", "plan.json"), ("vljepa-parts/mine.txt", "`vljepa-parts`")] {
        let into = tempfile::tempdir().unwrap();
        let mine = into.path().join(name);
        fs::create_dir_all(mine.parent().unwrap()).unwrap();
        fs::write(&mine, b"{}").unwrap();
        let error = prepare(&command(from.path(), into.path())).unwrap_err();
        assert!(error.contains(said), "{error}");
        assert_eq!(fs::read(&mine).unwrap(), b"{}");
        assert_eq!(fs::read_dir(into.path()).unwrap().count(), 1);
    }
    // A process that was killed at once leaves an empty folder.
    let into = tempfile::tempdir().unwrap();
    fs::create_dir(into.path().join("vljepa-parts")).unwrap();
    prepare(&command(from.path(), into.path())).unwrap();
}

#[test]
fn a_set_without_any_sample_is_an_error_that_names_the_list() {
    let (from, into) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    write_tar(&from.path().join("a.tar"), &[("x.txt".to_owned(), b"a text".to_vec())]);
    for _ in 0..2 {
        let error = prepare(&command(from.path(), into.path())).unwrap_err();
        assert!(error.contains("no item") && error.contains("left-out.jsonl"), "{error}");
        let list = fs::read_to_string(into.path().join("left-out.jsonl")).unwrap();
        assert!(list.contains("a.tar: x"), "{list}");
    }
}

#[test]
fn rates_are_numbers_above_zero_or_all() {
    assert_eq!("all".parse(), Ok(FrameRate::All));
    assert_eq!("12".parse(), Ok(FrameRate::AtMost(12)));
    for text in ["0", "-1", "2.5", "", "fast"] {
        assert!(text.parse::<FrameRate>().unwrap_err().contains("above 0"), "{text}");
    }
}
