//! Predictor: maps visual tokens and a query to the embedding of the answer.
//!
//! Each row's sequence [projected visual tokens ; query embeddings] has positions 0, 1, … and runs
//! through Llama layers, by default with bidirectional attention. The mean of the hidden states
//! after the final norm is mapped to the shared embedding (VL-JEPA §3.1; details that the paper
//! leaves out follow open-vljepa).

use std::sync::Arc;

use vljepa_kernels::attention::Mask;
use vljepa_kernels::{Device, KernelError, Lengths, Packed, Result, Tensor, View, Write, rows};
use vljepa_recipes::schema;

use crate::layers::{
    Embedded, Head, HeadSaved, Linear, Pooling, Sequence, StackSaved, TextModel, Trained,
};
use crate::{
    Context, Gradients, Group, Keep, LayoutBuilder, ModelError, OnReady, Parameters, Visual,
};

/// Predictor of the target embedding.
#[derive(Debug)]
pub struct Predictor {
    /// Token embeddings and Llama layers.
    pub text: TextModel,
    /// Map of the visual tokens to the width of the layers.
    pub vision_projection: Linear,
    /// Map of the query embeddings, or `None` if the recipe has no text projection.
    pub text_projection: Option<Linear>,
    /// Mean over each sequence, and map to the shared embedding.
    pub head: Head,
    /// Whether [`Predictor::backward`] returns the gradient of the visual tokens.
    pub visual_gradient: bool,
    gradients_end: usize,
    device: Device,
}

/// State that [`Predictor::backward`] consumes.
#[derive(Debug)]
pub struct PredictorSaved {
    visual: Arc<Tensor>,
    /// Row of each visual token in the packed sequences, i32 (b·N). `None` if all queries are
    /// empty.
    visual_rows: Option<Tensor>,
    query: Option<QuerySaved>,
    sequence: Sequence,
    stack: StackSaved,
    head: HeadSaved,
}

#[derive(Debug)]
struct QuerySaved {
    /// Row of each query token in the packed sequences, i32 (query tokens).
    rows: Tensor,
    /// Token ids, if the token embeddings are trained.
    ids: Option<Arc<[i32]>>,
    /// Input of the text projection, (query tokens, d), if there is one.
    embedded: Option<Tensor>,
}

/// Lengths of the packed sequences, and the rows of the visual and the query tokens in them.
struct PackedRows {
    lengths: Lengths,
    visual: Tensor,
    query: Tensor,
}

impl Predictor {
    /// Registers the predictor's parameters under `name`, and its projections under `projections`.
    #[must_use]
    pub fn new(
        layout: &mut LayoutBuilder,
        name: &str,
        model: &schema::Model,
        normalise: bool,
        device: Device,
    ) -> Self {
        let recipe = &model.predictor;
        let (d, bias) = (recipe.hidden_size, model.projection_bias);
        let projection = |layout: &mut LayoutBuilder, which: &str, [o, i]: [usize; 2]| {
            layout.scope(Group::Projections, true);
            Linear::new(layout, &format!("projections.{which}"), [o, i], bias)
        };
        let head = projection(layout, "predictor_head", [model.embed_dim, d]);
        let mask = match recipe.attention {
            schema::Attention::Bidirectional => Mask::Full,
            schema::Attention::Causal => Mask::Causal,
        };
        let trained = Trained { layers: recipe.num_layers(), table: recipe.train_embeddings };
        let text =
            TextModel::llama(layout, name, Group::Predictor, &recipe.into(), mask, trained, device);
        let text_projection = recipe.text_projection.then(|| projection(layout, "text", [d, d]));
        let vision_projection =
            projection(layout, "vision", [d, model.x_encoder.sizes().hidden_size]);
        Self {
            text,
            vision_projection,
            text_projection,
            head: Head { pooling: Pooling::Mean, maps: vec![head], normalise },
            visual_gradient: model.x_encoder.trainable(),
            gradients_end: layout.trainable_end(),
            device,
        }
    }

