//! Compressed images: expanded once into a file in the cache directory, which then serves as the image.
//!
//! ```text
//!   insert ──► magic ──► none of ours: a plain image
//!                └──► expanded before ──────────────────────────► KEY.img, read-only
//!                └──► KEY.part ── all of it, sound ──► renamed ──► KEY.img
//!                        └── truncated, damaged, too large, nobody wants it ──► removed
//! ```
//! Called by `control` and at the start, from threads that may block. Invariants: what is named `KEY.img` is whole, and of the file
//! that KEY was made of (path, inode, length, time of last change); no more than the limit is ever written, holes counted; memory
//! is bounded whatever the file says (`decode`).

mod decode;

use std::{
    fs::{self, DirBuilder, File, FileTimes, OpenOptions},
    io::{self, Read},
    os::unix::{
        ffi::OsStrExt,
        fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::SystemTime,
};

use parking_lot::Mutex;
use sha2::{Digest, Sha256};

pub use self::decode::Format;
pub(super) use self::decode::zstd;
use super::{
    Access, Image, MediaError,
    image::{lock, unlock},
};
use crate::units::BlockSize;

/// Plain bytes that are written at once.
const PIECE: usize = 1 << 20;
/// What is zeroes in such a piece is not stored.
const HOLE: usize = 4096;

/// A compressed image that cannot be used: which, why, and how to mend it.
#[derive(Debug, thiserror::Error)]
#[error("cannot expand {:?}: {kind}", path.to_string_lossy())]
pub struct ExpandError {
    /// The reason.
    pub kind: ExpandErrorKind,
    /// The compressed file.
    pub path: PathBuf,
    /// What it came from, if that says more.
    #[source]
    pub source: Option<io::Error>,
}

/// The reasons. Each is in docs/formats.md.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExpandErrorKind {
    /// It ends too early.
    #[error("it ends before it should; try another copy of it")]
    Truncated,
    /// It is damaged.
    #[error("it is damaged; try another copy of it")]
    Corrupt,
    /// Larger than it may be when expanded.
    #[error(
        "it is larger than {0} MiB when it is expanded; raise cache_limit_mib in [url], or expand it yourself"
    )]
    TooLarge(u64),
    /// No room in the cache directory.
    #[error("no space left for it in the cache directory; try to free some, or expand it elsewhere yourself")]
    NoSpace,
    /// A decoder would need more memory than it gets.
    #[error("it was compressed with a window of more than 128 MiB; compress it again with a smaller one")]
    TooMuchMemory,
    /// Somebody does it already.
    #[error("it is being expanded for another drive; try again when that is done")]
    Busy,
    /// Nobody wants it any more.
    #[error("interrupted; try again")]
    Cancelled,
    /// The cache directory or the file itself.
    #[error("the storage failed; check the cache directory and the kernel's log")]
    Storage,
    /// It is to be written to.
    #[error(
        "a compressed image cannot be written to, nor have an overlay; expand it yourself, and insert that"
    )]
    ReadOnly,
}

