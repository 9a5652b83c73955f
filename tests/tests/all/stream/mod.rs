//! A video is described while it is shown: captions begin at its changes, from files, pipes and
//! servers. What happens to a slow model, a damaged file and a lost server.

mod scene;

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use self::scene::{QUERY, Running, Server, captions, ended, events, scene, wait_for_end};
use crate::programs::text;

/// Length of a window in seconds.
const WINDOW_S: f64 = 0.5;

fn is(event: &'static str) -> impl Fn(&Value) -> bool {
    move |found| found["event"] == event
}

#[test]
fn captions_begin_at_the_changes_of_a_video_and_one_is_decoded_for_each() {
    let scene = scene();
    let output = scene.output(&scene.file, &["--json"]);
    assert!(output.status.success(), "{}", text(&output));
    let events = events(&output.stdout);
    let captions = captions(&events);
    // How many captions begin within a window of a change, if all changes were later by `shift`.
    let near = |shift: f64| {
        let is_near = |start: f64| {
            scene.boundaries.iter().any(|change| (change + shift - start).abs() <= WINDOW_S)
        };
        captions.iter().filter(|(start, _)| is_near(*start)).count()
    };
    assert!(captions.len() * 2 > scene.boundaries.len(), "{captions:?}");
    assert!(near(0.0) * 10 >= captions.len() * 9, "{captions:?}, {:?}", scene.boundaries);
    assert!(near(5.0) * 10 < captions.len() * 9, "the comparison can fail");
    assert!(captions.windows(2).all(|pair| pair[0].0 < pair[1].0), "{captions:?}");

    let windows = events.iter().filter(|event| is("window")(event)).count();
    let summary = &ended(&events)["summary"];
    assert_eq!(ended(&events)["end"], json!({"why": "finished"}));
    assert_eq!((&summary["windows"], &summary["dropped"]), (&json!(windows), &json!(0)));
    assert_eq!(summary["texts"], json!(captions.len()));
    let saving = windows as f64 / captions.len() as f64;
    assert_eq!(summary["saving"], json!(saving));
    assert!(summary["to_text"]["p99_s"].as_f64().unwrap() > 0.0, "{summary}");
    // A threshold above all variances has one caption.
    let whole = scene.output(&scene.file, &["--json", "--threshold", "9"]);
    assert_eq!(self::captions(&self::events(&whole.stdout)).len(), 1);
}

#[test]
fn standard_input_and_a_named_pipe_give_the_captions_of_the_file() {
    let scene = scene();
    let of_file = captions(&events(&scene.output(&scene.file, &["--json"]).stdout));
    let packets = fs::read(scene.transport_stream()).unwrap();

    let mut child = scene.command("-", &["--json"]).stdin(Stdio::piped()).spawn().unwrap();
    let (mut input, all) = (child.stdin.take().unwrap(), packets.clone());
    // A program that ends early does not read everything: its output says why.
    std::thread::spawn(move || drop(input.write_all(&all)));
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    assert_eq!(captions(&events(&output.stdout)), of_file);

    let pipe = scene.trial.path("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let (page, shown) = (scene.trial.path("pipe.html"), pipe.display().to_string());
    let page_text = page.display().to_string();
    let child = scene.command(&shown, &["--json", "--html", &page_text]).spawn().unwrap();
    // Half of the video: the pipe's captions are those of that half.
    let half = packets[..packets.len() / 2 / 188 * 188].to_vec();
    std::thread::spawn(move || fs::File::create(&pipe).unwrap().write_all(&half).unwrap());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    let of_pipe = captions(&events(&output.stdout));
    // The last caption may be told early, because the stream has ended.
    let whole = of_pipe.len() - 1;
    assert_eq!(of_pipe[..whole], of_file[..whole]);
    assert!(whole > 4 && whole < of_file.len() - 1, "{of_pipe:?}");
    let page = fs::read_to_string(page).unwrap();
    assert!(page.contains("not recorded"), "{page}");
    // Each caption has a picture, also one that is told because the stream has ended.
    let entries: Vec<_> = page.split("<li data-number").skip(1).collect();
    assert_eq!(entries.len(), of_pipe.len());
    assert!(entries.iter().all(|entry| entry.contains("data:image/jpeg;base64,")), "{page}");
    assert!(
        !String::from_utf8_lossy(&output.stdout).contains("picture"),
        "pictures are not printed"
    );

    // An MP4 whose index comes last is refused with advice.
    let mut child = scene.command("-", &[]).stdin(Stdio::piped()).spawn().unwrap();
    let (mut input, file) = (child.stdin.take().unwrap(), fs::read(&scene.file).unwrap());
    std::thread::spawn(move || drop(input.write_all(&file)));
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output).contains("faststart"), "{}", text(&output));
}

