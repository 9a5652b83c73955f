//! Parameters: their names, groups and places in flat buffers.
//!
//! Trainable ones lie in the order in which a step's backward pass completes their gradients (loss, Y-encoder, predictor,
//! X-encoder; within each the last layer first), so that a reduction can start at the front while later ones are computed, and
//! so that an optimizer shard or a checkpoint part is a range. Frozen ones lie in a buffer of their own.

use std::ops::Range;

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};
use vljepa_kernels::{
    DType, Device, KernelError, Result, Shape, Stream, Tensor, View, ViewMut, copy,
};
use vljepa_recipes::schema::Initialisation;

/// Groups of parameters that a recipe gives learning-rate multipliers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Group {
    /// The visual encoder.
    XEncoder,
    /// The predictor's layers and, where trained, its token embeddings.
    Predictor,
    /// The text encoder of targets.
    YEncoder,
    /// The linear maps into and out of the predictor, and from the Y-encoder to the shared embedding.
    Projections,
    /// `InfoNCE`'s temperature.
    LogitScale,
}

impl Group {
    /// All groups.
    pub const ALL: [Self; 5] =
        [Self::XEncoder, Self::Predictor, Self::YEncoder, Self::Projections, Self::LogitScale];

    /// The name in a recipe's `optimizer.multipliers`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::XEncoder => "x_encoder",
            Self::Predictor => "predictor",
            Self::YEncoder => "y_encoder",
            Self::Projections => "projections",
            Self::LogitScale => "logit_scale",
        }
    }
}

/// What a parameter holds before training or loading.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Initial {
    /// The same number everywhere.
    Constant(f32),
    /// Normal(0, std).
    Normal {
        /// Standard deviation.
        std: f32,
    },
}

/// Index of a parameter in its [`Layout`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ParameterId(pub usize);

/// One tensor of weights.
#[derive(Debug, Clone, PartialEq)]
pub struct Parameter {
    /// Dotted name, such as `predictor.layers.0.attention.qkv.weight`.
    pub name: String,
    /// Shape.
    pub shape: Vec<usize>,
    /// Group of the learning-rate multiplier.
    pub group: Group,
    /// Whether it lies in the trainable buffer.
    pub trainable: bool,
    /// Whether weight decay applies: to matrices, never to vectors and the temperature (`open_clip`'s rule).
    pub decay: bool,
    /// Its place in the trainable or the frozen buffer.
    pub range: Range<usize>,
    /// What it holds before training or loading.
    pub initial: Initial,
}

/// A parameter as layers hold it: where it lies and what shape it has. Cheap to copy.
#[derive(Debug, Clone, Copy)]
pub struct Weight {
    id: ParameterId,
    trainable: bool,
    start: usize,
    shape: Shape,
}

impl Weight {
    /// Its index in the layout.
    #[must_use]
    pub fn id(&self) -> ParameterId {
        self.id
    }

    /// Whether it is trained.
    #[must_use]
    pub fn trainable(&self) -> bool {
        self.trainable
    }

    /// Dimensions.
    #[must_use]
    pub fn shape(&self) -> &[usize] {
        self.shape.dims()
    }
}

/// All parameters of a model and the lengths of the two buffers they lie in.
#[derive(Debug, Clone, PartialEq)]
pub struct Layout {
    /// In order of registration: trainable ones as backward completes them.
    pub parameters: Vec<Parameter>,
    /// Elements of the trainable buffer, a multiple of 64.
    pub trainable_len: usize,
    /// Elements of the frozen buffer, a multiple of 64.
    pub frozen_len: usize,
}

impl Layout {
    /// Parameters start at multiples of this many elements: 256 bytes of f32, the alignment of vector loads and collectives.
    pub const ALIGNMENT: usize = 64;

    /// The parameter of an id.
    #[must_use]
    pub fn get(&self, id: ParameterId) -> &Parameter {
        &self.parameters[id.0]
    }

