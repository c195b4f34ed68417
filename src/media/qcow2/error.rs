//! Why a qcow2 file was not taken.

use std::{io, path::PathBuf};

use super::super::{MediaError, MediaErrorKind, overlay::OverlayErrorKind};

/// A qcow2 file that cannot be used: which, why, and how to mend it.
#[derive(Debug, thiserror::Error)]
#[error("cannot open {:?}: {kind}", path.to_string_lossy())]
pub struct Qcow2Error {
    /// The reason.
    pub kind: Qcow2ErrorKind,
    /// The file that was named, or the backing file that it is about.
    pub path: PathBuf,
    /// The system's error, if it was one.
    #[source]
    pub source: Option<io::Error>,
}

/// The reasons. Each is in docs/formats.md.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Qcow2ErrorKind {
    /// Another container, which we do not open.
    #[error(
        "it is a {0} file, whose bytes are no disk; convert it (`qemu-img convert -O raw`), or insert them as they are with --raw"
    )]
    Container(&'static str),
    /// Neither 2 nor 3.
    #[error("it is a qcow2 file of version {0}; convert it (`qemu-img convert -O qcow2`)")]
    Version(u32),
    /// Its header or its L1 table makes no sense.
    #[error("its {0} makes no sense; try another copy of it, or see what `qemu-img check` says of it")]
    Damaged(&'static str),
    /// Its tables end behind the file.
    #[error("it ends before it should; try another copy of it")]
    Truncated,
    /// Somebody found it to be corrupt.
    #[error("it is marked as corrupt; repair a copy of it with `qemu-img check -r all`")]
    Corrupt,
    /// AES or LUKS.
    #[error("it is encrypted; decrypt it (`qemu-img convert` with its secret), and insert that")]
    Encrypted,
    /// Its data are in another file.
    #[error("its data are in another file; make one file of both (`qemu-img convert -O qcow2`)")]
    ExternalData,
    /// Incompatible features that nobody knows yet.
    #[error(
        "it needs features that are not known here (bits {0:#x}); convert it (`qemu-img convert -O qcow2`)"
    )]
    Features(u64),
    /// Neither deflate nor zstd.
    #[error("its compression (type {0}) is not known here; convert it (`qemu-img convert -O qcow2`)")]
    Compression(u8),
    /// Larger than any disk.
    #[error("its disk is larger than 2^62 bytes; use a smaller one")]
    TooLarge,
    /// Of 0 bytes.
    #[error("its disk is empty; make it larger (`qemu-img resize`)")]
    Empty,
    /// It names another file, and nobody has said that that may be read.
    #[error(
        "it has the backing file {0:?}; insert it with --backing if that may be read, or make one file of both (`qemu-img convert`)"
    )]
    Backing(String),
    /// What it names as its backing file is no path.
    #[error("its backing file {0:?} is no file on this machine; make one file of both (`qemu-img convert`)")]
    NotAPath(String),
    /// It does not say what its backing file is.
    #[error(
        "it does not say whether its backing file {0:?} is raw or qcow2; say so (`qemu-img rebase -u -b FILE -F FORMAT`)"
    )]
    NoFormat(String),
    /// It came as a descriptor, or from a URL.
    #[error(
        "it has a backing file, and came as a descriptor or from a URL, where there is no folder to look in; insert it by its path"
    )]
    NoFolder,
    /// A device, or the like.
    #[error("it is no regular file, as a backing file has to be; name one (`qemu-img rebase`)")]
    NotAFile,
    /// Backing files go round in a circle.
    #[error("it is its own backing file, or that of one below it; mend that (`qemu-img rebase -u`)")]
    Circle,
    /// Too many backing files.
    #[error(
        "there are more than {0} backing files below it; make one of some (`qemu-img commit`, `qemu-img convert`)"
    )]
    Depth(usize),
    /// It is to be written to, and nobody here knows how.
    #[error(
        "it cannot be written to, because {0}; insert it with --overlay, which takes what the host writes, or convert it \
        (`qemu-img convert -O qcow2`)"
    )]
    NotWritable(&'static str),
    /// An overlay of ours that is not what it should be.
    #[error("it is an overlay: {0}")]
    Overlay(OverlayErrorKind),
    /// As of any other image.
    #[error("{0}")]
    Image(MediaErrorKind),
}

impl Qcow2Error {
    /// Whether it could be opened if nobody wanted to write to it.
    pub fn is_about_writing(&self) -> bool {
        matches!(self.kind, Qcow2ErrorKind::NotWritable(_))
    }
}

impl Qcow2ErrorKind {
    pub(super) fn at(self, path: &std::path::Path, source: Option<io::Error>) -> Qcow2Error {
        Qcow2Error { kind: self, path: path.to_owned(), source }
    }
}

impl From<MediaError> for Qcow2Error {
    fn from(MediaError { kind, path, source, .. }: MediaError) -> Self {
        Self { kind: Qcow2ErrorKind::Image(kind), path, source }
    }
}
