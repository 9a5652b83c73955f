//! Damage that tests inject: spoiled shards, full disks and flipped bits.

use std::io::Read;
use std::path::Path;

use crate::programs::small_set;

/// Copies a shard of the small set to `target` and spoils some of its samples: every fifth image is
/// cut in half, every seventh json file is empty, and the archive ends in the middle of its last
/// sample.
pub fn write_spoiled_shard(target: &Path) {
    let source = small_set().join("train/questions-000000.tar");
    let mut archive = tar::Archive::new(std::fs::File::open(source).unwrap());
    let mut builder = tar::Builder::new(Vec::new());
    let (mut pictures, mut texts) = (0, 0);
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let path = entry.path().unwrap().into_owned();
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        match path.extension().and_then(|e| e.to_str()) {
            Some("jpg") => {
                pictures += 1;
                if pictures % 5 == 0 {
                    bytes.truncate(bytes.len() / 2);
                }
            }
            Some("json") => {
                texts += 1;
                if texts % 7 == 0 {
                    bytes.clear();
                }
            }
            _ => {}
        }
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        header.set_cksum();
        builder.append_data(&mut header, path, bytes.as_slice()).unwrap();
    }
    let mut bytes = builder.into_inner().unwrap();
    bytes.truncate(bytes.len() - 4096);
    std::fs::write(target, bytes).unwrap();
}

/// Flips one bit near the end of a file.
pub fn flip_a_bit(file: &Path) {
    let mut bytes = std::fs::read(file).unwrap();
    let place = bytes.len() - 5;
    bytes[place] ^= 1;
    std::fs::write(file, bytes).unwrap();
}

/// A mounted tmpfs of a few MiB. Dropping it unmounts it.
pub struct SmallDisk<'a>(&'a Path);

/// Returns a command that runs `program` as root: directly for root, otherwise through `sudo`.
#[expect(clippy::disallowed_methods, reason = "mounts and unmounts a tmpfs")]
pub fn as_root(program: &str) -> std::process::Command {
    if nix::unistd::Uid::effective().is_root() {
        return std::process::Command::new(program);
    }
    let mut command = std::process::Command::new("sudo");
    command.args(["-n", program]);
    command
}

impl<'a> SmallDisk<'a> {
    /// Mounts a tmpfs of `mib` MiB on `folder` and makes it writable for everybody.
    pub fn mount(folder: &'a Path, mib: u32) -> Self {
        std::fs::create_dir_all(folder).unwrap();
        let options = format!("size={mib}m");
        let status = as_root("mount")
            .args(["-t", "tmpfs", "-o", &options, "tmpfs"])
            .arg(folder)
            .status()
            .unwrap();
        assert!(status.success(), "mounting a small disk needs root or sudo");
        let status = as_root("chmod").arg("777").arg(folder).status().unwrap();
        assert!(status.success());
        Self(folder)
    }

    /// Changes the size of the disk to `mib` MiB.
    pub fn resize(&self, mib: u32) {
        let options = format!("remount,size={mib}m");
        let status = as_root("mount").args(["-o", &options]).arg(self.0).status().unwrap();
        assert!(status.success());
    }

    /// Makes the disk read-only, also for root.
    pub fn make_read_only(&self) {
        let status = as_root("mount").args(["-o", "remount,ro"]).arg(self.0).status().unwrap();
        assert!(status.success());
    }
}

impl Drop for SmallDisk<'_> {
    fn drop(&mut self) {
        as_root("umount").arg("-l").arg(self.0).status().ok();
    }
}
