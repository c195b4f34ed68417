//! Why an overlay was not taken.

use std::{io, path::PathBuf};

use super::super::MediaErrorKind;

/// An overlay that cannot be used: which, why, and how to mend it.
#[derive(Debug, thiserror::Error)]
#[error("cannot use the overlay {:?}: {kind}", path.to_string_lossy())]
pub struct OverlayError {
    /// The reason.
    pub kind: OverlayErrorKind,
    /// The overlay's file.
    pub path: PathBuf,
    /// The system's error, if it was one.
    #[source]
    pub source: Option<io::Error>,
}

/// The reasons. Each is in docs/overlays.md.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OverlayErrorKind {
    /// It is no overlay of ours.
    #[error("it is {0}")]
    Foreign(Foreign),
    /// It was made for another image.
    #[error("it is an overlay of {0:?}; insert that image, or name another overlay")]
    OtherBase(String),
    /// The base is not what it was.
    #[error(
        "its base image was changed since, and both together are nothing that ever was; put the old image back, or begin anew \
         with `ringdrive overlay discard`"
    )]
    BaseChanged,
    /// The base is not what it was, because a commit was broken off.
    #[error("a commit of it was broken off half way; finish it with `ringdrive overlay commit`")]
    Committing,
    /// Somebody has it.
    #[error("it is in use by another drive or program; eject it there, or end that program")]
    InUse,
    /// A device or the like.
    #[error("it is no regular file; name one, or one that does not exist yet")]
    NotAFile,
    /// The disk.
    #[error("the image is too large for an overlay; use one of at most 32 TiB")]
    TooLarge,
    /// qcow2 has no more room for it.
    #[error("the image's path is longer than the 1023 bytes that a qcow2 file can name; move the image")]
    NameTooLong,
    /// Its base cannot be had.
    #[error("its base {path:?}: {kind}")]
    Base {
        /// Which.
        path: String,
        /// Why.
        kind: MediaErrorKind,
    },
    /// The same of a qcow2 file.
    #[error("{0}")]
    Qcow2Base(String),
    /// A base that is not written to.
    #[error(
        "its base is a qcow2 file, which is not written to; make a new image of both with `ringdrive overlay export`, or, while it \
         is in no drive, use `qemu-img commit`"
    )]
    OverQcow2,
    /// The host wrote while it was copied.
    #[error(
        "the host wrote to the drive meanwhile, so the copy is of no one moment and was removed; eject it at the host, and try again"
    )]
    Written,
    /// There is something already where a copy was to go.
    #[error("{0:?} exists already; name another file, or remove it")]
    Exists(String),
    /// What a copy was to go to.
    #[error("cannot write {0:?}; check its folder and the free space")]
    Target(String),
    /// Nobody wants it any more.
    #[error("interrupted; try again")]
    Cancelled,
    /// The file or its storage.
    #[error("its storage failed; check that its folder exists and can be written to, and the free space")]
    Storage,
}

/// What a file is that is no overlay of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Foreign {
    /// Something else.
    #[error("no qcow2 file; name another file, or one that does not exist yet")]
    NoQcow2,
    /// A qcow2 file.
    #[error(
        "a qcow2 file, but none that ringdrive has made, or another program changed it; name one that does not exist yet"
    )]
    Layout,
}
