//! What a drive and the worker of its medium tell each other: tasks, what is to be made durable, and that something is done. Of the
//! media that have a worker, `overlay` and `qcow2`.
//!
//! ```text
//!   Waiting ──► a store that is due, flushed ──► a task, or a store that was asked for ──► Waiting
//!      ├── a store is due ──► a thread of its own flushes the file ──► the store finds little to wait for
//!      └── closed ──► a last store, where nobody else has what was written ──► ends, after what is at hand
//! ```
//! A sync of hundreds of MB takes longer than a host waits for a table or a place, so that the worker is not who waits for it.
//! The drive's thread never waits here. A task stays in the queue until it is done, so that it is not asked for twice. Once something is
//! lost, all later stores fail: the kernel tells of what it could not store once.

use std::{
    collections::VecDeque,
    fmt, io,
    sync::{Arc, OnceLock},
    thread,
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex};

use super::{FaultKind, Residence, Store, Waker, last_stores::LastStore};

/// What a power cut takes at most of what no host has asked to be durable.
const STORE_EVERY: Duration = Duration::from_secs(5);
/// The command that waits for a task hears of its failure at once; later there is none that does.
const FAILURE_KEPT: Duration = Duration::from_secs(1);

/// What a worker does for the drive.
pub(super) trait Task: Copy + fmt::Debug + PartialEq {
    /// What it may fail at.
    type Key: fmt::Debug;
    /// Whether stores that were asked for come before it.
    const STORES_FIRST: bool;
    /// Those of commands that the host has broken off, too.
    const MOST: usize;
}

/// See the module.
#[derive(Debug)]
pub(super) struct Bell<T: Task> {
    state: Mutex<State<T>>,
    changed: Condvar,
    waker: OnceLock<Waker>,
}

#[derive(Debug)]
struct State<T: Task> {
    queue: Queue<T>,
    asked: Vec<u32>,
    stored: VecDeque<(u32, io::Result<()>)>,
    /// When what was written since the last store began is to be stored.
    due: Option<Instant>,
    flush: Flush,
    /// What the kernel has told of what it could not store, and whether a store has said so.
    lost: Option<i32>,
    told: bool,
    /// Counts wake-ups.
    news: u64,
    busy: bool,
    closing: bool,
    /// One more store is to come before the end.
    stores_last: bool,
    /// Counts it.
    last: Option<LastStore>,
}

/// Of the file, before a store that is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flush {
    None,
    Running,
    Done,
}

/// The tasks, in the order in which they are done.
#[derive(Debug)]
pub(super) struct Queue<T: Task> {
    tasks: VecDeque<T>,
    /// What could not be done, why, and when; told once, to whoever waits for it.
    failed: Option<(T::Key, FaultKind, Instant)>,
}

/// Why a store has failed.
#[derive(Debug)]
pub(super) enum Unstored {
    /// What was written may be lost.
    Lost(io::Error),
    /// All is still where it was, and may be stored another time.
    NotYet(io::Error),
}

impl From<io::Error> for Unstored {
    fn from(error: io::Error) -> Self {
        Self::Lost(error)
    }
}

/// What a worker does next.
pub(super) enum Work<T> {
    Do(T),
    Flush,
    Store,
    End,
}

impl<T: Task> Default for Bell<T> {
    fn default() -> Self {
        let state = State {
            queue: Queue { tasks: VecDeque::new(), failed: None },
            asked: Vec::new(),
            stored: VecDeque::new(),
            due: None,
            flush: Flush::None,
            lost: None,
            told: false,
            news: 0,
            busy: false,
            closing: false,
            stores_last: false,
            last: None,
        };
        Self { state: Mutex::new(state), changed: Condvar::new(), waker: OnceLock::new() }
    }
}

impl<T: Task> Queue<T> {
    /// Why it has just failed, if that is what `is_it` says.
    pub(super) fn failure(&mut self, is_it: impl FnOnce(&T::Key) -> bool) -> Option<FaultKind> {
        let (_, kind, since) = self.failed.take_if(|(key, ..)| is_it(key))?;
        (since.elapsed() < FAILURE_KEPT).then_some(kind)
    }

    /// Has a task done. `false`: there is no room; asked for again when there is, because each that is done wakes the drive.
    pub(super) fn push(&mut self, task: T) -> bool {
        if self.tasks.contains(&task) {
            return true;
        }
        let has_room = self.tasks.len() < T::MOST;
        if has_room {
            self.tasks.push_back(task);
        }
        has_room
    }

