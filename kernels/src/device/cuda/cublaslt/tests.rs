//! Tests of the calls to cuBLASLt, with a fake library that logs them.

#![expect(clippy::disallowed_methods, reason = "tests compile a library")]

use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Blas, Matmul, WORKSPACE_BYTES};
use crate::KernelError;
use crate::compile::Element;
use crate::device::cuda::{Product, Region};
use crate::library::{Libraries, LibraryError};

/// The compiled `fake.c`, and the file to which it logs its calls.
struct Fake {
    _folder: tempfile::TempDir,
    log: PathBuf,
    libraries: Libraries,
}

impl Fake {
    fn new(options: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/device/cuda/cublaslt/fake.c");
        let file = folder.path().join("nvidia/cu13/lib/libcublasLt.so.13");
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        let log = folder.path().join("calls");
        let mut cc = Command::new("cc");
        cc.args(["-shared", "-fPIC", "-o"]).arg(&file);
        cc.arg(format!("-DLOG=\"{}\"", log.display())).args(options).arg(source);
        let compiled = cc.output().unwrap();
        assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
        let libraries = Libraries { cublaslt: Some(file), ..Libraries::default() };
        Self { _folder: folder, log, libraries }
    }

    /// The calls since the last time, as `name a b c`.
    fn calls(&self) -> Vec<String> {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        std::fs::write(&self.log, "").unwrap();
        text.lines().map(str::to_owned).collect()
    }
}

fn product(out_element: Element) -> Product {
    let region = |address| Region { address, bytes: 1 << 20 };
    Product {
        rows: 24,
        columns: 16,
        inner: 40,
        left: region(0x1_0010),
        left_transposed: false,
        right: region(0x2_0080),
        right_transposed: true,
        bias: None,
        out: region(0x3_0004),
        out_element,
        addend: None,
    }
}

#[test]
fn layouts_are_those_of_the_transposed_product() {
    let fake = Fake::new(&[]);
    let blas = Blas::open(&fake.libraries).unwrap();
    assert_eq!((blas.version(), &*blas.version_text()), (130_002, "13.0.2"));
    let bias = Some(Region { address: 0x4_0000, bytes: 32 });
    let matmul = Matmul::new(&blas, &Product { bias, ..product(Element::Bf16) }).unwrap();
    // A is the right operand as it is stored, with one column per row of the tensor.
    let wanted = [
        "layout 14 40 16",
        "layout 14 40 24",
        "layout 14 16 24",
        "operation 68 0 0",
        "operation_set 3 1 4",
        "operation_set 4 0 4",
        "operation_set 7 4 4",
        "operation_set 8 262144 8",
    ];
    assert_eq!(fake.calls(), wanted);
    matmul.run(&[7; 8], 0.5, 0x5_0000, std::ptr::null_mut()).unwrap();
    assert_eq!(fake.calls(), ["matmul 500 0 7", "addresses 131200 65552 196612"]);
}

#[test]
fn timing_a_product_that_adds_to_its_output_leaves_the_output_as_it_is() {
    let fake = Fake::new(&[]);
    let blas = Blas::open(&fake.libraries).unwrap();
    let bias = Some(Region { address: 0x4_0000, bytes: 32 });
    let elsewhere = Region { address: 0x6_0000, bytes: 1 << 20 };
    let bias_calls = |addend: Option<Region>| {
        let product = Product { bias, addend, ..product(Element::Bf16) };
        let add = addend == Some(product.out);
        let matmul = Matmul::new(&blas, &product).unwrap();
        fake.calls();
        let (timed, scale) = matmul.timed(0x7_0000).unwrap();
        assert_eq!((scale * 1e30 < 1.0, scale > 0.0), (add, true));
        timed.run(&[7; 8], scale, 0x5_0000, std::ptr::null_mut()).unwrap();
        let calls = fake.calls();
        // Expected: the scale in thousandths, β, and the first word of the algorithm.
        let wanted = match (add, addend) {
            (true, _) => "matmul 0 1 7",
            (false, Some(_)) => "matmul 1000 1 7",
            (false, None) => "matmul 1000 0 7",
        };
        assert!(calls.iter().any(|call| call == wanted), "{calls:?}");
        let biases = calls.iter().filter_map(|call| call.strip_prefix("operation_set 8 "));
        biases.map(str::to_owned).collect::<Vec<_>>()
    };
    let in_place = Some(product(Element::Bf16).out);
    let zeros = format!("{} 8", 0x7_0000);
    assert_eq!(bias_calls(in_place), [zeros], "a bias would be added once for each timed product");
    let own = [format!("{} 8", 0x4_0000)];
    assert_eq!([bias_calls(None), bias_calls(Some(elsewhere))], [own.clone(), own]);
}

