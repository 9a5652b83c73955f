//! Tars of samples: the layouts of webdataset, img2dataset (DataComp, YFCC-100M) and video2dataset.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use serde_json::Map;

use super::Give;
use crate::catalogue::Catalogue;
use crate::decode::Media;
use crate::error::DataError;
use crate::json;
use crate::prepare::item::{Item, LeftOut, MediaSource, Visual};
use crate::sample::read_member;
use crate::shards::{OpenShard, ShardSet};
use crate::storage::Storage;
use crate::tar::prefix_and_extension;

/// Largest picture or clip that is read, in bytes. Threads hold some of them in memory.
const LARGEST_MEMBER: u64 = 512 << 20;

/// Tars on the command line.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
pub struct WebDatasetArgs {
    /// Folders of tars, single tars, ranges such as clips-{000000..000127}.tar, or .txt files that
    /// list shards; local or with a URL (s3://, gs://, http://, https://).
    #[arg(required = true)]
    pub shards: Vec<String>,
}

/// The tars that the command line names, with their headers read.
#[derive(Debug)]
pub struct WebDataset {
    shards: Vec<Shard>,
    sets: Vec<ShardSet>,
    /// Number of the unit at which each shard begins. The first unit of a shard is the shard
    /// itself, and each sample is one more.
    starts: Vec<u64>,
    identity: BTreeMap<String, String>,
}

/// Tar of the set.
#[derive(Debug)]
struct Shard {
    /// Number of the set that it belongs to, and its number in the set.
    set: usize,
    number: usize,
    /// What makes the keys of its samples unique.
    prefix: Prefix,
}

/// Stretch of the tars of a set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnitRange {
    /// Numbers of the stretch's first unit and of the one after its last, see
    /// [`WebDataset::starts`].
    units: Range<u64>,
}

impl UnitRange {
    /// Divides `units` units into stretches of equal length, of about `length` units each.
    fn equal(units: u64, length: usize) -> Vec<Self> {
        let length = u64::try_from(length).unwrap_or(u64::MAX).max(1);
        let count = units.div_ceil(length);
        // The multiplication cannot overflow.
        let start = |nth: u64| {
            let start = u128::from(units) * u128::from(nth) / u128::from(count.max(1));
            u64::try_from(start).unwrap_or(u64::MAX)
        };
        (0..count).map(|nth| Self { units: start(nth)..start(nth + 1) }).collect()
    }
}

/// How the keys of a shard become unique in the whole set.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Prefix {
    /// The name of the shard, unless all its keys begin with it.
    Name(String),
    /// The number of the shard.
    Number(String),
}

impl WebDataset {
    /// Finds the tars and reads their headers. The catalogue of the tars is written to the folder
    /// `work`.
    ///
    /// # Errors
    /// The errors of [`Catalogue::open`].
    pub fn open(args: &WebDatasetArgs, work: &Path) -> Result<Self, DataError> {
        let storage = Storage::default();
        let mut catalogues = Vec::new();
        for entry in &args.shards {
            catalogues.push(Arc::new(Catalogue::open(&storage, entry, Some(work))?));
        }
        let mut paths = Vec::new();
        let (mut starts, mut units) = (Vec::new(), 0);
        let mut hasher = blake3::Hasher::new();
        for (set, catalogue) in catalogues.iter().enumerate() {
            for (number, samples) in catalogue.lengths().enumerate() {
                starts.push(units);
                units += samples + 1;
                let path = catalogue.path(number);
                paths.push((set, number, path.to_owned()));
                let version = &catalogue.record(number).version;
                hasher.update(format!("{path}\n{version:?}\n").as_bytes());
            }
        }
        starts.push(units);
        let prefixes = prefixes(paths.iter().map(|(_, _, path)| path.as_str()));
        let shard = |((set, number, _), prefix)| Shard { set, number, prefix };
        let shards: Vec<Shard> = paths.into_iter().zip(prefixes).map(shard).collect();
        let samples = units - u64::try_from(shards.len()).unwrap_or(0);
        let identity = [
            ("shards", args.shards.join(" ")),
            ("number of shards", shards.len().to_string()),
            ("number of samples", samples.to_string()),
            ("hash of the versions of the shards", hasher.finalize().to_hex()[..32].to_owned()),
        ];
        let identity = identity.map(|(name, value)| (name.to_owned(), value)).into();
        let set = |catalogue: Arc<Catalogue>| ShardSet::new(storage.clone(), catalogue);
        let sets = catalogues.into_iter().map(set).collect();
        Ok(Self { shards, sets, starts, identity })
    }

    pub(super) fn identity(&self) -> BTreeMap<String, String> {
        self.identity.clone()
    }

    pub(super) fn parts(&self, items: usize) -> Vec<UnitRange> {
        UnitRange::equal(self.starts.last().copied().unwrap_or(0), items)
    }

    pub(super) fn read(&self, part: &UnitRange, give: &mut Give<'_>) -> Result<(), DataError> {
        let first = self.starts.partition_point(|&start| start <= part.units.start) - 1;
        for (nth, shard) in self.shards.iter().enumerate().skip(first) {
            let (start, end) = (self.starts[nth], self.starts[nth + 1]);
            if start >= part.units.end {
                break;
            }
            let opened = self.sets[shard.set].shard(shard.number)?;
            if start >= part.units.start {
                remarks(&opened, give)?;
            }
            let prefix = shard.prefix.of(&opened);
            for unit in part.units.start.max(start + 1)..part.units.end.min(end) {
                let number = usize::try_from(unit - start - 1).unwrap_or(usize::MAX);
                give(item(&opened, number, prefix)?)?;
            }
        }
        Ok(())
    }
}

