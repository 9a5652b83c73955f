//! The GPU kernels of all recipes in the folder compile, and use the resources that the committed
//! table records.

use std::path::PathBuf;

use vljepa_kernels::compile::{Cache, Compiler, Cubin, Nvrtc};
use vljepa_worker::compile::{compile, keys, table};
use vljepa_worker::rank::environment::GpuEnvironment;

use crate::programs::{command, repository, text};

fn recipes() -> Vec<PathBuf> {
    let files = std::fs::read_dir(repository().join("recipes")).unwrap();
    let mut recipes: Vec<PathBuf> = files.map(|file| file.unwrap().path()).collect();
    recipes.retain(|path| path.extension().is_some_and(|e| e == "yaml"));
    // A programme has no kernels but those of its recipes.
    recipes.retain(|path| !vljepa_recipes::is_programme(path).unwrap());
    recipes.sort();
    recipes
}

fn cubins() -> Vec<Cubin> {
    let libraries = GpuEnvironment::read().libraries;
    assert!(libraries.nvrtc.is_some(), "VLJEPA_NVRTC is not set; run `. kernels/nvrtc.sh`");
    let nvrtc = Nvrtc::open(&libraries).unwrap();
    let cache = std::env::temp_dir().join("vljepa-test-cubins");
    let compiler = Compiler::new(nvrtc, "sm_90a", Some(Cache::new(&cache)));
    let compiled = compile(&compiler, &keys(&recipes()).unwrap()).unwrap();
    compiled.into_iter().map(|kernel| kernel.cubin).collect()
}

#[test]
fn the_kernels_of_all_recipes_need_what_the_committed_table_says() {
    let table = table(&cubins());
    let path = repository().join("kernels/cubins.md");
    let committed = std::fs::read_to_string(&path).unwrap();
    let start = committed.find("| kernel |").expect("kernels/cubins.md has the table");
    let written = std::env::temp_dir().join("vljepa-cubins.md");
    std::fs::write(&written, format!("{}{table}", &committed[..start])).unwrap();
    let changed: Vec<_> = table.lines().filter(|line| !committed.contains(line)).collect();
    assert!(
        committed[start..] == table,
        "kernels changed; check these lines, then copy {} to {}:\n{}",
        written.display(),
        path.display(),
        changed.join("\n")
    );
}

/// Returns whether a kernel computes matrix products.
fn is_product(name: &str) -> bool {
    let products = ["nce_statistics", "nce_weights", "nce_product"];
    name.starts_with("attention_") || products.iter().any(|product| name.starts_with(product))
}

#[test]
fn tensor_core_kernels_multiply_on_tensor_cores_and_nothing_spills() {
    let cubins = cubins();
    let products: Vec<_> =
        cubins.iter().filter(|c| c.shared_bytes > 0 && is_product(&c.name)).collect();
    assert!(products.len() >= 20, "{} kernels", products.len());
    for cubin in products {
        let counts = cubin.instructions;
        assert!(counts.hmma > 0 && counts.ldsm > 0 && counts.ldgsts > 0, "{cubin:?}");
    }
    for cubin in &cubins {
        let resources = cubin.resources;
        assert_eq!((resources.spills, resources.stack), (0, 0), "{}", cubin.name);
        assert!(cubin.instructions.local == 0 && resources.registers <= 255, "{}", cubin.name);
    }
}

/// Runs `vljepa-worker compile recipes/quickstart.yaml` with `arguments` and the library `nvrtc`.
/// Returns whether it succeeded, and its output.
fn compile_quickstart(arguments: &[&str], nvrtc: Option<&str>) -> (bool, String) {
    let mut command = command("vljepa-worker");
    command.args(["compile", "recipes/quickstart.yaml"]).args(arguments);
    if let Some(nvrtc) = nvrtc {
        command.env("VLJEPA_NVRTC", nvrtc);
    }
    let output = command.output().unwrap();
    let said = text(&output);
    assert!(!said.contains("panicked"), "{said}");
    (output.status.success(), said)
}

#[test]
fn compiling_ahead_fills_the_cache_that_a_second_time_reads() {
    let cache = tempfile::tempdir().unwrap();
    let arguments = ["--cache", cache.path().to_str().unwrap()];
    let (ok, first) = compile_quickstart(&arguments, None);
    assert!(ok && first.contains(" 0 of them from the cache"), "{first}");
    assert!(first.contains("| attention_forward_d16_full |"), "{first}");
    let (ok, second) = compile_quickstart(&arguments, None);
    let kernels = first.lines().filter(|line| line.starts_with("| ")).count() - 1;
    assert!(ok && second.contains(&format!("{kernels} of them from the cache")), "{second}");
    let table = |said: &str| said.lines().filter(|l| l.starts_with("| ")).collect::<String>();
    assert_eq!(table(&first), table(&second));
}

#[test]
fn a_missing_nvrtc_a_wrong_architecture_and_an_unwritable_cache_are_named() {
    let (ok, said) = compile_quickstart(&[], Some("/nowhere/libnvrtc.so.12"));
    assert!(!ok && said.contains("/nowhere/libnvrtc.so.12") && said.contains("pip install"));
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().to_str().unwrap();
    let (ok, said) = compile_quickstart(&["--architecture", "sm_20", "--cache", cache], None);
    assert!(!ok && said.contains("sm_20") && said.contains("sm_90"), "{said}");
    let file = folder.path().join("file");
    std::fs::write(&file, "").unwrap();
    let (ok, said) = compile_quickstart(&["--cache", file.to_str().unwrap()], None);
    assert!(!ok && said.contains(file.to_str().unwrap()), "{said}");
}
