//! Runs two training steps of the paper's model (1.36 billion parameters, random weights) on two
//! images, on the host, and prints the time of each part and the memory in use. Needs 16 GB of
//! memory.
//!
//! `cargo run --release -p vljepa-model --example full_width_step [IMAGES]`

use std::io::Write;
use std::time::Instant;

use vljepa_kernels::{Arena, Device, Packed, Stream, Tensor, global_norm};
use vljepa_model::{AdamW, Context, Gathered, Gradients, Keep, Objective, Parameters, VlJepa};
use vljepa_recipes::schema::{Loss, Model, Optimizer};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let images = std::env::args().nth(1).map_or(Ok(2), |n| n.parse())?;
    let mut report = Report { since: Instant::now() };
    let model = VlJepa::new(&Model::default(), &Loss::default(), Device::Host)?;
    let mut parameters = Parameters::new(model.layout(), Device::Host)?;
    parameters.initialise(model.layout(), 0)?;
    report.line(&format!("{} parameters drawn", model.layout().count(|_| true)))?;
    let mut gradients = Gradients::new(model.layout(), Device::Host)?;
    let mut optimizer = AdamW::new(model.layout(), Device::Host, &Optimizer::default())?;
    let arena = Arena::new(Device::Host, 8 << 30);
    let cx = Context { stream: &Stream::Host, arena: &arena };
    for _ in 0..2 {
        let started = Instant::now();
        gradients.zero(&Stream::Host)?;
        let loss = step(cx, &model, &parameters, &mut gradients, images, &mut report)?;
        let (mut sum, mut control) = (cx.take(&[1])?, cx.take(&[2])?);
        global_norm::squared_sum(cx.stream, gradients.flat.view(), sum.view_mut())?;
        global_norm::control(cx.stream, sum.view(), 1.0, control.view_mut())?;
        optimizer.step(cx, &mut parameters, &gradients, control.view(), 5e-5)?;
        report.line("optimizer")?;
        let (took, held) = (started.elapsed().as_secs_f64(), arena.held_bytes() >> 20);
        let norm = sum.to_f32()?[0].sqrt();
        let out = &mut std::io::stdout();
        writeln!(out, "step: loss {loss:.4}, gradient norm {norm:.3}, {took:.1} s")?;
        writeln!(out, "arena {held} MiB, peak memory {}", peak_memory())?;
    }
    Ok(())
}

/// Forward and backward pass over `images` grey images, each with a query of 8 tokens and a target
/// of 32 tokens.
fn step(
    cx: Context<'_>,
    model: &VlJepa,
    parameters: &Parameters,
    gradients: &mut Gradients,
    images: usize,
    report: &mut Report,
) -> Result<f64, Box<dyn std::error::Error>> {
    let frames = frames(images);
    let (query, target) = (text(images, 8)?, text(images, 32)?);
    let visual = model.x_encoder.forward(cx, parameters, frames.view(), Keep::EVERYTHING)?;
    report.line("x_encoder forward")?;
    let predicted = model.predictor.forward(cx, parameters, &visual, &query, Keep::EVERYTHING)?;
    report.line("predictor forward")?;
    let embedded = model.y_encoder.forward(cx, parameters, &target, Keep::EVERYTHING)?;
    report.line("y_encoder forward")?;
    let Objective::InfoNce(info_nce) = model.objective else {
        return Err("the default loss is InfoNCE".into());
    };
    let gathered = Gathered {
        predicted: predicted.embedding.view(),
        target: embedded.embedding.view(),
        hashes: None,
        rows: 0..images,
    };
    let alpha = model.alpha(parameters)?;
    let statistics = info_nce.statistics(cx, alpha, &gathered)?;
    let (r, c) = (statistics.predicted_lse.view(), statistics.target_lse.view());
    let d = info_nce.backward(cx, alpha, &gathered, r, c, gradients)?;
    let (saved, d_target) = (embedded.saved, d.target.view());
    model.y_encoder.backward(cx, parameters, saved, d_target, gradients, &mut |_, _| {})?;
    report.line("y_encoder backward")?;
    let (saved, d_predicted) = (predicted.saved, d.predicted.view());
    model.predictor.backward(cx, parameters, saved, d_predicted, gradients, &mut |_, _| {})?;
    report.line("predictor backward")?;
    Ok(info_nce.loss(&statistics, images)?)
}

/// Images that differ in the width of their stripes.
fn frames(images: usize) -> Tensor {
    let side = Model::default().image_size;
    let pixel = |i: usize| {
        let (image, at) = (i / (side * side * 3), i / 3 % side);
        if (at / (4 << image.min(5))).is_multiple_of(2) { 32 } else { 224 }
    };
    let pixels = (0..images * side * side * 3).map(pixel).collect();
    Tensor::from_u8(pixels, &[images, 1, side, side, 3])
}

/// Texts of `len` tokens that share no token.
fn text(rows: usize, len: usize) -> Result<Packed, Box<dyn std::error::Error>> {
    let ids = (0..rows * len).map(|i| i32::try_from(1000 + 37 * i)).collect::<Result<_, _>>()?;
    let ends = (0..=rows).map(|row| i32::try_from(row * len)).collect::<Result<_, _>>()?;
    Ok(Packed::new(Device::Host, ids, ends)?)
}

/// Prints the time since the previous line.
struct Report {
    since: Instant,
}

impl Report {
    fn line(&mut self, part: &str) -> std::io::Result<()> {
        let took = self.since.elapsed().as_secs_f64();
        self.since = Instant::now();
        writeln!(std::io::stdout(), "{part}: {took:.2} s")
    }
}

/// Peak resident memory of the process, from Linux's `/proc/self/status`.
fn peak_memory() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"));
    line.map_or_else(|| "unknown".to_owned(), |l| l.trim().to_owned())
}
