//! Parameters: names, groups and offsets in two flat buffers, one for trainable and one for frozen
//! parameters.
//!
//! Trainable parameters are stored in the order in which a step's backward pass completes their
//! gradients: loss, Y-encoder, predictor, X-encoder, and within each part the last layer first. So
//! a reduction can start at the front of the buffer while later gradients are still being computed,
//! and an optimizer shard or a checkpoint part is a contiguous range.

use std::ops::Range;

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};
use rayon::iter::{IntoParallelRefIterator, ParallelIterator};
use vljepa_kernels::{DType, Device, Result, Shape, Stream, Tensor, View, ViewMut, copy};
use vljepa_recipes::schema::Initialisation;

use crate::Group;

/// Values of a parameter before training or loading.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Initial {
    /// Every element has this value.
    Constant(f32),
    /// Elements are drawn from a normal distribution with mean zero.
    Normal {
        /// Standard deviation of the distribution.
        std: f32,
    },
}

/// Index of a parameter in its [`Layout`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ParameterId(pub usize);

/// Name, shape and location of one tensor of weights.
#[derive(Debug, Clone, PartialEq)]
pub struct Parameter {
    /// Dotted name, such as `predictor.layers.0.attention.qkv.weight`.
    pub name: String,
    /// Dimensions of the tensor, outermost first.
    pub shape: Vec<usize>,
    /// Group whose learning-rate multiplier applies.
    pub group: Group,
    /// True if the parameter lies in the trainable buffer, false if in the frozen one.
    pub trainable: bool,
    /// Whether weight decay applies: true for matrices, false for vectors and the temperature
    /// (`open_clip`'s rule).
    pub decay: bool,
    /// Elements of the trainable or the frozen buffer that hold the parameter.
    pub range: Range<usize>,
    /// Values before training or loading.
    pub initial: Initial,
}

/// Handle to a parameter, as layers hold it: id, offset and shape. Cheap to copy.
#[derive(Debug, Clone, Copy)]
pub struct Weight {
    id: ParameterId,
    trainable: bool,
    start: usize,
    shape: Shape,
}

impl Weight {
    /// Index of the parameter in the layout.
    #[must_use]
    pub fn id(&self) -> ParameterId {
        self.id
    }

    /// Whether the optimizer updates the parameter.
    #[must_use]
    pub fn trainable(&self) -> bool {
        self.trainable
    }

    /// Dimensions of the parameter, outermost first.
    #[must_use]
    pub fn shape(&self) -> &[usize] {
        self.shape.dims()
    }
}

/// All parameters of a model, and the lengths of their two buffers.
#[derive(Debug, Clone, PartialEq)]
pub struct Layout {
    /// Parameters in the order of registration. For trainable ones this is the order in which
    /// backward completes their gradients.
    pub parameters: Vec<Parameter>,
    /// Length of the trainable buffer in elements, a multiple of 64.
    pub trainable_len: usize,
    /// Length of the frozen buffer in elements, a multiple of 64.
    pub frozen_len: usize,
}

impl Layout {
    /// Alignment of the start of each parameter, in elements: 64 f32 are 256 bytes, the alignment
    /// that vector loads and collectives need.
    pub const ALIGNMENT: usize = 64;

    /// Returns the parameter with index `id`.
    #[must_use]
    pub fn get(&self, id: ParameterId) -> &Parameter {
        &self.parameters[id.0]
    }

    /// Number of weights, without padding, in the parameters that `which` selects.
    pub fn count(&self, which: impl Fn(&Parameter) -> bool) -> usize {
        self.parameters.iter().filter(|p| which(p)).map(|p| p.range.len()).sum()
    }
}

/// Registers the parameters of a model while its parts are constructed.
#[derive(Debug)]
pub struct LayoutBuilder {
    layout: Layout,
    group: Group,
    trainable: bool,
    /// Whether all parameters that are registered next are frozen.
    frozen: bool,
    initialisation: Initialisation,
}

/// Standard deviation of the published models' initial weights (`initializer_range` in their
/// configs).
const PUBLISHED_STD: f32 = 0.02;

impl LayoutBuilder {
    /// Creates an empty layout. Until [`Self::scope`] is called, parameters are trainable and
    /// belong to [`Group::Projections`].
    #[must_use]
    pub fn new(initialisation: Initialisation) -> Self {
        let layout = Layout { parameters: Vec::new(), trainable_len: 0, frozen_len: 0 };
        Self { layout, group: Group::Projections, trainable: true, frozen: false, initialisation }
    }

