//! Files of `torch.save`: an uncompressed ZIP archive with a pickle, `data.pkl`, and a member of
//! numbers for each storage (`data/0`, `data/1`, …). Written by PyTorch 1.6 and later.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{BufReader, Read};

use zip::{CompressionMethod, ZipArchive};

use super::pickle::{Node, NodeId, Pickle};
use super::{Element, Stored};

/// Largest pickle that is read, in bytes. That of a training checkpoint of a thousand tensors has
/// about a megabyte.
const MAX_PICKLE_BYTES: u64 = 64 << 20;

/// Values that are visited in search of tensors. A pickle may contain a value many times.
const MOST_VISITS: usize = 4_000_000;

/// Depth of dictionaries and modules in which tensors are searched.
const MOST_LEVELS: usize = 64;

/// Why a file of `torch.jit.save` is refused. `OpenAI` publishes CLIP in this form.
const TORCHSCRIPT: &str = "it is a program of TorchScript, not a file of weights; name a safetensors \
    file of the same model, for OpenAI's RN50.pt that of timm/resnet50_clip.openai, \
    open_clip_model.safetensors";

/// Storages of the archive: where their bytes start in the file, and how many there are.
type Storages = HashMap<String, (u64, u64)>;

/// Tensors of a file, by name. The name of a tensor is the path to it through dictionaries, lists
/// and modules, joined by dots, as in PyTorch's state dictionaries.
///
/// # Errors
/// A message if the file is damaged, was not written by `torch.save`, is a program, or names a
/// function or class that weights do not need.
pub(super) fn tensors(file: &File) -> Result<BTreeMap<String, Stored>, String> {
    let damaged =
        |error: zip::result::ZipError| format!("the archive is damaged or cut short: {error}");
    let bytes = file.metadata().map_err(|error| error.to_string())?.len();
    let mut archive = ZipArchive::new(BufReader::new(file)).map_err(damaged)?;
    let (mut storages, mut pickle, mut order) = (Storages::new(), None, String::new());
    for index in 0..archive.len() {
        let mut member = archive.by_index_raw(index).map_err(damaged)?;
        let name = member.name().map_err(damaged)?.into_owned();
        // All members lie in one folder, whose name is that of the file when it was saved.
        let Some((_, inner)) = name.split_once('/') else { continue };
        if inner == "constants.pkl" || inner.starts_with("code/") {
            return Err(TORCHSCRIPT.to_owned());
        }
        if member.compression() != CompressionMethod::Stored {
            return Err(format!("its member {name} is compressed, which `torch.save` never does"));
        }
        let size = member.size();
        if size != member.compressed_size() {
            return Err(format!("the archive is damaged: {name} has two sizes"));
        }
        if inner == "data.pkl" {
            if size > MAX_PICKLE_BYTES {
                return Err(format!("its pickle has {size} bytes, more than {MAX_PICKLE_BYTES}"));
            }
            if pickle.is_some() {
                return Err("the archive is damaged: it has two pickles".to_owned());
            }
            let mut content = Vec::new();
            member.read_to_end(&mut content).map_err(|error| error.to_string())?;
            pickle = Some(content);
        } else if inner == "byteorder" {
            member
                .by_ref()
                .take(16)
                .read_to_string(&mut order)
                .map_err(|error| error.to_string())?;
        } else if let Some(key) = inner.strip_prefix("data/") {
            let start = member.data_start().ok_or("the archive is damaged")?;
            if start.checked_add(size).is_none_or(|end| end > bytes) {
                return Err(format!("the archive is cut short: {name} ends behind its end"));
            }
            storages.insert(key.to_owned(), (start, size));
        }
    }
    let pickle = pickle.ok_or("it is a ZIP archive without data.pkl, which `torch.save` writes")?;
    if order.trim() == "big" {
        return Err(
            "its numbers have their highest byte first; save it on another machine".to_owned()
        );
    }
    let pickle = Pickle::read(&pickle)?;
    let mut search =
        Search { pickle: &pickle, storages: &storages, found: BTreeMap::new(), visits: 0 };
    search.visit(pickle.root(), String::new(), 0)?;
    Ok(search.found)
}

/// Search for the tensors of a pickle.
struct Search<'a> {
    pickle: &'a Pickle,
    storages: &'a Storages,
    found: BTreeMap<String, Stored>,
    visits: usize,
}

