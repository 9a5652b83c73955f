//! Loading a checkpoint: all ranks choose the same one, the newest that verifies or that of a step.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use safetensors::Dtype;
use safetensors::tensor::Metadata;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use vljepa_kernels::{Tensor, ViewMut};
use vljepa_model::Layout;
use vljepa_recipes::protocol::FileEntry;

use super::{
    Buffers, CheckpointFolder, FROZEN, FROZEN_TENSOR, MANIFEST, Manifest, State, TENSORS,
    checkpoint_name,
};
use crate::collectives::{Collectives, record};
use crate::error::WorkerError;
use crate::rank::environment::hash_file;
use crate::sharding::Shards;

/// Result of loading: the chosen checkpoint and the newer ones that did not verify.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Loaded {
    /// Folder name of the loaded checkpoint, or `None` if the run has no checkpoint.
    pub name: Option<String>,
    /// Name and reason of each newer checkpoint that did not verify.
    pub passed_over: Vec<String>,
    /// Position of the run in the loaded checkpoint; the default if there is none.
    pub state: State,
    /// BLAKE3 hash of the frozen parameters' file, or `None` if the model has none.
    pub frozen: Option<String>,
    /// [`Manifest::shard_lengths`] of the loaded checkpoint.
    pub shard_lengths: BTreeMap<String, String>,
    /// What this rank has read to fill its buffers. Hashing the files reads them once more.
    pub reads: Reads,
}

/// Fills `buffers` from the newest checkpoint that verifies. Rank 0 lists the checkpoints, each
/// rank hashes some of the files, and all ranks make the same choice. Then each rank reads its
/// shard, and the ranks gather the weights, and the moments unless the optimizer is sharded. So all
/// ranks together read the checkpoint once. If there is no checkpoint, the buffers stay as they
/// are.
///
/// # Errors
/// Fails if there are checkpoints but none verifies (the run would otherwise silently start again),
/// or if the newest valid checkpoint belongs to another recipe, model or data order.
pub fn load_newest(
    checkpoints: &CheckpointFolder,
    collectives: &Collectives,
    layout: &Layout,
    buffers: &mut Buffers<'_>,
) -> anyhow::Result<Loaded> {
    let (newest, passed_over) = newest(&checkpoints.folder, collectives)?;
    let Some((name, manifest)) = newest else {
        anyhow::ensure!(
            passed_over.is_empty(),
            "no checkpoint verifies ({}); restore one of them, or delete {} to start again",
            passed_over.join("; "),
            checkpoints.folder.display()
        );
        return Ok(Loaded::default());
    };
    let loaded = load(checkpoints, (name, manifest), collectives, layout, buffers)?;
    Ok(Loaded { passed_over, ..loaded })
}

/// Fills `buffers` from the checkpoint of `step` and no other, as [`load_newest`] does.
///
/// # Errors
/// Fails if there is no such checkpoint, or if it does not verify, and names the steps of the
/// others. Also fails if it belongs to another recipe, model or data order.
pub fn load_step(
    checkpoints: &CheckpointFolder,
    step: u64,
    collectives: &Collectives,
    layout: &Layout,
    buffers: &mut Buffers<'_>,
) -> anyhow::Result<Loaded> {
    let named = of_step(&checkpoints.folder, step, collectives)?;
    load(checkpoints, named, collectives, layout, buffers)
}

/// Fills `buffers` from a checkpoint that was verified.
fn load(
    checkpoints: &CheckpointFolder,
    (name, manifest): Named,
    collectives: &Collectives,
    layout: &Layout,
    buffers: &mut Buffers<'_>,
) -> anyhow::Result<Loaded> {
    fits(&name, &manifest, &checkpoints.recipe_hash, layout)?;
    has_order(&name, &manifest, checkpoints.order_version)?;
    let reads = fill(&checkpoints.folder.join(&name), &manifest.files, collectives, buffers)
        .with_context(|| format!("checkpoint {name} changed while it was read"))?;
    let Manifest { state, frozen, shard_lengths, .. } = manifest;
    let (name, passed_over) = (Some(name), Vec::new());
    Ok(Loaded { name, passed_over, state, frozen, shard_lengths, reads })
}

