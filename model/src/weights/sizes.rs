//! Sizes of a model, as the shapes of the tensors in a file show them.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use serde_json::{Map, Value as Json, json};

use super::files::Stored;

/// Largest size that is taken from a file: tables of published models have 262,144 rows.
const MAX_SIZE: usize = 1 << 20;

/// Most elements of a tensor of which sizes are taken, so that no product of sizes overflows.
const MAX_ELEMENTS: usize = 1 << 40;

/// Most layers of a model that is recognised. Published models have at most 50.
const MAX_LAYERS: usize = 1000;

/// Tensors of a file by their names without the parts that wrappers put there. Each has its name in
/// the file.
pub(super) type PlainNames<'a> = BTreeMap<String, (&'a str, &'a Stored)>;

/// Keys of a recipe that a file shows.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Sizes {
    /// Keys of the part of the model that the file holds.
    pub shown: Map<String, Json>,
    /// Other keys of that part, with values that fit the shapes. Other values fit too.
    pub assumed: Map<String, Json>,
    /// Keys beside that part, under `model`.
    pub others: Map<String, Json>,
}

impl Sizes {
    pub(super) fn shown(mut self, key: &str, value: impl Into<Json>) -> Self {
        self.shown.insert(key.to_owned(), value.into());
        self
    }

    pub(super) fn assumed(mut self, key: &str, value: impl Into<Json>) -> Self {
        self.assumed.insert(key.to_owned(), value.into());
        self
    }

    pub(super) fn other(mut self, key: &str, value: impl Into<Json>) -> Self {
        self.others.insert(key.to_owned(), value.into());
        self
    }
}

/// Shapes of the tensors in a file under one of the roots of its names.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shapes<'a> {
    pub root: &'a str,
    pub tensors: &'a PlainNames<'a>,
}

