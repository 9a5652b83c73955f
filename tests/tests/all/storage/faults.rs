//! Requests that fail: those that are repeated, and those that end with a reason.

use std::time::Duration;

use vljepa_data::storage::{Storage, StorageOptions};

use super::proxy::Fault;
use super::servers::{content, gs, options, put_gs, put_s3, s3, servers, storage};
use super::{at, error, http, part};

/// Length of the file that is read in one request.
const LENGTH: usize = 2_000_000;

#[test]
fn a_failed_request_is_repeated_from_the_byte_that_was_reached() {
    let bytes = content(2, LENGTH);
    put_s3("faults/a.tar", &bytes);
    let (proxy, options) = s3();
    let storage = storage(&options);
    let file = storage.open(&at("s3://bucket/faults/a.tar")).unwrap();
    proxy.requests();
    let all = "0-1999999";
    let cases: [(&[Fault], &[&str]); 9] = [
        (&[Fault::Status(503)], &[all, all]),
        (&[Fault::Status(500), Fault::Status(429)], &[all, all, all]),
        (&[Fault::Close], &[all, all]),
        (&[Fault::Cut(100_000)], &[all, "100000-1999999"]),
        (&[Fault::Cut(0)], &[all, all]),
        (
            &[Fault::Cut(100_000), Fault::Status(503), Fault::Cut(50_000)],
            &[all, "100000-1999999", "100000-1999999", "150000-1999999"],
        ),
        // The answer ends as its header says, but before the end of the range.
        (&[Fault::Short(100_000)], &[all, "100000-1999999"]),
        (&[Fault::Stall(100_000)], &[all, "100000-1999999"]),
        // A slow answer is no fault.
        (&[Fault::Slow(40_000)], &[all]),
    ];
    for (faults, ranges) in cases {
        proxy.disturb(faults);
        assert!(part(&file, 0, LENGTH) == bytes, "{faults:?}");
        assert_eq!(proxy.ranges(), ranges, "{faults:?}");
    }
}

#[test]
fn requests_to_google_and_to_web_servers_are_repeated_too() {
    let bytes = content(3, LENGTH);
    put_s3("faults/b.tar", &bytes);
    put_gs("faults/b.tar", &bytes);
    let (gs_proxy, gs_options) = gs();
    let (http_proxy, http_options, start) = http();
    for (url, options, proxy) in [
        ("gs://bucket/faults/b.tar".to_owned(), gs_options, gs_proxy),
        (format!("{start}/faults/b.tar"), http_options, http_proxy),
    ] {
        let storage = storage(&options);
        proxy.disturb(&[Fault::Status(503), Fault::Close]);
        let file = storage.open(&at(&url)).unwrap();
        assert_eq!(proxy.ranges(), ["0-0"; 3], "{url}");
        proxy.disturb(&[Fault::Cut(70_000), Fault::Short(30_000)]);
        assert!(part(&file, 0, LENGTH) == bytes, "{url}");
        assert_eq!(proxy.ranges(), ["0-1999999", "70000-1999999", "100000-1999999"], "{url}");
    }
}

#[test]
fn listing_and_writing_are_repeated() {
    put_s3("again/a.tar", b"a");
    let (proxy, options) = s3();
    let storage = storage(&options);
    proxy.disturb(&[Fault::Status(503), Fault::Close]);
    assert_eq!(storage.expand("s3://bucket/again/").unwrap().len(), 1);
    assert_eq!(proxy.requests().len(), 3);
    proxy.disturb(&[Fault::Status(500)]);
    storage.write(&at("s3://bucket/again/b"), b"b").unwrap();
    assert_eq!(proxy.requests().len(), 2);
    assert_eq!(storage.read(&at("s3://bucket/again/b")).unwrap(), b"b");
}

#[test]
fn a_file_that_changes_is_an_error_and_never_mixed() {
    put_s3("faults/changed.tar", &content(4, LENGTH));
    let (proxy, options) = s3();
    let storage = storage(&options);
    let url = "s3://bucket/faults/changed.tar";
    let file = storage.open(&at(url)).unwrap();
    proxy.disturb(&[Fault::Cut(100_000), Fault::Etag("other")]);
    let error = file.read_exact_at(&mut vec![0; LENGTH], 0).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::InvalidData);
    assert!(error.to_string().contains("the file changed while it was in use"), "{error}");
    // The same with a real change, of the same length.
    let other = content(5, LENGTH);
    put_s3("faults/changed.tar", &other);
    assert!(file.read_exact_at(&mut [0; 10], 0).is_err());
    let file = storage.open(&at(url)).unwrap();
    assert!(part(&file, 0, LENGTH) == other);
    // A shorter file.
    put_s3("faults/changed.tar", &other[..1000]);
    for offset in [0, 500, 1_500_000] {
        let error = file.read_exact_at(&mut vec![0; 400_000], offset).unwrap_err().to_string();
        assert!(error.contains("changed"), "{error}");
    }
}

