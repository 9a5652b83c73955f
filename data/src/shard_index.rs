//! Index of a shard: the offset and length of every member of every sample, from the headers of the
//! tar. The catalogue keeps it ([`crate::catalogue`]).

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::Path;

use serde::{Deserialize, Serialize};
use vljepa_recipes::file_kind::{FileKind, HEAD_BYTES};

use crate::decode::Media;
use crate::error::DataError;
use crate::storage::StoredFile;
use crate::tar::{BLOCK, Contents, End, key_and_field, prefix_and_extension, read_contents};

/// Size in bytes up to which a file of zeros is a tar without members: GNU tar and Python write
/// such a tar with 10,240 bytes. A larger file of zeros is a download that reserved its space.
const LARGEST_EMPTY_TAR: u64 = 10_240;

const PACK_LINKS: &str =
    "pack the shard again with `tar --dereference --hard-dereference`, so that it holds the file";

/// Location of the samples in one shard.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShardIndex {
    /// Names of the fields that occur in the shard (`jpg`, `txt`, `0.png`).
    pub fields: Vec<String>,
    /// Samples, in the order of their first members.
    pub samples: Vec<IndexedSample>,
    /// Samples that were left out, with the reason.
    pub dropped: Vec<Dropped>,
    /// Remarks about the whole shard, such as bytes that are not read. Each is a sentence without
    /// the name of the shard.
    pub warnings: Vec<String>,
}

impl ShardIndex {
    /// Reads the headers of the local shard at `path`, see [`Self::of`].
    ///
    /// # Errors
    /// The errors of [`Self::of`].
    pub fn read(path: &Path) -> Result<Self, DataError> {
        Self::of(&StoredFile::open_local(path)?)
    }

    /// Reads the headers of the shard `tar`.
    ///
    /// # Errors
    /// [`DataError::Io`] if the shard cannot be read, [`DataError::BadShard`] if it is not a tar
    /// archive or cannot be used as a shard.
    pub fn of(tar: &StoredFile) -> Result<Self, DataError> {
        let contents = read_contents(tar.reader(), tar.length())
            .map_err(DataError::io("read", &**tar.path()))?;
        match unusable(tar, &contents) {
            Some(reason) => Err(DataError::BadShard { path: (&**tar.path()).into(), reason }),
            None => Ok(group(&contents, tar.length())),
        }
    }

    /// Whether each member has a field name. Not so if another program has written the table.
    pub(crate) fn is_consistent(&self) -> bool {
        let mut members = self.samples.iter().flat_map(|sample| &sample.members);
        members.all(|member| usize::from(member.field) < self.fields.len())
    }

    /// Warnings about the shard, and one about its dropped samples if there are any. The list is
    /// empty if everything in the shard is used.
    #[must_use]
    pub fn remarks(&self) -> Vec<String> {
        let mut remarks = self.warnings.clone();
        if let Some(Dropped { key, reason }) = self.dropped.first() {
            let count = self.dropped.len();
            remarks.push(format!("{count} samples are dropped; the first is `{key}`: {reason}"));
        }
        remarks
    }
}

/// Sample of a shard, with the location of its members.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IndexedSample {
    /// Key of the sample, unique in the shard.
    pub key: Box<str>,
    /// Members of the sample, in the order of the tar.
    pub members: Box<[IndexedMember]>,
}

/// Location of one file of a sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct IndexedMember {
    /// Index of the field name in [`ShardIndex::fields`].
    pub field: u16,
    /// Offset of the file's first byte in the tar.
    pub offset: u64,
    /// Length of the file in bytes.
    pub length: u64,
}

/// Sample that the index leaves out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dropped {
    /// Key of the dropped sample.
    pub key: String,
    /// Why the sample was dropped.
    pub reason: String,
}

/// Why the file cannot be used as a shard, or `None` if it can.
fn unusable(tar: &StoredFile, contents: &Contents) -> Option<String> {
    let length = tar.length();
    if let End::Sparse { member } = &contents.end {
        return Some(format!(
            "its member `{member}` is stored sparse, without its zeros; pack the shard again \
             without `--sparse` (`-S`)"
        ));
    }
    if !contents.members.is_empty() || !contents.links.is_empty() {
        return None;
    }
    let not_a_tar = matches!(contents.end, End::Damaged { at: 0 }) || length < BLOCK;
    match &contents.end {
        _ if not_a_tar => Some(match file_kind(tar) {
            Some(FileKind { what, advice }) => format!("the file {what}; {advice}"),
            None => "it does not start with a tar header, so it is not a tar archive".to_owned(),
        }),
        End::Damaged { at } => Some(format!("it is damaged at byte {at}, before its first member")),
        End::CutShort { at, .. } => {
            Some(format!("it is cut short at byte {at}, before the end of its first member"))
        }
        End::Complete { at: 0, unread: 0 } if length > LARGEST_EMPTY_TAR => {
            Some(format!("it holds {length} zero bytes; its download or copy is incomplete"))
        }
        End::Complete { at: 0, unread } if *unread > 0 => {
            Some(format!("it starts with an end marker, but {unread} bytes follow"))
        }
        End::Complete { .. } | End::Sparse { .. } => None,
    }
}

fn file_kind(file: &StoredFile) -> Option<FileKind> {
    let mut head = vec![0; HEAD_BYTES.min(usize::try_from(file.length()).unwrap_or(usize::MAX))];
    file.read_exact_at(&mut head, 0).ok()?;
    FileKind::of(&head)
}