    /// What is still to be done.
    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        self.tasks.iter()
    }
}

impl<T: Task> State<T> {
    fn is_due(&self) -> bool {
        self.due.is_some_and(|due| due <= Instant::now())
    }

    fn work(&self) -> Option<Work<T>> {
        let is_asked = !self.asked.is_empty();
        match (self.queue.tasks.front(), self.flush) {
            // Nobody else would hear of what it is told.
            (_, Flush::Running) if self.closing => None,
            _ if self.closing => Some(if self.is_to_store_last() { Work::Store } else { Work::End }),
            _ if T::STORES_FIRST && is_asked => Some(Work::Store),
            (_, Flush::None) if self.is_due() => Some(Work::Flush),
            (_, Flush::Done) if self.is_due() => Some(Work::Store),
            (Some(task), _) => Some(Work::Do(*task)),
            (None, _) => is_asked.then_some(Work::Store),
        }
    }

    /// Also to say what is lost.
    fn is_to_store_last(&self) -> bool {
        self.stores_last || self.lost.is_some() && !self.told
    }

    fn lose(&mut self, error: &io::Error) {
        self.lost.get_or_insert(errno_of(error));
        // That people hear of it.
        self.due.get_or_insert_with(Instant::now);
    }
}

impl<T: Task> Bell<T> {
    pub(super) fn set_waker(&self, waker: Waker) {
        // Given once.
        let _ = self.waker.set(waker);
    }

    /// Looks at the tasks, and gives more of them.
    pub(super) fn queue<R>(&self, look: impl FnOnce(&mut Queue<T>) -> R) -> R {
        let mut state = self.state.lock();
        let before = state.queue.tasks.len();
        let seen = look(&mut state.queue);
        if state.queue.tasks.len() > before {
            self.changed.notify_all();
        }
        seen
    }

    /// Something was written, and is to be made durable at its time.
    pub(super) fn written(&self) {
        let mut state = self.state.lock();
        if state.due.is_none() {
            state.due = Some(Instant::now() + STORE_EVERY);
            self.changed.notify_all();
        }
    }

    /// Much is to be made durable.
    pub(super) fn hurry(&self) {
        let mut state = self.state.lock();
        let now = Instant::now();
        state.due = Some(state.due.map_or(now, |due| due.min(now)));
        self.changed.notify_all();
    }

    /// Ends the worker. Whether that is at once. One that `stores_last`, because what was written is lost otherwise, is waited for by
    /// the end of the process.
    pub(super) fn close(&self, stores_last: bool) -> bool {
        let mut state = self.state.lock();
        state.closing = true;
        state.stores_last = stores_last && state.due.is_some() && state.lost.is_none();
        let at_once = !state.busy && !state.is_to_store_last() && state.flush != Flush::Running;
        if stores_last && !at_once {
            state.last = Some(LastStore::new());
        }
        self.changed.notify_all();
        at_once
    }

    pub(super) fn wake(&self) {
        self.state.lock().news += 1;
        if let Some(waker) = self.waker.get() {
            waker.wake();
        }
        self.changed.notify_all();
    }
}

/// The worker's side.
impl<T: Task> Bell<T> {
    /// What is to be done next; waits for it.
    pub(super) fn next(&self) -> Work<T> {
        let mut state = self.state.lock();
        state.busy = false;
        loop {
            if let Some(work) = state.work() {
                state.busy = true;
                if matches!(work, Work::End) {
                    state.last = None;
                }
                return work;
            }
            match state.due.filter(|_| state.flush != Flush::Running) {
                Some(due) => drop(self.changed.wait_until(&mut state, due)),
                None => self.changed.wait(&mut state),
            }
        }
    }

    /// Whether a store is to come that nobody has asked for.
    #[cfg(test)]
    pub(super) fn will_store(&self) -> bool {
        self.state.lock().due.is_some()
    }

    /// What is to be done now, if anything is.
    pub(super) fn work(&self) -> Option<Work<T>> {
        self.state.lock().work()
    }

    /// How much news there was, for [`Bell::wait`].
    pub(super) fn news(&self) -> u64 {
        self.state.lock().news
    }

    /// Waits for more news than somebody has seen, not longer than that. `false`, at once: it is to end.
    pub(super) fn wait(&self, seen: u64, most: Duration) -> bool {
        let mut state = self.state.lock();
        let goes_on = !state.closing;
        if goes_on && state.news == seen {
            self.changed.wait_for(&mut state, most);
        }
        goes_on
    }

