//! [`Ring`] itself. See the [room's page](super) for how it is used.

use std::{
    fmt,
    fs::File,
    io,
    marker::PhantomData,
    mem,
    ops::Range,
    os::fd::{AsRawFd, OwnedFd},
    sync::Arc,
    time::{Duration, Instant},
};

use io_uring::{
    IoUring, Probe, cqueue, opcode, squeue,
    types::{Fd, FsyncFlags, SubmitArgs, Timespec},
};

use super::{
    Completion, MoveOp, Moved, Mover, OpTag, RingError, SetupFailure, Wait,
    pool::{Buf, Pool},
    slab::{Key, Slab},
    stat::Found,
};
use crate::units::{ByteLen, ByteOffset};

/// Most operations in flight that a ring can be made for.
const ENTRIES_MAX: u32 = 4096;
/// Completion queue entries per operation: one for its end, one for its cancellation, and two for a watch that fires
/// more than once between two visits.
const CQ_PER_ENTRY: u32 = 4;
/// `user_data` of cancellations, whose own result nobody needs. No slab key has this slot.
const CANCELLATION: u64 = u64::MAX;
/// How long to let go of the processor when the kernel has no memory for a request.
const MEMORY_PAUSE: Duration = Duration::from_millis(1);

/// How to make a ring.
#[derive(Debug)]
pub struct RingOptions<'a> {
    /// Operations in flight at most, watches and timers counted; 1 to 4096, clamped.
    pub entries: u32,
    /// Pools to register with the kernel. Buffers of other pools work too, a little slower.
    pub pools: &'a [Pool],
    /// Workers of the kernel for operations that wait: more than may ever hang, or those that do not would wait for them.
    pub workers: u32,
    /// How long dropping the ring waits for file operations before it leaks their buffers.
    pub drain: Duration,
}

impl<'a> RingOptions<'a> {
    /// `entries` operations in flight, as many workers, buffers of `pools`, and a second to drain.
    pub fn new(entries: u32, pools: &'a [Pool]) -> Self {
        Self { entries, pools, workers: entries, drain: Duration::from_secs(1) }
    }
}

/// Names a watch or a timer, for [`Ring::cancel`]. Harmless once that has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct OpKey(Key);

/// An io_uring with everything that is in flight on it. `U` is what the caller calls its watches and timers.
///
/// It stays on the thread that made it (the kernel insists: SINGLE_ISSUER), so it is not `Send`.
#[derive(Debug)]
pub struct Ring<U> {
    // Dropped before `registered`; the kernel holds its own references to registered pages anyway.
    uring: Uring,
    ops: Slab<Op<U>>,
    /// Where the kernel reads a timer's length from, by slot; never moves while the ring lives.
    timespecs: Box<[Timespec]>,
    /// Index in here = buffer index in the kernel.
    registered: Vec<Pool>,
    /// For the next that asks what a file is.
    spare: Vec<Found>,
    drain: Duration,
    _on_one_thread: PhantomData<*const ()>,
}

/// `IoUring` does not say anything about itself.
struct Uring(IoUring);

/// Something in flight, with what the kernel must find alive until its completion.
#[derive(Debug)]
enum Op<U> {
    Move {
        op: MoveOp,
        tag: OpTag,
        buf: Option<Buf>,
        _file: Arc<File>,
    },
    Stat {
        tag: OpTag,
        found: Found,
        _file: Arc<File>,
    },
    Watch {
        user: U,
        fd: OwnedFd,
    },
    Timer {
        user: U,
    },
    /// A hint, of whose end nobody hears.
    Hint {
        _file: Arc<File>,
    },
    /// A cancelled watch or timer whose end has not come yet.
    Cancelled {
        _fd: Option<OwnedFd>,
    },
}

