//! Shapes, colours and motions of the set, and the pairs of shape and colour that are held out of
//! training.

use super::design::KINDS;

/// Upright shape that texts can name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Shape {
    Circle,
    Square,
    Triangle,
    Cross,
    Ring,
    Bar,
}

/// Colour of the palette that texts can name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Colour {
    Red,
    Green,
    Blue,
    Yellow,
    Purple,
    Cyan,
}

/// Motion of the shape in a clip. Every motion has a reverse motion, which is the same clip played
/// backwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Motion {
    Left,
    Right,
    Up,
    Down,
    Growing,
    Shrinking,
}

impl Shape {
    pub(super) const ALL: [Self; KINDS] =
        [Self::Circle, Self::Square, Self::Triangle, Self::Cross, Self::Ring, Self::Bar];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Circle => "circle",
            Self::Square => "square",
            Self::Triangle => "triangle",
            Self::Cross => "cross",
            Self::Ring => "ring",
            Self::Bar => "bar",
        }
    }
}

impl Colour {
    pub(super) const ALL: [Self; KINDS] =
        [Self::Red, Self::Green, Self::Blue, Self::Yellow, Self::Purple, Self::Cyan];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Red => "red",
            Self::Green => "green",
            Self::Blue => "blue",
            Self::Yellow => "yellow",
            Self::Purple => "purple",
            Self::Cyan => "cyan",
        }
    }

    pub(super) fn rgb(self) -> [u8; 3] {
        match self {
            Self::Red => [220, 40, 40],
            Self::Green => [40, 190, 60],
            Self::Blue => [50, 80, 230],
            Self::Yellow => [230, 210, 40],
            Self::Purple => [150, 50, 190],
            Self::Cyan => [50, 200, 210],
        }
    }
}

impl Motion {
    pub(super) const ALL: [Self; KINDS] =
        [Self::Left, Self::Right, Self::Up, Self::Down, Self::Growing, Self::Shrinking];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Left => "moving left",
            Self::Right => "moving right",
            Self::Up => "moving up",
            Self::Down => "moving down",
            Self::Growing => "growing",
            Self::Shrinking => "shrinking",
        }
    }

    /// Motion of the same clip played backwards.
    pub(super) fn reversed(self) -> Self {
        match self {
            Self::Left => Self::Right,
            Self::Right => Self::Left,
            Self::Up => Self::Down,
            Self::Down => Self::Up,
            Self::Growing => Self::Shrinking,
            Self::Shrinking => Self::Growing,
        }
    }
}

/// Filled outline, as drawn in a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Figure {
    /// Outline. `None` is a diamond, which no text names.
    pub(super) shape: Option<Shape>,
    pub(super) paint: Paint,
}

/// Colour that fills a figure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Paint {
    Palette(Colour),
    /// Grey of the given brightness, which no text names.
    Grey(u8),
}

impl Figure {
    /// Colour of the palette, or `None` if the figure is grey.
    pub(super) fn colour(self) -> Option<Colour> {
        match self.paint {
            Paint::Palette(colour) => Some(colour),
            Paint::Grey(_) => None,
        }
    }

    /// Shape and colour, or `None` if the figure is grey or a diamond.
    pub(super) fn pair(self) -> Option<Pair> {
        Some(Pair { shape: self.shape?, colour: self.colour()? })
    }

    pub(super) fn rgb(self) -> [u8; 3] {
        match self.paint {
            Paint::Palette(colour) => colour.rgb(),
            Paint::Grey(brightness) => [brightness; 3],
        }
    }
}

impl From<Pair> for Figure {
    fn from(pair: Pair) -> Self {
        Self { shape: Some(pair.shape), paint: Paint::Palette(pair.colour) }
    }
}

/// Shape and colour that texts can name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Pair {
    pub(super) shape: Shape,
    pub(super) colour: Colour,
}

impl Pair {
    /// All 36 pairs, in the order of the shapes.
    pub(super) fn all() -> impl Iterator<Item = Self> {
        Shape::ALL
            .into_iter()
            .flat_map(|shape| Colour::ALL.into_iter().map(move |colour| Self { shape, colour }))
    }

    /// The 30 pairs that training may show.
    pub(super) fn trained() -> Vec<Self> {
        Self::all().filter(|pair| !pair.held_out()).collect()
    }

    /// The 6 pairs that training never shows. They contain each shape once and each colour once.
    pub(super) fn unseen() -> Vec<Self> {
        Self::all().filter(|pair| pair.held_out()).collect()
    }

    /// Whether the pair is held out of training: (shape + colour) mod 6 = 0.
    pub(super) fn held_out(self) -> bool {
        (self.shape as usize + self.colour as usize).is_multiple_of(KINDS)
    }

    /// Name of the pair, such as "red circle".
    pub(super) fn name(self) -> String {
        format!("{} {}", self.colour.name(), self.shape.name())
    }
}
