//! Random contents of a clip or a picture, and their pixels.

use super::design::{DESIGN, FRAMES, SIZE};
use super::draws::Draws;
use super::names::{Figure, Motion, Paint, Pair};
use super::raster::{FRAME_BYTES, SIDE, paint};

/// One shape that moves, grows or shrinks on a torus. Start and phase are uniform, so a single
/// frame does not reveal the motion, and a clip played backwards is a clip of the reverse motion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Clip {
    pub(super) figure: Figure,
    pub(super) motion: Motion,
    pub(super) start: (i32, i32),
    pub(super) radius: i32,
    pub(super) speed: i32,
    pub(super) phase: i32,
    pub(super) background: u8,
}

/// Number of the last frame of a clip.
const LAST: i32 = {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_possible_wrap,
        reason = "a clip has few frames"
    )]
    let frames = FRAMES as i32;
    frames - 1
};

impl Clip {
    /// Draws a clip of a figure and motion with random position, size, speed and background.
    pub(super) fn draw(draws: &mut Draws, figure: Figure, motion: Motion) -> Self {
        Self {
            figure,
            motion,
            start: (start(draws), start(draws)),
            radius: stepped(draws, DESIGN.moving_radius),
            speed: DESIGN.speeds[draws.below(DESIGN.speeds.len())],
            phase: draws.within([0, LAST]),
            background: background(draws),
        }
    }

    /// Centre and radius of the figure in frame `t`.
    pub(super) fn at(&self, t: i32) -> ((i32, i32), i32) {
        let ((x, y), distance) = (self.start, self.speed * t);
        let step = (t + self.phase).rem_euclid(LAST + 1);
        match self.motion {
            Motion::Left => ((x - distance, y), self.radius),
            Motion::Right => ((x + distance, y), self.radius),
            Motion::Up => ((x, y - distance), self.radius),
            Motion::Down => ((x, y + distance), self.radius),
            Motion::Growing => ((x, y), DESIGN.growing_radius + DESIGN.growth * step),
            Motion::Shrinking => ((x, y), DESIGN.growing_radius + DESIGN.growth * (LAST - step)),
        }
    }

    /// Frames without noise, (T, H, W, 3).
    pub(super) fn frames(&self) -> Vec<u8> {
        self.first_frames(LAST + 1)
    }

    /// The first `count` frames of a motion that goes on, without noise, (count, H, W, 3).
    pub(super) fn first_frames(&self, count: i32) -> Vec<u8> {
        let mut frames = Vec::new();
        for t in 0..count {
            let mut frame = vec![self.background; FRAME_BYTES];
            let (centre, radius) = self.at(t);
            paint(&mut frame, self.figure, centre, radius);
            frames.extend(frame);
        }
        frames
    }

    /// Frames with noise, as they are stored, (T, H, W, 3).
    pub(super) fn pixels(&self, draws: &mut Draws) -> Vec<u8> {
        let mut frames = self.frames();
        draws.add_noise(&mut frames);
        frames
    }
}

/// Figure in a picture, with its centre and radius in 1/256 pixel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Object {
    pub(super) figure: Figure,
    pub(super) centre: (i32, i32),
    pub(super) radius: i32,
}

/// Up to four figures, each in its own cell of a 2×2 grid, so that no figure hides more than the
/// edge of another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Picture {
    pub(super) objects: Vec<Object>,
    pub(super) background: u8,
}

/// Largest number of figures in a picture.
pub(super) const CELLS: usize = 4;

impl Picture {
    /// Draws a picture of the given figures (at most [`CELLS`]) with random positions, sizes and
    /// background.
    pub(super) fn draw(draws: &mut Draws, figures: &[Figure]) -> Self {
        let mut cells = [(1, 1), (3, 1), (1, 3), (3, 3)];
        draws.shuffle(&mut cells);
        let jitter = [-DESIGN.picture_jitter, DESIGN.picture_jitter];
        let objects = figures.iter().zip(cells).map(|(&figure, (x, y))| Object {
            figure,
            centre: (x * SIDE / 4 + stepped(draws, jitter), y * SIDE / 4 + stepped(draws, jitter)),
            radius: stepped(draws, DESIGN.picture_radius),
        });
        let objects = objects.collect();
        Self { objects, background: background(draws) }
    }

    /// Pairs of the figures whose shape and colour have names.
    pub(super) fn pairs(&self) -> impl Iterator<Item = Pair> {
        self.objects.iter().filter_map(|object| object.figure.pair())
    }

    /// Picture with noise, as it is stored, (H, W, 3).
    pub(super) fn pixels(&self, draws: &mut Draws) -> Vec<u8> {
        let mut frame = vec![self.background; FRAME_BYTES];
        for object in &self.objects {
            paint(&mut frame, object.figure, object.centre, object.radius);
        }
        draws.add_noise(&mut frame);
        frame
    }
}

fn background(draws: &mut Draws) -> u8 {
    brightness(draws, DESIGN.background)
}

/// Uniform length in a range, in steps of the design.
fn stepped(draws: &mut Draws, [low, high]: [i32; 2]) -> i32 {
    low + DESIGN.step * draws.within([0, (high - low) / DESIGN.step])
}

/// Uniform coordinate on the torus, in steps of the design.
fn start(draws: &mut Draws) -> i32 {
    DESIGN.start_step * draws.within([0, SIDE / DESIGN.start_step - 1])
}

/// Random grey in the range of the design.
pub(super) fn grey(draws: &mut Draws) -> Paint {
    Paint::Grey(brightness(draws, DESIGN.grey))
}

fn brightness(draws: &mut Draws, range: [i32; 2]) -> u8 {
    u8::try_from(draws.within(range)).unwrap_or(u8::MAX)
}

// The centres of the cells are at 1/4 and 3/4 of the side.
const _: () = assert!(SIZE.is_multiple_of(4));
