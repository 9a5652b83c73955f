//! Published sizes of encoder families, and keys of earlier recipes.
//!
//! These functions change the tree of a recipe before it is read, so that an error in it keeps its
//! position.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value as Json};

use crate::read::{self, Fault};
use crate::schema::{
    Clip, ClipResnet, ClipResnetSize, ClipSize, ClipText, EmbeddingGemma, LanguageModel,
    LanguageModelFamily, LlamaDecoder, ModelKind, Pe, PeSize, PeText, Predictor, PredictorFamily,
    Projection, Qwen3Embedding, Siglip2, Siglip2Size, Siglip2Text, Sonar, SonarDecoder, Update,
    VJepa2, VJepa2_1, VJepa2_1Size, VJepa2Size, Visual, XEncoder, XFamily, YDecoder,
    YDecoderFamily, YEncoder, YFamily,
};
use crate::tree::{Entry, Node, Span, Value};

/// Part of the model that a published model can fill.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Encoder of frames.
    XEncoder,
    /// Predictor.
    Predictor,
    /// Encoder of target texts.
    YEncoder,
    /// Decoder that writes the texts of embeddings.
    YDecoder,
    /// Language model of a VLM.
    LanguageModel,
}

impl Role {
    /// All roles, in the order of the recipe's keys.
    pub const ALL: [Self; 5] =
        [Self::XEncoder, Self::Predictor, Self::YEncoder, Self::YDecoder, Self::LanguageModel];

    /// Key under `model`.
    #[must_use]
    pub fn key(self) -> &'static str {
        match self {
            Self::XEncoder => "x_encoder",
            Self::Predictor => "predictor",
            Self::YEncoder => "y_encoder",
            Self::YDecoder => "y_decoder",
            Self::LanguageModel => "language_model",
        }
    }

    /// Keys that do not describe a published model: an extending recipe that chooses another one
    /// inherits them.
    fn inherited(self) -> &'static [&'static str] {
        match self {
            Self::XEncoder => &["trainable"],
            Self::Predictor => {
                &["attention", "train_embeddings", "text_projection", "max_query_tokens"]
            }
            Self::YEncoder => &["update", "trainable", "projection", "max_target_tokens"],
            Self::YDecoder => &["prefix_tokens", "train_layers"],
            Self::LanguageModel => &["train_embeddings"],
        }
    }

    /// Keys of the published model that `family` and `size` name.
    pub(super) fn published(
        self,
        family: Option<&Node>,
        size: Option<&Node>,
    ) -> Result<Published, Fault> {
        let under_role = |fault: Fault| fault.under(self.key()).under("model");
        let published = match self {
            Self::XEncoder => match choice(family, "family").map_err(under_role)? {
                XFamily::Vjepa2 => choice(size, "size").map(|size: VJepa2Size| {
                    Published::vision(XEncoder::Vjepa2(VJepa2::of_size(size)), size.image_size())
                }),
                XFamily::Vjepa2_1 => choice(size, "size").map(|size: VJepa2_1Size| {
                    let keys = VJepa2_1::of_size(size);
                    Published::vision(XEncoder::Vjepa2_1(keys), size.image_size())
                }),
                XFamily::Pe => choice(size, "size").map(|size: PeSize| {
                    Published::vision(XEncoder::Pe(Pe::of_size(size)), size.image_size())
                }),
                XFamily::Siglip2 => choice(size, "size").map(|size: Siglip2Size| {
                    Published::vision(XEncoder::Siglip2(Siglip2::of_size(size)), size.image_size())
                }),
                XFamily::Clip => choice(size, "size").map(|size: ClipSize| {
                    Published::vision(XEncoder::Clip(Clip::of_size(size)), size.image_size())
                }),
                XFamily::ClipResnet => choice(size, "size").map(|size: ClipResnetSize| {
                    let keys = ClipResnet::of_size(size);
                    Published::vision(XEncoder::ClipResnet(keys), size.image_size())
                }),
            },
            Self::Predictor => match choice(family, "family").map_err(under_role)? {
                PredictorFamily::Llama => {
                    choice(size, "size").map(|size| Published::text(&Predictor::of_size(size)))
                }
            },
            Self::YEncoder => match choice(family, "family").map_err(under_role)? {
                YFamily::EmbeddingGemma => choice(size, "size").map(|size| {
                    Published::text(&YEncoder::EmbeddingGemma(EmbeddingGemma::of_size(size)))
                }),
                YFamily::Qwen3Embedding => choice(size, "size").map(|size| {
                    Published::text(&YEncoder::Qwen3Embedding(Qwen3Embedding::of_size(size)))
                }),
                YFamily::Sonar => choice(size, "size")
                    .map(|size| Published::text(&YEncoder::Sonar(Sonar::of_size(size)))),
                YFamily::PeText => choice(size, "size")
                    .map(|size| Published::text(&YEncoder::PeText(PeText::of_size(size)))),
                YFamily::ClipText => choice(size, "size")
                    .map(|size| Published::text(&YEncoder::ClipText(ClipText::of_size(size)))),
                YFamily::Siglip2Text => choice(size, "size").map(|size| {
                    Published::text(&YEncoder::Siglip2Text(Siglip2Text::of_size(size)))
                }),
            },
            Self::YDecoder => match choice(family, "family").map_err(under_role)? {
                YDecoderFamily::Llama => choice(size, "size")
                    .map(|size| Published::text(&YDecoder::Llama(LlamaDecoder::of_size(size)))),
                YDecoderFamily::Sonar => choice(size, "size")
                    .map(|size| Published::text(&YDecoder::Sonar(SonarDecoder::of_size(size)))),
            },
            Self::LanguageModel => match choice(family, "family").map_err(under_role)? {
                LanguageModelFamily::Llama => {
                    choice(size, "size").map(|size| Published::text(&LanguageModel::of_size(size)))
                }
            },
        };
        published.map_err(under_role)
    }
}

