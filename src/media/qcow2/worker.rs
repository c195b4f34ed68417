//! The thread of a qcow2 image: brings tables into memory, and expands clusters that are packed.
//!
//! ```text
//!   Waiting ──► a range that the drive wants ──► all of it is at hand ──► wakes the drive ──► what a stream would read next ──► Waiting
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
    super::{FaultKind, Waker, compressed::zstd},
    Shared,
    chain::{Found, Layer, Need, PAGE},
    header::Packing,
};
use crate::units::{ByteLen, ByteRange};

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
    wanted: VecDeque<ByteRange>,
    failed: Option<(Need, FaultKind, Instant)>,
    busy: bool,
    closing: bool,
}

impl Bell {
    pub(super) fn set_waker(&self, waker: Waker) {
        // Given once.
        let _ = self.waker.set(waker);
    }

    /// Has all that `range` needs brought, of which `need` is the first.
    ///
    /// # Errors
    /// That has just been tried.
    pub(super) fn want(&self, range: ByteRange, need: Need) -> Result<(), FaultKind> {
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
        if state.wanted.len() < WANTED_MAX && !state.wanted.contains(&range) {
            state.wanted.push_back(range);
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

    fn next(&self) -> Option<ByteRange> {
        let mut state = self.state.lock();
        state.busy = false;
        loop {
            if state.closing {
                return None;
            }
            if let Some(range) = state.wanted.front() {
                let range = *range;
                state.busy = true;
                return Some(range);
            }
            self.changed.wait(&mut state);
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
        if let Some(waker) = self.waker.get() {
            waker.wake();
        }
    }

    fn is_idle(&self) -> bool {
        let state = self.state.lock();
        state.wanted.is_empty() && !state.closing
    }
}

pub(super) fn start(shared: &Arc<Shared>) -> io::Result<JoinHandle<()>> {
    let shared = Arc::clone(shared);
    thread::Builder::new().name("qcow2".to_owned()).spawn(move || {
        while let Some(range) = shared.bell.next() {
            let mut walk = Walk { shared: &shared, group: None, expanded: 0 };
            let failed = walk.all(range, EXPANDED_A_RANGE).err();
            shared.bell.done(failed);
            // Expanding takes longer than reading: meanwhile, what comes next.
            let ahead =
                ByteRange::new(range.end(), ByteLen(EXPANDED_A_RANGE - walk.expanded.min(EXPANDED_A_RANGE)));
            if let Some(ahead) =
                ahead.filter(|_| walk.expanded > 0 && failed.is_none() && shared.bell.is_idle())
            {
                let ahead = ahead.split_at(shared.left(ahead.start())).0;
                // Whoever wants it hears of it.
                let _ = walk.all(ahead, ahead.len().0);
            }
        }
    })
}

/// What is brought for a range. Clusters that are expanded for it are in one file, in memory, for as long as somebody holds it.
struct Walk<'a> {
    shared: &'a Shared,
    group: Option<Arc<File>>,
    /// Bytes in it.
    expanded: u64,
}

impl Walk<'_> {
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
            let brought = match need {
                Need::Page { .. } if pages == PAGES_A_RANGE => break,
                Need::Page { layer, page } => {
                    pages += 1;
                    self.page(layer, page)
                }
                Need::Cluster { .. } if self.expanded - from >= expand => break,
                Need::Cluster { layer, cluster, at, len } => self.cluster((layer, cluster), at, len),
            };
            brought.map_err(|kind| (need, kind))?;
        }
        Ok(())
    }

    fn layer(&self, layer: usize) -> Result<&Layer, FaultKind> {
        self.shared.chain.layers.get(layer).ok_or(FaultKind::Damaged)
    }

    fn page(&self, layer: usize, page: u64) -> Result<(), FaultKind> {
        let mut bytes = vec![0; ByteLen(PAGE).to_usize()];
        let file = self.layer(layer)?.image().file();
        let read =
            read_at(file, &mut bytes, page.saturating_mul(PAGE)).map_err(|error| FaultKind::from(&error))?;
        bytes.truncate(read);
        self.shared.chain.add_page(layer, page, bytes.into());
        Ok(())
    }

    fn cluster(&mut self, cluster: (usize, u64), at: u64, len: u64) -> Result<(), FaultKind> {
        let Layer::Qcow2(table) = self.layer(cluster.0)? else { return Err(FaultKind::Damaged) };
        let mut packed = vec![0; ByteLen(len).to_usize()];
        // The end of the last block may not be there.
        let read = read_at(table.image.file(), &mut packed, at).map_err(|error| FaultKind::from(&error))?;
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
