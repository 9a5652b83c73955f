//! Tests of what an observer sees of a running run: stragglers, the Prometheus endpoint, `status`.
//! Workers are fakes.

#![expect(clippy::disallowed_methods, reason = "these tests start the program and wait for it")]
#![expect(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod fake_run;

use std::io::{Read, Write};
use std::net::TcpListener;
use std::net::TcpStream;
use std::process::Child;

use fake_run::{Ended, FakeRun};

/// Sends an HTTP request, such as `GET /metrics`, and returns the head (status line and headers)
/// and the body.
fn ask(address: &str, request: &str) -> (String, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "{request} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.to_owned(), body.to_owned())
}

/// Checks the OpenMetrics grammar line by line and returns each series, `name{labels}`, with its
/// value.
fn parse(body: &str) -> Vec<(String, f64)> {
    let name = |text: &str| {
        let letter = |c: char| c.is_ascii_alphabetic() || c == '_';
        text.starts_with(letter) && text.chars().all(|c| letter(c) || c.is_ascii_digit())
    };
    let mut families: Vec<(&str, &str)> = Vec::new();
    let mut samples = Vec::new();
    assert!(body.ends_with("# EOF\n"), "{body}");
    for line in body.lines().filter(|line| *line != "# EOF") {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            assert!(name(rest.split_once(' ').unwrap().0), "{line}");
            continue;
        }
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (family, kind) = rest.split_once(' ').unwrap();
            assert!(["gauge", "counter", "info"].contains(&kind), "{line}");
            assert!(families.iter().all(|known| known.0 != family), "{family} twice");
            families.push((family, kind));
            continue;
        }
        let (series, value) = line.rsplit_once(' ').unwrap();
        let (metric, labels) = series.split_once('{').unwrap_or((series, "}"));
        let (family, kind) = *families.last().unwrap();
        let suffix = metric.strip_prefix(family).unwrap();
        let wanted = match kind {
            "counter" => "_total",
            "info" => "_info",
            _ => "",
        };
        assert!(name(metric) && suffix == wanted, "{line}");
        for label in labels.strip_suffix('}').unwrap().split(',').filter(|l| !l.is_empty()) {
            let (key, quoted) = label.split_once('=').unwrap();
            assert!(name(key) && quoted.len() >= 2, "{line}");
            assert!(quoted.starts_with('"') && quoted.ends_with('"'), "{line}");
        }
        let value = if value == "NaN" { f64::NAN } else { value.parse().unwrap() };
        samples.push((series.to_owned(), value));
    }
    samples
}

fn value(samples: &[(String, f64)], series: &str) -> f64 {
    let found = samples.iter().find(|sample| sample.0 == series);
    found.unwrap_or_else(|| panic!("{series} is missing in {samples:#?}")).1
}

/// Starts a run with the endpoint on a free port, waits until the endpoint listens, and returns the
/// process and the address.
fn start(fake: &FakeRun) -> (Child, String) {
    let output = std::fs::File::create(fake.path("output")).unwrap();
    let mut command = fake.command(&["recipe.yaml", "--set", "logging.prometheus=127.0.0.1:0"]);
    let child = fake_run::start(command.stderr(output));
    fake.wait_for("output", "/metrics");
    let said = fake.read("output");
    let address = said.split("http://").nth(1).unwrap().split('/').next().unwrap().to_owned();
    (child, address)
}

/// Scenario with three rounds in which rank 1 waits 0.9 s for data and the others 0.1 s; then all
/// wait for the test.
const SLOW: &str = "hello; step 0; for s in 10 20 30; do \
    [ $rank = 1 ] && interval $s 0.9 1.0 || interval $s 0.1 1.0; sleep 0.2; done; \
    [ $rank = 0 ] && saved 7; echo ready >> $run/ready; \
    while [ ! -e $run/go ]; do beat 9 forward; sleep 0.05; done; complete";

