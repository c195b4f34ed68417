//! A data-in phase with an image behind it, and VERIFY, which is the same without a host.
//!
//! ```text
//!   map ──► in memory? read at once ──────────────────────────┐
//!       └─► else read by the ring ──► [window, in order] ──► send (IN pipe)
//!       └─► not here yet: asked again when the medium wakes us, and so is the rest of a short read
//! ```
//! Up to [`WINDOW`] reads are under way at once and may end in any order; the bytes leave in order. The first chunk is small, so
//! that the host gets its first packet early. Called by `phases`; owns no buffer that the ring or an engine holds.

use std::{fs::File, ops::Range, sync::Arc};

use crate::{
    gadget::endpoints::{Endpoints, Pipe, Wake},
    media::{Extent, FaultKind, Medium, Residence},
    ring::{Moved, Mover, OpTag, Wait, pool::Buf},
    units::{BlockSize, ByteLen, ByteOffset, ByteRange, Lba},
};

use super::{
    pipes::{DATA_LEN, PipeError, Pipes},
    prefetch::Head,
};

/// Reads under way at once.
const WINDOW: usize = 4;
/// The first chunk of a phase whose bytes are at hand, so that the link does not wait for the second.
pub(super) const FIRST_CHUNK: usize = 16 * 1024;
/// By how much each chunk is larger than the one before, up to the largest.
const GROWTH: usize = 16;

/// Requests queued to the host at once; with those in the window no more than there are buffers.
const QUEUED: u32 = 8;
/// One in so many of them wakes us to queue more. Divides [`QUEUED`], so that a full queue always has one.
const WAKE_EVERY: u32 = 4;
/// The last so many chunks of a phase fit into the queue anyway, and wake nobody.
const UNHEARD: usize = 4;

/// Where the bytes of the phase go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sink {
    /// To the host.
    Host,
    /// Nowhere: they only have to be readable (SBC-3 VERIFY with BYTCHK 00b).
    Nowhere,
}

/// A run of bytes that go to the host in one request.
#[derive(Debug)]
struct Chunk {
    len: usize,
    /// Where the rest of it is, behind the first `filled` bytes.
    missing: ByteRange,
    filled: usize,
    state: State,
}

#[derive(Debug)]
enum State {
    /// More bytes are to be asked for.
    Wanting(Buf),
    /// The ring has the buffer.
    Reading,
    /// All bytes are there.
    Ready(Buf),
    /// They cannot be had.
    Failed(FaultKind),
}

/// How far a data phase is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// Something is under way.
    Going,
    /// Every byte is queued, or stored.
    Done,
    /// It ends here.
    Fault(FaultKind),
}

#[derive(Debug)]
pub(super) struct DataIn {
    sink: Sink,
    start: ByteOffset,
    /// What is still to be asked for.
    ahead: ByteRange,
    /// Bytes queued to the host, or verified.
    moved: u64,
    /// Chunk `tag` stands at `tag % WINDOW`; `first..next` are in use.
    window: [Option<Chunk>; WINDOW],
    first: u32,
    next: u32,
    /// Every byte so far was in memory, so the next may be.
    immediate: bool,
    /// A byte so far was not at hand.
    waited: bool,
    /// It ends here, whatever is still under way.
    failed: Option<FaultKind>,
    /// Length of the next chunk while bytes are in memory.
    chunk: usize,
}

impl DataIn {
    /// For the first `len` bytes of `range`: the host may want fewer than the command has (BOT 1.0 §6.7.2, case 7).
    /// `head` is what has been brought of it already.
    pub(super) fn new(
        range: ByteRange,
        len: ByteLen,
        sink: Sink,
        residence: Residence,
        head: Option<Head>,
    ) -> Self {
        let ahead = range.split_at(len).0;
        let mut new = Self {
            sink,
            start: range.start(),
            ahead,
            moved: 0,
            window: [const { None }; WINDOW],
            first: 0,
            next: 0,
            immediate: residence != Residence::Remote,
            waited: false,
            failed: None,
            chunk: FIRST_CHUNK,
        };
        if let Some(head) = head {
            new.begin_with(head);
        }
        new
    }