/// Name and manifest of a checkpoint.
type Named = (String, Manifest);

/// Returns the newest checkpoint in `folder` that verifies, the same on every rank, and the name
/// and reason of each newer one that does not.
pub(super) fn newest(
    folder: &Path,
    collectives: &Collectives,
) -> anyhow::Result<(Option<Named>, Vec<String>)> {
    let names = from_rank_0(collectives, || {
        let folders = folders(folder)?.into_iter();
        let name = |(_, path): (u64, PathBuf)| Some(path.file_name()?.to_str()?.to_owned());
        Ok(folders.filter_map(name).collect::<Vec<_>>())
    })?
    .map_err(anyhow::Error::msg)?;
    let mut passed_over = Vec::new();
    for name in names {
        match verify(&folder.join(&name), collectives)? {
            Ok(manifest) => return Ok((Some((name, manifest)), passed_over)),
            Err(error) => passed_over.push(format!("{name}: {error}")),
        }
    }
    Ok((None, passed_over))
}

/// Returns the checkpoint of `step` in `folder`, the same on every rank.
///
/// # Errors
/// Fails if there is none, or if it does not verify, and names the steps of the others.
pub(super) fn of_step(
    folder: &Path,
    step: u64,
    collectives: &Collectives,
) -> anyhow::Result<Named> {
    let steps = from_rank_0(collectives, || {
        let folders = folders(folder)?.into_iter().rev();
        Ok(folders.map(|(step, _)| step).collect::<Vec<_>>())
    })?;
    let steps = steps.map_err(anyhow::Error::msg)?.into_iter();
    let (own, others): (Vec<u64>, Vec<u64>) = steps.partition(|other| *other == step);
    let name = checkpoint_name(step);
    let what = if own.is_empty() {
        "does not exist".to_owned()
    } else {
        match verify(&folder.join(&name), collectives)? {
            Ok(manifest) => return Ok((name, manifest)),
            Err(error) => format!("does not verify: {error}"),
        }
    };
    let others = others.iter().map(u64::to_string).collect::<Vec<_>>().join(", ");
    let others = if others.is_empty() { "no other step".to_owned() } else { others };
    let what = format!("{what}; the run also has the checkpoints of {others}");
    Err(WorkerError::Checkpoint { name, what }.into())
}

/// Runs `find` on rank 0 and returns its result on every rank; errors travel as text.
fn from_rank_0<T: Serialize + DeserializeOwned>(
    collectives: &Collectives,
    find: impl FnOnce() -> anyhow::Result<T>,
) -> anyhow::Result<Result<T, String>> {
    let found = if collectives.rank() == 0 {
        serde_json::to_vec(&find().map_err(|error| format!("{error:#}")))?
    } else {
        Vec::new()
    };
    Ok(serde_json::from_slice(&collectives.broadcast(found))?)
}

/// Returns steps and paths of all checkpoint folders, newest first.
pub(super) fn folders(folder: &Path) -> anyhow::Result<Vec<(u64, PathBuf)>> {
    if !folder.exists() {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let step = name.to_str().and_then(|name| name.strip_prefix("step-")?.parse().ok());
        if let Some(step) = step {
            found.push((step, entry.path()));
        }
    }
    found.sort_unstable_by(|a, b| b.cmp(a));
    Ok(found)
}