impl<U: Copy> Ring<U> {
    /// Makes the ring; to be called on the thread that will use it.
    ///
    /// # Errors
    /// [`RingError::Setup`] and [`RingError::Missing`], with the cure. A pool that cannot be registered (RLIMIT_MEMLOCK) is not
    /// an error: its buffers move unregistered.
    pub fn new(options: &RingOptions<'_>) -> Result<Self, RingError> {
        let entries = options.entries.clamp(1, ENTRIES_MAX);
        let (best, plain) = builders(entries);
        let uring = best
            .build(entries)
            .or_else(|error| {
                if error.raw_os_error() == Some(libc::EINVAL) { plain.build(entries) } else { Err(error) }
            })
            .map_err(|error| RingError::Setup(SetupFailure::from_error(&error), error))?;
        Self::over(uring, options)
    }

    fn over(uring: IoUring, options: &RingOptions<'_>) -> Result<Self, RingError> {
        let entries = options.entries.clamp(1, ENTRIES_MAX);
        if !uring.params().is_feature_nodrop() {
            return Err(RingError::Missing("a completion queue that never drops (FEAT_NODROP)", None));
        }
        probe(&uring)?;
        // Kernels before 5.15 choose for themselves.
        let _ = uring.submitter().register_iowq_max_workers(&mut [options.workers, options.workers]);
        let registered = register(&uring, options.pools);
        let timespecs = (0..entries).map(|_| Timespec::new()).collect();
        let ops = Slab::new(entries);
        Ok(Self {
            uring: Uring(uring),
            ops,
            timespecs,
            registered,
            spare: Vec::new(),
            drain: options.drain,
            _on_one_thread: PhantomData,
        })
    }

    /// Brings [`Completion::Event`] with `user` when `fd` becomes readable, every time, until cancelled. Edges, not levels:
    /// read the descriptor until it is empty, or the next event may not come.
    ///
    /// # Errors
    /// [`RingError::Full`].
    pub fn watch(&mut self, fd: OwnedFd, user: U) -> Result<OpKey, RingError> {
        let entry = poll(&fd);
        // SAFETY: the operation names no memory, and its descriptor lives in the slot until the watch has ended.
        unsafe { self.start(Op::Watch { user, fd }, entry) }.map(OpKey).map_err(|_| RingError::Full)
    }

    /// Brings [`Completion::Timer`] with `user` once, after `after` (CLOCK_MONOTONIC).
    ///
    /// # Errors
    /// [`RingError::Full`].
    pub fn timer(&mut self, after: Duration, user: U) -> Result<OpKey, RingError> {
        let key = self.ops.insert(Op::Timer { user }).map_err(|_| RingError::Full)?;
        let Some(timespec) = self.timespecs.get_mut(key.index()) else { return Err(RingError::Full) };
        *timespec = Timespec::from(after);
        let entry = opcode::Timeout::new(std::ptr::from_ref(timespec)).build();
        // SAFETY: the timespec is heap memory of this ring that never moves, and it is not written again before the slot,
        // occupied by this operation, is free.
        match unsafe { self.push(entry.user_data(key.0)) } {
            Ok(()) => Ok(OpKey(key)),
            Err(full) => {
                self.ops.remove(key);
                Err(full)
            }
        }
    }

    /// Ends a watch or a timer: from here on it brings nothing, even if it had fired already. A key whose operation has ended
    /// is ignored. Should the kernel take no request now, the operation runs on, unheard, and its slot stays taken meanwhile.
    pub fn cancel(&mut self, OpKey(key): OpKey) {
        let Some(op) = self.ops.get_mut(key) else { return };
        *op = match mem::replace(op, Op::Cancelled { _fd: None }) {
            Op::Watch { fd, .. } => Op::Cancelled { _fd: Some(fd) },
            Op::Timer { .. } => Op::Cancelled { _fd: None },
            other => {
                *op = other;
                return;
            }
        };
        self.push_cancellation(key);
    }

    /// Hands what was started to the kernel and sleeps until there is something for [`Ring::next`]. May return without
    /// (after a signal, or when the kernel is short of memory): call it in a loop.
    ///
    /// # Errors
    /// [`RingError::Enter`].
    pub fn wait(&mut self) -> Result<(), RingError> {
        // What is there already is not waited for; nor does the kernel get to add to it before it was read.
        if self.uring.0.completion().is_empty() { self.enter(1) } else { self.submit() }
    }

