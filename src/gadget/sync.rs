//! The engine `sync`: one thread per endpoint, one request at a time by read(2) and write(2). Called by the drive loop, from
//! its thread only.
//!
//! For kernels on which asynchronous endpoint writes leak (kernel.md §0.4), and, without the completion worker of
//! FunctionFS in the way, of the lower latency for single requests (§1.6).
//!
//! Invariants: a buffer is the thread's from submission to completion. A request is of the epoch in which it was submitted;
//! what is of an older epoch is not begun but given back as cancelled. A cancel starts a new epoch, and interrupts the
//! thread until it is out. A failed request starts a new epoch too, in which the caller takes part once it has reaped the
//! failure: bytes with a gap are worse than none.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, BorrowedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU16, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
};

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::{
    endpoints::{EndpointDone, Endpoints, Halted, Pipe, Refused, Tag, TransferError, Wake},
    engine::{EndpointFiles, REQUESTS_MAX, smaller_piece, transfer_error},
    interrupt,
};
use crate::{ring::pool::Buf, schedule::Schedule};

const STACK: usize = 64 * 1024;

/// Requests that one pipe queues.
const QUEUE: usize = REQUESTS_MAX / 2;

/// The engine.
#[derive(Debug)]
pub struct SyncEngine {
    input: Worker,
    output: Worker,
    files: EndpointFiles,
    ready: Arc<EventFd>,
    max_packet: Arc<AtomicU16>,
}

#[derive(Debug)]
struct Job {
    buf: Buf,
    len: usize,
    tag: Tag,
    epoch: u64,
}

/// One endpoint and its thread.
#[derive(Debug)]
pub(super) struct Worker {
    /// `None` when the engine is being dropped.
    jobs: Option<Sender<Job>>,
    done: Receiver<(EndpointDone, u64)>,
    /// The epoch of what is submitted now.
    epoch: u64,
    /// Requests given and not yet taken back: never more than the channels hold, so that the thread never waits to report.
    queued: usize,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    /// Requests of an older epoch are cancelled.
    epoch: AtomicU64,
    /// Whether the thread is, or is about to be, in a system call for a request.
    is_busy: AtomicBool,
}

impl SyncEngine {
    /// Takes the files of a bulk IN and a bulk OUT endpoint, opened read-write and non-blocking (with which a transfer waits all
    /// the same, but a disabled endpoint does not). `max_packet` is kept by the ep0 thread.
    ///
    /// # Errors
    /// The kernel has no thread, signal or eventfd for us, or does not schedule the threads by `schedule`.
    pub fn new(
        schedule: Schedule,
        input: File,
        output: File,
        max_packet: Arc<AtomicU16>,
    ) -> io::Result<Self> {
        let ready = Arc::new(EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?);
        Ok(Self {
            input: Worker::start(Pipe::In, schedule, input.try_clone()?, &ready)?,
            output: Worker::start(Pipe::Out, schedule, output.try_clone()?, &ready)?,
            files: EndpointFiles { input, output },
            ready,
            max_packet,
        })
    }

    fn worker(&mut self, pipe: Pipe) -> &mut Worker {
        match pipe {
            Pipe::In => &mut self.input,
            Pipe::Out => &mut self.output,
        }
    }

    fn take_done(&mut self) -> Option<EndpointDone> {
        self.input.take_done().or_else(|| self.output.take_done())
    }
}

impl Worker {
    pub(super) fn start(
        pipe: Pipe,
        schedule: Schedule,
        file: File,
        ready: &Arc<EventFd>,
    ) -> io::Result<Self> {
        let (jobs, todo) = bounded(QUEUE);
        let (report, done) = bounded(QUEUE);
        let shared = Arc::new(Shared { epoch: AtomicU64::new(0), is_busy: AtomicBool::new(false) });
        let (state, ready) = (Arc::clone(&shared), Arc::clone(ready));
        let name = match pipe {
            Pipe::In => "bulk-in",
            Pipe::Out => "bulk-out",
        };
        let (started, scheduled) = bounded(1);
        let thread = thread::Builder::new().name(name.to_owned()).stack_size(STACK).spawn(move || {
            // `start` waits for it.
            let _ = started.send(schedule.apply());
            if let Err(error) = interrupt::allow() {
                tracing::error!(?pipe, %error, "requests of this pipe cannot be cancelled");
            }
            work(pipe, &file, &todo, &report, &state, &ready);
        })?;
        scheduled.recv().map_err(io::Error::other)?.map_err(io::Error::other)?;
        Ok(Self { jobs: Some(jobs), done, epoch: 0, queued: 0, shared, thread: Some(thread) })
    }

