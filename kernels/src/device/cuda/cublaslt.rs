//! Bindings of cuBLASLt for matrix products. The library is loaded at run time.
//!
//! The bindings are written by hand because cudarc's loader does not know `libcublasLt.so.13`.
//! Constants and structures are those of cublasLt.h, the same in CUDA 12 and CUDA 13.

#![expect(unsafe_code, reason = "calls into a C library that is loaded at run time")]

use std::ffi::{CStr, c_char, c_int, c_void};
use std::path::PathBuf;
use std::ptr::{from_ref, null_mut};

use super::algorithms::{Shape, Words};
use super::{Product, Region, failed};
use crate::compile::Element;
use crate::library::{Libraries, LibraryError, Wanted};
use crate::{KernelError, Result};

/// Size of the workspace of each stream in bytes: NVIDIA's recommendation for Hopper.
pub(super) const WORKSPACE_BYTES: usize = 32 << 20;
/// Bytes of the zeros that replace a bias while a product is timed: 131,072 columns, more than any
/// layer with a bias has.
pub(super) const ZERO_BYTES: usize = 256 << 10;

/// CUDA 12 is preferred: it also works with drivers that do not support CUDA 13.
const CUBLASLT: Wanted = Wanted {
    name: "cuBLASLt",
    files: &["libcublasLt.so.12", "libcublasLt.so.13", "libcublasLt.so"],
    wheels: &["nvidia/cublas/lib", "nvidia/cu13/lib"],
    install: "install it with `pip install nvidia-cublas-cu12` (CUDA 13: `nvidia-cublas`) or with \
              a CUDA toolkit of version 12.4 or newer, or name its file in VLJEPA_CUBLASLT",
};

/// Scale of timed products that must not change their output: 2⁻¹⁰⁰. Two dozen products with this
/// scale change a sum by far less than its rounding (2⁻²⁴).
const NEGLIGIBLE: f32 = f32::from_bits((127 - 100) << 23);

/// `CUBLAS_STATUS_SUCCESS`.
const SUCCESS: c_int = 0;
/// `CUBLAS_COMPUTE_32F`.
const COMPUTE_F32: c_int = 68;
/// `CUDA_R_32F`.
const TYPE_F32: c_int = 0;
/// `CUDA_R_16BF`.
const TYPE_BF16: c_int = 14;
/// `CUBLASLT_EPILOGUE_BIAS`.
const EPILOGUE_BIAS: u32 = 4;

/// `cublasLtMatmulDescAttributes_t`.
mod operation {
    pub(super) const TRANSPOSE_A: i32 = 3;
    pub(super) const TRANSPOSE_B: i32 = 4;
    pub(super) const EPILOGUE: i32 = 7;
    pub(super) const BIAS_POINTER: i32 = 8;
}

/// `cublasLtMatmulPreferenceAttributes_t`.
mod preference {
    pub(super) const WORKSPACE_BYTES: i32 = 1;
    pub(super) const REDUCTIONS: i32 = 3;
    /// `CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_{A,B,C,D}_BYTES`.
    pub(super) const ALIGNMENTS: [i32; 4] = [5, 6, 7, 8];
}

/// `cublasLtReductionScheme_t`: how the partial sums of a split-K product are added.
mod reduction {
    /// Adds in the memory and element type of the output.
    pub(super) const IN_PLACE: u32 = 1;
    /// Adds in the workspace, in f32.
    pub(super) const COMPUTE_TYPE: u32 = 2;
    /// Adds in the workspace, in the element type of the output.
    pub(super) const OUTPUT_TYPE: u32 = 4;
}

/// `cublasLtMatmulHeuristicResult_t`.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C)]
struct Heuristic {
    algorithm: Words,
    workspace_bytes: usize,
    state: c_int,
    waves: f32,
    reserved: [c_int; 4],
}

