//! The engine `aio`: both endpoints under one Linux AIO context. Called by the drive loop, from its thread only.
//!
//! A request lives in a slot. A slot goes through these states, and its buffer is the slot's from the first to the last:
//!
//! ```text
//!  free ─ send/receive ─► staged ─ flush ─► in the kernel ─ event ─► done ─ reap ─► free
//!                           ▲ └─ cancel, or behind a failure ────────►┘
//!                           └──── no memory for so much, or a piece of it is done ──┘ (from the kernel)
//! ```
//! The kernel copies each request to memory that it allocates in one piece. Where it has none of that size (ENOMEM), the bytes
//! go in smaller pieces, one after the other, and all later ones too; nobody outside notices.
//!
//! Invariants: a slot in the kernel is not touched before its event. Requests of a pipe are submitted, and given back by
//! `reap`, in the order in which they came, whatever the order of events. Behind a request that failed, nothing more goes to
//! the kernel on its pipe until the failure was reaped: bytes with a gap are worse than none. The kernel tells a failure as
//! an event, and goes on with the rest of its batch, so a batch has one request of each pipe at most, and behind it only
//! what the host cannot take for the same bytes.

mod kernel;

use std::{
    collections::VecDeque,
    fs::File,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering},
    },
};

use nix::sys::eventfd::{EfdFlags, EventFd};

use super::{
    endpoints::{EndpointDone, Endpoints, Halted, Pipe, Refused, Tag, TransferError, Wake},
    engine::{EndpointFiles, REQUESTS_MAX, smaller_piece, transfer_error},
};
use crate::ring::pool::Buf;
use kernel::{Command, Context, Iocb};

/// The engine.
#[derive(Debug)]
pub struct AioEngine {
    context: Context,
    /// Control blocks, at addresses that do not move; `iocbs[i]` belongs to `slots[i]`.
    iocbs: Box<[Iocb; REQUESTS_MAX]>,
    slots: Box<[Option<Slot>; REQUESTS_MAX]>,
    free: Vec<usize>,
    /// Slots not handed to the kernel yet, in the order of submission.
    staged: Vec<usize>,
    /// Slots of each pipe, in the order of submission.
    order: [VecDeque<usize>; 2],
    /// Of each pipe, the oldest request that failed other than by a cancel, until it is given back.
    failed: [Option<usize>; 2],
    /// Of each pipe, whether the kernel has a piece of a request whose rest must go before anything else.
    in_pieces: [bool; 2],
    /// What the kernel gets in one piece.
    piece_max: usize,
    files: EndpointFiles,
    ready: Arc<EventFd>,
    max_packet: Arc<AtomicU16>,
}

#[derive(Debug)]
struct Slot {
    pipe: Pipe,
    tag: Tag,
    buf: Buf,
    len: usize,
    /// Bytes of the pieces that are done.
    moved: usize,
    /// Bytes of the piece that the kernel has.
    piece: usize,
    wake: Wake,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Staged,
    InKernel,
    Done(Result<usize, TransferError>),
}

impl AioEngine {
    /// Takes the files of a bulk IN and a bulk OUT endpoint, opened read-write and non-blocking. `max_packet` is kept by the
    /// ep0 thread.
    ///
    /// # Errors
    /// Those of io_setup(2) (ENOSYS: a kernel without CONFIG_AIO; EAGAIN: fs.aio-max-nr) and eventfd(2).
    pub fn new(input: File, output: File, max_packet: Arc<AtomicU16>) -> io::Result<Self> {
        Ok(Self {
            context: Context::new(REQUESTS_MAX)?,
            iocbs: Box::new([Iocb::default(); REQUESTS_MAX]),
            slots: Box::new([const { None }; REQUESTS_MAX]),
            free: (0..REQUESTS_MAX).rev().collect(),
            staged: Vec::with_capacity(REQUESTS_MAX),
            order: [const { VecDeque::new() }; 2].map(|mut order| {
                order.reserve_exact(REQUESTS_MAX);
                order
            }),
            failed: [None; 2],
            in_pieces: [false; 2],
            piece_max: usize::MAX,
            files: EndpointFiles { input, output },
            ready: Arc::new(EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?),
            max_packet,
        })
    }

    /// What tells of completions, for somebody who has others to tell of.
    pub(super) fn ready(&self) -> &Arc<EventFd> {
        &self.ready
    }