    /// Number of weights in the parameters that `which` selects, without padding.
    pub fn count(&self, which: impl Fn(&Parameter) -> bool) -> usize {
        self.parameters.iter().filter(|p| which(p)).map(|p| p.range.len()).sum()
    }
}

/// Collects the parameters of a model while its parts are made.
#[derive(Debug)]
pub struct LayoutBuilder {
    layout: Layout,
    group: Group,
    trainable: bool,
    initialisation: Initialisation,
}

/// Standard deviation of the published models' first weights (`initializer_range` of their configs).
const PUBLISHED_STD: f32 = 0.02;

impl LayoutBuilder {
    /// No parameters yet; [`Self::scope`] says what the next ones belong to.
    #[must_use]
    pub fn new(initialisation: Initialisation) -> Self {
        let layout = Layout { parameters: Vec::new(), trainable_len: 0, frozen_len: 0 };
        Self { layout, group: Group::Projections, trainable: true, initialisation }
    }

    /// The group and training state of the parameters that follow.
    pub fn scope(&mut self, group: Group, trainable: bool) -> &mut Self {
        (self.group, self.trainable) = (group, trainable);
        self
    }

    /// Registers a matrix (outputs, inputs), which starts as Normal(0, 0.02) or, by fan-in, Normal(0, 1/√inputs).
    pub fn add_matrix(&mut self, name: String, shape: [usize; 2]) -> Weight {
        self.add_normal(name, shape, root(shape[1]).recip())
    }

    /// Registers a table of embeddings, which starts as Normal(0, 0.02) or, by fan-in, such that embeddings times `scale` have
    /// elements near 1.
    pub fn add_table(&mut self, name: String, shape: [usize; 2], scale: f32) -> Weight {
        self.add_normal(name, shape, scale.recip())
    }

    fn add_normal(&mut self, name: String, shape: [usize; 2], by_fan_in: f32) -> Weight {
        let std = match self.initialisation {
            Initialisation::Normal => PUBLISHED_STD,
            Initialisation::FanIn => by_fan_in,
        };
        self.add(name, &shape, Initial::Normal { std })
    }

    /// Registers a parameter.
    pub fn add(&mut self, name: String, shape: &[usize], initial: Initial) -> Weight {
        let id = ParameterId(self.layout.parameters.len());
        let len: usize = shape.iter().product();
        let (group, trainable) = (self.group, self.trainable);
        let end =
            if trainable { &mut self.layout.trainable_len } else { &mut self.layout.frozen_len };
        let start = *end;
        *end = (start + len).next_multiple_of(Layout::ALIGNMENT);
        self.layout.parameters.push(Parameter {
            name,
            shape: shape.to_vec(),
            group,
            trainable,
            decay: shape.len() > 1 && group != Group::LogitScale,
            range: start..start + len,
            initial,
        });
        Weight { id, trainable, start, shape: Shape::new(shape) }
    }

    /// Where the trainable buffer ends so far: gradients before it are complete when the backward pass of what was registered last is
    /// done.
    #[must_use]
    pub fn trainable_end(&self) -> usize {
        self.layout.trainable_len
    }

    /// The finished layout.
    #[must_use]
    pub fn finish(self) -> Layout {
        self.layout
    }
}

/// √n.
#[expect(clippy::cast_precision_loss, reason = "widths are below 2^24")]
pub(crate) fn root(n: usize) -> f32 {
    (n as f32).sqrt()
}

/// The weights.
///
/// On a GPU layers read bf16 copies. The optimizer writes those of trainable parameters with its update; whoever writes into a buffer
/// otherwise calls [`Self::refresh`] before the next forward pass.
#[derive(Debug)]
pub struct Parameters {
    /// f32 (`trainable_len`).
    pub trainable: Tensor,
    /// f32 (`frozen_len`), in host memory on every device.
    pub frozen: Tensor,
    copies: Option<Copies>,
}

/// What layers read on a GPU.
#[derive(Debug)]
struct Copies {
    /// bf16 (`trainable_len`).
    trainable: Tensor,
    /// bf16 (`frozen_len`).
    frozen: Tensor,
}

