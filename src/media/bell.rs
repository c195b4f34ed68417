//! What a drive and the worker of its medium tell each other: tasks, what is to be made durable, and that something is done. Of the
//! media that have a worker, `overlay` and `qcow2`.
//!
//! ```text
//!   Waiting ──► a task, or a store that was asked for ──► a store that is due ──► Waiting
//!      └── closed ──► ends, after what is at hand
//! ```
//! The drive's thread never waits here. A task stays in the queue until it is done, so that it is not asked for twice. Once something is
//! lost, all later stores fail: the kernel tells of what it could not store once.

use std::{
    collections::VecDeque,
    fmt, io,
    sync::OnceLock,
    time::{Duration, Instant},
};

use parking_lot::{Condvar, Mutex};

use super::{FaultKind, Store, Waker};

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
    /// Something was written since the last store began.
    unstored_since: Option<Instant>,
    /// What the first store that failed has failed with.
    lost: Option<i32>,
    busy: bool,
    closing: bool,
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
    Store,
    End,
}

impl<T: Task> Default for Bell<T> {
    fn default() -> Self {
        let state = State {
            queue: Queue { tasks: VecDeque::new(), failed: None },
            asked: Vec::new(),
            stored: VecDeque::new(),
            unstored_since: None,
            lost: None,
            busy: false,
            closing: false,
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
    fn due(&self) -> Option<Instant> {
        self.unstored_since.map(|since| since + STORE_EVERY)
    }

    fn work(&self) -> Option<Work<T>> {
        let is_asked = !self.asked.is_empty();
        match self.queue.tasks.front() {
            _ if self.closing => Some(Work::End),
            _ if T::STORES_FIRST && is_asked => Some(Work::Store),
            Some(task) => Some(Work::Do(*task)),
            None => (is_asked || self.due().is_some_and(|due| due <= Instant::now())).then_some(Work::Store),
        }
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

    /// Something is to be made durable at its time.
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
                return work;
            }
            match state.due() {
                Some(due) => drop(self.changed.wait_until(&mut state, due)),
                None => self.changed.wait(&mut state),
            }
        }
    }

    /// What is to be done now, if anything is.
    pub(super) fn work(&self) -> Option<Work<T>> {
        self.state.lock().work()
    }

    /// Waits for news, not longer than that. `false`, at once: it is to end.
    pub(super) fn wait(&self, most: Duration) -> bool {
        let mut state = self.state.lock();
        let goes_on = !state.closing;
        if goes_on {
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

    /// Makes all durable by `make_durable`, and answers who has asked. Why that has failed, unless something was lost before.
    pub(super) fn store(&self, make_durable: impl FnOnce() -> Result<(), Unstored>) -> Option<Unstored> {
        let (asked, before) = {
            let mut state = self.state.lock();
            state.unstored_since = None;
            (std::mem::take(&mut state.asked), state.lost)
        };
        let failed = match before {
            Some(_) => None,
            None => make_durable().err(),
        };
        let mut state = self.state.lock();
        let short = match &failed {
            Some(Unstored::Lost(error)) => {
                state.lost.get_or_insert(errno_of(error));
                None
            }
            Some(Unstored::NotYet(error)) => {
                state.unstored_since.get_or_insert_with(Instant::now);
                Some(errno_of(error))
            }
            None => None,
        };
        let result = state.lost.or(short);
        for ticket in asked {
            state.stored.push_back((ticket, result.map_or(Ok(()), |errno| Err(error_of(errno)))));
        }
        drop(state);
        self.wake();
        failed
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
