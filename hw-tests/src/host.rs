//! The host's view through sysfs: USB devices by serial number, and the drives on them.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::image::{Sha, sha_of};
use crate::tool;
use crate::wait::{ENUMERATION, wait_for, wait_until};

/// What O_DIRECT asks of memory and offsets, with room to spare.
const ALIGN: usize = 4096;

/// How often a drive must be found idle in a row.
const QUIET: u32 = 12;

/// A USB device that the host has enumerated.
#[derive(Clone, Debug)]
pub struct UsbDevice {
    /// Its serial number, by which it was found.
    pub serial: String,
    /// In sysfs; its last part is the port, as in `1-1`.
    pub sysfs: PathBuf,
    /// The number that `lsusb` shows; another after each enumeration.
    pub number: u32,
}

impl UsbDevice {
    /// The device with this serial number, if the host has it.
    #[must_use]
    pub fn find(serial: &str) -> Option<Self> {
        fs::read_dir("/sys/bus/usb/devices").ok()?.flatten().find_map(|entry| {
            let sysfs = entry.path();
            let number = attribute(&sysfs, "devnum")?.parse().ok()?;
            (attribute(&sysfs, "serial")? == serial).then(|| Self {
                serial: serial.to_owned(),
                sysfs,
                number,
            })
        })
    }

    /// Waits until the host has enumerated the device.
    ///
    /// # Errors
    /// It did not.
    pub fn await_serial(serial: &str) -> Result<Self> {
        wait_for(ENUMERATION, &format!("the host enumerates {serial}"), || Self::find(serial))
    }

    /// Waits until the host has lost the device.
    ///
    /// # Errors
    /// It still has it.
    pub fn await_gone(&self, limit: Duration) -> Result<()> {
        wait_until(limit, &format!("{} is gone from the host", self.serial), || {
            Self::find(&self.serial).is_none_or(|now| now.number != self.number)
        })
    }

    /// In Mbit/s, as sysfs says it.
    #[must_use]
    pub fn speed(&self) -> String {
        attribute(&self.sysfs, "speed").unwrap_or_default()
    }

    /// Lets the host use the device, or takes it away from its drivers as a pulled plug would.
    ///
    /// # Errors
    /// The device is gone.
    pub fn authorize(&self, authorized: bool) -> Result<()> {
        let path = self.sysfs.join("authorized");
        fs::write(&path, if authorized { "1" } else { "0" })
            .with_context(|| format!("cannot write {}", path.display()))
    }

    /// The directory of an interface; interfaces are in the order of functions.
    #[must_use]
    pub fn interface(&self, number: usize) -> PathBuf {
        let port = self.sysfs.file_name().unwrap_or_default().to_string_lossy().into_owned();
        self.sysfs.join(format!("{port}:1.{number}"))
    }

    /// Waits until the host has set up the drive `lun` of a function.
    ///
    /// # Errors
    /// It did not.
    pub fn await_lun(&self, interface: usize, lun: u8) -> Result<Lun> {
        let dir = self.interface(interface);
        let found =
            wait_for(ENUMERATION, &format!("drive {lun} on {}", dir.display()), || Lun::find(&dir, lun))?;
        // The host still looks for partitions; opening waits for that, also where there is no medium.
        drop(found.open(Caching::Buffered));
        found.settle()?;
        Ok(found)
    }
}

/// A drive as the host has it.
#[derive(Clone, Debug)]
pub struct Lun {
    /// In sysfs: the SCSI device.
    pub sysfs: PathBuf,
    /// `/dev/sdX` or `/dev/srX`.
    pub node: PathBuf,
    /// `/dev/sgX`.
    pub sg: PathBuf,
}

impl Lun {
    fn find(interface: &Path, lun: u8) -> Option<Self> {
        let host = child(interface, "host")?;
        let target = child(&host, "target")?;
        let sysfs = children(&target).into_iter().find(|path| {
            path.file_name().is_some_and(|name| name.to_string_lossy().ends_with(&format!(":{lun}")))
        })?;
        let node = device_node(children(&sysfs.join("block")).first()?)?;
        let sg = device_node(children(&sysfs.join("scsi_generic")).first()?)?;
        Some(Self { sysfs, node, sg })
    }

