//! A writable image over one that nobody writes to: what the host writes goes to a file beside it.
//!
//! ```text
//!   read   map ───► here? ──yes──► File{overlay, data + n}
//!                         └─no───► whatever the base says
//!   write  map_write ──► whole subclusters, or here already ──► File{overlay, data + n} ──► the ring writes ──► written: they are here
//!                    └─► part of one that is not here ──► Pending ──► worker copies it from the base ──► here, wakes the drive
//!   sync   Store::begin ──► worker: sync, what is here into the file, sync ──► wakes the drive ──► Store::next
//! ```
//! The file is a qcow2 file (`layout`) that names its base, so that qemu-img reads it. [`Overlay::map`] and its like answer from
//! memory; the worker is the only one that waits: it copies, and makes durable. `control` makes overlays, the drive uses them as any
//! medium, and [`offline`] has what is done with one that is in no drive.
//!
//! Invariants
//! - **The base is never written to**, and is open read-only. Only a commit writes to it, when no drive has it.
//! - **A byte that is here is the host's or was the base's.** A subcluster counts as here only once all of it is in the file.
//! - **What was written outlives the daemon** as it does in a plain file: what is here is noted in memory that survives it (`sidecar`)
//!   before the command ends, until a store fails. After a power cut, what was synced is there, and all else is old or new (`store`).
//! - **The worker and the ring never write to the same subcluster at once**: what the worker is to copy is `Pending` for all.

mod error;
mod layout;
pub mod offline;
mod sidecar;
pub mod store;
mod worker;

use std::{
    fs::{File, Metadata},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

pub use self::error::{Foreign, OverlayError, OverlayErrorKind};
use self::{layout::Head, offline::Opened, sidecar::Sidecar, worker::Bell};
use super::{
    Allocation, Extent, FaultKind, Identity, Medium, Residence, SourceState, Standing, Store, Waker, Watch,
    bell::Work,
    image::{allocation, can_punch, residence},
    url::FetchState,
};
use crate::units::{BlockSize, ByteLen, ByteOffset, ByteRange};

/// Where what the host writes goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// Into this file, which is made where there is none, and stays.
    File(PathBuf),
    /// Into a file that is gone when the image is ejected.
    Temporary,
}

/// An overlay as people see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OverlayState {
    /// Its file.
    pub file: String,
    /// Whether that goes with the eject.
    pub temporary: bool,
    /// Bytes that are no longer the base's.
    pub written: u64,
}

/// A medium that the worker may ask, too.
pub type Base = Box<dyn Medium + Sync>;

/// An image with its overlay. Dropped, it lets its files go at once, unless its worker is at work, which then does.
#[derive(Debug)]
pub struct Overlay {
    shared: Arc<Shared>,
    worker: Option<JoinHandle<()>>,
}

/// The overlays of a daemon.
#[derive(Debug)]
pub struct Overlays {
    temporary_dir: PathBuf,
    runtime_dir: PathBuf,
    live: Mutex<Vec<Weak<Shared>>>,
}

/// An overlay in a drive, for whoever does something with it besides. Held, it stays although the drive lets it go.
#[derive(Debug)]
pub struct Held(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    base: Base,
    store: store::Store,
    file: Arc<File>,
    head: Head,
    path: PathBuf,
    block_size: BlockSize,
    residence: Residence,
    thin: bool,
    /// It goes with the eject, unless somebody keeps it.
    temporary: bool,
    kept: AtomicBool,
    sidecar: Option<Mutex<Sidecar>>,
    /// Its folder, until that knows the file for good.
    folder: Mutex<Option<File>>,
    bell: Arc<Bell>,
    /// Counts writes, when they begin and when they end.
    writes: AtomicU64,
}

impl Overlays {
    /// Temporary ones are put into `temporary_dir`; what outlives the daemon into `runtime_dir`, which is memory. Touches nothing yet.
    pub fn new(temporary_dir: PathBuf, runtime_dir: PathBuf) -> Arc<Self> {
        Arc::new(Self { temporary_dir, runtime_dir, live: Mutex::default() })
    }

