//! FunctionFS: mounting an instance, telling it what we are, and opening its files. All descriptors of a function are opened
//! here and nowhere else, or come from a predecessor.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::fs::{MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
};

use ffs_descriptors::{ENDPOINT_DESC_LEN, InterfaceName, MaxBurst, Speed};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::error::GadgetError;
use crate::mounts;

nix::ioctl_none!(ioctl_clear_halt, b'g', 3);
nix::ioctl_read!(ioctl_endpoint_desc, b'g', 130, [u8; ENDPOINT_DESC_LEN]);

/// The open files of one function, descriptors written.
#[derive(Debug)]
pub(super) struct FunctionFiles {
    /// Read-write and non-blocking: events are polled for.
    pub(super) ep0: File,
    /// Read-write, because a halt is I/O in the wrong direction; non-blocking, so that I/O on a disabled endpoint fails with
    /// EAGAIN instead of waiting for a host (kernel.md §1.4). A transfer by read or write waits all the same.
    pub(super) input: File,
    /// As `input`.
    pub(super) output: File,
}

/// The files of a function in the hands of whoever keeps them for a successor.
#[derive(Debug)]
pub struct KeptFiles {
    /// The control pipe.
    pub ep0: OwnedFd,
    /// The bulk IN endpoint.
    pub input: OwnedFd,
    /// The bulk OUT endpoint.
    pub output: OwnedFd,
}

impl FunctionFiles {
    /// Those of a predecessor, opened as we open them.
    pub(super) fn adopt(kept: KeptFiles) -> Self {
        let KeptFiles { ep0, input, output } = kept;
        Self { ep0: ep0.into(), input: input.into(), output: output.into() }
    }

    /// The same files once more, to be kept.
    pub(super) fn kept(&self) -> io::Result<KeptFiles> {
        Ok(KeptFiles {
            ep0: self.ep0.try_clone()?.into(),
            input: self.input.try_clone()?.into(),
            output: self.output.try_clone()?.into(),
        })
    }

    /// Whether they are of another instance than the one that is mounted under this name.
    pub(super) fn is_stale(&self, name: &str) -> io::Result<bool> {
        let ours = self.ep0.metadata()?.dev();
        let is_other = |dir: &PathBuf| fs::metadata(dir).is_ok_and(|found| found.dev() != ours);
        Ok(mounts_of(name).iter().any(is_other))
    }

    /// Writes descriptors and strings, and opens the endpoints that then appear.
    pub(super) fn open(dir: &Path, name: &str, interface: &InterfaceName) -> Result<Self, GadgetError> {
        let mut ep0 = open(&dir.join("ep0"))?;
        for block in [ffs_descriptors::descriptors(MaxBurst::MOST), ffs_descriptors::strings(interface)] {
            io::Write::write_all(&mut ep0, &block).map_err(|error| match error.raw_os_error() {
                // Out of its order for a fresh instance: it has descriptors already.
                Some(libc::EINVAL | libc::EBADFD | libc::ESRCH | libc::EAGAIN) if is_active(dir) => {
                    GadgetError::FunctionTaken { name: name.to_owned() }
                }
                _ => GadgetError::io("write descriptors to", dir.join("ep0"))(error),
            })?;
        }
        let input = open(&dir.join(ffs_descriptors::EP_IN))?;
        let output = open(&dir.join(ffs_descriptors::EP_OUT))?;
        Ok(Self { ep0, input, output })
    }
}

/// Whether endpoint files are there: descriptors were written before.
fn is_active(dir: &Path) -> bool {
    dir.join(ffs_descriptors::EP_IN).exists()
}

fn open(path: &Path) -> Result<File, GadgetError> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open(path)
        .map_err(GadgetError::io("open", path))
}

/// wMaxPacketSize and speed of an endpoint, while it is enabled. Needs an O_NONBLOCK descriptor.
pub(super) fn endpoint_speed(endpoint: impl AsFd) -> Option<(Speed, u16)> {
    let mut desc = [0u8; ENDPOINT_DESC_LEN];
    let fd = endpoint.as_fd().as_raw_fd();
    // SAFETY: the descriptor is open while `endpoint` is borrowed, and the kernel writes at most the 9 bytes of `desc`.
    unsafe { ioctl_endpoint_desc(fd, &raw mut desc) }.ok()?;
    let packet = u16::from_le_bytes([desc[4], desc[5]]);
    // Bulk endpoints have one packet size at each speed (ours at full speed is 64), so the size tells the speed.
    let speed = match packet {
        0..=64 => Speed::Full,
        65..=512 => Speed::High,
        _ => Speed::Super,
    };
    Some((speed, packet))
}

