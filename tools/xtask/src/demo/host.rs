//! The other side of the cable: Linux's usb-storage and what it makes of the drives.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use xshell::{Shell, cmd};

use super::device::GADGET;
use super::files::{FILES, sha256};
use crate::sysfs::attribute;
use crate::wait::wait_for;

const APPEAR: Duration = Duration::from_secs(60);
const EJECT: Duration = Duration::from_secs(10);

/// The two drives as the host knows them.
pub(crate) struct Drives {
    pub(crate) cd: PathBuf,
    pub(crate) flash: PathBuf,
    /// The link's speed in Mbit/s, as the host measured it.
    pub(crate) link: String,
}

impl Drives {
    /// Waits until the host has found both and their media.
    pub(crate) fn appear() -> Result<Self> {
        let ids = gadget_ids()?;
        wait_for("the host to find a CD and a disk", APPEAR, || {
            let (mut cd, mut flash, mut link) = (None, None, String::new());
            for entry in fs::read_dir("/sys/block")?.flatten() {
                let Some(usb) = usb_ancestor(&entry.path()) else { continue };
                let node = Path::new("/dev").join(entry.file_name());
                if usb_ids(&usb) != ids || size(&node).unwrap_or(0) == 0 || !node.exists() {
                    continue;
                }
                link = attribute(&usb, "speed");
                match entry.file_name().as_encoded_bytes().get(..2) {
                    Some(b"sr") => cd = Some(node),
                    Some(b"sd") => flash = Some(node),
                    _ => {}
                }
            }
            Ok(cd.zip(flash).map(|(cd, flash)| Self { cd, flash, link }))
        })
    }
}

/// The gadget's ids, as configfs has them.
fn gadget_ids() -> Result<[String; 3]> {
    let gadget = Path::new("/sys/kernel/config/usb_gadget").join(GADGET);
    ensure!(gadget.exists(), "ringdrived made no gadget {}", gadget.display());
    let id = |name| attribute(&gadget, name).trim_start_matches("0x").to_owned();
    Ok([id("idVendor"), id("idProduct"), attribute(&gadget, "strings/0x409/serialnumber")])
}

/// The ids of a USB device, as the host read them from it.
fn usb_ids(device: &Path) -> [String; 3] {
    ["idVendor", "idProduct", "serial"].map(|name| attribute(device, name))
}

/// The USB device that a block device hangs on.
fn usb_ancestor(block: &Path) -> Option<PathBuf> {
    let device = fs::canonicalize(block.join("device")).ok()?;
    device.ancestors().find(|dir| dir.join("idVendor").exists()).map(Path::to_owned)
}

/// Bytes that the host believes a block device has.
pub(crate) fn size(node: &Path) -> Result<u64> {
    let name = node.file_name().context("a device has a name")?;
    let sectors: u64 = attribute(&Path::new("/sys/block").join(name), "size").parse()?;
    Ok(sectors * 512)
}

/// A block device read to its end.
pub(crate) struct WholeRead {
    pub(crate) sha256: String,
    pub(crate) length: u64,
    /// Time spent reading; hashing on the virtual board takes longer than that.
    pub(crate) took: Duration,
}

/// Reads a whole block device.
pub(crate) fn read_whole(node: &Path) -> Result<WholeRead> {
    let device = File::open(node).with_context(|| format!("the host cannot open {}", node.display()))?;
    let mut timed = Timed { inner: device, took: Duration::ZERO };
    let (sha256, length) =
        sha256(&mut timed).with_context(|| format!("the host cannot read {}", node.display()))?;
    Ok(WholeRead { sha256, length, took: timed.took })
}

struct Timed<R> {
    inner: R,
    took: Duration,
}

impl<R: Read> Read for Timed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let started = Instant::now();
        let read = self.inner.read(buffer);
        self.took += started.elapsed();
        read
    }
}

/// A mounted file system; unmounted if the demo ends early.
pub(crate) struct Mount {
    dir: PathBuf,
    mounted: bool,
}

impl Mount {
    /// Mounts `node` on a new directory.
    pub(crate) fn new(shell: &Shell, node: &Path, kind: &str, options: &str, dir: &Path) -> Result<Self> {
        fs::create_dir(dir)?;
        cmd!(shell, "mount -t {kind} -o {options} {node} {dir}")
            .quiet()
            .run()
            .with_context(|| format!("the host cannot mount {}", node.display()))?;
        Ok(Self { dir: dir.to_owned(), mounted: true })
    }

    /// Unmounts, which writes all that is still in the host's cache.
    pub(crate) fn unmount(mut self, shell: &Shell) -> Result<()> {
        let dir = &self.dir;
        cmd!(shell, "umount {dir}").quiet().run().context("the host cannot unmount")?;
        self.mounted = false;
        Ok(())
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if self.mounted {
            let _ = std::process::Command::new("umount").arg("--lazy").arg(&self.dir).status();
        }
    }
}

/// Files below `dir`, and their bytes, each read to its end.
pub(crate) fn read_all_files(dir: &Path) -> Result<(u64, u64)> {
    let (mut files, mut bytes) = (0, 0);
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let (more_files, more_bytes) = if entry.file_type()?.is_dir() {
            read_all_files(&entry.path())?
        } else {
            (1, io::copy(&mut File::open(entry.path())?, &mut io::sink())?)
        };
        (files, bytes) = (files + more_files, bytes + more_bytes);
    }
    Ok((files, bytes))
}

/// Writes [`FILES`] below `dir`, each down to the drive; gives their bytes and the time it took.
pub(crate) fn write_files(dir: &Path) -> Result<(u64, Duration)> {
    let (mut bytes, mut took) = (0, Duration::ZERO);
    for file in &FILES {
        let (path, content) = (dir.join(file.path), file.content());
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        let started = Instant::now();
        let mut to = File::create(&path).with_context(|| format!("the host cannot create {}", file.path))?;
        to.write_all(&content)
            .and_then(|()| to.sync_all())
            .with_context(|| format!("the host cannot write {}", file.path))?;
        took += started.elapsed();
        bytes += file.size as u64;
    }
    Ok((bytes, took))
}

/// Ejects and waits until the host sees that the medium is gone.
pub(crate) fn eject(shell: &Shell, node: &Path) -> Result<()> {
    cmd!(shell, "eject {node}")
        .quiet()
        .run()
        .with_context(|| format!("the host cannot eject {}", node.display()))?;
    wait_for("the medium to be gone", EJECT, || match File::open(node) {
        Err(error) if error.raw_os_error() == Some(Errno::ENOMEDIUM as i32) => Ok(Some(())),
        Err(error) => Err(error).with_context(|| format!("{} after the eject", node.display())),
        Ok(_) => Ok(None),
    })
}