    /// Lays an overlay over `base`, which is an image at `name`. May block.
    ///
    /// # Errors
    /// [`OverlayError`], whose text gives the cause and the cure. Nothing stays open or locked.
    pub fn open(&self, base: Base, name: &Path, place: &Place) -> Result<Overlay, OverlayError> {
        let mut overlay = self.open_idle(base, name, place)?;
        let shared = &overlay.shared;
        let fail = |error| OverlayErrorKind::Storage.at(&shared.path, Some(error));
        if shared.store.is_dirty() {
            // What a daemon knew that was killed.
            shared.store.store(&*shared.file).map_err(fail)?;
        }
        overlay.worker = Some(worker::start(shared).map_err(fail)?);
        Ok(overlay)
    }

    /// The same without a thread of its own: [`Held::work`] does what that would, when somebody calls it. For simulations, in which
    /// nothing happens by itself.
    ///
    /// # Errors
    /// As [`Overlays::open`].
    pub fn open_idle(&self, base: Base, name: &Path, place: &Place) -> Result<Overlay, OverlayError> {
        let origin = offline::Origin::of(&*base, name);
        let opened = match place {
            Place::File(path) => offline::open_or_make(path, &origin)?,
            Place::Temporary => offline::make_temporary(&self.temporary_dir, &origin)?,
        };
        let overlay = Overlay::start(base, opened, *place == Place::Temporary, &self.runtime_dir)?;
        let mut live = self.live.lock();
        live.retain(|shared| shared.strong_count() > 0);
        live.push(Arc::downgrade(&overlay.shared));
        Ok(overlay)
    }

    /// The overlay in a drive whose file is at `path`. One that was there before may not have gone yet.
    pub fn hold(&self, path: &Path) -> Option<Held> {
        let live = self.live.lock();
        live.iter().rev().filter_map(Weak::upgrade).find(|shared| shared.path == path).map(Held)
    }

    /// For [`offline`].
    pub fn runtime_dir(&self) -> &Path {
        &self.runtime_dir
    }
}

impl Overlay {
    fn start(
        mut base: Base,
        opened: Opened,
        temporary: bool,
        runtime_dir: &Path,
    ) -> Result<Self, OverlayError> {
        let Opened { path, file, head, store, folder } = opened;
        let fail = |source| OverlayErrorKind::Storage.at(&path, Some(source));
        if !temporary {
            sidecar::merge(runtime_dir, &file, head.mark.id, &store).map_err(fail)?;
        }
        let sidecar = (!temporary).then(|| Sidecar::open(runtime_dir, &file, head.mark.id, &store));
        let sidecar = sidecar.and_then(|opened| {
            let warn = |error: &io::Error| {
                tracing::warn!(overlay = %path.display(), dir = %runtime_dir.display(), %error,
                    "nothing notes what the host writes: what it has not synced is lost if the daemon is killed");
            };
            opened.inspect_err(warn).ok()
        });
        let bell: Arc<Bell> = Arc::default();
        let waker = Arc::clone(&bell);
        base.set_waker(Waker::new(move || waker.wake()));
        let metadata = file.metadata().map_err(fail)?;
        let shared = Arc::new(Shared {
            block_size: base.block_size(),
            residence: base.residence().max(residence(&file, &metadata)),
            thin: can_punch(&file, ByteLen(metadata.len())),
            base,
            store,
            head,
            file: Arc::new(file),
            temporary,
            kept: AtomicBool::new(false),
            sidecar: sidecar.map(Mutex::new),
            folder: Mutex::new(folder),
            bell,
            writes: AtomicU64::new(0),
            path: path.clone(),
        });
        Ok(Self { shared, worker: None })
    }
}

impl Held {
    /// Lets the file of one that would go with the eject stay, or no longer.
    pub fn keep(&self, keep: bool) {
        self.0.kept.store(keep, Ordering::SeqCst);
    }

    /// Whether [`Held::work`] has something to do.
    pub fn has_work(&self) -> bool {
        matches!(self.0.bell.work(), Some(Work::Do(_) | Work::Flush | Work::Store))
    }

    /// Does one thing that the worker of an overlay would do that has none. What it does to the overlay's file goes by way of `file`.
    pub fn work(&self, file: &impl store::BlockFile) {
        worker::step(&self.0, file);
    }

    /// The overlay's file.
    pub fn file(&self) -> &Arc<File> {
        &self.0.file
    }

    /// Whether its base is the disk in a qcow2 file.
    pub fn over_qcow2(&self) -> bool {
        self.0.head.over_qcow2
    }

