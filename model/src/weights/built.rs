//! Models of the sizes that a file shows, to compare the file with them.

use serde_json::{Map, Value as Json, json};
use vljepa_kernels::Device;
use vljepa_recipes::schema::{self, ClipText, ClipTextSize, Loss, ModelKind, SonarDecoder};
use vljepa_recipes::{PublishedModel, Role, published_models};

use super::sizes::Sizes;
use super::{Parts, Source};
use crate::{DualEncoder, VlJepa};

/// A model that has the tensors of a source, with other parts of any sizes.
pub(super) enum Built {
    VlJepa(Box<VlJepa>),
    /// For a tower that only a dual encoder has.
    DualEncoder(Box<DualEncoder>),
}

impl Built {
    /// Parts of the model.
    pub(super) fn parts(&self) -> Parts<'_> {
        match self {
            Self::VlJepa(model) => Parts::from(&**model),
            Self::DualEncoder(model) => Parts::from(&**model),
        }
    }
}

/// The first published model of a source, with the other parts of the default model.
pub(super) fn usual(source: Source) -> Option<Built> {
    let first = published_models().into_iter().find(|model| is_of(source, model));
    build(source, &Sizes::default(), first.as_ref())
}

/// Whether a published model has the tensors of a source.
pub(super) fn is_of(source: Source, model: &PublishedModel) -> bool {
    source.family() == Some((model.role, model.family))
}

/// A model with these sizes. Other keys are those of a published model, or have their defaults.
/// `None` if there is no such model.
pub(super) fn build(
    source: Source,
    sizes: &Sizes,
    published: Option<&PublishedModel>,
) -> Option<Built> {
    let mut keys = sizes.others.clone();
    if let Some((role, family)) = source.family() {
        let mut own = match published {
            Some(published) => published.keys.clone(),
            None => sizes.assumed.clone(),
        };
        own.insert("family".to_owned(), family.into());
        own.extend(sizes.shown.clone());
        if matches!(source, Source::GemmaDense2 | Source::GemmaDense3) {
            own.insert("dense_heads".to_owned(), true.into());
        }
        // Any multiple of the patch, unless learned positions show it.
        let size = published.and_then(|published| published.image_size).map(Json::from);
        if let Some(size) = size.or(own.get("patch_size").cloned()) {
            keys.entry("image_size").or_insert(size);
        }
        if role == Role::YDecoder {
            behind_sonar(&mut keys, own.get("hidden_size"));
        }
        keys.insert(role.key().to_owned(), Json::Object(own));
    }
    let is_dual = source == Source::ClipResnet;
    if is_dual {
        paired_with_a_text_tower(&mut keys);
    }
    let model: schema::Model = serde_json::from_value(Json::Object(keys)).ok()?;
    Some(if is_dual {
        Built::DualEncoder(Box::new(DualEncoder::new(&model, Device::Host).ok()?))
    } else {
        Built::VlJepa(Box::new(VlJepa::new(&model, &Loss::default(), Device::Host).ok()?))
    })
}

/// Adds the keys of a VL-JEPA whose embeddings a decoder of this width decodes: those of a small
/// SONAR.
fn behind_sonar(keys: &mut Map<String, Json>, width: Option<&Json>) {
    let usual = SonarDecoder::default().hidden_size.into();
    let width = width.unwrap_or(&usual);
    let encoder = json!({
        "family": "sonar", "projection": "none", "hidden_size": width, "num_layers": 1,
        "num_heads": 1, "intermediate_size": 1, "vocab_size": 1,
    });
    keys.insert(Role::YEncoder.key().to_owned(), encoder);
    keys.insert("embed_dim".to_owned(), width.clone());
    keys.insert("kind".to_owned(), json!(ModelKind::YDecoder));
}

/// Adds the keys with which CLIP's ResNet is a dual encoder. Its embeddings are as wide as the file
/// shows, or as those of RN50.
fn paired_with_a_text_tower(keys: &mut Map<String, Json>) {
    let usual = ClipText::of_size(ClipTextSize::Rn50).output_size;
    let width = keys.entry("embed_dim").or_insert(usual.into()).clone();
    let text = json!({
        "family": "clip_text", "output_size": width, "projection": "none", "update": "frozen",
    });
    keys.insert(Role::YEncoder.key().to_owned(), text);
    keys.insert("kind".to_owned(), json!(ModelKind::DualEncoder));
}
