//! Tests of the compilation: parameter layouts, the cache, and errors without a usable NVRTC.

#![expect(
    clippy::disallowed_methods,
    reason = "the environment tells tests where NVRTC is, and tests compile a library"
)]

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{
    Cache, Compilation, CompileError, Compiler, Element, Group, Kernel, Nvrtc, Parameters, Scalar,
    pack,
};
use crate::adamw::launch as adamw;
use crate::attention::launch as attention;
use crate::attention::launch::{Pass, Sight};
use crate::layer_norm::launch as norm;
use crate::library::{Libraries, LibraryError};

const SMALL: Kernel = Kernel::Adamw(adamw::Kernel { width: 4, copied: true });
const LARGE: Kernel =
    Kernel::Attention(attention::Kernel { pass: Pass::Keys, head_dim: 64, sight: Sight::Causal });

/// Path of the library that `. kernels/nvrtc.sh` downloads.
fn library() -> PathBuf {
    let path = std::env::var("VLJEPA_NVRTC").expect("VLJEPA_NVRTC is set: `. kernels/nvrtc.sh`");
    PathBuf::from(path)
}

fn open(nvrtc: impl Into<PathBuf>) -> Result<Nvrtc, CompileError> {
    Nvrtc::open(&Libraries { nvrtc: Some(nvrtc.into()), ..Libraries::default() })
}

fn nvrtc() -> Nvrtc {
    open(library()).unwrap()
}

#[test]
fn the_packed_structure_is_the_one_that_the_emitted_source_declares() {
    let group = |element: &str, name: &str, count| Group {
        element: element.to_owned(),
        name: name.to_owned(),
        count,
    };
    let source = LARGE.source().unwrap();
    // Two f32 and three u32 scalars, ten buffers; every group ends at 8 bytes.
    let written = [
        group("float", "scalars_f32", 2),
        group("uint32_t", "scalars_u32", 4),
        group("uint32_t", "static_meta", 10),
    ];
    assert_eq!(source.parameters.groups, written);
    assert_eq!(source.parameters.buffers.len(), 10);
    let scalars =
        [Scalar::F32(1.0), Scalar::F32(2.0), Scalar::U32(3), Scalar::U32(4), Scalar::U32(5)];
    let bytes = pack(10, &scalars);
    assert_eq!(bytes.len(), source.parameters.info_bytes());
    assert_eq!(bytes[4..8], 2.0_f32.to_le_bytes());
    assert_eq!(bytes[16..20], 5_u32.to_le_bytes());
    assert_ne!(pack(10, &scalars[1..]), bytes, "a scalar less is another structure");
    assert_ne!(
        pack(12, &scalars).len(),
        bytes.len(),
        "another number of buffers is another structure"
    );
}

#[test]
fn kernels_never_read_the_lengths_that_launches_leave_zero() {
    for kernel in [SMALL, LARGE] {
        let source = kernel.source().unwrap();
        assert!(!source.text.contains(".static_meta["), "{}", source.name);
    }
}

#[test]
fn equal_keys_emit_equal_sources_under_their_own_name() {
    let one = LARGE.source().unwrap();
    for _ in 0..4 {
        assert!(one == LARGE.source().unwrap(), "two sources of one key differ");
    }
    assert!(!one.text.contains("#line"), "a source contains no path of this machine");
    assert!(one.text.contains(" attention_backward_keys_d64_causal("));
}

#[test]
fn shuffles_name_all_lanes_and_not_those_that_happen_to_be_there() {
    let pass = norm::Pass::Forward { form: norm::Form::Rms };
    let source = Kernel::LayerNorm(norm::Kernel { pass, element: Element::Bf16, width: 1024 });
    let text = source.source().unwrap().text;
    let shuffles: Vec<_> = text.lines().filter(|line| line.contains("__shfl")).collect();
    assert!(shuffles.len() >= 5, "{} shuffles", shuffles.len());
    for line in shuffles {
        assert!(line.contains("__shfl_xor_sync(0xffffffffu, "), "{line}");
    }
    assert!(!text.contains("__activemask"));
}

#[test]
fn a_cubin_comes_out_of_the_cache_and_a_damaged_one_is_compiled_again() {
    let folder = tempfile::tempdir().unwrap();
    let compiler = Compiler::new(nvrtc(), "sm_90a", Some(Cache::new(folder.path())));
    let compile = || {
        let Compilation { cubin, cached, not_stored } = compiler.compile(SMALL).unwrap();
        assert!(not_stored.is_none(), "{not_stored:?}");
        (cubin, cached)
    };
    let (fresh, cached) = compile();
    assert!(!cached && fresh.image.starts_with(b"\x7fELF"));
    assert_eq!(compile(), (fresh.clone(), true));
    let file = std::fs::read_dir(folder.path()).unwrap().next().unwrap().unwrap().path();
    let mut bytes = std::fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&file, bytes).unwrap();
    assert_eq!(compile(), (fresh, false));
}

