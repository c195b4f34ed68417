//! Two bulk pipes in memory, packet by packet: what a controller and FunctionFS do between the host and the drive loop.
//!
//! The device side is [`SimEndpoints`]; the host side is [`Bus`]. A request is seen by the host only after `flush`. A packet
//! that the host has taken cannot be cancelled, nor can one that already stands in the controller's FIFO.

use std::{cell::RefCell, collections::VecDeque, os::fd::BorrowedFd, rc::Rc};

use fastrand::Rng;
use ringdrive::{
    gadget::endpoints::{EndpointDone, Endpoints, Halted, Pipe, Refused, Tag, TransferError, Wake},
    ring::pool::Buf,
};

/// How this run's controller differs from the ideal one (kernel.md §1.3, §4).
#[derive(Clone, Copy, Debug)]
pub struct Quirks {
    /// dummy_hcd: a small IN request on an empty queue is done when queued, though the host has not taken it; halts are
    /// refused until it has.
    pub early_in: bool,
    /// dwc3: CLEAR_FEATURE(HALT) ends queued requests with EPIPE.
    pub clear_halt_interrupts: bool,
    /// The kernel has no memory for one in so many requests that are longer than a page, however small the pieces. 0: it always has.
    pub refuse_every: u64,
}

impl Quirks {
    pub fn any(rng: &mut Rng) -> Self {
        Self {
            early_in: rng.u8(..4) == 0,
            clear_halt_interrupts: rng.u8(..3) == 0,
            refuse_every: if rng.u8(..5) == 0 { rng.u64(20..200) } else { 0 },
        }
    }
}

/// More than are ever under way, so that the heap is as it was after a million commands.
pub const CAPACITY: usize = 64;

struct Request {
    buf: Buf,
    wake: Wake,
    len: usize,
    moved: usize,
    tag: Tag,
}

#[derive(Default)]
struct PipeState {
    /// Handed over, not yet flushed.
    staged: VecDeque<Request>,
    queue: VecDeque<Request>,
    halted: bool,
    /// A packet that the host has not taken, of a request that is done.
    fifo: Option<Vec<u8>>,
}

struct State {
    r#in: PipeState,
    out: PipeState,
    done: VecDeque<EndpointDone>,
    /// One of them wants to be heard of.
    woken: bool,
    max_packet: Option<usize>,
    quirks: Quirks,
    requests: u64,
    /// Requests refused for lack of memory.
    refused: u64,
}

/// The host's end.
#[derive(Clone)]
pub struct Bus(Rc<RefCell<State>>);

/// The device's end.
pub struct SimEndpoints(Rc<RefCell<State>>);

/// The device's answer to one packet.
#[derive(Debug, PartialEq, Eq)]
pub enum Handshake<T> {
    Ack(T),
    Nak,
    Stall,
    /// Nobody is there.
    Timeout,
}

impl State {
    fn pipe(&mut self, pipe: Pipe) -> &mut PipeState {
        match pipe {
            Pipe::In => &mut self.r#in,
            Pipe::Out => &mut self.out,
        }
    }

    fn is_out_of_memory(&mut self, len: usize) -> bool {
        self.requests += u64::from(len > 4096);
        len > 4096 && self.requests.checked_rem(self.quirks.refuse_every) == Some(0)
    }

    fn submit(&mut self, pipe: Pipe, buf: Buf, len: usize, tag: Tag, wake: Wake) -> Result<(), Refused> {
        assert!(len <= buf.len(), "a request of {len} bytes in a buffer of {}", buf.len());
        let is_refused = self.is_out_of_memory(len);
        let refusal = match self.max_packet {
            None => Some(TransferError::Disabled),
            Some(_) if is_refused => Some(TransferError::NoMemory),
            Some(max_packet) => {
                let whole = len > 0 && len.is_multiple_of(max_packet);
                assert!(pipe == Pipe::In || whole, "OUT request of {len} bytes is not whole packets");
                None
            }
        };
        match refusal {
            Some(error) => {
                self.refused += u64::from(error == TransferError::NoMemory);
                Err(Refused { buf, error })
            }
            None => {
                self.pipe(pipe).staged.push_back(Request { buf, len, moved: 0, tag, wake });
                Ok(())
            }
        }
    }

    fn finish(&mut self, pipe: Pipe, request: Request, result: Result<usize, TransferError>) {
        self.woken |= request.wake == Wake::Now;
        self.done.push_back(EndpointDone { pipe, tag: request.tag, buf: request.buf, result });
    }

    fn fail_all(&mut self, pipe: Pipe, error: TransferError) {
        let queued = |state: &mut PipeState| state.queue.pop_front().or_else(|| state.staged.pop_front());
        while let Some(request) = queued(self.pipe(pipe)) {
            self.finish(pipe, request, Err(error));
        }
    }

    /// The small first request goes into the FIFO at once, on a controller that does so.
    fn fill_fifo(&mut self) {
        let state = &mut self.r#in;
        let small = state.queue.front().is_some_and(|request| request.len <= 64);
        if self.quirks.early_in && small && state.queue.len() == 1 && !state.halted && state.fifo.is_none() {
            let request = state.queue.pop_front().unwrap();
            state.fifo = Some(request.buf[..request.len].to_vec());
            let len = request.len;
            self.finish(Pipe::In, request, Ok(len));
        }
    }
}