/// `cublasLtMatmulDesc_t`, `cublasLtMatrixLayout_t`, `cublasLtMatmulPreference_t`,
/// `cublasLtHandle_t`, `cudaStream_t`.
type Opaque = *mut c_void;

macro_rules! functions {
    ($($field:ident = $name:literal: ($($argument:ty),*) -> $result:ty;)+) => {
        /// Function pointers into the library.
        #[derive(Debug, Clone, Copy)]
        struct Functions {
            $($field: unsafe extern "C" fn($($argument),*) -> $result,)+
        }

        impl Functions {
            fn load(library: &libloading::Library) -> Result<Self, String> {
                Ok(Self {
                    $(
                        // SAFETY: the type is the one that cublasLt.h declares for the name. `Blas`
                        // holds the library as long as the pointers.
                        $field: *unsafe {
                            library.get::<unsafe extern "C" fn($($argument),*) -> $result>($name)
                        }
                        .map_err(|_| format!("it has no {}", $name.to_string_lossy()))?,
                    )+
                })
            }
        }
    };
}

functions! {
    version = c"cublasLtGetVersion": () -> usize;
    status_name = c"cublasLtGetStatusName": (c_int) -> *const c_char;
    create = c"cublasLtCreate": (*mut Opaque) -> c_int;
    operation_create = c"cublasLtMatmulDescCreate": (*mut Opaque, c_int, c_int) -> c_int;
    operation_set = c"cublasLtMatmulDescSetAttribute": (Opaque, c_int, *const c_void, usize) -> c_int;
    operation_destroy = c"cublasLtMatmulDescDestroy": (Opaque) -> c_int;
    layout_create = c"cublasLtMatrixLayoutCreate": (*mut Opaque, c_int, u64, u64, i64) -> c_int;
    layout_destroy = c"cublasLtMatrixLayoutDestroy": (Opaque) -> c_int;
    preference_create = c"cublasLtMatmulPreferenceCreate": (*mut Opaque) -> c_int;
    preference_set = c"cublasLtMatmulPreferenceSetAttribute": (Opaque, c_int, *const c_void, usize) -> c_int;
    preference_destroy = c"cublasLtMatmulPreferenceDestroy": (Opaque) -> c_int;
    heuristic = c"cublasLtMatmulAlgoGetHeuristic":
        (Opaque, Opaque, Opaque, Opaque, Opaque, Opaque, Opaque, c_int, *mut Heuristic, *mut c_int) -> c_int;
    check = c"cublasLtMatmulAlgoCheck":
        (Opaque, Opaque, Opaque, Opaque, Opaque, Opaque, *const Words, *mut Heuristic) -> c_int;
    matmul = c"cublasLtMatmul":
        (Opaque, Opaque, *const f32, *const c_void, Opaque, *const c_void, Opaque, *const f32, *const c_void, Opaque,
         *mut c_void, Opaque, *const Words, *mut c_void, usize, Opaque) -> c_int;
}

/// The library cuBLASLt and a handle for one GPU.
#[derive(Debug)]
pub(super) struct Blas {
    functions: Functions,
    path: PathBuf,
    handle: Opaque,
    /// The last field, so that the function pointers never outlive the library.
    _library: libloading::Library,
}

// SAFETY: several threads may use the cuBLASLt handle at once (cuBLAS documentation, "Thread
// Safety").
unsafe impl Send for Blas {}
// SAFETY: as above.
unsafe impl Sync for Blas {}

/// Loads cuBLASLt without a GPU, and returns its version and file.
pub(super) fn version_and_path(libraries: &Libraries) -> Result<(String, PathBuf)> {
    let blas = Blas::load(libraries).map_err(KernelError::Library)?;
    Ok((blas.version_text(), blas.path.clone()))
}