    /// The next completion, if one is there. No system call.
    #[expect(clippy::should_implement_trait, reason = "not an iterator: there may be more after None")]
    pub fn next(&mut self) -> Option<Completion<U>> {
        loop {
            let cqe = self.uring.0.completion().next()?;
            if let Some(completion) = self.finish(&cqe) {
                return Some(completion);
            }
        }
    }

    /// Operations that have not come back, watches and timers counted.
    pub fn in_flight(&self) -> usize {
        self.ops.len()
    }

    /// Whether `pool` moves through registered buffers.
    pub fn is_registered(&self, pool: &Pool) -> bool {
        self.registered.iter().any(|registered| registered.is(pool))
    }

    /// `None`: nothing that the caller is to hear of.
    fn finish(&mut self, cqe: &cqueue::Entry) -> Option<Completion<U>> {
        let key = Key(cqe.user_data());
        if let Op::Watch { user, fd } = self.ops.get_mut(key)? {
            let (user, again) = (*user, poll(fd));
            if cqueue::more(cqe.flags()) {
                return Some(Completion::Event(user));
            }
            // SAFETY: as in `watch`: the same descriptor, in the same slot.
            let armed = cqe.result() >= 0 && unsafe { self.push(again.user_data(key.0)) }.is_ok();
            if !armed {
                tracing::warn!(result = cqe.result(), "a watch ended");
                self.ops.remove(key);
            }
            return Some(Completion::Event(user));
        }
        if cqueue::more(cqe.flags()) {
            return None;
        }
        match self.ops.remove(key)? {
            Op::Move { op, tag, buf, .. } => {
                let result = usize::try_from(cqe.result())
                    .map_err(|_| io::Error::from_raw_os_error(cqe.result().saturating_neg()));
                Some(Completion::Moved(Moved { tag, op, buf, result, stat: None }))
            }
            Op::Stat { tag, found, .. } => {
                let result = match cqe.result() {
                    0.. => Ok(0),
                    errno => Err(io::Error::from_raw_os_error(errno.saturating_neg())),
                };
                let stat = result.is_ok().then(|| found.stat());
                self.spare.push(found);
                Some(Completion::Moved(Moved { tag, op: MoveOp::Stat, buf: None, result, stat }))
            }
            Op::Timer { user } => Some(Completion::Timer(user)),
            Op::Watch { .. } | Op::Hint { .. } | Op::Cancelled { .. } => None,
        }
    }
}

impl<U> Ring<U> {
    /// Hands what was started to the kernel without waiting. [`Ring::wait`] does it too; this is for work that should begin
    /// while the caller still has something else to do.
    ///
    /// # Errors
    /// [`RingError::Enter`].
    pub fn submit(&mut self) -> Result<(), RingError> {
        if self.uring.0.submission().is_empty() { Ok(()) } else { self.enter(0) }
    }

    fn start_move(
        &mut self,
        op: MoveOp,
        file: &Arc<File>,
        mut buf: Option<Buf>,
        tag: OpTag,
        entry: impl FnOnce(Fd, *mut u8, Option<u16>) -> squeue::Entry,
    ) -> Result<(), Option<Buf>> {
        let fixed = buf.as_ref().and_then(|buf| self.registered.iter().position(|pool| pool.is(buf.pool())));
        let memory = buf.as_mut().map_or(std::ptr::null_mut(), |buf| buf.as_mut_ptr());
        let entry = entry(Fd(file.as_raw_fd()), memory, fixed.and_then(|index| u16::try_from(index).ok()));
        // SAFETY: the descriptor and the buffer that `entry` names move into the slot and stay there until the completion;
        // Buf's memory is a mapping that does not move with the Buf, and callers of this function cut the part to the Buf's.
        unsafe { self.start(Op::Move { op, tag, buf, _file: Arc::clone(file) }, entry) }.map(drop).map_err(
            |op| match op {
                Op::Move { buf, .. } => buf,
                _ => None,
            },
        )
    }