#[test]
fn a_persistent_straggler_is_named_in_events_progress_status_and_report() {
    let fake = FakeRun::new(3, SLOW);
    let child = fake.start(&["recipe.yaml"]);
    fake.wait_for("runs/fake/ready", "ready\nready\nready");
    fake.wait_for("runs/fake/events.jsonl", "straggler");
    fake.write("runs/fake/go", "");
    let ended = Ended::from(child.wait_with_output().unwrap());
    let named = "rank 1 on here is slow: 73% over the median rank in 3 intervals in a row up to step 30, most of it in phase data";
    ended.said(0, &[named]);
    assert_eq!(ended.text.matches("is slow").count(), 1, "{}", ended.text);
    let events = fake.read("runs/fake/events.jsonl");
    assert!(
        events.contains(r#""event":"straggler","rank":1,"host":"here","step":30,"phase":"data""#),
        "{events}"
    );
    let status = fake.launch(&["status", "runs/fake"]).out;
    for text in [
        "ranks at step 30 (",
        "3 of 3 reported",
        "slowest: rank 1 on here, 73% over the median, most of it in phase data",
    ] {
        assert!(status.contains(text), "`{text}` is missing in:\n{status}");
    }
    let status: serde_json::Value =
        serde_json::from_str(&fake.launch(&["status", "runs/fake", "--json"]).out).unwrap();
    let row = &status["ranks"]["slowest"][0];
    assert_eq!(
        (row["rank"].as_u64(), row["slow_in_a_row"].as_u64()),
        (Some(1), Some(3)),
        "{status}"
    );
    assert_eq!(status["ranks"]["phases"]["data"]["max_rank"], 1);
    assert!(fake.read("runs/fake/report.html").contains("rank 1 on here is slow"));
}

#[test]
fn a_scrape_answers_the_runs_numbers_in_openmetrics_and_never_its_token() {
    let fake = FakeRun::new(3, SLOW);
    let (mut child, address) = start(&fake);
    // These events follow from the last messages: the third round of all ranks, and the checkpoint
    // of rank 0.
    fake.wait_for("runs/fake/events.jsonl", "straggler");
    fake.wait_for("runs/fake/events.jsonl", "saved");
    let (head, body) = ask(&address, "GET /metrics");
    assert!(
        head.starts_with("HTTP/1.1 200")
            && head.contains("application/openmetrics-text; version=1.0.0"),
        "{head}"
    );
    let samples = parse(&body);
    for (series, expected) in [
        ("vljepa_up", 1.0),
        ("vljepa_run_info{name=\"fake\"}", 1.0),
        ("vljepa_step", 1.0),
        ("vljepa_loss", 0.5),
        ("vljepa_learning_rate", 0.001),
        ("vljepa_samples_per_second", 100.0),
        ("vljepa_checkpoint_step", 7.0),
        ("vljepa_checkpoint_stall_seconds", 0.01),
        ("vljepa_restarts_total", 0.0),
        ("vljepa_ranks{state=\"connected\"}", 3.0),
        ("vljepa_slowest_rank", 1.0),
        ("vljepa_phase_seconds{phase=\"data\",ranks=\"max\"}", 0.09),
        ("vljepa_phase_seconds{phase=\"data\",ranks=\"median\"}", 0.01),
        ("vljepa_memory_bytes{where=\"host\"}", 102.0 * 1_048_576.0),
    ] {
        let found = value(&samples, series);
        assert!((found - expected).abs() < 1e-9 * expected.max(1.0), "{series} is {found}");
    }
    assert!((0.0..10.0).contains(&value(&samples, "vljepa_heartbeat_age_seconds_max")));
    let token = fake.token();
    assert!(token.len() == 32 && !body.contains(&token) && !head.contains(&token));
    assert!(ask(&address, "GET /").0.starts_with("HTTP/1.1 404"));
    assert!(ask(&address, "POST /metrics").0.starts_with("HTTP/1.1 405"));
    fake.write("runs/fake/go", "");
    assert!(child.wait().unwrap().success());
    assert!(TcpStream::connect(&address).is_err(), "the port is closed with the run");
}

#[test]
fn faults_and_restarts_are_counted() {
    let fake = FakeRun::new(
        1,
        "hello; step 0; [ $attempt = 1 ] && kill -9 $$; echo ready >> $run/ready; \
         while [ ! -e $run/go ]; do beat 9 forward; sleep 0.05; done; complete",
    );
    let (mut child, address) = start(&fake);
    fake.wait_for("runs/fake/ready", "ready");
    let samples = parse(&ask(&address, "GET /metrics").1);
    assert_eq!(value(&samples, "vljepa_restarts_total").to_bits(), 1_f64.to_bits());
    assert_eq!(value(&samples, "vljepa_faults_total{kind=\"died\"}").to_bits(), 1_f64.to_bits());
    assert_eq!(value(&samples, "vljepa_attempt").to_bits(), 2_f64.to_bits());
    fake.write("runs/fake/go", "");
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_port_in_use_is_refused_with_its_key_before_a_worker_starts() {
    let fake = FakeRun::new(1, "hello; complete");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let set = format!("logging.prometheus={address}");
    let text = format!("logging.prometheus: cannot listen at {address}");
    fake.launch(&["recipe.yaml", "--set", &set])
        .said(2, &[&text, "Address already in use", "choose a free port"]);
    assert!(!fake.path("runs/fake/pids").exists(), "no worker was started");
}

#[test]
fn a_run_goes_on_when_its_events_cannot_be_written() {
    let fake = FakeRun::new(1, "hello; for s in 0 1 2; do step $s; done; complete");
    // A folder with the name of the file makes every write fail, like a full disk.
    std::fs::create_dir_all(fake.path("runs/fake/events.jsonl")).unwrap();
    std::fs::copy(fake.path("recipe.yaml"), fake.path("runs/fake/recipe.yaml")).unwrap();
    let ended = fake.launch(&["recipe.yaml"]);
    ended.said(0, &["warning: events.jsonl", "complete: 10 steps", "report.html"]);
}
