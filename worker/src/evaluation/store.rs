//! Keeps what a model gave for samples and texts in the run directory, so that an interrupted
//! evaluation goes on where it was, and tasks that ask the same of the same samples share it.
//!
//! A file `<key>` holds the values of one chunk. The key is the hash of everything that determines
//! them, so a file of other weights, samples, queries or frames is never read. The files of one
//! model are in a folder of their own, and an evaluation deletes the folders of other models: a run
//! directory keeps the values of the weights that were measured last.

use std::cell::Cell;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Values that one model gave.
#[derive(Debug)]
pub(crate) struct Store {
    folder: PathBuf,
    model: blake3::Hash,
    /// Whether a failed write was reported.
    warned: Cell<bool>,
}

impl Store {
    /// Opens the folder of `model` in the folder `kept`. Rank 0 also deletes the folders of other
    /// models.
    pub(crate) fn open(kept: &Path, model: blake3::Hash, is_leader: bool) -> Self {
        let name = model.to_hex()[..16].to_owned();
        let folder = kept.join(&name);
        if is_leader {
            for entry in fs::read_dir(kept).into_iter().flatten().flatten() {
                if *entry.file_name() != *name
                    && let Err(error) = fs::remove_dir_all(entry.path())
                {
                    tracing::warn!("cannot delete {}: {error}", entry.path().display());
                }
            }
        }
        Self { folder, model, warned: Cell::new(false) }
    }

    /// Returns the values of a chunk: those kept, or else those that `make` computes, which are
    /// then kept. `asked` is all that determines the values beside the model. `make` also says
    /// whether computing again would give the same values; others are not kept.
    ///
    /// # Errors
    /// Fails if `make` fails. A file that cannot be read or written only costs time.
    pub(crate) fn get<T: Serialize + DeserializeOwned>(
        &self,
        asked: &impl Serialize,
        make: impl FnOnce() -> anyhow::Result<(T, bool)>,
    ) -> anyhow::Result<T> {
        let mut key = blake3::Hasher::new();
        key.update(self.model.as_bytes()).update(&postcard::to_stdvec(asked)?);
        let path = self.folder.join(&key.finalize().to_hex()[..32]);
        match read(&path) {
            Ok(Some(values)) => return Ok(values),
            Ok(None) => {}
            Err(error) => tracing::warn!("{error:#}; its values are computed again"),
        }
        let (values, lasting) = make()?;
        if lasting
            && let Err(error) = write(&path, &values)
            && !self.warned.replace(true)
        {
            tracing::warn!(
                "{error:#}; an interrupted evaluation computes what is not kept again, and so \
                 does each task"
            );
        }
        Ok(values)
    }
}

/// Reads a file of [`write`]. `None` if it does not exist.
fn read<T: DeserializeOwned>(path: &Path) -> anyhow::Result<Option<T>> {
    let bytes = match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        bytes => bytes.with_context(|| format!("cannot read {}", path.display()))?,
    };
    let whole = || {
        let (hash, values) = bytes.split_first_chunk::<{ blake3::OUT_LEN }>()?;
        (blake3::hash(values) == *hash).then_some(())?;
        postcard::from_bytes(values).ok()
    };
    whole().map(Some).with_context(|| format!("{} is damaged", path.display()))
}

/// Writes the hash of the values, then the values. The file gets its name when it is whole. It is
/// not synced: after a crash of the machine, the hash shows which files are damaged.
fn write(path: &Path, values: &impl Serialize) -> anyhow::Result<()> {
    let values = postcard::to_stdvec(values)?;
    let bytes = [blake3::hash(&values).as_bytes(), &*values].concat();
    let temporary = path.with_extension(format!("{}.tmp", std::process::id()));
    let written = path
        .parent()
        .map_or(Ok(()), fs::create_dir_all)
        .and_then(|()| fs::write(&temporary, bytes))
        .and_then(|()| fs::rename(&temporary, path));
    written.with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(name: &str) -> blake3::Hash {
        blake3::hash(name.as_bytes())
    }

    fn files(kept: &Path) -> Vec<PathBuf> {
        let folders = fs::read_dir(kept).unwrap().map(|folder| folder.unwrap().path());
        let mut files: Vec<PathBuf> =
            folders.flat_map(|f| fs::read_dir(f).unwrap()).map(|f| f.unwrap().path()).collect();
        files.sort();
        files
    }

    fn never() -> anyhow::Result<(Vec<f32>, bool)> {
        anyhow::bail!("computed again")
    }

    #[test]
    fn values_are_computed_once_for_a_model_and_what_it_is_asked() {
        let folder = tempfile::tempdir().unwrap();
        let kept = folder.path().join("kept");
        let values = vec![1.5f32, -0.0, f32::NAN];
        let bits = |values: &[f32]| values.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        let store = Store::open(&kept, model("a"), true);
        let asked = ("what?", 0..256usize);
        store.get(&asked, || Ok((values.clone(), true))).unwrap();
        let again = Store::open(&kept, model("a"), true).get(&asked, never).unwrap();
        assert_eq!(bits(&again), bits(&values));
        assert!(store.get(&("how?", 0..256usize), never).is_err(), "another query");
        assert!(store.get(&("what?", 0..255usize), never).is_err(), "other samples");
        // Another rank does not delete what rank 0 may still need.
        assert!(Store::open(&kept, model("b"), false).get(&asked, never).is_err());
        assert_eq!(files(&kept).len(), 1);
        assert!(Store::open(&kept, model("b"), true).get(&asked, never).is_err());
        assert!(files(&kept).is_empty());
        // Values that may be others next time are not kept.
        store.get(&asked, || Ok((values.clone(), false))).unwrap();
        assert!(store.get(&asked, never).is_err());
    }

    #[test]
    fn a_damaged_file_and_a_folder_that_cannot_be_written_cost_only_time() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path(), model("a"), true);
        let asked = "what?";
        store.get(&asked, || Ok((vec![1.0f32; 8], true))).unwrap();
        let path = files(folder.path()).remove(0);
        let whole = fs::read(&path).unwrap();
        let mut flipped = whole.clone();
        flipped[40] ^= 1;
        for damaged in [&whole[..whole.len() - 1], &whole[..8], &[], &flipped] {
            fs::write(&path, damaged).unwrap();
            assert!(store.get(&asked, never).is_err(), "{} bytes", damaged.len());
            store.get(&asked, || Ok((vec![1.0f32; 8], true))).unwrap();
            assert_eq!(fs::read(&path).unwrap(), whole);
        }
        let blocked = folder.path().join("file");
        fs::write(&blocked, "").unwrap();
        let store = Store::open(&blocked, model("a"), true);
        assert_eq!(store.get(&asked, || Ok((7u8, true))).unwrap(), 7);
    }
}
