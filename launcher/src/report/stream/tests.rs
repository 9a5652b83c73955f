//! What the page of a described video contains.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use vljepa_recipes::protocol::{
    Lag, StreamCaption, StreamEnd, StreamEvent, StreamStart, StreamSummary, VideoSource,
};

use super::page::{POLICY, SCRIPT};
use super::{
    LARGEST_PART, MOST_CAPTIONS, MOST_PICTURES, Player, StreamPage, encoded, played, relative,
};

fn events() -> Vec<StreamEvent> {
    let caption = |start_s, text: &str, query: &str| {
        StreamEvent::Caption(StreamCaption {
            start_s,
            seen_s: start_s + 1.0,
            text: text.to_owned(),
            query: query.to_owned(),
            lag_s: 0.25,
            picture: Some("QUJD".to_owned()),
        })
    };
    let window = |start_s, variance| StreamEvent::Window {
        start_s,
        end_s: start_s + 1.0,
        variance,
        lag_s: 0.01,
    };
    let lag = Some(Lag { median_s: 0.012, p99_s: 0.04 });
    vec![
        StreamEvent::Opened(StreamStart {
            step: 1900,
            codec: "h264".to_owned(),
            query: "describe".to_owned(),
            window_s: 1.0,
            stride_s: 0.5,
            frames: 4,
            smoothing: 3,
            threshold: 0.1,
        }),
        window(0.0, 0.01),
        caption(0.0, "a <b>red</b> ring", "describe"),
        window(4.5, 0.4),
        StreamEvent::Query { at_s: 5.0, query: "what?".to_owned() },
        caption(5.0, "a bar", "what?"),
        StreamEvent::Ended {
            end: StreamEnd::Stopped,
            summary: StreamSummary {
                video_s: 10.0,
                wall_s: 2.0,
                windows: 20,
                texts: 2,
                saving: Some(10.0),
                dropped: 3,
                damaged: 0,
                to_embedding: lag,
                to_text: lag,
            },
        },
    ]
}

fn written(name: &str, video: &VideoSource) -> String {
    let mut page = StreamPage::new(name, video, Path::new("page.html"));
    events().iter().for_each(|event| page.take(event));
    page.write().unwrap()
}

#[test]
fn the_page_of_a_file_plays_it_beside_its_captions_and_the_variance() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("clip.mp4");
    std::fs::write(&path, b"ABC").unwrap();
    let page = written("clip.mp4", &VideoSource::File(path.clone()));
    assert!(page.contains("src=\"data:video/mp4;base64,QUJD\""), "{page}");
    assert!(page.contains("a &lt;b&gt;red&lt;/b&gt; ring") && !page.contains("<b>red"), "{page}");
    // The second segment is the second half of ten seconds.
    assert!(page.contains("left:50.000%;width:50.000%"), "{page}");
    assert!(page.contains("“what?” from 0:05.0") && page.contains("“describe”"));
    assert!(page.contains("path class=\"threshold\"") && page.contains("data-start=\"5.000\""));
    assert!(page.contains(">10.0×<") && page.contains("12.0 ms") && page.contains("stopped"));
    assert!(!page.contains("NaN") && !page.contains("://"), "{page}");
    // A file that has gone is an error, and not a page without it.
    std::fs::remove_file(&path).unwrap();
    let mut gone = StreamPage::new("clip.mp4", &VideoSource::File(path), Path::new("page.html"));
    events().iter().for_each(|event| gone.take(event));
    assert!(gone.write().unwrap_err().to_string().contains("cannot read"));
}

#[test]
fn the_page_of_a_pipe_shows_pictures() {
    let page = written("-", &VideoSource::StandardInput);
    assert!(page.contains("not recorded") && !page.contains("<video"), "{page}");
    assert!(page.contains("<h1>standard input"));
    assert!(page.contains("img class=\"shown\" src=\"data:image/jpeg;base64,QUJD\""), "{page}");
    let nothing = StreamPage::new("-", &VideoSource::StandardInput, Path::new("page.html"));
    let page = nothing.write().unwrap();
    assert!(page.contains("no caption") && !page.contains("NaN"), "{page}");
}

