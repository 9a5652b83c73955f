//! The list of all published models: the values of `family` and `size`, with the keys that the
//! loader gives a recipe for them.

use serde::de::value::Error;
use serde::de::{DeserializeOwned, Deserializer, Error as _, Visitor};
use serde::forward_to_deserialize_any;
use serde_json::{Map, Value as Json};

use super::families::Role;
use crate::schema::{
    ClipResnetSize, ClipSize, ClipTextSize, EmbeddingGemmaSize, LanguageModelFamily,
    LlamaDecoderSize, LlamaSize, PeSize, PeTextSize, PredictorFamily, Qwen3EmbeddingSize,
    Siglip2Size, Siglip2TextSize, SonarDecoderSize, SonarSize, VJepa2_1Size, VJepa2Size, XFamily,
    YDecoderFamily, YFamily,
};
use crate::tree::{Node, Span, Value};

/// A published model that a recipe can name with `family` and `size`.
#[derive(Debug, Clone, PartialEq)]
pub struct PublishedModel {
    /// Part of the model that it fills.
    pub role: Role,
    /// Value of `family`.
    pub family: &'static str,
    /// Value of `size`.
    pub size: &'static str,
    /// Keys of the role, `family` among them.
    pub keys: Map<String, Json>,
    /// Height and width, in pixels, of the frames that the model was trained with. `None` if it
    /// reads no frames.
    pub image_size: Option<usize>,
}

/// All published models, in the order of the roles, families and sizes.
///
/// # Example
/// ```
/// let models = vljepa_recipes::published_models();
/// let large = models.iter().find(|model| (model.family, model.size) == ("vjepa2", "vit_l"));
/// assert_eq!(large.unwrap().keys["hidden_size"], 1024);
/// ```
#[must_use]
pub fn published_models() -> Vec<PublishedModel> {
    let mut models = Vec::new();
    for role in Role::ALL {
        let families = match role {
            Role::XEncoder => names::<XFamily>(),
            Role::Predictor => names::<PredictorFamily>(),
            Role::YEncoder => names::<YFamily>(),
            Role::YDecoder => names::<YDecoderFamily>(),
            Role::LanguageModel => names::<LanguageModelFamily>(),
        };
        for family in families {
            for size in sizes(role, family) {
                // Names that the enums themselves list are always read.
                let named = role.published(Some(&text(family)), Some(&text(size)));
                models.extend(named.ok().map(|published| PublishedModel {
                    role,
                    family,
                    size,
                    keys: published.keys,
                    image_size: published.image_size,
                }));
            }
        }
    }
    models
}

/// Values of `size` of a family.
fn sizes(role: Role, family: &str) -> &'static [&'static str] {
    let family = text(family);
    match role {
        Role::XEncoder => match crate::read::read(&family) {
            Ok(XFamily::Vjepa2) => names::<VJepa2Size>(),
            Ok(XFamily::Vjepa2_1) => names::<VJepa2_1Size>(),
            Ok(XFamily::Pe) => names::<PeSize>(),
            Ok(XFamily::Siglip2) => names::<Siglip2Size>(),
            Ok(XFamily::Clip) => names::<ClipSize>(),
            Ok(XFamily::ClipResnet) => names::<ClipResnetSize>(),
            Err(_) => &[],
        },
        Role::Predictor => match crate::read::read(&family) {
            Ok(PredictorFamily::Llama) => names::<LlamaSize>(),
            Err(_) => &[],
        },
        Role::YEncoder => match crate::read::read(&family) {
            Ok(YFamily::EmbeddingGemma) => names::<EmbeddingGemmaSize>(),
            Ok(YFamily::Qwen3Embedding) => names::<Qwen3EmbeddingSize>(),
            Ok(YFamily::Sonar) => names::<SonarSize>(),
            Ok(YFamily::PeText) => names::<PeTextSize>(),
            Ok(YFamily::ClipText) => names::<ClipTextSize>(),
            Ok(YFamily::Siglip2Text) => names::<Siglip2TextSize>(),
            Err(_) => &[],
        },
        Role::YDecoder => match crate::read::read(&family) {
            Ok(YDecoderFamily::Llama) => names::<LlamaDecoderSize>(),
            Ok(YDecoderFamily::Sonar) => names::<SonarDecoderSize>(),
            Err(_) => &[],
        },
        Role::LanguageModel => match crate::read::read(&family) {
            Ok(LanguageModelFamily::Llama) => names::<LlamaSize>(),
            Err(_) => &[],
        },
    }
}

