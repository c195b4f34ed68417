//! Overlays that are in no drive: found or made, begun anew, written to their base, and copied out. All of this may block.
//!
//! A new file is written beside the one that it is to replace and then renamed, so that there is an old one or a new one.

use std::{
    fs::{self, File, Metadata, OpenOptions},
    io::{self, Read},
    os::unix::{
        ffi::{OsStrExt, OsStringExt},
        fs::{FileExt, MetadataExt, OpenOptionsExt, fchown},
    },
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use super::{
    Base, OverlayError,
    OverlayErrorKind::{self as Kind, Storage},
    OverlayState,
    error::Foreign,
    layout::{Geometry, Head, Mark, NAME_MAX},
    sidecar,
    store::{BlockFile, LoadError, Store, format},
    worker,
};
use crate::{
    media::{
        Access, FaultKind, Image, MediaError, MediaErrorKind, Medium, Waker,
        image::{lock, unlock},
        qcow2::{Container, Manner, Qcow2},
    },
    units::{BlockSize, ByteLen, ByteOffset, ByteRange},
};

/// How long whoever just ejected an overlay may take to leave its file.
const LEAVE: Duration = Duration::from_secs(2);
const LOOK: Duration = Duration::from_millis(10);
/// Bytes that are copied at once.
const PIECE: u64 = 1 << 20;
const TEMPORARY: &str = "overlay-";
const TEMPORARY_END: &str = ".tmp.qcow2";

/// Hears how many bytes are done, of how many; says whether to go on.
pub type Progress<'a> = dyn FnMut(u64, u64) -> bool + 'a;

/// Fills a buffer with what a host would see there.
pub(super) type Look<'a> = dyn Fn(ByteRange, &mut [u8]) -> Result<(), FaultKind> + 'a;

/// What a base is, as far as its overlay must know.
#[derive(Clone, Debug)]
pub(super) struct Origin {
    name: Vec<u8>,
    is_qcow2: bool,
    /// Of the disk.
    len: ByteLen,
    stored: ByteLen,
    modified: (i64, i64),
}

/// An overlay's file, locked, and what is here.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) path: PathBuf,
    pub(super) file: File,
    pub(super) head: Head,
    pub(super) store: Store,
    /// Of a new file, that nobody knows for good yet.
    pub(super) folder: Option<File>,
}

impl Origin {
    pub(super) fn of(base: &(dyn Medium + Sync), name: &Path) -> Self {
        let modified =
            base.identity().filter(|identity| identity.len.0 > 0).map(|identity| identity.modified);
        let name = fs::canonicalize(name).unwrap_or_else(|_| name.to_owned());
        Self {
            name: name.into_os_string().into_vec(),
            is_qcow2: base.is_qcow2(),
            len: base.len(),
            stored: base.stored(),
            modified: modified.unwrap_or((0, 0)),
        }
    }

    pub(super) fn head(&self, at: &Path) -> Result<Head, OverlayError> {
        let geometry = Geometry::new(self.len).ok_or_else(|| Kind::TooLarge.at(at, None))?;
        if self.name.len() > NAME_MAX {
            return Err(Kind::NameTooLong.at(at, None));
        }
        let mut id = [0; 16];
        let random = File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut id));
        random.map_err(|error| Storage.at(at, Some(error)))?;
        let mark = Mark { base_len: self.stored, base_modified: self.modified, id, committing: false };
        Ok(Head { geometry, base: self.name.clone(), over_qcow2: self.is_qcow2, mark })
    }

    fn check(&self, head: &Head) -> Result<(), Kind> {
        let mark = &head.mark;
        if head.base != self.name {
            return Err(Kind::OtherBase(String::from_utf8_lossy(&head.base).into_owned()));
        }
        if mark.committing {
            return Err(Kind::Committing);
        }
        let is_same = (mark.base_len, mark.base_modified) == (self.stored, self.modified)
            && head.over_qcow2 == self.is_qcow2;
        if is_same && head.geometry.len() == self.len { Ok(()) } else { Err(Kind::BaseChanged) }
    }
}

