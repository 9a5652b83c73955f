//! Parameters, operations and memory of a VLM's projector and language model.

use super::layers::{Layers, Pass};
use super::memory::real;
use super::networks::{Network, NetworkName};
use super::operations::Tokens;
use super::parameters::attention;
use crate::schema::{LanguageModel, Model, Recompute};

/// Numbers of the parameters of the projector and of the language model, and of those of the
/// language model that are trained. The projector always is.
pub(super) fn parameters(model: &Model, l: &LanguageModel) -> [usize; 3] {
    let (d, visual) = (l.hidden_size, model.x_encoder.sizes().hidden_size);
    let projector = (visual + 1) * d + (d + 1) * d;
    let of_layer = layer(l) + 2 * d;
    let table = l.vocab_size * d;
    let trained = l.trained_layers();
    let if_any = |any: bool, count: usize| if any { count } else { 0 };
    let trained = trained * of_layer + if_any(trained > 0, d) + if_any(l.train_embeddings, table);
    [projector, l.num_layers * of_layer + d + table, trained]
}

/// Matrices of a layer.
fn layer(l: &LanguageModel) -> usize {
    attention(l.hidden_size, l.num_heads, l.num_kv_heads, l.head_dim)
        + 3 * l.hidden_size * l.intermediate_size
}

/// Visual tokens that the projector reads, before their mean is taken.
fn projected(model: &Model, visual: usize) -> usize {
    visual * model.x_encoder.pool().pow(2)
}

/// Tokens of a sequence. The last token of the answer is predicted and not read.
fn rows(tokens: Tokens) -> usize {
    tokens.visual + tokens.query + tokens.output.saturating_sub(1)
}

/// Projector and language model, and their work for a sample.
pub(super) fn network(
    model: &Model,
    l: &LanguageModel,
    tokens: Tokens,
    recompute: Recompute,
    trained: usize,
) -> Network {
    let (rows, patches) = (rows(tokens), projected(model, tokens.visual));
    let layers = Layers::language_model(l);
    let logits = Pass {
        // Logits are read twice by the cross-entropy.
        values: 3.0 * real(tokens.output * l.vocab_size) + real(4 * rows * l.hidden_size),
        launches: 6.0,
        ..Pass::of_product(tokens.output, l.vocab_size * l.hidden_size)
    };
    let first = Pass::of_product(patches, model.x_encoder.sizes().hidden_size * l.hidden_size);
    let second = Pass {
        // The activation between the two maps, and the pooling after them.
        values: real(4 * patches * l.hidden_size),
        launches: 3.0,
        ..Pass::of_product(patches, l.hidden_size * l.hidden_size)
    };
    let body = layers.forward(1, rows);
    // The gradient passes through frozen layers to the projector, but their weights need none, and
    // neither do the visual tokens of a frozen X-encoder.
    let if_trained = |trained: bool| if trained { 2.0 } else { 1.0 };
    let backward = layers
        .backward(1, rows, l.trained_layers())
        .plus(&logits.clone().times(if_trained(l.train_embeddings)))
        .plus(&second.clone().times(2.0))
        .plus(&first.clone().times(if_trained(model.x_encoder.trainable())));
    let again = match recompute {
        Recompute::None => Pass::default(),
        Recompute::Mlp => layers.mlp_again(1, rows),
        Recompute::Block => body.clone(),
    };
    Network {
        name: NetworkName::LanguageModel,
        width: l.hidden_size,
        tokens: rows,
        forward: first.plus(&second).plus(&body).plus(&logits),
        again,
        backward,
        trained,
    }
}

/// Values that a sample needs when the step needs the most. `x_kept` are those of a trained
/// X-encoder.
pub(super) fn activation_values(
    model: &Model,
    l: &LanguageModel,
    tokens: Tokens,
    recompute: Recompute,
) -> f64 {
    let stack = Layers::language_model(l).stack();
    // The projector keeps its input, which is counted with the features, and its hidden layer.
    let projector = 2 * projected(model, tokens.visual) * l.hidden_size;
    let of_row = stack.kept(recompute) + stack.workspace(recompute).max(stack.last_norm());
    real(projector + rows(tokens) * of_row)
}

/// Estimated tokens of a text of a template: one for each special token and each word.
pub(super) fn template_tokens(text: &str) -> usize {
    let special = text.matches("<|").count();
    let mut words = text.to_owned();
    while let Some((start, rest)) = words.split_once("<|") {
        let after = rest.split_once("|>").map_or("", |(_, after)| after);
        words = format!("{start} {after}");
    }
    special + words.split_whitespace().filter(|word| *word != crate::schema::TEXT).count()
}

#[cfg(test)]
mod tests {
    use super::{parameters, template_tokens};
    use crate::schema::{LanguageModel, Model, ModelKind, Pe, Template, XEncoder};

    #[test]
    fn the_baseline_has_llama_s_parameters_and_those_of_plm_s_projector() {
        let x_encoder = XEncoder::Pe(Pe::default());
        let model = Model { kind: ModelKind::Vlm, x_encoder, ..Model::default() };
        let count = |l| parameters(&model, &l);
        // Llama-3.2-1B has 1,235,814,400 parameters.
        let projector = 1024 * 2048 + 2048 + 2048 * 2048 + 2048;
        assert_eq!(count(LanguageModel::default()), [projector, 1_235_814_400, 1_235_814_400]);
        let projector_only = LanguageModel {
            trained_layers: Some(0),
            train_embeddings: false,
            ..LanguageModel::default()
        };
        assert_eq!(count(projector_only), [projector, 1_235_814_400, 0]);
    }

    #[test]
    fn special_tokens_and_words_of_a_template_are_counted() {
        let texts = Template::PlmSft.texts();
        assert_eq!(template_tokens(&texts.answer), 5);
        assert_eq!(template_tokens(&texts.question), 1);
        assert_eq!(template_tokens("a <|b|> {} c"), 3);
    }
}
