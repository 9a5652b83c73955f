//! Compiling the GPU kernels of recipes ahead: what each needs of the machine, as a table.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::Context;
use rayon::iter::{IntoParallelIterator, ParallelIterator};
use vljepa_kernels::compile::{Cache, CompileError, Compiler, Cubin, Kernel, Nvrtc};

use crate::environment::GpuEnvironment;
use crate::rehearsal::rehearse;

/// Compiles the kernels of `recipes` into the cache and says what they need.
///
/// # Errors
/// When a recipe does not load, NVRTC is missing or refuses a kernel, or the cache cannot be written.
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
    let cached = compiled.iter().filter(|(_, cached)| *cached).count();
    let cubins: Vec<Cubin> = compiled.into_iter().map(|(cubin, _)| cubin).collect();
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

/// The kernels that training and evaluating `recipes` in bf16 launch, in the fast mode and in the
/// deterministic one, each once, in the order of their names.
///
/// # Errors
/// When a recipe does not load, or a size of it is refused.
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

/// The cubin of each kernel, and whether it came out of the cache.
///
/// # Errors
/// When one cannot be compiled, or the cache cannot be read or written.
pub fn compile(compiler: &Compiler, keys: &[Kernel]) -> Result<Vec<(Cubin, bool)>, CompileError> {
    keys.to_vec().into_par_iter().map(|kernel| compiler.compile(kernel)).collect()
}

/// One line per kernel: units of a cube, registers and spilled bytes of a unit, shared bytes of a cube, and static counts of the
/// instructions that tell what it is made of.
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