/// Returns the manifest of a checkpoint if all its files have the listed size and hash, otherwise
/// the reason. Each rank checks some of the files; the result is the same on every rank.
fn verify(folder: &Path, collectives: &Collectives) -> anyhow::Result<Result<Manifest, String>> {
    let manifest = match from_rank_0(collectives, || read_manifest(folder))? {
        Ok(manifest) => manifest,
        Err(error) => return Ok(Err(error)),
    };
    let (rank, world_size) = (collectives.rank(), collectives.world_size());
    let mut own = manifest.files.iter().skip(rank).step_by(world_size);
    let wrong = own.find_map(|file| verify_file(folder, file).err());
    let wrong = wrong.map(|error| format!("{error:#}"));
    let verdicts = collectives.all_gather_bytes(&serde_json::to_vec(&wrong)?);
    for (rank, verdict) in verdicts.iter().enumerate() {
        if let Some(text) = serde_json::from_slice::<Option<String>>(verdict)? {
            let seen = format!("{text} (found by rank {rank})");
            return Ok(Err(if world_size > 1 { seen } else { text }));
        }
    }
    Ok(Ok(manifest))
}

/// Reads a manifest, and checks that its files cover the buffers without gaps.
fn read_manifest(folder: &Path) -> anyhow::Result<Manifest> {
    let text = fs::read(folder.join(MANIFEST)).context("no manifest.json can be read")?;
    let manifest = Manifest::of_json(&text)?;
    let mut end = 0;
    for file in &manifest.files {
        anyhow::ensure!(file.range.start == end, "{} leaves a gap", file.name);
        anyhow::ensure!(file.range.end >= end, "{} ends before it begins", file.name);
        end = file.range.end;
    }
    Ok(manifest)
}

fn verify_file(folder: &Path, file: &FileEntry) -> anyhow::Result<()> {
    let path = folder.join(&file.name);
    let bytes = fs::metadata(&path).with_context(|| format!("{} is missing", file.name))?.len();
    anyhow::ensure!(
        bytes == file.bytes,
        "{} has {bytes} bytes instead of {}",
        file.name,
        file.bytes
    );
    let hash = hash_file(&path).with_context(|| format!("{} cannot be read", file.name))?;
    let same = hash.to_hex().as_str() == file.blake3;
    anyhow::ensure!(same, "{} is damaged: its hash differs", file.name);
    Ok(())
}

/// Checks that this build has the data order in which the checkpoint was trained.
fn has_order(name: &str, manifest: &Manifest, order_version: u32) -> Result<(), WorkerError> {
    if manifest.order_version == order_version {
        return Ok(());
    }
    let what = format!(
        "was trained in data order {}, but this build has data order {order_version}; resume with \
         the build that wrote it",
        manifest.order_version
    );
    Err(WorkerError::Checkpoint { name: name.to_owned(), what })
}

/// Checks that a valid checkpoint belongs to the run with this recipe and layout. A mismatch is an
/// error and not a reason to try an older checkpoint: the run directory holds a checkpoint of
/// another run.
pub(super) fn fits(
    name: &str,
    manifest: &Manifest,
    recipe_hash: &str,
    layout: &Layout,
) -> Result<(), WorkerError> {
    let refuse = |what: String| Err(WorkerError::Checkpoint { name: name.to_owned(), what });
    // The hash of format 1 covers all keys of the schema, so it depends on the build that wrote it.
    if manifest.version > 1 && manifest.recipe_hash != recipe_hash {
        return refuse(format!(
            "was written with recipe {}, but this run has recipe {recipe_hash}",
            manifest.recipe_hash
        ));
    }
    let expected = super::entries(layout);
    if let Some((found, wanted)) =
        manifest.parameters.iter().zip(&expected).find(|(found, wanted)| found != wanted)
    {
        return refuse(format!(
            "holds parameter {} {:?} where this model has {} {:?}",
            found.name, found.shape, wanted.name, wanted.shape
        ));
    }
    let end = manifest.files.last().map_or(0, |file| file.range.end);
    if manifest.parameters.len() != expected.len() || end != layout.trainable_len {
        return refuse(format!(
            "holds {} parameters in {end} elements, but this model has {} in {}",
            manifest.parameters.len(),
            expected.len(),
            layout.trainable_len
        ));
    }
    Ok(())
}