    /// Sets the group of the parameters registered next, and whether they are trainable.
    pub fn scope(&mut self, group: Group, trainable: bool) -> &mut Self {
        (self.group, self.trainable) = (group, trainable && !self.frozen);
        self
    }

    /// Freezes all parameters that are registered after the next call of [`Self::scope`].
    pub fn freeze(&mut self) {
        self.frozen = true;
    }

    /// Registers a matrix (outputs, inputs). Its standard deviation is initially 0.02 or, with
    /// fan-in initialisation, 1/√inputs.
    pub fn add_matrix(&mut self, name: String, shape: [usize; 2]) -> Weight {
        self.add_normal(name, shape, root(shape[1]).recip())
    }

    /// Registers a table of embeddings. Its standard deviation is initially 0.02 or, with fan-in
    /// initialisation, 1/`scale`, so that embeddings times `scale` have elements near 1.
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

    /// Registers a parameter of any shape with the initial values `initial`.
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
            decay: shape.len() > 1 && ![Group::LogitScale, Group::YAverage].contains(&group),
            range: start..start + len,
            initial,
        });
        Weight { id, trainable, start, shape: Shape::new(shape) }
    }

    /// Current end of the trainable buffer. Gradients before this offset are complete when the
    /// backward pass of the layer registered last is done.
    #[must_use]
    pub fn trainable_end(&self) -> usize {
        self.layout.trainable_len
    }

    /// Returns the layout of all registered parameters.
    #[must_use]
    pub fn finish(self) -> Layout {
        self.layout
    }
}

/// Square root of a width, in f32.
#[expect(clippy::cast_precision_loss, reason = "widths are below 2^24")]
pub(crate) fn root(n: usize) -> f32 {
    (n as f32).sqrt()
}

/// Values of all parameters.
///
/// On a GPU, layers read bf16 copies. The optimizer updates the copies of trainable parameters
/// together with the parameters. Any other code that writes into a buffer must call
/// [`Self::refresh`] before the next forward pass.
#[derive(Debug)]
pub struct Parameters {
    /// Trainable parameters, f32 (`trainable_len`).
    pub trainable: Tensor,
    /// Frozen parameters, f32 (`frozen_len`), in host memory whatever the device.
    pub frozen: Tensor,
    copies: Option<Copies>,
}

/// Copies of the parameters that layers read on a GPU.
#[derive(Debug)]
struct Copies {
    /// Trainable parameters, bf16 (`trainable_len`).
    trainable: Tensor,
    /// Frozen parameters, bf16 (`frozen_len`).
    frozen: Tensor,
}

impl Parameters {
    /// Allocates parameters that are all zero.
    ///
    /// # Errors
    /// If the device runs out of memory.
    pub fn new(layout: &Layout, device: Device) -> Result<Self> {
        Self::padded(layout, device, layout.trainable_len)
    }

    /// Allocates parameters that are all zero, with memory for `room` trainable ones; see
    /// [`Tensor::padded`].
    ///
    /// # Errors
    /// If the device runs out of memory.
    pub fn padded(layout: &Layout, device: Device, room: usize) -> Result<Self> {
        let copy = |len| Tensor::zeros(device, DType::Bf16, &[len]);
        let copies = match device.activations() {
            DType::F32 => None,
            _ => Some(Copies {
                trainable: copy(layout.trainable_len)?,
                frozen: copy(layout.frozen_len)?,
            }),
        };
        Ok(Self {
            trainable: Tensor::padded(device, DType::F32, &[layout.trainable_len], room)?,
            frozen: Tensor::zeros(Device::Host, DType::F32, &[layout.frozen_len])?,
            copies,
        })
    }

    /// Rounds all parameters into the bf16 copies that layers read. Does nothing on the host, where
    /// there are no copies.
    ///
    /// # Errors
    /// If `stream` belongs to another device, or the device fails.
    pub fn refresh(&mut self, stream: &Stream) -> Result<()> {
        self.refresh_trainable(stream)?;
        let Some(copies) = &mut self.copies else { return Ok(()) };
        copy::cast(stream, self.frozen.view(), copies.frozen.view_mut())
    }

    /// Like [`Self::refresh`], but for trainable parameters only. Enough if the frozen ones have
    /// not changed.
    ///
    /// # Errors
    /// If `stream` belongs to another device, or the device fails.
    pub fn refresh_trainable(&mut self, stream: &Stream) -> Result<()> {
        let Some(copies) = &mut self.copies else { return Ok(()) };
        copy::cast(stream, self.trainable.view(), copies.trainable.view_mut())
    }

