//! The cache directory: a sparse file and its record for each URL, a limit for all of them, and images that are kept for good.
//!
//! | file | |
//! |---|---|
//! | `KEY.data`, `KEY.record` | bytes of an image, and which; KEY is of the URL. Removed, the longest unused first, to make room |
//! | `expanded/` | compressed images, expanded (`media/compressed`), with a limit of its own |
//! | `kept/NAME` | whole images that somebody wanted kept; never removed, and not counted |

use std::{
    collections::HashMap,
    fs::{self, DirBuilder, File},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use nix::{
    errno::Errno,
    fcntl::{FallocateFlags, Flock, FlockArg, fallocate},
    sys::statvfs::statvfs,
};
use parking_lot::{Condvar, Mutex};

use super::{
    CHUNK,
    client::Patience,
    error::{UrlError, UrlErrorKind},
    record::{Record, RecordFile},
    shared::ROOM_MIN,
};
use crate::media::compressed::Expander;

/// How long the threads of an ejected image may take to leave its files.
const LEAVE: Duration = Duration::from_millis(800);
/// Most bytes of the file system that are left to others.
const SPARED_MAX: u64 = 32 << 20;
/// Of a small file system, one in so many bytes is.
const SPARED_SHARE: u64 = 8;

/// How images behind URLs are fetched, and where to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheOptions {
    /// The cache directory.
    pub dir: PathBuf,
    /// Most bytes in it, kept images aside.
    pub limit: u64,
    /// Most bytes a second that are filled in the background, of all images.
    pub rate: Option<u64>,
    /// Connections for each image.
    pub connections: usize,
    /// Credentials for those who name no file of their own.
    pub credentials: Option<PathBuf>,
    /// Certificates that are believed, instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// `http://HOST:PORT`.
    pub proxy: Option<String>,
    /// How long servers may take.
    pub patience: Patience,
}

/// The cache of a daemon.
#[derive(Debug)]
pub struct Cache {
    pub(super) options: CacheOptions,
    /// Images that are in use, with the room that each may take.
    active: Mutex<HashMap<[u8; 32], u64>>,
    left: Condvar,
    limiter: Limiter,
    disk: fn(&Path) -> io::Result<Disk>,
    expander: Arc<Expander>,
}

/// A bound on bytes a second, over everybody who asks.
#[derive(Debug)]
pub(super) struct Limiter {
    rate: Option<u64>,
    paid_until: Mutex<Instant>,
}

/// The files of one image in use.
#[derive(Debug)]
pub(super) struct Entry {
    cache: Arc<Cache>,
    key: [u8; 32],
    url: String,
    room: u64,
    file: File,
    /// `None`: what is here now is not to be found again.
    record: Mutex<Option<RecordFile>>,
    /// The files go when the image does.
    discarded: AtomicBool,
    held: Mutex<Option<Held>>,
}

/// What keeps others from the files, in the order in which it is let go.
#[derive(Debug)]
struct Held {
    /// Against a second daemon.
    _lock: Flock<File>,
    _claim: Claim,
}

/// A data file that nobody uses.
struct Idle {
    /// The last time that somebody did.
    used: (i64, i64),
    bytes: u64,
    path: PathBuf,
}

/// Bytes of the file system of the cache.
#[derive(Clone, Copy, Debug)]
pub(super) struct Disk {
    pub(super) total: u64,
    pub(super) free: u64,
}

/// The right to a URL's files.
#[derive(Debug)]
pub(super) struct Claim {
    cache: Arc<Cache>,
    key: [u8; 32],
}

impl Cache {
    /// Touches nothing yet.
    pub fn new(options: CacheOptions) -> Arc<Self> {
        Self::on(options, Disk::of)
    }

    /// As [`Cache::new`], on a disk of which `disk` tells.
    pub(super) fn on(options: CacheOptions, disk: fn(&Path) -> io::Result<Disk>) -> Arc<Self> {
        let limiter = Limiter { rate: options.rate, paid_until: Mutex::new(Instant::now()) };
        let expander = Expander::new(options.dir.join("expanded"), options.limit);
        Arc::new(Self { options, active: Mutex::default(), left: Condvar::new(), limiter, disk, expander })
    }

    /// Who expands compressed images into the cache directory, wherever they come from.
    pub fn expander(&self) -> &Arc<Expander> {
        &self.expander
    }

    /// Takes a URL for oneself. Waits a little for whoever is just leaving it.
    pub(super) fn claim(self: &Arc<Self>, key: [u8; 32]) -> Result<Claim, UrlErrorKind> {
        let until = Instant::now() + LEAVE;
        let mut active = self.active.lock();
        while active.contains_key(&key) {
            if self.left.wait_until(&mut active, until).timed_out() {
                return Err(UrlErrorKind::InUse);
            }
        }
        active.insert(key, 0);
        Ok(Claim { cache: Arc::clone(self), key })
    }

    fn path(&self, key: &[u8; 32], extension: &str) -> PathBuf {
        let name: String = key.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
        self.options.dir.join(name).with_extension(extension)
    }