#[test]
fn errors_that_stay_are_reported_at_once_with_advice() {
    put_s3("faults/small.tar", b"small");
    put_gs("faults/small.tar", b"small");
    let (s3_proxy, s3_options) = s3();
    let (gs_proxy, gs_options) = gs();
    let (http_proxy, http_options, start) = http();
    let (s3, gs) = (storage(&s3_options), storage(&gs_options));
    let http = storage(&http_options);
    let missing = format!("{start}/faults/missing.tar");
    let small = format!("{start}/faults/small.tar");
    for (storage, url, said) in [
        (&s3, "s3://bucket/faults", "NoSuchKey"),
        (&s3, "s3://bucket/faults", "a prefix whose files are meant must end in `/`"),
        (&s3, "s3://no-such-bucket/a.tar", "NoSuchBucket"),
        (&gs, "gs://bucket/faults/missing.tar", "404 (not found)"),
        (&http, &missing, "404 (not found)"),
    ] {
        let error = error(storage, url);
        assert!(error.contains(said) && error.contains(url), "{error}");
    }
    for (proxy, expected) in [(&s3_proxy, 3), (&gs_proxy, 1), (&http_proxy, 1)] {
        assert_eq!(proxy.requests().len(), expected, "nothing is repeated");
    }
    for (status, said) in [
        (401, "401 (unauthorized): disturbed; check AWS_ACCESS_KEY_ID"),
        (403, "403 (forbidden): disturbed; check AWS_ACCESS_KEY_ID"),
        (400, "check AWS_REGION and AWS_ENDPOINT_URL"),
        (301, "check AWS_REGION and AWS_ENDPOINT_URL"),
    ] {
        s3_proxy.disturb(&[Fault::Status(status)]);
        let error = error(&s3, "s3://bucket/faults/small.tar");
        let request = format!("GET http://{}/bucket/faults/small.tar answered", s3_proxy.address);
        assert!(error.contains(said) && error.contains(&request), "{error}");
        assert_eq!(s3_proxy.requests().len(), 1, "{status} is not repeated");
    }
    http_proxy.disturb(&[Fault::Whole, Fault::Unversioned]);
    let text = error(&http, &small);
    assert!(text.contains("does not support range requests"), "{text}");
    let text = error(&http, &small);
    assert!(text.contains("neither an ETag nor a time"), "{text}");
    assert!(http.open(&at(&small)).is_ok());
}

#[test]
fn wrong_settings_are_named() {
    put_s3("faults/small.tar", b"small");
    let (_proxy, options) = s3();
    let changed = |name: &str, value: &str| {
        let mut options = options.clone();
        options.variables.retain(|(known, _)| known != name);
        options.variables.push((name.to_owned(), value.to_owned()));
        error(&storage(&options), "s3://bucket/faults/small.tar")
    };
    let text = changed("AWS_SECRET_ACCESS_KEY", "wrong");
    assert!(text.contains("403 (forbidden): SignatureDoesNotMatch"), "{text}");
    assert!(text.contains("check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY"), "{text}");
    assert!(!text.contains("wrong"), "{text}");
    let text = changed("AWS_ALLOW_HTTP", "false");
    assert!(text.contains("AWS_ALLOW_HTTP=true"), "{text}");
    let text = changed("AWS_NO_SUCH_SETTING", "1");
    assert!(text.contains("aws_no_such_setting"), "{text}");
    let (_proxy, _, start) = http();
    let text = storage(&options).expand(&format!("{start}/faults/")).unwrap_err().to_string();
    assert!(text.contains("cannot be listed") && text.contains(".txt file"), "{text}");
}

#[test]
fn a_server_that_stays_away_ends_the_read_with_the_last_reason() {
    let (proxy, options) = s3();
    let options = StorageOptions { retry_timeout: Duration::from_secs(2), ..options };
    proxy.disturb_all(Fault::Status(503));
    let text = error(&storage(&options), "s3://bucket/faults/small.tar");
    let tries = proxy.requests().len();
    assert!(text.contains(&format!("gave up after {tries} attempts")), "{text}");
    assert!(text.contains("503 (service unavailable): disturbed"), "{text}");
    assert!((3..20).contains(&tries), "{tries}");
    // A port on which nobody listens.
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let options = StorageOptions { retry_timeout: Duration::from_secs(1), ..self::options(&[]) };
    let text = error(&storage(&options), &format!("http://{closed}/a.tar"));
    assert!(text.contains("refused") && text.contains("check the host and the network"), "{text}");
}

#[test]
fn a_storage_is_used_from_any_thread() {
    fn shared<T: Send + Sync>() {}
    shared::<Storage>();
    put_s3("faults/thread.tar", b"thread");
    let url = format!("http://{}/buckets/bucket/faults/thread.tar", servers().http);
    let storage = storage(&options(&[]));
    let read = std::thread::scope(|scope| {
        let threads: Vec<_> =
            (0..8).map(|_| scope.spawn(|| storage.read(&at(&url)).unwrap())).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
    });
    assert!(read.iter().all(|bytes| bytes == b"thread"));
}