/// Un-stalls an endpoint.
pub(super) fn clear_halt(endpoint: impl AsFd) -> io::Result<()> {
    let fd = endpoint.as_fd().as_raw_fd();
    // SAFETY: the descriptor is open while `endpoint` is borrowed; the request has no argument.
    unsafe { ioctl_clear_halt(fd) }.map(drop).map_err(io::Error::from)
}

/// A FunctionFS instance on a directory. Dropping it detaches what this process mounted, and removes
/// the directory if that is ours.
#[derive(Debug)]
pub(super) struct Mount {
    dir: PathBuf,
    mounted: bool,
    remove_dir: bool,
}

impl Mount {
    /// Mounts the instance `name` on `dir`, which is made if need be, and removed in the end if `is_ours` or if made.
    pub(super) fn new(name: &str, dir: &Path, is_ours: bool) -> Result<Self, GadgetError> {
        let remove_dir = is_ours || !dir.exists();
        fs::create_dir_all(dir).map_err(GadgetError::io("make the directory", dir))?;
        let mut this = Self { dir: dir.to_owned(), mounted: false, remove_dir };
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        mount(Some(name), dir, Some("functionfs"), flags, None::<&str>).map_err(|errno| match errno {
            // The kernel knows the file system only while there is an instance of it.
            nix::Error::ENODEV | nix::Error::ENOENT => GadgetError::NoFunction { name: name.to_owned() },
            nix::Error::EBUSY => GadgetError::FunctionTaken { name: name.to_owned() },
            _ => GadgetError::io("mount FunctionFS on", dir)(errno),
        })?;
        this.mounted = true;
        Ok(this)
    }

    /// As [`Mount::new`], but uses a mount of the instance that is there already, whoever made it.
    pub(super) fn find_or_new(name: &str, dir: &Path, is_ours: bool) -> Result<Self, GadgetError> {
        match mounts_of(name).into_iter().next() {
            // Left by a process of ours that is gone, perhaps with an instance that is gone too.
            Some(point) if is_ours && point == dir => {
                umount2(dir, MntFlags::MNT_DETACH).map_err(GadgetError::io("unmount", dir))?;
                Self::new(name, dir, is_ours)
            }
            Some(dir) => Ok(Self { dir, mounted: false, remove_dir: false }),
            None => Self::new(name, dir, is_ours),
        }
    }

    /// What a predecessor has mounted, if that is to be seen from here.
    pub(super) fn adopt(name: &str, dir: &Path, is_ours: bool) -> Self {
        let mounted = is_ours && mounts_of(name).iter().any(|point| point == dir);
        Self { dir: dir.to_owned(), mounted, remove_dir: is_ours }
    }

    /// Leaves it as it is, for a successor.
    pub(super) fn leave(mut self) {
        (self.mounted, self.remove_dir) = (false, false);
    }

    /// Where it is mounted.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // Detached, because the engine may still have its files open; they stay valid.
        if self.mounted
            && let Err(error) = umount2(&self.dir, MntFlags::MNT_DETACH)
        {
            tracing::warn!(dir = %self.dir.display(), %error, "cannot unmount FunctionFS");
        }
        if self.remove_dir {
            let _ = fs::remove_dir(&self.dir);
        }
    }
}

/// Detaches every mount of the instance `name`.
pub(super) fn unmount_all(name: &str) -> Result<(), GadgetError> {
    for dir in mounts_of(name) {
        umount2(&dir, MntFlags::MNT_DETACH).map_err(GadgetError::io("unmount", &dir))?;
    }
    Ok(())
}

/// Where the instance `name` is mounted.
fn mounts_of(name: &str) -> Vec<PathBuf> {
    let is_ours = |mount: &mounts::Mount| mount.kind == "functionfs" && mount.source == name;
    mounts::all().into_iter().filter(is_ours).map(|mount| mount.point).collect()
}