    fn begin_with(&mut self, head: Head) {
        let (Head::Ready { len, .. } | Head::Reading { len, .. }) = head;
        let (here, rest) = self.ahead.split_at(len);
        let len = here.len().to_usize();
        let chunk = match head {
            Head::Ready { buf, .. } => {
                Chunk { len, missing: here.split_at(here.len()).1, filled: len, state: State::Ready(buf) }
            }
            Head::Reading { .. } => {
                self.waited = true;
                Chunk { len, missing: here, filled: 0, state: State::Reading }
            }
        };
        self.window = [Some(chunk), None, None, None];
        self.next = 1;
        self.chunk = DATA_LEN;
        self.ahead = rest;
    }

    /// Bytes queued to the host, or verified.
    pub(super) fn moved(&self) -> u64 {
        self.moved
    }

    /// Where the bytes go.
    pub(super) fn sink(&self) -> Sink {
        self.sink
    }

    /// Whether a byte so far was not at hand when it was asked for.
    pub(super) fn waited(&self) -> bool {
        self.waited
    }

    /// Whether the next bytes for the host are what it waits for.
    pub(super) fn awaits_image(&self) -> bool {
        let next = self.window.get(slot_of(self.first)).and_then(Option::as_ref);
        next.is_some_and(|chunk| matches!(chunk.state, State::Wanting(_) | State::Reading))
    }

    /// Ends here. What it waited for that was not even to be asked for.
    pub(super) fn fail(&mut self, kind: FaultKind) -> Option<ByteRange> {
        self.failed = Some(kind);
        let next = self.window.get(slot_of(self.first)).and_then(Option::as_ref)?;
        matches!(next.state, State::Wanting(_)).then_some(next.missing)
    }

    /// The first block of the command.
    pub(super) fn first(&self, block: BlockSize) -> Lba {
        Lba(self.start.0 / u64::from(block.bytes()))
    }

    /// The first block that has not been queued or verified.
    pub(super) fn lba(&self, block: BlockSize) -> Lba {
        Lba((self.start.0 + self.moved) / u64::from(block.bytes()))
    }

    /// Takes a finished read.
    pub(super) fn read_done(&mut self, done: Moved) {
        let Some(slot) = self.window.get_mut(slot_of(done.tag.0)) else { return };
        let Some(chunk @ Chunk { state: State::Reading, .. }) = slot else { return };
        chunk.state = match (done.result, done.buf) {
            // A read may be short; what comes of its rest tells why.
            (Ok(n @ 1..), Some(buf)) => {
                chunk.fill(n);
                State::Wanting(buf)
            }
            (Ok(_), _) => State::Failed(FaultKind::Truncated),
            (Err(error), _) => State::Failed(FaultKind::from(&error)),
        };
    }

    /// Asks for what fits into the window and queues what is there.
    pub(super) fn pump<E: Endpoints>(
        &mut self,
        medium: &dyn Medium,
        mover: &mut impl Mover,
        pipes: &mut Pipes<E>,
    ) -> Result<Progress, PipeError> {
        if let Some(kind) = self.failed {
            return Ok(Progress::Fault(kind));
        }
        self.go_on(medium, mover);
        self.ask(medium, mover, pipes);
        while let Some(slot) = self.window.get_mut(slot_of(self.first)) {
            match slot.take() {
                Some(Chunk { state: State::Ready(buf), len, missing, filled }) => {
                    if self.sink == Sink::Host && pipes.queued(Pipe::In) >= QUEUED {
                        *slot = Some(Chunk { state: State::Ready(buf), len, missing, filled });
                        return Ok(Progress::Going);
                    }
                    self.first = self.first.wrapping_add(1);
                    self.send(buf, len, pipes)?;
                }
                Some(Chunk { state: State::Failed(kind), .. }) => return Ok(Progress::Fault(kind)),
                Some(chunk) => {
                    *slot = Some(chunk);
                    return Ok(Progress::Going);
                }
                None => break,
            }
            self.ask(medium, mover, pipes);
        }
        Ok(if self.ahead.is_empty() { Progress::Done } else { Progress::Going })
    }

    fn send<E: Endpoints>(&mut self, buf: Buf, len: usize, pipes: &mut Pipes<E>) -> Result<(), PipeError> {
        self.moved += ByteLen::from(len).0;
        let is_last = self.ahead.is_empty() && self.first == self.next;
        let fits = self.ahead.len() <= ByteLen::from(DATA_LEN * UNHEARD);
        let wake = if !fits && self.first.is_multiple_of(WAKE_EVERY) { Wake::Now } else { Wake::Later };
        match self.sink {
            Sink::Host => pipes.send_data(buf, len, wake)?,
            Sink::Nowhere => drop(buf),
        }
        // The host takes this chunk while we read the next. The last goes together with the CSW.
        if !is_last {
            pipes.flush();
        }
        Ok(())
    }