#[test]
fn at_its_own_speed_a_typed_line_becomes_the_query_and_ctrl_c_ends_with_the_summary() {
    let scene = scene();
    let page = scene.trial.path("own.html");
    let more = ["--speed", "own", "--html", &page.display().to_string()];
    let mut running = Running::start(scene.command(&scene.file, &more));
    let opened = running.wait(is("opened"));
    assert_eq!((&opened["query"], &opened["frames"]), (&json!(QUERY), &json!(4)));
    let first = running.wait(is("caption"));
    assert_eq!((&first["start_s"], &first["query"]), (&json!(0.0), &json!(QUERY)));
    running.say("\n");
    let refused = running.wait(is("refused"));
    assert!(refused["why"].as_str().unwrap().contains("an empty line is not a query"), "{refused}");
    running.say("xyzzy\n");
    let refused = running.wait(is("refused"));
    assert!(refused["why"].as_str().unwrap().contains("cannot encode"), "{refused}");
    running.say("a ".repeat(1_000_000) + "\n");
    let refused = running.wait(is("refused"));
    assert!(refused["why"].as_str().unwrap().contains("more than 4096 bytes"), "{refused}");
    running.say("what shape is it?\n");
    let asked = running.wait(is("query"));
    let second = running.wait(is("caption"));
    assert_eq!(second["query"], json!("what shape is it?"));
    // The new segment starts in the window after the line, in the middle of the first motion.
    let (at, start) = (asked["at_s"].as_f64().unwrap(), second["start_s"].as_f64().unwrap());
    assert!((at - WINDOW_S..at + 2.0 * WINDOW_S).contains(&start), "{asked}, {second}");
    running.signal(Signal::SIGINT);
    let (events, said, status) = running.end();
    assert_eq!(status.code(), Some(0), "{said}");
    assert_eq!(ended(&events)["end"], json!({"why": "stopped"}));
    let summary = &ended(&events)["summary"];
    let seconds = |key: &str| summary[key].as_f64().unwrap();
    assert!(seconds("video_s") <= seconds("wall_s"), "faster than its clock: {summary}");
    assert_eq!(events.iter().filter(|event| is("refused")(event)).count(), 3);
    let page = fs::read_to_string(page).unwrap();
    for part in ["src=\"data:video/mp4;base64,", "“what shape is it?” from", "stopped"] {
        assert!(page.contains(part), "{part}");
    }
}

#[test]
fn a_model_that_is_too_slow_drops_windows_at_own_speed_and_says_so() {
    let scene = scene();
    // A worker that is frozen for five seconds is a hundred windows late.
    let more = ["--speed", "own"];
    let mut running = Running::start(scene.command_each("0.05", &scene.file, &more));
    running.wait(is("window"));
    running.signal_worker(Signal::SIGSTOP);
    std::thread::park_timeout(Duration::from_secs(5));
    running.signal_worker(Signal::SIGCONT);
    let late = running.wait(|event| event["end_s"].as_f64().is_some_and(|end| end > 5.0));
    assert_eq!(late["event"], "window");
    running.signal(Signal::SIGTERM);
    let (events, said, status) = running.end();
    assert_eq!(status.code(), Some(0), "{said}");
    let summary = &ended(&events)["summary"];
    let (dropped, windows) = (summary["dropped"].as_u64().unwrap(), summary["windows"].as_u64());
    let starts = events.iter().filter(|event| is("window")(event)).count();
    assert_eq!(windows, Some(starts as u64));
    assert!(dropped > 10, "{summary}");
}