    /// Waits until the host has nothing more to ask of the drive by itself.
    ///
    /// After a close the kernel looks for media events in a worker of its own, which uses up unit attentions.
    ///
    /// # Errors
    /// The host goes on and on.
    pub fn settle(&self) -> Result<()> {
        let count = |name| attribute(&self.sysfs, name);
        let (mut last, mut quiet) = (None, 0);
        wait_until(ENUMERATION, &format!("the host leaves {} alone", self.node.display()), || {
            let (asked, answered) = (count("iorequest_cnt"), count("iodone_cnt"));
            quiet = if asked == answered && asked == last { quiet + 1 } else { 0 };
            last = asked;
            quiet >= QUIET
        })
    }

    /// The node's name, as in `sda`.
    #[must_use]
    pub fn name(&self) -> String {
        self.node.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// `vendor` or `model`, as the host took it from INQUIRY.
    #[must_use]
    pub fn inquiry(&self, attribute_name: &str) -> String {
        attribute(&self.sysfs, attribute_name).unwrap_or_default()
    }

    /// Bytes of the medium, as the host has it.
    #[must_use]
    pub fn len(&self) -> u64 {
        let size = attribute(Path::new("/sys/class/block"), &format!("{}/size", self.name()));
        size.and_then(|sectors| sectors.parse::<u64>().ok()).map_or(0, |sectors| sectors * 512)
    }

    /// The host knows of no medium.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The host takes the medium for write-protected.
    #[must_use]
    pub fn read_only(&self) -> bool {
        attribute(Path::new("/sys/class/block"), &format!("{}/ro", self.name())).is_some_and(|ro| ro == "1")
    }

    /// What the host does with a write, as `write back` or `write through`: its reading of the caching mode page.
    #[must_use]
    pub fn cache_type(&self) -> Option<String> {
        attribute(children(&self.sysfs.join("scsi_disk")).first()?, "cache_type")
    }

    /// Opens the drive for reading; while it is open, Linux prevents removal of the medium.
    ///
    /// # Errors
    /// No medium, or the host cannot read it.
    pub fn open(&self, how: Caching) -> io::Result<File> {
        OpenOptions::new().read(true).custom_flags(how.flags()).open(&self.node)
    }

    /// Opens the drive for writing.
    ///
    /// # Errors
    /// No medium, or a read-only one.
    pub fn open_rw(&self, how: Caching) -> io::Result<File> {
        OpenOptions::new().read(true).write(true).custom_flags(how.flags()).open(&self.node)
    }

    /// SHA-256 of the whole medium.
    ///
    /// # Errors
    /// The host could not read it.
    pub fn sha(&self, how: Caching) -> Result<Sha> {
        self.forget()?;
        let file = self.open(how).with_context(|| format!("cannot open {}", self.node.display()))?;
        sha_of(Aligned::new(file)).with_context(|| format!("cannot read {}", self.node.display()))
    }

    /// `len` bytes at `at`, from the drive and not from the host's cache. Both multiples of 4096.
    ///
    /// # Errors
    /// The host could not read them.
    pub fn read_at(&self, at: u64, len: usize) -> Result<Vec<u8>> {
        let file =
            self.open(Caching::Direct).with_context(|| format!("cannot open {}", self.node.display()))?;
        let mut buffer = AlignedBuffer::new(len);
        file.read_exact_at(buffer.bytes(), at)
            .with_context(|| format!("cannot read {} bytes of {} at {at}", len, self.node.display()))?;
        Ok(buffer.bytes().to_vec())
    }

    /// Writes `bytes` at `at` past the host's cache. Both multiples of 4096.
    ///
    /// # Errors
    /// The host could not write them.
    pub fn write_at(&self, at: u64, bytes: &[u8]) -> Result<()> {
        self.write_unsynced(at, bytes)?;
        self.open_rw(Caching::Direct)
            .and_then(|file| file.sync_all())
            .with_context(|| format!("cannot write {} at {at}", self.node.display()))
    }

    /// As [`Lun::write_at`], but nothing says that it is to be durable.
    ///
    /// # Errors
    /// The host could not write them.
    pub fn write_unsynced(&self, at: u64, bytes: &[u8]) -> Result<()> {
        let file =
            self.open_rw(Caching::Direct).with_context(|| format!("cannot open {}", self.node.display()))?;
        let mut buffer = AlignedBuffer::new(bytes.len());
        buffer.bytes().copy_from_slice(bytes);
        file.write_all_at(buffer.bytes(), at)
            .with_context(|| format!("cannot write {} at {at}", self.node.display()))
    }

    /// Makes the host write back what it holds of the drive, and forget it.
    ///
    /// # Errors
    /// The write-back failed.
    pub fn forget(&self) -> Result<()> {
        tool::run("blockdev", [Path::new("--flushbufs"), &self.node]).map(drop)
    }
}

/// Whether the host's page cache is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caching {
    /// Through the page cache.
    Buffered,
    /// O_DIRECT.
    Direct,
}