/// Groups members into samples by key. All members with the same key belong to one sample, even if
/// other keys lie between them; otherwise, interleaved keys would silently give incomplete samples.
/// A sample is dropped if it has two members of the same field, a member that is a link, or members
/// that may belong to different samples. If the shard of `length` bytes is cut short, its last
/// sample may lack members and is dropped.
#[must_use]
pub fn group(contents: &Contents, length: u64) -> ShardIndex {
    let Contents { members, links, end } = contents;
    let mut index = ShardIndex::default();
    let mut fields: BTreeMap<String, u16> = BTreeMap::new();
    let mut index_of_key: BTreeMap<&str, usize> = BTreeMap::new();
    let mut samples: Vec<(&str, Vec<IndexedMember>)> = Vec::new();
    let mut dropped: BTreeMap<&str, String> = BTreeMap::new();
    for member in members {
        let Some((key, field)) = key_and_field(&member.name) else { continue };
        let next = u16::try_from(fields.len()).unwrap_or(u16::MAX);
        let field = match fields.entry(field) {
            Entry::Occupied(known) => *known.get(),
            Entry::Vacant(new) if next < u16::MAX => {
                index.fields.push(new.key().clone());
                *new.insert(next)
            }
            Entry::Vacant(_) => {
                dropped.insert(key, "the shard has more than 65,534 field names".to_owned());
                continue;
            }
        };
        let nth = *index_of_key.entry(key).or_insert_with(|| {
            samples.push((key, Vec::new()));
            samples.len() - 1
        });
        let known = &mut samples[nth].1;
        if known.iter().any(|other| other.field == field) {
            let name = &index.fields[usize::from(field)];
            dropped.insert(key, format!("the shard holds two `{name}` members of this sample"));
        }
        known.push(IndexedMember { field, offset: member.offset, length: member.length });
    }
    for (key, members) in &samples {
        let fields = members.iter().map(|member| &*index.fields[usize::from(member.field)]);
        if let Some(reason) = several_samples(&fields.collect::<Vec<_>>()) {
            dropped.entry(key).or_insert(reason);
        }
    }
    for link in links {
        if let Some((key, field)) = key_and_field(link) {
            dropped.insert(key, format!("its `{field}` is a link; {PACK_LINKS}"));
        }
    }
    let last = members.last().map(|member| member.name.as_str());
    if let Some((member, remark)) = unread(end, length) {
        if !matches!(end, End::Complete { .. })
            && let Some((key, _)) = member.or(last).and_then(key_and_field)
        {
            dropped.insert(key, format!("the shard {remark}; this sample may lack members"));
        }
        index.warnings.push(format!("the shard {remark}"));
    }
    index.samples = samples
        .into_iter()
        .filter(|(key, _)| !dropped.contains_key(key))
        .map(|(key, members)| IndexedSample { key: key.into(), members: members.into() })
        .collect();
    index.dropped =
        dropped.into_iter().map(|(key, reason)| Dropped { key: key.to_owned(), reason }).collect();
    if index.samples.is_empty() && index.dropped.is_empty() {
        index.warnings.push(match members.len() {
            0 => "the shard is a tar without members".to_owned(),
            count => format!("none of the shard's {count} members belongs to a sample"),
        });
    }
    index
}

/// Description of the bytes that are not read, and the member that they cut, if any. `None` if the
/// whole shard was read.
fn unread(end: &End, length: u64) -> Option<(Option<&str>, String)> {
    match end {
        End::CutShort { at, member } => {
            Some((member.as_deref(), format!("is cut short at byte {at}")))
        }
        End::Damaged { at } => {
            let lost = length - at;
            let remark = format!("is damaged at byte {at}; the last {lost} bytes are not read");
            Some((None, remark))
        }
        End::Complete { at, unread } if *unread > 0 => {
            let remark = format!(
                "has its end marker at byte {at}; its last {unread} bytes are not read (tars are \
                 joined with `tar --concatenate`, not with `cat`)"
            );
            Some((None, remark))
        }
        End::Complete { .. } | End::Sparse { .. } => None,
    }
}

/// Why the members with these fields may belong to several samples, or `None` if they belong to
/// one. The key of a sample ends at the first dot, so that `clip_1.0.png` and `clip_1.5.txt`, the
/// picture and the caption of two samples, have the same key `clip_1`.
///
/// Members without a prefix (`png`, `txt`) are a sample if they are a picture or clip and, if there
/// is any text, a text. Members with a prefix beside them (`seg.png`) are then not used, unless
/// they look like another sample. Without such members, all members must have the same prefix.
fn several_samples(fields: &[&str]) -> Option<String> {
    let mut kinds: BTreeMap<&str, [bool; 2]> = BTreeMap::new();
    for field in fields {
        let (prefix, extension) = prefix_and_extension(field);
        let is_text = matches!(extension, "txt" | "json");
        if is_text || Media::of_extension(extension).is_some() {
            kinds.entry(prefix).or_default()[usize::from(is_text)] = true;
        }
    }
    if kinds.len() < 2 {
        return None;
    }
    let [visual, text] = kinds.remove("").unwrap_or_default();
    let other_text = kinds.values().any(|&[_, text]| text);
    let other_sample = kinds.values().any(|&[visual, text]| visual && text);
    if visual && !other_sample && (text || !other_text) {
        return None;
    }
    let names: Vec<String> = fields.iter().take(6).map(|field| format!("`{field}`")).collect();
    let more = if fields.len() > names.len() { ", …" } else { "" };
    Some(format!(
        "its members {}{more} may belong to several samples, because a key ends at the first dot \
         of a name; rename the files so that their keys have no dots",
        names.join(", ")
    ))
}

#[cfg(test)]
mod tests;
