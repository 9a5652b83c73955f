//! The Prometheus endpoint: `GET /metrics` returns the supervisor's numbers as OpenMetrics text. It
//! exposes no secret, changes nothing and serves nothing else.

use std::convert::Infallible;
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, text};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use vljepa_recipes::protocol::{DataWork, Gauges, Spread};

use crate::error::LaunchError;
use crate::supervise::Observed;

/// Largest number of connections that are served at once; others wait.
const MAX_CONNECTIONS: usize = 16;
/// How long a connection may take to send a request before it is closed.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The running endpoint; dropping it closes the port.
#[derive(Debug)]
pub(crate) struct Endpoint {
    address: SocketAddr,
    serving: JoinHandle<()>,
}

impl Endpoint {
    /// Listens at `address`, the value of `logging.prometheus`.
    ///
    /// # Errors
    /// If the port is in use, or the address does not belong to this machine.
    pub(crate) async fn start(
        address: &str,
        observed: Arc<Mutex<Observed>>,
    ) -> Result<Self, LaunchError> {
        let failed = |error: std::io::Error| LaunchError::Prometheus {
            address: address.to_owned(),
            why: error.to_string(),
        };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let mut registry = Registry::with_prefix("vljepa");
        registry.register_collector(Box::new(Numbers(observed)));
        Ok(Self { address, serving: tokio::spawn(serve(listener, Arc::new(registry))) })
    }

    /// Address of the listening socket, with the actual port.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn serve(listener: TcpListener, registry: Arc<Registry>) {
    let open = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    // The set owns the tasks of the connections, so aborting this task ends them too.
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let Ok(permit) = Arc::clone(&open).acquire_owned().await else { return };
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        while connections.try_join_next().is_some() {}
        let registry = Arc::clone(&registry);
        connections.spawn(async move {
            let answer = service_fn(|request| {
                let response = answer(&request, &registry);
                async move { Ok::<_, Infallible>(response) }
            });
            let mut server = http1::Builder::new();
            server.timer(TokioTimer::new()).header_read_timeout(REQUEST_TIMEOUT);
            server.serve_connection(TokioIo::new(stream), answer).await.ok();
            drop(permit);
        });
    }
}

fn answer(request: &Request<Incoming>, registry: &Registry) -> Response<Full<Bytes>> {
    let plain = |status, text: &'static str| {
        let mut response = Response::new(Full::from(text));
        *response.status_mut() = status;
        response
    };
    if request.uri().path() != "/metrics" {
        return plain(StatusCode::NOT_FOUND, "not found; the metrics are at /metrics\n");
    }
    if ![Method::GET, Method::HEAD].contains(request.method()) {
        return plain(StatusCode::METHOD_NOT_ALLOWED, "method not allowed; use GET\n");
    }
    let mut body = String::new();
    if text::encode(&mut body, registry).is_err() {
        return plain(StatusCode::INTERNAL_SERVER_ERROR, "the metrics cannot be encoded\n");
    }
    let mut response = Response::new(Full::from(body));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(OPEN_METRICS));
    response
}

/// Collector that reads the observed numbers at every scrape.
#[derive(Debug)]
struct Numbers(Arc<Mutex<Observed>>);

impl Collector for Numbers {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let observed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut out = Exposition(encoder);
        run(&mut out, &observed)?;
        training(&mut out, &observed)?;
        ranks(&mut out, &observed)
    }
}

fn run(out: &mut Exposition<'_>, observed: &Observed) -> fmt::Result {
    out.gauge("up", "1 while a supervisor works on the run", 1.0)?;
    let mut info = out.0.encode_descriptor("run", "Name of the run", None, MetricType::Info)?;
    info.encode_info(&[("name", observed.name.as_str())])?;
    out.gauge("attempt", "Number of the current attempt", f64::from(observed.attempt))?;
    out.gauge("steps_planned", "Steps of the whole run", real(observed.total_steps))?;
    out.counter("restarts", "Restarts by this supervisor", &[("", "", observed.restarts)])?;
    let faults: Vec<_> =
        observed.faults.iter().map(|(kind, count)| ("kind", kind.as_str(), *count)).collect();
    out.counter("faults", "Faults that ended attempts under this supervisor", &faults)?;
    if let Some((step, stall_s)) = observed.checkpoint {
        out.gauge("checkpoint_step", "Step of the newest checkpoint", real(step))?;
        let help = "Seconds that the step waited for the newest checkpoint";
        out.gauge("checkpoint_stall_seconds", help, stall_s)?;
    }
    Ok(())
}

fn training(out: &mut Exposition<'_>, observed: &Observed) -> fmt::Result {
    let Some(metrics) = &observed.metrics else { return Ok(()) };
    out.gauge("step", "Steps done", real(metrics.step))?;
    out.counter("samples", "Samples trained on", &[("", "", metrics.samples)])?;
    out.gauge("loss", "Loss of the newest logged step", metrics.loss)?;
    out.gauge("gradient_norm", "Global gradient norm before clipping", metrics.gradient_norm)?;
    out.gauge("learning_rate", "Learning rate", metrics.learning_rate)?;
    let help = "Scale of the similarities (inverse temperature)";
    metrics.scale.map_or(Ok(()), |value| out.gauge("similarity_scale", help, value))?;
    metrics.gauges.as_ref().map_or(Ok(()), |found| gauges(out, found))?;
    let help = "Samples of all ranks per second in the newest interval";
    out.gauge("samples_per_second", help, metrics.samples_per_s)?;
    let help = "Median of the newest intervals of the stage and attempt, at most 20";
    let recent = observed.recent.samples_per_s();
    recent.map_or(Ok(()), |rate| out.gauge("recent_samples_per_second", help, rate))?;
    let help = "Share of time that rank 0 waits for data";
    out.gauge("data_wait_ratio", help, metrics.data_wait_fraction)?;
    metrics.data.as_ref().map_or(Ok(()), |work| data(out, work))?;
    out.counter("bad_samples", "Samples left out as bad", &[("", "", metrics.bad_samples)])?;
    let help = "Model operations per second on rank 0, in 10^12";
    metrics.tflops.map_or(Ok(()), |value| out.gauge("tflops", help, value))?;
    let help = "Model FLOPs utilization of rank 0";
    metrics.mfu.map_or(Ok(()), |value| out.gauge("mfu_ratio", help, value))
}