/// The overlay of `origin` at `path`; a new one where there is no file.
pub(super) fn open_or_make(path: &Path, origin: &Origin) -> Result<Opened, OverlayError> {
    match open(path) {
        Ok(opened) => {
            origin.check(&opened.head).map_err(|kind| kind.at(path, None))?;
            Ok(opened)
        }
        Err(OverlayError { source: Some(error), .. }) if error.kind() == io::ErrorKind::NotFound => {
            make(path, &origin.head(path)?)
        }
        Err(error) => Err(error),
    }
}

/// One that nobody is to find again. Those that a daemon left behind that was killed go first.
pub(super) fn make_temporary(dir: &Path, origin: &Origin) -> Result<Opened, OverlayError> {
    let fail = |error| Storage.at(dir, Some(error));
    fs::create_dir_all(dir).map_err(fail)?;
    for entry in fs::read_dir(dir).map_err(fail)?.flatten() {
        let name = entry.file_name();
        let is_ours = |name: &str| name.starts_with(TEMPORARY) && name.ends_with(TEMPORARY_END);
        if name.to_str().is_some_and(is_ours) && open_locked(&entry.path(), Duration::ZERO).is_ok() {
            let _ = fs::remove_file(entry.path());
        }
    }
    let head = origin.head(dir)?;
    let id: String = head.mark.id.iter().map(|byte| format!("{byte:02x}")).collect();
    make(&dir.join(format!("{TEMPORARY}{id}{TEMPORARY_END}")), &head)
}

fn open_locked(path: &Path, patience: Duration) -> Result<File, OverlayError> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
    let file = options.open(path).map_err(|error| Storage.at(path, Some(error)))?;
    let metadata = file.metadata().map_err(|error| Storage.at(path, Some(error)))?;
    if !metadata.is_file() {
        return Err(Kind::NotAFile.at(path, None));
    }
    let until = Instant::now() + patience;
    loop {
        match lock(&file, Access::ReadWrite) {
            // File systems that have no locks are used without, as for images.
            Ok(_) => return Ok(file),
            Err((MediaErrorKind::InUse, _)) if Instant::now() < until => thread::sleep(LOOK),
            Err((MediaErrorKind::InUse, error)) => return Err(Kind::InUse.at(path, Some(error))),
            Err((_, error)) => return Err(Storage.at(path, Some(error))),
        }
    }
}

/// An overlay that is there.
fn open(path: &Path) -> Result<Opened, OverlayError> {
    let file = open_locked(path, LEAVE)?;
    let fail = |error| Storage.at(path, Some(error));
    let head = read_head(&file).map_err(fail)?;
    let head = head.map_err(|foreign| Kind::Foreign(foreign).at(path, None))?;
    let store = Store::load(&file, head.geometry).map_err(|error| match error {
        LoadError::Io(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            Kind::Foreign(Foreign::Layout).at(path, None)
        }
        LoadError::Io(error) => fail(error),
        LoadError::Foreign(foreign) => Kind::Foreign(foreign).at(path, None),
    })?;
    Ok(Opened { path: path.to_owned(), file, head, store, folder: None })
}

fn read_head(file: &File) -> io::Result<Result<Head, Foreign>> {
    let mut bytes = vec![0; Head::LEN_MAX];
    let read = file.read_at(&mut bytes, 0)?;
    Ok(Head::parse(bytes.get(..read).unwrap_or_default()))
}

/// One of which nothing is here, in place of whatever is at `path`.
pub(super) fn make(path: &Path, head: &Head) -> Result<Opened, OverlayError> {
    let fail = |error| Storage.at(path, Some(error));
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let new = PathBuf::from(new);
    // Of somebody who was killed here.
    let _ = fs::remove_file(&new);
    let mut options = OpenOptions::new();
    let file = options.read(true).write(true).create_new(true).mode(0o600).open(&new).map_err(fail)?;
    let made = lock(&file, Access::ReadWrite).map_err(|(_, error)| error).and_then(|_| {
        file.set_len(head.geometry.file_len())?;
        format(&file, head)?;
        fs::rename(&new, path)?;
        File::open(path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new(".")))
    });
    let folder = made.inspect_err(|_| drop(fs::remove_file(&new))).map_err(fail)?;
    let (path, store) = (path.to_owned(), Store::new(head.geometry));
    Ok(Opened { path, file, head: head.clone(), store, folder: Some(folder) })
}

