//! Shards on object stores and web servers: real servers on this machine, through a proxy that
//! disturbs them.

mod cache;
mod catalogue;
mod faults;
#[cfg(feature = "video")]
mod preparing;
mod proxy;
mod servers;
mod training;

use std::io::{Read, Seek, SeekFrom};

use vljepa_data::storage::{Location, Storage, StorageOptions, StoredFile, Version};

use proxy::Proxy;
use servers::{content, gs, options, put_gs, put_s3, s3, servers, storage};

/// Length of the files of these tests: three blocks of the cache and a bit.
const LENGTH: usize = (24 << 20) + 4321;

fn at(url: &str) -> Location {
    Location::parse(url).unwrap()
}

/// Proxy and options for plain HTTP, and the start of the URLs.
fn http() -> (Proxy, StorageOptions, String) {
    let proxy = Proxy::to(servers().http);
    let start = format!("http://{}/buckets/bucket", proxy.address);
    (proxy, options(&[]), start)
}

/// Bytes of a part of a file.
fn part(file: &StoredFile, offset: usize, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, offset as u64).unwrap_or_else(|error| panic!("{error}"));
    bytes
}

/// Whole file, read from front to back.
fn whole(file: &StoredFile) -> Vec<u8> {
    let mut bytes = Vec::new();
    file.reader().read_to_end(&mut bytes).unwrap();
    bytes
}

/// Error of opening and reading `url`.
fn error(storage: &Storage, url: &str) -> String {
    match storage.open(&at(url)) {
        Ok(file) => {
            let mut bytes = vec![0; usize::try_from(file.length()).unwrap()];
            file.read_exact_at(&mut bytes, 0).unwrap_err().to_string()
        }
        Err(error) => error.to_string(),
    }
}

#[test]
fn files_are_equal_over_s3_gs_and_http() {
    let bytes = content(1, LENGTH);
    put_s3("equal/a.tar", &bytes);
    put_gs("equal/a.tar", &bytes);
    let (s3_proxy, s3_options) = s3();
    let (gs_proxy, gs_options) = gs();
    let (http_proxy, http_options, start) = http();
    for (url, options, proxy) in [
        ("s3://bucket/equal/a.tar".to_owned(), s3_options, s3_proxy),
        ("gs://bucket/equal/a.tar".to_owned(), gs_options, gs_proxy),
        (format!("{start}/equal/a.tar"), http_options, http_proxy),
    ] {
        let storage = storage(&options);
        let file = storage.open(&at(&url)).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!((file.length(), &**file.path()), (LENGTH as u64, &*url));
        assert_eq!(proxy.ranges(), ["0-0"], "{url}: one request opens a file");
        assert!(whole(&file) == bytes, "{url}");
        assert_eq!(proxy.requests().len(), 4, "{url}: a request per 8 MiB");
        // A long read is one request; short ones close to each other share one.
        assert!(part(&file, 1_000_001, 3_000_000) == bytes[1_000_001..4_000_001], "{url}");
        assert_eq!(proxy.ranges(), ["1000001-4000000"], "{url}");
        for number in 0..50 {
            let offset = 5_000_000 + number * 1001;
            assert!(part(&file, offset, 1234) == bytes[offset..offset + 1234], "{url} {offset}");
        }
        assert_eq!(proxy.requests().len(), 1, "{url}");
        for offset in [0, LENGTH - 1, (1 << 20) - 1, LENGTH - 400_000] {
            let length = 400_000.min(LENGTH - offset);
            assert!(part(&file, offset, length) == bytes[offset..offset + length], "{url}");
        }
        // Seeking over a block requests nothing of it.
        proxy.requests();
        let mut reader = file.reader();
        let mut byte = [0];
        reader.read_exact(&mut byte).unwrap();
        reader.seek(SeekFrom::Start(17 << 20)).unwrap();
        reader.read_exact(&mut byte).unwrap();
        assert_eq!(byte[0], bytes[17 << 20], "{url}");
        assert_eq!(proxy.ranges(), ["0-8388607", "16777216-25165823"], "{url}");
        // Nothing after the end is read, and no request is made for it.
        let past = file.read_exact_at(&mut [0; 2], LENGTH as u64 - 1).unwrap_err();
        assert_eq!(past.kind(), std::io::ErrorKind::UnexpectedEof);
        assert!(file.read_exact_at(&mut [0], u64::MAX).is_err());
        assert!(proxy.requests().is_empty(), "{url}");
    }
}

#[test]
fn an_empty_file_and_a_name_with_a_space_are_read() {
    put_s3("names/empty%20one.tar", b"");
    put_s3("names/two%20words.tar", b"words");
    let (_proxy, options) = s3();
    let s3 = storage(&options);
    assert_eq!(s3.open(&at("s3://bucket/names/empty one.tar")).unwrap().length(), 0);
    assert_eq!(s3.read(&at("s3://bucket/names/empty one.tar")).unwrap(), b"");
    assert_eq!(s3.read(&at("s3://bucket/names/two words.tar")).unwrap(), b"words");
    let (_proxy, options, start) = http();
    let url = format!("{start}/names/two%20words.tar");
    assert_eq!(storage(&options).read(&at(&url)).unwrap(), b"words");
}

