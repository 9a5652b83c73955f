//! Token-predicting vision-language model, the baseline of `VL-JEPA` §4.4 as `PerceptionLM` (arXiv
//! 2504.13180) builds it: visual tokens of a frozen encoder pass two linear maps and a mean over
//! squares, and a causal language model reads them with the question and writes the answer.

use std::sync::Arc;

use vljepa_kernels::activation::{self, Activation};
use vljepa_kernels::{Device, KernelError, Lengths, Packed, Result, Tensor, Write, pooling, rows};
use vljepa_recipes::schema;

use crate::language_model::{Joined, LanguageModelSaved, Options, Prompts, read_and_targets};
use crate::layers::{Linear, Trained};
use crate::x_encoder::{XEncoderSaved, in_squares, indices};
use crate::{
    Context, Gradients, Group, Keep, LanguageModel, Layout, LayoutBuilder, ModelError, OnReady,
    Parameters, Visual, XEncoder,
};

/// Vision-language model that predicts tokens. Training minimises the mean of −log p over the
/// tokens of the answers.
#[derive(Debug)]
pub struct Vlm {
    /// Maps frames to visual tokens.
    pub x_encoder: XEncoder,
    /// Maps visual tokens to vectors that the language model reads.
    pub projector: Projector,
    /// Writes the answer.
    pub language_model: LanguageModel,
    layout: Layout,
    recipe: schema::Model,
}

/// Projector of visual tokens: linear map, GELU, linear map, both with bias, then the mean over
/// squares of tokens (`MLPProjector` of facebookresearch/perception_models).
#[derive(Debug, Clone, Copy)]
pub struct Projector {
    /// First map, (d, width of the X-encoder).
    pub first: Linear,
    /// Second map, (d, d).
    pub second: Linear,
    /// Height and width, in tokens, of the squares whose mean is taken.
    pub pool: usize,
    /// Number of columns of the tokens of a frame.
    columns: usize,
    /// Whether the visual tokens need a gradient.
    visual_gradient: bool,
    gradients_end: usize,
}

/// State that [`Projector::backward`] consumes.
#[derive(Debug)]
pub struct ProjectorSaved {
    /// Visual tokens in the order of the squares, (n, width of the X-encoder).
    tokens: Arc<Tensor>,
    /// Row of each of them in the order of the frame, if that is another.
    order: Option<Tensor>,
    /// Result of the first map, (n, d).
    hidden: Tensor,
    /// GELU of it, (n, d).
    activated: Tensor,
}

/// Texts of a batch, in the tokens of the recipe's template.
#[derive(Debug, Clone, Copy)]
pub struct Conversations<'a> {
    /// Tokens before the visual tokens of every row.
    pub before: &'a [i32],
    /// Tokens between the visual tokens and the answer of each row.
    pub questions: &'a [&'a [i32]],
    /// Tokens of each answer, those that begin and end it included. For prompts only those that
    /// begin it.
    pub answers: &'a [&'a [i32]],
}

/// State that [`Vlm::backward`] consumes.
#[derive(Debug)]
pub struct VlmSaved {
    input: Joined,
    ids: Arc<[i32]>,
    layers: Option<LanguageModelSaved>,
    /// Gradient of the hidden states, (n, d).
    d_hidden: Tensor,
    projector: ProjectorSaved,
    visual: Option<XEncoderSaved>,
}

impl Vlm {
    /// Builds the model of a recipe. The model holds no weights; they are in [`Parameters`].
    ///
    /// # Errors
    /// If the recipe is not that of a VLM, or a size is out of range or does not fit the others.
    pub fn new(model: &schema::Model, device: Device) -> Result<Self, ModelError> {
        let loss = schema::Loss::default();
        if let Some(problem) = vljepa_recipes::check::sizes(model, &loss).into_iter().next() {
            return Err(ModelError::Config { key: problem.key, what: problem.what });
        }
        let keys = model.vlm().ok_or_else(|| ModelError::Config {
            key: "model.kind".to_owned(),
            what: "is not `vlm`".to_owned(),
        })?;
        let mut layout = LayoutBuilder::new(model.initialisation);
        // Register in the order in which a step completes gradients.
        let (name, group) = ("language_model", Group::LanguageModel);
        let trained = Trained { layers: keys.trained_layers(), table: keys.train_embeddings };
        let language_model =
            LanguageModel::llama(&mut layout, name, group, &keys.into(), trained, device);
        let projector = Projector::new(&mut layout, model, keys.hidden_size);
        // The projector takes the mean, so the encoder keeps all tokens.
        let unpooled = schema::Model { x_encoder: model.x_encoder.unpooled(), ..model.clone() };
        let x_encoder = XEncoder::new(&mut layout, "x_encoder", &unpooled, device);
        let recipe = model.clone();
        Ok(Self { x_encoder, projector, language_model, layout: layout.finish(), recipe })
    }