/// Fills the buffers: each rank reads its shard of the tensors that all ranks hold whole, and the
/// ranks gather these. Of sharded moments, a rank reads what its optimizer owns. Returns what this
/// rank has read.
fn fill(
    folder: &Path,
    files: &[FileEntry],
    collectives: &Collectives,
    buffers: &mut Buffers<'_>,
) -> anyhow::Result<Reads> {
    let Buffers { weights, moments: [first, second], range: own } = buffers;
    let shards = Shards::new(weights.shape()[0], collectives.world_size());
    let part = shards.of(collectives.rank());
    let stream = weights.view().device().compute_stream();
    let mut files = PartFiles::new(folder, files);
    for (name, tensor) in TENSORS.into_iter().zip([&mut **weights, first, second]) {
        let is_whole = tensor.with_padding().len() == shards.room();
        if is_whole {
            let into = tensor.view_mut().part(part.start, &[part.len()]);
            files.read(name, part.clone(), into)?;
            collectives.all_gather_slots(&stream, tensor.with_padding_mut())?;
        } else {
            files.read(name, own.clone(), tensor.view_mut())?;
        }
    }
    Ok(files.reads())
}

/// The parts that hold the elements `wanted`, each with those of them that lie in it.
pub(super) fn pieces<'a>(
    files: &'a [FileEntry],
    wanted: &Range<usize>,
) -> impl Iterator<Item = (&'a FileEntry, Range<usize>)> + use<'a> {
    // The ranges of the parts ascend without gaps; some may be empty.
    let first = files.partition_point(|file| file.range.end <= wanted.start);
    let Range { start, end } = wanted.clone();
    let near = files[first..].iter().take_while(move |file| file.range.start < end);
    let piece =
        move |file: &'a FileEntry| (file, file.range.start.max(start)..file.range.end.min(end));
    near.map(piece).filter(|(_, range)| !range.is_empty())
}

/// The parts of a checkpoint, of which one is open at a time.
#[derive(Debug)]
pub(super) struct PartFiles<'a> {
    folder: &'a Path,
    files: &'a [FileEntry],
    open: Option<(&'a str, PartFile)>,
    reads: Reads,
}

/// Files that a rank has opened, and bytes that it has read from them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reads {
    /// Number of files that were opened.
    pub opens: u64,
    /// Bytes of tensors that were read.
    pub bytes: u64,
}

impl<'a> PartFiles<'a> {
    pub(super) fn new(folder: &'a Path, files: &'a [FileEntry]) -> Self {
        Self { folder, files, open: None, reads: Reads::default() }
    }

    pub(super) fn reads(&self) -> Reads {
        self.reads
    }

    /// Fills `into` with the elements `wanted` of a tensor, which may lie in several parts.
    pub(super) fn read(
        &mut self,
        tensor: &str,
        wanted: Range<usize>,
        mut into: ViewMut<'_>,
    ) -> anyhow::Result<()> {
        let mut filled = 0;
        for (FileEntry { name, range, .. }, Range { start, end }) in pieces(self.files, &wanted) {
            let into = into.reborrow().part(start - wanted.start, &[end - start]);
            let bytes = self.part(name)?.read(tensor, start - range.start, into)?;
            self.reads.bytes += bytes;
            filled += end - start;
        }
        anyhow::ensure!(filled == wanted.len(), "the parts hold {filled} elements of {wanted:?}");
        Ok(())
    }

    fn part(&mut self, name: &'a str) -> anyhow::Result<&PartFile> {
        let opened = match self.open.take() {
            Some((open, file)) if open == name => file,
            _ => {
                self.reads.opens += 1;
                PartFile::open(&self.folder.join(name))?
            }
        };
        Ok(&self.open.insert((name, opened)).1)
    }
}

/// A safetensors file of f32 vectors that is read in pieces.
#[derive(Debug)]
pub(super) struct PartFile {
    file: File,
    name: String,
    metadata: Metadata,
    /// Byte offset of the data in the file.
    data: u64,
}