    fn stage(&mut self, pipe: Pipe, buf: Buf, len: usize, tag: Tag, wake: Wake) -> Result<(), Refused> {
        if len > buf.len() {
            return Err(Refused { buf, error: TransferError::Other(libc::EINVAL) });
        }
        let Some(index) = self.free.pop() else {
            return Err(Refused { buf, error: TransferError::Other(libc::ENOBUFS) });
        };
        self.slots[index] =
            Some(Slot { pipe, tag, buf, len, moved: 0, piece: 0, wake, state: State::Staged });
        self.order[side(pipe)].push_back(index);
        match self.failed[side(pipe)] {
            None => self.staged.push(index),
            Some(_) => self.end([index], TransferError::Cancelled),
        }
        Ok(())
    }

    /// Makes the control block for a slot's next piece.
    fn arm(&mut self, index: usize) {
        let Some(slot) = &mut self.slots[index] else { return };
        slot.piece = (slot.len - slot.moved).min(self.piece_max);
        let end = slot.moved + slot.piece;
        let event_fd = match slot.wake {
            Wake::Later if end == slot.len => None,
            Wake::Now | Wake::Later => Some(self.ready.as_raw_fd()),
        };
        let command = match slot.pipe {
            Pipe::In => Command::Write,
            Pipe::Out => Command::Read,
        };
        let fd = self.files.of(slot.pipe).as_raw_fd();
        self.iocbs[index] = Iocb::new(command, fd, &mut slot.buf[slot.moved..end], event_fd, index);
    }

    /// Ends requests that the kernel has not got, and wakes whoever waits for completions.
    fn end(&mut self, indices: impl IntoIterator<Item = usize>, error: TransferError) {
        let mut any = false;
        for index in indices {
            if let Some(slot) = &mut self.slots[index] {
                slot.state = State::Done(Err(error));
                any = true;
            }
        }
        if any {
            let _ = self.ready.write(1);
        }
    }

    /// Takes those of `pipe` out of what is staged.
    fn unstage(&mut self, pipe: Pipe) -> Vec<usize> {
        let is_of = |index: &usize| self.slots[*index].as_ref().is_some_and(|slot| slot.pipe == pipe);
        let taken = self.staged.iter().copied().filter(is_of).collect();
        self.staged.retain(|index| self.slots[*index].as_ref().is_some_and(|slot| slot.pipe != pipe));
        taken
    }

    /// Takes all events that are there: a slot is done, or staged again for what is left of it. Whether any was.
    fn collect(&mut self) -> bool {
        let mut again = false;
        while let Some((index, result)) = self.context.next_event() {
            let Some(slot) = self.slots.get_mut(index).and_then(Option::as_mut) else {
                debug_assert!(false, "an event for the free slot {index}");
                continue;
            };
            let (pipe, piece, is_last) = (slot.pipe, slot.piece, slot.moved + slot.piece == slot.len);
            self.in_pieces[side(pipe)] = false;
            let result = match usize::try_from(result) {
                Ok(moved) => {
                    slot.moved += moved;
                    Ok(moved)
                }
                Err(_) => Err(transfer_error(i32::try_from(-result).unwrap_or(libc::EIO))),
            };
            slot.state = State::Done(result.map(|_| slot.moved));
            let goes_on = match result {
                Ok(moved) => moved == piece && !is_last,
                Err(error) => error == TransferError::NoMemory && self.halve(index, piece),
            };
            if goes_on && let Some(slot) = &mut self.slots[index] {
                slot.state = State::Staged;
                self.staged.insert(0, index);
                again = true;
            }
            if self.has_failed(index) {
                self.failed[side(pipe)].get_or_insert(index);
            }
        }
        again
    }

    /// Smaller pieces from now on, if that helps: not where the kernel has something that the host would take first.
    fn halve(&mut self, index: usize, piece: usize) -> bool {
        let Some(pipe) = self.slots[index].as_ref().map(|slot| slot.pipe) else { return false };
        let mut behind = self.order[side(pipe)].iter().skip_while(|other| **other != index).skip(1);
        let is_staged =
            |other: &usize| self.slots[*other].as_ref().is_none_or(|slot| slot.state == State::Staged);
        let Some(smaller) = behind.all(is_staged).then(|| smaller_piece(piece)).flatten() else {
            return false;
        };
        self.piece_max = smaller;
        true
    }

    fn has_failed(&self, index: usize) -> bool {
        let state = self.slots[index].as_ref().map(|slot| slot.state);
        matches!(state, Some(State::Done(Err(error))) if error != TransferError::Cancelled)
    }