impl Blas {
    /// Loads cuBLASLt and creates a handle for the GPU that is current on this thread.
    ///
    /// # Errors
    /// [`KernelError::Library`] if the library is missing or unusable, or the error of
    /// cublasLtCreate.
    pub(super) fn open(libraries: &Libraries) -> Result<Self> {
        let mut blas = Self::load(libraries).map_err(KernelError::Library)?;
        // SAFETY: the pointer is valid for the call.
        let status = unsafe { (blas.functions.create)(&raw mut blas.handle) };
        let hint =
            "the driver may be too old for this cuBLASLt: update it, or install nvidia-cublas-cu12";
        blas.check("cublasLtCreate", status, hint, || {
            format!("cuBLASLt {} from {}", blas.version_text(), blas.path.display())
        })?;
        Ok(blas)
    }

    fn load(libraries: &Libraries) -> Result<Self, LibraryError> {
        let (library, path) = CUBLASLT.load(libraries.cublaslt.as_deref(), libraries)?;
        let functions =
            Functions::load(&library).map_err(|message| CUBLASLT.unusable(&path, message))?;
        Ok(Self { functions, path, handle: null_mut(), _library: library })
    }

    /// Version number of the library, such as 120901.
    pub(super) fn version(&self) -> usize {
        // SAFETY: the function takes nothing and returns a number.
        unsafe { (self.functions.version)() }
    }

    /// Version as NVIDIA writes it, such as `12.9.1`.
    fn version_text(&self) -> String {
        let version = self.version();
        format!("{}.{}.{}", version / 10_000, version / 100 % 100, version % 100)
    }

    fn check(
        &self,
        call: &'static str,
        status: c_int,
        hint: &'static str,
        what: impl FnOnce() -> String,
    ) -> Result<()> {
        if status == SUCCESS {
            return Ok(());
        }
        // SAFETY: the function returns a NUL-terminated string of the library for any status.
        let name = unsafe { CStr::from_ptr((self.functions.status_name)(status)) };
        Err(failed(call, format!("{} ({})", name.to_string_lossy(), what()), hint))
    }
}

/// cuBLASLt's description of one product. cuBLASLt is column-major: its A is our right operand, its
/// B our left operand, its C and D our output, each transposed.
#[derive(Debug)]
pub(super) struct Matmul<'a> {
    blas: &'a Blas,
    product: Product,
    operation: Opaque,
    /// Layouts of A, of B, and of C and D, which share one.
    layouts: [Opaque; 3],
}

impl<'a> Matmul<'a> {
    /// Describes `product` to cuBLASLt.
    ///
    /// # Errors
    /// If cuBLASLt refuses a size.
    pub(super) fn new(blas: &'a Blas, product: &Product) -> Result<Self> {
        let Product { rows, columns, inner, .. } = *product;
        let nothing = null_mut();
        let mut matmul =
            Self { blas, product: *product, operation: nothing, layouts: [nothing; 3] };
        let stored = |transposed, rows, columns| {
            if transposed { (TYPE_BF16, columns, rows) } else { (TYPE_BF16, rows, columns) }
        };
        let out_type = match product.out_element {
            Element::F32 => TYPE_F32,
            Element::Bf16 => TYPE_BF16,
        };
        let shapes = [
            stored(product.right_transposed, columns, inner),
            stored(product.left_transposed, inner, rows),
            (out_type, columns, rows),
        ];
        for (i, (element, rows, columns)) in shapes.into_iter().enumerate() {
            let (layout, stride) = (&raw mut matmul.layouts[i], rows.cast_signed() as i64);
            // SAFETY: the pointer is valid for the call.
            let status = unsafe {
                (blas.functions.layout_create)(layout, element, rows as u64, columns as u64, stride)
            };
            matmul.check("cublasLtMatrixLayoutCreate", status)?;
        }
        let operation = &raw mut matmul.operation;
        // SAFETY: the pointer is valid for the call.
        let status = unsafe { (blas.functions.operation_create)(operation, COMPUTE_F32, TYPE_F32) };
        matmul.check("cublasLtMatmulDescCreate", status)?;
        matmul.set(operation::TRANSPOSE_A, i32::from(product.right_transposed))?;
        matmul.set(operation::TRANSPOSE_B, i32::from(product.left_transposed))?;
        if let Some(bias) = product.bias {
            matmul.set(operation::EPILOGUE, EPILOGUE_BIAS)?;
            matmul.set(operation::BIAS_POINTER, bias.address)?;
        }
        Ok(matmul)
    }