#[test]
fn a_prefix_names_its_tars_in_order_over_several_pages() {
    let names: Vec<String> = (0..1005).map(|number| format!("many/{number:04}.tar")).collect();
    std::thread::scope(|scope| {
        for names in names.chunks(200) {
            scope.spawn(move || names.iter().for_each(|name| put_s3(name, name.as_bytes())));
        }
    });
    for other in ["many/notes.txt", "many/below/1.tar", "many.tar", "manymore/1.tar"] {
        put_s3(other, b"x");
    }
    let (proxy, options) = s3();
    let storage = storage(&options);
    let found = storage.expand("s3://bucket/many/").unwrap();
    let urls: Vec<String> = found.iter().map(|found| found.location.to_string()).collect();
    let expected: Vec<String> = names.iter().map(|name| format!("s3://bucket/{name}")).collect();
    assert!(urls == expected, "{} of {}", urls.len(), expected.len());
    assert_eq!(proxy.requests().len(), 2, "a request per 1,000 names");
    // The listing gives the version: opening costs no request, and reading checks it.
    let version = found[700].version.as_ref().unwrap();
    let file = storage.open_known(&found[700].location, version).unwrap();
    assert!(proxy.requests().is_empty());
    assert_eq!(part(&file, 0, 13), b"many/0700.tar");
    let error = storage.expand("s3://bucket/none/").unwrap_err().to_string();
    assert!(error.contains("no shard found for `s3://bucket/none/`"), "{error}");
    let error = storage.expand("s3://other-bucket/many/").unwrap_err().to_string();
    assert!(error.contains("s3://other-bucket/many/"), "{error}");
}

#[test]
fn a_prefix_of_google_cloud_storage_is_listed() {
    for name in ["list/b.tar", "list/a.tar", "list/c.txt", "list/below/d.tar"] {
        put_gs(name, name.as_bytes());
    }
    let (_proxy, options) = gs();
    let storage = storage(&options);
    let found = storage.expand("gs://bucket/list/").unwrap();
    let urls: Vec<String> = found.iter().map(|found| found.location.to_string()).collect();
    assert_eq!(urls, ["gs://bucket/list/a.tar", "gs://bucket/list/b.tar"]);
    let version = found[1].version.as_ref().unwrap();
    let file = storage.open_known(&found[1].location, version).unwrap();
    assert_eq!(part(&file, 0, 10), b"list/b.tar");
}

#[test]
fn a_remote_list_names_shards_beside_it() {
    let text = b"# two\na.tar\nsub/b.tar\ns3://bucket/c.tar\n";
    put_s3("lists/train.txt", text);
    put_s3("lists/bad.txt", b"a.tar\n/data/b.tar\n");
    let (_proxy, options) = s3();
    let names = |storage: &Storage, entry: &str| -> Vec<String> {
        let found = storage.expand(entry).unwrap_or_else(|error| panic!("{error}"));
        found.into_iter().map(|found| found.location.to_string()).collect()
    };
    let s3 = storage(&options);
    assert_eq!(
        names(&s3, "s3://bucket/lists/train.txt"),
        ["s3://bucket/lists/a.tar", "s3://bucket/lists/sub/b.tar", "s3://bucket/c.tar"]
    );
    let error = s3.expand("s3://bucket/lists/bad.txt").unwrap_err().to_string();
    assert!(error.contains("s3://bucket/lists/bad.txt:2: /data/b.tar: "), "{error}");
    let (_proxy, options, start) = http();
    assert_eq!(
        names(&storage(&options), &format!("{start}/lists/train.txt"))[0],
        format!("{start}/lists/a.tar")
    );
}

/// Writing to Google Cloud Storage is not among these: fake-gcs-server lacks that request.
#[test]
fn a_small_file_is_written_and_read_back() {
    put_s3("written/first.tar", b"the bucket exists");
    let folder = tempfile::tempdir().unwrap();
    let (_proxy, options) = s3();
    let storage = storage(&options);
    let local = folder.path().join("catalogue.json").display().to_string();
    for url in ["s3://bucket/written/catalogue.json", &local] {
        let location = at(url);
        let mut versions: Vec<Version> = Vec::new();
        for text in ["first", "second one"] {
            storage.write(&location, text.as_bytes()).unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(storage.read(&location).unwrap(), text.as_bytes(), "{url}");
            versions.push(storage.open(&location).unwrap().version().clone());
        }
        assert_ne!(versions[0], versions[1], "{url}");
        // A file that was opened before is known to have changed.
        let old = storage.open_known(&location, &versions[0]);
        let error = match old {
            Ok(file) => file.read_exact_at(&mut [0], 0).unwrap_err().to_string(),
            Err(error) => error.to_string(),
        };
        assert!(error.contains("changed while it was in use (5 bytes before, 10 now)"), "{error}");
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "no temporary file is left");
    let error = storage.write(&at("/no/such/folder/x"), b"x").unwrap_err().to_string();
    assert!(error.contains("/no/such/folder/x"), "{error}");
}