    /// # Safety
    /// Whatever `entry` points to must stay valid until the completion of the operation; owned by `op` it does.
    unsafe fn start(&mut self, op: Op<U>, entry: squeue::Entry) -> Result<Key, Op<U>> {
        let key = self.ops.insert(op)?;
        // SAFETY: the caller's promise.
        if unsafe { self.push(entry.user_data(key.0)) }.is_err()
            && let Some(op) = self.ops.remove(key)
        {
            return Err(op);
        }
        Ok(key)
    }

    /// Puts an entry on the submission queue, making room if there is none.
    ///
    /// # Safety
    /// As [`Ring::start`].
    unsafe fn push(&mut self, entry: squeue::Entry) -> Result<(), RingError> {
        // SAFETY: the caller's promise.
        if unsafe { self.uring.0.submission().push(&entry) }.is_ok() {
            return Ok(());
        }
        self.submit()?;
        // SAFETY: the caller's promise.
        unsafe { self.uring.0.submission().push(&entry) }.map_err(|_| RingError::Full)
    }

    fn push_cancellation(&mut self, key: Key) {
        let entry = opcode::AsyncCancel::new(key.0).build().user_data(CANCELLATION);
        // SAFETY: the operation names no memory and no descriptor.
        if let Err(error) = unsafe { self.push(entry) } {
            tracing::debug!(%error, "a cancellation was not taken");
        }
    }

    fn enter(&mut self, want: usize) -> Result<(), RingError> {
        loop {
            let Err(error) = self.uring.0.submit_and_wait(want) else { return Ok(()) };
            match error.raw_os_error() {
                Some(libc::EINTR) => {}
                // Completions must be read first (EBUSY), or there is no memory for a request (EAGAIN).
                Some(libc::EBUSY | libc::EAGAIN) => return self.let_completions_in(),
                _ => return Err(RingError::Enter(error)),
            }
        }
    }

    /// Lets the kernel post what is done, without submitting and without sleeping for it.
    fn let_completions_in(&mut self) -> Result<(), RingError> {
        const GETEVENTS: u32 = 1; // IORING_ENTER_GETEVENTS
        // SAFETY: no argument is passed.
        match unsafe { self.uring.0.submitter().enter::<()>(0, 0, GETEVENTS, None) } {
            Err(error) if !matches!(error.raw_os_error(), Some(libc::EINTR | libc::EBUSY | libc::EAGAIN)) => {
                return Err(RingError::Enter(error));
            }
            _ => {}
        }
        if self.uring.0.completion().is_empty() {
            std::thread::sleep(MEMORY_PAUSE);
        }
        Ok(())
    }
}

impl<U: Copy> Mover for Ring<U> {
    fn read(
        &mut self,
        file: &Arc<File>,
        at: ByteOffset,
        buf: Buf,
        part: Range<usize>,
        tag: OpTag,
    ) -> Result<(), Buf> {
        let (at, (from, len)) = (offset(at), within(&buf, &part));
        self.start_move(MoveOp::Read, file, Some(buf), tag, |fd, memory, fixed| {
            let memory = memory.wrapping_add(from);
            match fixed {
                Some(index) => opcode::ReadFixed::new(fd, memory, len, index).offset(at).build(),
                None => opcode::Read::new(fd, memory, len).offset(at).build(),
            }
        })
        .map_or_else(|buf| buf.map_or(Ok(()), Err), Ok)
    }

    fn write(
        &mut self,
        file: &Arc<File>,
        at: ByteOffset,
        buf: Buf,
        part: Range<usize>,
        durable: bool,
        tag: OpTag,
    ) -> Result<(), Buf> {
        let (at, (from, len)) = (offset(at), within(&buf, &part));
        let flags = if durable { libc::RWF_DSYNC } else { 0 };
        self.start_move(MoveOp::Write, file, Some(buf), tag, |fd, memory, fixed| {
            let memory = memory.wrapping_add(from);
            match fixed {
                Some(index) => {
                    opcode::WriteFixed::new(fd, memory, len, index).offset(at).rw_flags(flags).build()
                }
                None => opcode::Write::new(fd, memory, len).offset(at).rw_flags(flags).build(),
            }
        })
        .map_or_else(|buf| buf.map_or(Ok(()), Err), Ok)
    }

