//! Tests of NCCL without a GPU: with the real library where that is possible, and with a fake
//! library that fails in a given way.

#![expect(
    clippy::disallowed_methods,
    reason = "tests compile a library, start themselves and read what the script set"
)]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use vljepa_kernels::device::cuda::Cuda;
use vljepa_kernels::library::{Libraries, LibraryError};
use vljepa_recipes::RankId;

use super::communicator::Communicator;
use super::library::{Buffers, Call, Element, Id, Library};
use super::watch::Watch;
use crate::error::nccl::NcclError;

/// Opens the library that `. worker/nccl.sh` fetches.
fn real() -> &'static Library {
    let path = std::env::var("VLJEPA_NCCL").expect("VLJEPA_NCCL is set: `. worker/nccl.sh`");
    open(Path::new(&path)).unwrap()
}

fn open(path: &Path) -> Result<&'static Library, NcclError> {
    Library::open(&Libraries { nccl: Some(path.to_owned()), ..Libraries::default() })
}

/// A fake NCCL library, and the file in which it logs the calls.
struct Fake {
    _folder: tempfile::TempDir,
    log: PathBuf,
    library: &'static Library,
}

impl Fake {
    fn new(options: &[&str]) -> Self {
        let (folder, path, log) = Self::compile(options);
        Self { library: open(&path).unwrap(), _folder: folder, log }
    }

    /// Folder of the compiled library, its file, and the file of its log.
    fn compile(options: &[&str]) -> (tempfile::TempDir, PathBuf, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/collectives/nccl/fake.c");
        let (path, log) = (folder.path().join("libnccl.so.2"), folder.path().join("calls"));
        let compiled = Command::new("cc")
            .args(["-shared", "-fPIC", "-o"])
            .arg(&path)
            .arg(format!("-DLOG=\"{}\"", log.display()))
            .args(options)
            .arg(source)
            .output()
            .unwrap();
        assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
        (folder, path, log)
    }

    fn calls(&self) -> Vec<String> {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    fn join(&self, time_out: Duration) -> Result<Communicator, NcclError> {
        let id = self.library.unique_id().unwrap();
        Communicator::init(self.library, id, SECOND, time_out)
    }
}

const LONG: Duration = Duration::from_secs(60);
const SECOND: RankId = RankId { rank: 1, world_size: 2 };

#[test]
fn a_missing_library_is_named_with_what_to_install() {
    let error = open(Path::new("/nowhere/libnccl.so.2")).unwrap_err();
    assert!(matches!(error, NcclError::Library(LibraryError::Missing { .. })));
    let text = error.to_string();
    for part in ["/nowhere/libnccl.so.2", "libnccl2", "nvidia-nccl-cu12", "VLJEPA_NCCL"] {
        assert!(text.contains(part), "`{part}` is missing in {text}");
    }
}

#[test]
fn a_file_that_is_another_library_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("libnccl.so.2");
    std::fs::write(&path, "no library").unwrap();
    let error = open(&path).unwrap_err().to_string();
    assert!(error.contains("is not a usable NCCL") && error.contains("libnccl.so.2"), "{error}");
    assert!(error.contains("file too short") || error.contains("invalid ELF"), "{error}");
    let made = Command::new("cc")
        .args(["-shared", "-x", "c", "/dev/null", "-o"])
        .arg(&path)
        .status()
        .unwrap();
    assert!(made.success());
    let error = open(&path).unwrap_err().to_string();
    assert!(error.contains("ncclGetVersion"), "{error}");
}

#[test]
fn a_library_that_is_too_old_is_refused_with_its_version() {
    let (_folder, path, _) = Fake::compile(&["-DVERSION=21705"]);
    let error = open(&path).unwrap_err().to_string();
    for part in ["2.17.5", "2.18 or newer", "libnccl.so.2", "VLJEPA_NCCL"] {
        assert!(error.contains(part), "`{part}` is missing in {error}");
    }
    let (_folder, path, _) = Fake::compile(&["-DVERSION=21800"]);
    assert_eq!(open(&path).unwrap().version(), "2.18.0");
}

#[test]
fn the_real_library_makes_ids_that_differ_and_survive_as_text() {
    let library = real();
    assert!(library.version().starts_with("2."), "{}", library.version());
    let (a, b) = (library.unique_id().unwrap(), library.unique_id().unwrap());
    assert_ne!(a, b);
    assert_eq!(Id::parse(&a.text()).unwrap(), a);
    for wrong in ["", "not base64!", "AAAA"] {
        assert!(matches!(Id::parse(wrong), Err(NcclError::Id { .. })), "{wrong}");
    }
}

#[test]
fn joining_works_with_a_gpu_and_without_a_driver_says_so() {
    let library = real();
    let joined = Communicator::init(library, library.unique_id().unwrap(), RankId::SINGLE, LONG);
    if Cuda::count().is_ok() {
        joined.unwrap();
        return;
    }
    let error = joined.map(|_| ()).unwrap_err();
    assert!(matches!(error, NcclError::Call { code: 1, .. }), "{error}");
    let text = error.to_string();
    for part in ["ncclCommInitRankConfig", "driver", "nvidia-smi"] {
        assert!(text.contains(part), "`{part}` is missing in {text}");
    }
}