    pub(super) fn submit(&mut self, buf: Buf, len: usize, tag: Tag) -> Result<(), Refused> {
        if len > buf.len() {
            return Err(Refused { buf, error: TransferError::Other(libc::EINVAL) });
        }
        let job = Job { buf, len, tag, epoch: self.epoch };
        let refused = match &self.jobs {
            Some(jobs) if self.queued < QUEUE => match jobs.try_send(job) {
                Ok(()) => {
                    self.queued += 1;
                    return Ok(());
                }
                Err(TrySendError::Full(job) | TrySendError::Disconnected(job)) => job,
            },
            _ => job,
        };
        Err(Refused { buf: refused.buf, error: TransferError::Other(libc::ENOBUFS) })
    }

    pub(super) fn take_done(&mut self) -> Option<EndpointDone> {
        let (done, epoch) = self.done.try_recv().ok()?;
        self.queued -= 1;
        if done.result.is_err() {
            self.epoch = self.epoch.max(epoch + 1);
        }
        Some(done)
    }

    pub(super) fn cancel(&mut self) {
        self.epoch = self.shared.epoch.fetch_add(1, Ordering::SeqCst) + 1;
        if let Some(thread) = &self.thread {
            interrupt::kick(thread, || !self.shared.is_busy.load(Ordering::SeqCst));
        }
    }
}

/// The thread of one endpoint.
fn work(
    pipe: Pipe,
    file: &File,
    todo: &Receiver<Job>,
    report: &Sender<(EndpointDone, u64)>,
    shared: &Shared,
    ready: &EventFd,
) {
    let mut piece_max = usize::MAX;
    for Job { mut buf, len, tag, epoch } in todo {
        // In this order, against `cancel`: either it sees us busy, or we see its epoch.
        shared.is_busy.store(true, Ordering::SeqCst);
        let result = if shared.epoch.load(Ordering::SeqCst) == epoch {
            transfer(pipe, file, &mut buf[..len], &mut piece_max)
        } else {
            Err(TransferError::Cancelled)
        };
        if result.is_err() {
            // Unless a cancel has moved on already.
            let _ = shared.epoch.compare_exchange(epoch, epoch + 1, Ordering::SeqCst, Ordering::SeqCst);
        }
        shared.is_busy.store(false, Ordering::SeqCst);
        if report.send((EndpointDone { pipe, tag, buf, result }, epoch)).is_err() {
            return;
        }
        let _ = ready.write(1);
    }
}

/// Moves `bytes`, in pieces of `piece_max`, which is halved where the kernel has no memory for one.
fn transfer(
    pipe: Pipe,
    file: &File,
    bytes: &mut [u8],
    piece_max: &mut usize,
) -> Result<usize, TransferError> {
    let mut moved = 0;
    loop {
        let piece = (bytes.len() - moved).min(*piece_max);
        let here = &mut bytes[moved..moved + piece];
        let result = match pipe {
            Pipe::In => nix::unistd::write(file, here),
            Pipe::Out => nix::unistd::read(file, here),
        };
        match result {
            Ok(now) => {
                moved += now;
                if now < piece || moved == bytes.len() {
                    return Ok(moved);
                }
            }
            Err(errno) => match (errno == nix::Error::ENOMEM).then(|| smaller_piece(piece)).flatten() {
                Some(smaller) => *piece_max = smaller,
                None => return Err(transfer_error(errno as i32)),
            },
        }
    }
}

impl Endpoints for SyncEngine {
    /// Each request has a thread that reports it, so every completion wakes.
    fn send(&mut self, buf: Buf, len: usize, tag: Tag, _: Wake) -> Result<(), Refused> {
        self.input.submit(buf, len, tag)
    }

    fn receive(&mut self, buf: Buf, len: usize, tag: Tag) -> Result<(), Refused> {
        self.output.submit(buf, len, tag)
    }

    fn cancel(&mut self, pipe: Pipe) {
        self.worker(pipe).cancel();
    }

    fn halt(&mut self, pipe: Pipe) -> Halted {
        self.files.halt(pipe)
    }

    fn clear_halt(&mut self, pipe: Pipe) {
        self.files.clear_halt(pipe);
    }

    fn max_packet(&self) -> usize {
        usize::from(self.max_packet.load(Ordering::Acquire))
    }

    fn reap(&mut self) -> Option<EndpointDone> {
        if let done @ Some(_) = self.take_done() {
            return done;
        }
        // Cleared before the last look, so that what comes after that look makes it readable again.
        let _ = self.ready.read();
        self.take_done()
    }

    fn ready_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.ready.as_fd())
    }

    /// Requests went to the threads when they were given.
    fn flush(&mut self) {}
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.jobs = None;
        self.cancel();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests;