    /// Predicted embedding (b, e) of each row. Queries may be empty.
    ///
    /// # Errors
    /// If `visual` and `query` have different numbers of rows, an id is not in the vocabulary, or
    /// memory runs out.
    pub fn forward(
        &self,
        cx: Context<'_>,
        parameters: &Parameters,
        visual: &Visual,
        query: &Packed,
        keep: Keep,
    ) -> Result<Embedded<PredictorSaved>, ModelError> {
        let PackedRows { lengths, visual: visual_rows, query: query_rows } =
            self.packed_rows(visual, &query.lengths)?;
        let mut x = cx.take(&[lengths.tokens(), self.vision_projection.outputs()])?;
        let tokens = visual.tokens.view();
        let mut saved_query = None;
        let no_query = query.lengths.tokens() == 0;
        if no_query {
            self.vision_projection.forward(cx, parameters, tokens, Write::Set, x.view_mut())?;
        } else {
            let mut projected = cx.take(&[tokens.shape()[0], x.shape()[1]])?;
            let out = projected.view_mut();
            self.vision_projection.forward(cx, parameters, tokens, Write::Set, out)?;
            rows::scatter(cx.stream, projected.view(), visual_rows.view(), x.view_mut())?;
            drop(projected);
            saved_query = self.add_query(cx, parameters, query, query_rows, &mut x, keep.any())?;
        }
        let sequence = self.text.sequence(lengths)?;
        let (hidden, stack) = self.text.stack.forward(cx, parameters, x, &sequence, keep)?;
        let (embedding, head) =
            self.head.forward(cx, parameters, hidden.view(), &sequence.lengths, keep.any())?;
        let saved = stack.zip(head).map(|(stack, head)| PredictorSaved {
            visual: Arc::clone(&visual.tokens),
            visual_rows: (!no_query).then_some(visual_rows),
            query: saved_query,
            sequence,
            stack,
            head,
        });
        Ok(Embedded { embedding, saved })
    }

    /// Adds to the gradients of all weights, given `d_embedding` (b, e), the gradient of the
    /// embedding. Returns the gradient of the visual tokens (b·N, width of the X-encoder), or
    /// `None` if the X-encoder is frozen. Calls `on_ready` whenever more gradients are complete.
    ///
    /// # Errors
    /// If the forward pass kept nothing, shapes disagree, or memory runs out.
    pub fn backward(
        &self,
        cx: Context<'_>,
        parameters: &Parameters,
        saved: Option<PredictorSaved>,
        d_embedding: View<'_>,
        gradients: &mut Gradients,
        on_ready: &mut OnReady<'_>,
    ) -> Result<Option<Tensor>, ModelError> {
        const NOTHING: ModelError = ModelError::NothingSaved { part: "predictor" };
        let PredictorSaved { visual, visual_rows, query, sequence, stack, head } =
            saved.ok_or(NOTHING)?;
        let lengths = &sequence.lengths;
        let d_hidden = self
            .head
            .backward(cx, parameters, head, d_embedding, lengths, true, gradients)?
            .ok_or(NOTHING)?;
        let text = &self.text.stack;
        let mut d =
            text.backward(cx, parameters, stack, d_hidden, &sequence, gradients, on_ready)?;
        if let Some(query) = query {
            self.query_backward(cx, parameters, query, &d, gradients)?;
        }
        if let Some(visual_rows) = visual_rows {
            let mut d_visual = cx.take(&[visual.shape()[0], d.shape()[1]])?;
            let (from, to) = (d.view(), d_visual.view_mut());
            rows::gather(cx.stream, from, visual_rows.view(), Write::Set, to)?;
            d = d_visual;
        }
        self.vision_projection.backward_weight(cx, visual.view(), d.view(), gradients)?;
        on_ready(gradients, self.gradients_end);
        if !self.visual_gradient {
            return Ok(None);
        }
        let mut d_visual = cx.take(visual.shape())?;
        let out = d_visual.view_mut();
        self.vision_projection.backward_input(cx, parameters, d.view(), Write::Set, out)?;
        Ok(Some(d_visual))
    }

