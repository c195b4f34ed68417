//! The thread of a qcow2 image: brings tables into memory, expands clusters that are packed, finds places for what is written, and makes
//! it durable, when the drive asks and every few seconds by itself.
//!
//! ```text
//!   Waiting ──► a store that was asked for
//!      │   └──► a range that the drive wants ──► all of it is at hand ──► wakes the drive ──► what a stream would read next
//!      │   └──► a store that is due
//!      └── closed ──► ends, after what is at hand
//! ```

use std::{
    collections::VecDeque,
    fs::File,
    io::{self, Read},
    os::unix::fs::FileExt,
    sync::{Arc, OnceLock},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use nix::sys::memfd::{MFdFlags, memfd_create};
use parking_lot::{Condvar, Mutex};

use super::{
    super::{Extent, FaultKind, Store, Waker, compressed::zstd},
    Shared,
    chain::{COPIED, Found, Layer, Need, PAGE, Slot},
    header::Packing,
    write::Writer,
};
use crate::units::{ByteLen, ByteOffset, ByteRange};

/// Those of commands that the host has broken off, too.
const WANTED_MAX: usize = 16;
/// Pages that are brought for one range. It goes on when it is asked for again, so that no range needs more than there is room for.
const PAGES_A_RANGE: usize = 64;
/// Bytes that are expanded for one range, or one cluster: a small part of what is kept.
const EXPANDED_A_RANGE: u64 = 1 << 20;
/// The command that waits hears of a failure at once; later there is none that does.
const FAILURE_KEPT: Duration = Duration::from_secs(1);
/// Of a cluster of 2 MiB, compressed by QEMU, and more.
const WINDOW_MAX: u64 = 8 << 20;

/// What a power cut takes at most of what no host has asked to be durable.
const STORE_EVERY: Duration = Duration::from_secs(5);
/// Places that the file is not told of yet.
const CHANGES_MAX: usize = 16 << 10;

/// What the drive and the worker tell each other.
#[derive(Debug, Default)]
pub(super) struct Bell {
    state: Mutex<State>,
    changed: Condvar,
    waker: OnceLock<Waker>,
}

#[derive(Debug, Default)]
struct State {
    /// Ranges of the disk, in this order.
    wanted: VecDeque<Want>,
    failed: Option<(Need, FaultKind, Instant)>,
    asked: Vec<u32>,
    stored: VecDeque<(u32, io::Result<()>)>,
    /// There are places that the file was not told of.
    unstored_since: Option<Instant>,
    /// The kernel tells of what it could not store once.
    lost: Option<i32>,
    busy: bool,
    closing: bool,
}

/// A range of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Want {
    /// To be read.
    Bytes(ByteRange),
    /// To be written.
    Places(ByteRange),
}

enum Work {
    Bring(Want),
    Store,
    End,
}

impl Bell {
    pub(super) fn set_waker(&self, waker: Waker) {
        // Given once.
        let _ = self.waker.set(waker);
    }

    /// Has all that is wanted brought, of which `need` is the first.
    ///
    /// # Errors
    /// That has just been tried.
    pub(super) fn want(&self, want: Want, need: Need) -> Result<(), FaultKind> {
        let mut state = self.state.lock();
        if let Some((failed, kind, since)) = state.failed
            && failed == need
        {
            state.failed = None;
            if since.elapsed() < FAILURE_KEPT {
                return Err(kind);
            }
        }
        // Asked for again when there is room: each that is done wakes the drive.
        if state.wanted.len() < WANTED_MAX && !state.wanted.contains(&want) {
            state.wanted.push_back(want);
            self.changed.notify_all();
        }
        Ok(())
    }

    /// Ends the worker. Whether that is at once.
    pub(super) fn close(&self) -> bool {
        let mut state = self.state.lock();
        state.closing = true;
        self.changed.notify_all();
        !state.busy
    }