impl Parameters {
    /// Weights that are all zero.
    ///
    /// # Errors
    /// When the device has no more memory.
    pub fn new(layout: &Layout, device: Device) -> Result<Self> {
        let copy = |len| Tensor::zeros(device, DType::Bf16, &[len]);
        let copies = match device.activations() {
            DType::F32 => None,
            _ => Some(Copies {
                trainable: copy(layout.trainable_len)?,
                frozen: copy(layout.frozen_len)?,
            }),
        };
        Ok(Self {
            trainable: Tensor::zeros(device, DType::F32, &[layout.trainable_len])?,
            frozen: Tensor::zeros(Device::Host, DType::F32, &[layout.frozen_len])?,
            copies,
        })
    }

    /// Rounds all parameters into the copies that layers read, where there are any.
    ///
    /// # Errors
    /// When `stream` is of another device, or it fails.
    pub fn refresh(&mut self, stream: &Stream) -> Result<()> {
        self.refresh_trainable(stream)?;
        let Some(copies) = &mut self.copies else { return Ok(()) };
        copy::cast(stream, self.frozen.view(), copies.frozen.view_mut())
    }

    /// The same for trainable parameters alone, when the others stayed as they were.
    ///
    /// # Errors
    /// When `stream` is of another device, or it fails.
    pub fn refresh_trainable(&mut self, stream: &Stream) -> Result<()> {
        let Some(copies) = &mut self.copies else { return Ok(()) };
        copy::cast(stream, self.trainable.view(), copies.trainable.view_mut())
    }

    /// Trainable parameters in a range of their buffer, and their copies: what an optimizer writes.
    pub(crate) fn update(&mut self, range: &Range<usize>) -> (ViewMut<'_>, Option<ViewMut<'_>>) {
        let (start, len) = (range.start, [range.len()]);
        let copies = self.copies.as_mut().map(|c| c.trainable.view_mut().part(start, &len));
        (self.trainable.view_mut().part(start, &len), copies)
    }

    /// Draws every parameter's initial value. Each has a random stream of its own, keyed by `seed` and its name: a model with
    /// another part, or another order of parts, starts with the same numbers in the parts it shares.
    ///
    /// # Errors
    /// When the device fails.
    pub fn initialise(&mut self, layout: &Layout, seed: u64) -> Result<()> {
        for parameter in &layout.parameters {
            let buffer = if parameter.trainable { &mut self.trainable } else { &mut self.frozen };
            let len = parameter.range.len();
            let values = buffer.view_mut().part(parameter.range.start, &[len]);
            values.write_f32(|values| {
                draw(parameter, seed, values);
                Ok::<(), KernelError>(())
            })?;
        }
        self.refresh(&self.trainable.view().device().compute_stream())
    }

    /// A parameter, to be read.
    #[must_use]
    pub fn view(&self, layout: &Layout, id: ParameterId) -> View<'_> {
        let parameter = layout.get(id);
        let buffer = if parameter.trainable { &self.trainable } else { &self.frozen };
        buffer.view().part(parameter.range.start, &parameter.shape)
    }

    /// A parameter, to be written.
    #[must_use]
    pub fn view_mut(&mut self, layout: &Layout, id: ParameterId) -> ViewMut<'_> {
        let parameter = layout.get(id);
        let buffer = if parameter.trainable { &mut self.trainable } else { &mut self.frozen };
        buffer.view_mut().part(parameter.range.start, &parameter.shape)
    }

    /// A layer's parameter, to compute with: f32 on the host, bf16 on a GPU.
    #[must_use]
    pub fn of(&self, weight: &Weight) -> View<'_> {
        let buffer = match (&self.copies, weight.trainable) {
            (None, true) => &self.trainable,
            (None, false) => &self.frozen,
            (Some(copies), true) => &copies.trainable,
            (Some(copies), false) => &copies.frozen,
        };
        buffer.view().part(weight.start, weight.shape())
    }

    /// A parameter of one element, in f32.
    ///
    /// # Errors
    /// When it cannot be read back from the device.
    pub fn scalar(&self, weight: &Weight) -> Result<f32> {
        let buffer = if weight.trainable { &self.trainable } else { &self.frozen };
        Ok(buffer.view().part(weight.start, &[1]).to_f32()?[0])
    }
}

