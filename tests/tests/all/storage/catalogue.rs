//! Catalogues of remote shards.

use std::path::Path;

use vljepa_data::catalogue::{CatalogueFolder, Expanded, Unlisted, update};
use vljepa_data::storage::Storage;

use super::servers::{put_s3, s3, storage};

/// A tar with this number of captions.
fn tar(samples: usize) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for sample in 0..samples {
        let mut header = tar::Header::new_gnu();
        header.set_size(5);
        header.set_mode(0o644);
        builder.append_data(&mut header, format!("{sample}.txt"), &b"a cat"[..]).unwrap();
    }
    builder.into_inner().unwrap()
}

/// Number of records that an update makes, and the number of samples in each shard after it.
fn made(storage: &Storage, entry: &str, folder: &Path, unlisted: Unlisted) -> (usize, Vec<u64>) {
    let set = Expanded::of(storage, entry).unwrap();
    let folder = CatalogueFolder::of(&set, Some(folder)).unwrap();
    let updated = update(storage, &set.shards, &folder, unlisted, &|_| {});
    assert!(updated.errors.is_empty(), "{:?}", updated.errors);
    (updated.made, updated.shards.iter().map(|(_, record)| record.samples).collect())
}

#[test]
fn changed_remote_shards_are_found_by_a_listing_and_by_asking_for_each() {
    for shard in 0..4 {
        put_s3(&format!("catalogue/{shard}.tar"), &tar(shard + 1));
    }
    let (_proxy, options) = s3();
    let storage = storage(&options);
    let folder = tempfile::tempdir().unwrap();
    let (range, listing) = (folder.path().join("range"), folder.path().join("listing"));
    let of_range = |unlisted| made(&storage, "s3://bucket/catalogue/{0..3}.tar", &range, unlisted);
    let of_listing = || made(&storage, "s3://bucket/catalogue/", &listing, Unlisted::Believe);
    assert_eq!(of_range(Unlisted::Believe), (4, vec![1, 2, 3, 4]));
    assert_eq!(of_range(Unlisted::Ask).0, 0);
    assert_eq!(of_listing(), (4, vec![1, 2, 3, 4]));
    put_s3("catalogue/1.tar", &tar(7));
    put_s3("catalogue/3.tar", &tar(8));
    // The last shard is always asked for.
    assert_eq!(of_range(Unlisted::Believe), (1, vec![1, 2, 3, 8]));
    assert_eq!(of_range(Unlisted::Ask), (1, vec![1, 7, 3, 8]));
    assert_eq!(of_listing(), (2, vec![1, 7, 3, 8]));
    assert_eq!(of_listing().0, 0);
}