#[test]
fn a_large_video_is_named_by_its_path_from_the_page() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a b#1.webm");
    std::fs::File::create(&path).unwrap().set_len(LARGEST_PART + 1).unwrap();
    for inner in ["pages", "videos/1"] {
        std::fs::create_dir_all(folder.path().join(inner)).unwrap();
    }
    std::os::unix::fs::symlink(folder.path(), folder.path().join("videos/link")).unwrap();
    let mut start = events().remove(0);
    if let StreamEvent::Opened(start) = &mut start {
        start.codec = "vp9".to_owned();
    }
    // The same page and video by other paths.
    for (page, video) in [
        ("pages/page.html", "a b#1.webm"),
        ("videos/1/../../pages/page.html", "videos/../a b#1.webm"),
        ("videos/link/pages/page.html", "videos/link/a b#1.webm"),
    ] {
        let (page, video) = (folder.path().join(page), folder.path().join(video));
        let mut page = StreamPage::new("x.webm", &VideoSource::File(video), &page);
        page.take(&start);
        assert_eq!(page.player().unwrap(), Player::Source("./../a%20b%231.webm".to_owned()));
    }
}

#[test]
fn the_page_of_an_endless_video_is_bounded_and_says_what_it_lacks() {
    let mut page = StreamPage::new("-", &VideoSource::StandardInput, Path::new("page.html"));
    let [opened, _, caption, _, query, ..] = &events()[..] else { panic!("fewer events") };
    page.take(opened);
    for _ in 0..9 {
        page.take(query);
    }
    assert_eq!(page.queries.len(), 1, "queries without captions replace each other");
    for number in 0..2 * MOST_CAPTIONS {
        let mut caption = caption.clone();
        if let StreamEvent::Caption(caption) = &mut caption {
            caption.start_s = number as f64;
        }
        page.take(&caption);
        page.take(query);
        page.take(query);
    }
    assert_eq!(page.captions.len(), MOST_CAPTIONS);
    assert!(page.queries.len() <= MOST_CAPTIONS + 1, "{}", page.queries.len());
    let pictures = page.captions.iter().filter(|caption| caption.picture.is_some()).count();
    assert_eq!(pictures, MOST_PICTURES);
    assert!(page.captions.back().is_some_and(|newest| newest.picture.is_some()));
    assert!(page.write().unwrap().contains("The first 4,096 captions are not on this page."));
    assert!(!written("-", &VideoSource::StandardInput).contains("not on this page"));
}

/// SHA-256 of a text as policies of pages name it.
#[expect(clippy::disallowed_methods, reason = "starts coreutils, and no program of a run")]
fn source_of(script: &str) -> String {
    let mut sum = Command::new("sha256sum");
    let mut child = sum.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap().stdout;
    let digit = |byte: &u8| u8::try_from(char::from(*byte).to_digit(16).unwrap()).unwrap();
    let bytes = output[..64].chunks(2).map(|pair| digit(&pair[0]) << 4 | digit(&pair[1]));
    format!("script-src 'sha256-{}';", STANDARD.encode(bytes.collect::<Vec<u8>>()))
}

#[test]
fn the_policy_of_the_page_allows_its_script_and_no_other() {
    assert!(POLICY.contains(&source_of(SCRIPT)), "it should have {}", source_of(SCRIPT));
    assert!(!POLICY.contains(&source_of("alert(1)")));
    let page = written("-", &VideoSource::StandardInput);
    assert!(page.contains(&format!("<script>{SCRIPT}</script>")));
}

#[test]
fn formats_that_browsers_play_are_known_and_paths_are_relative() {
    let played = |name: &str, codec| played(Path::new(name), codec);
    assert_eq!(played("a.MP4", "h264"), Some("video/mp4"));
    assert_eq!(played("a.webm", "vp9"), Some("video/webm"));
    assert_eq!([played("a.mp4", "mpeg4"), played("a.avi", "h264"), played("a", "h264")], [None; 3]);
    let from = |file: &str, folder: &str| relative(Path::new(file), Path::new(folder));
    assert_eq!(from("/a/b/c.mp4", "/a/d/e"), PathBuf::from("../../b/c.mp4"));
    assert_eq!(from("/a/c.mp4", "/a"), PathBuf::from("c.mp4"));
    assert_eq!(encoded(Path::new("c d?.mp4")), "./c%20d%3F.mp4");
}
