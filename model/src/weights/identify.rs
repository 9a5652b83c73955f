//! Says which models a file of weights holds, by the names and shapes of its tensors.
//!
//! Each source tells the sizes of its model from some shapes ([`super::sizes`]). A model of these
//! sizes is then compared with the whole file as [`super::load`] compares it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::{Map, Value as Json};
use vljepa_recipes::protocol::{
    Extent, KnownModel, KnownWeights, NearestModel, NearestSize, UnknownWeights, Weights,
};
use vljepa_recipes::{PublishedModel, Role, published_models};

use super::Source;
use super::built::{build, is_of, usual};
use super::files::{Element, Stored, Tensors};
use super::load::{Comparison, Misshapen, compare, plain_names};
use super::naming::Naming;
use super::sizes::{Shapes, Sizes};
use crate::ModelError;

/// Says which models of all families the file holds that a recipe can use, or what it holds
/// instead. The name of the file has no meaning. Numbers are not read, so that a number that is not
/// finite is not found.
///
/// # Errors
/// If the file cannot be read, is damaged, or holds a known model with numbers of a type that is
/// not read.
pub fn identify(path: &Path) -> Result<Weights, ModelError> {
    let tensors = Tensors::open(path)?;
    let held = held(&tensors)?;
    if held.models.is_empty() {
        let names = tensors.all().keys().cloned().collect();
        let path = path.to_owned();
        let (all, nearest) = (extent(tensors.all().values()), held.nearest);
        return Ok(Weights::Unknown(UnknownWeights { path, all, names, nearest }));
    }
    let used: BTreeSet<&str> = held.models.iter().flat_map(Model::names).collect();
    let unused = tensors.all().keys().filter(|name| !used.contains(name.as_str()));
    Ok(Weights::Known(KnownWeights {
        path: path.to_owned(),
        all: extent(tensors.all().values()),
        models: held.models.iter().map(|model| model.describe(&tensors)).collect(),
        unused: unused.cloned().collect(),
    }))
}

/// Models of a file.
pub(super) struct Held {
    pub models: Vec<Model>,
    /// Model that the file nearly holds.
    nearest: Option<NearestModel>,
}

/// A model in a file.
pub(super) struct Model {
    source: Source,
    sizes: Sizes,
    /// Name of each tensor of the model, without a root, and in the file.
    pub tensors: BTreeMap<String, String>,
    /// The same of an image tower's head, which only a dual encoder reads.
    pub head: BTreeMap<String, String>,
    /// Published models with these tensors.
    published: Vec<PublishedModel>,
}

/// Finds the models of a file.
pub(super) fn held(tensors: &Tensors) -> Result<Held, ModelError> {
    let (mut models, mut nearest) = (Vec::new(), None);
    let mut most = 0;
    for source in Source::RECOGNISED {
        let Some(Attempt { sizes, naming, comparison }) = Attempt::best(tensors, source)? else {
            continue;
        };
        if comparison.fits()
            && let Some(sizes) = sizes
        {
            let Comparison { names, unused, .. } = comparison.whole(tensors.path())?;
            let own = naming.tensors().map(|(name, _)| name);
            let published = published(tensors, source, &sizes)?;
            let (tensors, head) = (own.zip(names).collect(), head(source, unused));
            models.push(Model { source, sizes, tensors, head, published });
        } else if comparison.names.len() > most {
            most = comparison.names.len();
            nearest = Some(nearly(source, comparison));
        }
    }
    Ok(Held { models, nearest })
}

/// Tensors of an image tower's head among `names` in a file, by their names without a root.
fn head(source: Source, names: Vec<String>) -> BTreeMap<String, String> {
    let starts: &[&str] = match source {
        Source::Pe => &["visual.attn_pool.", "visual.proj"],
        Source::Siglip2 => &["vision_model.head."],
        Source::Clip => &["visual_projection."],
        _ => &[],
    };
    let plain = |name: &String| {
        starts.iter().find_map(|start| name.find(start).map(|at| name[at..].to_owned()))
    };
    names.into_iter().filter_map(|name| Some((plain(&name)?, name))).collect()
}

