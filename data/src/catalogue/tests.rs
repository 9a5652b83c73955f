//! Tests that a catalogue says what the tars say, follows them when they change, and survives
//! kills, damage and folders that cannot be written.

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::update::update_and_publish;
use super::{Catalogue, CatalogueFolder, Catalogues, Expanded, FOLDER, Unlisted, Updated, update};
use crate::error::DataError;
use crate::fixtures::{numbered, storage, write_tar};
use crate::shard_index::ShardIndex;
use crate::shards::ShardSet;

/// Folder with the shards `a-0.tar` to `a-<n-1>.tar` of 1, 2, … samples.
fn set(shards: usize) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for shard in 0..shards {
        let samples = u8::try_from(shard + 1).unwrap();
        write_tar(&folder.path().join(format!("a-{shard}.tar")), &numbered(0, samples));
    }
    folder
}

fn updated(entry: &Path, chosen: Option<&Path>) -> Updated {
    let set = Expanded::of(&storage(), entry.to_str().unwrap()).unwrap();
    let folder = CatalogueFolder::of(&set, chosen).unwrap();
    update(&storage(), &set.shards, &folder, Unlisted::Believe, &|_| {})
}

fn open(folder: &Path) -> Result<Catalogue, DataError> {
    Catalogue::open(&storage(), folder.to_str().unwrap(), None)
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[test]
fn it_holds_the_lengths_and_the_tables_of_the_tars() {
    let folder = set(3);
    let catalogue = open(folder.path()).unwrap();
    assert_eq!(catalogue.lengths().collect::<Vec<_>>(), [1, 2, 3]);
    for shard in 0..3 {
        let path = folder.path().join(format!("a-{shard}.tar"));
        let table = catalogue.record(shard).read_table(&folder.path().join(FOLDER)).unwrap();
        assert_eq!(table, ShardIndex::read(&path).unwrap());
        assert_eq!(catalogue.open_shard(&storage(), shard).unwrap().1, table);
    }
    // The second process reads no tar.
    let again = updated(folder.path(), None);
    assert_eq!((again.made, again.errors.len()), (0, 0));
    assert_eq!(again.shards, catalogue.shards);
}

#[test]
fn only_shards_that_changed_are_read_again() {
    let folder = set(4);
    assert_eq!(updated(folder.path(), None).made, 4);
    write_tar(&folder.path().join("a-1.tar"), &numbered(0, 9));
    let second = updated(folder.path(), None);
    assert_eq!((second.made, second.shards[1].1.samples), (1, 9));
    // The size stays, and the time of the last modification does not.
    let changed = folder.path().join("a-2.tar");
    let bytes = fs::read(&changed).unwrap();
    fs::write(&changed, bytes).unwrap();
    assert_eq!(updated(folder.path(), None).made, 1);
    assert_eq!(updated(folder.path(), None).made, 0);
}

#[test]
fn a_shard_that_changes_after_the_catalogue_was_read_is_an_error_that_names_it() {
    let folder = set(2);
    let shards = ShardSet::new(storage(), Arc::new(open(folder.path()).unwrap()));
    assert_eq!(shards.shard(0).unwrap().index.samples.len(), 1);
    let changed = folder.path().join("a-1.tar");
    let old = fs::metadata(&changed).unwrap().modified().unwrap();
    // Size and time stay. The first bytes do not.
    let mut bytes = fs::read(&changed).unwrap();
    bytes[0] = b'x';
    fs::write(&changed, &bytes).unwrap();
    fs::File::options().write(true).open(&changed).unwrap().set_modified(old).unwrap();
    let error = shards.shard(1).unwrap_err().to_string();
    assert!(error.contains("a-1.tar") && error.contains("has changed since"), "{error}");
}

#[test]
fn a_set_can_be_moved_with_its_catalogue() {
    let folder = set(3);
    open(folder.path()).unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    let moved = elsewhere.path().join("set");
    fs::rename(folder.path(), &moved).unwrap();
    assert_eq!(updated(&moved, None).made, 0);
    // A range of the same folder uses the same catalogue.
    assert_eq!(updated(&moved.join("a-{0..1}.tar"), None).made, 0);
    assert_eq!(updated(&moved.join("a-2.tar"), None).made, 0);
    // A chosen folder is another catalogue.
    let chosen = elsewhere.path().join("chosen");
    assert_eq!(updated(&moved, Some(&chosen)).made, 3);
    assert_eq!(updated(&moved, Some(&chosen)).made, 0);
}

#[test]
fn damaged_files_are_made_again_and_tables_are_never_believed_blindly() {
    let folder = set(3);
    let first = open(folder.path()).unwrap();
    let files = folder.path().join(FOLDER);
    let head = fs::read(files.join("head")).unwrap();
    for (damage, name) in [
        (Vec::new(), "an empty head"),
        (head[..head.len() - 1].to_vec(), "a head that is cut short"),
        (head.iter().map(|byte| byte ^ 1).collect(), "another head"),
    ] {
        fs::write(files.join("head"), damage).unwrap();
        let again = updated(folder.path(), None);
        assert_eq!(again.made, 3, "{name}");
    }
    // The tables that `first` refers to are damaged: they are read from the tars again.
    for name in names(&files).iter().filter(|name| name.starts_with("tables-")) {
        let mut bytes = fs::read(files.join(name)).unwrap();
        bytes.fill(7);
        fs::write(files.join(name), bytes).unwrap();
    }
    assert!(first.record(1).read_table(&files).is_none());
    assert_eq!(first.open_shard(&storage(), 1).unwrap().1.samples.len(), 2);
    fs::remove_dir_all(&files).unwrap();
    assert_eq!(first.open_shard(&storage(), 2).unwrap().1.samples.len(), 3);
}

#[test]
fn a_set_whose_catalogue_cannot_be_written_is_read_at_every_start() {
    let folder = set(2);
    // A file stands where the folder should be. Not even root can write there.
    fs::write(folder.path().join(FOLDER), "").unwrap();
    for _ in 0..2 {
        let updated = updated(folder.path(), None);
        assert_eq!((updated.made, updated.shards.len()), (2, 2));
        assert!(updated.unwritten.is_some());
    }
    let catalogue = open(folder.path()).unwrap();
    assert_eq!(catalogue.open_shard(&storage(), 1).unwrap().1.samples.len(), 2);
}

/// Name of the environment variable that lets the next test die in the middle of an update.
const DIES_IN: &str = "VLJEPA_TEST_UPDATE_DIES_IN";

#[test]
#[expect(clippy::disallowed_methods, reason = "the test starts itself as the process that dies")]
fn an_update_that_is_killed_goes_on_where_it_was() {
    if let Ok(folder) = std::env::var(DIES_IN) {
        let set = Expanded::of(&storage(), &folder).unwrap();
        let folder = CatalogueFolder::of(&set, None).unwrap();
        let die = |done| {
            if done >= 8 {
                std::process::abort();
            }
        };
        update_and_publish(
            &storage(),
            &set.shards,
            &folder,
            Unlisted::Believe,
            Duration::ZERO,
            &die,
        );
        panic!("the update was not ended");
    }
    let folder = set(20);
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "catalogue::tests::an_update_that_is_killed_goes_on_where_it_was"])
        .env(DIES_IN, folder.path())
        .output()
        .unwrap();
    assert_eq!(output.status.signal(), Some(6), "{}", String::from_utf8_lossy(&output.stdout));
    let after = updated(folder.path(), None);
    assert_eq!((after.made, after.shards.len()), (12, 20));
}