    /// Asks for more of the chunks whose reads were short, or whose bytes were not to be had yet.
    fn go_on(&mut self, medium: &dyn Medium, mover: &mut impl Mover) {
        let mut tag = self.first;
        while tag != self.next {
            if let Some(chunk) = self.window.get_mut(slot_of(tag)).and_then(Option::as_mut) {
                chunk.gather(medium, mover, &mut self.immediate, tag);
            }
            tag = tag.wrapping_add(1);
        }
    }

    fn ask<E: Endpoints>(&mut self, medium: &dyn Medium, mover: &mut impl Mover, pipes: &Pipes<E>) {
        while !self.ahead.is_empty() {
            let Some(slot @ None) = self.window.get_mut(slot_of(self.next)) else { return };
            // A read by the ring costs more than its bytes, and there are others beside it: the largest.
            let chunk = if self.immediate { self.chunk } else { DATA_LEN };
            let (missing, rest) = self.ahead.split_at(chunk.into());
            let Some(buf) = pipes.data() else { return };
            let len = missing.len().to_usize();
            let chunk = slot.insert(Chunk { len, missing, filled: 0, state: State::Wanting(buf) });
            let at_hand = chunk.gather(medium, mover, &mut self.immediate, self.next);
            self.ahead = rest;
            self.next = self.next.wrapping_add(1);
            if at_hand {
                self.chunk = (self.chunk * GROWTH).min(DATA_LEN);
                // To be sent before the next is read.
                return;
            }
            self.waited |= !matches!(chunk.state, State::Ready(_) | State::Failed(_));
        }
    }
}

impl Chunk {
    fn fill(&mut self, n: usize) {
        self.missing = self.missing.split_at(n.into()).1;
        self.filled = (self.filled + n).min(self.len);
    }

    /// Asks for what is missing, as far as that goes now. Whether all of it was in a file and in memory.
    fn gather(
        &mut self,
        medium: &dyn Medium,
        mover: &mut impl Mover,
        immediate: &mut bool,
        tag: u32,
    ) -> bool {
        let mut at_hand = false;
        loop {
            let mut buf = match std::mem::replace(&mut self.state, State::Reading) {
                State::Wanting(buf) if self.filled < self.len => buf,
                State::Wanting(buf) => {
                    self.state = State::Ready(buf);
                    return at_hand;
                }
                other => {
                    self.state = other;
                    return false;
                }
            };
            match medium.map(self.missing) {
                Extent::File { file, offset, len } => {
                    let part = self.part(len);
                    *immediate &= read_now(medium, mover, &file, offset, &mut buf, part.clone());
                    if !*immediate {
                        // If the ring is full: asked again after its next completion.
                        if let Err(buf) = mover.read(&file, offset, buf, part, OpTag(tag)) {
                            self.state = State::Wanting(buf);
                        }
                        return false;
                    }
                    at_hand = true;
                    self.fill(part.len());
                }
                Extent::Zero { len } => {
                    let part = self.part(len);
                    if let Some(bytes) = buf.get_mut(part.clone()) {
                        bytes.fill(0);
                    }
                    self.fill(part.len());
                }
                // Asked again when the medium wakes us.
                Extent::Pending { .. } => {
                    self.state = State::Wanting(buf);
                    return false;
                }
                Extent::Fault { kind, .. } => {
                    self.state = State::Failed(kind);
                    return false;
                }
            }
            self.state = State::Wanting(buf);
        }
    }

    /// Where in the buffer the next `len` bytes go.
    fn part(&self, len: ByteLen) -> Range<usize> {
        self.filled..self.filled + len.min(self.missing.len()).to_usize()
    }
}

/// Reads into `part` of `buf`, if the bytes are at hand.
pub(super) fn read_now(
    medium: &dyn Medium,
    mover: &mut impl Mover,
    file: &Arc<File>,
    at: ByteOffset,
    buf: &mut Buf,
    part: Range<usize>,
) -> bool {
    let Some(to) = buf.get_mut(part) else { return false };
    match medium.residence() {
        Residence::Memory => mover.read_now(file, at, to, Wait::ForMemory),
        Residence::Local => mover.read_now(file, at, to, Wait::Never),
        Residence::Remote => false,
    }
}

fn slot_of(tag: u32) -> usize {
    ByteLen::from(tag).to_usize() % WINDOW
}
