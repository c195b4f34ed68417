//! The endpoints of a function with their buffers, and the count of what the kernel holds.
//!
//! Called by the phases of `function`. Invariants: `queued` counts every request between its submission and its completion, so
//! that an abort knows when the pipes are quiet; what is queued is in the handover record first.

use std::io;

use crate::{
    bot::CSW_LEN,
    gadget::endpoints::{EndpointDone, Endpoints, Halted, Pipe, Tag, TransferError, Wake},
    ring::pool::{Buf, Pool},
};

use super::{
    flights::BUFFERS_PER_DRIVE,
    handover::{self, Behind, Handover, Last},
};

/// A CBW read.
pub(super) const CBW: Tag = Tag(u32::MAX);
/// A CSW.
pub(super) const CSW: Tag = Tag(u32::MAX - 1);

/// `len` bytes of a data phase.
pub(super) const fn data_tag(len: u32) -> Tag {
    Tag(len)
}

/// Room for the largest SCSI response, parameter list and CBW read (a SuperSpeed packet).
const SMALL_LEN: usize = 8192;
/// CBW, CSW, response, parameter list, and those of the command before that the kernel has not given back.
const SMALL_COUNT: usize = 12;
/// The largest endpoint request: a multiple of every packet size. Where the kernel has no such memory, the engine makes pieces of it.
pub(super) const DATA_LEN: usize = 256 * 1024;
/// A window, what is queued to the host, and what was brought for the next command.
const DATA_COUNT: usize = 13;
/// So many buffers are there at most; of sixteen drives fifteen may be dead, and a window is left.
const DATA_COUNT_MAX: usize = 64;

/// The pipe could not take a request, so the transfer cannot go on.
#[derive(Debug)]
pub(super) struct PipeError(pub(super) TransferError);

#[derive(Debug)]
pub(super) struct Pipes<E> {
    endpoints: E,
    small: Pool,
    data: Pool,
    queued_in: u32,
    queued_out: u32,
    /// Pipes that we halted. The host may have cleared them since, of which nobody tells us.
    halted: Vec<Pipe>,
    pub(super) handover: Handover,
}

impl<E: Endpoints> Pipes<E> {
    /// With what the ring may never give back of every drive but one.
    pub(super) fn new(endpoints: E, drives: usize) -> io::Result<Self> {
        let count = DATA_COUNT + drives.saturating_sub(1) * BUFFERS_PER_DRIVE;
        Ok(Self {
            endpoints,
            small: Pool::new(SMALL_COUNT, SMALL_LEN)?,
            data: Pool::new(count.min(DATA_COUNT_MAX), DATA_LEN)?,
            queued_in: 0,
            queued_out: 0,
            halted: Vec::with_capacity(2),
            handover: Handover::private()?,
        })
    }

    pub(super) fn endpoints_mut(&mut self) -> &mut E {
        &mut self.endpoints
    }

    /// All buffers, for registration with the ring.
    pub(super) fn pools(&self) -> [Pool; 2] {
        [self.data.clone(), self.small.clone()]
    }

    /// A buffer for a response, a parameter list, a CBW or a CSW.
    pub(super) fn small(&self) -> Result<Buf, PipeError> {
        self.small.take().ok_or(PipeError(TransferError::Other(libc::ENOBUFS)))
    }

    /// A buffer for image bytes; `None` while all are in flight.
    pub(super) fn data(&self) -> Option<Buf> {
        self.data.take()
    }

    pub(super) fn max_packet(&self) -> usize {
        self.endpoints.max_packet()
    }

    pub(super) fn send(&mut self, buf: Buf, len: usize, tag: Tag, wake: Wake) -> Result<(), PipeError> {
        self.endpoints.send(buf, len, tag, wake).map_err(|refused| PipeError(refused.error))?;
        self.queued_in += 1;
        Ok(())
    }

    /// Bytes of a data phase.
    pub(super) fn send_data(&mut self, buf: Buf, len: usize, wake: Wake) -> Result<(), PipeError> {
        self.handover.moving();
        self.send(buf, len, data_tag(u32::try_from(len).unwrap_or(0)), wake)
    }

