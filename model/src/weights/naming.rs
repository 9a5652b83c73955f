//! How files name the tensors of a source, and which other tensors they are known to hold.

use std::ops::Range;

use super::Piece;
use super::batch_norm::COUNTER;
use super::sizes::{PlainNames, Shapes, Sizes};

/// A way in which files name the tensors of a source.
#[derive(Debug)]
pub(super) struct Naming {
    /// Tensors of the model, under these names.
    pub pieces: Vec<Piece>,
    /// Prefixes that the names may have. The first that a file uses is taken.
    pub roots: &'static [&'static str],
    /// Parts that are cut out of a file's names. Wrappers of the model put them there.
    pub cut: &'static [&'static str],
    /// Tensors that published files hold beside those of the model.
    pub extra: Extra,
    /// Sizes of the model that a file with these names holds. `None` if a tensor that shows them is
    /// missing.
    pub sizes: fn(&Shapes<'_>) -> Option<Sizes>,
}

/// Tensors that published files hold beside those of the model.
#[derive(Debug)]
pub(super) enum Extra {
    /// Those whose names, with or without the root, start with one of these.
    Prefixes(&'static [&'static str]),
    /// Those of [`Self::Prefixes`], and the counters of batch norms.
    BatchNorms(&'static [&'static str]),
    /// Those whose names start with one of these, and those of SONAR's decoder that have no effect.
    /// Each layer attends to one vector, so softmax is 1 whatever queries and keys are: their maps,
    /// and the norm before the queries, change nothing.
    SonarDecoder {
        /// Prefixes of names, with or without the root.
        prefixes: &'static [&'static str],
        /// What the names of layers start with.
        layers: &'static str,
        /// Number of transformer layers.
        count: usize,
    },
    /// Those whose names start with one of these, and the blocks after the first ones.
    LaterBlocks {
        /// Prefixes of names, with or without the root.
        prefixes: &'static [&'static str],
        /// What the names of blocks start with.
        blocks: &'static str,
        /// Number of blocks of the model.
        count: usize,
    },
    /// The output layer, and the layers of Llama before and after those of the predictor.
    Llama {
        /// Layers of the predictor.
        layers: Range<usize>,
    },
}

impl Naming {
    /// Name of a tensor without the parts that wrappers put there.
    pub(super) fn plain(&self, name: &str) -> String {
        self.cut.iter().fold(name.to_owned(), |name, part| name.replace(part, ""))
    }

    /// Names and shapes of the tensors of all pieces, without a root.
    pub(super) fn tensors(&self) -> impl Iterator<Item = (String, Vec<usize>)> {
        self.pieces.iter().flat_map(Piece::tensors)
    }

    /// Names of all tensors, with the first root.
    pub(super) fn names(&self) -> Vec<String> {
        let root = self.roots.first().unwrap_or(&"");
        self.tensors().map(|(name, _)| format!("{root}{name}")).collect()
    }

    /// The root of a file, or `None` if the file has other names.
    pub(super) fn root(&self, names: &PlainNames<'_>) -> Option<&'static str> {
        let first = &self.pieces.first()?.name;
        let mut roots = self.roots.iter();
        roots.find(|root| names.contains_key(&format!("{root}{first}"))).copied()
    }

    /// Whether published files that use `root` hold a tensor of this plain name that the model does
    /// not use.
    pub(super) fn is_known_extra(&self, root: &str, name: &str) -> bool {
        let own = name.strip_prefix(root);
        let starts = |prefixes: &[&str]| {
            prefixes.iter().any(|prefix| {
                name.starts_with(prefix) || own.is_some_and(|own| own.starts_with(prefix))
            })
        };
        match &self.extra {
            Extra::BatchNorms(_) if name.ends_with(COUNTER) => true,
            Extra::Prefixes(prefixes) | Extra::BatchNorms(prefixes) => {
                // Under another root lies another copy of the model, such as its average.
                let mut other = self.roots.iter().filter(|other| **other != root);
                starts(prefixes) || other.any(|other| !other.is_empty() && name.starts_with(other))
            }
            Extra::SonarDecoder { prefixes, layers, count } => {
                let in_layer = own.and_then(|own| own.strip_prefix(layers)?.split_once('.'));
                let without_effect = |(layer, part): (&str, &str)| {
                    let parts = ["q_proj.", "k_proj."].map(|part| format!("encoder_attn.{part}"));
                    layer.parse().is_ok_and(|layer: usize| layer < *count)
                        && (part.starts_with("encoder_attn_layer_norm.")
                            || parts.iter().any(|known| part.starts_with(known)))
                };
                starts(prefixes) || in_layer.is_some_and(without_effect)
            }
            Extra::LaterBlocks { prefixes, blocks, count } => {
                let number = own.and_then(|own| own.strip_prefix(blocks)?.split('.').next());
                let block = number.and_then(|number| number.parse::<usize>().ok());
                starts(prefixes) || block.is_some_and(|block| block >= *count)
            }
            Extra::Llama { layers } => {
                let number = own.and_then(|own| own.strip_prefix("layers.")?.split('.').next());
                let layer = number.and_then(|number| number.parse::<usize>().ok());
                name == "lm_head.weight"
                    || name.ends_with(".rotary_emb.inv_freq")
                    || layer.is_some_and(|layer| !layers.contains(&layer))
            }
        }
    }
}
