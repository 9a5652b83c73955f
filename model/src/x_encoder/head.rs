//! Heads of image towers, which make one vector of a frame. Only dual encoders have them.
//!
//! They are frozen, so there is no backward pass.

use vljepa_kernels::attention::{self, Mask};
use vljepa_kernels::{
    Lengths, Result, Tensor, View, Write, activation, copy, linear, pooling, rows,
};
use vljepa_recipes::schema::{self, XEncoder};

use super::vit;
use crate::layers::{Activation, Head, Linear, Mlp, Norm, Pooling};
use crate::parameters::root;
use crate::{Context, Group, LayoutBuilder, Parameters, Weight};

/// Hidden width of the MLP of PE-core's attention pooling, in units of the width of a token
/// (`mlp_ratio` of `AttentionPooling` in `core/vision_encoder/pe.py`).
const PE_POOLING_MLP: usize = 4;

/// Maps the tokens of frames to embeddings of clips.
#[derive(Debug, Clone)]
pub struct ImageHead {
    /// Reduction of the tokens of a frame to one vector.
    pub frame: FramePooling,
    /// Mean over the frames of a clip, map to the shared embedding if the model has one, and L2
    /// normalisation. The map is linear, so that of the mean is the mean of those of the frames.
    pub clip: Head,
}

/// Reduction of the tokens of a frame, after the tower's last norm if it has one, to one vector.
#[derive(Debug, Clone)]
pub enum FramePooling {
    /// The first token, cls: CLIP.
    Cls,
    /// Attention of a learned query to all tokens: PE-core, `SigLIP` 2.
    Attention(Box<AttentionPooling>),
    /// Attention of the mean of all tokens to itself and to them: CLIP's ResNet.
    MeanAttention(Box<MeanAttention>),
}

/// Attention of a learned query, the probe, to all tokens x of a frame, with a residual MLP:
/// y = attention(probe, x, x); y + mlp(norm(y)).
#[derive(Debug, Clone, Copy)]
pub struct AttentionPooling {
    /// Query, (1, d).
    pub probe: Weight,
    /// Maps of query, keys and values, (3·d, d).
    pub qkv: Linear,
    /// Map of the attended values, (d, d).
    pub output: Linear,
    /// Norm before the MLP.
    pub norm: Norm,
    /// MLP without a gate.
    pub mlp: Mlp,
    heads: usize,
}

/// Attention of the first of the tokens y = (mean of x, x) + positions to all of them, for the
/// tokens x of a frame. Its output is mapped by the head of the clip.
///
/// Source: `AttentionPool2d` in `clip/model.py` of openai/CLIP.
#[derive(Debug, Clone, Copy)]
pub struct MeanAttention {
    /// Learned position of the mean and of each token, (tokens + 1, d).
    pub positions: Weight,
    /// Maps of query, keys and values, (3·d, d).
    pub qkv: Linear,
    heads: usize,
}

/// What distinguishes the attention poolings of the families.
struct Form {
    hidden: usize,
    heads: usize,
    intermediate: usize,
    eps: f32,
    activation: activation::Activation,
}

impl ImageHead {
    /// Registers the head of the recipe's image tower under `name`, last first.
    ///
    /// # Panics
    /// If the X-encoder has no head, which `vljepa_recipes::check::pair` refuses.
    pub(crate) fn new(layout: &mut LayoutBuilder, name: &str, model: &schema::Model) -> Self {
        layout.scope(Group::XEncoder, false);
        let sizes = model.x_encoder.sizes();
        let hidden = sizes.hidden_size;
        let projection = |layout: &mut LayoutBuilder| {
            let shape = [model.embed_dim, hidden];
            vec![Linear::new(layout, &format!("{name}.projection"), shape, false)]
        };
        let (maps, frame) = match &model.x_encoder {
            XEncoder::Clip(_) => (projection(layout), FramePooling::Cls),
            XEncoder::Pe(keys) => {
                let form = Form {
                    hidden,
                    heads: schema::Pe::POOLING_HEADS,
                    intermediate: PE_POOLING_MLP * hidden,
                    eps: keys.layer_norm_eps,
                    activation: activation::Activation::Gelu,
                };
                let maps = projection(layout);
                (maps, FramePooling::Attention(AttentionPooling::new(layout, name, &form)))
            }
            XEncoder::Siglip2(keys) => {
                let form = Form {
                    hidden,
                    heads: sizes.num_heads,
                    intermediate: sizes.intermediate_size,
                    eps: keys.layer_norm_eps,
                    activation: activation::Activation::GeluTanh,
                };
                (Vec::new(), FramePooling::Attention(AttentionPooling::new(layout, name, &form)))
            }
            XEncoder::ClipResnet(keys) => {
                let shape = [model.embed_dim, hidden];
                let maps = vec![Linear::new(layout, &format!("{name}.projection"), shape, true)];
                let tokens = model.x_encoder.tokens_of_tubelet(model.image_size);
                let pooling = MeanAttention::new(layout, name, [tokens, hidden], keys.num_heads);
                (maps, FramePooling::MeanAttention(Box::new(pooling)))
            }
            XEncoder::Vjepa2(_) | XEncoder::Vjepa2_1(_) => {
                unreachable!("`check::pair` refuses encoders without a head")
            }
        };
        Self { frame, clip: Head { pooling: Pooling::Mean, maps, normalise: true } }
    }

