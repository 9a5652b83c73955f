//! Fingerprints of the inputs of a run: shard lists, weights, tokenizers, sources, driver versions.
//! They are compared between attempts and when a run is reproduced.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;
use vljepa_recipes::schema::{Init, Recipe};
use vljepa_recipes::{RunDirectory, weight_index};

use super::shards;
use crate::process;
use crate::programs::Programs;

/// Longest shard list that is read again before each restart, in files; looking up more of them
/// would delay the restart.
const MAX_REFRESHED_SHARDS: usize = 10_000;

/// Shard files of one source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ShardList {
    pub count: usize,
    /// Sum of all file sizes.
    pub bytes: u64,
    /// BLAKE3 of the names and sizes in the order of the list.
    pub hash: String,
}

/// Fingerprint of a file that the recipe names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct FileRecord {
    /// Path as written in the recipe.
    pub path: PathBuf,
    pub bytes: u64,
    /// Time of the last modification, nanoseconds since 1970. A file with the same path, size and
    /// time is not read again.
    pub modified_ns: u128,
    /// BLAKE3 of the content.
    pub hash: String,
}

/// State of the git checkout in which the launcher was started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Git {
    pub commit: String,
    /// BLAKE3 of `git diff HEAD`, or `None` if the diff is empty.
    pub diff_hash: Option<String>,
}

/// Shard lists of all sources, by the source's name.
pub(crate) fn shard_lists(recipe: &Recipe) -> BTreeMap<String, ShardList> {
    let list = |names: &str| list(&shards::files(names));
    recipe.data.sources.iter().map(|(name, source)| (name.clone(), list(&source.shards))).collect()
}

