//! What the drive thread, the fetching threads and the keeper of the record share.
//!
//! The drive thread asks the table of chunks, which needs no lock; only where something is missing it takes the lock on [`State`],
//! under which nobody ever waits for anything.

use std::{
    ops::Range,
    sync::{
        OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard};

use super::{
    CHUNK, FetchState, Report, Reporter,
    cache::Entry,
    chunks::Chunks,
    client::{Client, Patience},
    error::{UrlError, UrlErrorKind},
    plan::{Plan, Run},
    range::Part,
};
use crate::{
    media::{Extent, FaultKind, SourceState, Waker},
    units::{ByteLen, ByteOffset, ByteRange},
};

/// Chunks without which no streaming begins.
pub(super) const ROOM_MIN: u64 = 16;
/// Chunks with which it goes on while others have filled the disk: what is fetched at once for the host.
const LEAST: u64 = 4;
/// How often to look how far the host has come.
const LOOK: Duration = Duration::from_millis(100);
/// Failures in a row after which the source counts as offline.
const FAILURES_TO_OFFLINE: u32 = 2;

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) client: Client,
    pub(super) chunks: Chunks,
    pub(super) part: Part,
    pub(super) patience: Patience,
    pub(super) entry: Entry,
    pub(super) report: Reporter,
    /// All of it must be here at once in the end.
    needs_all: bool,
    state: Mutex<State>,
    /// There may be something to fetch, or it is time to end.
    work: Condvar,
    /// The keeper has something to do.
    keep: Condvar,
    waker: OnceLock<Waker>,
    /// Somebody was told to wait.
    waiting: AtomicBool,
    /// Nothing is to be had any more, not even what is here.
    broken: AtomicBool,
    /// The chunk that was asked for last.
    position: AtomicU64,
    /// Evictions take turns.
    evicting: Mutex<()>,
    /// Held to read while the cache file is written; see [`Shared::writing`].
    gate: RwLock<()>,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) plan: Plan,
    pub(super) here: u64,
    /// Chunks that may be here at once.
    room: u64,
    /// However little the disk has: so many it had when it was full.
    least: u64,
    /// The disk is full, and nothing may go for what is missing.
    pub(super) is_full: bool,
    pub(super) closing: bool,
    /// Chunks have come since the record was stored.
    pub(super) dirty: bool,
    pub(super) source: SourceState,
    /// Since when its server does not answer, and why.
    pub(super) offline: Option<(Instant, UrlErrorKind)>,
    cause: Option<String>,
    /// What missing chunks answer, if not that they will come.
    fault: Option<FaultKind>,
    failures: u32,
    retry_at: Option<Instant>,
    pub(super) outcome: Outcome,
}

/// What became of the whole image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Outcome {
    #[default]
    None,
    /// All is here and, where a checksum was given, right.
    Complete {
        kept: Option<String>,
    },
    Failed(UrlErrorKind),
}