    /// Names, shapes and offsets of all parameters.
    #[must_use]
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Recipe from which this model was built.
    #[must_use]
    pub fn recipe(&self) -> &schema::Model {
        &self.recipe
    }

    /// Losses −log p of all tokens of the answers, f32 (tokens), in their order.
    ///
    /// `visual` has b rows, as `texts`. With `gradients`, the backward pass is that of `factor` · Σ
    /// losses; its part behind the hidden states runs at once and adds to `gradients`. Then `keep`
    /// says what is kept for the rest.
    ///
    /// # Errors
    /// If an answer is empty, an id is not in the vocabulary, shapes disagree, or memory runs out.
    #[expect(clippy::too_many_arguments, reason = "one argument per operand of the formula")]
    pub fn forward(
        &self,
        cx: Context<'_>,
        parameters: &Parameters,
        visual: Visual,
        texts: Conversations<'_>,
        factor: f32,
        keep: Keep,
        gradients: Option<&mut Gradients>,
    ) -> Result<(Tensor, Option<VlmSaved>), ModelError> {
        let device = cx.arena.device();
        let keep = keep.only_if(gradients.is_some());
        let vectors = visual.tokens_per_row / self.projector.pool.pow(2);
        let contexts = contexts(&visual, texts)?;
        let (read, targets) = read_and_targets(device, &contexts, texts.answers, vectors)?;
        let (x, input, projector) =
            self.input(cx, parameters, &visual, texts.before, &read, keep)?;
        let lengths = Lengths::new(device, input.lengths.host().to_vec())?;
        let model = &self.language_model;
        let (hidden, layers) = model.forward(cx, parameters, x, lengths, keep)?;
        let hidden = hidden.view();
        let (Some(gradients), Some(projector)) = (gradients, projector) else {
            return Ok((model.losses(cx, parameters, hidden, &targets)?, None));
        };
        let (losses, d_hidden) =
            model.losses_with_gradient(cx, parameters, hidden, &targets, factor, gradients)?;
        let (ids, visual) = (Arc::clone(read.host_ids()), visual.saved);
        Ok((losses, Some(VlmSaved { input, ids, layers, d_hidden, projector, visual })))
    }

    /// Adds to the gradients of all trained parts. Calls `on_ready` whenever more gradients are
    /// complete.
    ///
    /// # Errors
    /// If the forward pass kept nothing, or memory runs out.
    pub fn backward(
        &self,
        cx: Context<'_>,
        parameters: &Parameters,
        saved: VlmSaved,
        gradients: &mut Gradients,
        on_ready: &mut OnReady<'_>,
    ) -> Result<(), ModelError> {
        let VlmSaved { input, ids, layers, d_hidden, projector, visual } = saved;
        let model = &self.language_model;
        let d = model.backward(cx, parameters, layers, d_hidden, gradients, on_ready)?;
        let d_vectors = model.joined_backward(cx, &input, &ids, d.view(), gradients)?;
        drop(d);
        let d_visual = self.projector.backward(cx, parameters, projector, d_vectors, gradients)?;
        on_ready(gradients, self.projector.gradients_end);
        match d_visual {
            None => Ok(()),
            Some(d) => self.x_encoder.backward(cx, parameters, visual, d, gradients, on_ready),
        }
    }