#[test]
fn algorithms_are_asked_for_with_the_alignment_of_each_operand_and_sums_in_f32() {
    let fake = Fake::new(&[]);
    let blas = Blas::open(&fake.libraries).unwrap();
    // Allowed reductions: in f32 in the workspace; with an f32 output also in the output.
    for (element, reductions) in [(Element::Bf16, 2), (Element::F32, 7)] {
        let matmul = Matmul::new(&blas, &product(element)).unwrap();
        fake.calls();
        let found = matmul.candidates(6).unwrap();
        assert_eq!(found.iter().map(|words| words[0]).collect::<Vec<_>>(), [100, 101]);
        let wanted = [
            "preference 0 0 0".to_owned(),
            format!("preference_set 1 {WORKSPACE_BYTES} 8"),
            format!("preference_set 3 {reductions} 4"),
            // A is the right operand, B the left one, C and D the output.
            "preference_set 5 128 4".to_owned(),
            "preference_set 6 16 4".to_owned(),
            "preference_set 7 4 4".to_owned(),
            "preference_set 8 4 4".to_owned(),
            // Three layouts, an operation and a preference are alive.
            "heuristic 6 2 5".to_owned(),
        ];
        assert_eq!(fake.calls(), wanted);
    }
}

#[test]
fn an_algorithm_that_needs_more_than_the_workspace_is_not_supported() {
    let more = format!("-DWORKSPACE={}", WORKSPACE_BYTES + 1);
    let exact = format!("-DWORKSPACE={WORKSPACE_BYTES}");
    for (option, supported) in [(&*exact, true), (&*more, false), ("-DCHECK=15", false)] {
        let fake = Fake::new(&[option]);
        let blas = Blas::open(&fake.libraries).unwrap();
        let matmul = Matmul::new(&blas, &product(Element::F32)).unwrap();
        assert_eq!(matmul.supports(&[7; 8]), supported, "{option}");
    }
}

#[test]
fn a_library_that_the_driver_is_too_old_for_is_named_with_its_version_and_file() {
    let fake = Fake::new(&["-DCREATE=1"]);
    let error = Blas::open(&fake.libraries).unwrap_err().to_string();
    for part in ["cublasLtCreate", "NOT_INITIALIZED", "13.0.2", "libcublasLt.so.13", "driver"] {
        assert!(error.contains(part), "`{part}` is missing in {error}");
    }
    let fake = Fake::new(&["-DFOUND=0"]);
    let blas = Blas::open(&fake.libraries).unwrap();
    let matmul = Matmul::new(&blas, &product(Element::F32)).unwrap();
    let error = matmul.candidates(6).unwrap_err().to_string();
    for part in ["cublasLtMatmulAlgoGetHeuristic", "NOT_SUPPORTED", "24, 16, 40"] {
        assert!(error.contains(part), "`{part}` is missing in {error}");
    }
}

#[test]
fn a_missing_or_wrong_cublaslt_is_an_error_that_says_what_to_install() {
    let open = |cublaslt: &Path| {
        let cublaslt = Some(cublaslt.to_owned());
        Blas::open(&Libraries { cublaslt, ..Libraries::default() }).unwrap_err()
    };
    let error = open(Path::new("/nowhere/libcublasLt.so.13"));
    assert!(matches!(error, KernelError::Library(LibraryError::Missing { .. })), "{error}");
    let error = error.to_string();
    for part in ["/nowhere/libcublasLt.so.13", "nvidia-cublas-cu12", "VLJEPA_CUBLASLT"] {
        assert!(error.contains(part), "`{part}` is missing in {error}");
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("libcublasLt.so.13");
    let mut cc = Command::new("cc");
    cc.args(["-shared", "-x", "c", "/dev/null", "-o"]).arg(&path);
    assert!(cc.status().unwrap().success());
    let error = open(&path).to_string();
    assert!(error.contains("is not a usable cuBLASLt: it has no cublasLtGetVersion"), "{error}");
}