    fn set<T: Copy>(&self, attribute: i32, value: T) -> Result<()> {
        let (set, value) = (self.blas.functions.operation_set, from_ref(&value).cast());
        // SAFETY: the descriptor is alive, and `value` is of the attribute's type.
        let status = unsafe { set(self.operation, attribute, value, size_of::<T>()) };
        self.check("cublasLtMatmulDescSetAttribute", status)
    }

    fn check(&self, call: &'static str, status: c_int) -> Result<()> {
        let hint = "an earlier kernel may have failed: CUDA_LAUNCH_BLOCKING=1 shows which";
        self.blas.check(call, status, hint, || format!("{:?}", Shape::of(&self.product)))
    }

    /// Whether `algorithm` can compute this product. Alignments are not checked here because they
    /// are part of [`Shape`].
    pub(super) fn supports(&self, algorithm: &Words) -> bool {
        let (mut result, [a, b, c]) = (Heuristic::default(), self.layouts);
        let (blas, check) = (self.blas.handle, self.blas.functions.check);
        // SAFETY: handle, descriptor and layouts are alive, and one result is written.
        let status = unsafe { check(blas, self.operation, a, b, c, c, algorithm, &raw mut result) };
        status == SUCCESS && result.workspace_bytes <= WORKSPACE_BYTES
    }

    /// Between 1 and `count` algorithms, ordered by cuBLASLt's estimate of their time.
    ///
    /// # Errors
    /// If cuBLASLt has no algorithm for this product.
    pub(super) fn candidates(&self, count: usize) -> Result<Vec<Words>> {
        let functions = &self.blas.functions;
        let mut preference = null_mut();
        // SAFETY: the pointer is valid for the call.
        let status = unsafe { (functions.preference_create)(&raw mut preference) };
        self.check("cublasLtMatmulPreferenceCreate", status)?;
        let found = self.preferred(preference, count);
        // SAFETY: the preference was created above and is not used again.
        let status = unsafe { (functions.preference_destroy)(preference) };
        let found = found?;
        self.check("cublasLtMatmulPreferenceDestroy", status)?;
        if found.is_empty() {
            let message = format!("no algorithm for {:?}", Shape::of(&self.product));
            let hint = "cuBLASLt 12.4 or newer is needed";
            return Err(failed("cublasLtMatmulAlgoGetHeuristic", message, hint));
        }
        Ok(found)
    }

    fn preferred(&self, preference: Opaque, count: usize) -> Result<Vec<Words>> {
        let set = |attribute, value: *const c_void, bytes| {
            // SAFETY: the preference is alive, and `value` is of the attribute's type.
            let status = unsafe {
                (self.blas.functions.preference_set)(preference, attribute, value, bytes)
            };
            self.check("cublasLtMatmulPreferenceSetAttribute", status)
        };
        let workspace = WORKSPACE_BYTES as u64;
        set(preference::WORKSPACE_BYTES, from_ref(&workspace).cast(), size_of::<u64>())?;
        let reductions = reductions(self.product.out_element);
        set(preference::REDUCTIONS, from_ref(&reductions).cast(), size_of::<u32>())?;
        // cuBLASLt reads the alignment of the bias from its pointer.
        let [left, right, addend, out, _] = Shape::of(&self.product).alignments;
        let alignments = [right, left, addend, out];
        for (attribute, bytes) in preference::ALIGNMENTS.into_iter().zip(alignments) {
            set(attribute, from_ref(&bytes).cast(), size_of::<u32>())?;
        }
        let (mut found, mut returned) = (vec![Heuristic::default(); count], 0);
        let (wanted, [a, b, c]) = (c_int::try_from(count).unwrap_or(1), self.layouts);
        // SAFETY: handle, descriptor, layouts and preference are alive, and at most `wanted`
        // results are written.
        let status = unsafe {
            (self.blas.functions.heuristic)(
                self.blas.handle,
                self.operation,
                a,
                b,
                c,
                c,
                preference,
                wanted,
                found.as_mut_ptr(),
                &raw mut returned,
            )
        };
        self.check("cublasLtMatmulAlgoGetHeuristic", status)?;
        found.truncate(usize::try_from(returned).unwrap_or(0));
        found.retain(|result| result.state == SUCCESS);
        Ok(found.into_iter().map(|result| result.algorithm).collect())
    }