    fn next(&self) -> Work {
        let mut state = self.state.lock();
        state.busy = false;
        loop {
            if state.closing {
                return Work::End;
            }
            let due = state.unstored_since.map(|since| since + STORE_EVERY);
            let work = match state.wanted.front() {
                _ if !state.asked.is_empty() => Some(Work::Store),
                Some(want) => Some(Work::Bring(*want)),
                None => due.is_some_and(|due| due <= Instant::now()).then_some(Work::Store),
            };
            if let Some(work) = work {
                state.busy = true;
                return work;
            }
            match due {
                Some(due) => drop(self.changed.wait_until(&mut state, due)),
                None => self.changed.wait(&mut state),
            }
        }
    }

    /// The first range is done.
    fn done(&self, failed: Option<(Need, FaultKind)>) {
        let mut state = self.state.lock();
        state.wanted.pop_front();
        if let Some((need, kind)) = failed {
            state.failed = Some((need, kind, Instant::now()));
        }
        drop(state);
        self.wake();
    }

    fn wake(&self) {
        if let Some(waker) = self.waker.get() {
            waker.wake();
        }
    }

    fn is_idle(&self) -> bool {
        let state = self.state.lock();
        state.wanted.is_empty() && state.asked.is_empty() && !state.closing
    }
}

impl Store for Bell {
    fn begin(&self, ticket: u32) {
        self.state.lock().asked.push(ticket);
        self.changed.notify_all();
    }

    fn next(&self) -> Option<(u32, io::Result<()>)> {
        self.state.lock().stored.pop_front()
    }
}

/// Starts the worker. It holds the image until it ends.
pub(super) fn start(shared: &Arc<Shared>) -> io::Result<JoinHandle<()>> {
    let shared = Arc::clone(shared);
    thread::Builder::new().name("qcow2".to_owned()).spawn(move || {
        loop {
            match shared.bell.next() {
                Work::Bring(Want::Bytes(range)) => bring(&shared, range),
                Work::Bring(Want::Places(range)) => make_places(&shared, range),
                Work::Store => store(&shared),
                Work::End => return,
            }
        }
    })
}

fn bring(shared: &Shared, range: ByteRange) {
    let mut walk = Walk::new(shared);
    let failed = walk.all(range, EXPANDED_A_RANGE).err();
    shared.bell.done(failed);
    // Expanding takes longer than reading: meanwhile, what comes next.
    let ahead = EXPANDED_A_RANGE - walk.expanded.min(EXPANDED_A_RANGE);
    let ahead = ByteRange::new(range.end(), ByteLen(ahead).min(shared.left(range.end())));
    if let Some(ahead) = ahead.filter(|_| walk.expanded > 0 && failed.is_none() && shared.bell.is_idle()) {
        // Whoever wants it hears of it.
        let _ = walk.all(ahead, ahead.len().0);
    }
}

fn make_places(shared: &Shared, range: ByteRange) {
    let failed = shared.writer.as_ref().and_then(|writer| {
        let mut writer = writer.lock();
        let mut walk = Walk::new(shared);
        let bits = walk.cluster_bits();
        let mut clusters = range.start().0 >> bits..=range.end().0.saturating_sub(1) >> bits;
        clusters.find_map(|cluster| {
            let failed = walk.make_place(&mut writer, cluster).err();
            failed.map(|kind| (Need::Place { cluster }, kind))
        })
    });
    let full = shared.chain.changes_len() > CHANGES_MAX;
    {
        let mut state = shared.bell.state.lock();
        state.unstored_since.get_or_insert_with(Instant::now);
    }
    if full {
        store(shared);
    }
    shared.bell.done(failed);
}