    /// Whether nobody waits for anything.
    pub(super) fn is_idle(&self) -> bool {
        let state = self.state.lock();
        state.queue.tasks.is_empty() && state.asked.is_empty() && !state.closing
    }

    /// What the first store that failed has failed with: nothing that is written from then on is ever made durable.
    pub(super) fn lost(&self) -> Option<io::Error> {
        self.state.lock().lost.map(error_of)
    }

    /// The first task is done, or could not be.
    pub(super) fn done(&self, failed: Option<(T::Key, FaultKind)>) {
        let mut state = self.state.lock();
        state.queue.tasks.pop_front();
        if let Some((key, kind)) = failed {
            state.queue.failed = Some((key, kind, Instant::now()));
        }
        drop(state);
        self.wake();
    }

    /// Makes all durable by `make_durable`, and answers who has asked. Why that has failed; of what is lost, once.
    pub(super) fn store(&self, make_durable: impl FnOnce() -> Result<(), Unstored>) -> Option<Unstored> {
        let (asked, before) = {
            let mut state = self.state.lock();
            // It may be told of what a sync after it is not: then the file is not to be told of places that hold nothing.
            while state.flush == Flush::Running {
                self.changed.wait(&mut state);
            }
            (state.due, state.stores_last, state.flush) = (None, false, Flush::None);
            (std::mem::take(&mut state.asked), state.lost)
        };
        let failed = if before.is_some() { None } else { make_durable().err() };
        let mut state = self.state.lock();
        let not_yet = match failed {
            // There is no other time.
            Some(Unstored::NotYet(error)) if !state.closing => {
                state.due.get_or_insert_with(|| Instant::now() + STORE_EVERY);
                Some(error)
            }
            Some(Unstored::Lost(error) | Unstored::NotYet(error)) => {
                state.lost.get_or_insert(errno_of(&error));
                None
            }
            None => None,
        };
        let result = state.lost.or(not_yet.as_ref().map(errno_of));
        for ticket in asked {
            state.stored.push_back((ticket, result.map_or(Ok(()), |errno| Err(error_of(errno)))));
        }
        let failed = match state.lost {
            Some(_) if state.told => None,
            Some(errno) => Some(Unstored::Lost(error_of(errno))),
            None => not_yet.map(Unstored::NotYet),
        };
        state.told = state.lost.is_some();
        drop(state);
        self.wake();
        failed
    }

    /// A write of the worker has failed, to a file that is there, which may tell of what was written before.
    pub(super) fn put_failed(&self, residence: Residence, error: &io::Error) -> FaultKind {
        let kind = FaultKind::from(error);
        if residence.tells_of_others(kind) {
            self.lose(error);
        }
        kind
    }

    /// Something that was written is lost, as the kernel has told.
    fn lose(&self, error: &io::Error) {
        self.state.lock().lose(error);
        self.changed.notify_all();
    }

    /// A flush has ended.
    fn flushed(&self, result: io::Result<()>) {
        let mut state = self.state.lock();
        if let Err(error) = result {
            state.lose(&error);
        }
        // What was asked for meanwhile may have stored it all.
        state.flush = if state.is_due() { Flush::Done } else { Flush::None };
        self.changed.notify_all();
    }
}

impl<T: Task + Send + 'static> Bell<T>
where
    T::Key: Send,
{
    /// Has `sync` called by a thread of its own, for which nobody waits at the end.
    pub(super) fn flush(self: &Arc<Self>, sync: impl FnOnce() -> io::Result<()> + Send + 'static) {
        self.state.lock().flush = Flush::Running;
        let bell = Arc::clone(self);
        let flush = move || bell.flushed(sync());
        if thread::Builder::new().name("flush".to_owned()).spawn(flush).is_err() {
            // The store does all of it then.
            self.flushed(Ok(()));
        }
    }
}

fn errno_of(error: &io::Error) -> i32 {
    error.raw_os_error().unwrap_or(libc::EIO)
}

fn error_of(errno: i32) -> io::Error {
    io::Error::from_raw_os_error(errno)
}

impl<T: Task + Send> Store for Bell<T>
where
    T::Key: Send,
{
    fn begin(&self, ticket: u32) {
        self.state.lock().asked.push(ticket);
        self.changed.notify_all();
    }

    fn next(&self) -> Option<(u32, io::Result<()>)> {
        self.state.lock().stored.pop_front()
    }

    fn has_lost(&self) -> bool {
        self.state.lock().lost.is_some()
    }
}

#[cfg(test)]
mod tests;
