//! Tests of the control plane through the program: a port in use, strangers, the token, and health
//! checks before the start.

use std::io::Write;
use std::net::{TcpListener, TcpStream};

use super::{Ended, FakeRun, TRAINS, WAITS};

#[test]
fn a_port_in_use_is_named_with_its_key_before_anything_starts() {
    let fake = FakeRun::new(1, TRAINS);
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let set = format!("cluster.control.port={port}");
    let ended = fake.launch(&["recipe.yaml", "--set", &set]);
    let named = format!("port {port} (cluster.control.port)");
    ended.said(3, &[&named, "in use", "--set cluster.control.port=0"]);
    assert_eq!(fake.read("runs/fake/pids"), "");
    drop(taken);
    fake.launch(&["recipe.yaml", "--set", &set]).said(0, &["complete: 10 steps"]);
}

#[test]
fn an_attempt_starts_only_on_a_healthy_machine() {
    let fake = FakeRun::new(2, TRAINS);
    fake.write("bin/unhealthy", "room shards");
    let ended = fake.launch(&["recipe.yaml"]);
    ended.said(
        3,
        &[
            "pass control",
            "fail room",
            "fail shards",
            "workers cannot run on",
            ": room, shards",
            "room: as told",
            "free space",
            "mount the data",
        ],
    );
    assert_eq!(fake.read("runs/fake/pids"), "", "no worker was started");
    std::fs::remove_file(fake.path("bin/unhealthy")).unwrap();
    fake.launch(&["recipe.yaml"]).said(0, &["pass room", "complete: 10 steps"]);
}

#[test]
fn a_restart_looks_again_and_tells_only_what_failed() {
    let dies = "hello; step 0; echo clock > \"$here/unhealthy\"; sleep 0.3; exit 1";
    let fake = FakeRun::new(1, dies);
    let ended = fake.launch(&["recipe.yaml"]);
    ended.said(3, &["pass clock", "rank 0 died", "fail clock", "timedatectl"]);
    assert_eq!(ended.text.matches("pass room").count(), 1, "{}", ended.text);
    assert_eq!(fake.read("runs/fake/pids").lines().count(), 1);
}

#[test]
fn the_token_is_in_no_command_line() {
    let fake = FakeRun::new(
        2,
        &format!("echo $VLJEPA_TOKEN > \"$run/token\"; {WAITS} finished stopped 1"),
    );
    let launcher = fake.start(&["recipe.yaml"]);
    fake.wait_for("runs/fake/ready", "ready\nready");
    let token = fake.read("runs/fake/token").trim().to_owned();
    assert_eq!(token.len(), 32);
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    for line in processes.filter_map(|process| std::fs::read(process.path().join("cmdline")).ok()) {
        let line = String::from_utf8_lossy(&line).into_owned();
        assert!(!line.contains(&token), "{line}");
    }
    assert!(!fake.read("runs/fake/events.jsonl").contains(&token));
    super::signal(&launcher, nix::sys::signal::Signal::SIGTERM);
    Ended::from(launcher.wait_with_output().unwrap()).said(143, &["saved and stopped"]);
}

#[test]
fn strangers_do_not_disturb_a_run_and_do_not_fill_its_files() {
    let fake = FakeRun::new(
        1,
        &format!("echo \"$control.\" > \"$run/control\"; {WAITS} finished stopped 1"),
    );
    let launcher = fake.start(&["recipe.yaml"]);
    fake.wait_for("runs/fake/ready", "ready");
    let address = fake.read("runs/fake/control").trim().trim_end_matches('.').to_owned();
    for number in 0..60 {
        let mut stranger = TcpStream::connect(&address).unwrap();
        let noise: &[u8] =
            if number % 2 == 0 { b"GET / HTTP/1.1\r\n\r\n" } else { b"\x16\x03\x01\n\xff" };
        stranger.write_all(noise).unwrap();
    }
    fake.wait_for("runs/fake/events.jsonl", "is not a hello");
    super::signal(&launcher, nix::sys::signal::Signal::SIGTERM);
    let ended = Ended::from(launcher.wait_with_output().unwrap());
    ended.said(143, &["saved and stopped", "further strangers are refused without a message"]);
    let refused = fake.read("runs/fake/events.jsonl").matches("is not a hello").count();
    assert_eq!(refused, 20);
}