    /// Writes the answer of each row: its tokens, without those that begin and end it.
    ///
    /// # Errors
    /// If a row has nothing before its answer, shapes disagree, or memory runs out.
    pub fn generate(
        &self,
        cx: Context<'_>,
        parameters: &Parameters,
        visual: &Visual,
        texts: Conversations<'_>,
        options: &Options,
    ) -> Result<Vec<Vec<i32>>, ModelError> {
        let prompts = self.prompts(cx, parameters, visual, texts)?;
        Ok(self.language_model.generate(cx, parameters, prompts, options)?)
    }

    /// Mean of −log p over the tokens of each of the `candidates` as the answer of each row, (rows,
    /// candidates). The tokens that begin the answer are no part of a candidate.
    ///
    /// # Errors
    /// Same as [`Self::generate`], and if a candidate is empty.
    pub fn mean_losses(
        &self,
        cx: Context<'_>,
        parameters: &Parameters,
        visual: &Visual,
        texts: Conversations<'_>,
        candidates: &[Vec<i32>],
    ) -> Result<Vec<Vec<f32>>, ModelError> {
        let prompts = self.prompts(cx, parameters, visual, texts)?;
        Ok(self.language_model.mean_losses(cx, parameters, prompts, candidates)?)
    }

    /// What the language model reads before it writes: `answers` hold the tokens that begin them.
    fn prompts(
        &self,
        cx: Context<'_>,
        parameters: &Parameters,
        visual: &Visual,
        texts: Conversations<'_>,
    ) -> Result<Prompts<'static>, ModelError> {
        let mut contexts = contexts(visual, texts)?;
        let (mut ids, mut ends) = (Vec::new(), vec![0]);
        for (context, start) in contexts.iter_mut().zip(texts.answers) {
            ids.append(context);
            ids.extend_from_slice(start);
            ends.push(i32::try_from(ids.len()).map_err(|_| too_many(ids.len()))?);
        }
        let read = Packed::new(cx.arena.device(), ids, ends)?;
        let nothing = Keep::Nothing;
        let (x, input, _) = self.input(cx, parameters, visual, texts.before, &read, nothing)?;
        Ok(Prompts { x, lengths: input.lengths, memory: None })
    }

    /// Input (n, d) of the first layer, with its rows and the state of the projector.
    fn input(
        &self,
        cx: Context<'_>,
        parameters: &Parameters,
        visual: &Visual,
        before: &[i32],
        read: &Packed,
        keep: Keep,
    ) -> Result<(Tensor, Joined, Option<ProjectorSaved>)> {
        let (vectors, saved) = self.projector.forward(cx, parameters, visual, keep)?;
        let per_row = vectors.shape()[0].checked_div(visual.rows).unwrap_or(0);
        let joined = Joined::new(cx.arena.device(), &read.lengths, before.len(), per_row)?;
        let model = &self.language_model;
        let x = model.joined_input(cx, parameters, &joined, read, vectors.view())?;
        Ok((x, joined, saved))
    }
}

/// Tokens before the answer of each row.
fn contexts(visual: &Visual, texts: Conversations<'_>) -> Result<Vec<Vec<i32>>> {
    for (what, rows) in [("questions", texts.questions.len()), ("answers", texts.answers.len())] {
        if rows != visual.rows {
            return Err(KernelError::Shape {
                operation: "vlm",
                what,
                found: rows.to_string(),
                needed: format!("{}, one per clip", visual.rows),
            });
        }
    }
    let context = |question: &&[i32]| [texts.before, question].concat();
    Ok(texts.questions.iter().map(context).collect())
}

fn too_many(found: usize) -> KernelError {
    KernelError::Value {
        operation: "vlm",
        what: "tokens",
        found: found.to_string(),
        needed: "fewer than 2^31".to_owned(),
    }
}

impl Projector {
    /// Registers both maps.
    fn new(layout: &mut LayoutBuilder, model: &schema::Model, d: usize) -> Self {
        layout.scope(Group::Projections, true);
        let second = Linear::new(layout, "projector.second", [d, d], true);
        let shape = [d, model.x_encoder.sizes().hidden_size];
        let first = Linear::new(layout, "projector.first", shape, true);
        Self {
            first,
            second,
            pool: model.x_encoder.pool(),
            columns: model.image_size / model.x_encoder.sizes().patch_size,
            visual_gradient: model.x_encoder.trainable(),
            gradients_end: layout.trainable_end(),
        }
    }