/// What `path` is an overlay of, and how much is in it.
///
/// # Errors
/// [`OverlayError`], above all where it is in a drive.
pub fn status(path: &Path, runtime_dir: &Path) -> Result<(PathBuf, OverlayState), OverlayError> {
    let opened = open(path)?;
    merge(&opened, runtime_dir)?;
    let state = OverlayState {
        file: path.to_string_lossy().into_owned(),
        temporary: false,
        written: opened.store.bytes_here().0,
    };
    Ok((base_of(&opened.head), state))
}

/// Puts the overlay at `path` in order, which is to be read by somebody who knows of no overlays. Whatever else is there, or in use, is
/// left alone.
///
/// # Errors
/// [`OverlayError`]: with its base as it is now, it is no disk.
pub(in crate::media) fn settle(path: &Path, runtime_dir: &Path) -> Result<(), OverlayError> {
    // Of those of others nothing is locked: somebody may be opening the same file for reading, and would find it in use.
    if !is_overlay(path) {
        return Ok(());
    }
    let Ok(opened) = open(path) else { return Ok(()) };
    let settled = put_in_order(&opened, runtime_dir);
    // Closing it is not enough: a process that is being started has the descriptor, too, until it executes its program.
    let _ = unlock(&opened.file);
    settled
}

fn is_overlay(path: &Path) -> bool {
    let mut options = OpenOptions::new();
    let file = options.read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path);
    file.is_ok_and(|file| read_head(&file).is_ok_and(|head| head.is_ok()))
}

fn put_in_order(opened: &Opened, runtime_dir: &Path) -> Result<(), OverlayError> {
    let path = &opened.path;
    if opened.head.mark.committing {
        return Err(Kind::Committing.at(path, None));
    }
    let base = fs::metadata(base_of(&opened.head)).ok().filter(Metadata::is_file);
    let modified = base.map(|base| (base.mtime(), base.mtime_nsec()));
    if modified.is_some_and(|modified| modified != opened.head.mark.base_modified) {
        return Err(Kind::BaseChanged.at(path, None));
    }
    merge(opened, runtime_dir)
}

/// Adds what a daemon knew that was killed, and stores it.
fn merge(opened: &Opened, runtime_dir: &Path) -> Result<(), OverlayError> {
    let fail = |error| Storage.at(&opened.path, Some(error));
    sidecar::merge(runtime_dir, &opened.file, opened.head.mark.id, &opened.store).map_err(fail)?;
    if opened.store.is_dirty() {
        opened.store.store(&opened.file).map_err(fail)?;
    }
    sidecar::remove(runtime_dir, &opened.file);
    Ok(())
}

fn base_of(head: &Head) -> PathBuf {
    PathBuf::from(std::ffi::OsStr::from_bytes(&head.base))
}

/// A raw base, to be written to.
fn open_target(overlay: &Path, head: &Head) -> Result<Image, OverlayError> {
    if head.over_qcow2 {
        return Err(Kind::OverQcow2.at(overlay, None));
    }
    open_base(overlay, head, |path, block_size| Image::open(path, Access::ReadWrite, block_size))
}

/// A base, to be read. It had what it names below it when the overlay was made.
fn open_source(overlay: &Path, head: &Head, runtime_dir: &Path) -> Result<Base, OverlayError> {
    if !head.over_qcow2 {
        let open = |path: &Path, block_size| Image::open(path, Access::ReadOnly, block_size);
        return open_base(overlay, head, open).map(|image| -> Base { Box::new(image) });
    }
    let base = base_of(head);
    let manner = Manner { raw: false, backing: true };
    let how = (Access::ReadOnly, block_size(head));
    match Qcow2::open(&base, Container::Qcow2, how, manner, runtime_dir) {
        Ok(image) => Ok(Box::new(image)),
        Err(error) => Err(Kind::Qcow2Base(error.to_string()).at(overlay, error.source)),
    }
}

/// Of the drive that an overlay was made for.
fn block_size(head: &Head) -> BlockSize {
    let is_large = head.geometry.len().0 == head.mark.base_len.0.next_multiple_of(4096);
    match head.mark.base_len.0.is_multiple_of(512) || !is_large {
        true => BlockSize::B512,
        false => BlockSize::B4096,
    }
}

