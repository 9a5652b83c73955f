//! Compiles the GPU kernels of recipes before their runs, and tabulates the resources that each
//! kernel needs.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context;
use rayon::iter::{IntoParallelIterator, ParallelIterator};
use vljepa_kernels::compile::{Cache, Compilation, CompileError, Compiler, Cubin, Kernel, Nvrtc};

use crate::rank::environment::GpuEnvironment;
use crate::rehearsal::rehearse;

/// Compiles the kernels of `recipes` into the cache and returns a table of their resources.
///
/// # Errors
/// Fails if a recipe does not load, NVRTC is missing or rejects a kernel, or the cache cannot be
/// written.
pub fn run(
    recipes: &[PathBuf],
    architecture: &str,
    cache: Option<PathBuf>,
) -> anyhow::Result<String> {
    let environment = GpuEnvironment::read();
    let folder = cache.unwrap_or_else(|| environment.cache.clone());
    let keys = keys(recipes)?;
    let nvrtc = Nvrtc::open(&environment.libraries)?;
    let compiler = Compiler::new(nvrtc, architecture, Some(Cache::new(&folder)));
    let compiled = compile(&compiler, &keys)?;
    let cached = compiled.iter().filter(|kernel| kernel.cached).count();
    let cubins: Vec<Cubin> = compiled.into_iter().map(|kernel| kernel.cubin).collect();
    let mut text = table(&cubins);
    write!(
        text,
        "\n{} kernels for {architecture} with NVRTC {}, {cached} of them from the cache {}",
        cubins.len(),
        compiler.nvrtc().version(),
        folder.display()
    )?;
    Ok(text)
}

/// Returns the kernels that training and evaluating `recipes` in bf16 launch, in fast and in
/// deterministic mode. Each kernel is listed once, sorted by name.
///
/// # Errors
/// Fails if a recipe does not load, or if an operation rejects one of its sizes.
pub fn keys(recipes: &[impl AsRef<Path>]) -> anyhow::Result<Vec<Kernel>> {
    let mut keys = BTreeSet::new();
    for recipe in recipes {
        let path = recipe.as_ref();
        let mut recipe = vljepa_recipes::load(path, &[])?.recipe;
        for deterministic in [false, true] {
            recipe.deterministic = deterministic;
            let rehearsal = rehearse(&recipe, None, &[]);
            keys.extend(rehearsal.with_context(|| path.display().to_string())?.kernels());
        }
    }
    let mut keys: Vec<Kernel> = keys.into_iter().collect();
    keys.sort_by_key(|kernel| kernel.name());
    Ok(keys)
}

/// Compiles each kernel that the cache does not hold, and stores it there.
///
/// # Errors
/// Fails if a kernel cannot be compiled or stored.
pub fn compile(compiler: &Compiler, keys: &[Kernel]) -> Result<Vec<Compilation>, CompileError> {
    let compile = |kernel| {
        let mut compiled = compiler.compile(kernel)?;
        compiled.not_stored.take().map_or(Ok(compiled), Err)
    };
    keys.to_vec().into_par_iter().map(compile).collect()
}

/// Formats one table row per kernel: threads of a block (CubeCL's units of a cube), registers,
/// stack bytes and spilled bytes of a thread, shared-memory bytes of a block, and static counts of
/// instructions.
#[must_use]
pub fn table(cubins: &[Cubin]) -> String {
    let mut text = String::from(
        "| kernel | units | registers | stack | spills | shared | HMMA | LDSM | LDGSTS | LDG.128 | atomics | instructions |\n\
         |---|---|---|---|---|---|---|---|---|---|---|---|\n",
    );
    for Cubin { name, units, shared_bytes, resources: r, instructions: i, .. } in cubins {
        let line = format!(
            "| {name} | {units} | {} | {} | {} | {shared_bytes} | {} | {} | {} | {} | {} | {} |\n",
            r.registers, r.stack, r.spills, i.hmma, i.ldsm, i.ldgsts, i.ldg128, i.atomics, i.all
        );
        text.push_str(&line);
    }
    text
}