/// Either error of an image that may be compressed.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Of expanding it.
    #[error(transparent)]
    Expand(#[from] ExpandError),
    /// Of the image.
    #[error(transparent)]
    Image(#[from] MediaError),
}

/// Expands images into a directory.
#[derive(Debug)]
pub struct Expander {
    dir: PathBuf,
    limit: u64,
    /// Held while files are chosen to go, and while one that is there is opened.
    files: Mutex<()>,
}

/// Hears how many of the compressed bytes are done, of how many; says whether to go on.
pub type Progress<'a> = dyn FnMut(u64, u64) -> bool + 'a;

impl Expander {
    /// Into `dir`, no more than `limit` bytes in all. Touches nothing yet.
    pub fn new(dir: PathBuf, limit: u64) -> Arc<Self> {
        Arc::new(Self { dir, limit, files: Mutex::default() })
    }

    /// Whether the file at `path` is a compressed image.
    pub fn is_compressed(path: &Path) -> bool {
        let is_file = fs::metadata(path).is_ok_and(|metadata| metadata.is_file());
        is_file && File::open(path).is_ok_and(|file| Format::of(&file).is_ok_and(|format| format.is_some()))
    }

    /// Opens the image at `path`, expanded if it is compressed. May take long.
    ///
    /// # Errors
    /// [`OpenError`], whose text gives the cause and the cure.
    pub fn open(
        &self,
        path: &Path,
        access: Access,
        block_size: BlockSize,
        progress: &mut Progress<'_>,
    ) -> Result<Image, OpenError> {
        let fail = |source| ExpandErrorKind::Storage.at(path, Some(source));
        let plain = || Image::open(path, access, block_size).map_err(OpenError::from);
        // What is not a file is told of by the image.
        if !fs::metadata(path).is_ok_and(|metadata| metadata.is_file()) {
            return plain();
        }
        let Ok(file) = File::open(path) else { return plain() };
        let Some(format) = Format::of(&file).map_err(fail)? else { return plain() };
        if access == Access::ReadWrite {
            return Err(ExpandErrorKind::ReadOnly.at(path, None).into());
        }
        let key = key(path, &file).map_err(fail)?;
        match self.find(&key, path, block_size)? {
            Some(image) => Ok(image),
            None => self.expand(&key, path, file, format, block_size, progress),
        }
    }

    /// What was expanded before, of the file that `key` names.
    pub(super) fn find(
        &self,
        key: &str,
        path: &Path,
        block_size: BlockSize,
    ) -> Result<Option<Image>, OpenError> {
        let _files = self.files.lock();
        let Ok(file) = File::open(self.whole(key)) else { return Ok(None) };
        // The longest unused is the first to go. By its time of last change a drive that has it knows it again.
        let _ = file.set_times(FileTimes::new().set_accessed(SystemTime::now()));
        Ok(Some(Image::from_fd(file.into(), path.to_owned(), Access::ReadOnly, block_size)?))
    }

    /// Expands `file`, from its offset on, and opens what that gives. `path` is what people call it.
    pub(super) fn expand(
        &self,
        key: &str,
        path: &Path,
        file: File,
        format: Format,
        block_size: BlockSize,
        progress: &mut Progress<'_>,
    ) -> Result<Image, OpenError> {
        self.write(path, file, format, &self.whole(key), progress)?;
        let gone = || ExpandErrorKind::NoSpace.at(path, None).into();
        self.find(key, path, block_size)?.ok_or_else(gone)
    }

    fn whole(&self, key: &str) -> PathBuf {
        self.dir.join(key).with_extension("img")
    }

    fn write(
        &self,
        path: &Path,
        file: File,
        format: Format,
        whole: &Path,
        progress: &mut Progress<'_>,
    ) -> Result<(), ExpandError> {
        let fail = |source| ExpandErrorKind::Storage.at(path, Some(source));
        DirBuilder::new().recursive(true).mode(0o700).create(&self.dir).map_err(fail)?;
        let part = whole.with_extension("part");
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let files = self.files.lock();
        let to = options.open(&part).map_err(fail)?;
        if lock(&to, Access::ReadWrite).is_err() {
            return Err(ExpandErrorKind::Busy.at(path, None));
        }
        drop(files);
        let written = to.set_len(0).map_err(fail).and_then(|()| {
            self.copy(path, file, format, &to, progress)?;
            to.sync_data().map_err(fail)?;
            // Otherwise our own lock would keep the image from being read.
            unlock(&to).map_err(fail)?;
            fs::rename(&part, whole).map_err(fail)
        });
        written.inspect_err(|_| drop(fs::remove_file(&part)))
    }

    fn copy(
        &self,
        path: &Path,
        file: File,
        format: Format,
        to: &File,
        progress: &mut Progress<'_>,
    ) -> Result<(), ExpandError> {
        let fail = |source| ExpandErrorKind::Storage.at(path, Some(source));
        let total = file.metadata().map_err(fail)?.len();
        let taken = Arc::new(AtomicU64::new(0));
        let mut plain = decode::decode(file, format, Arc::clone(&taken));
        let mut piece = vec![0; PIECE];
        let (mut at, mut room) = (0_u64, 0_u64);
        loop {
            let filled = fill(&mut plain, &mut piece).map_err(|error| ExpandErrorKind::of(path, error))?;
            let bytes = piece.get(..filled).unwrap_or_default();
            if bytes.is_empty() {
                break;
            }
            let end = at.saturating_add(u64::try_from(filled).unwrap_or(u64::MAX));
            if end > self.limit {
                return Err(ExpandErrorKind::TooLarge(self.limit >> 20).at(path, None));
            }
            if end > room {
                room = end.saturating_add(256 << 20).min(self.limit);
                self.make_room(room);
            }
            for (at, bytes) in (at..).step_by(HOLE).zip(bytes.chunks(HOLE)) {
                if bytes.iter().any(|byte| *byte != 0) {
                    to.write_all_at(bytes, at).map_err(|error| ExpandErrorKind::of_write(path, error))?;
                }
            }
            at = end;
            if !progress(taken.load(Ordering::Relaxed).min(total), total) {
                return Err(ExpandErrorKind::Cancelled.at(path, None));
            }
        }
        to.set_len(at).map_err(fail)
    }

    /// Removes what is in no drive, the longest unused first, until there may be `bytes` more.
    fn make_room(&self, bytes: u64) {
        let _files = self.files.lock();
        let all = self.all();
        let mut held: u64 = all.iter().map(|(_, bytes, _)| bytes).sum();
        for (_, size, path) in all {
            if held.saturating_add(bytes) <= self.limit {
                return;
            }
            if remove_unused(&path) {
                held = held.saturating_sub(size);
            }
        }
    }

    /// Gives the disk back what is in no drive and the longest unused. Whether there was something.
    pub(super) fn remove_one(&self) -> bool {
        let _files = self.files.lock();
        self.all().into_iter().any(|(_, _, path)| remove_unused(&path))
    }

    /// Images, and what a death has left of them; with when they were last used, and bytes.
    fn all(&self) -> Vec<(SystemTime, u64, PathBuf)> {
        let mut all = Vec::new();
        for entry in fs::read_dir(&self.dir).into_iter().flatten().flatten() {
            let Ok(metadata) = entry.metadata() else { continue };
            let is_part = entry.path().extension().is_some_and(|extension| extension == "part");
            let used = metadata.accessed().ok().filter(|_| !is_part).unwrap_or(SystemTime::UNIX_EPOCH);
            all.push((used, metadata.blocks().saturating_mul(512), entry.path()));
        }
        all.sort();
        all
    }
}

impl ExpandErrorKind {
    fn at(self, path: &Path, source: Option<io::Error>) -> ExpandError {
        ExpandError { kind: self, path: path.to_owned(), source }
    }

    /// Whether it is about the compressed bytes, and not about where they and the others are.
    pub(super) fn is_of_contents(&self) -> bool {
        matches!(self, Self::Truncated | Self::Corrupt | Self::TooLarge(_) | Self::TooMuchMemory)
    }

    /// Of what a decoder says.
    fn of(path: &Path, error: io::Error) -> ExpandError {
        let kind = match error.kind() {
            io::ErrorKind::UnexpectedEof => Self::Truncated,
            io::ErrorKind::OutOfMemory => Self::TooMuchMemory,
            _ if error.raw_os_error().is_some() => Self::Storage,
            _ => Self::Corrupt,
        };
        kind.at(path, Some(error))
    }

    fn of_write(path: &Path, error: io::Error) -> ExpandError {
        let kind = match error.raw_os_error() {
            Some(libc::ENOSPC | libc::EDQUOT | libc::EFBIG) => Self::NoSpace,
            _ => Self::Storage,
        };
        kind.at(path, Some(error))
    }
}

/// Removes a file that nobody has locked.
fn remove_unused(path: &Path) -> bool {
    let file = File::options().write(true).open(path);
    file.is_ok_and(|file| lock(&file, Access::ReadWrite).is_ok()) && fs::remove_file(path).is_ok()
}

/// Reads until `to` is full or there is no more.
fn fill(from: &mut dyn Read, to: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while let Some(rest) = to.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match from.read(rest) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// Of a file as it is now.
fn key(path: &Path, file: &File) -> io::Result<String> {
    let metadata = file.metadata()?;
    let path = fs::canonicalize(path)?;
    let mut hash = Sha256::new();
    hash.update(path.as_os_str().as_bytes());
    for number in [metadata.dev(), metadata.ino(), metadata.len()] {
        hash.update(number.to_le_bytes());
    }
    for number in [metadata.mtime(), metadata.mtime_nsec()] {
        hash.update(number.to_le_bytes());
    }
    Ok(hash.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests;