    fn error(&self, error: io::Error, url: &str) -> UrlError {
        let kind = match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::ENOSPC | Errno::EDQUOT | Errno::EFBIG) => UrlErrorKind::NoSpace,
            _ => UrlErrorKind::Cache(self.options.dir.display().to_string()),
        };
        kind.because(&url, error)
    }

    /// Opens the files of a claimed URL, and what they are known to hold.
    pub(super) fn entry(
        self: &Arc<Self>,
        claim: Claim,
        url: String,
    ) -> Result<(Entry, Option<Record>), UrlError> {
        let error = |error| self.error(error, &url);
        DirBuilder::new().recursive(true).mode(0o700).create(&self.options.dir).map_err(error)?;
        let key = claim.key;
        let open = |extension| {
            let path = self.path(&key, extension);
            File::options().read(true).write(true).create(true).truncate(false).open(path)
        };
        let (file, record) = (open("data").map_err(error)?, open("record").map_err(error)?);
        let lock = Flock::lock(record.try_clone().map_err(error)?, FlockArg::LockExclusiveNonblock)
            .map_err(|_| UrlErrorKind::InUse.of(&url))?;
        let (record, known) = RecordFile::load(record).map_err(error)?;
        let len = file.metadata().map_err(error)?.len();
        let known = known.filter(|known| known.key == key && known.part.total == len);
        let entry = Entry {
            cache: Arc::clone(self),
            key,
            url,
            room: 0,
            file,
            record: Mutex::new(Some(record)),
            discarded: AtomicBool::new(false),
            held: Mutex::new(Some(Held { _lock: lock, _claim: claim })),
        };
        Ok((entry, known))
    }

    /// Takes room for `wanted` bytes of an image that has `own` already. How much there is.
    fn reserve(&self, key: &[u8; 32], wanted: u64, own: u64) -> io::Result<u64> {
        let mut active = self.active.lock();
        let room = self.room(&active, key, wanted, own)?;
        active.insert(*key, room);
        Ok(room)
    }

    /// Removes images that nobody uses, the longest unused first, until there is room for `wanted` bytes beside those in use. How
    /// much there is.
    fn room(
        &self,
        active: &HashMap<[u8; 32], u64>,
        key: &[u8; 32],
        wanted: u64,
        own: u64,
    ) -> io::Result<u64> {
        let others: u64 = active.iter().filter(|(other, _)| *other != key).map(|(_, room)| *room).sum();
        let mut idle = self.idle(active)?;
        loop {
            let unused: u64 = idle.iter().map(|file| file.bytes).sum();
            let limit = self.options.limit.saturating_sub(others).saturating_sub(unused);
            let room = wanted.min(limit).min((self.disk)(&self.options.dir)?.room(own));
            match idle.pop() {
                Some(Idle { path, .. }) if room < wanted => {
                    fs::remove_file(path.with_extension("record"))?;
                    fs::remove_file(path)?;
                }
                // What is expanded has a limit of its own, but not a disk.
                _ if room < wanted.min(limit) && self.expander.remove_one() => {}
                _ => return Ok(room),
            }
        }
    }

    /// Data files that nobody uses, the longest unused last.
    fn idle(&self, active: &HashMap<[u8; 32], u64>) -> io::Result<Vec<Idle>> {
        let used: Vec<_> = active.keys().map(|key| self.path(key, "data")).collect();
        let mut idle = Vec::new();
        for file in fs::read_dir(&self.options.dir)? {
            let path = file?.path();
            if path.extension().is_some_and(|extension| extension == "data") && !used.contains(&path) {
                let metadata = fs::metadata(&path)?;
                let used = (metadata.mtime(), metadata.mtime_nsec());
                idle.push(Idle { used, bytes: metadata.blocks() * 512, path });
            }
        }
        idle.sort_unstable_by_key(|file| std::cmp::Reverse(file.used));
        Ok(idle)
    }
}

impl Disk {
    // Of 32 bits on some machines.
    #[allow(clippy::useless_conversion)]
    fn of(dir: &Path) -> io::Result<Self> {
        let disk = statvfs(dir)?;
        let bytes = |blocks| u64::from(blocks) * u64::from(disk.fragment_size());
        Ok(Self { total: bytes(disk.blocks()), free: bytes(disk.blocks_available()) })
    }

    /// For an image that has `own` bytes of it.
    fn room(self, own: u64) -> u64 {
        (self.free + own).saturating_sub(SPARED_MAX.min(self.total / SPARED_SHARE))
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.cache.active.lock().remove(&self.key);
        self.cache.left.notify_all();
    }
}

impl Entry {
    /// Makes the data file `total` bytes long, with room for as many of them as there can be. What is in it stays if `stays`.
    pub(super) fn prepare(&mut self, total: u64, stays: bool) -> Result<(), UrlError> {
        if !stays {
            self.clear()?;
        }
        let own = self.file.metadata().map_or(0, |metadata| metadata.blocks() * 512);
        let reserved = self.cache.reserve(&self.key, total, own).map_err(|error| self.error(error))?;
        if reserved < total.min(ROOM_MIN * CHUNK) {
            return Err(UrlErrorKind::NoSpace.of(&self.url));
        }
        self.room = reserved;
        // Used now, which reading does not say on every file system.
        let prepared = self.file.set_len(total).and_then(|()| self.file.set_modified(SystemTime::now()));
        prepared.map_err(|error| self.error(error))
    }

