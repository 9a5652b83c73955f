//! Clients of object stores and web servers, and the runtime that drives their connections.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, mpsc};
use std::time::Duration;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey};
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpRequest, HttpResponse, HttpService, ReqwestConnector,
};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::http::HttpBuilder;
use object_store::list::PaginatedListStore;
use object_store::{ClientConfigKey, ClientOptions, ObjectStore, RetryConfig};
use tokio::runtime::Runtime;

use super::location::{RemoteUrl, Scheme};
use super::options::StorageOptions;
use super::retry::Exchange;

/// Number of threads that drive the connections of all storages of a process. They copy bytes and
/// decrypt them, at 1 GB/s or more each, which is above the network's share of a rank.
const NETWORK_THREADS: usize = 2;

/// Longest time of one request and its response. A block of 8 MiB takes that long at 28 kB/s, so
/// this ends only responses that trickle.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(300);

tokio::task_local! {
    /// Last request of the running task and the status of its response.
    pub(super) static LAST: RefCell<Option<Exchange>>;
}

/// Client of one bucket or web server.
#[derive(Clone)]
pub(super) struct Client {
    pub(super) store: Arc<dyn ObjectStore>,
    /// The same store, if it can list.
    pub(super) lister: Option<Arc<dyn PaginatedListStore>>,
    /// Whether the server has ever answered.
    pub(super) answered: Arc<AtomicBool>,
}

/// Clients by scheme and authority, made when they are needed first.
#[derive(Default)]
pub(super) struct Clients {
    by_name: Mutex<BTreeMap<(Scheme, String), Client>>,
}

impl Clients {
    /// Client for `url`.
    pub(super) fn get(&self, url: &RemoteUrl, options: &StorageOptions) -> Result<Client, String> {
        let mut clients = self.by_name.lock().unwrap_or_else(PoisonError::into_inner);
        let name = (url.scheme, url.authority.clone());
        if let Some(client) = clients.get(&name) {
            return Ok(client.clone());
        }
        // An error means that another provider is already installed, which serves as well.
        drop(rustls::crypto::ring::default_provider().install_default());
        let client = connect(url, options).map_err(|error| explained(&error))?;
        clients.insert(name, client.clone());
        Ok(client)
    }
}

fn explained(error: &object_store::Error) -> String {
    let mut text = super::retry::chain(error);
    if text.contains("CA cert") || text.contains("certificates") {
        text.push_str("; install the system's certificates (package ca-certificates)");
    }
    text
}

/// Settings of the connections, by their names in `object_store`.
fn connection(options: &StorageOptions) -> [(ClientConfigKey, String); 3] {
    let text = |duration: Duration| format!("{} ms", duration.as_millis());
    [
        (ClientConfigKey::ConnectTimeout, text(options.connect_timeout)),
        (ClientConfigKey::ReadTimeout, text(options.read_timeout)),
        (ClientConfigKey::Timeout, text(REQUEST_TIMEOUT)),
    ]
}