#[test]
fn a_cache_that_cannot_be_used_delays_a_run_and_does_not_end_it() {
    let folder = tempfile::tempdir().unwrap();
    // A file where a folder is needed.
    std::fs::write(folder.path().join("cache"), "").unwrap();
    let cache = Cache::new(&folder.path().join("cache"));
    let compiler = Compiler::new(nvrtc(), "sm_90a", Some(cache));
    let Compilation { cubin, cached, not_stored } = compiler.compile(SMALL).unwrap();
    assert!(!cached && cubin.image.starts_with(b"\x7fELF"));
    let error = not_stored.expect("nothing can be stored").to_string();
    assert!(error.contains("kernel cache") && error.contains("/cache"), "{error}");
}

#[test]
fn tensor_core_kernels_hold_their_sums_in_registers() {
    let compiler = Compiler::new(nvrtc(), "sm_90a", None);
    let cubin = compiler.compile(LARGE).unwrap().cubin;
    assert!(cubin.instructions.hmma >= 64 && cubin.instructions.ldsm > 0, "{cubin:?}");
    assert_eq!((cubin.resources.spills, cubin.instructions.local), (0, 0));
    let cubin = compiler.compile(SMALL).unwrap().cubin;
    assert_eq!((cubin.instructions.hmma, cubin.instructions.ldg128), (0, 8));
}

#[test]
fn a_missing_library_is_named_with_what_to_install() {
    let missing = Path::new("/nowhere/libnvrtc.so.12");
    let error = open(missing).unwrap_err();
    assert!(matches!(error, CompileError::Library(LibraryError::Missing { .. })));
    let text = error.to_string();
    assert!(text.contains("/nowhere/libnvrtc.so.12") && text.contains("pip install"), "{text}");
}

#[test]
fn a_library_that_is_no_nvrtc_and_missing_headers_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let fake = folder.path().join("libnvrtc.so.12");
    std::fs::write(&fake, "not a library").unwrap();
    let error = open(&fake).unwrap_err();
    assert!(matches!(error, CompileError::Library(LibraryError::Unusable { .. })), "{error}");
    let include = Some(folder.path().to_owned());
    let libraries = Libraries { nvrtc: Some(library()), include, ..Libraries::default() };
    let error = Nvrtc::open(&libraries).unwrap_err();
    assert!(error.to_string().contains("cuda_bf16.h"), "{error}");
}

/// A library that opens another one by its bare name, as NVRTC 13 does; this one does so when it is
/// asked for its version.
const NVRTC_WITH_BUILTINS: &str = r#"
#include <dlfcn.h>
int nvrtcVersion(int* major, int* minor) {
    *major = 99, *minor = 0;
    return dlopen("libnvrtc-builtins.so.99.0", RTLD_NOW) ? 0 : 7;
}
const char* nvrtcGetErrorString(int code) { return "NVRTC_ERROR_BUILTIN_OPERATION_FAILURE"; }
"#;

#[test]
fn builtins_beside_nvrtc_are_found_without_a_search_path() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name);
    std::fs::write(file("cuda_bf16.h"), "").unwrap();
    std::fs::write(file("nvrtc.c"), NVRTC_WITH_BUILTINS).unwrap();
    let compile = |name: &str, source: &Path| {
        let mut cc = Command::new("cc");
        cc.args(["-shared", "-fPIC", "-x", "c"]).arg(source).arg("-o").arg(file(name));
        assert!(cc.arg(format!("-Wl,-soname,{name}")).status().unwrap().success());
    };
    compile("libnvrtc.so.99", &file("nvrtc.c"));
    let libraries = Libraries {
        nvrtc: Some(file("libnvrtc.so.99")),
        include: Some(folder.path().to_owned()),
        ..Libraries::default()
    };
    let error = Nvrtc::open(&libraries).unwrap_err().to_string();
    assert!(error.contains("BUILTIN_OPERATION_FAILURE"), "{error}");
    compile("libnvrtc-builtins.so.99.0", Path::new("/dev/null"));
    let nvrtc = Nvrtc::open(&libraries).unwrap();
    assert_eq!((nvrtc.version(), nvrtc.path()), ("99.0".to_owned(), &*file("libnvrtc.so.99")));
}

#[test]
fn the_cache_of_the_driver_is_left_out_where_nvrtc_has_it() {
    let nvrtc = nvrtc();
    let version = nvrtc.version();
    assert!(version.starts_with("12.9") || version.starts_with("13."), "{version}");
    assert!(nvrtc.options().contains(&"--no-cache"), "{:?}", nvrtc.options());
}

#[test]
fn an_architecture_that_nvrtc_does_not_know_is_refused_with_those_it_does() {
    for architecture in ["sm_20", "gfx942", ""] {
        let error = Compiler::new(nvrtc(), architecture, None).compile(SMALL).unwrap_err();
        assert!(matches!(error, CompileError::Architecture { .. }), "{error}");
        assert!(error.to_string().contains("sm_90"), "{error}");
    }
}