#[test]
fn a_communicator_is_awaited_used_and_left_in_peace() {
    let fake = Fake::new(&["-DPENDING=5"]);
    let communicator = fake.join(LONG).unwrap();
    let buffers = Buffers { from: 0, to: 0, count: 12, element: Element::F32 };
    let none = std::ptr::null_mut();
    communicator.issue(Call::AllReduceSum, buffers, none).unwrap();
    let bytes = Buffers { element: Element::Byte, ..buffers };
    communicator.issue(Call::Broadcast { root: 0 }, bytes, none).unwrap();
    communicator.check().unwrap();
    drop(communicator);
    let wanted = [
        "init 1 of 2",
        "all-reduce of 12, type 7",
        "broadcast of 12, type 1",
        "finalize",
        "destroy",
    ];
    assert_eq!(fake.calls(), wanted);
}

#[test]
fn ranks_that_do_not_come_are_waited_for_only_so_long_and_the_communicator_is_given_up() {
    let fake = Fake::new(&["-DPENDING=-1"]);
    let since = Instant::now();
    let error = fake.join(Duration::from_millis(200)).map(|_| ()).unwrap_err();
    assert!(matches!(error, NcclError::TimeOut { .. }), "{error}");
    assert!(error.to_string().contains("ncclCommInitRankConfig is not done"), "{error}");
    assert!(since.elapsed() >= Duration::from_millis(200) && since.elapsed() < LONG);
    assert_eq!(fake.calls(), ["init 1 of 2", "abort"]);
}

#[test]
fn an_error_of_a_peer_is_reported_with_its_text_and_nothing_is_called_after_giving_up() {
    let fake = Fake::new(&["-DLATER=6"]);
    let communicator = fake.join(LONG).unwrap();
    let error = communicator.check().unwrap_err();
    assert!(matches!(error, NcclError::Call { code: 6, .. }), "{error}");
    let text = error.to_string();
    for part in ["remote process exited", "socket closed by host-7", "another rank or its host"] {
        assert!(text.contains(part), "`{part}` is missing in {text}");
    }
    communicator.abort();
    let again = communicator.check().unwrap_err();
    assert!(matches!(again, NcclError::GivenUp { .. }), "{again}");
    drop(communicator);
    assert_eq!(fake.calls(), ["init 1 of 2", "abort"]);
}

#[test]
fn an_abort_that_hangs_is_waited_for_only_so_long() {
    let fake = Fake::new(&["-DABORT_HANGS=1"]);
    let communicator = Arc::new(fake.join(LONG).unwrap());
    let since = Instant::now();
    communicator.abort_within(Duration::from_millis(100));
    assert!(since.elapsed() < LONG, "{:?}", since.elapsed());
    assert!(fake.calls().contains(&"abort".to_owned()));
}

#[test]
fn patience_within_patience_lasts_as_long_as_the_outer_one() {
    let fake = Fake::new(&[]);
    let communicator = Arc::new(fake.join(LONG).unwrap());
    let watch = Watch::start(communicator, LONG, Box::new(|_: &str| {})).unwrap();
    let before = watch.be_patient(true);
    let inner = watch.be_patient(true);
    watch.be_patient(inner);
    assert_eq!((before, inner, watch.be_patient(before)), (false, true, true));
}

/// Environment variable that tells the next test that it runs in the process that must end.
const TO_END: &str = "VLJEPA_TEST_TO_END";

#[test]
fn a_rank_whose_peer_is_gone_says_its_last_words_and_ends() {
    if std::env::var_os(TO_END).is_some() {
        let fake = Fake::new(&["-DLATER=6"]);
        let communicator = Arc::new(fake.join(LONG).unwrap());
        let last_words = Box::new(|error: &str| eprintln!("last words: {error}"));
        let _watch = Watch::start(communicator, LONG, last_words).unwrap();
        std::thread::park_timeout(LONG);
        panic!("nobody ended this process");
    }
    let name = "collectives::nccl::tests::a_rank_whose_peer_is_gone_says_its_last_words_and_ends";
    let since = Instant::now();
    let ended = Command::new(std::env::current_exe().unwrap())
        .args([name, "--exact", "--nocapture"])
        .env(TO_END, "1")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&ended.stderr);
    assert!(said.contains("last words: watching the ranks: remote process exited"), "{said}");
    assert!(!ended.status.success() && since.elapsed() < LONG / 2, "{ended:?}");
}

/// Tests on an emulated GPU with the fake library, which moves no data: the rows of other ranks are
/// zeros.
#[cfg(feature = "emulator")]
mod on_an_emulated_gpu {
    use std::time::{Duration, Instant};

    use vljepa_kernels::attention::launch::Mode;
    use vljepa_kernels::device::cuda::Cuda;
    use vljepa_kernels::{DType, Device, Stream, Tensor};

