//! Why bytes could not be read or written, and what that says of where they are.

use std::io;

use serde::{Deserialize, Serialize};

/// Whether the source of an image, its storage or its server, can be used. Of two that tell of one image the worse, which is the
/// greater, holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SourceState {
    /// It answers.
    Online,
    /// It did not answer in time, and is asked again and again; what it would be needed for is refused until it does.
    Offline,
    /// The image is no longer what was inserted; what cannot be told to be of the old one is refused until it is inserted again.
    Changed,
    /// What is missing of the image will never come, and nothing is asked of it any more.
    Failed,
}

/// What went wrong with a run of bytes, in as few kinds as a person (or the drive's sense data) would tell apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum FaultKind {
    /// Beyond the end of the medium.
    #[error("beyond the end of the image")]
    OutOfRange,
    /// The file ends before the medium does: somebody made it shorter after it was inserted.
    #[error("the image has become shorter since it was inserted; try to eject it and insert it again")]
    Truncated,
    /// It was taken out of the drive.
    #[error("the image was ejected in the middle of a command")]
    Ejected,
    /// Somebody else wrote to it, or put another in its place.
    #[error(
        "the image was changed by somebody else since it was inserted; try to eject it and insert it again"
    )]
    Changed,
    /// The storage under the image failed.
    #[error("input/output error of the storage under the image; see the kernel's log")]
    Io,
    /// The storage says that just these bytes are lost or damaged.
    #[error("the storage under the image has lost or damaged these bytes; try another copy of the image")]
    Damaged,
    /// No space left.
    #[error("no space left on the storage under the image; try to free some")]
    NoSpace,
    /// Quota used up.
    #[error("the owner's quota on the storage under the image is used up; try to raise it")]
    Quota,
    /// The file may not grow that far.
    #[error("a file on the storage under the image may not be that large")]
    TooLarge,
    /// The storage became read-only.
    #[error("the storage under the image is read-only; try to remount it read-write")]
    ReadOnly,
    /// The server or the storage refuses us.
    #[error("the storage under the image denies access")]
    Permission,
    /// The file was removed or replaced on its server.
    #[error("the image was removed from its server, or replaced; try to insert it again")]
    Stale,
    /// The server cannot be reached, or broke the connection.
    #[error("the server of the image cannot be reached; check the network and the server")]
    Unreachable,
    /// The cache that the bytes would be fetched into has no room.
    #[error("the disk of the cache is full; try to free some")]
    CacheFull,
    /// No answer in time.
    #[error("the storage under the image did not answer in time; check the network and the server")]
    TimedOut,
    /// The device is no longer there.
    #[error("the device under the image is gone")]
    Gone,
    /// The kernel had no memory.
    #[error("the kernel is short of memory")]
    NoMemory,
    /// Cancelled or interrupted before it was done: the same operation may succeed when tried again.
    #[error("interrupted")]
    Interrupted,
    /// The kernel says that the request makes no sense: a bug of ours.
    #[error("the kernel refused the request; this is a bug in ringdrive: please report it")]
    Refused,
    /// Some other errno.
    #[error("errno {0}")]
    Other(i32),
}