/// Keys of a role as a published model has them, with its `family`.
#[derive(PartialEq)]
pub(super) struct Published {
    pub(super) keys: Map<String, Json>,
    /// Height and width of the frames that the model was trained with.
    pub(super) image_size: Option<usize>,
}

impl Published {
    fn vision(encoder: XEncoder, image_size: usize) -> Self {
        Self { keys: keys(&encoder), image_size: Some(image_size) }
    }

    fn text(role: &impl Serialize) -> Self {
        Self { keys: keys(role), image_size: None }
    }
}

/// Reads a value of `family` or `size`; without one, the default.
fn choice<T: DeserializeOwned + Default>(node: Option<&Node>, key: &str) -> Result<T, Fault> {
    match node {
        Some(node) => read::read(node).map_err(|fault| fault.under(key)),
        None => Ok(T::default()),
    }
}

fn keys(role: &impl Serialize) -> Map<String, Json> {
    match json(role) {
        Json::Object(keys) => keys,
        other => unreachable!("a role is a map of plain values, not {other}"),
    }
}

fn json(value: &impl Serialize) -> Json {
    serde_json::to_value(value).expect("keys of recipes are plain values")
}

/// Removes the keys of a published model from a recipe if `over`, the keys of `role` that are about
/// to be merged into it, choose another published model. Returns a warning that names them.
pub(super) fn leave_published(root: &mut Node, role: Role, over: &Node) -> Option<String> {
    let node = root.get_mut("model")?.get_mut(role.key())?;
    let family = over.get("family").or(node.get("family"));
    let is_other = |family| {
        let (before, after) =
            (role.published(node.get("family"), None), role.published(family, None));
        matches!((before, after), (Ok(before), Ok(after)) if before != after)
    };
    let size =
        if is_other(family) { over.get("size") } else { over.get("size").or(node.get("size")) };
    let before = role.published(node.get("family"), node.get("size")).ok()?;
    if role.published(family, size).ok()? == before {
        return None;
    }
    let Value::Map(entries) = &mut node.value else { return None };
    let mut removed = Vec::new();
    entries.retain(|entry| {
        let stays = role.inherited().contains(&entry.key.as_str());
        let is_given = over.get(&entry.key).is_some();
        if !stays && !is_given && entry.key != "family" && entry.key != "size" {
            removed.push(entry.key.clone());
        }
        stays
    });
    (!removed.is_empty()).then(|| {
        format!(
            "model.{}: `family` or `size` chooses another model than the recipe had before, so its \
             keys do not apply: {}",
            role.key(),
            removed.join(", ")
        )
    })
}

