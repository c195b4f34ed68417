//! What other threads tell the server's thread: answers and events, in order, with an eventfd that wakes its poll.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::eventfd::{EfdFlags, EventFd};
use parking_lot::Mutex;
use serde_json::Value;

use super::EVENTS_MAX;
use super::failure::{ErrorKind, Failure};
use super::stats::Detail;
use crate::drive::{DriveState, DriveStatistics, Event};

/// A connection, for as long as the server runs: never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ClientId(pub(super) u64);

#[derive(Debug)]
pub(super) enum Message {
    Answer { client: ClientId, id: Value, result: Result<Reply, Failure> },
    Event(Event),
}

/// A result as the thread that made it knows it.
#[derive(Debug)]
pub(super) enum Reply {
    /// All drives; the server adds who holds them locked.
    Drives(Vec<DriveState>),
    /// Their numbers; the server makes something of them, because the drives have better to do.
    Stats(Vec<DriveStatistics>, Detail),
    /// Complete.
    Value(Value),
}

#[derive(Debug)]
pub(super) struct Inbox {
    queue: Mutex<Queue>,
    wake: EventFd,
}

#[derive(Debug, Default)]
struct Queue {
    messages: VecDeque<Message>,
    events: usize,
    dropped: u64,
    stop: bool,
}

/// What had come in.
#[derive(Debug)]
pub(super) struct Taken {
    pub(super) messages: VecDeque<Message>,
    /// Events that found no room.
    pub(super) dropped: u64,
    pub(super) stop: bool,
}

impl Inbox {
    pub(super) fn new() -> io::Result<Self> {
        let wake = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        Ok(Self { queue: Mutex::default(), wake })
    }

    /// Empties it.
    pub(super) fn take(&self) -> Taken {
        // Before the queue, so that a message put in between wakes us again. An empty counter is a wake-up taken before.
        let _ = self.wake.read();
        let mut queue = self.queue.lock();
        queue.events = 0;
        Taken {
            messages: std::mem::take(&mut queue.messages),
            dropped: std::mem::take(&mut queue.dropped),
            stop: queue.stop,
        }
    }

    pub(super) fn stop(&self) {
        self.put(|queue| queue.stop = true);
    }

    fn event(&self, event: Event) {
        self.put(|queue| {
            if queue.events < EVENTS_MAX {
                queue.events += 1;
                queue.messages.push_back(Message::Event(event));
            } else {
                queue.dropped += 1;
            }
        });
    }

    /// Answers are bounded by the requests that wait for them.
    fn answer(&self, client: ClientId, id: Value, result: Result<Reply, Failure>) {
        self.put(|queue| queue.messages.push_back(Message::Answer { client, id, result }));
    }

    fn put(&self, change: impl FnOnce(&mut Queue)) {
        change(&mut self.queue.lock());
        // Fails only when the counter is full, and then the server is awake already.
        let _ = self.wake.write(1);
    }
}

impl AsFd for Inbox {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}

/// Where events go. Cheap to clone; publishing never blocks, so that a function's thread may.
#[derive(Clone, Debug)]
pub struct EventSink(pub(super) Arc<Inbox>);

impl EventSink {
    /// Tells every client that asked for such events. Beyond [`EVENTS_MAX`] waiting ones it is dropped, and clients are told
    /// how many were.
    pub fn publish(&self, event: Event) {
        self.0.event(event);
    }
}

/// A request that will be answered, from any thread. Dropped unanswered (the function's thread has ended with the request in
/// its queue), it says so.
#[derive(Debug)]
pub(super) struct Pending {
    inbox: Arc<Inbox>,
    client: ClientId,
    id: Option<Value>,
    connected: Arc<AtomicBool>,
}

impl Pending {
    pub(super) fn new(inbox: Arc<Inbox>, client: ClientId, id: Value, connected: Arc<AtomicBool>) -> Self {
        Self { inbox, client, id: Some(id), connected }
    }

    /// Where to tell what becomes of the request, beside its answer.
    pub(super) fn events(&self) -> EventSink {
        EventSink(Arc::clone(&self.inbox))
    }

    /// Whether somebody still waits for the answer.
    pub(super) fn is_wanted(&self) -> bool {
        self.connected.load(Ordering::Relaxed)
    }

    pub(super) fn answer(mut self, result: Result<Reply, Failure>) {
        self.finish(result);
    }

    fn finish(&mut self, result: Result<Reply, Failure>) {
        if let Some(id) = self.id.take() {
            self.inbox.answer(self.client, id, result);
        }
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.finish(Err(Failure::new(
            ErrorKind::Stopped,
            "the function has stopped and did not answer",
            "see the daemon's log",
        )));
    }
}
