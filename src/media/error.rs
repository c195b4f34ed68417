//! Why an image was not taken.

use std::{fmt, io, path::PathBuf};

use crate::units::ByteLen;

/// An image that was not taken: what, why, and how to mend it.
#[derive(Debug, thiserror::Error)]
#[error("cannot {op} {:?}: {kind}", path.to_string_lossy())]
pub struct MediaError {
    /// For control flow.
    pub kind: MediaErrorKind,
    /// What was being done.
    pub op: MediaOp,
    /// The image, as it was named to us. Shown with U+FFFD where it is not UTF-8, and control characters escaped.
    pub path: PathBuf,
    /// The system's error, if it was one.
    #[source]
    pub source: Option<io::Error>,
}

/// What was being done to the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MediaOp {
    /// Opening it by path.
    Open,
    /// Taking a file descriptor that somebody passed.
    Adopt,
    /// Learning what and how large it is.
    Inspect,
    /// Locking it against other users.
    Lock,
}

/// The reasons.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MediaErrorKind {
    /// ENOENT, ENOTDIR.
    #[error("no such file; check the path, and that the storage is mounted")]
    Missing,
    /// The path or a part of it is longer than the system takes, holds a NUL, or goes round in links.
    #[error("not a path that the system takes; try a shorter one, without links that point at each other")]
    BadPath,
    /// A directory.
    #[error("a directory; try a file in it")]
    Directory,
    /// A FIFO, a socket or a character device.
    #[error("{0}; try a regular file or a block device")]
    NotStorage(&'static str),
    /// 0 bytes.
    #[error(
        "empty; try an image with something in it, or make it as large as the drive is to be (`truncate -s 1G`)"
    )]
    Empty,
    /// Larger than a signed 64-bit offset.
    #[error("larger than 2^63 bytes; try a smaller image")]
    TooLarge,
    /// EACCES, EPERM.
    #[error("permission denied; try to give the daemon's user access to it and to the folders above it")]
    Permission,
    /// Opening read-write what may only be read: its mode has no write bit, or the descriptor was opened for reading.
    #[error(
        "it may only be read; try without read-write, or `chmod u+w` (a passed descriptor: open it for both)"
    )]
    ReadOnlyFile,
    /// Opening read-write on read-only storage.
    #[error("its storage is read-only; try without read-write, or remount the storage read-write")]
    ReadOnlyStorage,
    /// Descriptor not open for reading.
    #[error("its descriptor is not open for reading; open it for reading, or reading and writing")]
    NotReadable,
    /// A read-write image with a partial block at its end.
    #[error(
        "its length of {len} bytes is not a multiple of the block size of {block_size}; try without read-write, or make it longer \
         (`truncate -s %{block_size}`)"
    )]
    PartialBlock {
        /// The image's.
        len: u64,
        /// The drive's.
        block_size: u32,
    },
    /// Another drive or program holds it, in a way that excludes ours.
    #[error(
        "in use by another drive or program; eject it there or end that program, or, where both only read it, insert it read-only"
    )]
    InUse,
    /// EMFILE, ENFILE.
    #[error("no free file descriptor; try a higher limit (`ulimit -n`, LimitNOFILE=)")]
    NoDescriptors,
    /// ENXIO, ENODEV, ENOMEDIUM: a device node with no device or no medium behind it.
    #[error("there is no device or no medium behind it; check that it is plugged in")]
    NoDevice,
    /// The server or the storage failed or did not answer; the source tells.
    #[error("the storage failed; check the network, the server and the kernel's log")]
    Storage,
}

impl fmt::Display for MediaOp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Open => "open",
            Self::Adopt => "take",
            Self::Inspect => "inspect",
            Self::Lock => "lock",
        })
    }
}

impl MediaErrorKind {
    /// By the errno of open(2). `len` is not known yet, so errors of size do not come from here.
    pub(super) fn from_open(error: &io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::ENOENT | libc::ENOTDIR) => Self::Missing,
            Some(libc::ENAMETOOLONG | libc::ELOOP) => Self::BadPath,
            // A NUL in the path: std's own error, without an errno.
            None if error.kind() == io::ErrorKind::InvalidInput => Self::BadPath,
            Some(libc::EISDIR) => Self::Directory,
            Some(libc::EACCES | libc::EPERM) => Self::Permission,
            Some(libc::EROFS) => Self::ReadOnlyStorage,
            // ETXTBSY: a program that is running, or a swap file. EBUSY: a device that is mounted or part of another.
            Some(libc::ETXTBSY | libc::EBUSY) => Self::InUse,
            Some(libc::EMFILE | libc::ENFILE) => Self::NoDescriptors,
            Some(libc::ENXIO | libc::ENODEV | libc::ENOMEDIUM) => Self::NoDevice,
            Some(libc::EFBIG | libc::EOVERFLOW) => Self::TooLarge,
            _ => Self::Storage,
        }
    }
}

/// Most that an image may hold: what an `off_t` can say.
pub(super) const LEN_MAX: ByteLen = ByteLen(i64::MAX.unsigned_abs());
