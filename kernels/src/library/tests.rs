//! Tests of the search for NVIDIA's libraries, with empty libraries under their own names.

#![expect(clippy::disallowed_methods, reason = "tests compile libraries")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::{Libraries, LibraryError, Wanted};

/// A library whose name exists on no machine.
const STUB: Wanted = Wanted {
    name: "stub",
    files: &["libvljepastub.so.12", "libvljepastub.so.13", "libvljepastub.so"],
    wheels: &["nvidia/stub/lib", "nvidia/cu13/lib"],
    install: "install it, or name the file in VLJEPA_STUB",
};

/// Compiles an empty library with the soname `<file name>.<number>` that depends on the libraries
/// `needed`.
fn compile(file: &Path, number: i32, needed: &[&Path]) {
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    let name = file.file_name().unwrap().to_str().unwrap();
    let mut cc = Command::new("cc");
    cc.args(["-shared", "-fPIC", "-Wl,--no-as-needed"]).arg(format!("-Wl,-soname,{name}.{number}"));
    cc.arg("-o").arg(file).args(["-x", "c", "/dev/null", "-x", "none"]);
    let compiled = cc.args(needed).output().unwrap();
    assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
}

/// Path of the file that the search finds and loads.
fn find(path: Option<&Path>, packages: &[PathBuf]) -> Result<PathBuf, LibraryError> {
    let libraries = Libraries { packages: packages.to_vec(), ..Libraries::default() };
    STUB.load(path, &libraries).map(|(_, file)| file)
}

#[test]
fn wheels_are_searched_in_the_order_of_packages_folders_and_names() {
    let folder = tempfile::tempdir().unwrap();
    let [first, second] = ["first", "second"].map(|name| folder.path().join(name));
    let packages = [first.clone(), second.clone()];
    let places = [
        second.join("nvidia/cu13/lib/libvljepastub.so.13"),
        first.join("nvidia/cu13/lib/libvljepastub.so.13"),
        first.join("nvidia/stub/lib/libvljepastub.so"),
        first.join("nvidia/stub/lib/libvljepastub.so.13"),
        first.join("nvidia/stub/lib/libvljepastub.so.12"),
    ];
    for place in &places {
        compile(place, 1, &[]);
        assert_eq!(find(None, &packages).unwrap(), *place);
    }
}

#[test]
fn toolkits_of_modules_and_of_conda_are_searched_after_wheels() {
    let folder = tempfile::tempdir().unwrap();
    let libraries = Libraries::of(|name| match name {
        "CUDA_HOME" | "CONDA_PREFIX" => Some(folder.path().join(name).display().to_string()),
        _ => None,
    });
    let find = || STUB.load(None, &libraries).map(|(_, file)| file);
    assert!(find().is_err());
    for lib in ["CONDA_PREFIX/lib", "CUDA_HOME/lib64"] {
        let file = folder.path().join(lib).join("libvljepastub.so.12");
        compile(&file, 1, &[]);
        assert_eq!(find().unwrap(), file);
    }
}

#[test]
fn a_named_file_is_the_only_one_that_is_tried() {
    let folder = tempfile::tempdir().unwrap();
    let packages = [folder.path().to_owned()];
    compile(&folder.path().join("nvidia/stub/lib/libvljepastub.so.12"), 1, &[]);
    let named = folder.path().join("elsewhere/any-name.so");
    let error = find(Some(&named), &packages).unwrap_err();
    let text = format!(
        "stub was not found (tried {}); install it, or name the file in VLJEPA_STUB",
        named.display()
    );
    assert_eq!(error.to_string(), text);
    compile(&named, 2, &[]);
    assert_eq!(find(Some(&named), &packages).unwrap(), named);
}

#[test]
fn a_library_that_is_nowhere_is_missed_with_every_name_and_path_that_was_tried() {
    let packages = [PathBuf::from("/packages")];
    let LibraryError::Missing { tried, .. } = find(None, &packages).unwrap_err() else {
        panic!("another error")
    };
    for part in [
        "libvljepastub.so.12, libvljepastub.so.13, libvljepastub.so, /packages/nvidia/stub/lib/",
        "/packages/nvidia/cu13/lib/libvljepastub.so.13",
        "/usr/local/cuda/lib64/libvljepastub.so.12",
    ] {
        assert!(tried.contains(part), "`{part}` is missing in {tried}");
    }
}

#[test]
fn a_file_that_does_not_load_is_an_error_and_not_passed_over() {
    let folder = tempfile::tempdir().unwrap();
    let packages = [folder.path().to_owned()];
    compile(&folder.path().join("nvidia/cu13/lib/libvljepastub.so.13"), 1, &[]);
    let broken = folder.path().join("nvidia/stub/lib/libvljepastub.so.13");
    fs::create_dir_all(broken.parent().unwrap()).unwrap();
    fs::write(&broken, "no library").unwrap();
    let error = find(None, &packages).unwrap_err();
    let LibraryError::Unusable { path, message, .. } = &error else { panic!("{error}") };
    assert_eq!(*path, broken);
    assert!(message.contains("file too short") || message.contains("ELF"), "{message}");
    // A library that depends on a missing library.
    let needed = folder.path().join("libvljepaneeded.so");
    compile(&needed, 3, &[]);
    compile(&broken, 2, &[&needed]);
    let error = find(None, &packages).unwrap_err();
    let LibraryError::Unusable { message, .. } = &error else { panic!("{error}") };
    assert!(message.contains("libvljepaneeded.so.3"), "{message}");
}

#[test]
fn python_packages_come_from_environments_programs_and_the_user_s_home() {
    let folder = tempfile::tempdir().unwrap();
    let packages = |prefix: &str, version: &str, name: &str| {
        let folder = folder.path().join(prefix).join("lib").join(version).join(name);
        fs::create_dir_all(folder.join("nvidia")).unwrap();
        folder
    };
    let venv = packages("venv", "python3.12", "site-packages");
    let debian = packages("usr", "python3", "dist-packages");
    let home = packages("home/.local", "python3.11", "site-packages");
    let linked = packages("opt", "python3.13", "site-packages");
    // Packages without a wheel of NVIDIA, and a folder of programs without Python.
    fs::create_dir_all(folder.path().join("usr/lib/python3.11/site-packages")).unwrap();
    packages("other", "python3.12", "site-packages");
    for program in ["usr/bin", "opt/bin", "links/bin", "other/bin"] {
        fs::create_dir_all(folder.path().join(program)).unwrap();
    }
    for program in ["usr/bin/python3", "opt/bin/python3"] {
        fs::write(folder.path().join(program), "").unwrap();
    }
    let link = folder.path().join("links/bin/python3");
    std::os::unix::fs::symlink(folder.path().join("opt/bin/python3"), link).unwrap();
    let text = |path: &str| folder.path().join(path).display().to_string();
    let programs = ["other/bin", "usr/bin", "links/bin"].map(text).join(":");
    let libraries = Libraries::of(|name| match name {
        "VIRTUAL_ENV" => Some(text("venv")),
        "PATH" => Some(programs.clone()),
        "HOME" => Some(text("home")),
        "VLJEPA_CUBLASLT" => Some("/somewhere/libcublasLt.so".to_owned()),
        "VLJEPA_NVRTC" => Some(String::new()),
        _ => None,
    });
    assert_eq!(libraries.packages[..4], [venv, debian, linked, home]);
    assert_eq!(libraries.cublaslt, Some("/somewhere/libcublasLt.so".into()));
    assert_eq!((libraries.nvrtc, libraries.nccl), (None, None));
}