/// A text that no file contains.
fn text(text: &str) -> Node {
    let span = Span { text: 0, offset: 0, length: 0 };
    Node { span, value: Value::Text(text.to_owned()) }
}

/// Names of the values of an enum, as recipes write them.
fn names<T: DeserializeOwned>() -> &'static [&'static str] {
    let mut names: &'static [&'static str] = &[];
    T::deserialize(Names(&mut names)).err();
    names
}

/// A deserializer without a value. It takes the names that an enum passes to it.
struct Names<'a>(&'a mut &'static [&'static str]);

impl<'de> Deserializer<'de> for Names<'_> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Error> {
        Err(Error::custom("there is no value"))
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        names: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        *self.0 = names;
        self.deserialize_any(visitor)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option
        unit unit_struct newtype_struct seq tuple tuple_struct map struct identifier ignored_any
    }
}

#[cfg(test)]
mod tests {
    use super::{Json, published_models};
    use crate::schema::{Model, XEncoder};
    use crate::{Role, load};

    #[test]
    fn every_published_model_is_listed_once_and_has_the_keys_that_a_recipe_gets() {
        let models = published_models();
        let count = |family: &str| models.iter().filter(|model| model.family == family).count();
        for (family, sizes) in [
            ("vjepa2", 4),
            ("vjepa2_1", 4),
            ("pe", 3),
            ("siglip2", 4),
            ("clip", 4),
            ("clip_resnet", 1),
            ("llama", 6),
            ("embedding_gemma", 1),
            ("qwen3_embedding", 3),
            ("sonar", 2),
            ("pe_text", 3),
            ("clip_text", 5),
            ("siglip2_text", 4),
        ] {
            assert_eq!(count(family), sizes, "{family}");
        }
        let recipe = |name| std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
        for model in &models {
            let role = model.role.key();
            let base = match (model.role, model.family) {
                // Only a dual encoder can have a ResNet.
                (_, "clip_resnet") => "dual_encoder.yaml",
                (Role::LanguageModel, _) => "vlm_baseline.yaml",
                _ => "pretrain.yaml",
            };
            let set = format!("model.{role}={{family: {}, size: {}}}", model.family, model.size);
            // The host computes heads of any width.
            let mut sets = vec![set, "device=host".to_owned(), "precision=f32".to_owned()];
            if model.role == Role::YDecoder {
                let decodes = ["model.kind=y_decoder", "init={run: runs/pretrain}"];
                let weights = ["x_encoder", "predictor", "y_encoder"];
                sets.extend(decodes.map(str::to_owned));
                sets.extend(weights.map(|role| format!("model.{role}.weights=null")));
            }
            if (model.role, model.family) == (Role::YDecoder, "sonar") {
                let space = [
                    "model.y_encoder={family: sonar, projection: none}",
                    "stages=[]",
                    "loss.kind=l2",
                ];
                sets.extend(space.map(str::to_owned));
            }
            let Model {
                image_size,
                x_encoder,
                predictor,
                y_encoder,
                y_decoder,
                language_model,
                ..
            } = load(&recipe(base), &sets).unwrap().recipe.model;
            let mut keys = match model.role {
                Role::XEncoder => serde_json::to_value(&x_encoder),
                Role::Predictor => serde_json::to_value(&predictor),
                Role::YEncoder => serde_json::to_value(&y_encoder),
                Role::YDecoder => serde_json::to_value(&y_decoder),
                Role::LanguageModel => serde_json::to_value(&language_model),
            }
            .unwrap();
            for file in ["weights", "tokenizer"] {
                keys.as_object_mut().unwrap().entry(file).and_modify(|path| *path = Json::Null);
            }
            assert_eq!(keys.as_object(), Some(&model.keys), "{} {}", model.family, model.size);
            if model.role == Role::XEncoder && matches!(x_encoder, XEncoder::Pe(_)) {
                assert_eq!(model.image_size, Some(image_size));
            }
        }
    }
}