    /// The product for timing, and the scale of its sums. Timing computes into the product's own
    /// output. If the product overwrites its output, the timed runs may overwrite it first. If the
    /// output is also the addend, it must keep its value: the sums are scaled by [`NEGLIGIBLE`],
    /// and the bias, which is not scaled, is read from `zeros`, the address of [`ZERO_BYTES`]
    /// zeros. A longer bias is left out.
    ///
    /// # Errors
    /// If cuBLASLt refuses the product.
    pub(super) fn timed(&self, zeros: u64) -> Result<(Self, f32)> {
        let in_place = self.product.addend == Some(self.product.out);
        let bias = self.product.bias.map(|bias| match in_place {
            true => Region { address: zeros, ..bias },
            false => bias,
        });
        let bias = bias.filter(|bias| !in_place || bias.bytes <= ZERO_BYTES);
        let timed = Self::new(self.blas, &Product { bias, ..self.product })?;
        Ok((timed, if in_place { NEGLIGIBLE } else { 1.0 }))
    }

    /// Issues the product times `scale` to `stream`. `workspace` is the address of the stream's
    /// workspace of [`WORKSPACE_BYTES`].
    ///
    /// # Errors
    /// If cuBLASLt refuses the product.
    pub(super) fn run(
        &self,
        algorithm: &Words,
        scale: f32,
        workspace: u64,
        stream: *mut c_void,
    ) -> Result<()> {
        let Product { left, right, out, addend, .. } = self.product;
        let (beta, [a, b, c]) = (if addend.is_some() { 1.0f32 } else { 0.0 }, self.layouts);
        let addend = addend.unwrap_or(out).address as *const c_void;
        let out = out.address as *mut c_void;
        // SAFETY: handle, descriptor and layouts are alive, regions are as large as the layouts say
        // (checked by the operation), and the workspace belongs to the stream.
        let status = unsafe {
            (self.blas.functions.matmul)(
                self.blas.handle,
                self.operation,
                &raw const scale,
                right.address as *const c_void,
                a,
                left.address as *const c_void,
                b,
                &raw const beta,
                addend,
                c,
                out,
                c,
                algorithm,
                workspace as *mut c_void,
                WORKSPACE_BYTES,
                stream,
            )
        };
        self.check("cublasLtMatmul", status)
    }
}

impl Drop for Matmul<'_> {
    fn drop(&mut self) {
        let functions = &self.blas.functions;
        // SAFETY: handles that are not null were created by `new` and are destroyed once. An error
        // here cannot be handled.
        unsafe {
            if !self.operation.is_null() {
                (functions.operation_destroy)(self.operation);
            }
            for layout in self.layouts.into_iter().filter(|layout| !layout.is_null()) {
                (functions.layout_destroy)(layout);
            }
        }
    }
}

/// Reduction schemes that a split-K product may use: those that sum in f32.
fn reductions(out: Element) -> u32 {
    match out {
        Element::F32 => reduction::IN_PLACE | reduction::COMPUTE_TYPE | reduction::OUTPUT_TYPE,
        Element::Bf16 => reduction::COMPUTE_TYPE,
    }
}

#[cfg(test)]
mod tests;