    /// Moves the average in the first half of `range`, elements of the trainable buffer, toward the
    /// values in the second half: average = `decay`·average + (1 − `decay`)·values.
    ///
    /// # Errors
    /// If `stream` belongs to another device, or the device fails.
    pub fn move_average(
        &mut self,
        stream: &Stream,
        range: &Range<usize>,
        decay: f32,
    ) -> Result<()> {
        let half = range.len() / 2;
        let both = self.trainable.view_mut().part(range.start, &[2, half]);
        copy::moving_average(stream, both, decay)?;
        let Some(copies) = &mut self.copies else { return Ok(()) };
        let average = self.trainable.view().part(range.start, &[half]);
        copy::cast(stream, average, copies.trainable.view_mut().part(range.start, &[half]))
    }

    /// Copies the first half of `range`, elements of the trainable buffer, to the second half, and
    /// rounds the bf16 copies again.
    ///
    /// # Errors
    /// If `stream` belongs to another device, or the device fails.
    pub fn repeat_half(&mut self, stream: &Stream, range: &Range<usize>) -> Result<()> {
        let half = range.len() / 2;
        let first = self.trainable.view().part(range.start, &[half]).to_f32()?.into_owned();
        let second = self.trainable.view_mut().part(range.start + half, &[half]);
        copy::copy(stream, View::from_f32(&first, &[half]), second)?;
        self.refresh_trainable(stream)
    }

    /// Views of the trainable parameters in `range` and of their copies, for an optimizer to write.
    pub(crate) fn update(&mut self, range: &Range<usize>) -> (ViewMut<'_>, Option<ViewMut<'_>>) {
        let (start, len) = (range.start, [range.len()]);
        let copies = self.copies.as_mut().map(|c| c.trainable.view_mut().part(start, &len));
        (self.trainable.view_mut().part(start, &len), copies)
    }

    /// Sets every parameter to its initial values. Each parameter has its own random stream, keyed
    /// by `seed` and the parameter's name. Two models that share a part therefore start with the
    /// same numbers in it, whatever their other parts and the order of registration.
    ///
    /// # Errors
    /// If the device fails.
    pub fn initialise(&mut self, layout: &Layout, seed: u64) -> Result<()> {
        let stream = self.trainable.view().device().compute_stream();
        let mut rest = &layout.parameters[..];
        while !rest.is_empty() {
            let (parameters, others) = rest.split_at(together(rest));
            rest = others;
            let drawn = parameters.par_iter().map(|parameter| draw(parameter, seed));
            for (parameter, values) in parameters.iter().zip(drawn.collect::<Vec<_>>()) {
                let buffer =
                    if parameter.trainable { &mut self.trainable } else { &mut self.frozen };
                let shape = [values.len()];
                let to = buffer.view_mut().part(parameter.range.start, &shape);
                copy::copy(&stream, View::from_f32(&values, &shape), to)?;
            }
        }
        self.refresh(&stream)
    }

    /// Read access to a parameter, in f32.
    #[must_use]
    pub fn view(&self, layout: &Layout, id: ParameterId) -> View<'_> {
        let parameter = layout.get(id);
        let buffer = if parameter.trainable { &self.trainable } else { &self.frozen };
        buffer.view().part(parameter.range.start, &parameter.shape)
    }

    /// Write access to a parameter, in f32.
    #[must_use]
    pub fn view_mut(&mut self, layout: &Layout, id: ParameterId) -> ViewMut<'_> {
        let parameter = layout.get(id);
        let buffer = if parameter.trainable { &mut self.trainable } else { &mut self.frozen };
        buffer.view_mut().part(parameter.range.start, &parameter.shape)
    }

    /// A parameter as layers compute with it: f32 on the host, bf16 on a GPU.
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

    /// Value of a parameter that has one element, in f32.
    ///
    /// # Errors
    /// If the value cannot be read back from the device.
    pub fn scalar(&self, weight: &Weight) -> Result<f32> {
        let buffer = if weight.trainable { &self.trainable } else { &self.frozen };
        Ok(buffer.view().part(weight.start, &[1]).to_f32()?[0])
    }
}

