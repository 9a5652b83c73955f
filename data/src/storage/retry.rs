//! Decides which failures of a request are retried, when, and what a user is told.

use std::error::Error;
use std::io;
use std::time::{Duration, Instant};

use super::location::{RemoteUrl, Scheme};

/// Pause before the first retry. Each further pause is twice as long, up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(200);

/// Longest pause between two attempts.
const LONGEST_PAUSE: Duration = Duration::from_secs(20);

/// Largest number of attempts of one operation that bring no byte. With the pauses above they fill
/// the default time limit of 300 s.
const MOST_ATTEMPTS: u32 = 24;

/// Largest number of attempts to fetch credentials from the metadata server of a cloud. Elsewhere
/// that server does not exist, and a user without credentials should not wait for minutes.
const MOST_CREDENTIAL_ATTEMPTS: u32 = 3;

/// Longest time of the attempts to reach a server that has never answered. It is long enough for a
/// lost packet or a restart of the network, and a user who mistyped the host waits no longer.
const FIRST_CONTACT: Duration = Duration::from_secs(30);

/// Hosts from which clouds hand out credentials to their machines.
const CREDENTIAL_HOSTS: [&str; 4] =
    ["//169.254.169.254/", "//169.254.170.2/", "//metadata.google.internal/", "//metadata/"];

/// Longest text of a server that an error repeats, in characters.
const LONGEST_REASON: usize = 300;

/// Request and the status of its response, or `None` if there was no response.
#[derive(Debug, Clone)]
pub(super) struct Exchange {
    pub(super) method: String,
    pub(super) url: String,
    pub(super) status: Option<u16>,
}

/// Failure of one attempt.
#[derive(Debug)]
pub(super) struct Failure {
    /// Whether another attempt would fail in the same way.
    pub(super) permanent: bool,
    pub(super) kind: io::ErrorKind,
    /// What happened and what to do.
    pub(super) text: String,
    /// Whether the request was for credentials, not for data.
    credentials: bool,
    /// Whether the server has never answered.
    pub(super) is_first_contact: bool,
}

impl Failure {
    /// Failure that is not retried.
    pub(super) fn permanent(kind: io::ErrorKind, text: String) -> Self {
        Self { permanent: true, kind, text, credentials: false, is_first_contact: false }
    }

    /// Failure that is retried.
    pub(super) fn passing(text: String) -> Self {
        Self { permanent: false, ..Self::permanent(io::ErrorKind::Other, text) }
    }

    /// Failure of an operation of `object_store` whose last request was `last`.
    pub(super) fn new(
        error: &object_store::Error,
        last: Option<Exchange>,
        url: &RemoteUrl,
    ) -> Self {
        let reason = reason(error);
        let Some(exchange) = last else {
            return Self::permanent(io::ErrorKind::Other, with_advice(reason, None, url.scheme));
        };
        let credentials = CREDENTIAL_HOSTS.iter().any(|host| exchange.url.contains(host));
        let request = format!("{} {}", exchange.method, exchange.url);
        let Some(status) = exchange.status else {
            let permanent = ["scheme is not allowed", "invalid peer certificate"];
            let permanent = permanent.iter().any(|text| reason.contains(text));
            let text = with_advice(format!("{request} failed: {reason}"), None, url.scheme);
            let text = if credentials { no_credentials(url.scheme, &text) } else { text };
            let failure = Self::permanent(io::ErrorKind::TimedOut, text);
            return Self { permanent, credentials, ..failure };
        };
        let is_whole = matches!(error, object_store::Error::NotSupported { .. });
        if status == 200 && (is_whole || reason.contains("non-partial response")) {
            let text = format!(
                "{request} answered with the whole file where a part was requested: this server \
                 does not support range requests; use another server, or download the file"
            );
            return Self::permanent(io::ErrorKind::Unsupported, text);
        }
        if (200..300).contains(&status) {
            let text = format!("{request} gave an answer that cannot be used: {reason}");
            let failure = Self::permanent(io::ErrorKind::InvalidData, text);
            return Self { permanent: false, credentials, ..failure };
        }
        let text = format!("{request} answered {}{}", named(status), said(&reason));
        let text = with_advice(text, Some(status), url.scheme);
        let text = if credentials { no_credentials(url.scheme, &text) } else { text };
        let kind = match status {
            404 => io::ErrorKind::NotFound,
            401 | 403 => io::ErrorKind::PermissionDenied,
            416 => io::ErrorKind::UnexpectedEof,
            _ => io::ErrorKind::Other,
        };
        Self { permanent: !is_passing(status), credentials, ..Self::permanent(kind, text) }
    }
}

/// Whether a request with this status may succeed later: timeouts, too many requests, and errors
/// of the server that do not say that it lacks the feature.
pub(super) fn is_passing(status: u16) -> bool {
    matches!(status, 408 | 425 | 429)
        || (500..600).contains(&status) && !matches!(status, 501 | 505)
}

fn named(status: u16) -> String {
    let name = match status {
        301 | 302 | 307 | 308 => "(redirect)",
        400 => "(bad request)",
        401 => "(unauthorized)",
        403 => "(forbidden)",
        404 => "(not found)",
        405 => "(method not allowed)",
        412 => "(precondition failed)",
        416 => "(range not satisfiable)",
        429 => "(too many requests)",
        500 => "(internal server error)",
        501 => "(not implemented)",
        503 => "(service unavailable)",
        _ => return status.to_string(),
    };
    format!("{status} {name}")
}

/// Text of the error that is furthest from the user, which names the cause.
fn reason(error: &object_store::Error) -> String {
    shortened(&chain(error))
}

/// Texts of an error and its causes, each once.
pub(super) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.contains(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    text
}