fn open_base(
    overlay: &Path,
    head: &Head,
    open: impl Fn(&Path, BlockSize) -> Result<Image, MediaError>,
) -> Result<Image, OverlayError> {
    let (base, block_size) = (base_of(head), block_size(head));
    let until = Instant::now() + LEAVE;
    loop {
        match open(&base, block_size) {
            Ok(image) => return Ok(image),
            Err(error) if error.kind == MediaErrorKind::InUse && Instant::now() < until => {
                thread::sleep(LOOK);
            }
            Err(error) => {
                let path = base.to_string_lossy().into_owned();
                return Err(Kind::Base { path, kind: error.kind }.at(overlay, error.source));
            }
        }
    }
}

/// Begins an overlay anew: all that was written to it is gone. Its base is taken as it is now.
///
/// # Errors
/// [`OverlayError`]: it is in a drive, it is no overlay, or its base is not there. It is as it was then.
pub fn discard(path: &Path, runtime_dir: &Path) -> Result<(), OverlayError> {
    let opened = open(path)?;
    renew_in_place(path, &opened.head, &opened.file, runtime_dir)
}

/// Begins the overlay at `path` anew, whose file is `old`; its base is taken as it is now.
pub(super) fn renew_in_place(
    path: &Path,
    head: &Head,
    old: &File,
    runtime_dir: &Path,
) -> Result<(), OverlayError> {
    let base = open_source(path, head, runtime_dir)?;
    let mut origin = Origin::of(&*base, &base_of(head));
    origin.name = head.base.clone();
    // A drive with larger blocks fills up the last one.
    if origin.stored == head.mark.base_len {
        origin.len = head.geometry.len();
    }
    let new = make(path, &origin.head(path)?)?;
    // Who may read it stays; what cannot be given away is the daemon's.
    let _ = old.metadata().and_then(|old| {
        new.file.set_permissions(old.permissions())?;
        fchown(&new.file, Some(old.uid()), Some(old.gid()))
    });
    sidecar::remove(runtime_dir, old);
    Ok(())
}

/// Writes what is in an overlay to its base, and begins it anew. Broken off half way, it is to be done again before the overlay can be
/// used; nothing is lost.
///
/// # Errors
/// [`OverlayError`]: one of both is in use, the base may not be written to, it has changed, or there is no room.
pub fn commit(path: &Path, runtime_dir: &Path, progress: &mut Progress<'_>) -> Result<u64, OverlayError> {
    let mut opened = open(path)?;
    let fail = |error| Storage.at(path, Some(error));
    merge(&opened, runtime_dir)?;
    let base = open_target(path, &opened.head)?;
    let origin = Origin::of(&base, &base_of(&opened.head));
    let mark = &mut opened.head.mark;
    let is_same = mark.committing || mark.base_modified == origin.modified;
    if !is_same || mark.base_len != origin.stored {
        return Err(Kind::BaseChanged.at(path, None));
    }
    mark.committing = true;
    opened.file.put(&opened.head.to_bytes(), 0).and_then(|()| opened.file.sync()).map_err(fail)?;
    let total = opened.store.bytes_here().0;
    let copied = copy_to_base(&opened, &base, total, progress)?;
    if !copied {
        return Err(Kind::Cancelled.at(path, None));
    }
    let base_name = base_of(&opened.head);
    drop(base);
    // Measured anew, because it has changed.
    renew_in_place(path, &opened.head, &opened.file, runtime_dir)?;
    tracing::info!(overlay = %path.display(), base = %base_name.display(), bytes = total, "committed");
    Ok(total)
}

/// Whether all of it is there, for good.
fn copy_to_base(
    opened: &Opened,
    base: &Image,
    total: u64,
    progress: &mut Progress<'_>,
) -> Result<bool, OverlayError> {
    let Some(target) = base.file_for_sync() else { return Ok(false) };
    let (mut bytes, mut done) = (vec![0; ByteLen(PIECE).to_usize()], 0);
    if !progress(done, total) {
        return Ok(false);
    }
    for run in opened.store.runs() {
        let mut ahead = run;
        while !ahead.is_empty() {
            let (here, rest) = ahead.split_at(ByteLen(PIECE));
            let bytes = bytes.get_mut(..here.len().to_usize()).unwrap_or_default();
            let place = opened.head.geometry.data(here.start());
            opened
                .file
                .read_exact_at(bytes, place.0)
                .map_err(|error| Storage.at(&opened.path, Some(error)))?;
            let to_base = target.write_all_at(bytes, here.start().0);
            to_base.map_err(|error| base_failed(opened, error))?;
            done += here.len().0;
            ahead = rest;
            if !progress(done, total) {
                return Ok(false);
            }
        }
    }
    target.sync_data().map_err(|error| base_failed(opened, error))?;
    Ok(true)
}