impl FaultKind {
    /// The kind of an errno that read, write, fsync or io_uring gave for an image.
    pub fn from_errno(errno: i32) -> Self {
        match errno {
            // EREMOTEIO and EBADE: the block layer's target error and reservation conflict.
            libc::EIO | libc::EREMOTEIO | libc::EBADE => Self::Io,
            // The block layer's medium error (ENODATA) and protection error (EILSEQ); checksum errors of file systems.
            libc::ENODATA | libc::EILSEQ | libc::EBADMSG | libc::EUCLEAN => Self::Damaged,
            libc::ENOSPC => Self::NoSpace,
            libc::EDQUOT => Self::Quota,
            libc::EFBIG => Self::TooLarge,
            libc::EROFS => Self::ReadOnly,
            libc::EACCES
            | libc::EPERM
            | libc::ENOKEY
            | libc::EKEYEXPIRED
            | libc::EKEYREVOKED
            | libc::EKEYREJECTED => Self::Permission,
            libc::ESTALE | libc::ENOENT => Self::Stale,
            // ENOLINK: the block layer's transport error.
            libc::ENOLINK
            | libc::EHOSTDOWN
            | libc::EHOSTUNREACH
            | libc::ENETDOWN
            | libc::ENETUNREACH
            | libc::ENETRESET
            | libc::ECONNREFUSED
            | libc::ECONNRESET
            | libc::ECONNABORTED
            | libc::ENOTCONN
            | libc::EPIPE => Self::Unreachable,
            libc::ETIMEDOUT | libc::ETIME => Self::TimedOut,
            libc::ENODEV | libc::ENXIO | libc::ENOMEDIUM | libc::ESHUTDOWN => Self::Gone,
            libc::ENOMEM | libc::ENOBUFS => Self::NoMemory,
            libc::EINTR | libc::EAGAIN | libc::ECANCELED | libc::EBUSY => Self::Interrupted,
            libc::EINVAL
            | libc::EBADF
            | libc::EFAULT
            | libc::EISDIR
            | libc::ESPIPE
            | libc::EOVERFLOW
            | libc::EOPNOTSUPP => Self::Refused,
            other => Self::Other(other),
        }
    }

    /// Whether the same operation may well succeed if simply tried again.
    pub fn is_transient(self) -> bool {
        matches!(self, Self::Interrupted | Self::NoMemory)
    }
}

impl From<&io::Error> for FaultKind {
    fn from(error: &io::Error) -> Self {
        error.raw_os_error().map_or(Self::Io, Self::from_errno)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From the pages read(2), write(2), fsync(2) and the kernel's table of block layer errors (`blk_errors[]`).
    #[test]
    fn every_errno_that_the_manual_pages_name_has_a_kind_of_its_own() {
        let read =
            [libc::EAGAIN, libc::EBADF, libc::EFAULT, libc::EINTR, libc::EINVAL, libc::EIO, libc::EISDIR];
        let write = [libc::EDQUOT, libc::EFBIG, libc::ENOSPC, libc::EPERM, libc::EPIPE];
        let fsync = [libc::EROFS];
        let block = [
            libc::EOPNOTSUPP,
            libc::ETIMEDOUT,
            libc::ENOLINK,
            libc::EREMOTEIO,
            libc::EBADE,
            libc::ENODATA,
            libc::EILSEQ,
            libc::ENOMEM,
            libc::ENODEV,
            libc::ETIME,
        ];
        for errno in [&read[..], &write, &fsync, &block].concat() {
            assert!(!matches!(FaultKind::from_errno(errno), FaultKind::Other(_)), "errno {errno}");
        }
    }

    #[test]
    fn kinds_that_a_host_must_tell_apart_are_apart() {
        for (errno, kind) in [
            (libc::EIO, FaultKind::Io),
            (libc::ENODATA, FaultKind::Damaged),
            (libc::ENOSPC, FaultKind::NoSpace),
            (libc::EDQUOT, FaultKind::Quota),
            (libc::EROFS, FaultKind::ReadOnly),
            (libc::ESTALE, FaultKind::Stale),
            (libc::ETIMEDOUT, FaultKind::TimedOut),
            (libc::EACCES, FaultKind::Permission),
            (libc::ECANCELED, FaultKind::Interrupted),
            (libc::ENODEV, FaultKind::Gone),
            (0, FaultKind::Other(0)),
            (i32::MIN, FaultKind::Other(i32::MIN)),
        ] {
            assert_eq!(FaultKind::from(&io::Error::from_raw_os_error(errno)), kind);
        }
        assert_eq!(FaultKind::from(&io::Error::other("no errno")), FaultKind::Io);
    }
}