/// Updates the shard lists in `known` before a restart. Lists longer than [`MAX_REFRESHED_SHARDS`]
/// are not read again, so that the restart does not wait.
pub(crate) fn refresh(recipe: &Recipe, known: &mut BTreeMap<String, ShardList>) {
    for (name, source) in &recipe.data.sources {
        if known.get(name).is_none_or(|list| list.count <= MAX_REFRESHED_SHARDS) {
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

/// Fingerprints of weights and tokenizers, by recipe key. Hashes of unmodified files are taken from
/// `known`.
pub(crate) fn files(
    recipe: &Recipe,
    known: &BTreeMap<String, FileRecord>,
) -> BTreeMap<String, FileRecord> {
    let named = recipe.model.files().map(|(key, path)| (key.to_owned(), path.to_owned()));
    let named = named.chain(recipe.init.iter().flat_map(of_init));
    let with_parts = named.flat_map(|(key, path)| {
        let parts = parts(&path).map(|part| (format!("{key}/{part}"), path.with_file_name(&part)));
        parts.chain([(key.clone(), path.clone())]).collect::<Vec<_>>()
    });
    with_parts
        .filter_map(|(key, path)| {
            let record = file(&path, known.get(&key))?;
            Some((key, record))
        })
        .collect()
}

/// Keys and paths of the files that `init` names. The description of a checkpoint holds the hashes
/// of its files, so it stands for all of them.
fn of_init(init: &Init) -> Vec<(String, PathBuf)> {
    match init {
        Init::Run(run) => {
            let run = RunDirectory::open(run).ok();
            let newest = run.and_then(|run| Some(run.manifest(&run.newest_checkpoint()?)));
            newest.into_iter().map(|path| (init.key().to_owned(), path)).collect()
        }
        Init::Export(folder) => {
            let entries = |at: &Path| {
                let entries = std::fs::read_dir(at).into_iter().flatten().flatten();
                entries.map(|entry| entry.path()).collect::<Vec<_>>()
            };
            let mut files = entries(folder);
            // The deepest files are those of Dense layers: `y_encoder/2_Dense/model.safetensors`.
            let parts: Vec<_> = files.iter().flat_map(|part| entries(part)).collect();
            files.extend(parts.iter().flat_map(|below| entries(below)));
            files.extend(parts);
            files.retain(|path| path.extension().is_some_and(|e| e == "safetensors"));
            let key = |path: &Path| {
                format!("{}/{}", init.key(), path.strip_prefix(folder).unwrap_or(path).display())
            };
            files.into_iter().map(|path| (key(&path), path)).collect()
        }
        Init::Weights(path) => vec![(init.key().to_owned(), path.clone())],
    }
}

/// Names of the files of weights that `path` lists. Empty if it is no index.
fn parts(path: &Path) -> impl Iterator<Item = String> + use<> {
    let is_index = path.to_string_lossy().ends_with(".index.json");
    let index = is_index.then(|| std::fs::File::open(path).ok()).flatten();
    let files = index.and_then(|index| weight_index::read(index).ok()).unwrap_or_default();
    files.into_keys()
}

/// Fingerprint of `path`, or `None` if the file does not exist.
pub(crate) fn file(path: &Path, known: Option<&FileRecord>) -> Option<FileRecord> {
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

/// BLAKE3 of a file's content as hexadecimal text, or `unreadable`.
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

/// The git checkout that contains `folder`, and its diff against the commit. `None` outside a
/// checkout.
pub(crate) async fn git(folder: &Path) -> Option<(Git, Vec<u8>)> {
    let folder = folder.to_str()?;
    let commit = process::inquire("git", &["-C", folder, "rev-parse", "HEAD"]).await?;
    let diff = process::inquire("git", &["-C", folder, "diff", "--binary", "HEAD"]).await;
    let diff = diff.unwrap_or_default();
    let diff_hash = (!diff.is_empty()).then(|| blake3::hash(&diff).to_hex().to_string());
    Some((Git { commit: first_line(&commit)?, diff_hash }, diff))
}

/// Versions of the programs, libraries and drivers of a run, by name.
pub(crate) async fn versions(programs: &Programs) -> BTreeMap<String, String> {
    let mut versions =
        BTreeMap::from([("vljepa".to_owned(), env!("CARGO_PKG_VERSION").to_owned())]);
    if let Some(mpirun) = &programs.mpirun {
        let said = process::inquire(&mpirun.display().to_string(), &["--version"]).await;
        if let Some(first) = said.as_deref().and_then(first_line) {
            versions.insert("mpirun".to_owned(), first);
        }
    }
    let said = process::inquire(&programs.worker.display().to_string(), &["--features"]).await;
    versions.extend(said.map(|said| of_worker(&said)).unwrap_or_default());
    let query = ["--query-gpu=name,driver_version", "--format=csv,noheader"];
    if let Some(gpus) = process::inquire("nvidia-smi", &query).await {
        let summary = process::inquire("nvidia-smi", &[]).await.unwrap_or_default();
        versions
            .extend(of_gpus(&String::from_utf8_lossy(&gpus), &String::from_utf8_lossy(&summary)));
    }
    versions
}

/// Versions in the output of `vljepa-worker --features`, such as `"nccl_version": "2.27.3"`; the
/// key loses its suffix.
fn of_worker(said: &[u8]) -> BTreeMap<String, String> {
    let facts: BTreeMap<String, Value> = serde_json::from_slice(said).unwrap_or_default();
    let version = |(key, value): (String, Value)| {
        Some((key.strip_suffix("_version")?.to_owned(), value.as_str()?.to_owned()))
    };
    facts.into_iter().filter_map(version).collect()
}

/// Versions in the output of `nvidia-smi`: `list` has a line `name, driver` per GPU, `summary`
/// names the CUDA version in its heading.
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
    use std::collections::BTreeMap;

    use vljepa_recipes::Recipe;
    use vljepa_recipes::schema::Init;

    use super::{file, files, of_gpus, of_worker};

    fn recipe() -> Recipe {
        let text = serde_json::json!({"name": "x", "data": {"sources": {}}, "stages": []});
        serde_json::from_value(text).unwrap()
    }

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
    fn each_file_of_an_index_has_a_fingerprint() {
        let folder = tempfile::tempdir().unwrap();
        let index = folder.path().join("model.safetensors.index.json");
        std::fs::write(&index, r#"{"weight_map": {"a": "one", "b": "two", "c": "two"}}"#).unwrap();
        std::fs::write(folder.path().join("one"), "1").unwrap();
        std::fs::write(folder.path().join("two"), "2").unwrap();
        let mut recipe = recipe();
        recipe.model.predictor.weights = Some(index);
        let found = files(&recipe, &BTreeMap::new());
        let key = "model.predictor.weights";
        let keys = [key, &format!("{key}/one"), &format!("{key}/two")];
        assert_eq!(found.keys().map(String::as_str).collect::<Vec<_>>(), keys);
        assert_eq!(found[keys[2]].hash, blake3::hash(b"2").to_hex().to_string());
    }

    #[test]
    fn weights_that_a_run_starts_from_have_fingerprints() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        let found = |init| {
            let recipe = Recipe { init: Some(init), ..recipe() };
            let found = files(&recipe, &BTreeMap::new()).into_iter();
            found.map(|(key, file)| (key, file.hash)).collect::<Vec<_>>()
        };
        let hash = |text: &str| blake3::hash(text.as_bytes()).to_hex().to_string();
        let run = || Init::Run(folder.path().to_owned());
        assert_eq!(found(run()), [], "the run has no checkpoint yet");
        write("recipe.yaml", "");
        write("checkpoints/step-00000002/manifest.json", "two");
        write("checkpoints/step-00000010/manifest.json", "ten");
        assert_eq!(found(run()), [("init.run".to_owned(), hash("ten"))]);
        write("export/projections.safetensors", "p");
        write("export/y_encoder/model.safetensors", "g");
        write("export/y_encoder/2_Dense/model.safetensors", "d");
        write("export/notes.txt", "n");
        let export = found(Init::Export(folder.path().join("export")));
        let wanted =
            [("projections", "p"), ("y_encoder/2_Dense/model", "d"), ("y_encoder/model", "g")]
                .map(|(name, text)| (format!("init.export/{name}.safetensors"), hash(text)));
        assert_eq!(export, wanted);
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