impl Bus {
    pub fn new(quirks: Quirks) -> (Self, SimEndpoints) {
        let state = State {
            r#in: PipeState::default(),
            out: PipeState::default(),
            done: VecDeque::with_capacity(CAPACITY),
            woken: false,
            max_packet: None,
            quirks,
            requests: 0,
            refused: 0,
        };
        let state = Rc::new(RefCell::new(state));
        (Self(state.clone()), SimEndpoints(state))
    }

    pub fn max_packet(&self) -> Option<usize> {
        self.0.borrow().max_packet
    }

    /// The process at the device's end is gone, and with it its requests. Halts and what stands in the FIFO stay.
    pub fn die(&self) {
        let mut state = self.0.borrow_mut();
        for pipe in [Pipe::In, Pipe::Out] {
            let pipe = state.pipe(pipe);
            pipe.staged.clear();
            pipe.queue.clear();
        }
        state.done.clear();
        state.woken = false;
    }

    /// The device's end for the next process.
    pub fn successor(&self) -> SimEndpoints {
        SimEndpoints(self.0.clone())
    }

    /// Requests refused for lack of kernel memory so far.
    pub fn refused(&self) -> u64 {
        self.0.borrow().refused
    }

    /// Whether the device has a completion to reap that it wants to be woken for.
    pub fn has_done(&self) -> bool {
        self.0.borrow().woken
    }

    /// Asks for one packet.
    pub fn take_in(&self) -> Handshake<Vec<u8>> {
        let mut state = self.0.borrow_mut();
        let Some(max_packet) = state.max_packet else { return Handshake::Timeout };
        if state.r#in.halted {
            return Handshake::Stall;
        }
        if let Some(packet) = state.r#in.fifo.take() {
            return Handshake::Ack(packet);
        }
        let Some(request) = state.r#in.queue.front_mut() else { return Handshake::Nak };
        let end = request.len.min(request.moved + max_packet);
        let packet = request.buf[request.moved..end].to_vec();
        request.moved = end;
        if end == request.len {
            let request = state.r#in.queue.pop_front().unwrap();
            state.finish(Pipe::In, request, Ok(end));
        }
        Handshake::Ack(packet)
    }

    /// Sends one packet.
    pub fn give_out(&self, packet: &[u8]) -> Handshake<()> {
        let mut state = self.0.borrow_mut();
        let Some(max_packet) = state.max_packet else { return Handshake::Timeout };
        if state.out.halted {
            return Handshake::Stall;
        }
        let Some(request) = state.out.queue.front_mut() else { return Handshake::Nak };
        let end = request.moved + packet.len();
        request.buf[request.moved..end].copy_from_slice(packet);
        request.moved = end;
        if packet.len() < max_packet || end == request.len {
            let request = state.out.queue.pop_front().unwrap();
            state.finish(Pipe::Out, request, Ok(end));
        }
        Handshake::Ack(())
    }

    /// CLEAR_FEATURE(ENDPOINT_HALT). As part of reset recovery it also resets the endpoint, which empties its FIFO.
    pub fn clear_halt(&self, pipe: Pipe, recovery: bool) {
        let mut state = self.0.borrow_mut();
        state.pipe(pipe).halted = false;
        if recovery {
            state.pipe(pipe).fifo = None;
        }
        if state.quirks.clear_halt_interrupts {
            state.fail_all(pipe, TransferError::Interrupted);
        }
    }

    /// Bus reset, deconfiguration or an unplugged cable.
    pub fn disable(&self) {
        let mut state = self.0.borrow_mut();
        state.max_packet = None;
        for pipe in [Pipe::In, Pipe::Out] {
            state.fail_all(pipe, TransferError::Disabled);
            let pipe = state.pipe(pipe);
            (pipe.halted, pipe.fifo) = (false, None);
        }
    }

    pub fn enable(&self, max_packet: usize) {
        self.0.borrow_mut().max_packet = Some(max_packet);
    }
}

impl Endpoints for SimEndpoints {
    fn send(&mut self, buf: Buf, len: usize, tag: Tag, wake: Wake) -> Result<(), Refused> {
        self.0.borrow_mut().submit(Pipe::In, buf, len, tag, wake)
    }

    fn receive(&mut self, buf: Buf, len: usize, tag: Tag) -> Result<(), Refused> {
        self.0.borrow_mut().submit(Pipe::Out, buf, len, tag, Wake::Now)
    }

    fn cancel(&mut self, pipe: Pipe) {
        self.0.borrow_mut().fail_all(pipe, TransferError::Cancelled);
    }

    fn halt(&mut self, pipe: Pipe) -> Halted {
        let mut state = self.0.borrow_mut();
        if state.max_packet.is_none() {
            return Halted::Disabled;
        }
        let pipe = state.pipe(pipe);
        if !pipe.queue.is_empty() || !pipe.staged.is_empty() || pipe.fifo.is_some() {
            return Halted::Busy;
        }
        pipe.halted = true;
        Halted::Yes
    }

    fn clear_halt(&mut self, pipe: Pipe) {
        self.0.borrow_mut().pipe(pipe).halted = false;
    }

    fn max_packet(&self) -> usize {
        self.0.borrow().max_packet.unwrap_or(512)
    }

    fn reap(&mut self) -> Option<EndpointDone> {
        let mut state = self.0.borrow_mut();
        state.woken = false;
        state.done.pop_front()
    }

    fn ready_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn flush(&mut self) {
        let mut state = self.0.borrow_mut();
        for pipe in [Pipe::In, Pipe::Out] {
            let pipe = state.pipe(pipe);
            pipe.queue.append(&mut pipe.staged);
        }
        state.fill_fifo();
    }
}