    /// How many of what is staged may go at once: up to the second of one pipe that could be taken for the bytes of the first. A
    /// short packet to the host ends its transfer, so it cannot. Nothing goes between two pieces of a request.
    fn batch(&self) -> usize {
        let packet = self.max_packet();
        let mut seen = [false; 2];
        let mut blocked = self.in_pieces;
        let may_follow = |index: &&usize| {
            let Some(slot) = &self.slots[**index] else { return false };
            let is_second = std::mem::replace(&mut seen[side(slot.pipe)], true);
            let has_rest = slot.len - slot.moved > self.piece_max;
            let is_blocked = std::mem::replace(&mut blocked[side(slot.pipe)], has_rest);
            !is_blocked && (!is_second || (slot.pipe == Pipe::In && slot.len < packet))
        };
        self.staged.iter().take_while(may_follow).count()
    }

    /// The oldest request of a pipe, if it is done.
    fn take_done(&mut self, pipe: Pipe) -> Option<EndpointDone> {
        let index = *self.order[side(pipe)].front()?;
        let State::Done(result) = self.slots[index].as_ref()?.state else { return None };
        self.order[side(pipe)].pop_front();
        self.free.push(index);
        if self.failed[side(pipe)] == Some(index) {
            self.failed[side(pipe)] =
                self.order[side(pipe)].iter().copied().find(|next| self.has_failed(*next));
        }
        let Slot { tag, buf, .. } = self.slots[index].take()?;
        Some(EndpointDone { pipe, tag, buf, result })
    }

    fn take_any_done(&mut self) -> Option<EndpointDone> {
        self.take_done(Pipe::In).or_else(|| self.take_done(Pipe::Out))
    }
}

fn side(pipe: Pipe) -> usize {
    match pipe {
        Pipe::In => 0,
        Pipe::Out => 1,
    }
}

impl Endpoints for AioEngine {
    fn send(&mut self, buf: Buf, len: usize, tag: Tag, wake: Wake) -> Result<(), Refused> {
        self.stage(Pipe::In, buf, len, tag, wake)
    }

    fn receive(&mut self, buf: Buf, len: usize, tag: Tag) -> Result<(), Refused> {
        self.stage(Pipe::Out, buf, len, tag, Wake::Now)
    }

    fn cancel(&mut self, pipe: Pipe) {
        let unstaged = self.unstage(pipe);
        self.end(unstaged, TransferError::Cancelled);
        // Newest first: if the oldest went first, the controller would start the one behind it.
        for &index in self.order[side(pipe)].iter().rev() {
            if let Some(slot) = self.slots[index].as_mut().filter(|slot| slot.state == State::InKernel) {
                // A piece that is done all the same is the last.
                slot.len = slot.moved + slot.piece;
                self.context.cancel(&self.iocbs[index]);
            }
        }
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
        if let done @ Some(_) = self.take_any_done() {
            return done;
        }
        if self.collect() {
            self.flush();
        }
        // The eventfd is not read: a system call for nothing, as its watcher waits for edges.
        self.take_any_done()
    }

    fn ready_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.ready.as_fd())
    }

    fn flush(&mut self) {
        loop {
            for pipe in [Pipe::In, Pipe::Out] {
                if self.failed[side(pipe)].is_some() {
                    let behind = self.unstage(pipe);
                    self.end(behind, TransferError::Cancelled);
                }
            }
            let batch = self.batch();
            if batch == 0 {
                return;
            }
            for at in 0..batch {
                self.arm(self.staged[at]);
            }
            match self.context.submit(&mut self.iocbs[..], &self.staged[..batch]) {
                Ok(taken) => {
                    for index in self.staged.drain(..taken) {
                        if let Some(slot) = &mut self.slots[index] {
                            slot.state = State::InKernel;
                            self.in_pieces[side(slot.pipe)] = slot.moved + slot.piece < slot.len;
                        }
                    }
                    // What an endpoint refuses is in the ring by now.
                    self.collect();
                }
                // The context itself refused the first; it never does, unless a descriptor is not what it should be.
                Err(errno) => {
                    let first = self.staged.remove(0);
                    self.end([first], transfer_error(errno));
                    if let Some(pipe) = self.slots[first].as_ref().map(|slot| slot.pipe) {
                        self.failed[side(pipe)].get_or_insert(first);
                    }
                }
            }
        }
    }
}

impl Drop for AioEngine {
    fn drop(&mut self) {
        // Cancels and waits for everything in flight; only then may the slots' buffers go.
        if !self.context.destroy() {
            tracing::error!(
                "io_destroy failed: buffers in flight are leaked rather than freed under the kernel"
            );
            self.slots.iter_mut().for_each(|slot| std::mem::forget(slot.take()));
        }
    }
}

#[cfg(test)]
mod tests;