    /// Embeds the query tokens and writes them to their rows of x (n, d).
    fn add_query(
        &self,
        cx: Context<'_>,
        parameters: &Parameters,
        query: &Packed,
        rows: Tensor,
        x: &mut Tensor,
        keep: bool,
    ) -> Result<Option<QuerySaved>> {
        let mut embedded = self.text.embed(cx, parameters, query.ids())?;
        let mut before = None;
        if let Some(projection) = &self.text_projection {
            let mut out = cx.take(embedded.shape())?;
            let x = embedded.view();
            projection.forward(cx, parameters, x, Write::Set, out.view_mut())?;
            before = Some(std::mem::replace(&mut embedded, out));
        }
        rows::scatter(cx.stream, embedded.view(), rows.view(), x.view_mut())?;
        if !keep || (before.is_none() && !self.text.embedding.trainable()) {
            return Ok(None);
        }
        let ids = self.text.embedding.trainable().then(|| Arc::clone(query.host_ids()));
        Ok(Some(QuerySaved { rows, ids, embedded: before }))
    }

    /// Adds to the gradients of the text projection and the token embeddings, given `d` (n, d), the
    /// gradient of all tokens.
    fn query_backward(
        &self,
        cx: Context<'_>,
        parameters: &Parameters,
        saved: QuerySaved,
        d: &Tensor,
        gradients: &mut Gradients,
    ) -> Result<()> {
        let QuerySaved { rows: index, ids, embedded } = saved;
        let mut d_query = cx.take(&[index.shape()[0], d.shape()[1]])?;
        rows::gather(cx.stream, d.view(), index.view(), Write::Set, d_query.view_mut())?;
        if let (Some(projection), Some(embedded)) = (&self.text_projection, embedded) {
            projection.backward_weight(cx, embedded.view(), d_query.view(), gradients)?;
            let mut d_embedded = embedded;
            let out = d_embedded.view_mut();
            projection.backward_input(cx, parameters, d_query.view(), Write::Set, out)?;
            d_query = d_embedded;
        }
        match ids {
            Some(ids) => self.text.embed_backward(cx, &ids, d_query.view(), gradients),
            None => Ok(()),
        }
    }

    fn packed_rows(&self, visual: &Visual, query: &Lengths) -> Result<PackedRows> {
        if visual.rows != query.rows() {
            return Err(KernelError::Shape {
                operation: "predictor::forward",
                what: "query",
                found: format!("{} rows", query.rows()),
                needed: format!("{} rows, one per clip", visual.rows),
            });
        }
        let total = visual.rows * visual.tokens_per_row + query.tokens();
        let too_many = || KernelError::Value {
            operation: "predictor::forward",
            what: "tokens",
            found: total.to_string(),
            needed: "fewer than 2^31".to_owned(),
        };
        i32::try_from(total).map_err(|_| too_many())?;
        let per_clip = i32::try_from(visual.tokens_per_row).map_err(|_| too_many())?;
        let (mut ends, mut end) = (vec![0], 0);
        let (mut visual_rows, mut query_rows) = (Vec::new(), Vec::new());
        for ends_of_row in query.host().windows(2) {
            let query_start = end + per_clip;
            visual_rows.extend(end..query_start);
            end = query_start + ends_of_row[1] - ends_of_row[0];
            query_rows.extend(query_start..end);
            ends.push(end);
        }
        let index = |values: Vec<i32>| {
            let len = values.len();
            Tensor::from_i32(values, &[len]).on(self.device)
        };
        Ok(PackedRows {
            lengths: Lengths::new(self.device, ends)?,
            visual: index(visual_rows)?,
            query: index(query_rows)?,
        })
    }
}