    /// Puts one of which nothing is here in the place of its file, once no drive has it any more. May block, but not for what is being
    /// stored.
    ///
    /// # Errors
    /// [`OverlayError`]; the file is the old one then.
    pub fn discard(&self, runtime_dir: &Path) -> Result<(), OverlayError> {
        let shared = &self.0;
        if shared.passes() {
            return Ok(());
        }
        offline::renew_in_place(&shared.path, &shared.head, &shared.file, runtime_dir)
    }

    /// Writes what the host sees into a new file at `to`. May take long.
    ///
    /// # Errors
    /// [`OverlayError`]: above all [`OverlayErrorKind::Written`]. There is no file then.
    pub fn export(&self, to: &Path, progress: &mut offline::Progress<'_>) -> Result<(), OverlayError> {
        let shared = &self.0;
        let writes = shared.writes.load(Ordering::SeqCst);
        let read = |at: ByteRange, to: &mut [u8]| shared.read(at, to);
        let target = offline::export_to(to, &shared.path, shared.store.geometry().len(), &read, progress)?;
        if shared.writes.load(Ordering::SeqCst) != writes {
            return Err(OverlayErrorKind::Written.at(&shared.path, None));
        }
        target.keep();
        Ok(())
    }
}

impl Shared {
    fn map(&self, range: ByteRange) -> Extent {
        let rest = self.len().0.saturating_sub(range.start().0);
        let (range, _) = match range.is_empty() {
            true => return Extent::Zero { len: ByteLen(0) },
            false if rest == 0 => {
                return Extent::Fault { kind: FaultKind::OutOfRange, len: range.len() };
            }
            false => range.split_at(ByteLen(rest)),
        };
        match self.store.run(range) {
            (true, len) => self.here(range.split_at(len).0),
            (false, len) => self.base.map(range.split_at(len).0),
        }
    }

    fn here(&self, range: ByteRange) -> Extent {
        let offset = self.store.geometry().data(range.start());
        Extent::File { file: Arc::clone(&self.file), offset, len: range.len() }
    }

    fn len(&self) -> ByteLen {
        self.store.geometry().len()
    }

    /// Whether nothing of it is to be kept.
    fn passes(&self) -> bool {
        self.temporary && !self.kept.load(Ordering::SeqCst)
    }

    fn map_write(&self, range: ByteRange) -> Extent {
        let len = range.len();
        if range.is_empty() {
            return Extent::Zero { len };
        }
        if range.end().0 > self.len().0 {
            return Extent::Fault { kind: FaultKind::OutOfRange, len };
        }
        let torn = self.store.torn(range);
        let size = self.store.geometry().subcluster();
        let touched = range.start().0 / size..range.end().0.div_ceil(size);
        match worker::copies(&self.bell, torn, &touched) {
            Ok(true) => Extent::Pending { len },
            Ok(false) => {
                self.writes.fetch_add(1, Ordering::SeqCst);
                self.here(range)
            }
            Err(kind) => Extent::Fault { kind, len },
        }
    }

    /// `range` is in the file; how much of it is here now.
    fn written(&self, range: ByteRange) -> Result<ByteLen, FaultKind> {
        self.writes.fetch_add(1, Ordering::SeqCst);
        // Held while bits change, so that no older word overwrites a newer one.
        let sidecar = self.sidecar.as_ref().map(Mutex::lock);
        let here = self.store.set(range, |clusters| match &sidecar {
            Some(sidecar) => sidecar.note(&self.store, clusters).map_err(|error| FaultKind::from(&error)),
            None => Ok(()),
        });
        drop(sidecar);
        self.bell.written();
        here
    }

    /// Makes durable what is here, by way of `file`.
    fn make_durable(&self, file: &impl store::BlockFile) -> io::Result<()> {
        if self.passes() {
            return Ok(());
        }
        self.store.store(file)?;
        let mut folder = self.folder.lock();
        if let Some(dir) = &*folder {
            dir.sync_all()?;
            *folder = None;
        }
        Ok(())
    }

    /// The worker could not write to the file, which may tell of what was written before.
    fn put_failed(&self, error: &io::Error) -> FaultKind {
        let of_file = |metadata: &Metadata| residence(&self.file, metadata);
        let residence = self.file.metadata().as_ref().map_or(Residence::Remote, of_file);
        self.bell.put_failed(residence, error)
    }