/// A parameter's initial values.
fn draw(parameter: &Parameter, seed: u64, values: &mut [f32]) {
    match parameter.initial {
        Initial::Constant(value) => values.fill(value),
        Initial::Normal { std } => {
            let mut random = random_stream(seed, &parameter.name);
            for value in values {
                let standard: f32 = StandardNormal.sample(&mut random);
                *value = std * standard;
            }
        }
    }
}

/// The random numbers of one parameter.
fn random_stream(seed: u64, name: &str) -> ChaCha8Rng {
    // FNV-1a: names are few and fixed, so that a collision would show as two equal parameters in a test.
    let fnv = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..16].copy_from_slice(&name.bytes().fold(0xcbf2_9ce4_8422_2325, fnv).to_le_bytes());
    ChaCha8Rng::from_seed(key)
}

/// Gradients of the trainable parameters, in their places. Backward passes add to them.
#[derive(Debug)]
pub struct Gradients {
    /// f32 (`trainable_len`).
    pub flat: Tensor,
}

/// Hears during a backward pass that the gradients before a place of their buffer are complete: nothing adds to them any more in this
/// pass, nor in those of parts that come later.
pub type OnReady<'a> = dyn FnMut(&mut Gradients, usize) + 'a;

impl Gradients {
    /// Gradients that are all zero.
    ///
    /// # Errors
    /// When the device has no more memory.
    pub fn new(layout: &Layout, device: Device) -> Result<Self> {
        Ok(Self { flat: Tensor::zeros(device, DType::F32, &[layout.trainable_len])? })
    }

    /// Sets all of them to zero, as every step begins.
    ///
    /// # Errors
    /// When the device of `stream` is another one, or fails.
    pub fn zero(&mut self, stream: &Stream) -> Result<()> {
        self.flat.view_mut().fill_zero(stream)
    }

    /// The gradient of a trainable parameter, to be read.
    ///
    /// # Panics
    /// When the parameter is frozen: it has none.
    #[must_use]
    pub fn view(&self, layout: &Layout, id: ParameterId) -> View<'_> {
        let parameter = layout.get(id);
        assert!(parameter.trainable, "{} is frozen", parameter.name);
        self.flat.view().part(parameter.range.start, &parameter.shape)
    }

    /// The gradient of a trainable parameter, to be written.
    ///
    /// # Panics
    /// When the parameter is frozen: it has none.
    #[must_use]
    pub fn view_mut(&mut self, layout: &Layout, id: ParameterId) -> ViewMut<'_> {
        let parameter = layout.get(id);
        assert!(parameter.trainable, "{} is frozen", parameter.name);
        self.flat.view_mut().part(parameter.range.start, &parameter.shape)
    }

    /// The gradient of a layer's parameter, to be added to.
    ///
    /// # Panics
    /// When the parameter is frozen: it has none.
    #[must_use]
    pub fn of(&mut self, weight: &Weight) -> ViewMut<'_> {
        assert!(weight.trainable, "a frozen parameter has no gradient");
        self.flat.view_mut().part(weight.start, weight.shape())
    }

    /// The gradients of two parameters at once, the first of which lies before the second.
    ///
    /// # Panics
    /// When one is frozen, or they lie in the other order.
    #[must_use]
    pub fn pair(&mut self, first: &Weight, second: &Weight) -> (ViewMut<'_>, ViewMut<'_>) {
        assert!(first.trainable && second.trainable, "a frozen parameter has no gradient");
        let (before, after) = self.flat.view_mut().split_at(second.start);
        (before.part(first.start, first.shape()), after.part(0, second.shape()))
    }
}