/// Says what is not read of a shard: dropped samples, bytes behind its end, members of other kinds.
fn remarks(shard: &OpenShard, give: &mut Give<'_>) -> Result<(), DataError> {
    let path = &shard.path;
    for dropped in &shard.index.dropped {
        let (item, reason) = (format!("{path}: {}", dropped.key), dropped.reason.clone());
        give(Err(LeftOut { item, class: "dropped sample", reason }))?;
    }
    for warning in &shard.index.warnings {
        let (item, reason) = (path.to_string(), warning.clone());
        give(Err(LeftOut { item, class: "shard", reason }))?;
    }
    let mut others: BTreeMap<&str, u64> = BTreeMap::new();
    for member in shard.index.samples.iter().flat_map(|sample| &sample.members) {
        let field = shard.field(member);
        if !is_read(prefix_and_extension(field).1) {
            *others.entry(field).or_default() += 1;
        }
    }
    for (field, count) in others {
        let reason =
            format!("{count} members `{field}` are not kept; pictures, clips, txt and json are");
        give(Err(LeftOut { item: path.to_string(), class: "other members", reason }))?;
    }
    Ok(())
}

fn is_read(extension: &str) -> bool {
    matches!(extension, "txt" | "json") || Media::of_extension(extension).is_some()
}

/// Item of sample number `number` of a shard.
fn item(
    shard: &OpenShard,
    number: usize,
    prefix: Option<&str>,
) -> Result<Result<Item, LeftOut>, DataError> {
    let sample = shard.sample(number);
    let left_out = |class, reason: String| {
        Ok(Err(LeftOut { item: format!("{}: {}", shard.path, sample.key), class, reason }))
    };
    if let Some(large) = sample.members.iter().find(|member| member.length > LARGEST_MEMBER) {
        let (field, length) = (shard.field(large), large.length);
        let reason = format!(
            "its `{field}` has {length} bytes, but at most {LARGEST_MEMBER} are read; cut it into \
             parts"
        );
        return left_out("too large", reason);
    }
    let mut visual = None;
    for media in [Media::Video, Media::Image] {
        if visual.is_none() {
            let is_media = |extension: &str| Media::of_extension(extension) == Some(media);
            visual = read_member(shard, number, is_media)?.map(|bytes| (media, bytes));
        }
    }
    let txt = read_member(shard, number, |extension| extension == "txt")?;
    let json = read_member(shard, number, |extension| extension == "json")?;
    let visual = match visual {
        Some((media, Ok(bytes))) => visual_of(media, bytes),
        Some((_, Err(reason))) => return left_out("picture or clip", reason),
        None => return left_out("no picture or clip", "it has none".to_owned()),
    };
    let caption = match txt.map(|bytes| String::from_utf8(bytes?).map_err(|it| it.to_string())) {
        Some(Ok(text)) => Some(text).filter(|text| !text.trim().is_empty()),
        Some(Err(reason)) => {
            return left_out("text", format!("its caption cannot be read: {reason}"));
        }
        None => None,
    };
    // Licences and URLs are in the json, so that a sample without it is not kept.
    let json = match json.map(|bytes| json::object(&bytes?)) {
        Some(Ok(fields)) => fields,
        Some(Err(reason)) => return left_out("text", reason),
        None => Map::new(),
    };
    let key = sample.key.strip_prefix("./").unwrap_or(&sample.key);
    let key = prefix.map_or_else(|| key.to_owned(), |prefix| format!("{prefix}/{key}"));
    Ok(Ok(Item { key, visual, caption, json }))
}

fn visual_of(media: Media, bytes: Vec<u8>) -> Visual {
    let source = MediaSource::Bytes(bytes.into());
    match media {
        Media::Image => Visual::Picture(source),
        Media::Video => Visual::Clip { video: source, seconds: None },
    }
}

/// How the keys of each shard become unique. img2dataset writes keys that begin with the name of
/// the shard; other programs begin anew with each shard.
///
/// The names can be used if they are different and of one length: then no key that begins with a
/// name is also a key that begins with another one.
fn prefixes<'a>(paths: impl Iterator<Item = &'a str>) -> Vec<Prefix> {
    let stem = |path: &str| {
        let name = path.rsplit('/').next().unwrap_or(path);
        name.strip_suffix(".tar").unwrap_or(name).replace('.', "-")
    };
    let stems: Vec<String> = paths.map(stem).collect();
    let lengths: BTreeSet<usize> = stems.iter().map(String::len).collect();
    let distinct: BTreeSet<&String> = stems.iter().collect();
    let usable = |stem: &String| !stem.is_empty() && !stem.starts_with("__");
    if lengths.len() == 1 && distinct.len() == stems.len() && stems.iter().all(usable) {
        return stems.into_iter().map(Prefix::Name).collect();
    }
    (0..stems.len()).map(|number| Prefix::Number(format!("{number:06}"))).collect()
}

impl Prefix {
    /// Folder that is put before the keys of a shard. `None` if they are unique without one.
    fn of(&self, shard: &OpenShard) -> Option<&str> {
        match self {
            Self::Name(name) => {
                let mut samples = shard.index.samples.iter();
                let all = samples.all(|sample| {
                    sample.key.strip_prefix("./").unwrap_or(&sample.key).starts_with(&**name)
                });
                (!all).then_some(name)
            }
            Self::Number(number) => Some(number),
        }
    }
}

#[cfg(test)]
mod tests;