    use super::super::{Nccl, TimeOuts};
    use super::{Fake, LONG};
    use crate::collectives::record::{Entry, Kind, State};
    use crate::collectives::{Collectives, GradientSum, Shares};
    use crate::testing::is_alone;

    /// Joins as rank 1 of 2.
    fn second(fake: &Fake) -> (Collectives, Device, Stream) {
        let cuda = Cuda::for_tests(Mode::Fast);
        let (id, time_outs) =
            (fake.library.unique_id().unwrap(), TimeOuts { start: LONG, collective: LONG });
        let last_words = Box::new(|error: &str| panic!("{error}"));
        let nccl =
            Nccl::join(fake.library, id, super::SECOND, cuda, time_outs, last_words).unwrap();
        let device = Device::Cuda(cuda);
        (Collectives::Nccl(nccl), device, device.compute_stream())
    }

    fn on(device: Device, values: &[f32], shape: &[usize]) -> Tensor {
        Tensor::from_f32(values.to_vec(), shape).on(device).unwrap()
    }

    #[test]
    fn uneven_rows_come_to_their_places_and_host_values_pass_through_the_gpu() {
        let fake = Fake::new(&[]);
        let (collectives, device, stream) = second(&fake);
        assert_eq!((collectives.rank(), collectives.world_size()), (1, 2));
        assert!(collectives.broadcast(b"rank 0 says nothing".to_vec()).is_empty());
        let shares = Shares { global: 5, world_size: 2 };
        assert_eq!(shares.rows(1), 2..5);
        let local = on(device, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], &[3, 2]);
        let mut all = on(device, &[9.0; 10], &[5, 2]);
        collectives.all_gather_rows(&stream, local.view(), shares, all.view_mut()).unwrap();
        let wanted = [0.0, 0.0, 0.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        assert_eq!(*all.to_f32().unwrap(), wanted);
        assert_eq!(collectives.all_gather_hashes(&[7, 8, 9], shares), [0, 0, 7, 8, 9]);
        assert_eq!(collectives.sum([2.5, -1.0]).map(f64::to_bits), [2.5, -1.0].map(f64::to_bits));
        assert_eq!(collectives.all_gather_bytes(b"abc"), [b"".to_vec(), b"abc".to_vec()]);
        drop(collectives);
        let gathers = [24, 24, 16, 8, 3].map(|bytes| format!("all-gather of {bytes}, type 1"));
        let mut wanted = ["init 1 of 2", "broadcast of 8, type 1"].map(str::to_owned).to_vec();
        wanted.extend(gathers);
        wanted.extend(["finalize", "destroy"].map(str::to_owned));
        assert_eq!(fake.calls(), wanted);
    }

    #[test]
    fn buckets_are_issued_as_they_are_complete_and_are_noted_when_they_have_happened() {
        // The record of a process holds its last collectives, and other tests have many.
        let name = "collectives::nccl::tests::on_an_emulated_gpu::\
                    buckets_are_issued_as_they_are_complete_and_are_noted_when_they_have_happened";
        if !is_alone(name) {
            return;
        }
        let fake = Fake::new(&[]);
        let (collectives, device, stream) = second(&fake);
        let mut flat = on(device, &[1.0; 10], &[10]);
        let mut sums = GradientSum::new(&collectives, 4 * size_of::<f32>());
        sums.ready(&stream, flat.view_mut(), 3);
        assert_eq!(fake.calls().len(), 1, "no bucket is complete yet");
        sums.ready(&stream, flat.view_mut(), 9);
        assert_eq!(fake.calls().len(), 3, "two are");
        sums.finish(&stream, flat.view_mut()).unwrap();
        let calls = fake.calls();
        let wanted = [4, 4, 2].map(|len| format!("all-reduce of {len}, type 7"));
        assert_eq!(calls[1..], wanted);

        // 333 elements and one of padding.
        let mut values = Tensor::padded(device, DType::F32, &[333], 334).unwrap();
        collectives.reduce_scatter_sum(&stream, values.with_padding_mut()).unwrap();
        collectives.all_gather_slots(&stream, values.with_padding_mut()).unwrap();
        let calls = ["reduce-scatter of 167, type 7", "all-gather of 167, type 7"];
        assert_eq!(fake.calls()[4..], calls);
        let done = |e: &Entry| {
            e.kind == Kind::ReduceScatter && e.bytes == 668 && matches!(e.state, State::Done(_))
        };
        let end = Instant::now() + Duration::from_secs(10);
        while !collectives.last().iter().any(done) {
            assert!(Instant::now() < end, "{:?}", collectives.last());
            std::thread::yield_now();
        }
        assert!(collectives.sequence() >= 4);
    }

    #[test]
    fn host_memory_is_refused_by_name() {
        let fake = Fake::new(&[]);
        let (collectives, _, stream) = second(&fake);
        let mut values = Tensor::from_f32(vec![1.0], &[1]);
        let error = collectives.all_reduce_sum(&stream, values.view_mut()).unwrap_err();
        assert!(error.to_string().contains("`values` lies in host memory"), "{error}");
    }
}
