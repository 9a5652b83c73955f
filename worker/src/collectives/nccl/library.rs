//! The NCCL library, loaded at run time, and bindings for the functions that are used.
//!
//! The bindings are written by hand: cudarc's loader never tries `libnccl.so.2`, the only name in
//! NVIDIA's wheel, and panics if the library is missing.

#![expect(unsafe_code, reason = "calls into a C library that is loaded at run time")]

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use vljepa_kernels::library::{Libraries, Wanted};

use crate::error::nccl::{NcclError, hint};

/// Value of `ncclSuccess` in nccl.h.
const SUCCESS: c_int = 0;
/// Value of `ncclInProgress` in nccl.h: a non-blocking call is not done yet.
const IN_PROGRESS: c_int = 7;
/// Value of `NCCL_CONFIG_UNDEF_INT` in nccl.h: the library chooses the setting.
const UNDEFINED: c_int = c_int::MIN;
/// Value of `NCCL_UNIQUE_ID_BYTES` in nccl.h.
const ID_BYTES: usize = 128;
/// Version 2.18, whose `ncclConfig_t` is passed. Newer libraries use defaults for the fields that
/// were added later.
const CONFIG_VERSION: c_uint = 21_800;

const NCCL: Wanted = Wanted {
    name: "NCCL",
    files: &["libnccl.so.2", "libnccl.so"],
    wheels: &["nvidia/nccl/lib"],
    install: "several GPUs need NCCL 2.18 or newer: install it (`apt-get install libnccl2`, or \
              `pip install nvidia-nccl-cu12`), or name the file in VLJEPA_NCCL",
};

/// Handle of a communicator, `ncclComm_t`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(transparent)]
pub(super) struct Handle(*mut c_void);

impl Handle {
    const NULL: Self = Self(std::ptr::null_mut());
}

// SAFETY: a communicator may be used from any thread, by one thread at a time; its owner keeps it
// in a mutex.
unsafe impl Send for Handle {}

/// Element types of collectives that are used, from `ncclDataType_t`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Element {
    /// One byte, `ncclUint8`; any data.
    Byte = 1,
    /// A 32-bit float, `ncclFloat32`.
    F32 = 7,
}

/// Id by which the ranks of a communicator find each other, `ncclUniqueId`.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Id([u8; ID_BYTES]);

impl std::fmt::Debug for Id {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Id({})", self.text())
    }
}

impl Id {
    /// Encodes the id as base64 for the control connection.
    #[must_use]
    pub fn text(&self) -> String {
        STANDARD.encode(self.0)
    }

    /// Decodes an id from the text that [`Self::text`] returns.
    ///
    /// # Errors
    /// Fails if the text is not base64 of 128 bytes.
    pub fn parse(text: &str) -> Result<Self, NcclError> {
        let bytes = STANDARD.decode(text).ok().and_then(|bytes| bytes.try_into().ok());
        bytes.map(Self).ok_or_else(|| NcclError::Id { found: text.to_owned() })
    }
}

/// Configuration of a communicator, `ncclConfig_t` of NCCL 2.18.
#[repr(C)]
struct Config {
    size: usize,
    magic: c_uint,
    version: c_uint,
    blocking: c_int,
    cga_cluster_size: c_int,
    min_ctas: c_int,
    max_ctas: c_int,
    net_name: *const c_char,
    split_share: c_int,
}