fn connect(url: &RemoteUrl, options: &StorageOptions) -> object_store::Result<Client> {
    // `object_store` retries requests too, but it logs that at level `info`, cannot resume a body
    // without an ETag, and takes a body that ends early without an error for complete. Two nested
    // loops would also multiply the attempts. So `retry.rs` alone retries.
    let no_retries = RetryConfig { max_retries: 0, ..RetryConfig::default() };
    let answered = Arc::<AtomicBool>::default();
    let recorder = Recorder { answered: Arc::clone(&answered) };
    let variables = options.variables.iter().map(|(name, value)| (name.to_lowercase(), value));
    match url.scheme {
        Scheme::S3 => {
            let mut builder = AmazonS3Builder::from_env()
                .with_bucket_name(&url.authority)
                .with_retry(no_retries)
                .with_http_connector(recorder);
            for (name, value) in variables.filter(|(name, _)| name.starts_with("aws_")) {
                builder = builder.with_config(name.parse::<AmazonS3ConfigKey>()?, value);
            }
            for (key, value) in connection(options) {
                builder = builder.with_config(AmazonS3ConfigKey::Client(key), value);
            }
            let store = Arc::new(builder.build()?);
            let lister = Arc::<object_store::aws::AmazonS3>::clone(&store);
            Ok(Client { lister: Some(lister), store, answered })
        }
        Scheme::Gs => {
            let mut builder = GoogleCloudStorageBuilder::from_env()
                .with_bucket_name(&url.authority)
                .with_retry(no_retries)
                .with_http_connector(recorder);
            for (name, value) in variables.filter(|(name, _)| name.starts_with("google_")) {
                builder = builder.with_config(name.parse::<GoogleConfigKey>()?, value);
            }
            for (key, value) in connection(options) {
                builder = builder.with_config(GoogleConfigKey::Client(key), value);
            }
            let store = Arc::new(builder.build()?);
            let lister = Arc::<object_store::gcp::GoogleCloudStorage>::clone(&store);
            Ok(Client { lister: Some(lister), store, answered })
        }
        Scheme::Http | Scheme::Https => {
            let mut client = ClientOptions::new().with_allow_http(url.scheme == Scheme::Http);
            for (key, value) in connection(options) {
                client = client.with_config(key, value);
            }
            let builder = HttpBuilder::new()
                .with_url(format!("{}://{}/", url.scheme.name(), url.authority))
                .with_client_options(client)
                .with_retry(no_retries)
                .with_http_connector(recorder);
            Ok(Client { store: Arc::new(builder.build()?), lister: None, answered })
        }
    }
}

/// Makes clients that note each request and its status in [`LAST`]. `object_store`'s errors hide
/// the status in their text.
#[derive(Debug)]
struct Recorder {
    answered: Arc<AtomicBool>,
}

#[derive(Debug)]
struct RecordingClient {
    client: HttpClient,
    answered: Arc<AtomicBool>,
}

impl HttpConnector for Recorder {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let client = ReqwestConnector::default().connect(options)?;
        let answered = Arc::clone(&self.answered);
        Ok(HttpClient::new(RecordingClient { client, answered }))
    }
}

type Answer<'a> = Pin<Box<dyn Future<Output = Result<HttpResponse, HttpError>> + Send + 'a>>;

impl HttpService for RecordingClient {
    fn call<'me, 'answer>(&'me self, request: HttpRequest) -> Answer<'answer>
    where
        'me: 'answer,
    {
        Box::pin(async move {
            let mut exchange = Exchange {
                method: request.method().to_string(),
                url: request.uri().to_string(),
                status: None,
            };
            let answer = self.client.execute(request).await;
            exchange.status = answer.as_ref().ok().map(|response| response.status().as_u16());
            self.answered.fetch_or(exchange.status.is_some(), Ordering::Relaxed);
            // Requests outside of a read, such as those of a background task, are not noted.
            LAST.try_with(|last| *last.borrow_mut() = Some(exchange)).unwrap_or_default();
            answer
        })
    }
}

fn runtime() -> std::io::Result<&'static Runtime> {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    if let Some(runtime) = RUNTIME.get() {
        return Ok(runtime);
    }
    let made = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(NETWORK_THREADS)
        .thread_name("storage")
        .enable_all()
        .build()?;
    // If two threads get here, the runtime of one is dropped before it was used.
    Ok(RUNTIME.get_or_init(|| made))
}

/// Runs `work` on the network threads and waits for its result. Any thread may call this, also one
/// of another runtime.
pub(super) fn wait_for<T: Send + 'static>(
    work: impl Future<Output = std::io::Result<T>> + Send + 'static,
) -> std::io::Result<T> {
    let (send, receive) = mpsc::sync_channel(1);
    runtime()?.spawn(LAST.scope(RefCell::default(), async move {
        // Nobody waits any more if sending fails.
        drop(send.send(work.await));
    }));
    receive.recv().unwrap_or_else(|_| Err(std::io::Error::other("a network thread has failed")))
}
