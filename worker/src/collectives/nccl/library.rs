//! NCCL's library, loaded at run time, and the calls of it that are used.
//!
//! Bound by hand: cudarc's loader never tries `libnccl.so.2`, the only name in NVIDIA's wheel, and panics where the library is missing.

#![expect(unsafe_code, reason = "calls into a C library that is loaded at run time")]

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use vljepa_kernels::library::{Libraries, Wanted};

use super::error::{NcclError, hint};

/// `ncclSuccess`.
const SUCCESS: c_int = 0;
/// `ncclInProgress`.
const IN_PROGRESS: c_int = 7;
/// `NCCL_CONFIG_UNDEF_INT`.
const UNDEFINED: c_int = c_int::MIN;
/// `NCCL_UNIQUE_ID_BYTES`.
const ID_BYTES: usize = 128;
/// The version whose `ncclConfig_t` is passed; newer libraries fill in what came later.
const CONFIG_VERSION: c_uint = 21_800;

const NCCL: Wanted = Wanted {
    name: "NCCL",
    files: &["libnccl.so.2", "libnccl.so"],
    wheels: &["nvidia/nccl/lib"],
    install: "several GPUs need NCCL 2.18 or newer: install it (`apt-get install libnccl2`, or `pip install nvidia-nccl-cu12`), \
              or name the file in VLJEPA_NCCL",
};

/// `ncclComm_t`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(transparent)]
pub(super) struct Handle(*mut c_void);

impl Handle {
    const NULL: Self = Self(std::ptr::null_mut());
}

// SAFETY: a communicator may be used from any thread, by one at a time: its owner keeps it in a mutex.
unsafe impl Send for Handle {}

/// `ncclDataType_t`, those that are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Element {
    /// `ncclUint8`.
    Byte = 1,
    /// `ncclFloat32`.
    F32 = 7,
}

/// `ncclUniqueId`: what ranks find each other by.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Id([u8; ID_BYTES]);

impl std::fmt::Debug for Id {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Id({})", self.text())
    }
}

impl Id {
    /// As text, for the control plane.
    #[must_use]
    pub fn text(&self) -> String {
        STANDARD.encode(self.0)
    }

    /// From [`Self::text`].
    ///
    /// # Errors
    /// When it is not such a text.
    pub fn parse(text: &str) -> Result<Self, NcclError> {
        let bytes = STANDARD.decode(text).ok().and_then(|bytes| bytes.try_into().ok());
        bytes.map(Self).ok_or_else(|| NcclError::Id { found: text.to_owned() })
    }
}