macro_rules! functions {
    ($($field:ident = $name:literal: ($($argument:ty),*) -> $result:ty;)+) => {
        /// Pointers to the functions of the library.
        #[derive(Debug, Clone, Copy)]
        struct Functions {
            $($field: unsafe extern "C" fn($($argument),*) -> $result,)+
        }

        impl Functions {
            fn load(library: &libloading::Library) -> Result<Self, String> {
                Ok(Self {
                    $(
                        // SAFETY: the type is the one that nccl.h declares for the name, and the
                        // library is never unloaded.
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
    version = c"ncclGetVersion": (*mut c_int) -> c_int;
    unique_id = c"ncclGetUniqueId": (*mut Id) -> c_int;
    init = c"ncclCommInitRankConfig": (*mut Handle, c_int, Id, c_int, *mut Config) -> c_int;
    state = c"ncclCommGetAsyncError": (Handle, *mut c_int) -> c_int;
    finalize = c"ncclCommFinalize": (Handle) -> c_int;
    destroy = c"ncclCommDestroy": (Handle) -> c_int;
    abort = c"ncclCommAbort": (Handle) -> c_int;
    error_name = c"ncclGetErrorString": (c_int) -> *const c_char;
    last_error = c"ncclGetLastError": (Handle) -> *const c_char;
    all_gather = c"ncclAllGather":
        (*const c_void, *mut c_void, usize, c_int, Handle, *mut c_void) -> c_int;
    all_reduce = c"ncclAllReduce":
        (*const c_void, *mut c_void, usize, c_int, c_int, Handle, *mut c_void) -> c_int;
    reduce_scatter = c"ncclReduceScatter":
        (*const c_void, *mut c_void, usize, c_int, c_int, Handle, *mut c_void) -> c_int;
    broadcast = c"ncclBroadcast":
        (*const c_void, *mut c_void, usize, c_int, c_int, Handle, *mut c_void) -> c_int;
}

/// The loaded NCCL library.
#[derive(Debug)]
pub struct Library {
    functions: Functions,
    path: PathBuf,
    version: c_int,
}

/// Progress of a call that may return before it is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    Done,
    Pending,
}

/// Input and output of a collective, as addresses on the GPU.
#[derive(Debug, Clone, Copy)]
pub(super) struct Buffers {
    pub(super) from: u64,
    pub(super) to: u64,
    /// Number of elements, as the collective counts them.
    pub(super) count: usize,
    pub(super) element: Element,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Call {
    AllGather,
    AllReduceSum,
    ReduceScatterSum,
    Broadcast { root: usize },
}

impl Library {
    /// Loads NCCL from the file that `libraries` names, otherwise from the usual places. The
    /// library stays loaded until the process ends.
    ///
    /// # Errors
    /// Fails if the library is missing, too old or another library. The message lists the files
    /// that were tried and the package to install.
    pub fn open(libraries: &Libraries) -> Result<&'static Self, NcclError> {
        let (library, path) = NCCL.load(libraries.nccl.as_deref(), libraries)?;
        let functions =
            Functions::load(&library).map_err(|message| NCCL.unusable(&path, message))?;
        let mut found = Self { functions, path: path.clone(), version: 0 };
        // SAFETY: the pointer is valid for the call.
        let code = unsafe { (functions.version)(&raw mut found.version) };
        found.check("ncclGetVersion", code, Handle::NULL)?;
        // An older library would write beyond the end of its shorter `ncclConfig_t`.
        if found.version < CONFIG_VERSION.cast_signed() {
            let message = format!("it is NCCL {}, and 2.18 or newer is needed", found.version());
            return Err(NCCL.unusable(&path, message).into());
        }
        // Dropping the library would unload the functions behind the pointers.
        Box::leak(Box::new(library));
        Ok(Box::leak(Box::new(found)))
    }

    /// Returns the version, such as `2.27.7`.
    #[must_use]
    pub fn version(&self) -> String {
        let Self { version, .. } = self;
        format!("{}.{}.{}", version / 10_000, version / 100 % 100, version % 100)
    }

    /// Returns the file that was loaded.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Creates a new id. From then on this process listens for the other ranks.
    ///
    /// # Errors
    /// Fails if NCCL finds no network interface to listen on.
    pub fn unique_id(&self) -> Result<Id, NcclError> {
        let mut id = Id([0; ID_BYTES]);
        // SAFETY: the pointer is valid for the call, which writes 128 bytes.
        let code = unsafe { (self.functions.unique_id)(&raw mut id) };
        self.check("ncclGetUniqueId", code, Handle::NULL)?;
        Ok(id)
    }

    /// Begins to create a communicator whose calls return before they are done.
    pub(super) fn init(
        &self,
        id: Id,
        rank: c_int,
        world_size: c_int,
    ) -> Result<(Handle, Progress), NcclError> {
        let mut config = Config {
            size: size_of::<Config>(),
            magic: 0xcafe_beef,
            version: CONFIG_VERSION,
            blocking: 0,
            cga_cluster_size: UNDEFINED,
            min_ctas: UNDEFINED,
            max_ctas: UNDEFINED,
            net_name: std::ptr::null(),
            split_share: UNDEFINED,
        };
        let mut handle = Handle::NULL;
        // SAFETY: both pointers are valid for the call; the library copies the config.
        let code = unsafe {
            (self.functions.init)(&raw mut handle, world_size, id, rank, &raw mut config)
        };
        let progress = self.progress("ncclCommInitRankConfig", code, handle);
        if progress.is_err() && handle != Handle::NULL {
            // Report the first error rather than an error of the abort.
            self.abort(handle).unwrap_or_default();
        }
        Ok((handle, progress?))
    }

    /// Returns the progress of a communicator's last call, or the error that this rank or a peer
    /// had.
    pub(super) fn state(&self, call: &'static str, comm: Handle) -> Result<Progress, NcclError> {
        let mut state = SUCCESS;
        // SAFETY: the communicator is alive, and the pointer valid for the call.
        let code = unsafe { (self.functions.state)(comm, &raw mut state) };
        self.check("ncclCommGetAsyncError", code, comm)?;
        self.progress(call, state, comm)
    }

    /// Enqueues a collective on a stream.
    pub(super) fn issue(
        &self,
        call: Call,
        buffers: Buffers,
        comm: Handle,
        stream: *mut c_void,
    ) -> Result<Progress, NcclError> {
        const SUM: c_int = 0;
        let Buffers { from, to, count, element } = buffers;
        let (from, to, element) = (from as *const c_void, to as *mut c_void, element as c_int);
        let rank = |root: usize| c_int::try_from(root).unwrap_or(c_int::MAX);
        let f = &self.functions;
        // SAFETY: the ranges are allocated, as large as the collective needs (the callers'
        // contract, as for every kernel), and on the communicator's device; communicator and stream
        // are alive.
        let (name, code) = unsafe {
            match call {
                Call::AllGather => {
                    ("ncclAllGather", (f.all_gather)(from, to, count, element, comm, stream))
                }
                Call::AllReduceSum => {
                    ("ncclAllReduce", (f.all_reduce)(from, to, count, element, SUM, comm, stream))
                }
                Call::ReduceScatterSum => (
                    "ncclReduceScatter",
                    (f.reduce_scatter)(from, to, count, element, SUM, comm, stream),
                ),
                Call::Broadcast { root } => (
                    "ncclBroadcast",
                    (f.broadcast)(from, to, count, element, rank(root), comm, stream),
                ),
            }
        };
        self.progress(name, code, comm)
    }

    /// Begins to flush the pending work of a communicator, before [`Self::destroy`].
    pub(super) fn finalize(&self, comm: Handle) -> Result<Progress, NcclError> {
        // SAFETY: the communicator is alive.
        self.progress("ncclCommFinalize", unsafe { (self.functions.finalize)(comm) }, comm)
    }

    /// Frees a finalized communicator. The handle must not be used again.
    pub(super) fn destroy(&self, comm: Handle) -> Result<(), NcclError> {
        // SAFETY: the communicator is alive, and its owner forgets it.
        self.check("ncclCommDestroy", unsafe { (self.functions.destroy)(comm) }, Handle::NULL)
    }

    /// Aborts a communicator and its pending work. The handle must not be used again.
    pub(super) fn abort(&self, comm: Handle) -> Result<(), NcclError> {
        // SAFETY: the communicator is alive, and its owner forgets it.
        let code = unsafe { (self.functions.abort)(comm) };
        if code == IN_PROGRESS {
            return Ok(());
        }
        self.check("ncclCommAbort", code, Handle::NULL)
    }

    fn check(&self, call: &'static str, code: c_int, comm: Handle) -> Result<(), NcclError> {
        if code == SUCCESS {
            return Ok(());
        }
        // SAFETY: both functions return NUL-terminated strings of the library for any code, and for
        // a null communicator.
        let (name, last) = unsafe {
            (text((self.functions.error_name)(code)), text((self.functions.last_error)(comm)))
        };
        Err(NcclError::Call { call, code, name, last, hint: hint(code) })
    }

    fn progress(
        &self,
        call: &'static str,
        code: c_int,
        comm: Handle,
    ) -> Result<Progress, NcclError> {
        if code == IN_PROGRESS {
            return Ok(Progress::Pending);
        }
        self.check(call, code, comm).map(|()| Progress::Done)
    }
}

/// Copies a string of the library.
fn text(pointer: *const c_char) -> String {
    if pointer.is_null() {
        return "no details".to_owned();
    }
    // SAFETY: the string is NUL-terminated, and is copied before another call could change it.
    let text = unsafe { CStr::from_ptr(pointer) }.to_string_lossy().trim().to_owned();
    if text.is_empty() { "no details".to_owned() } else { text }
}