    /// Embeddings (b, e) of b `clips`, given the tokens (n, d) of their frames, after the tower's
    /// last norm if it has one. `frames` are the lengths of the frames.
    ///
    /// # Errors
    /// If shapes disagree or memory runs out.
    pub(crate) fn forward(
        &self,
        cx: Context<'_>,
        parameters: &Parameters,
        tokens: View<'_>,
        frames: &Lengths,
        clips: usize,
    ) -> Result<Tensor> {
        let vectors = match &self.frame {
            FramePooling::Cls => first_rows(cx, tokens, frames)?,
            FramePooling::Attention(pooling) => pooling.forward(cx, parameters, tokens, frames)?,
            FramePooling::MeanAttention(pooling) => {
                pooling.forward(cx, parameters, tokens, frames)?
            }
        };
        let per_clip = frames.rows().checked_div(clips).unwrap_or(0);
        let lengths = Lengths::uniform(cx.arena.device(), clips, per_clip)?;
        Ok(self.clip.forward(cx, parameters, vectors.view(), &lengths, false)?.0)
    }
}

impl AttentionPooling {
    /// Registers the weights, last first.
    fn new(layout: &mut LayoutBuilder, name: &str, form: &Form) -> Box<Self> {
        let (d, f) = (form.hidden, form.intermediate);
        let mut map =
            |which: &str, shape| Linear::new(layout, &format!("{name}.{which}"), shape, true);
        let (down, up) = (map("mlp.fc2", [d, f]), map("mlp.fc1", [f, d]));
        let (output, qkv) = (map("attention.output", [d, d]), map("attention.qkv", [3 * d, d]));
        let norm = Norm::layer(layout, &format!("{name}.mlp_norm"), d, form.eps);
        let probe = layout.add_table(format!("{name}.probe"), [1, d], 1.0);
        let mlp = Mlp { up, down, activation: Activation::Plain(form.activation) };
        Box::new(Self { probe, qkv, output, norm, mlp, heads: form.heads })
    }

    /// Vector (frames, d) of each frame with the tokens x (n, d).
    fn forward(
        &self,
        cx: Context<'_>,
        parameters: &Parameters,
        x: View<'_>,
        frames: &Lengths,
    ) -> Result<Tensor> {
        let probe = parameters.of(&self.probe);
        let attended = attend(cx, parameters, (&self.qkv, self.heads), probe, x, frames)?;
        let mut y = cx.take(attended.shape())?;
        self.output.forward(cx, parameters, attended.view(), Write::Set, y.view_mut())?;
        let (normed, _) = self.norm.forward(cx, parameters, y.view())?;
        let hidden = self.mlp.forward(cx, parameters, normed.view())?;
        let activated = Mlp::activated(&hidden);
        self.mlp.down.forward(cx, parameters, activated, Write::Add, y.view_mut())?;
        Ok(y)
    }
}

impl MeanAttention {
    /// Registers the weights for frames of so many `tokens` of width `d`, last first.
    fn new(layout: &mut LayoutBuilder, name: &str, [tokens, d]: [usize; 2], heads: usize) -> Self {
        let qkv = Linear::new(layout, &format!("{name}.attention.qkv"), [3 * d, d], true);
        let positions = layout.add_table(format!("{name}.positions"), [tokens + 1, d], 1.0);
        Self { positions, qkv, heads }
    }