fn base_failed(opened: &Opened, error: io::Error) -> OverlayError {
    let path = base_of(&opened.head).to_string_lossy().into_owned();
    Kind::Base { path, kind: MediaErrorKind::Storage }.at(&opened.path, Some(error))
}

/// Writes what a host would see of an overlay into a new file at `to`.
///
/// # Errors
/// [`OverlayError`]. There is no file then.
pub fn export(
    path: &Path,
    to: &Path,
    runtime_dir: &Path,
    progress: &mut Progress<'_>,
) -> Result<(), OverlayError> {
    let opened = open(path)?;
    merge(&opened, runtime_dir)?;
    let mut base = open_source(path, &opened.head, runtime_dir)?;
    let origin = Origin::of(&*base, &base_of(&opened.head));
    let mark = &opened.head.mark;
    // Half a commit and its overlay are together what they were before.
    if mark.base_len != origin.stored || !mark.committing && mark.base_modified != origin.modified {
        return Err(Kind::BaseChanged.at(path, None));
    }
    let bell = Arc::new(super::Bell::default());
    let waker = Arc::clone(&bell);
    base.set_waker(Waker::new(move || waker.wake()));
    let map = |range: ByteRange| match opened.store.run(range) {
        (true, len) => {
            let offset = opened.head.geometry.data(range.start());
            opened.extent(offset, len)
        }
        (false, len) => base.map(range.split_at(len).0),
    };
    let read = |range: ByteRange, to: &mut [u8]| worker::read(&map, &bell, range, to);
    export_to(to, path, opened.head.geometry.len(), &read, progress)?.keep();
    Ok(())
}

impl Opened {
    fn extent(&self, offset: ByteOffset, len: ByteLen) -> crate::media::Extent {
        match self.file.try_clone() {
            Ok(file) => crate::media::Extent::File { file: file.into(), offset, len },
            Err(error) => crate::media::Extent::Fault { kind: FaultKind::from(&error), len },
        }
    }
}

/// A file that goes again unless it is kept.
pub(super) struct Target<'a>(Option<&'a Path>);

impl Target<'_> {
    pub(super) fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for Target<'_> {
    fn drop(&mut self) {
        if let Some(path) = self.0 {
            let _ = fs::remove_file(path);
        }
    }
}

/// Copies a disk into a new file, which has holes where there are only zeroes.
pub(super) fn export_to<'a>(
    to: &'a Path,
    overlay: &Path,
    ByteLen(total): ByteLen,
    read: &Look<'_>,
    progress: &mut Progress<'_>,
) -> Result<Target<'a>, OverlayError> {
    let shown = || to.to_string_lossy().into_owned();
    let fail = |error: io::Error| match error.kind() {
        io::ErrorKind::AlreadyExists => Kind::Exists(shown()).at(overlay, None),
        _ => Kind::Target(shown()).at(overlay, Some(error)),
    };
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(to).map_err(fail)?;
    let target = Target(Some(to));
    file.set_len(total).map_err(fail)?;
    let mut bytes = vec![0; ByteLen(PIECE).to_usize()];
    for at in (0..total).step_by(bytes.len()) {
        let len = ByteLen(PIECE.min(total - at));
        let Some((range, bytes)) = ByteRange::new(ByteOffset(at), len).zip(bytes.get_mut(..len.to_usize()))
        else {
            break;
        };
        read(range, bytes).map_err(|kind| Storage.at(overlay, Some(io::Error::other(kind))))?;
        for (at, piece) in (at..).step_by(4096).zip(bytes.chunks(4096)) {
            if piece.iter().any(|byte| *byte != 0) {
                file.write_all_at(piece, at).map_err(fail)?;
            }
        }
        if !progress(at + len.0, total) {
            return Err(Kind::Cancelled.at(overlay, None));
        }
    }
    file.sync_all().map_err(fail)?;
    Ok(target)
}
