//! Labels and answers to choose from.

use std::fmt;
use std::path::PathBuf;

use serde::de::{self, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

/// Labels and their texts. The embedding of a label is the normalised mean of the embeddings of its
/// texts; its perplexity is the lowest of them.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Candidates {
    /// The labels or answers of the evaluation set, written `null`.
    #[default]
    OfSet,
    /// Labels of which each is its own text.
    Labels(Vec<String>),
    /// JSON file that holds a list of labels, or a map from each label to its texts.
    File(PathBuf),
}

/// Written by hand, because errors of serde's untagged enums give neither position nor reason.
impl<'de> Deserialize<'de> for Candidates {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(CandidatesVisitor)
    }
}

struct CandidatesVisitor;

impl<'de> Visitor<'de> for CandidatesVisitor {
    type Value = Candidates;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of labels or the path of a JSON file")
    }

    fn visit_unit<E: de::Error>(self) -> Result<Candidates, E> {
        Ok(Candidates::OfSet)
    }

    fn visit_str<E: de::Error>(self, path: &str) -> Result<Candidates, E> {
        Ok(Candidates::File(PathBuf::from(path)))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Candidates, A::Error> {
        let mut labels = Vec::new();
        while let Some(label) = list.next_element()? {
            labels.push(label);
        }
        Ok(Candidates::Labels(labels))
    }
}
