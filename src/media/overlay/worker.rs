//! The thread of an overlay: copies what a write covers in part, and makes durable what was written, when the drive asks and every
//! few seconds by itself.
//!
//! ```text
//!   Waiting ──► a copy ──► a store that was asked for ──► one that is due ──► Waiting
//!      └── closed ──► ends, after what is at hand
//! ```

use std::{
    collections::VecDeque,
    io,
    ops::Range,
    os::unix::fs::FileExt,
    sync::{Arc, OnceLock},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex};

use super::{
    super::{Extent, FaultKind, Store, Waker},
    Shared,
    store::BlockFile,
};
use crate::units::{ByteLen, ByteRange};

/// What a power cut takes at most of what no host has asked to be durable.
const STORE_EVERY: Duration = Duration::from_secs(5);
/// The command that waits for a copy hears of its failure at once; later there is none that does.
const FAILURE_KEPT: Duration = Duration::from_secs(1);
/// Those of commands that the host has broken off, too.
const COPIES_MAX: usize = 64;
/// How often a base that fetches is asked again if it wakes nobody.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// What the drive and the worker tell each other.
#[derive(Debug, Default)]
pub(super) struct Bell {
    state: Mutex<State>,
    changed: Condvar,
    waker: OnceLock<Waker>,
}

#[derive(Debug, Default)]
struct State {
    /// Subclusters to be copied, in this order.
    copies: VecDeque<u64>,
    /// The one that could not be copied, why, and when; told once, to whoever waits for it.
    failed: Option<(u64, FaultKind, Instant)>,
    asked: Vec<u32>,
    stored: VecDeque<(u32, io::Result<()>)>,
    /// Something was written since the last store began.
    unstored_since: Option<Instant>,
    /// The kernel tells of what it could not store once.
    lost: Option<i32>,
    busy: bool,
    closing: bool,
}

enum Work {
    Copy(u64),
    Store,
    End,
}

impl Bell {
    pub(super) fn set_waker(&self, waker: Waker) {
        // Given once.
        let _ = self.waker.set(waker);
    }

    /// Has `torn` copied. Whether anything of `touched` is still to be.
    pub(super) fn copies(&self, torn: [Option<u64>; 2], touched: &Range<u64>) -> Result<bool, FaultKind> {
        let mut state = self.state.lock();
        if let Some((at, kind, since)) = state.failed
            && touched.contains(&at)
        {
            state.failed = None;
            if since.elapsed() < FAILURE_KEPT {
                return Err(kind);
            }
        }
        for at in torn.into_iter().flatten() {
            if state.copies.contains(&at) {
                continue;
            }
            // Asked for again when there is room: each that is done wakes the drive.
            if state.copies.len() >= COPIES_MAX {
                return Ok(true);
            }
            state.copies.push_back(at);
            self.changed.notify_all();
        }
        Ok(state.copies.iter().any(|at| touched.contains(at)))
    }

    pub(super) fn written(&self) {
        let mut state = self.state.lock();
        if state.unstored_since.is_none() {
            state.unstored_since = Some(Instant::now());
            self.changed.notify_all();
        }
    }

    /// Ends the worker. Whether that is at once.
    pub(super) fn close(&self) -> bool {
        let mut state = self.state.lock();
        state.closing = true;
        self.changed.notify_all();
        !state.busy
    }

    pub(super) fn wake(&self) {
        if let Some(waker) = self.waker.get() {
            waker.wake();
        }
        self.changed.notify_all();
    }

    fn next(&self) -> Work {
        let mut state = self.state.lock();
        state.busy = false;
        loop {
            if let Some(work) = state.work() {
                state.busy = true;
                return work;
            }
            match state.due() {
                Some(due) => drop(self.changed.wait_until(&mut state, due)),
                None => self.changed.wait(&mut state),
            }
        }
    }

    /// Whether something waits for the worker.
    pub(super) fn has_work(&self) -> bool {
        matches!(self.state.lock().work(), Some(Work::Copy(_) | Work::Store))
    }
}

impl State {
    fn due(&self) -> Option<Instant> {
        self.unstored_since.map(|since| since + STORE_EVERY)
    }