fn store(shared: &Shared) {
    let (asked, lost) = {
        let mut state = shared.bell.state.lock();
        state.unstored_since = None;
        (std::mem::take(&mut state.asked), state.lost)
    };
    let result = match (lost, &shared.writer) {
        (Some(errno), _) => Err(io::Error::from_raw_os_error(errno)),
        (None, Some(writer)) => writer.lock().store(&shared.chain),
        (None, None) => Ok(()),
    };
    let mut state = shared.bell.state.lock();
    let lost = result.as_ref().err().map(|error| error.raw_os_error().unwrap_or(libc::EIO));
    if let Some(errno) = lost {
        if state.lost.is_none() {
            tracing::error!(image = %shared.name(), error = %io::Error::from_raw_os_error(errno),
                "what the host wrote could not be stored and may be lost");
        }
        state.lost = Some(errno);
    }
    for ticket in asked {
        state
            .stored
            .push_back((ticket, lost.map_or(Ok(()), |errno| Err(io::Error::from_raw_os_error(errno)))));
    }
    drop(state);
    shared.bell.wake();
}

/// What is brought for a range. Clusters that are expanded for it are in one file, in memory, for as long as somebody holds it.
struct Walk<'a> {
    shared: &'a Shared,
    group: Option<Arc<File>>,
    /// Bytes in it.
    expanded: u64,
}

impl<'a> Walk<'a> {
    fn new(shared: &'a Shared) -> Self {
        Self { shared, group: None, expanded: 0 }
    }

    fn cluster_bits(&self) -> u32 {
        match self.shared.chain.layers.first() {
            Some(Layer::Qcow2(table)) => table.head.cluster_bits,
            _ => 0,
        }
    }

    /// Finds a place for a cluster of the disk, and puts there what is in it.
    fn make_place(&mut self, writer: &mut Writer, cluster: u64) -> Result<(), FaultKind> {
        let chain = &self.shared.chain;
        loop {
            match chain.slot(cluster) {
                Err(need) => self.bring(need)?,
                Ok(Slot::Here(_)) => return Ok(()),
                Ok(Slot::Damaged) => return Err(FaultKind::Damaged),
                Ok(Slot::NoTable { entry }) => {
                    let table = writer.take(chain).map_err(fail_with)?;
                    chain.add_metadata([table >> self.cluster_bits()]);
                    chain.change(entry, table | COPIED);
                }
                Ok(Slot::None { entry, reserved }) => {
                    let old = self.read_cluster(cluster)?;
                    let is_blank = old.iter().all(|byte| *byte == 0);
                    // One that is new reads as zeroes.
                    let fill = (reserved.is_some() || !is_blank).then_some(&*old);
                    let at = reserved.map_or_else(|| writer.take(chain), Ok).map_err(fail_with)?;
                    return writer.fill(chain, at, fill, entry).map_err(fail_with);
                }
            }
        }
    }

    /// What a host would read there, and zeroes behind the end of the disk.
    fn read_cluster(&mut self, cluster: u64) -> Result<Vec<u8>, FaultKind> {
        let bits = self.cluster_bits();
        let start = ByteOffset(cluster << bits);
        let len = ByteLen(1 << bits).min(self.shared.left(start));
        let mut bytes = vec![0; ByteLen(1 << bits).to_usize()];
        let mut range = ByteRange::new(start, len).ok_or(FaultKind::OutOfRange)?;
        let mut to = bytes.as_mut_slice();
        while !range.is_empty() {
            let (extent, len) = match self.shared.chain.find(range) {
                (Found::Missing(need), _) => {
                    self.bring(need)?;
                    continue;
                }
                (Found::Here(extent), len) => (extent, len),
            };
            let (here, rest) =
                std::mem::take(&mut to).split_at_mut_checked(len.to_usize()).unwrap_or_default();
            match extent {
                Extent::File { file, offset, .. } => {
                    file.read_exact_at(here, offset.0).map_err(fail_with)?;
                }
                Extent::Fault { kind, .. } => return Err(kind),
                Extent::Zero { .. } | Extent::Pending { .. } => {}
            }
            (range, to) = (range.split_at(len).1, rest);
        }
        Ok(bytes)
    }

