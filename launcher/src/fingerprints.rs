//! Fingerprints of what a run computes from: shard lists, weights, tokenizers, sources, versions of drivers. Compared between
//! attempts and when a run is reproduced.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use vljepa_recipes::schema::Recipe;

use crate::local;
use crate::shards;

/// Longest shard list that is looked at again before each restart: what the file system answers in a moment.
const QUICKLY_COUNTED: usize = 10_000;

/// What a source's `shards` named.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ShardList {
    /// Shards.
    pub count: usize,
    /// Bytes of all.
    pub bytes: u64,
    /// BLAKE3 over names and sizes in their order.
    pub hash: String,
}

/// A file that the recipe names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FileRecord {
    /// As the recipe names it.
    pub path: PathBuf,
    /// Its size.
    pub bytes: u64,
    /// When it was last written, nanoseconds since 1970: a file of the same name, size and time is not read again.
    pub modified_ns: u128,
    /// BLAKE3 of its content.
    pub hash: String,
}

/// A checkout.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Git {
    /// Commit.
    pub commit: String,
    /// BLAKE3 of `git diff HEAD`; none when it is empty.
    pub diff_hash: Option<String>,
}

/// The shard lists of all sources.
pub(crate) fn shard_lists(recipe: &Recipe) -> BTreeMap<String, ShardList> {
    let list = |names: &str| list(&shards::files(names));
    recipe.data.sources.iter().map(|(name, source)| (name.clone(), list(&source.shards))).collect()
}

/// The same for a restart, which must not wait: long lists stay as they were.
pub(crate) fn refresh(recipe: &Recipe, known: &mut BTreeMap<String, ShardList>) {
    for (name, source) in &recipe.data.sources {
        if known.get(name).is_none_or(|list| list.count <= QUICKLY_COUNTED) {
            known.insert(name.clone(), list(&shards::files(&source.shards)));
        }
    }
}

fn list(files: &[PathBuf]) -> ShardList {
    let mut hasher = blake3::Hasher::new();
    let mut bytes = 0;
    for file in files {
        let size = std::fs::metadata(file).map_or(0, |data| data.len());
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        hasher.update(format!("{name} {size}\n").as_bytes());
        bytes += size;
    }
    ShardList { count: files.len(), bytes, hash: hasher.finalize().to_hex().to_string() }
}

/// Weights and tokenizers by the key that names them. What `known` holds of an untouched file is taken over.
pub(crate) fn files(
    recipe: &Recipe,
    known: &BTreeMap<String, FileRecord>,
) -> BTreeMap<String, FileRecord> {
    let model = &recipe.model;
    let named = [
        ("model.x_encoder.weights", &model.x_encoder.weights),
        ("model.predictor.weights", &model.predictor.weights),
        ("model.predictor.tokenizer", &model.predictor.tokenizer),
        ("model.y_encoder.weights", &model.y_encoder.weights),
        ("model.y_encoder.tokenizer", &model.y_encoder.tokenizer),
    ];
    let named = named.into_iter().filter_map(|(key, path)| Some((key, path.as_ref()?)));
    named.filter_map(|(key, path)| Some((key.to_owned(), file(path, known.get(key))?))).collect()
}

/// A file's record; none when it is not there.
fn file(path: &Path, known: Option<&FileRecord>) -> Option<FileRecord> {
    let data = std::fs::metadata(path).ok().filter(std::fs::Metadata::is_file)?;
    let modified =
        data.modified().ok().and_then(|at| at.duration_since(std::time::UNIX_EPOCH).ok());
    let mut record = FileRecord {
        path: path.to_owned(),
        bytes: data.len(),
        modified_ns: modified.map_or(0, |since| since.as_nanos()),
        hash: String::new(),
    };
    record.hash = match known
        .filter(|known| FileRecord { hash: String::new(), ..(*known).clone() } == record)
    {
        Some(known) => known.hash.clone(),
        None => hash(path),
    };
    Some(record)
}

/// BLAKE3 of a file's content.
pub(crate) fn hash(file: &Path) -> String {
    let mut hasher = blake3::Hasher::new();
    let read = || -> std::io::Result<()> {
        let mut file = std::fs::File::open(file)?;
        let mut buffer = vec![0; 1 << 20];
        loop {
            match file.read(&mut buffer)? {
                0 => return Ok(()),
                length => hasher.update(&buffer[..length]),
            };
        }
    };
    let mut read = read;
    read().map_or_else(|_| "unreadable".to_owned(), |()| hasher.finalize().to_hex().to_string())
}