#[test]
fn renumbering_leaves_the_vectors_of_inline_ptx_alone() {
    let kernel = attention::Kernel { pass: Pass::KeysFast, head_dim: 64, sight: Sight::Full };
    let source = Kernel::Attention(kernel).source().unwrap();
    assert!(source.text.contains("red.global.add.v2.f32 "), "{}", source.text);
}

#[test]
fn products_of_warpgroups_leave_room_for_their_blocks() {
    let compiler = Compiler::new(nvrtc(), "sm_90a", None);
    for sight in [Sight::Full, Sight::Causal] {
        // Two blocks of 256 threads have 128 registers for each.
        for (pass, products, registers) in
            [(Pass::ForwardWarpgroups, 8, 128), (Pass::KeysWarpgroups, 24, 255)]
        {
            let kernel = Kernel::Attention(attention::Kernel { pass, head_dim: 64, sight });
            let cubin = compiler.compile(kernel).unwrap().cubin;
            assert_eq!(cubin.instructions.hgmma, products, "{}", cubin.name);
            let resources = cubin.resources;
            assert!(resources.registers <= registers, "{}: {resources:?}", cubin.name);
            assert_eq!((resources.spills, cubin.instructions.local), (0, 0), "{}", cubin.name);
        }
    }
}

#[test]
fn vectors_of_a_kernel_begin_at_multiples_of_their_size_up_to_16_bytes() {
    let parameters = |buffers: &[&str]| {
        let buffers = buffers.iter().map(|&b| b.to_owned()).collect();
        Parameters { buffers, groups: Vec::new() }.alignments()
    };
    let types = ["float", "float_4 const", "float_8", "__nv_bfloat16", "__nv_bfloat16_8 const"];
    assert_eq!(parameters(&types), [4, 16, 16, 2, 16]);
    assert_eq!(parameters(&["uint32_t", "uint32_t_4", "uint8_t", "uint64_t const"]), [4, 16, 1, 8]);
    let cast = crate::rows::launch::Pass::Cast;
    let cast = crate::rows::launch::Kernel { pass: cast, element: Element::F32, lanes: 4 };
    let source = Kernel::Rows(cast).source().unwrap();
    assert_eq!(source.parameters.alignments(), [16, 8]);
}

#[test]
fn heads_of_encoders_that_are_not_trained_stay_in_registers() {
    let compiler = Compiler::new(nvrtc(), "sm_90a", None);
    let sights = [Sight::Full, Sight::Causal, Sight::Window];
    let keys = attention::FORWARD_HEAD_DIMS.into_iter().flat_map(|head_dim| {
        sights.map(|sight| attention::Kernel { pass: Pass::Forward, head_dim, sight })
    });
    for key in keys {
        let cubin = compiler.compile(Kernel::Attention(key)).unwrap().cubin;
        assert_eq!((cubin.resources.spills, cubin.instructions.local), (0, 0), "{}", cubin.name);
        assert!(cubin.instructions.hmma > 0, "{}", cubin.name);
    }
}

/// CubeCL cannot say that a block of PTX writes its results before it has read all operands, so the
/// compiler could give both one register.
#[test]
fn products_of_warpgroups_write_no_register_that_they_have_still_to_read() {
    let nvrtc = nvrtc();
    let kernel = attention::Kernel { pass: Pass::KeysWarpgroups, head_dim: 64, sight: Sight::Full };
    let source = Kernel::Attention(kernel).source().unwrap();
    let ptx = nvrtc.compile(&source.name, &source.text, "sm_90a").unwrap().ptx;
    let blocks = ptx.split("// begin inline asm").skip(1);
    let blocks = blocks.map(|block| block.split("// end inline asm").next().unwrap());
    let registers = |text: &str| -> Vec<String> {
        let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '%');
        words.filter(|word| word.starts_with('%')).map(str::to_owned).collect()
    };
    let (mut products, mut moves) = (0, 0);
    for block in blocks.filter(|block| block.contains("wgmma.mma_async")) {
        let (mut written, mut read) = (HashSet::new(), HashSet::new());
        for statement in block.split(';') {
            if let Some((_, operands)) = statement.split_once("wgmma.mma_async") {
                let (sums, others) = operands.split_once('}').unwrap();
                written.extend(registers(sums));
                read.extend(registers(others));
                products += 1;
            } else if let Some((_, operands)) = statement.split_once("mov.f32") {
                let [to, from] = registers(operands).try_into().unwrap();
                // A sum of a loop may keep its register, which is then moved to itself.
                if to != from {
                    read.insert(from);
                }
                written.insert(to);
                moves += 1;
            }
        }
        assert!(matches!(written.len(), 32 | 64) && written.is_disjoint(&read), "{block}");
    }
    assert_eq!((products, moves), (24, 64));
}