#[test]
fn a_damaged_file_keeps_the_captions_before_and_says_where_it_ends() {
    let scene = scene();
    let whole = captions(&events(&scene.output(&scene.file, &["--json"]).stdout));
    let mut bytes = fs::read(&scene.file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle..middle + 400].fill(0xff);
    let damaged = scene.trial.path("damaged.mp4");
    fs::write(&damaged, bytes).unwrap();
    let output = scene.output(&damaged.display().to_string(), &["--json"]);
    assert_eq!(output.status.code(), Some(1), "{}", text(&output));
    let events = events(&output.stdout);
    let before = captions(&events);
    let told = before.len() - 1;
    assert!(told > 2 && told < whole.len() && before[..told] == whole[..told], "{before:?}");
    let error = ended(&events)["end"]["error"].as_str().unwrap();
    let second = error.strip_suffix(" s after its start").unwrap().rsplit(' ').next().unwrap();
    let (second, end) = (second.parse::<f64>().unwrap(), &ended(&events)["summary"]["video_s"]);
    assert!((second - end.as_f64().unwrap()).abs() <= 2.0 * WINDOW_S, "{error}, {end}");
    assert!(error.starts_with("the file is damaged"), "{error}");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("damaged.mp4: the file is damaged"), "{said}");
}

#[test]
fn what_cannot_be_described_is_refused_with_the_reason() {
    let scene = scene();
    let refused = |video: &str, code: i32, said: &str| {
        let output = scene.output(video, &[]);
        // Long lines are broken.
        let words = text(&output).replace(['│', '\n'], " ");
        let words = words.split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(output.status.code(), Some(code), "{words}");
        assert!(words.contains(said) && !words.contains("panic"), "{words}");
    };
    refused("none.mp4", 2, "none.mp4 does not exist");
    refused("/dev/null", 2, "is a device, but not a camera");
    refused("http://127.0.0.1/a.mp4", 2, "is not an address of RTSP");
    let note = scene.trial.path("note.mp4");
    fs::write(&note, b"no video").unwrap();
    refused(&note.display().to_string(), 1, "the clip cannot be opened");
    refused("rtsp://127.0.0.1:9/a.mp4", 1, "the server cannot be reached: Connection refused");
    // The password of a server is not published.
    let page = scene.trial.path("address.html");
    let more = ["--json", "--html", &page.display().to_string()];
    let output = scene.output("rtsp://me:secret@127.0.0.1:9/a.mp4", &more);
    assert!(text(&output).contains("rtsp://127.0.0.1:9/a.mp4"), "{}", text(&output));
    let page = fs::read_to_string(page).unwrap();
    assert!(page.contains("rtsp://127.0.0.1:9/a.mp4"), "{page}");
    assert!(!text(&output).contains("secret") && !page.contains("secret"));
    let output = scene.output(&scene.file, &["--html", &scene.file]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output).contains("would replace the video"), "{}", text(&output));
    let without = crate::programs::command("vljepa-launch")
        .arg("stream")
        .arg(scene.trial.path("trained"))
        .arg(&scene.file)
        .output()
        .unwrap();
    assert_eq!(without.status.code(), Some(2));
    assert!(text(&without).contains("has no Y-decoder"), "{}", text(&without));
}

#[test]
fn a_closed_standard_output_ends_the_stream_and_a_full_one_is_an_error() {
    let scene = scene();
    let mut piped = scene.command(&scene.file, &["--speed", "own"]).spawn().unwrap();
    drop(piped.stdout.take());
    assert!(piped.wait().unwrap().success());
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output = scene.command(&scene.file, &["--json"]).stdout(full).output().unwrap();
    assert_eq!(output.status.code(), Some(3), "{}", text(&output));
    let said = text(&output);
    assert!(said.contains("writing to standard output failed: No space left"), "{said}");
}