    fn read_now(&mut self, file: &Arc<File>, at: ByteOffset, to: &mut [u8], wait: Wait) -> bool {
        let Ok(at) = libc::off64_t::try_from(at.0) else { return false };
        let flags = match wait {
            Wait::Never => libc::RWF_NOWAIT,
            Wait::ForMemory => 0,
        };
        let piece = libc::iovec { iov_base: to.as_mut_ptr().cast(), iov_len: to.len() };
        // SAFETY: `piece` is `to`, which may be written for as long as the call lasts.
        let read = unsafe { libc::preadv64v2(file.as_raw_fd(), &raw const piece, 1, at, flags) };
        usize::try_from(read) == Ok(to.len())
    }

    fn will_read(&mut self, file: &Arc<File>, at: ByteOffset, len: ByteLen) {
        let len = libc::off_t::try_from(len.0).unwrap_or(libc::off_t::MAX);
        let entry =
            opcode::Fadvise::new(Fd(file.as_raw_fd()), len, libc::POSIX_FADV_WILLNEED).offset(at.0).build();
        // SAFETY: the operation names no memory, and its file lives in the slot until it has ended.
        if unsafe { self.start(Op::Hint { _file: Arc::clone(file) }, entry) }.is_err() {
            tracing::debug!("no room for a hint; the read that follows does without");
        }
    }

    fn sync(&mut self, file: &Arc<File>, tag: OpTag) -> bool {
        self.start_move(MoveOp::Sync, file, None, tag, |fd, _, _| {
            opcode::Fsync::new(fd).flags(FsyncFlags::DATASYNC).build()
        })
        .is_ok()
    }

    fn punch(&mut self, file: &Arc<File>, at: ByteOffset, len: ByteLen, tag: OpTag) -> bool {
        self.start_move(MoveOp::Punch, file, None, tag, |fd, _, _| {
            opcode::Fallocate::new(fd, len.0)
                .offset(at.0)
                .mode(libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE)
                .build()
        })
        .is_ok()
    }

    fn stat(&mut self, file: &Arc<File>, tag: OpTag) -> bool {
        let mut found = self.spare.pop().unwrap_or_default();
        let entry = found.entry(Fd(file.as_raw_fd()));
        // SAFETY: the path is static; the file and the heap memory that the kernel writes to move into the slot and stay there
        // until the completion.
        unsafe { self.start(Op::Stat { tag, found, _file: Arc::clone(file) }, entry) }.is_ok()
    }
}

impl<U> Drop for Ring<U> {
    /// Closing an io_uring does not stop what has started. So: end watches and timers, give file operations their time, and
    /// leak the buffers of those that are still not done, because the kernel may yet write into them.
    fn drop(&mut self) {
        let endless: Vec<Key> = self
            .ops
            .iter()
            .filter(|(_, op)| !matches!(op, Op::Move { .. } | Op::Stat { .. }))
            .map(|(key, _)| key)
            .collect();
        endless.into_iter().for_each(|key| self.push_cancellation(key));
        let start = Instant::now();
        while self.ops.len() > 0 {
            let left = self.drain.saturating_sub(start.elapsed());
            let timespec = Timespec::from(left);
            match self.uring.0.submitter().submit_with_args(1, &SubmitArgs::new().timespec(&timespec)) {
                Ok(_) => {}
                Err(error) => match error.raw_os_error() {
                    Some(libc::ETIME | libc::EINTR) => {}
                    Some(libc::EBUSY | libc::EAGAIN) => std::thread::sleep(MEMORY_PAUSE),
                    _ => break,
                },
            }
            for cqe in self.uring.0.completion() {
                if !cqueue::more(cqe.flags()) {
                    self.ops.remove(Key(cqe.user_data()));
                }
            }
            if left.is_zero() {
                break;
            }
        }
        let mut leaked = 0;
        for op in self.ops.drain() {
            match op {
                Op::Move { buf: Some(buf), .. } => mem::forget(buf),
                Op::Stat { found, .. } => mem::forget(found),
                _ => continue,
            }
            leaked += 1;
        }
        if leaked > 0 {
            tracing::warn!(leaked, "file operations did not end in time; their buffers stay out of use");
        }
    }
}