    fn work(&self) -> Option<Work> {
        match self.copies.front() {
            _ if self.closing => Some(Work::End),
            Some(at) => Some(Work::Copy(*at)),
            None => (!self.asked.is_empty() || self.due().is_some_and(|due| due <= Instant::now()))
                .then_some(Work::Store),
        }
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

/// Starts the worker. It holds the overlay until it ends.
pub(super) fn start(shared: &Arc<Shared>) -> io::Result<JoinHandle<()>> {
    let shared = Arc::clone(shared);
    thread::Builder::new().name("overlay".into()).spawn(move || {
        loop {
            match shared.bell.next() {
                Work::Copy(at) => copy(&shared, &*shared.file, at),
                Work::Store => store(&shared, &*shared.file),
                Work::End => return,
            }
        }
    })
}

/// The next thing that the worker would do now, if there is one.
pub(super) fn step(shared: &Shared, file: &impl BlockFile) {
    let work = shared.bell.state.lock().work();
    match work {
        Some(Work::Copy(at)) => copy(shared, file, at),
        Some(Work::Store) => store(shared, file),
        Some(Work::End) | None => {}
    }
}

fn store(shared: &Shared, file: &impl BlockFile) {
    let (asked, lost) = {
        let mut state = shared.bell.state.lock();
        state.unstored_since = None;
        (std::mem::take(&mut state.asked), state.lost)
    };
    let result = match lost {
        Some(errno) => Err(io::Error::from_raw_os_error(errno)),
        None => shared.make_durable(file),
    };
    if result.is_err() {
        shared.forget_unstored();
    }
    let mut state = shared.bell.state.lock();
    let lost = result.as_ref().err().map(|error| error.raw_os_error().unwrap_or(libc::EIO));
    if let Some(errno) = lost {
        if state.lost.is_none() {
            tracing::error!(overlay = %shared.path.display(), error = %io::Error::from_raw_os_error(errno),
                "what the host wrote could not be stored and may be lost");
        }
        state.lost = Some(errno);
    }
    for ticket in asked {
        let result = lost.map_or(Ok(()), |errno| Err(io::Error::from_raw_os_error(errno)));
        state.stored.push_back((ticket, result));
    }
    drop(state);
    shared.bell.wake();
}

/// Copies a subcluster from the base, whole.
fn copy(shared: &Shared, file: &impl BlockFile, at: u64) {
    let copied = shared.store.subcluster(at).map_or(Ok(()), |range| {
        let mut bytes = vec![0; range.len().to_usize()];
        read(&|range| shared.base.map(range), &shared.bell, range, &mut bytes)?;
        let place = shared.store.geometry().data(range.start());
        file.put(&bytes, place.0).map_err(|error| FaultKind::from(&error))?;
        shared.written(range).map(drop)
    });
    let mut state = shared.bell.state.lock();
    state.copies.pop_front();
    if let Err(kind) = copied {
        state.failed = Some((at, kind, Instant::now()));
    }
    drop(state);
    shared.bell.wake();
}

/// Reads what `map` says is at `range`; waits for what is fetched.
pub(super) fn read(
    map: &dyn Fn(ByteRange) -> Extent,
    bell: &Bell,
    mut range: ByteRange,
    mut to: &mut [u8],
) -> Result<(), FaultKind> {
    while !range.is_empty() {
        let extent = map(range);
        let len = extent.len().min(range.len());
        if matches!(extent, Extent::Pending { .. }) {
            let mut state = bell.state.lock();
            if state.closing {
                return Err(FaultKind::Ejected);
            }
            bell.changed.wait_for(&mut state, ASK_AGAIN);
            continue;
        }
        let (here, rest) = std::mem::take(&mut to).split_at_mut_checked(len.to_usize()).unwrap_or_default();
        match extent {
            Extent::File { file, offset, .. } => {
                file.read_exact_at(here, offset.0).map_err(|error| match error.kind() {
                    io::ErrorKind::UnexpectedEof => FaultKind::Truncated,
                    _ => FaultKind::from(&error),
                })?
            }
            Extent::Zero { .. } | Extent::Pending { .. } => here.fill(0),
            Extent::Fault { kind, .. } => return Err(kind),
        }
        if len == ByteLen(0) {
            return Err(FaultKind::OutOfRange);
        }
        (range, to) = (range.split_at(len).1, rest);
    }
    Ok(())
}
