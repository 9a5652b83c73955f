//! The shards of a recipe's sources as this node sees them: whether they can be read, and how fast.

use std::path::Path;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use vljepa_data::storage::{Found, Storage, StorageOptions};
use vljepa_recipes::node::Judgement;
use vljepa_recipes::protocol::{SourceRate, SourceReport};
use vljepa_recipes::schema::Source;
use vljepa_recipes::{Recipe, clock};

use crate::rank::environment::Environment;

/// How long the shards of a source are read to measure its rate.
const MEASURED: Duration = Duration::from_secs(1);
/// How long listing, opening and reading the shards of a source may take in all. A server that does
/// not answer is asked again for minutes, and a mount that hangs never answers.
const SOURCE_LIMIT: Duration = Duration::from_secs(20);
/// Bytes of one read. The same as a block of the cache (`data.shard_cache`).
const READ_BYTES: usize = 8 << 20;
/// Most threads that read shards at once. More would measure the threads' memory, not the storage.
const MOST_THREADS: usize = 16;

/// Reads the beginning of the first and the last shard of every source that a stage uses.
///
/// # Errors
/// If one of them cannot be read, with the name of the source.
pub fn check(recipe: &Recipe) -> Judgement {
    let storage = Storage::new(StorageOptions::of(&recipe.data))
        .map_err(|error| format!("data.shard_cache: {error}"))?;
    let mut count = 0;
    for (name, source) in used(recipe) {
        count += readable(&storage, name, source)?.len();
    }
    Ok(format!("{count} shards; the first and last of each source were read"))
}

/// Measures how fast the sources of the recipe in the file `recipe` are read, one after the other,
/// and gives `print` a [`SourceReport`] as a line of JSON after each.
///
/// # Errors
/// If the recipe does not load. A source that cannot be read is part of the result.
pub fn feed(recipe: &Path, mut print: impl FnMut(&str)) -> anyhow::Result<()> {
    let recipe = vljepa_recipes::load(recipe, &[])?.recipe;
    let storage = Storage::new(without_cache(&recipe))?;
    let threads = match recipe.data.threads {
        0 => Environment::read().cpus_of_ranks(&recipe, recipe.cluster.ranks_per_node),
        threads => threads,
    };
    let threads = threads.clamp(1, MOST_THREADS);
    for (name, source) in used(&recipe) {
        let (storage, owned) = (storage.clone(), (name.clone(), source.clone()));
        let read = within(SOURCE_LIMIT, move || {
            let shards = readable(&storage, &owned.0, &owned.1)?;
            rate(&storage, &shards, threads)
        });
        let read = read.unwrap_or_else(|why| Err(format!("data.sources.{name}: {why}")));
        print(&serde_json::to_string(&SourceReport { source: name.clone(), read })?);
    }
    Ok(())
}

/// Options without the cache of shards: a measurement must neither read nor fill it.
fn without_cache(recipe: &Recipe) -> StorageOptions {
    StorageOptions { cache: None, ..StorageOptions::of(&recipe.data) }
}

/// Runs `probe` on a thread of its own, which is left behind if it takes longer than `limit`.
fn within<T: Send + 'static>(
    limit: Duration,
    probe: impl FnOnce() -> T + Send + 'static,
) -> Result<T, String> {
    let (sender, receiver) = mpsc::channel();
    std::thread::Builder::new()
        .spawn(move || {
            // Nobody waits for a probe that was too slow.
            sender.send(probe()).ok();
        })
        .map_err(|error| format!("starting a thread failed: {error}"))?;
    receiver.recv_timeout(limit).map_err(|error| match error {
        mpsc::RecvTimeoutError::Timeout => format!("no answer within {} s", limit.as_secs()),
        mpsc::RecvTimeoutError::Disconnected => "the thread that reads it panicked".to_owned(),
    })
}

/// Sources from which a stage draws samples.
fn used(recipe: &Recipe) -> impl Iterator<Item = (&String, &Source)> {
    recipe.data.sources.iter().filter(|(name, _)| recipe.draws_from(name))
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
    use std::time::Duration;

    use vljepa_data::storage::{Storage, StorageOptions};
    use vljepa_recipes::Recipe;
    use vljepa_recipes::protocol::SourceReport;

    use super::{check, feed, rate, within};

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
    #[test]
    fn a_measurement_prints_a_line_per_source_and_leaves_the_cache_alone() {
        let folder = tempfile::tempdir().unwrap();
        let shards = folder.path().join("shards");
        std::fs::create_dir(&shards).unwrap();
        std::fs::write(shards.join("a.tar"), vec![7; 3000]).unwrap();
        let mut recipe = recipe(&shards);
        recipe.data.sources.get_mut("images").unwrap().shards = "/nowhere/a.tar".to_owned();
        let file = folder.path().join("recipe.yaml");
        let cache = folder.path().join("cache");
        let yaml = vljepa_recipes::to_yaml(&recipe).unwrap();
        std::fs::write(&file, &yaml).unwrap();
        let set = format!("data.shard_cache={{folder: {}, gib: 1}}", cache.display());
        let yaml = vljepa_recipes::load(&file, &[set]).unwrap().yaml;
        std::fs::write(&file, &yaml).unwrap();
        let mut reports: Vec<SourceReport> = Vec::new();
        feed(&file, |line| reports.push(serde_json::from_str(line).unwrap())).unwrap();
        let read: Vec<(&str, bool)> =
            reports.iter().map(|one| (one.source.as_str(), one.read.is_ok())).collect();
        assert_eq!(read, [("clips", true), ("images", false), ("questions", true)]);
        assert!(!cache.exists(), "the cache of a run is not touched");
        Storage::new(StorageOptions::of(&vljepa_recipes::load(&file, &[]).unwrap().recipe.data))
            .unwrap();
        assert!(cache.exists(), "a run would have made it");
    }

    #[test]
    fn a_source_that_hangs_is_given_up() {
        assert_eq!(within(Duration::from_secs(60), || 7), Ok(7));
        let (_held, never) = std::sync::mpsc::channel::<()>();
        let hung = within(Duration::from_millis(50), move || never.recv());
        assert!(hung.unwrap_err().contains("no answer within"));
    }
}