    /// Vector (frames, d) of each frame with the tokens x (n, d).
    fn forward(
        &self,
        cx: Context<'_>,
        parameters: &Parameters,
        x: View<'_>,
        frames: &Lengths,
    ) -> Result<Tensor> {
        let ([n, d], count) = ([0, 1].map(|axis| x.shape()[axis]), frames.rows());
        // The rows of all tokens, then those of the means.
        let mut all = cx.take(&[n + count, d])?;
        copy::copy(cx.stream, x, all.view_mut().rows(0, n))?;
        pooling::forward(cx.stream, x, frames, all.view_mut().rows(n, n + count))?;
        let length = self.positions.shape()[0];
        let row = |i: usize| match i % length {
            0 => n + i / length,
            token => i / length * (length - 1) + token - 1,
        };
        let rows = count * length;
        let position = vit::indices(cx, (0..rows).map(|i| i % length))?;
        let index = vit::indices(cx, (0..rows).map(row))?;
        let mut y = cx.take(&[rows, d])?;
        let positions = parameters.of(&self.positions);
        rows::gather(cx.stream, positions, position.view(), Write::Set, y.view_mut())?;
        rows::gather(cx.stream, all.view(), index.view(), Write::Add, y.view_mut())?;
        let lengths = Lengths::uniform(cx.arena.device(), count, length)?;
        let means = first_rows(cx, y.view(), &lengths)?;
        let maps = (&self.qkv, self.heads);
        attend(cx, parameters, maps, means.view(), y.view(), &lengths)
    }
}

/// Values (frames, d) to which the query of each frame attends among the frame's tokens x (n, d).
/// The one row of `queries` (1, d) is for all frames, those of `queries` (frames, d) for one each.
fn attend(
    cx: Context<'_>,
    parameters: &Parameters,
    (qkv, heads): (&Linear, usize),
    queries: View<'_>,
    x: View<'_>,
    frames: &Lengths,
) -> Result<Tensor> {
    let [n, d] = [0, 1].map(|axis| x.shape()[axis]);
    let map = |part: usize, input: View<'_>| -> Result<Tensor> {
        let mut out = cx.take(&[input.shape()[0], d])?;
        let weight = parameters.of(&qkv.weight).part(part * d * d, &[d, d]);
        let bias = qkv.bias.as_ref().map(|bias| parameters.of(bias).part(part * d, &[d]));
        linear::forward(cx.stream, input, weight, bias, Write::Set, out.view_mut())?;
        Ok(out)
    };
    // The kernels take as many queries as keys, so the query of a frame is that of each of its
    // tokens, and one row of each frame is kept. This attention costs as much as that of one of
    // the 12 to 50 layers of a vision transformer.
    let count = queries.shape()[0];
    let of_frame = |frame| std::iter::repeat_n(frame % count, frames.range(frame).len());
    let of_tokens = vit::indices(cx, (0..frames.rows()).flat_map(of_frame))?;
    let queries = map(0, queries)?;
    let mut q = cx.take(&[n, d])?;
    rows::gather(cx.stream, queries.view(), of_tokens.view(), Write::Set, q.view_mut())?;
    let head_dim = d / heads;
    let by_head = |tensor: Tensor| tensor.reshaped(&[n, heads, head_dim]);
    let [q, k, v] = [by_head(q), by_head(map(1, x)?), by_head(map(2, x)?)];
    let (mut out, mut lse) = (cx.take(q.shape())?, cx.take_f32(&[n, heads])?);
    attention::forward(
        cx.stream,
        q.view(),
        k.view(),
        v.view(),
        frames,
        Mask::Full,
        root(head_dim).recip(),
        out.view_mut(),
        lse.view_mut(),
    )?;
    first_rows(cx, out.view().reshaped(&[n, d]), frames)
}

/// First row (frames, d) of each frame of x (n, d).
fn first_rows(cx: Context<'_>, x: View<'_>, frames: &Lengths) -> Result<Tensor> {
    let count = frames.rows();
    let first: Vec<i32> = frames.host()[..count].to_vec();
    let index = Tensor::from_i32(first, &[count]).on(cx.arena.device())?;
    let mut out = cx.take(&[count, x.shape()[1]])?;
    rows::gather(cx.stream, x, index.view(), Write::Set, out.view_mut())?;
    Ok(out)
}