    /// Vectors (b·N/pool², d) of the visual tokens of b clips with N tokens each.
    ///
    /// # Errors
    /// If memory runs out.
    pub fn forward(
        &self,
        cx: Context<'_>,
        parameters: &Parameters,
        visual: &Visual,
        keep: Keep,
    ) -> Result<(Tensor, Option<ProjectorSaved>)> {
        let (n, d) = (visual.tokens.shape()[0], self.second.outputs());
        let (tokens, order) = if self.pool == 1 {
            (Arc::clone(&visual.tokens), None)
        } else {
            // A frame has as many rows as columns, so the squares of all frames follow each other.
            let row = |i: usize| in_squares(i, self.columns, self.pool);
            let order = indices(cx, (0..n).map(row))?;
            let mut ordered = cx.take(visual.tokens.shape())?;
            let (from, to) = (visual.tokens.view(), ordered.view_mut());
            rows::gather(cx.stream, from, order.view(), Write::Set, to)?;
            (Arc::new(ordered), Some(order))
        };
        let mut hidden = cx.take(&[n, d])?;
        self.first.forward(cx, parameters, tokens.view(), Write::Set, hidden.view_mut())?;
        let mut activated = cx.take(&[n, d])?;
        let to = activated.view_mut();
        activation::forward(cx.stream, hidden.view(), Activation::Gelu, to)?;
        let mut out = cx.take(&[n, d])?;
        self.second.forward(cx, parameters, activated.view(), Write::Set, out.view_mut())?;
        let saved = keep.any().then_some(ProjectorSaved { tokens, order, hidden, activated });
        let Some(squares) = self.squares(cx, n)? else { return Ok((out, saved)) };
        let mut means = cx.take(&[squares.rows(), d])?;
        pooling::forward(cx.stream, out.view(), &squares, means.view_mut())?;
        Ok((means, saved))
    }

    /// Adds to the gradients of both maps, given `d` (b·N/pool², d), the gradient of the vectors.
    /// Returns the gradient of the visual tokens, or `None` if the X-encoder is frozen.
    ///
    /// # Errors
    /// If shapes disagree or memory runs out.
    pub fn backward(
        &self,
        cx: Context<'_>,
        parameters: &Parameters,
        saved: ProjectorSaved,
        d: Tensor,
        gradients: &mut Gradients,
    ) -> Result<Option<Tensor>> {
        let ProjectorSaved { tokens, order, hidden, activated } = saved;
        let d_out = match self.squares(cx, hidden.shape()[0])? {
            None => d,
            Some(squares) => {
                let mut d_out = cx.take(hidden.shape())?;
                pooling::backward(cx.stream, d.view(), &squares, d_out.view_mut())?;
                d_out
            }
        };
        self.second.backward_weight(cx, activated.view(), d_out.view(), gradients)?;
        // The gradient of the activation overwrites the activation, whose value has been used.
        let mut d_activated = activated;
        let to = d_activated.view_mut();
        self.second.backward_input(cx, parameters, d_out.view(), Write::Set, to)?;
        let mut d_hidden = d_out;
        let (before, d) = (hidden.view(), d_activated.view());
        activation::backward(cx.stream, before, Activation::Gelu, d, d_hidden.view_mut())?;
        self.first.backward_weight(cx, tokens.view(), d_hidden.view(), gradients)?;
        if !self.visual_gradient {
            return Ok(None);
        }
        let mut d_tokens = cx.take(tokens.shape())?;
        let to = d_tokens.view_mut();
        self.first.backward_input(cx, parameters, d_hidden.view(), Write::Set, to)?;
        let Some(order) = order else { return Ok(Some(d_tokens)) };
        let mut d_visual = cx.take(tokens.shape())?;
        rows::scatter(cx.stream, d_tokens.view(), order.view(), d_visual.view_mut())?;
        Ok(Some(d_visual))
    }

    /// Lengths of the squares of n tokens, or `None` if no mean is taken.
    fn squares(&self, cx: Context<'_>, n: usize) -> Result<Option<Lengths>> {
        let tokens = self.pool * self.pool;
        let lengths = || Lengths::uniform(cx.arena.device(), n / tokens, tokens);
        (self.pool > 1).then(lengths).transpose()
    }
}