/// Comparison of a file with the model of a source.
struct Attempt {
    /// Sizes of the model, or `None` if the file does not show them. The model is then the first
    /// published one.
    sizes: Option<Sizes>,
    naming: Naming,
    comparison: Comparison,
}

impl Attempt {
    /// The comparison with the naming that [`super::load`] takes, or else with the one that shares
    /// the most names with the file. `None` if the source's model cannot be built.
    fn best(tensors: &Tensors, source: Source) -> Result<Option<Self>, ModelError> {
        let Some(usual) = usual(source) else { return Ok(None) };
        let mut best: Option<Self> = None;
        for (i, naming) in source.namings(usual.parts()).into_iter().enumerate() {
            let plain = plain_names(tensors, &naming)?;
            let taken = naming.root(&plain);
            let roots = taken.as_ref().map_or(naming.roots, std::slice::from_ref);
            for root in roots {
                let sizes = (naming.sizes)(&Shapes { root, tensors: &plain });
                let model = sizes.as_ref().and_then(|sizes| build(source, sizes, None));
                let sizes = sizes.filter(|_| model.is_some());
                let model = model.as_ref().unwrap_or(&usual);
                let Some(naming) = source.namings(model.parts()).into_iter().nth(i) else {
                    continue;
                };
                let comparison = compare(&naming, root, &plain);
                let found = comparison.names.len();
                if best.as_ref().is_none_or(|best| best.comparison.names.len() < found) {
                    best = Some(Self { sizes, naming, comparison });
                }
            }
            if taken.is_some() {
                break;
            }
        }
        Ok(best)
    }
}

/// Published models that have the tensors of the file. Those for frames of the file's size, if it
/// shows one.
fn published(
    tensors: &Tensors,
    source: Source,
    sizes: &Sizes,
) -> Result<Vec<PublishedModel>, ModelError> {
    let mut fitting = Vec::new();
    for model in published_models().into_iter().filter(|model| is_of(source, model)) {
        let agrees = sizes.shown.iter().all(|(key, size)| agrees(key, size, &model));
        let Some(built) = build(source, sizes, Some(&model)).filter(|_| agrees) else { continue };
        for naming in source.namings(built.parts()) {
            let plain = plain_names(tensors, &naming)?;
            if naming.root(&plain).is_some_and(|root| compare(&naming, root, &plain).fits()) {
                fitting.push(model);
                break;
            }
        }
    }
    let frames = |model: &PublishedModel| model.image_size.map(Json::from);
    if let Some(shown) = sizes.others.get("image_size")
        && fitting.iter().any(|model| frames(model).as_ref() == Some(shown))
    {
        fitting.retain(|model| frames(model).as_ref() == Some(shown));
    }
    Ok(fitting)
}

/// Whether a size that a file shows is that of a published model.
fn agrees(key: &str, shown: &Json, model: &PublishedModel) -> bool {
    let published = &model.keys[key];
    match key {
        // The recipe's key chooses some of the published layers; a file holds them and maybe
        // others before them.
        "layers" if model.role == Role::Predictor => {
            let end = |layers: &Json, i: usize| layers[i].as_u64();
            end(shown, 1) == end(published, 1) && end(shown, 0) <= end(published, 0)
        }
        "dense_heads" => true,
        _ => shown == published,
    }
}

fn nearly(source: Source, comparison: Comparison) -> NearestModel {
    let shapes = |Misshapen { name, found, needed }: Misshapen| {
        format!("{name} ({found:?} instead of {needed:?})")
    };
    NearestModel {
        name: source.name().to_owned(),
        key: key(source),
        family: source.family().map(|(_, family)| family.to_owned()),
        missing: comparison.missing.into_iter().collect(),
        misshapen: comparison.misshapen.into_iter().map(shapes).collect(),
        unknown: comparison.unknown.into_iter().collect(),
    }
}

/// Recipe key that reads a source.
fn key(source: Source) -> String {
    source.family().map_or_else(|| "init".to_owned(), |(role, _)| format!("model.{}", role.key()))
}