    /// How much room there is at present for the image, which has `own` bytes: what others fill on the disk, it must do without.
    /// Unused images go first. What cannot be found out does not stop the image: writing will tell.
    pub(super) fn room_now(&self, own: u64) -> u64 {
        let Ok(disk) = (self.cache.disk)(&self.cache.options.dir) else { return self.room };
        let room = disk.room(own);
        if room >= self.room {
            return self.room;
        }
        // What was reserved stays so: there may be more room again.
        self.cache.room(&self.cache.active.lock(), &self.key, self.room, own).unwrap_or(room)
    }

    /// Whether the disk has so many bytes, with none left to others.
    pub(super) fn has_free(&self, bytes: u64) -> bool {
        (self.cache.disk)(&self.cache.options.dir).map_or(true, |disk| disk.free >= bytes)
    }

    /// Whether all of `total` bytes have room.
    pub(super) fn holds(&self, total: u64) -> bool {
        self.room >= total
    }

    fn clear(&self) -> Result<(), UrlError> {
        let clear = || {
            if let Some(record) = &mut *self.record.lock() {
                record.clear()?;
            }
            self.file.set_len(0)
        };
        clear().map_err(|error| self.error(error))
    }

    pub(super) fn options(&self) -> &CacheOptions {
        &self.cache.options
    }

    pub(super) fn limiter(&self) -> &Limiter {
        &self.cache.limiter
    }

    pub(super) fn key(&self) -> [u8; 32] {
        self.key
    }

    pub(super) fn room(&self) -> u64 {
        self.room
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    pub(super) fn error(&self, error: io::Error) -> UrlError {
        self.cache.error(error, &self.url)
    }

    /// Stores a record, unless what is here is not to be found again.
    pub(super) fn store(&self, record: &Record) -> io::Result<()> {
        self.record.lock().as_mut().map_or(Ok(()), |file| file.store(record))
    }

    /// Forgets the record, durably, and removes the files in the end.
    pub(super) fn discard(&self) {
        self.discarded.store(true, Ordering::Relaxed);
        if let Some(mut record) = self.record.lock().take()
            && let Err(error) = record.clear()
        {
            tracing::warn!(%error, url = self.url, "cannot remove what is known of an image");
        }
    }

    /// Gives the storage of a chunk back. From the first one on no record holds, so that none claims what has gone.
    pub(super) fn give_up(&self, chunk: u64) -> io::Result<()> {
        self.discard();
        self.punch(chunk)
    }

    /// Gives back what there is of a chunk that is not here.
    pub(super) fn punch(&self, chunk: u64) -> io::Result<()> {
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        let [at, len] =
            [chunk * CHUNK, CHUNK].map(|bytes| libc::off_t::try_from(bytes).map_err(io::Error::other));
        Ok(fallocate(&self.file, flags, at?, len?)?)
    }

    /// Moves the whole image to where it stays, under `name` or one like it. The path.
    pub(super) fn keep(&self, name: &str) -> io::Result<String> {
        let dir = self.cache.options.dir.join("kept");
        DirBuilder::new().recursive(true).mode(0o755).create(&dir)?;
        let path = free_path(&dir, name);
        self.file.sync_all()?;
        fs::rename(self.cache.path(&self.key, "data"), &path)?;
        File::open(&dir)?.sync_all()?;
        self.discard();
        Ok(path.display().to_string())
    }

    /// Leaves the files to whoever comes next; nothing may be written to them any more.
    pub(super) fn leave(&self) {
        let held = self.held.lock().take();
        if held.is_some() && self.discarded.load(Ordering::Relaxed) {
            // Gone already where it was kept; otherwise what cannot be removed now is, as unused, when room is needed.
            let _ = fs::remove_file(self.cache.path(&self.key, "data"));
            let _ = fs::remove_file(self.cache.path(&self.key, "record"));
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.leave();
    }
}

/// `name`, `name.1`, and so on.
fn free_path(dir: &Path, name: &str) -> PathBuf {
    let names = std::iter::once(name.to_owned()).chain((1..1_000).map(|number| format!("{name}.{number}")));
    let mut paths = names.map(|name| dir.join(name));
    paths.find(|path| fs::symlink_metadata(path).is_err()).unwrap_or_else(|| dir.join(name))
}

impl Limiter {
    /// How long to wait, if at all.
    pub(super) fn wait(&self, now: Instant) -> Option<Duration> {
        self.rate?;
        self.paid_until.lock().checked_duration_since(now).filter(|wait| !wait.is_zero())
    }

    /// So many bytes have come.
    pub(super) fn charge(&self, bytes: u64) {
        let Some(rate) = self.rate else { return };
        let mut until = self.paid_until.lock();
        let nanoseconds = bytes.saturating_mul(1_000_000_000) / rate.max(1);
        *until = (*until).max(Instant::now()) + Duration::from_nanos(nanoseconds);
    }
}