impl Caching {
    fn flags(self) -> i32 {
        match self {
            Self::Buffered => 0,
            Self::Direct => libc::O_DIRECT,
        }
    }
}

/// Bytes at an address that O_DIRECT takes.
struct AlignedBuffer {
    memory: Vec<u8>,
    start: usize,
    len: usize,
}

impl AlignedBuffer {
    fn new(len: usize) -> Self {
        let memory = vec![0; len + ALIGN];
        let start = memory.as_ptr().align_offset(ALIGN);
        Self { memory, start, len }
    }

    fn bytes(&mut self) -> &mut [u8] {
        self.memory.get_mut(self.start..self.start + self.len).unwrap_or_default()
    }
}

/// Reads a file in steps of 1 MiB into aligned memory.
struct Aligned {
    file: File,
    buffer: AlignedBuffer,
}

impl Aligned {
    fn new(file: File) -> Self {
        Self { file, buffer: AlignedBuffer::new(1 << 20) }
    }
}

impl Read for Aligned {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let bytes = self.buffer.bytes();
        let step = into.len().min(bytes.len());
        let (Some(from), Some(into)) = (bytes.get_mut(..step), into.get_mut(..step)) else { return Ok(0) };
        let read = self.file.read(from)?;
        into.copy_from_slice(from);
        Ok(read)
    }
}

/// An attribute in sysfs, without its line end.
#[must_use]
pub fn attribute(dir: &Path, name: &str) -> Option<String> {
    fs::read_to_string(dir.join(name)).ok().map(|value| value.trim().to_owned())
}

/// The subdirectories of a directory in sysfs, in order of their names.
#[must_use]
pub fn children(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir) else { return Vec::new() };
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

/// The first child with this prefix.
#[must_use]
pub fn child(dir: &Path, prefix: &str) -> Option<PathBuf> {
    let named =
        |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(prefix));
    children(dir).into_iter().find(named)
}

/// The node in `/dev` of a device in sysfs, once it is there.
#[must_use]
pub fn device_node(sysfs: &Path) -> Option<PathBuf> {
    let uevent = attribute(sysfs, "uevent")?;
    let name = uevent.lines().find_map(|line| line.strip_prefix("DEVNAME="))?;
    let node = Path::new("/dev").join(name);
    let kind = fs::metadata(&node).ok()?.file_type();
    (kind.is_block_device() || kind.is_char_device()).then_some(node)
}

#[cfg(test)]
mod tests {
    use super::{ALIGN, AlignedBuffer};

    #[test]
    fn buffers_are_aligned_for_o_direct() {
        for len in [1, 512, ALIGN, 1 << 20] {
            let mut buffer = AlignedBuffer::new(len);
            assert_eq!((buffer.bytes().as_ptr().align_offset(ALIGN), buffer.bytes().len()), (0, len));
        }
    }
}