/// Elements that are read at once: 16 MiB.
const PIECE: usize = 1 << 22;
/// Largest JSON description of a part that is accepted, in bytes.
const DESCRIPTION_BYTES: u64 = 1 << 20;

impl PartFile {
    pub(super) fn open(path: &Path) -> anyhow::Result<Self> {
        let name = path.display().to_string();
        let open = || {
            let file = File::open(path)?;
            let mut len = [0; 8];
            file.read_exact_at(&mut len, 0)?;
            let len = u64::from_le_bytes(len);
            anyhow::ensure!(len <= DESCRIPTION_BYTES, "its description of {len} bytes is too long");
            let mut text = vec![0; usize::try_from(len)?];
            file.read_exact_at(&mut text, 8)?;
            Ok((file, serde_json::from_slice(&text)?, 8 + len))
        };
        let (file, metadata, data) = open().with_context(|| format!("cannot read {name}"))?;
        Ok(Self { file, name, metadata, data })
    }

    /// Fills `target` from a tensor, beginning at its element `start`. Returns the bytes read.
    pub(super) fn read(
        &self,
        tensor: &str,
        start: usize,
        mut target: ViewMut<'_>,
    ) -> anyhow::Result<u64> {
        let info = self.metadata.info(tensor);
        let info = info.with_context(|| format!("{} holds no {tensor}", self.name))?;
        let elements: usize = info.shape.iter().product();
        let fits = info.dtype == Dtype::F32 && start + target.len() <= elements;
        anyhow::ensure!(
            fits,
            "{} holds {elements} elements {:?} of {tensor}, not the expected F32 elements",
            self.name,
            info.dtype
        );
        let first = self.data + (info.data_offsets.0 + start * size_of::<f32>()) as u64;
        let mut total = 0;
        for done in (0..target.len()).step_by(PIECE) {
            let len = PIECE.min(target.len() - done);
            let piece = target.reborrow().part(done, &[len]);
            let offset = first + (done * size_of::<f32>()) as u64;
            piece.write_f32(|values| {
                let bytes = bytemuck::cast_slice_mut(values);
                let read = self.file.read_exact_at(bytes, offset);
                total += bytes.len() as u64;
                read.with_context(|| format!("cannot read {}", self.name))
            })?;
            record::of_process().work_done();
        }
        Ok(total)
    }
}

/// Fills `frozen` from the file beside the checkpoints if the file has the hash in the manifest.
/// Otherwise leaves `frozen` unchanged. Rank 0 reads the file and sends its values to the others.
/// Returns whether `frozen` was filled, the same on every rank.
///
/// # Errors
/// Fails if the file changes while it is read.
pub fn load_frozen(
    checkpoints: &CheckpointFolder,
    collectives: &Collectives,
    hash: &str,
    frozen: &mut Tensor,
) -> anyhow::Result<bool> {
    let path = checkpoints.folder.join(FROZEN);
    if !has_hash(&path, hash, collectives) {
        return Ok(false);
    }
    from_rank_0(collectives, || {
        PartFile::open(&path)?.read(FROZEN_TENSOR, 0, frozen.view_mut())?;
        Ok(())
    })?
    .map_err(anyhow::Error::msg)?;
    let stream = frozen.view().device().compute_stream();
    collectives.broadcast_values(&stream, frozen.view_mut())?;
    Ok(true)
}

/// Whether the file `path` has this hash. Rank 0 reads the file, and every rank returns the same
/// answer.
pub(super) fn has_hash(path: &Path, hash: &str, collectives: &Collectives) -> bool {
    let good = || hash_file(path).is_ok_and(|found| found.to_hex().as_str() == hash);
    let verdict = if collectives.rank() == 0 { vec![u8::from(good())] } else { vec![0] };
    collectives.broadcast(verdict) == [1]
}
