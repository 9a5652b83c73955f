//! The shards of a recipe's sources as this node sees them: whether they can be read, and how fast.

use std::path::Path;
use std::time::{Duration, Instant};

use vljepa_data::storage::{Found, Storage, StorageOptions};
use vljepa_recipes::node::Judgement;
use vljepa_recipes::protocol::{SourceRate, SourceReport};
use vljepa_recipes::schema::Source;
use vljepa_recipes::{Recipe, clock};

use crate::rank::environment::Environment;

/// How long the shards of a source are read to measure its rate.
const MEASURED: Duration = Duration::from_secs(1);
/// Bytes of one read. The same as a block of the cache (`data.shard_cache`).
const READ_BYTES: usize = 8 << 20;
/// Most threads that read shards at once. More would measure the threads' memory, not the storage.
const MOST_THREADS: usize = 16;

/// Reads the beginning of the first and the last shard of every source that a stage uses.
///
/// # Errors
/// If one of them cannot be read, with the name of the source.
pub fn check(recipe: &Recipe) -> Judgement {
    let storage = storage(recipe)?;
    let mut count = 0;
    for (name, source) in used(recipe) {
        count += readable(&storage, name, source)?.len();
    }
    Ok(format!("{count} shards; the first and last of each source were read"))
}

/// Measures how fast the sources of the recipe in the file `recipe` are read, one after the other,
/// and returns a list of [`SourceReport`] as JSON.
///
/// # Errors
/// If the recipe does not load. A source that cannot be read is part of the result.
pub fn feed(recipe: &Path) -> anyhow::Result<String> {
    let recipe = vljepa_recipes::load(recipe, &[])?.recipe;
    let storage = storage(&recipe);
    let threads = match recipe.data.threads {
        0 => Environment::read().cpus(recipe.cluster.ranks_per_node),
        threads => threads,
    };
    let report = |(name, source): (&String, &Source)| {
        let read = storage.as_ref().map_err(Clone::clone);
        let read = read.and_then(|storage| {
            let shards = readable(storage, name, source)?;
            rate(storage, &shards, threads.clamp(1, MOST_THREADS))
        });
        SourceReport { source: name.clone(), read }
    };
    let reports: Vec<SourceReport> = used(&recipe).map(report).collect();
    Ok(serde_json::to_string(&reports)?)
}

fn storage(recipe: &Recipe) -> Result<Storage, String> {
    Storage::new(StorageOptions::of(&recipe.data))
        .map_err(|error| format!("data.shard_cache: {error}"))
}

/// Sources from which a stage draws samples.
fn used(recipe: &Recipe) -> impl Iterator<Item = (&String, &Source)> {
    let drawn = |name: &String| {
        recipe.stages.iter().any(|stage| stage.mixture.get(name).is_some_and(|weight| *weight > 0))
    };
    recipe.data.sources.iter().filter(move |(name, _)| drawn(name))
}

/// Shards of a source, of which the first and the last could be read.
fn readable(storage: &Storage, name: &str, source: &Source) -> Result<Vec<Found>, String> {
    let shards =
        storage.expand(&source.shards).map_err(|error| format!("data.sources.{name}: {error}"))?;
    for shard in shards.first().into_iter().chain(shards.last()) {
        let mut header = [0; 512];
        let file = storage
            .open(&shard.location)
            .map_err(|error| format!("data.sources.{name}: {error}"))?;
        file.read_exact_at(&mut header, 0)
            .map_err(|error| format!("data.sources.{name}: {}: {error}", file.path()))?;
    }
    Ok(shards)
}

/// Reads shards for [`MEASURED`], or all of them once. The clock chooses the first shard, so that a
/// repeated measurement rarely reads what the node still holds in memory.
fn rate(storage: &Storage, shards: &[Found], threads: usize) -> Result<SourceRate, String> {
    let threads = threads.min(shards.len()).max(1);
    let first = usize::try_from(clock::now().subsec_nanosecond()).unwrap_or(0);
    let start = Instant::now();
    let one = |thread: usize| -> Result<u64, String> {
        let (mut bytes, mut buffer) = (0, vec![0; READ_BYTES]);
        for index in (thread..shards.len()).step_by(threads) {
            let shard = &shards[(first + index) % shards.len()];
            let file = storage.open(&shard.location).map_err(|error| error.to_string())?;
            let mut offset = 0;
            while offset < file.length() {
                if start.elapsed() >= MEASURED {
                    return Ok(bytes);
                }
                let left = usize::try_from(file.length() - offset).unwrap_or(READ_BYTES);
                let part = &mut buffer[..left.min(READ_BYTES)];
                file.read_exact_at(part, offset)
                    .map_err(|error| format!("{}: {error}", file.path()))?;
                offset += part.len() as u64;
                bytes += part.len() as u64;
            }
        }
        Ok(bytes)
    };
    let read: Vec<Result<u64, String>> = std::thread::scope(|scope| {
        let one = &one;
        let readers: Vec<_> = (0..threads).map(|thread| scope.spawn(move || one(thread))).collect();
        let ended = readers.into_iter().map(|reader| {
            reader.join().unwrap_or_else(|_| Err("a thread that reads shards panicked".to_owned()))
        });
        ended.collect()
    });
    let bytes = read.into_iter().sum::<Result<u64, String>>()?;
    let seconds = start.elapsed().as_secs_f64();
    Ok(SourceRate { shards: shards.len(), bytes, seconds, threads })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use vljepa_data::storage::Storage;
    use vljepa_recipes::Recipe;

    use super::{check, rate};

    fn recipe(shards: &Path) -> Recipe {
        let recipe = Path::new(env!("CARGO_MANIFEST_DIR")).join("../recipes/quickstart.yaml");
        let source = |name: &str| format!("data.sources.{name}.shards={}", shards.display());
        let sets = ["clips", "images", "questions"].map(source);
        vljepa_recipes::load(&recipe, &sets).unwrap().recipe
    }

    #[test]
    fn shards_are_counted_and_read_once_and_a_missing_one_is_named() {
        let folder = tempfile::tempdir().unwrap();
        for (name, bytes) in [("a.tar", 3000), ("b.tar", 9 << 20), ("c.tar", 600)] {
            std::fs::write(folder.path().join(name), vec![7; bytes]).unwrap();
        }
        let text = check(&recipe(folder.path())).unwrap();
        assert!(text.starts_with("9 shards"), "{text}");
        let storage = Storage::default();
        let shards = storage.expand(&folder.path().display().to_string()).unwrap();
        for threads in [1, 2, 16] {
            let read = rate(&storage, &shards, threads).unwrap();
            assert_eq!((read.shards, read.bytes), (3, 3600 + (9 << 20)), "{threads}");
            assert_eq!(read.threads, threads.min(3));
        }
        std::fs::remove_file(folder.path().join("b.tar")).unwrap();
        assert!(rate(&storage, &shards, 2).unwrap_err().contains("b.tar"));
        let missing = check(&recipe(Path::new("/nowhere/a.tar"))).unwrap_err();
        assert!(missing.contains("data.sources.") && missing.contains("/nowhere"), "{missing}");
    }
}