/// Text in one line and of bounded length.
fn shortened(text: &str) -> String {
    let line: Vec<&str> = text.split_whitespace().collect();
    let line = line.join(" ");
    // The code and the message of an XML answer say what its other elements repeat.
    let element = |name: &str| {
        let (_, rest) = line.split_once(&format!("<{name}>"))?;
        rest.split_once(&format!("</{name}>")).map(|(inside, _)| inside.to_owned())
    };
    if let Some(code) = element("Code") {
        return element("Message").map_or(code.clone(), |message| format!("{code}: {message}"));
    }
    // `object_store` puts its own description before the server's or system's.
    let own = line.rsplit_once(" - Server returned non-2xx status code: ");
    let line = own.map_or(line.as_str(), |(_, rest)| rest.split_once(": ").map_or("", |(_, r)| r));
    let line = line.rsplit_once("HTTP error: ").map_or(line, |(_, rest)| rest);
    match line.char_indices().nth(LONGEST_REASON) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line.to_owned(),
    }
}

fn said(reason: &str) -> String {
    if reason.is_empty() { String::new() } else { format!(": {reason}") }
}

fn no_credentials(scheme: Scheme, text: &str) -> String {
    let variables = match scheme {
        Scheme::Gs => "GOOGLE_APPLICATION_CREDENTIALS, or GOOGLE_SKIP_SIGNATURE=true",
        _ => "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_SKIP_SIGNATURE=true",
    };
    format!("no credentials were found: set {variables} for a public bucket ({text})")
}

fn with_advice(text: String, status: Option<u16>, scheme: Scheme) -> String {
    let bucket = scheme.can_list();
    let advice = match (status, scheme) {
        (Some(401 | 403), Scheme::S3) => {
            "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN, and that they \
             may read (and for a prefix: list) this bucket"
        }
        (Some(401 | 403), Scheme::Gs) => {
            "check GOOGLE_APPLICATION_CREDENTIALS, and that they may read (and for a prefix: list) \
             this bucket"
        }
        (Some(401 | 403), _) => {
            "this server wants credentials, which are supported for s3:// and gs:// only"
        }
        (Some(404), _) if bucket => {
            "check bucket and key; a prefix whose files are meant must end in `/`"
        }
        (Some(404), _) => "check the URL",
        (Some(300..=400), Scheme::S3) => "check AWS_REGION and AWS_ENDPOINT_URL",
        (Some(300..=400), Scheme::Gs) => "check GOOGLE_BASE_URL and the credentials",
        (Some(416), _) => "the file is shorter than expected; it may have changed",
        (None, Scheme::S3) if text.contains("scheme is not allowed") => {
            "set AWS_ALLOW_HTTP=true if the endpoint is meant to have no encryption"
        }
        (None, Scheme::Gs) if text.contains("scheme is not allowed") => {
            "set GOOGLE_ALLOW_HTTP=true if the endpoint is meant to have no encryption"
        }
        (None, _) if text.contains("invalid peer certificate") => {
            "install the certificate of the server's authority in the system"
        }
        (None, Scheme::S3) => "check AWS_ENDPOINT_URL and the network",
        (None, Scheme::Gs) => "check GOOGLE_BASE_URL and the network",
        (None, _) => "check the host and the network",
        _ => return text,
    };
    format!("{text}; {advice}")
}

/// Attempts of one operation on one URL.
pub(super) struct Retry<'a> {
    url: &'a RemoteUrl,
    timeout: Duration,
    started: Instant,
    attempts: u32,
    without_progress: u32,
}

impl<'a> Retry<'a> {
    pub(super) fn new(url: &'a RemoteUrl, timeout: Duration) -> Self {
        Self { url, timeout, started: Instant::now(), attempts: 0, without_progress: 0 }
    }

    /// Waits before the next attempt. An attempt with `progress` has received new bytes.
    ///
    /// # Errors
    /// The failure, if another attempt is useless or the limits are reached.
    pub(super) async fn after(&mut self, failure: Failure, progress: bool) -> io::Result<()> {
        self.attempts += 1;
        self.without_progress = if progress { 1 } else { self.without_progress + 1 };
        let most = if failure.credentials { MOST_CREDENTIAL_ATTEMPTS } else { MOST_ATTEMPTS };
        let pause = pause(self.without_progress, &self.url.to_string());
        let elapsed = self.started.elapsed();
        let first = if failure.is_first_contact { FIRST_CONTACT } else { self.timeout };
        if failure.permanent {
            return Err(io::Error::new(failure.kind, failure.text));
        }
        if self.without_progress >= most || elapsed + pause >= self.timeout.min(first) {
            let (attempts, elapsed) = (self.attempts, elapsed.as_secs_f32());
            let text =
                format!("gave up after {attempts} attempts in {elapsed:.1} s: {}", failure.text);
            return Err(io::Error::new(failure.kind, text));
        }
        if self.attempts == 1 {
            tracing::warn!(url = %self.url, reason = failure.text, "a request is retried");
        } else {
            tracing::debug!(url = %self.url, reason = failure.text, "a request is retried");
        }
        tokio::time::sleep(pause).await;
        Ok(())
    }
}

/// Pause after the attempt number `attempt`, counted from 1: exponential, of which the second half
/// depends on process and URL, so that the ranks of a run do not return at the same moment.
pub(super) fn pause(attempt: u32, url: &str) -> Duration {
    let longest = FIRST_PAUSE.saturating_mul(1 << (attempt - 1).min(16)).min(LONGEST_PAUSE);
    let seed = format!("{url} {attempt} {}", std::process::id());
    let share = f64::from(blake3::hash(seed.as_bytes()).as_bytes()[0]) / 255.0;
    longest.mul_f64(0.5 + 0.5 * share)
}

#[cfg(test)]
mod tests;
