//! Tensors that PyTorch has written, and pickles that are damaged or would do harm.

use std::path::{Path, PathBuf};

use super::{Element, Tensors};

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/weights").join(name)
}

fn opened(name: &str, bytes: &[u8]) -> Result<Tensors, String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    Tensors::open(&path).map_err(|error| error.to_string())
}

#[test]
fn tensors_of_pytorch_have_the_values_that_pytorch_gave_them() {
    #[derive(serde::Deserialize)]
    struct Wanted {
        name: String,
        shape: Vec<usize>,
        values: Vec<f64>,
    }
    let wanted = std::fs::read(file("tensors.json")).unwrap();
    let wanted: Vec<Wanted> = serde_json::from_slice(&wanted).unwrap();
    for pickle in ["tensors.pt", "tensors4.pt"] {
        let mut tensors = Tensors::open(&file(pickle)).unwrap();
        for Wanted { name, shape, values } in &wanted {
            assert_eq!(&tensors.all()[name].shape, shape, "{name}");
            let mut read = Vec::new();
            tensors.read(name, |_, part| read.extend(part.iter().map(|v| f64::from(*v)))).unwrap();
            assert_eq!(&read, values, "{name}");
        }
        let others = ["transposed", "double"];
        let names: Vec<&String> = tensors.all().keys().collect();
        assert_eq!(names.len(), wanted.len() + others.len(), "{names:?}");
        let [transposed, double] = others.map(|name| &tensors.all()[name]);
        assert!(!transposed.contiguous && double.contiguous);
        assert_eq!(double.element, Element::Other("double".to_owned()));
        assert_eq!((&transposed.shape[..], &double.shape[..]), (&[6, 4][..], &[2][..]));
    }
}

#[test]
fn a_pickle_that_would_run_a_program_is_refused_and_runs_nothing() {
    let error = opened("a.pt", &std::fs::read(file("harmful.pt")).unwrap()).err().unwrap();
    assert!(error.contains("it names `posix.system`"), "{error}");
    assert!(!Path::new("executed-by-a-pickle").exists());
}

#[test]
fn pickles_from_before_zip_archives_programs_and_archives_without_pickle_are_explained() {
    let error = opened("a.pt", &std::fs::read(file("legacy.pt")).unwrap()).err().unwrap();
    assert!(error.contains("before version 1.6"), "{error}");
    let error = opened("a.pt", &std::fs::read(file("torchscript.pt")).unwrap()).err().unwrap();
    assert!(error.contains("TorchScript") && error.contains("name a safetensors"), "{error}");
    // The end of an archive without members.
    let mut empty = b"PK\x05\x06".to_vec();
    empty.resize(22, 0);
    let error = opened("a.pt", &empty).err().unwrap();
    assert!(error.contains("is a ZIP archive"), "{error}");
    let error = opened("a.pt", &archive(&[("a/version", b"3")])).err().unwrap();
    assert!(error.contains("without data.pkl"), "{error}");
    let pickles = [("a/data.pkl", &b"\x80\x02}."[..]), ("b/data.pkl", b"\x80\x02}.")];
    let error = opened("a.pt", &archive(&pickles)).err().unwrap();
    assert!(error.contains("two pickles"), "{error}");
}

#[test]
fn every_cut_and_every_changed_byte_gives_an_error_or_tensors_within_the_file() {
    let whole = std::fs::read(file("tensors.pt")).unwrap();
    for length in 0..whole.len() {
        assert!(opened("a.pt", &whole[..length]).is_err(), "{length} bytes");
    }
    for at in 0..whole.len() {
        let mut changed = whole.clone();
        changed[at] ^= 0xff;
        let Ok(mut tensors) = opened("a.pt", &changed) else { continue };
        let names: Vec<String> = tensors.all().keys().cloned().collect();
        for name in names {
            let stored = &tensors.all()[&name];
            if !stored.contiguous || stored.element.bytes().is_none() {
                continue;
            }
            let elements: usize = stored.shape.iter().product();
            let mut read = 0;
            match tensors.read(&name, |_, part| read += part.len()) {
                Ok(()) => assert_eq!(read, elements, "byte {at}, {name}"),
                Err(error) => assert!(error.to_string().contains(&name), "byte {at}: {error}"),
            }
        }
    }
}

#[test]
fn values_that_contain_themselves_or_each_other_many_times_end_with_an_error() {
    // A dictionary of itself; then 40 dictionaries, each with the one before it twice.
    let itself = b"\x80\x02}q\x00X\x01\x00\x00\x00aq\x01h\x00s.";
    let mut doubled = b"\x80\x02}q\x00".to_vec();
    for i in 1..=40u8 {
        doubled.extend([b'}', b'q', i, b'(']);
        for name in [b'a', b'b'] {
            doubled.extend([b'X', 1, 0, 0, 0, name, b'h', i - 1]);
        }
        doubled.extend(b"u0");
    }
    doubled.extend([b'h', 40, b'.']);
    for pickle in [&itself[..], &doubled] {
        let error = opened("a.pt", &archive(&[("a/data.pkl", pickle)])).err().unwrap();
        assert!(error.contains("contain each other too many times"), "{error}");
    }
    assert!(opened("a.pt", &archive(&[("a/data.pkl", b"\x80\x02}.")])).unwrap().all().is_empty());
}

#[test]
fn opcodes_and_values_that_weights_do_not_need_are_refused() {
    for (pickle, said) in [
        (&b"\x80\x02cbuiltins\neval\n."[..], "it names `builtins.eval`"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93.", "it names `os.system`"),
        (b"\x80\x02ctorch\nload\n.", "it names `torch.load`"),
        (b"\x80\x02ios\nsystem\n.", "opcode 0x69"),
        (b"\x80\x02(.", "a value is missing"),
        (b"\x80\x02t.", "a mark is missing"),
        (b"\x80\x02h\x05.", "a value that it has not"),
        (b"\x80\x02K\x01K\x02a.", "something that is no list"),
        (b"\x80\x02X\xff\xff\xff\xffa.", "cut short"),
    ] {
        let error = opened("a.pt", &archive(&[("a/data.pkl", pickle)])).err().unwrap();
        assert!(error.contains(said), "{said}: {error}");
    }
}

/// A ZIP archive of these members, uncompressed, as `torch.save` writes it.
fn archive(members: &[(&str, &[u8])]) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.pt");
    let mut writer = zip::ZipWriter::new(std::fs::File::create(&path).unwrap());
    let options =
        zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    for (name, bytes) in members {
        writer.start_file(*name, options).unwrap();
        std::io::Write::write_all(&mut writer, bytes).unwrap();
    }
    writer.finish().unwrap();
    std::fs::read(&path).unwrap()
}