/// Removes the keys of parts that a kind of model does not have from a recipe if `over`, which is
/// about to be merged into it, makes another kind of it: a VLM of a VL-JEPA, or the other way
/// round.
pub(super) fn leave_parts(root: &mut Node, over: &Node) {
    let kind = |node: &Node| {
        let kind = node.get("model").and_then(|model| model.get("kind"));
        kind.and_then(|kind| read::read(kind).ok())
    };
    let (before, Some(after)) = (kind(root).unwrap_or_default(), kind(over)) else { return };
    let parts: &[&str] = match (before, after) {
        (ModelKind::Vlm, ModelKind::Vlm) => return,
        (_, ModelKind::Vlm) => {
            root.take("loss");
            &["predictor", "y_encoder", "y_decoder", "embed_dim", "projection_bias"]
        }
        (ModelKind::Vlm, _) => &["language_model"],
        _ => return,
    };
    let Some(model) = root.get_mut("model") else { return };
    for key in parts {
        model.take(key);
    }
}

/// Fills in the keys of published models, and translates keys of earlier recipes.
pub(super) fn expand(root: &mut Node) -> Result<(), Fault> {
    let Some(model) = root.get_mut("model") else { return Ok(()) };
    expand_model(model)?;
    let x_encoder = model.get(Role::XEncoder.key()).cloned();
    let sources = root.get_mut("data").and_then(|data| data.get_mut("sources"));
    let Some(Value::Map(sources)) = sources.map(|sources| &mut sources.value) else {
        return Ok(());
    };
    if let Some(transform) = x_encoder.as_ref().and_then(|encoder| encoder.get("transform")) {
        for source in &mut *sources {
            fill_in(&mut source.node, "transform", || transform.clone());
        }
    }
    let of_images = |source: &&Entry| {
        let visual = source.node.get("visual").map(|visual| &visual.value);
        matches!(visual, Some(Value::Text(visual)) if visual == Visual::Image.name())
    };
    let images: Vec<String> =
        sources.iter().filter(of_images).map(|source| source.key.clone()).collect();
    let encoder = match &x_encoder {
        Some(node) => read::read(node).ok(),
        None => Some(XEncoder::default()),
    };
    if let (Some(encoder), Some(stages)) = (encoder, root.get_mut("stages")) {
        frames_of_image_stages(stages, &images, encoder.frames_of_picture());
    }
    Ok(())
}

/// Gives stages without `frames` those of a picture if all their sources hold `images`.
fn frames_of_image_stages(stages: &mut Node, images: &[String], frames: usize) {
    let Value::List(stages) = &mut stages.value else { return };
    for stage in stages {
        if let Some(Node { span, value: Value::Map(mixture) }) = stage.get("mixture")
            && mixture.iter().all(|source| images.contains(&source.key))
        {
            let span = *span;
            fill_in(stage, "frames", || Node { span, value: Value::Unsigned(frames as u64) });
        }
    }
}

/// Fills in the keys of published models in a value of the key `model`.
pub(super) fn expand_model(model: &mut Node) -> Result<(), Fault> {
    if let Some(kind) = model.get("kind") {
        let at = kind.span;
        match read::read(kind).map_err(|fault| fault.under("kind").under("model"))? {
            ModelKind::VlJepa => {}
            ModelKind::YDecoder => add_role(model, Role::YDecoder, at),
            ModelKind::Vlm => add_role(model, Role::LanguageModel, at),
            ModelKind::DualEncoder => frozen_targets(model, at),
        }
    }
    let mut image_size = None;
    for role in Role::ALL {
        let Some(node) = model.get_mut(role.key()) else { continue };
        let at = node.get("size").or(node.get("family")).unwrap_or(node).span;
        let published = role.published(node.get("family"), node.get("size"))?;
        match role {
            Role::XEncoder | Role::YDecoder | Role::LanguageModel => Ok(()),
            Role::Predictor => layers(node, &published),
            Role::YEncoder => update(node),
        }
        .map_err(|fault| fault.under(role.key()).under("model"))?;
        node.take("size");
        fill(node, published.keys, at);
        image_size = image_size.or(published.image_size.map(|size| (size, at)));
    }
    for (key, size) in [("image_size", image_size), ("embed_dim", own_width(model))] {
        if let Some((size, span)) = size {
            fill_in(model, key, || Node { span, value: Value::Unsigned(size as u64) });
        }
    }
    Ok(())
}

/// Gives a model the role that its kind needs, with the keys of the default family.
fn add_role(model: &mut Node, role: Role, span: Span) {
    fill_in(model, role.key(), || Node { span, value: Value::Map(Vec::new()) });
}

/// Gives the Y-encoder of a dual encoder the only values of `projection` and `update` that it can
/// have.
fn frozen_targets(model: &mut Node, span: Span) {
    let Some(y_encoder) = model.get_mut(Role::YEncoder.key()) else { return };
    fill_in(y_encoder, "projection", || plain(json(&Projection::None), span));
    if y_encoder.get("trainable").is_none() {
        fill_in(y_encoder, "update", || plain(json(&Update::Frozen), span));
    }
}