fn gauges(out: &mut Exposition<'_>, found: &Gauges) -> fmt::Result {
    let sides = [("predicted", found.predicted), ("target", found.target)];
    let each = |value: fn(Spread) -> f64| sides.map(|(side, of)| ([("side", side)], value(of)));
    let help = "Effective number of different embeddings among 256";
    out.gauges("embedding_effective_rank", help, &each(|of| of.effective_rank))?;
    let help = "Logarithm of the mean Gaussian kernel over pairs of embeddings";
    out.gauges("embedding_uniformity", help, &each(|of| of.uniformity))?;
    let help = "Mean squared distance of normalised prediction and target";
    out.gauge("embedding_alignment", help, found.alignment)
}

fn data(out: &mut Exposition<'_>, work: &DataWork) -> fmt::Result {
    let help = "Batches of rank 0 that are ready; at 0 the next step waits";
    out.gauge("data_ready_batches", help, real(work.ready_batches as u64))?;
    let help = "Bytes that rank 0 reads per second from shards";
    out.gauge("data_bytes_per_second", help, work.bytes_per_s())?;
    let mut seconds = Vec::new();
    for (kind, work) in &work.kinds {
        for (part, part_s) in &work.seconds {
            let labels = [("kind", kind.name()), ("part", part.name())];
            seconds.push((labels, part_s / real(work.samples.max(1))));
        }
    }
    let help = "Seconds of a reader thread of rank 0 per sample, by kind and part of the work";
    out.gauges("data_sample_seconds", help, &seconds)
}

fn ranks(out: &mut Exposition<'_>, observed: &Observed) -> fmt::Result {
    let connected = observed.last_heard.iter().flatten().count();
    let ranks =
        [("state", "expected", observed.last_heard.len()), ("state", "connected", connected)];
    let ranks = ranks.map(|(label, value, count)| ([(label, value)], real(count as u64)));
    out.gauges("ranks", "Expected and connected ranks of the attempt", &ranks)?;
    if let Some(silence) = observed.longest_silence(Instant::now()) {
        let help = "Longest time since a connected rank sent a message";
        out.gauge("heartbeat_age_seconds_max", help, silence.as_secs_f64())?;
    }
    let Some(table) = observed.table() else { return Ok(()) };
    let mut phases = Vec::new();
    for (phase, spread) in &table.phases {
        phases.push(([("phase", phase.name()), ("ranks", "median")], spread.median_s));
        phases.push(([("phase", phase.name()), ("ranks", "max")], spread.max_s));
    }
    out.gauges("phase_seconds", "Seconds per step in each phase of the newest interval", &phases)?;
    if let Some(slowest) = table.slowest.first() {
        let help = "Rank with the longest work per step, waiting in collectives excluded";
        out.gauge("slowest_rank", help, real(slowest.rank as u64))?;
        let help = "Excess of the slowest rank's work over the median rank's, as a fraction";
        out.gauge("slowest_rank_excess_ratio", help, slowest.over)?;
    }
    let mib = |mib: u64| real(mib) * f64::from(1 << 20);
    let mut memory = vec![([("where", "host")], mib(table.highest.memory_mib))];
    memory.extend(table.highest.device_memory_mib.map(|m| ([("where", "device")], mib(m))));
    out.gauges("memory_bytes", "Memory of the rank that uses most", &memory)
}

/// Writes metrics one after the other, each with its help text.
struct Exposition<'a>(DescriptorEncoder<'a>);

impl Exposition<'_> {
    fn gauge(&mut self, name: &str, help: &str, value: f64) -> fmt::Result {
        self.0.encode_descriptor(name, help, None, MetricType::Gauge)?.encode_gauge(&value)
    }

    fn gauges<const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        values: &[([(&str, &str); N], f64)],
    ) -> fmt::Result {
        let mut metric = self.0.encode_descriptor(name, help, None, MetricType::Gauge)?;
        values
            .iter()
            .try_for_each(|(labels, value)| metric.encode_family(labels)?.encode_gauge(value))
    }

    /// Writes a counter. Each value is (label, label value, count); an empty label means no label.
    fn counter(&mut self, name: &str, help: &str, values: &[(&str, &str, u64)]) -> fmt::Result {
        let mut metric = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        values.iter().try_for_each(|(label, value, count)| {
            let labels = [(*label, *value)];
            let labels = if label.is_empty() { &labels[..0] } else { &labels[..] };
            metric.encode_family(&labels)?.encode_counter::<[(&str, &str); 0], _, f64>(count, None)
        })
    }
}

#[expect(clippy::cast_precision_loss, reason = "steps and samples stay far below 2^53")]
fn real(count: u64) -> f64 {
    count as f64
}