/// `ncclConfig_t` of NCCL 2.18.
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
        /// Pointers into the library.
        #[derive(Debug, Clone, Copy)]
        struct Functions {
            $($field: unsafe extern "C" fn($($argument),*) -> $result,)+
        }

        impl Functions {
            fn load(library: &libloading::Library) -> Result<Self, String> {
                Ok(Self {
                    $(
                        // SAFETY: the type is the one that nccl.h declares for the name, and the library is never unloaded.
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
    group_start = c"ncclGroupStart": () -> c_int;
    group_end = c"ncclGroupEnd": () -> c_int;
    all_gather = c"ncclAllGather":
        (*const c_void, *mut c_void, usize, c_int, Handle, *mut c_void) -> c_int;
    all_reduce = c"ncclAllReduce":
        (*const c_void, *mut c_void, usize, c_int, c_int, Handle, *mut c_void) -> c_int;
    reduce_scatter = c"ncclReduceScatter":
        (*const c_void, *mut c_void, usize, c_int, c_int, Handle, *mut c_void) -> c_int;
    reduce = c"ncclReduce":
        (*const c_void, *mut c_void, usize, c_int, c_int, c_int, Handle, *mut c_void) -> c_int;
    broadcast = c"ncclBroadcast":
        (*const c_void, *mut c_void, usize, c_int, c_int, Handle, *mut c_void) -> c_int;
}

/// NCCL.
#[derive(Debug)]
pub struct Library {
    functions: Functions,
    path: PathBuf,
    version: c_int,
}

/// What a call said that need not be done when it returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    Done,
    Pending,
}

/// What a collective reads and writes: addresses on the GPU.
#[derive(Debug, Clone, Copy)]
pub(super) struct Buffers {
    pub(super) from: u64,
    pub(super) to: u64,
    /// Elements, as the collective counts them.
    pub(super) count: usize,
    pub(super) element: Element,
}

/// A collective of NCCL.
#[derive(Debug, Clone, Copy)]
pub(super) enum Call {
    AllGather,
    AllReduceSum,
    ReduceScatterSum,
    ReduceSum { root: usize },
    Broadcast { root: usize },
}

impl Library {
    /// Loads NCCL from the file that `libraries` names, otherwise from where it is found. It stays
    /// loaded until the process ends.
    ///
    /// # Errors
    /// When it is missing, too old or another library; the message says what was tried and what to install.
    pub fn open(libraries: &Libraries) -> Result<&'static Self, NcclError> {
        let (library, path) = NCCL.load(libraries.nccl.as_deref(), &libraries.packages)?;
        let functions =
            Functions::load(&library).map_err(|message| NCCL.unusable(&path, message))?;
        let mut found = Self { functions, path: path.clone(), version: 0 };
        // SAFETY: the pointer is valid for the call.
        let code = unsafe { (functions.version)(&raw mut found.version) };
        found.check("ncclGetVersion", code, Handle::NULL)?;
        // Dropping it would unload what the functions point into.
        Box::leak(Box::new(library));
        Ok(Box::leak(Box::new(found)))
    }

    /// Such as `2.27.7`.
    #[must_use]
    pub fn version(&self) -> String {
        let Self { version, .. } = self;
        format!("{}.{}.{}", version / 10_000, version / 100 % 100, version % 100)
    }

    /// Where it was found.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A new id. This process listens for the other ranks from now on.
    ///
    /// # Errors
    /// When NCCL finds no network interface to listen on.
    pub fn unique_id(&self) -> Result<Id, NcclError> {
        let mut id = Id([0; ID_BYTES]);
        // SAFETY: the pointer is valid for the call, which writes 128 bytes.
        let code = unsafe { (self.functions.unique_id)(&raw mut id) };
        self.check("ncclGetUniqueId", code, Handle::NULL)?;
        Ok(id)
    }

    /// Begins a communicator whose calls return before they are done.
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
            // The first error says more than one of giving up.
            self.abort(handle).unwrap_or_default();
        }
        Ok((handle, progress?))
    }

    /// How far a communicator's last call is, or the error that it or a peer ran into.
    pub(super) fn state(&self, call: &'static str, comm: Handle) -> Result<Progress, NcclError> {
        let mut state = SUCCESS;
        // SAFETY: the communicator is alive, and the pointer valid for the call.
        let code = unsafe { (self.functions.state)(comm, &raw mut state) };
        self.check("ncclCommGetAsyncError", code, comm)?;
        self.progress(call, state, comm)
    }

    /// Issues a collective to a stream.
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
        // SAFETY: the ranges are allocated, as large as the collective wants (the callers' contract, as with every kernel), and on the
        // communicator's device; communicator and stream are alive.
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
                Call::ReduceSum { root } => (
                    "ncclReduce",
                    (f.reduce)(from, to, count, element, SUM, rank(root), comm, stream),
                ),
                Call::Broadcast { root } => (
                    "ncclBroadcast",
                    (f.broadcast)(from, to, count, element, rank(root), comm, stream),
                ),
            }
        };
        self.progress(name, code, comm)
    }

    /// Calls that follow on this thread are issued together.
    pub(super) fn group_start(&self) -> Result<(), NcclError> {
        // SAFETY: the call takes nothing.
        self.check("ncclGroupStart", unsafe { (self.functions.group_start)() }, Handle::NULL)
    }

    /// Issues what was called since [`Self::group_start`].
    pub(super) fn group_end(&self, comm: Handle) -> Result<Progress, NcclError> {
        // SAFETY: the call takes nothing.
        self.progress("ncclGroupEnd", unsafe { (self.functions.group_end)() }, comm)
    }

    /// Flushes what a communicator still has to do, before [`Self::destroy`].
    pub(super) fn finalize(&self, comm: Handle) -> Result<Progress, NcclError> {
        // SAFETY: the communicator is alive.
        self.progress("ncclCommFinalize", unsafe { (self.functions.finalize)(comm) }, comm)
    }

    /// Frees a communicator that was finalized; it is not used again.
    pub(super) fn destroy(&self, comm: Handle) -> Result<(), NcclError> {
        // SAFETY: the communicator is alive, and its owner forgets it.
        self.check("ncclCommDestroy", unsafe { (self.functions.destroy)(comm) }, Handle::NULL)
    }

    /// Ends a communicator with whatever it does; it is not used again.
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
        // SAFETY: both return NUL-terminated strings of the library for any code and for a null communicator, too.
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

/// A string of the library.
fn text(pointer: *const c_char) -> String {
    if pointer.is_null() {
        return "no details".to_owned();
    }
    // SAFETY: it is NUL-terminated, and copied before the next call could change it.
    let text = unsafe { CStr::from_ptr(pointer) }.to_string_lossy().trim().to_owned();
    if text.is_empty() { "no details".to_owned() } else { text }
}