impl Model {
    /// Names of the model's tensors in the file.
    fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.values().map(String::as_str)
    }

    fn describe(&self, tensors: &Tensors) -> KnownModel {
        let nearest = if self.published.is_empty() { self.nearest() } else { None };
        KnownModel {
            name: self.source.name().to_owned(),
            key: key(self.source),
            family: self.source.family().map(|(_, family)| family.to_owned()),
            sizes: self.published.iter().map(|model| model.size.to_owned()).collect(),
            held: extent(self.names().map(|name| &tensors.all()[name])),
            shown: self.sizes.shown.clone(),
            nearest,
            recipe: self.recipe(tensors.path()),
        }
    }

    /// The published model with the fewest sizes that differ.
    fn nearest(&self) -> Option<NearestSize> {
        let models = published_models().into_iter().filter(|model| is_of(self.source, model));
        let near = models.map(|model| {
            let differs: Map<String, Json> = (self.sizes.shown.iter())
                .filter(|(key, size)| !agrees(key, size, &model))
                .map(|(key, _)| (key.clone(), model.keys[key].clone()))
                .collect();
            NearestSize { size: model.size.to_owned(), differs }
        });
        near.min_by_key(|near| near.differs.len())
    }

    /// Lines of a recipe that reads the model.
    fn recipe(&self, path: &Path) -> String {
        let weights = quoted(&path.display().to_string());
        let Some((role, family)) = self.source.family() else {
            return format!("init:\n  weights: {weights}");
        };
        let mut lines = vec!["model:".to_owned()];
        let trained = self.published.first().and_then(|model| model.image_size).map(Json::from);
        if let Some(size) = self.sizes.others.get("image_size")
            && trained.as_ref() != Some(size)
        {
            lines.push(format!("  image_size: {size}"));
        }
        if self.source == Source::ClipResnet {
            lines.push("  kind: dual_encoder".to_owned());
        }
        lines.push(format!("  {}:", role.key()));
        lines.push(format!("    family: {family}"));
        match &self.published[..] {
            [] => {
                let shown = self.sizes.shown.iter().filter(|(key, _)| *key != "dense_heads");
                let line = |key: &str, size: &Json| format!("    {key}: {size}").replace(',', ", ");
                lines.extend(shown.map(|(key, size)| line(key, size)));
                let assumed = self.sizes.assumed.keys();
                lines.extend(assumed.map(|key| format!("    {key}: null  # not in the file")));
                lines.push("    # compare all other keys with the model's config".to_owned());
            }
            [only] => lines.push(format!("    size: {}", only.size)),
            [first, others @ ..] => {
                let others: Vec<_> = others.iter().map(|model| model.size).collect();
                lines.push(format!("    size: {}  # or {}", first.size, others.join(", ")));
            }
        }
        match self.source {
            Source::GemmaDense2 | Source::GemmaDense3 => {
                let folder = "# reads 2_Dense and 3_Dense beside the file `weights`";
                lines.push(format!("    dense_heads: true  {folder}"));
            }
            _ => lines.push(format!("    weights: {weights}")),
        }
        lines.join("\n")
    }
}

/// Text as a value in YAML.
fn quoted(text: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "/._-+".contains(c);
    if text.starts_with(|c: char| c.is_alphabetic() || "/.".contains(c)) && text.chars().all(plain)
    {
        text.to_owned()
    } else {
        Json::from(text).to_string()
    }
}

fn extent<'a>(tensors: impl Iterator<Item = &'a Stored>) -> Extent {
    let (mut extent, mut types) = (Extent::default(), BTreeSet::new());
    for Stored { shape, element, .. } in tensors {
        extent.tensors += 1;
        let elements = shape.iter().fold(1u64, |n, length| n.saturating_mul(*length as u64));
        extent.parameters = extent.parameters.saturating_add(elements);
        types.insert(match element {
            Element::F32 => "f32",
            Element::Bf16 => "bf16",
            Element::F16 => "f16",
            Element::Other(name) => name,
        });
    }
    extent.types = types.into_iter().map(str::to_owned).collect();
    extent
}
