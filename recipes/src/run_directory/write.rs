//! Files that survive a kill and a full disk: appended lines, replaced wholes.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;

use serde::Serialize;

use super::RunDirectoryError;

/// Adds one JSON object as a line, in one write. Where a kill or a full disk has cut the last line short, the new one starts on a line
/// of its own: the broken one costs nothing but itself, because readers pass over what does not parse.
///
/// # Errors
///
/// When it cannot be written.
pub fn append_line(path: &Path, value: &impl Serialize) -> Result<(), RunDirectoryError> {
    let mut line = serde_json::to_vec(value)
        .map_err(|source| RunDirectoryError::Json { path: path.to_owned(), source })?;
    line.push(b'\n');
    let mut append = || -> std::io::Result<()> {
        let mut file = OpenOptions::new().create(true).read(true).append(true).open(path)?;
        if is_cut_short(&mut file)? {
            line.insert(0, b'\n');
        }
        file.write_all(&line)
    };
    append().map_err(|source| refused("write", path, source))
}

/// Whether a file ends within a line. What has no end (a pipe, a device) does not.
fn is_cut_short(file: &mut File) -> std::io::Result<bool> {
    if file.metadata()?.len() == 0 {
        return Ok(false);
    }
    let mut last = [0];
    file.seek(SeekFrom::End(-1))?;
    file.read_exact(&mut last)?;
    Ok(last != *b"\n")
}

/// Replaces a file so that a reader, or a crash at any moment, sees the old bytes or the new: a temporary file beside it, synced, then
/// renamed, then the folder synced.
///
/// # Errors
///
/// When it cannot be written; the old file is then as it was.
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
        // The temporary file may not exist; what matters is the first error.
        drop(fs::remove_file(&temporary));
        refused("write", path, source)
    })
}

pub(super) fn refused(
    action: &'static str,
    path: &Path,
    source: std::io::Error,
) -> RunDirectoryError {
    use std::io::ErrorKind;
    let help = match source.kind() {
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => {
            "choose a folder that you may write to with `--set runs=FOLDER`"
        }
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            "the disk is full: free space, or choose another with `--set runs=FOLDER`"
        }
        ErrorKind::NotADirectory | ErrorKind::AlreadyExists => {
            "a file stands where a folder belongs: choose another folder with `--set runs=FOLDER`"
        }
        _ => "check the folder, or choose another with `--set runs=FOLDER`",
    };
    RunDirectoryError::Io { action, path: path.to_owned(), source, help: help.to_owned() }
}