    /// Some of what is here is not in the file, and never will be: the next who opens it is to find there what was stored before, or the
    /// base's bytes, and nothing in between.
    fn forget_unstored(&self) {
        if let Some(sidecar) = &self.sidecar {
            sidecar.lock().remove();
        }
    }

    /// Reads what the host would; waits for a base that fetches.
    fn read(&self, range: ByteRange, to: &mut [u8]) -> Result<(), FaultKind> {
        worker::read(&|range| self.map(range), &self.bell, range, to)
    }

    fn state(&self) -> OverlayState {
        let file = self.path.to_string_lossy().into_owned();
        OverlayState { file, temporary: self.temporary, written: self.store.bytes_here().0 }
    }
}

impl Medium for Overlay {
    fn name(&self) -> String {
        self.shared.base.name()
    }

    fn block_size(&self) -> BlockSize {
        self.shared.block_size
    }

    fn len(&self) -> ByteLen {
        self.shared.len()
    }

    fn map(&self, range: ByteRange) -> Extent {
        self.shared.map(range)
    }

    fn map_write(&self, range: ByteRange) -> Extent {
        self.shared.map_write(range)
    }

    fn written(&self, range: ByteRange) -> Result<ByteLen, FaultKind> {
        self.shared.written(range)
    }

    fn set_waker(&mut self, waker: Waker) {
        self.shared.bell.set_waker(waker);
    }

    fn writable(&self) -> bool {
        true
    }

    fn residence(&self) -> Residence {
        self.shared.residence
    }

    fn thin(&self) -> bool {
        self.shared.thin
    }

    fn allocation(&self, at: ByteOffset) -> Allocation {
        let shared = &self.shared;
        let left = ByteLen(shared.len().0.saturating_sub(at.0));
        let all = Allocation { stored: true, len: left };
        let Some(range) = ByteRange::new(at, left).filter(|range| !range.is_empty()) else { return all };
        let (here, len) = shared.store.run(range);
        let place = shared.store.geometry().data(at);
        let Allocation { stored, len: same } = match (here, shared.residence) {
            (_, Residence::Remote) => all,
            (false, _) => shared.base.allocation(at),
            (true, _) => allocation(&shared.file, place).map_or(all, |(stored, end)| Allocation {
                stored,
                len: ByteLen(end.0.saturating_sub(place.0)),
            }),
        };
        Allocation { stored, len: same.min(len) }
    }

    fn watch(&self) -> Watch<'_> {
        self.shared.base.watch()
    }

    fn look(&self) -> Result<Standing, FaultKind> {
        self.shared.base.look()
    }

    fn compare(&self, now: &Identity) -> Result<Standing, FaultKind> {
        let own = self.shared.file.metadata();
        // Whoever asks whether a source answers may have asked for our file.
        if own.is_ok_and(|own| (own.dev(), own.ino()) == (now.device, now.inode)) {
            return Ok(Standing::Same);
        }
        self.shared.base.compare(now)
    }

    fn file_for_sync(&self) -> Option<&Arc<File>> {
        // What goes with the eject is not to be kept.
        (!self.shared.passes()).then_some(&self.shared.file)
    }

    fn own_store(&self) -> Option<&dyn Store> {
        Some(&*self.shared.bell)
    }

    fn overlay_state(&self) -> Option<OverlayState> {
        Some(self.shared.state())
    }

    fn fetch_state(&self) -> Option<FetchState> {
        self.shared.base.fetch_state()
    }

    fn source_state(&self) -> SourceState {
        self.shared.base.source_state()
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        // A worker at work may wait for storage; this is the drive's thread. What is not stored the next process finds (`sidecar`).
        if self.shared.bell.close(false)
            && let Some(worker) = self.worker.take()
            && worker.join().is_err()
        {
            tracing::error!("the worker of an overlay has panicked");
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        if self.passes() {
            // One that stays is removed by the next.
            let _ = std::fs::remove_file(&self.path);
        } else if !self.store.is_dirty()
            && let Some(sidecar) = &self.sidecar
        {
            sidecar.lock().remove();
        }
    }
}

impl OverlayErrorKind {
    fn at(self, path: &Path, source: Option<io::Error>) -> OverlayError {
        OverlayError { kind: self, path: path.to_owned(), source }
    }
}

#[cfg(test)]
mod tests;