#[test]
fn the_worker_of_a_killed_command_ends_while_its_source_is_silent() {
    let scene = scene();
    let packets = fs::read(scene.transport_stream()).unwrap();
    let mut running = Running::start(scene.command("-", &[]));
    running.say(&packets[..packets.len() / 4]);
    running.wait(is("window"));
    let worker = running.worker();
    running.signal(Signal::SIGKILL);
    wait_for_end(worker);
}

#[test]
fn a_camera_is_read_by_ffmpeg_at_its_own_speed() {
    let scene = scene();
    let of_file = events(&scene.output(&scene.file, &["--json"]).stdout);
    let folder = scene.trial.path("camera");
    fs::create_dir(&folder).unwrap();
    let device = folder.join("video0");
    std::os::unix::fs::symlink("/dev/null", &device).unwrap();
    let device = device.display().to_string();
    let program = folder.join("ffmpeg");
    let described = |more: &[&str]| {
        let mut command = scene.command(&device, &[&["--json"][..], more].concat());
        command.env("PATH", &folder).output().unwrap()
    };
    let missing = described(&[]);
    assert_eq!(missing.status.code(), Some(3), "{}", text(&missing));
    assert!(text(&missing).contains("apt-get install ffmpeg"), "{}", text(&missing));

    let write = |script: String| {
        fs::write(&program, script).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    };
    let (words, video) = (folder.join("words"), scene.transport_stream());
    write(format!(
        "#!/bin/sh\necho \"$@\" > {}\nexec /bin/cat {}\n",
        words.display(),
        video.display()
    ));
    let output = described(&["--speed", "fast"]);
    assert!(output.status.success(), "{}", text(&output));
    assert_eq!(captions(&events(&output.stdout)), captions(&of_file));
    let words = fs::read_to_string(words).unwrap();
    assert!(words.contains(&format!("-f v4l2 -i {device} ")) && words.contains("-f mpegts -\n"));
    // At its own speed, a window that the model has no time for is dropped.
    let output = described(&[]);
    assert!(output.status.success(), "{}", text(&output));
    let events = events(&output.stdout);
    let number = |key: &str| ended(&events)["summary"][key].as_u64().unwrap();
    let all = ended(&of_file)["summary"]["windows"].as_u64().unwrap();
    assert_eq!(number("windows") + number("dropped"), all);
    assert!(number("dropped") > 0, "it comes faster than any camera");

    write("#!/bin/sh\necho 'no such camera' >&2\nexit 1\n".to_owned());
    let failed = described(&[]);
    assert_eq!(failed.status.code(), Some(1), "{}", text(&failed));
    assert!(text(&failed).contains("ffmpeg failed: no such camera"), "{}", text(&failed));
}

#[test]
fn a_server_of_rtsp_gives_the_captions_of_its_file_until_it_is_lost() {
    let scene = scene();
    let of_file = events(&scene.output(&scene.file, &["--json"]).stdout);
    let server = Server::start(&scene.trial.path("stream"));
    let more = ["--speed", "fast"];
    let mut running = Running::start(scene.command(&server.address("stream-000000.mp4"), &more));
    running.wait(is("caption"));
    running.wait(|event| event["end_s"].as_f64().is_some_and(|end| end >= 4.0));
    drop(server);
    let (events, said, status) = running.end();
    assert_eq!(status.code(), Some(1), "{said}");
    let error = ended(&events)["end"]["error"].as_str().unwrap();
    assert!(error.contains("connection") && error.ends_with("s after its start"), "{error}");
    assert_eq!(captions(&events)[0], captions(&of_file)[0]);
    let variances = |events: &[Value]| -> Vec<f64> {
        let windows = events.iter().filter(|event| is("window")(event)).take(12);
        windows.map(|event| event["variance"].as_f64().unwrap()).collect()
    };
    // Windows of other batches may differ in the last bits of a sum.
    let pairs = variances(&events).into_iter().zip(variances(&of_file));
    assert!(pairs.clone().count() == 12 && pairs.clone().all(|(a, b)| (a - b).abs() < 1e-5));
    assert!(pairs.clone().any(|(a, b)| (a - b).abs() + a > 1e-5), "variances are not all zero");
}