impl Shapes<'_> {
    /// Shape of a tensor. `None` if the file does not hold it or it is larger than any published
    /// one.
    pub(super) fn shape(&self, name: &str) -> Option<&[usize]> {
        let (_, Stored { shape, .. }) = self.tensors.get(&format!("{}{name}", self.root))?;
        let elements = shape.iter().try_fold(1usize, |n, length| n.checked_mul(*length));
        let fits = elements.is_some_and(|n| n <= MAX_ELEMENTS);
        (fits && shape.iter().all(|length| *length <= MAX_SIZE)).then_some(&shape[..])
    }

    /// Number of rows of a matrix or elements of a vector.
    pub(super) fn rows(&self, name: &str) -> Option<usize> {
        self.shape(name)?.first().copied()
    }

    /// First layer, and the one after the last, of the tensors named `<prefix><layer>.…`. `None` if
    /// there are none, or layers between them are missing.
    pub(super) fn layers(&self, prefix: &str) -> Option<Range<usize>> {
        let prefix = format!("{}{prefix}", self.root);
        let number = |name: &String| name.strip_prefix(&prefix)?.split('.').next()?.parse().ok();
        let layers: BTreeSet<usize> = self.tensors.keys().filter_map(number).collect();
        let (first, last) = (*layers.first()?, *layers.last()?);
        (last < MAX_LAYERS && layers.len() == last - first + 1).then_some(first..last + 1)
    }

    /// Sizes of a vision transformer with the convolution `patch` and layers named
    /// `<layers>0.<mlp>`, where `mlp` is the first matrix of the MLP.
    pub(super) fn vision(&self, patch: &str, layers: &str, mlp: &str) -> Option<Sizes> {
        let (hidden, tubelet, patch) = match *self.shape(patch)? {
            [hidden, 3, tubelet, height, width] if height == width => {
                (hidden, Some(tubelet), height)
            }
            [hidden, 3, height, width] if height == width => (hidden, None, height),
            _ => return None,
        };
        let range = self.layers(layers).filter(|layers| layers.start == 0)?;
        let sizes = Sizes::default()
            .shown("patch_size", patch)
            .shown("hidden_size", hidden)
            .shown("num_layers", range.end)
            .shown("intermediate_size", self.rows(&format!("{layers}0.{mlp}"))?)
            .assumed("num_heads", 1);
        Some(match tubelet {
            Some(tubelet) => sizes.shown("tubelet_size", tubelet),
            None => sizes,
        })
    }

    /// Like [`Self::vision`], for an image encoder that adds learned `positions` to `others` tokens
    /// and those of the patches. They show the size of its frames.
    pub(super) fn image(
        &self,
        [patch, layers, mlp, positions]: [&str; 4],
        others: usize,
    ) -> Option<Sizes> {
        let sizes = self.vision(patch, layers, mlp)?;
        let patches = self.rows(positions)?.checked_sub(others)?;
        let side = patches.isqrt();
        let patch = self.shape(patch)?.last()?;
        (side * side == patches).then(|| sizes.other("image_size", side * patch))
    }

    /// Sizes of a text transformer with plain MLPs and as many key as query heads, with the token
    /// embeddings `table` and layers named `<layers>0.<mlp>`, where `mlp` is the first matrix of
    /// the MLP.
    pub(super) fn plain_text(&self, table: &str, layers: &str, mlp: &str) -> Option<Sizes> {
        let [vocabulary, hidden] = *self.shape(table)? else { return None };
        let range = self.layers(layers).filter(|layers| layers.start == 0)?;
        let sizes = Sizes::default()
            .shown("hidden_size", hidden)
            .shown("num_layers", range.end)
            .shown("intermediate_size", self.rows(&format!("{layers}0.{mlp}"))?)
            .shown("vocab_size", vocabulary);
        Some(sizes.assumed("num_heads", 1))
    }

    /// Like [`Self::plain_text`], for a text tower with learned `positions` and embeddings of
    /// `output` elements.
    pub(super) fn text_tower(
        &self,
        [table, layers, mlp, positions]: [&str; 4],
        output: usize,
    ) -> Option<Sizes> {
        let sizes = self.plain_text(table, layers, mlp)?;
        let positions = self.rows(positions)?;
        let sizes = sizes.shown("context_length", positions).shown("output_size", output);
        Some(sizes.shown("max_target_tokens", positions))
    }

    /// Sizes of a text transformer with the names of Llama.
    pub(super) fn text(&self) -> Option<Text> {
        let [vocabulary, hidden] = *self.shape("embed_tokens.weight")? else { return None };
        let layers = self.layers("layers.")?;
        let rows = |name: &str| self.rows(&format!("layers.{}.{name}.weight", layers.start));
        let sizes = Sizes::default()
            .shown("hidden_size", hidden)
            .shown("intermediate_size", rows("mlp.gate_proj")?)
            .shown("vocab_size", vocabulary);
        let [query, key] = [rows("self_attn.q_proj")?, rows("self_attn.k_proj")?];
        Some(Text { sizes, query, key, norm: rows("self_attn.q_norm"), layers })
    }
}

/// Sizes of a text transformer.
pub(super) struct Text {
    sizes: Sizes,
    /// Rows of the matrix of queries, and of that of keys.
    query: usize,
    key: usize,
    /// Elements of the norm of queries, if there is one.
    norm: Option<usize>,
    layers: Range<usize>,
}

impl Text {
    /// All sizes of a whole encoder. The norm of queries shows the size of heads.
    pub(super) fn encoder(self) -> Option<Sizes> {
        let (head, layers) = (self.norm.filter(|head| *head > 0)?, self.layers);
        let sizes = self.sizes.shown("head_dim", head).shown("num_heads", self.query / head);
        let sizes = sizes.shown("num_kv_heads", self.key / head).shown("num_layers", layers.end);
        (layers.start == 0).then_some(sizes)
    }

    /// Sizes of some layers of Llama. Its heads are not shown.
    pub(super) fn predictor(self) -> Option<Sizes> {
        let (layers, heads) = (self.layers, self.query.checked_div(self.key)?);
        let sizes = self.sizes.shown("layers", json!([layers.start, layers.end]));
        let sizes = sizes.assumed("num_heads", heads).assumed("num_kv_heads", 1);
        self.norm.is_none().then(|| sizes.assumed("head_dim", self.key))
    }
}