#[test]
fn processes_that_update_at_once_leave_a_whole_catalogue() {
    let folder = set(40);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| assert_eq!(updated(folder.path(), None).shards.len(), 40));
        }
    });
    let after = updated(folder.path(), None);
    assert_eq!((after.shards.len(), after.errors.len()), (40, 0));
    let catalogue = open(folder.path()).unwrap();
    let files = folder.path().join(FOLDER);
    for shard in 0..40 {
        let record = catalogue.record(shard);
        let table = record.read_table(&files).unwrap();
        assert_eq!(u64::try_from(table.samples.len()), Ok(record.samples));
    }
    assert_eq!(catalogue.lengths().sum::<u64>(), 40 * 41 / 2);
    let left = names(&files);
    assert!(left.iter().all(|name| name == "head" || name.starts_with("tables-")), "{left:?}");
}

#[test]
fn every_shard_that_cannot_be_used_is_named_and_tried_again_when_repaired() {
    let folder = set(3);
    fs::write(folder.path().join("a-0.tar"), "").unwrap();
    fs::write(folder.path().join("a-2.tar"), "<html>").unwrap();
    let error = open(folder.path()).unwrap_err().to_string();
    for said in ["2 of the 3 shards", "a-0.tar", "is empty", "a-2.tar", "HTML"] {
        assert!(error.contains(said), "{error}");
    }
    for name in ["a-0.tar", "a-2.tar"] {
        write_tar(&folder.path().join(name), &numbered(0, 1));
    }
    assert_eq!(open(folder.path()).unwrap().lengths().sum::<u64>(), 4);
    for shard in 0..3 {
        let path = folder.path().join(format!("a-{shard}.tar"));
        write_tar(&path, &[("README".to_owned(), "")]);
    }
    let error = open(folder.path()).unwrap_err();
    assert!(matches!(error, DataError::NoSamples { .. }), "{error}");
}

#[test]
fn other_ranks_get_the_same_catalogues_and_their_hash_follows_the_lengths() {
    let (folder, tokenizers) = (set(3), tempfile::tempdir().unwrap());
    let recipe = crate::fixtures::recipe(tokenizers.path(), folder.path(), 8, 10);
    let catalogues = Catalogues::of_stage(&storage(), &recipe, 0).unwrap();
    let received = Catalogues::from_bytes(&storage(), &catalogues.to_bytes()).unwrap();
    assert_eq!(received.to_bytes(), catalogues.to_bytes());
    assert!(Catalogues::from_bytes(&storage(), b"other").is_err());
    let before = catalogues.lengths_hashes();
    assert_eq!(before, Catalogues::of_stage(&storage(), &recipe, 0).unwrap().lengths_hashes());
    // Other samples of the same number keep the order.
    write_tar(&folder.path().join("a-0.tar"), &numbered(100, 1));
    assert_eq!(before, Catalogues::of_stage(&storage(), &recipe, 0).unwrap().lengths_hashes());
    write_tar(&folder.path().join("a-0.tar"), &numbered(100, 2));
    assert_ne!(before, Catalogues::of_stage(&storage(), &recipe, 0).unwrap().lengths_hashes());
}

#[test]
fn remote_shards_need_a_folder_for_their_catalogue() {
    let error = Catalogue::open(&storage(), "s3://bucket/{0..1}.tar", None).unwrap_err();
    let said = error.to_string();
    assert!(said.contains("s3://bucket") && said.contains("`catalogue`"), "{said}");
}