impl Shared {
    pub(super) fn new(
        client: Client,
        chunks: Chunks,
        part: Part,
        entry: Entry,
        report: Reporter,
        needs_all: bool,
    ) -> Self {
        let here = (0..chunks.count()).fold(0, |here, chunk| here + u64::from(chunks.is_here(chunk)));
        let options = entry.options();
        let state = State {
            plan: Plan::new(options.connections.max(1)),
            here,
            room: entry.room().div_ceil(CHUNK),
            least: ROOM_MIN,
            is_full: false,
            closing: false,
            dirty: here > 0,
            source: SourceState::Online,
            offline: None,
            cause: None,
            fault: None,
            failures: 0,
            retry_at: None,
            outcome: Outcome::None,
        };
        Self {
            client,
            chunks,
            part,
            patience: options.patience,
            entry,
            report,
            needs_all,
            state: Mutex::new(state),
            work: Condvar::new(),
            keep: Condvar::new(),
            waker: OnceLock::new(),
            waiting: AtomicBool::new(false),
            broken: AtomicBool::new(false),
            position: AtomicU64::new(0),
            evicting: Mutex::new(()),
            gate: RwLock::new(()),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    pub(super) fn set_waker(&self, waker: Waker) {
        // Given once.
        let _ = self.waker.set(waker);
    }

    /// Where bytes are; `range` is not empty and within the image.
    pub(super) fn map(&self, range: ByteRange) -> Extent {
        let (start, end) = (range.start().0, range.end().0);
        if self.broken.load(Ordering::Relaxed) {
            let kind = self.lock().fault.unwrap_or(FaultKind::Io);
            return Extent::Fault { kind, len: range.len() };
        }
        let chunks = start / CHUNK..end.div_ceil(CHUNK);
        self.position.store(chunks.start, Ordering::Relaxed);
        let here = self.chunks.here(&chunks);
        let missing = chunks.start + here.as_ref().map_or(0, |(_, count)| *count);
        if missing < chunks.end {
            let fault = self.want(missing..chunks.end);
            // What has come in between wakes nobody who was not yet waiting.
            if here.is_none() && !self.chunks.is_here(missing) {
                let len = ByteLen(end.min((missing + 1) * CHUNK) - start);
                return fault.map_or(Extent::Pending { len }, |kind| Extent::Fault { kind, len });
            }
        }
        match here.or_else(|| self.chunks.here(&(missing..missing + 1))) {
            Some((file, count)) => {
                let len = ByteLen(end.min((chunks.start + count) * CHUNK) - start);
                Extent::File { file, offset: ByteOffset(start), len }
            }
            // Between here and gone: to be asked for again.
            None => {
                self.wake();
                Extent::Pending { len: ByteLen(end.min((missing + 1) * CHUNK) - start) }
            }
        }
    }

    /// Has these fetched first of all; tells why they will not come.
    fn want(&self, chunks: Range<u64>) -> Option<FaultKind> {
        self.waiting.store(true, Ordering::SeqCst);
        let mut state = self.lock();
        state.plan.want(chunks);
        self.work.notify_all();
        state.fault
    }

    fn wake(&self) {
        if self.waiting.swap(false, Ordering::SeqCst)
            && let Some(waker) = self.waker.get()
        {
            waker.wake();
        }
    }

    /// The next run of thread `me`, for which [`Shared::make_room`] makes room; `None` when there will be no more.
    pub(super) fn next_run(&self, me: usize) -> Option<Run> {
        let mut state = self.lock();
        loop {
            if state.closing || state.outcome != Outcome::None || state.here == self.chunks.count() {
                return None;
            }
            let now = Instant::now();
            let wait = state.retry_at.and_then(|at| at.checked_duration_since(now));
            // While a source is in trouble, one asks for all.
            let barred = wait.is_some() || state.failures > 0 && !state.plan.is_idle();
            let rate = self.entry.limiter().wait(now);
            if !barred {
                let fill = rate.is_none().then(|| self.fill(&state));
                if let Some(run) = state.plan.next(me, &self.chunks, fill.as_ref()) {
                    return Some(run);
                }
            }
            // The host's way through what is here wakes nobody.
            let look = self.window(&state).map(|_| LOOK);
            match wait.or(rate).or(look) {
                Some(wait) => drop(self.work.wait_for(&mut state, wait.max(Duration::from_millis(1)))),
                None => self.work.wait(&mut state),
            }
        }
    }

    /// What to fill: everything, from where the host reads; or, where not everything has room, so much ahead of it.
    fn fill(&self, state: &State) -> Range<u64> {
        let (from, count) = (self.position.load(Ordering::Relaxed), self.chunks.count());
        self.window(state).map_or(from..from + count, |window| from..count.min(from + window))
    }

    /// How far ahead is filled where the image has no room as a whole.
    fn window(&self, state: &State) -> Option<u64> {
        (state.room < self.chunks.count()).then_some(state.room / 2)
    }

    /// Gives up what there is no room for any more, on a disk that others may have filled, and makes room for the run of thread `me`.
    /// For how many chunks of it there is; it becomes as short as that.
    pub(super) fn make_room(&self, me: Option<usize>) -> Result<u64, UrlError> {
        let _turn = self.evicting.lock();
        let Some(_writing) = self.writing() else { return Ok(0) };
        let (here, wanted) = {
            let state = self.lock();
            (state.here, me.map_or(0, |me| state.plan.ahead(me)))
        };
        let room = self.entry.room_now(here * CHUNK);
        // Nothing of such an image may go.
        if self.needs_all {
            let is_full = !self.entry.has_free(wanted * CHUNK);
            self.lock().is_full |= is_full;
            let full = UrlErrorKind::NoSpace.of(self.client.address());
            return if is_full { Err(full) } else { Ok(wanted) };
        }
        let (wanted, count, spared) = {
            let mut state = self.lock();
            let wanted = me.map_or(0, |me| state.plan.ahead(me));
            if state.here == self.chunks.count() || state.outcome != Outcome::None {
                return Ok(wanted);
            }
            state.room = room.div_ceil(CHUNK).max(state.least);
            let from = self.position.load(Ordering::Relaxed);
            // Each run makes room for itself alone: all together may want more than there is.
            let needed = state.here.saturating_sub(state.room) + wanted;
            let count = needed.min((state.here + state.plan.under_way()).saturating_sub(state.room));
            // Before they go, so that what arrives meanwhile does not seem to be the last.
            let count = count.min(state.here);
            state.here -= count;
            (wanted, count, from..from + self.window(&state).unwrap_or(0))
        };
        if count == 0 {
            return Ok(wanted);
        }
        let mut gone = 0;
        let evicted = self.chunks.evict(count, &spared, |chunk| {
            self.entry.give_up(chunk)?;
            gone += 1;
            Ok(())
        });
        let mut state = self.lock();
        state.here += count - gone;
        if state.here == self.chunks.count() {
            self.keep.notify_all();
        }
        let room = wanted.saturating_sub(count - gone);
        if let Some(me) = me {
            state.plan.shorten(me, room);
        }
        // What left, or was about to, may have been wanted meanwhile.
        self.work.notify_all();
        drop(state);
        self.wake();
        evicted.map_err(|error| self.entry.error(error))?;
        Ok(room)
    }

    /// A chunk of thread `me` is in the file.
    pub(super) fn arrived(&self, me: usize, chunk: u64) {
        let mut state = self.lock();
        self.chunks.arrived(chunk);
        state.here += 1;
        state.dirty = true;
        state.plan.advance(me);
        let recovered = state.source == SourceState::Offline;
        state.failures = 0;
        state.retry_at = None;
        state.is_full = false;
        if recovered {
            state.source = SourceState::Online;
            (state.offline, state.fault, state.cause) = (None, None, None);
        }
        let complete = state.here == self.chunks.count();
        if complete {
            self.keep.notify_all();
        }
        if complete || recovered {
            self.work.notify_all();
        }
        drop(state);
        self.wake();
        if recovered {
            self.report(Report::Online);
        }
    }

    /// Thread `me` is done with its run.
    pub(super) fn ended(&self, me: usize, result: Result<(), UrlError>) {
        let mut state = self.lock();
        state.plan.end(me);
        self.work.notify_all();
        let Err(error) = result else { return };
        // By us, not by the server.
        if state.closing {
            return;
        }
        if !error.kind.is_passing() {
            drop(state);
            return self.fail(&error);
        }
        let now = Instant::now();
        if error.kind == UrlErrorKind::NoSpace {
            state.is_full = self.needs_all;
            // From now on what is new takes the place of what is old.
            state.least = state.least.min(state.here.max(LEAST));
        }
        // Of several that fail together, one counts.
        if state.retry_at.is_some_and(|at| now < at) {
            return;
        }
        let (first, most) = self.patience.retry;
        state.retry_at = Some(now + first.saturating_mul(1 << state.failures.min(16)).min(most));
        state.failures = state.failures.saturating_add(1);
        if state.failures >= FAILURES_TO_OFFLINE && state.source == SourceState::Online {
            self.set_offline(state, &error);
        }
    }

    /// Until it answers again, what is missing cannot be had.
    fn set_offline(&self, mut state: MutexGuard<'_, State>, error: &UrlError) {
        state.source = SourceState::Offline;
        state.offline = Some((Instant::now(), error.kind.clone()));
        state.fault = Some(error.kind.fault());
        let cause = with_source(error);
        state.cause = Some(cause.clone());
        drop(state);
        self.wake();
        self.report(Report::Offline { cause });
    }

    /// The server did not answer when the image was inserted; it is served from the cache until it does.
    pub(super) fn begin_offline(&self, error: &UrlError) {
        let mut state = self.lock();
        state.failures = FAILURES_TO_OFFLINE;
        state.retry_at = Some(Instant::now() + self.patience.retry.1);
        self.set_offline(state, error);
    }

    /// What is missing will never come; what is here stays.
    fn fail(&self, error: &UrlError) {
        let mut state = self.lock();
        if state.outcome != Outcome::None {
            return;
        }
        state.outcome = Outcome::Failed(error.kind.clone());
        let changed = error.kind == UrlErrorKind::Changed;
        state.source = if changed { SourceState::Changed } else { SourceState::Failed };
        state.fault = Some(error.kind.fault());
        let cause = with_source(error);
        state.cause = Some(cause.clone());
        self.work.notify_all();
        self.keep.notify_all();
        drop(state);
        self.wake();
        self.report(if changed { Report::Changed { cause } } else { Report::Failed { cause } });
    }

    /// Not even what is here is to be served any more.
    pub(super) fn break_off(&self, error: &UrlError) {
        self.broken.store(true, Ordering::SeqCst);
        self.fail(error);
    }

    pub(super) fn is_broken(&self) -> bool {
        self.broken.load(Ordering::SeqCst)
    }

    /// All is here and checked.
    pub(super) fn complete(&self, checked: bool, kept: Option<String>) {
        let mut state = self.lock();
        state.outcome = Outcome::Complete { kept: kept.clone() };
        self.keep.notify_all();
        drop(state);
        self.report(Report::Complete { checked, kept });
    }

    /// Waits until the keeper has something to do, or `until`.
    pub(super) fn wait_to_keep(&self, state: &mut MutexGuard<'_, State>, until: Instant) {
        self.keep.wait_until(state, until);
    }

    /// The right to write to the cache file while it is held; not given any more once the image is closed, because the file may then
    /// be another's.
    pub(super) fn writing(&self) -> Option<RwLockReadGuard<'_, ()>> {
        let writing = self.gate.read();
        let closing = self.lock().closing;
        (!closing).then_some(writing)
    }

    /// Waits until nobody writes to the cache file of a closed image any more, however long threads may still wait for a server.
    pub(super) fn seal(&self) {
        drop(self.gate.write());
    }

    /// Sleeps, unless it is time to end.
    pub(super) fn pause(&self, time: Duration) {
        let mut state = self.lock();
        if !state.closing {
            self.work.wait_for(&mut state, time);
        }
    }

    /// Sleeps, unless it is time to end, or until the host wants what thread `me` fetches, or the server seems to be gone (which
    /// whoever holds a request of it should notice).
    pub(super) fn pause_filling(&self, me: usize, time: Duration) {
        let until = Instant::now() + time;
        let mut state = self.lock();
        while !state.closing && state.failures == 0 && !state.plan.is_wanted(me) {
            if self.work.wait_until(&mut state, until).timed_out() {
                return;
            }
        }
    }

    /// Ends all threads soon; does not wait for them.
    pub(super) fn close(&self) {
        self.lock().closing = true;
        self.work.notify_all();
        self.keep.notify_all();
        self.client.shut_down();
    }

    pub(super) fn report(&self, report: Report) {
        (self.report)(report);
    }

    /// Bytes here.
    fn bytes_here(&self, state: &State) -> u64 {
        (state.here * CHUNK).min(self.part.total)
    }

    pub(super) fn fetch_state(&self) -> FetchState {
        let state = self.lock();
        let kept = match &state.outcome {
            Outcome::Complete { kept } => kept.clone(),
            _ => None,
        };
        FetchState {
            here: self.bytes_here(&state),
            complete: matches!(state.outcome, Outcome::Complete { .. }),
            cause: state.cause.clone(),
            kept,
        }
    }
}

/// The cause with what it came from; the cure stays last.
fn with_source(error: &UrlError) -> String {
    let message = error.to_string();
    match (&error.source, message.rsplit_once("; ")) {
        (Some(source), Some((cause, cure))) => format!("{cause}: {source}; {cure}"),
        _ => message,
    }
}