/// Adds a key to a map that does not have it.
fn fill_in(map: &mut Node, key: &str, node: impl FnOnce() -> Node) {
    if let Value::Map(entries) = &mut map.value
        && entries.iter().all(|entry| entry.key != key)
    {
        let node = node();
        entries.push(Entry { key: key.to_owned(), key_span: node.span, node });
    }
}

/// Width of the Y-encoder's own embedding if the recipe makes it the shared embedding.
fn own_width(model: &Node) -> Option<(usize, Span)> {
    let node = model.get(Role::YEncoder.key())?;
    let encoder: YEncoder = read::read(node).ok()?;
    let own = encoder.projection() == Projection::None;
    own.then(|| (encoder.sizes().output_size, node.span))
}

/// Adds the published keys that a recipe does not set. `family` becomes the first key.
fn fill(node: &mut Node, mut published: Map<String, Json>, span: Span) {
    let Value::Map(entries) = &mut node.value else { return };
    let family = entries.iter().position(|entry| entry.key == "family");
    let family = family.map(|index| entries.remove(index));
    let entry = |key: String, value| Entry { key, key_span: span, node: plain(value, span) };
    let named = published.remove("family").map(|name| entry("family".to_owned(), name));
    for (key, value) in published {
        if entries.iter().all(|entry| entry.key != key) {
            entries.push(entry(key, value));
        }
    }
    entries.splice(0..0, family.or(named));
}

/// Node of a plain value.
fn plain(value: Json, span: Span) -> Node {
    let value = match value {
        Json::Null => Value::Null,
        Json::Bool(value) => Value::Bool(value),
        Json::Number(number) => match (number.as_u64(), number.as_i64()) {
            (Some(value), _) => Value::Unsigned(value),
            (None, Some(value)) => Value::Signed(value),
            (None, None) => Value::Float(number.as_f64().unwrap_or(f64::NAN)),
        },
        Json::String(text) => Value::Text(text),
        Json::Array(items) => {
            Value::List(items.into_iter().map(|item| plain(item, span)).collect())
        }
        Json::Object(object) => {
            let entry = |(key, value)| Entry { key, key_span: span, node: plain(value, span) };
            Value::Map(object.into_iter().map(entry).collect())
        }
    };
    Node { span, value }
}

/// Translates `trainable` of the Y-encoder to `update`.
fn update(node: &mut Node) -> Result<(), Fault> {
    let Some(mut entry) = node.take("trainable") else { return Ok(()) };
    if let Some(update) = node.get("update") {
        let what = "`update` and `trainable` are both given";
        return Err(Fault::in_value(update.span, what, "write only `update`").under("update"));
    }
    let trained: bool = read::read(&entry.node).map_err(|fault| fault.under("trainable"))?;
    let update = if trained { Update::Train } else { Update::Frozen };
    entry.key = "update".to_owned();
    entry.node.value = plain(json(&update), entry.node.span).value;
    if let Value::Map(entries) = &mut node.value {
        entries.push(entry);
    }
    Ok(())
}

/// Translates `first_layer` and `num_layers` of the predictor to `layers`.
fn layers(node: &mut Node, published: &Published) -> Result<(), Fault> {
    let [first, count] = ["first_layer", "num_layers"].map(|key| node.take(key));
    let Some(span) = count.as_ref().or(first.as_ref()).map(|entry| entry.node.span) else {
        return Ok(());
    };
    if let Some(layers) = node.get("layers") {
        let what = "`layers` and `first_layer` or `num_layers` are both given";
        return Err(Fault::in_value(layers.span, what, "write only `layers`").under("layers"));
    }
    let number = |entry: Option<Entry>, default: u64| match entry {
        Some(entry) => read::read(&entry.node).map_err(|fault| fault.under(entry.key)),
        None => Ok(default),
    };
    let default = |index: usize| published.keys["layers"][index].as_u64().unwrap_or(0);
    let first = number(first, default(0))?;
    let count = number(count, default(1) - default(0))?;
    let ends = [first, first.saturating_add(count)];
    let item = |value| Node { span, value: Value::Unsigned(value) };
    let list = Node { span, value: Value::List(ends.map(item).into()) };
    if let Value::Map(entries) = &mut node.value {
        entries.push(Entry { key: "layers".to_owned(), key_span: span, node: list });
    }
    Ok(())
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_x_encoders;