/// Number of the first parameters of a list that are drawn at once: up to 64 Mi elements, which
/// bounds the memory, and at least one.
fn together(parameters: &[Parameter]) -> usize {
    let mut elements = 0;
    let fits = parameters.iter().take_while(|parameter| {
        elements += parameter.range.len();
        elements <= 1 << 26
    });
    fits.count().max(1)
}

/// The initial values of `parameter`.
fn draw(parameter: &Parameter, seed: u64) -> Vec<f32> {
    let count = parameter.range.len();
    match parameter.initial {
        Initial::Constant(value) => vec![value; count],
        Initial::Normal { std } => {
            let random = random_stream(seed, &parameter.name);
            let standard = Distribution::<f32>::sample_iter(StandardNormal, random);
            standard.take(count).map(|value| std * value).collect()
        }
    }
}

/// Random numbers that depend on a seed and a name only.
pub(crate) type RandomStream = ChaCha8Rng;

/// Random stream of what has this `name`.
pub(crate) fn random_stream(seed: u64, name: &str) -> RandomStream {
    // FNV-1a is sufficient: names are few and fixed, and a collision would show in a test as two
    // equal parameters.
    let fnv = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..16].copy_from_slice(&name.bytes().fold(0xcbf2_9ce4_8422_2325, fnv).to_le_bytes());
    ChaCha8Rng::from_seed(key)
}

/// Gradients of the trainable parameters, at the same offsets as the parameters. Backward passes
/// add to them.
#[derive(Debug)]
pub struct Gradients {
    /// All gradients, f32 (`trainable_len`).
    pub flat: Tensor,
}

/// Callback of a backward pass. The gradients before the given offset of the buffer are complete:
/// neither the rest of this backward pass nor those of later parts add to them.
pub type OnReady<'a> = dyn FnMut(&mut Gradients, usize) + 'a;

impl Gradients {
    /// Allocates gradients that are all zero.
    ///
    /// # Errors
    /// If the device runs out of memory.
    pub fn new(layout: &Layout, device: Device) -> Result<Self> {
        Self::padded(layout, device, layout.trainable_len)
    }

    /// Allocates gradients that are all zero, with memory for `room` of them; see
    /// [`Tensor::padded`].
    ///
    /// # Errors
    /// If the device runs out of memory.
    pub fn padded(layout: &Layout, device: Device, room: usize) -> Result<Self> {
        Ok(Self { flat: Tensor::padded(device, DType::F32, &[layout.trainable_len], room)? })
    }

    /// Sets all gradients to zero. Every step starts with this.
    ///
    /// # Errors
    /// If `stream` belongs to another device, or the device fails.
    pub fn zero(&mut self, stream: &Stream) -> Result<()> {
        self.flat.view_mut().fill_zero(stream)
    }

    /// Read access to the gradient of a trainable parameter.
    ///
    /// # Panics
    /// If the parameter is frozen, because it has no gradient.
    #[must_use]
    pub fn view(&self, layout: &Layout, id: ParameterId) -> View<'_> {
        let parameter = layout.get(id);
        assert!(parameter.trainable, "{} is frozen", parameter.name);
        self.flat.view().part(parameter.range.start, &parameter.shape)
    }

    /// Write access to the gradient of a trainable parameter.
    ///
    /// # Panics
    /// If the parameter is frozen, because it has no gradient.
    #[must_use]
    pub fn view_mut(&mut self, layout: &Layout, id: ParameterId) -> ViewMut<'_> {
        let parameter = layout.get(id);
        assert!(parameter.trainable, "{} is frozen", parameter.name);
        self.flat.view_mut().part(parameter.range.start, &parameter.shape)
    }

    /// Gradient of a layer's parameter, for backward passes to add to.
    ///
    /// # Panics
    /// If the parameter is frozen, because it has no gradient.
    #[must_use]
    pub fn of(&mut self, weight: &Weight) -> ViewMut<'_> {
        assert!(weight.trainable, "a frozen parameter has no gradient");
        self.flat.view_mut().part(weight.start, weight.shape())
    }

    /// Gradients of two parameters at once. `first` must lie before `second` in the buffer.
    ///
    /// # Panics
    /// If a parameter is frozen, or `first` lies after `second`.
    #[must_use]
    pub fn pair(&mut self, first: &Weight, second: &Weight) -> (ViewMut<'_>, ViewMut<'_>) {
        assert!(first.trainable && second.trainable, "a frozen parameter has no gradient");
        let (before, after) = self.flat.view_mut().split_at(second.start);
        (before.part(first.start, first.shape()), after.part(0, second.shape()))
    }
}
