//! Writing files so that a kill or a full disk cannot damage them: appending lines and replacing
//! whole files.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;

use serde::Serialize;

use super::RunDirectoryError;

/// Appends one JSON value as a line, in a single write.
///
/// If a kill or a full disk has cut the last line short, the new value starts on a new line. Only
/// the broken line is lost, because readers skip lines that do not parse.
///
/// # Errors
///
/// Returns an error if the value cannot be serialized or the line cannot be written.
pub fn append_line(path: &Path, value: &impl Serialize) -> Result<(), RunDirectoryError> {
    let mut line = serde_json::to_vec(value)
        .map_err(|cause| RunDirectoryError::Json { path: path.to_owned(), cause })?;
    line.push(b'\n');
    let mut append = || -> std::io::Result<()> {
        let mut file = OpenOptions::new().create(true).read(true).append(true).open(path)?;
        if is_cut_short(&mut file)? {
            line.insert(0, b'\n');
        }
        file.write_all(&line)
    };
    append().map_err(|source| io_error("write", path, source))
}

/// Returns whether the file's last line lacks its newline. A file of length 0, such as a pipe or a
/// device, has no last line.
fn is_cut_short(file: &mut File) -> std::io::Result<bool> {
    if file.metadata()?.len() == 0 {
        return Ok(false);
    }
    let mut last = [0];
    file.seek(SeekFrom::End(-1))?;
    file.read_exact(&mut last)?;
    Ok(last != *b"\n")
}

/// Replaces a file atomically: at any moment, and after a crash, it has either all old or all new
/// bytes. The bytes go to a temporary file in the same folder, which is synced and renamed; then
/// the folder is synced.
///
/// # Errors
///
/// Returns an error if the file cannot be written; the old file is unchanged then.
pub fn atomic_write(path: &Path, bytes: &[u8]) -> Result<(), RunDirectoryError> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = folder.join(format!(".{name}.{}.tmp", std::process::id()));
    let write = || -> std::io::Result<()> {
        let mut file = File::create(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        File::open(folder)?.sync_all()
    };
    write().map_err(|source| {
        // The temporary file may not exist. Only the first error is reported.
        drop(fs::remove_file(&temporary));
        io_error("write", path, source)
    })
}

/// Wraps an I/O error with the advice that fits its kind.
pub(super) fn io_error(
    action: &'static str,
    path: &Path,
    cause: std::io::Error,
) -> RunDirectoryError {
    use std::io::ErrorKind;
    let help = match cause.kind() {
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => {
            "choose a folder that you may write to with `--set runs=FOLDER`"
        }
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            "the disk is full: free space, or choose another with `--set runs=FOLDER`"
        }
        ErrorKind::NotADirectory | ErrorKind::AlreadyExists => {
            "a file exists where a folder is needed: choose another folder with `--set runs=FOLDER`"
        }
        _ => "check the folder, or choose another with `--set runs=FOLDER`",
    };
    RunDirectoryError::Io { action, path: path.to_owned(), cause, help: help.to_owned() }
}