impl fmt::Debug for Uring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let params = self.0.params();
        write!(f, "io_uring[{} submissions, {} completions]", params.sq_entries(), params.cq_entries())
    }
}

/// What suits a single reactor best (Linux 6.1), and what 5.19 has. Never SQPOLL: with it, a process whose endpoint requests
/// hang cannot even be reaped (kernel.md §0.3).
fn builders(entries: u32) -> (io_uring::Builder, io_uring::Builder) {
    let mut best = IoUring::builder();
    best.setup_cqsize(entries.saturating_mul(CQ_PER_ENTRY)).setup_submit_all();
    let mut plain = best.clone();
    best.setup_single_issuer().setup_defer_taskrun();
    plain.setup_coop_taskrun();
    (best, plain)
}

fn probe(uring: &IoUring) -> Result<(), RingError> {
    const NEEDED: [(u8, &str); 10] = [
        (opcode::Read::CODE, "IORING_OP_READ"),
        (opcode::ReadFixed::CODE, "IORING_OP_READ_FIXED"),
        (opcode::Write::CODE, "IORING_OP_WRITE"),
        (opcode::WriteFixed::CODE, "IORING_OP_WRITE_FIXED"),
        (opcode::Fsync::CODE, "IORING_OP_FSYNC"),
        (opcode::Fallocate::CODE, "IORING_OP_FALLOCATE"),
        (opcode::Statx::CODE, "IORING_OP_STATX"),
        (opcode::PollAdd::CODE, "IORING_OP_POLL_ADD"),
        (opcode::Timeout::CODE, "IORING_OP_TIMEOUT"),
        (opcode::AsyncCancel::CODE, "IORING_OP_ASYNC_CANCEL"),
    ];
    let mut known = Probe::new();
    uring
        .submitter()
        .register_probe(&mut known)
        .map_err(|error| RingError::Missing("IORING_REGISTER_PROBE", Some(error)))?;
    match NEEDED.iter().find(|(code, _)| !known.is_supported(*code)) {
        Some((_, name)) => Err(RingError::Missing(name, None)),
        None => Ok(()),
    }
}

/// The pools that the kernel took: all or none.
fn register(uring: &IoUring, pools: &[Pool]) -> Vec<Pool> {
    if pools.is_empty() {
        return Vec::new();
    }
    let memory: Vec<libc::iovec> = pools
        .iter()
        .map(Pool::memory)
        .map(|(start, len)| libc::iovec { iov_base: start.cast(), iov_len: len })
        .collect();
    // SAFETY: the mappings live as long as their pools, of which the ring keeps a handle.
    match unsafe { uring.submitter().register_buffers(&memory) } {
        Ok(()) => pools.to_vec(),
        Err(error) => {
            tracing::info!(%error, "buffers stay unregistered, which costs a little speed; try LimitMEMLOCK=infinity");
            Vec::new()
        }
    }
}

fn poll(fd: &OwnedFd) -> squeue::Entry {
    // POLLIN, without a cast: the constant of poll(2) is 1 on every architecture, and of the wrong type.
    const READABLE: u32 = 1;
    opcode::PollAdd::new(Fd(fd.as_raw_fd()), READABLE).multi(true).build()
}

/// The kernel reads an offset of 2^64 - 1 as "the file's position", and refuses all others that an `off_t` cannot hold.
fn offset(at: ByteOffset) -> u64 {
    at.0.min(i64::MAX.unsigned_abs())
}

/// Where the part begins, and its length: never more than the buffer holds, whatever the caller says.
fn within(buf: &Buf, part: &Range<usize>) -> (usize, u32) {
    debug_assert!(part.end <= buf.len(), "{part:?} does not fit {buf:?}");
    let (from, to) = (part.start.min(buf.len()), part.end.min(buf.len()));
    (from, u32::try_from(to.saturating_sub(from)).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests;
