//! Tests of which failures are retried, of the pauses, and of the texts.

use std::io;
use std::time::{Duration, Instant};

use super::{Exchange, Failure, LONGEST_PAUSE, MOST_ATTEMPTS, Retry, is_passing, pause, shortened};
use crate::storage::client::wait_for;
use crate::storage::{RemoteUrl, StorageOptions};

fn url(text: &str) -> RemoteUrl {
    RemoteUrl::parse(text).unwrap()
}

fn failure(location: &str, request: &str, status: Option<u16>, text: &str) -> Failure {
    let error = object_store::Error::Generic { store: "S3", source: text.to_owned().into() };
    let exchange = Exchange { method: "GET".to_owned(), url: request.to_owned(), status };
    Failure::new(&error, Some(exchange), &url(location))
}

#[test]
fn only_failures_that_may_pass_are_retried() {
    for status in [408, 425, 429, 500, 502, 503, 504, 507, 520] {
        assert!(is_passing(status), "{status}");
    }
    for status in [301, 304, 400, 401, 403, 404, 405, 409, 412, 416, 501, 505] {
        assert!(!is_passing(status), "{status}");
    }
}

#[test]
fn pauses_grow_and_fill_the_time_limit() {
    for attempt in 1..=MOST_ATTEMPTS {
        let longest = Duration::from_millis(200 * (1 << (attempt - 1).min(10))).min(LONGEST_PAUSE);
        let pause = pause(attempt, "s3://bucket/a.tar");
        assert!(longest / 2 <= pause && pause <= longest, "{attempt}: {pause:?}");
    }
    assert_ne!(pause(3, "s3://bucket/a.tar"), pause(3, "s3://bucket/b.tar"));
    // The number of attempts must not end the retries long before the time does.
    let total: Duration = (1..MOST_ATTEMPTS).map(|attempt| pause(attempt, "x")).sum();
    assert!(total > StorageOptions::default().retry_timeout * 2 / 3, "{total:?}");
}

#[test]
fn attempts_end_at_the_time_limit_and_say_so() {
    let result: io::Result<()> = wait_for(async {
        let url = url("s3://bucket/a.tar");
        let mut retry = Retry::new(&url, Duration::from_millis(500));
        loop {
            retry.after(Failure::passing("it broke".to_owned()), false).await?;
        }
    });
    let text = result.unwrap_err().to_string();
    assert!(text.starts_with("gave up after ") && text.ends_with(" s: it broke"), "{text}");
}

#[test]
fn a_machine_without_credentials_is_told_soon() {
    let start = Instant::now();
    let result: io::Result<()> = wait_for(async {
        let url = url("s3://bucket/a.tar");
        let mut retry = Retry::new(&url, Duration::from_secs(3000));
        loop {
            let metadata = "http://169.254.169.254/latest/api/token";
            retry.after(failure("s3://bucket/a.tar", metadata, None, "timed out"), false).await?;
        }
    });
    let text = result.unwrap_err().to_string();
    assert!(text.contains("after 3 attempts") && text.contains("AWS_ACCESS_KEY_ID"), "{text}");
    assert!(start.elapsed() < Duration::from_secs(600), "not all attempts are made");
}

#[test]
fn a_server_that_never_answered_is_given_up_after_half_a_minute() {
    let after_31_s = |is_first_contact| -> io::Result<()> {
        wait_for(async move {
            let url = url("s3://bucket/a.tar");
            let mut retry = Retry::new(&url, Duration::from_secs(300));
            retry.started = retry.started.checked_sub(Duration::from_secs(31)).unwrap();
            let failure = Failure::passing("connection refused".to_owned());
            retry.after(Failure { is_first_contact, ..failure }, false).await
        })
    };
    assert!(after_31_s(true).unwrap_err().to_string().contains("connection refused"));
    assert!(after_31_s(false).is_ok());
}

#[test]
fn failures_say_what_to_do() {
    let xml = "Server returned non-2xx status code: 403 Forbidden: <?xml?><Error><Code>AccessDenied\
               </Code><Message>Access Denied.</Message><Resource>/b/k</Resource></Error>";
    for (location, status, text, said) in [
        (
            "s3://b/k",
            Some(403),
            xml,
            "403 (forbidden): AccessDenied: Access Denied.; check AWS_ACC",
        ),
        ("gs://b/k", Some(401), "", "401 (unauthorized); check GOOGLE_APPLICATION_CREDENTIALS"),
        ("https://b/k", Some(403), "", "credentials, which are supported for s3:// and gs:// only"),
        ("s3://b/k", Some(404), "", "must end in `/`"),
        ("https://b/k", Some(404), "", "404 (not found); check the URL"),
        ("s3://b/k", Some(301), "", "check AWS_REGION and AWS_ENDPOINT_URL"),
        ("s3://b/k", Some(416), "", "shorter than expected"),
        ("s3://b/k", None, "URL scheme is not allowed", "AWS_ALLOW_HTTP=true"),
        ("https://b/k", None, "invalid peer certificate: UnknownIssuer", "install the certificate"),
    ] {
        let answer = "it failed - Server returned non-2xx status code: 400 Bad Request: ";
        let text = if text.is_empty() { answer } else { text };
        let failure = failure(location, "http://host/b/k", status, text);
        assert!(failure.permanent, "{}", failure.text);
        assert!(failure.text.contains("GET http://host/b/k "), "{}", failure.text);
        assert!(failure.text.contains(said), "{} lacks {said}", failure.text);
    }
    for status in [Some(503), Some(429), None] {
        assert!(!failure("s3://b/k", "http://host/b/k", status, "connection refused").permanent);
    }
}

#[test]
fn long_answers_of_a_server_are_shortened() {
    let text = shortened(&"é\n ".repeat(10_000));
    assert!(text.chars().count() == 301 && !text.contains('\n'), "{text}");
}