    fn bring(&mut self, need: Need) -> Result<(), FaultKind> {
        match need {
            Need::Page { layer, page } => self.page(layer, page),
            Need::Cluster { layer, cluster, at, len } => self.cluster((layer, cluster), at, len),
            Need::Place { .. } => Ok(()),
        }
    }

    /// Brings what there is room for.
    fn all(&mut self, mut range: ByteRange, expand: u64) -> Result<(), (Need, FaultKind)> {
        let (mut pages, from) = (0, self.expanded);
        while !range.is_empty() {
            let need = match self.shared.chain.find(range) {
                (Found::Here(_), len) => {
                    range = range.split_at(len).1;
                    continue;
                }
                (Found::Missing(need), _) => need,
            };
            match need {
                Need::Page { .. } if pages == PAGES_A_RANGE => break,
                Need::Cluster { .. } if self.expanded - from >= expand => break,
                Need::Page { .. } => pages += 1,
                Need::Cluster { .. } | Need::Place { .. } => {}
            }
            self.bring(need).map_err(|kind| (need, kind))?;
        }
        Ok(())
    }

    fn layer(&self, layer: usize) -> Result<&Layer, FaultKind> {
        self.shared.chain.layers.get(layer).ok_or(FaultKind::Damaged)
    }

    fn page(&self, layer: usize, page: u64) -> Result<(), FaultKind> {
        let mut bytes = vec![0; ByteLen(PAGE).to_usize()];
        let file = self.layer(layer)?.image().file();
        let read = read_at(file, &mut bytes, page.saturating_mul(PAGE)).map_err(fail_with)?;
        bytes.truncate(read);
        self.shared.chain.add_page(layer, page, bytes.into());
        Ok(())
    }

    fn cluster(&mut self, cluster: (usize, u64), at: u64, len: u64) -> Result<(), FaultKind> {
        let Layer::Qcow2(table) = self.layer(cluster.0)? else { return Err(FaultKind::Damaged) };
        let mut packed = vec![0; ByteLen(len).to_usize()];
        // The end of the last block may not be there.
        let read = read_at(table.image.file(), &mut packed, at).map_err(fail_with)?;
        packed.truncate(read);
        let mut plain = vec![0; ByteLen(table.head.cluster()).to_usize()];
        expand(&packed, table.head.packing, &mut plain).ok_or(FaultKind::Damaged)?;
        let file = match &self.group {
            Some(file) => Arc::clone(file),
            None => Arc::new(in_memory().map_err(|_| FaultKind::NoMemory)?),
        };
        file.write_all_at(&plain, self.expanded).map_err(|_| FaultKind::NoMemory)?;
        self.shared.chain.add_expanded(cluster, &file, self.expanded, table.head.cluster());
        self.expanded += table.head.cluster();
        self.group = Some(file);
        Ok(())
    }
}

fn fail_with(error: io::Error) -> FaultKind {
    FaultKind::from(&error)
}

fn in_memory() -> io::Result<File> {
    Ok(File::from(memfd_create("qcow2", MFdFlags::MFD_CLOEXEC)?))
}

/// Fills `to` as far as the file goes.
pub(super) fn read_at(file: &File, to: &mut [u8], at: u64) -> io::Result<usize> {
    let mut filled = 0;
    while let Some(rest) = to.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, at + ByteLen::from(filled).0) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// Fills `plain`; what is behind in `packed` is of no interest.
fn expand(packed: &[u8], packing: Packing, plain: &mut [u8]) -> Option<()> {
    match packing {
        Packing::Deflate => {
            let mut inflate = flate2::Decompress::new(false);
            inflate.decompress(packed, plain, flate2::FlushDecompress::Finish).ok()?;
            (inflate.total_out() == ByteLen::from(plain.len()).0).then_some(())
        }
        Packing::Zstd => zstd(packed, WINDOW_MAX).read_exact(plain).ok(),
    }
}