/// The checkout that holds `folder`, and what differs in it from its commit; none outside of one.
pub(crate) async fn git(folder: &Path) -> Option<(Git, Vec<u8>)> {
    let folder = folder.to_str()?;
    let commit = local::inquire("git", &["-C", folder, "rev-parse", "HEAD"]).await?;
    let diff = local::inquire("git", &["-C", folder, "diff", "--binary", "HEAD"]).await;
    let diff = diff.unwrap_or_default();
    let diff_hash = (!diff.is_empty()).then(|| blake3::hash(&diff).to_hex().to_string());
    Some((Git { commit: first_line(&commit)?, diff_hash }, diff))
}

/// Versions of the programs and drivers that take part.
pub(crate) async fn versions(programs: &local::Programs) -> BTreeMap<String, String> {
    let mut versions =
        BTreeMap::from([("vljepa".to_owned(), env!("CARGO_PKG_VERSION").to_owned())]);
    if let Some(mpirun) = &programs.mpirun {
        let said = local::inquire(&mpirun.display().to_string(), &["--version"]).await;
        if let Some(first) = said.as_deref().and_then(first_line) {
            versions.insert("mpirun".to_owned(), first);
        }
    }
    let said = local::inquire(&programs.worker.display().to_string(), &["--features"]).await;
    versions.extend(said.map(|said| of_worker(&said)).unwrap_or_default());
    let query = ["--query-gpu=name,driver_version", "--format=csv,noheader"];
    if let Some(gpus) = local::inquire("nvidia-smi", &query).await {
        let summary = local::inquire("nvidia-smi", &[]).await.unwrap_or_default();
        versions
            .extend(of_gpus(&String::from_utf8_lossy(&gpus), &String::from_utf8_lossy(&summary)));
    }
    versions
}

/// Entries such as `"nccl_version": "2.27.3"` of what the worker says of itself.
fn of_worker(said: &[u8]) -> BTreeMap<String, String> {
    let facts: BTreeMap<String, Value> = serde_json::from_slice(said).unwrap_or_default();
    let version = |(key, value): (String, Value)| {
        Some((key.strip_suffix("_version")?.to_owned(), value.as_str()?.to_owned()))
    };
    facts.into_iter().filter_map(version).collect()
}

/// What `nvidia-smi` says: its list of `name, driver` and the heading of its summary.
fn of_gpus(list: &str, summary: &str) -> BTreeMap<String, String> {
    let mut versions = BTreeMap::new();
    let gpus: Vec<(&str, &str)> = list.lines().filter_map(|line| line.rsplit_once(", ")).collect();
    if let Some((name, driver)) = gpus.first() {
        versions.insert("gpus".to_owned(), format!("{} × {name}", gpus.len()));
        versions.insert("driver".to_owned(), driver.trim().to_owned());
    }
    let cuda = summary.split("CUDA Version:").nth(1);
    if let Some(cuda) = cuda.and_then(|rest| rest.split_whitespace().next()) {
        versions.insert("cuda".to_owned(), cuda.to_owned());
    }
    versions
}

fn first_line(bytes: &[u8]) -> Option<String> {
    String::from_utf8_lossy(bytes).lines().next().map(|line| line.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::{file, of_gpus, of_worker};

    #[test]
    fn a_file_is_read_again_only_when_it_was_touched() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        assert_eq!(file(&path, None), None);
        std::fs::write(&path, "weights").unwrap();
        let first = file(&path, None).unwrap();
        assert_eq!(first.hash, blake3::hash(b"weights").to_hex().to_string());
        let mut known = first.clone();
        known.hash = "as recorded".to_owned();
        assert_eq!(file(&path, Some(&known)).unwrap().hash, "as recorded");
        known.bytes += 1;
        assert_eq!(file(&path, Some(&known)).unwrap(), first);
    }

    #[test]
    fn versions_are_found_in_what_programs_say() {
        let list = "NVIDIA H200, 580.65.06\nNVIDIA H200, 580.65.06\n";
        let summary =
            "| NVIDIA-SMI 580.65.06    Driver Version: 580.65.06    CUDA Version: 13.0     |";
        let versions = of_gpus(list, summary);
        assert_eq!(versions["gpus"], "2 × NVIDIA H200");
        assert_eq!((versions["driver"].as_str(), versions["cuda"].as_str()), ("580.65.06", "13.0"));
        assert!(of_gpus("", "nothing").is_empty());
        let said = br#"{"version":"1","mpi":true,"nccl_version":"2.27.3"}"#;
        assert_eq!(of_worker(said), [("nccl".to_owned(), "2.27.3".to_owned())].into());
        assert!(of_worker(b"?").is_empty());
    }
}
