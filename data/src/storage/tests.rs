//! Tests of local files and of requests that threads share. Those of remote files are in
//! `tests/tests/all/storage`, because they need servers.

use std::fs;
use std::io::{self, Read, Seek, SeekFrom};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Barrier};

use super::flights::Flights;
use super::{Location, Storage, StorageOptions, Version};

#[test]
fn local_files_are_read_at_any_offset_and_their_change_is_noticed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.tar");
    let location = Location::from(path.as_path());
    fs::write(&path, b"0123456789").unwrap();
    let storage = Storage::new(StorageOptions::default()).unwrap();
    let file = storage.open(&location).unwrap();
    assert_eq!((file.length(), &**file.path()), (10, path.to_str().unwrap()));
    let mut bytes = [0; 4];
    file.read_exact_at(&mut bytes, 3).unwrap();
    assert_eq!(&bytes, b"3456");
    let error = file.read_exact_at(&mut bytes, 7).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    let mut reader = file.reader();
    reader.seek(SeekFrom::End(-2)).unwrap();
    let mut rest = String::new();
    reader.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "89");
    assert!(reader.seek(SeekFrom::Current(-11)).is_err());
    let version = file.version().clone();
    let json = serde_json::to_string(&version).unwrap();
    assert_eq!(serde_json::from_str::<Version>(&json).unwrap(), version);
    assert!(storage.open_known(&location, &version).is_ok());
    fs::write(&path, b"01234").unwrap();
    let error = storage.open_known(&location, &version).unwrap_err().to_string();
    assert!(error.contains("a.tar") && error.contains("10 bytes before, 5 now"), "{error}");
    fs::remove_file(&path).unwrap();
    let error = storage.open(&location).unwrap_err().to_string();
    assert!(error.contains("a.tar") && error.contains("No such file"), "{error}");
}

#[test]
fn secrets_are_not_shown() {
    let variables = vec![("AWS_SECRET_ACCESS_KEY".to_owned(), "hunter2".to_owned())];
    let storage = Storage::new(StorageOptions { variables, ..StorageOptions::default() }).unwrap();
    let text = format!("{storage:?}");
    assert!(text.contains("AWS_SECRET_ACCESS_KEY") && !text.contains("hunter2"), "{text}");
}

#[test]
fn all_threads_receive_the_error_of_a_shared_request() {
    let (flights, count, barrier) = (Flights::default(), AtomicU32::new(0), Barrier::new(4));
    let name = (Arc::from("file"), 0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                barrier.wait();
                let result = flights.share(&name, || {
                    count.fetch_add(1, Ordering::SeqCst);
                    Err(io::Error::new(io::ErrorKind::NotFound, "it is gone"))
                });
                let error = result.unwrap_err();
                assert_eq!(
                    (error.kind(), &*error.to_string()),
                    (io::ErrorKind::NotFound, "it is gone")
                );
            });
        }
    });
    assert!((1..=4).contains(&count.into_inner()));
    // An error is not kept.
    assert_eq!(&*flights.share(&name, || Ok(Arc::from(*b"ok"))).unwrap(), b"ok");
}

#[test]
fn a_thread_that_panics_does_not_leave_others_waiting() {
    let (flights, entered) = (Flights::default(), Barrier::new(2));
    let name = (Arc::from("file"), 0);
    std::thread::scope(|scope| {
        let first = scope.spawn(|| {
            flights.share(&name, || {
                entered.wait();
                // Lets the other thread begin to wait, most of the time.
                std::thread::yield_now();
                panic!("a bug")
            })
        });
        entered.wait();
        // This thread either waits for the first one, which fails, or comes after it.
        let second = flights.share(&name, || Ok(Arc::from(*b"ok")));
        assert!(first.join().is_err());
        match second {
            Ok(bytes) => assert_eq!(&*bytes, b"ok"),
            Err(error) => assert!(error.to_string().contains("a thread that read the file failed")),
        }
    });
}