impl Search<'_> {
    fn visit(&mut self, id: NodeId, name: String, level: usize) -> Result<(), String> {
        self.visits += 1;
        if self.visits > MOST_VISITS || level > MOST_LEVELS {
            return Err("its dictionaries contain each other too many times".to_owned());
        }
        let pickle = self.pickle;
        match pickle.node(id) {
            Node::Map(entries) => {
                for (key, value) in entries {
                    let key = match pickle.node(*key) {
                        Node::Text(key) => key.clone(),
                        Node::Int(key) => key.to_string(),
                        _ => continue,
                    };
                    self.visit(*value, joined(&name, &key), level + 1)?;
                }
            }
            Node::Sequence(elements) => {
                for (i, element) in elements.iter().enumerate() {
                    self.visit(*element, joined(&name, &i.to_string()), level + 1)?;
                }
            }
            Node::Call { function, arguments, state } => match pickle.global(*function) {
                Some(("torch._utils", function)) => {
                    self.rebuilt(function, *arguments, name, level)?;
                }
                // A module keeps its tensors and submodules in dictionaries, whose names are not
                // part of the tensors' names.
                Some((module, _))
                    if module.starts_with("torch.nn.") || module.starts_with("fairseq.") =>
                {
                    let Some(state) = state else { return Ok(()) };
                    let Node::Map(entries) = pickle.node(*state) else { return Ok(()) };
                    for (key, value) in entries {
                        let parts = ["_parameters", "_buffers", "_modules"];
                        if pickle.text(*key).is_some_and(|key| parts.contains(&key)) {
                            self.visit(*value, name.clone(), level + 1)?;
                        }
                    }
                }
                _ => {}
            },
            _ => {}
        }
        Ok(())
    }

    /// A call of one of the functions by which PyTorch makes a tensor again.
    fn rebuilt(
        &mut self,
        function: &str,
        arguments: NodeId,
        name: String,
        level: usize,
    ) -> Result<(), String> {
        let arguments = self.pickle.sequence(arguments).unwrap_or_default();
        match (function, arguments) {
            ("_rebuild_parameter" | "_rebuild_parameter_with_state", [data, ..]) => {
                self.visit(*data, name, level + 1)
            }
            ("_rebuild_tensor_v2", [storage, offset, shape, strides, ..]) => {
                let stored = self.stored(*storage, *offset, *shape, *strides);
                let stored = stored.map_err(|reason| format!("{name}: {reason}"))?;
                self.found.insert(name, stored);
                Ok(())
            }
            // Tensors of other kinds, which no model here has: sparse, quantised, of subclasses.
            _ => {
                let element = Element::Other(format!("a tensor made by `{function}`"));
                let stored =
                    Stored { file: 0, start: 0, shape: Vec::new(), element, contiguous: true };
                self.found.insert(name, stored);
                Ok(())
            }
        }
    }

    fn stored(
        &self,
        storage: NodeId,
        offset: NodeId,
        shape: NodeId,
        strides: NodeId,
    ) -> Result<Stored, String> {
        let pickle = self.pickle;
        let damaged = || "the description of the tensor is damaged".to_owned();
        let numbers = |id| -> Option<Vec<usize>> {
            pickle.sequence(id)?.iter().map(|number| pickle.number(*number)).collect()
        };
        // ("storage", class, key, device, number of elements)
        let Node::Persistent(description) = pickle.node(storage) else { return Err(damaged()) };
        let [kind, class, key, ..] = pickle.sequence(*description).unwrap_or_default() else {
            return Err(damaged());
        };
        let class = pickle.global(*class).filter(|_| pickle.text(*kind) == Some("storage"));
        let (_, class) = class.ok_or_else(damaged)?;
        let element = match class {
            "FloatStorage" => Element::F32,
            "BFloat16Storage" => Element::Bf16,
            "HalfStorage" => Element::F16,
            other => Element::Other(other.trim_end_matches("Storage").to_lowercase()),
        };
        let (shape, strides) =
            (numbers(shape).ok_or_else(damaged)?, numbers(strides).ok_or_else(damaged)?);
        let offset = pickle.number(offset).ok_or_else(damaged)?;
        if shape.len() != strides.len() {
            return Err(damaged());
        }
        let key = pickle.text(*key).ok_or_else(damaged)?;
        let (start, size) = self
            .storages
            .get(key)
            .ok_or_else(|| format!("the archive lacks its numbers, data/{key}"))?;
        let Some(width) = element.bytes() else {
            return Ok(Stored { file: 0, start: *start, shape, element, contiguous: true });
        };
        // Strides of axes with one element have no meaning.
        let mut step = Some(1usize);
        let mut contiguous = true;
        for (length, stride) in shape.iter().zip(&strides).rev() {
            contiguous &= *length == 1 || Some(*stride) == step;
            step = step.and_then(|step| step.checked_mul(*length));
        }
        let end = step.and_then(|elements| elements.checked_add(offset)?.checked_mul(width));
        let end = end.and_then(|end| u64::try_from(end).ok());
        // A tensor with other strides may use fewer elements than it has. It cannot be read anyway.
        if contiguous && end.is_none_or(|end| end > *size) {
            return Err(format!("data/{key} has {size} bytes, too few for shape {shape:?}"));
        }
        let start = start + u64::try_from(offset.saturating_mul(width)).unwrap_or(u64::MAX - start);
        Ok(Stored { file: 0, start, shape, element, contiguous })
    }
}

fn joined(name: &str, part: &str) -> String {
    if name.is_empty() { part.to_owned() } else { format!("{name}.{part}") }
}