    /// A CSW for the first time.
    pub(super) fn answer(&mut self, last: Last, behind: Behind, wake: Wake) -> Result<(), PipeError> {
        let mut buf = self.small()?;
        if let Some(head) = buf.first_chunk_mut() {
            *head = last.csw();
        }
        self.handover.answered(last, behind);
        self.send_csw(buf, wake)
    }

    /// A CSW of a predecessor, or what is to be in its place.
    pub(super) fn answer_again(&mut self, last: Last, wake: Wake) -> Result<(), PipeError> {
        let mut buf = self.small()?;
        if let Some(head) = buf.first_chunk_mut() {
            *head = last.csw();
        }
        self.handover.answered_again(last);
        self.send_csw(buf, wake)
    }

    /// A CSW once more.
    pub(super) fn send_csw(&mut self, buf: Buf, wake: Wake) -> Result<(), PipeError> {
        self.send(buf, CSW_LEN, CSW, wake)
    }

    /// Room for bytes of a data phase.
    pub(super) fn receive(&mut self, buf: Buf, len: usize, tag: Tag) -> Result<(), PipeError> {
        self.handover.moving();
        self.queue_receive(buf, len, tag)
    }

    fn queue_receive(&mut self, buf: Buf, len: usize, tag: Tag) -> Result<(), PipeError> {
        self.endpoints.receive(buf, len, tag).map_err(|refused| PipeError(refused.error))?;
        self.queued_out += 1;
        Ok(())
    }

    /// Queues the read of the next CBW: one packet, since a CBW is a short packet of its own (BOT 1.0 §5.1). Where data may still come
    /// before it, as many as the buffer holds: the CBW ends the transfer.
    pub(super) fn receive_cbw(&mut self) -> Result<(), PipeError> {
        let len = if self.handover.is_draining() { handover::BUF_LEN } else { self.max_packet() };
        match self.queue_cbw(len) {
            // What is left over may come packet by packet.
            Err(PipeError(TransferError::NoMemory)) => self.queue_cbw(self.max_packet()),
            went => went,
        }
    }

    fn queue_cbw(&mut self, len: usize) -> Result<(), PipeError> {
        let buf = self.handover.cbw_buf().ok_or(PipeError(TransferError::Other(libc::ENOBUFS)))?;
        self.queue_receive(buf, len, CBW)
    }

    /// The next completion, taken off the count.
    pub(super) fn reap(&mut self) -> Option<EndpointDone> {
        let done = self.endpoints.reap()?;
        let queued = match done.pipe {
            Pipe::In => &mut self.queued_in,
            Pipe::Out => &mut self.queued_out,
        };
        *queued = queued.saturating_sub(1);
        if done.pipe == Pipe::In && done.tag == CSW && self.queued_in == 0 && done.result.is_ok() {
            self.handover.taken();
        }
        Some(done)
    }

    pub(super) fn queued(&self, pipe: Pipe) -> u32 {
        match pipe {
            Pipe::In => self.queued_in,
            Pipe::Out => self.queued_out,
        }
    }

    pub(super) fn cancel(&mut self, pipe: Pipe) {
        if self.queued(pipe) > 0 {
            self.endpoints.cancel(pipe);
        }
    }

    /// Halts a pipe that has nothing queued; until then [`Halted::Busy`].
    pub(super) fn halt(&mut self, pipe: Pipe) -> Halted {
        if self.queued(pipe) > 0 {
            return Halted::Busy;
        }
        let halted = self.endpoints.halt(pipe);
        if halted == Halted::Yes && !self.halted.contains(&pipe) {
            self.halted.push(pipe);
        }
        halted
    }

    /// Takes over what a predecessor has left in `handover`; it may have halted both pipes.
    pub(super) fn resume(&mut self, handover: Handover) {
        self.handover = handover;
        self.halted = vec![Pipe::In, Pipe::Out];
    }

    /// Takes our halts back, for a new configuration.
    pub(super) fn clear_halts(&mut self) {
        while let Some(pipe) = self.halted.pop() {
            self.endpoints.clear_halt(pipe);
        }
    }

    pub(super) fn flush(&mut self) {
        self.endpoints.flush();
    }
}
