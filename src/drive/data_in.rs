//! A data-in phase with an image behind it, and VERIFY, which is the same without a host.
//!
//! ```text
//!   map ──► in memory? read at once ──────────────────────────┐
//!       └─► else read by the ring ──► [window, in order] ──► send (IN pipe)
//! ```
//! Up to [`WINDOW`] reads are under way at once and may end in any order; the bytes leave in order. The first chunk is small, so
//! that the host gets its first packet early. Called by `phases`; owns no buffer that the ring or an engine holds.

use std::{fs::File, sync::Arc};

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

#[derive(Debug)]
enum Chunk {
    /// The ring reads the first `file` bytes; the rest, up to `len`, are zeroes behind the end of the image.
    Reading { file: usize, len: usize },
    /// The first `len` bytes of the buffer are next.
    Ready { buf: Buf, len: usize },
    /// These bytes cannot be had.
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
            Head::Ready { buf, .. } => Chunk::Ready { buf, len },
            Head::Reading { file, .. } => {
                self.waited = true;
                Chunk::Reading { file: file.to_usize(), len }
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

    /// The first block that has not been queued or verified.
    pub(super) fn lba(&self, block: BlockSize) -> Lba {
        Lba((self.start.0 + self.moved) / u64::from(block.bytes()))
    }

    /// Takes a finished read.
    pub(super) fn read_done(&mut self, done: Moved) {
        let Some(slot) = self.window.get_mut(slot_of(done.tag.0)) else { return };
        let Some(Chunk::Reading { file, len }) = *slot else { return };
        *slot = Some(match (done.result, done.buf) {
            (Ok(n), Some(mut buf)) if n == file => {
                if let Some(tail) = buf.get_mut(file..len) {
                    tail.fill(0);
                }
                Chunk::Ready { buf, len }
            }
            (Ok(_), _) => Chunk::Failed(FaultKind::Truncated),
            (Err(error), _) => Chunk::Failed(FaultKind::from(&error)),
        });
    }

    /// Asks for what fits into the window and queues what is there.
    pub(super) fn pump<E: Endpoints>(
        &mut self,
        medium: &dyn Medium,
        mover: &mut impl Mover,
        pipes: &mut Pipes<E>,
    ) -> Result<Progress, PipeError> {
        self.ask(medium, mover, pipes);
        while let Some(slot) = self.window.get_mut(slot_of(self.first)) {
            match slot.take() {
                ready @ Some(Chunk::Ready { .. })
                    if self.sink == Sink::Host && pipes.queued(Pipe::In) >= QUEUED =>
                {
                    *slot = ready;
                    return Ok(Progress::Going);
                }
                Some(Chunk::Ready { buf, len }) => {
                    self.first = self.first.wrapping_add(1);
                    self.moved += ByteLen::from(len).0;
                    let is_last = self.ahead.is_empty() && self.first == self.next;
                    let fits = self.ahead.len() <= ByteLen::from(DATA_LEN * UNHEARD);
                    let wake =
                        if !fits && self.first.is_multiple_of(WAKE_EVERY) { Wake::Now } else { Wake::Later };
                    match self.sink {
                        Sink::Host => pipes.send_data(buf, len, wake)?,
                        Sink::Nowhere => drop(buf),
                    }
                    // The host takes this chunk while we read the next. The last goes together with the CSW.
                    if !is_last {
                        pipes.flush();
                    }
                }
                Some(Chunk::Failed(kind)) => return Ok(Progress::Fault(kind)),
                reading @ Some(Chunk::Reading { .. }) => {
                    *slot = reading;
                    return Ok(Progress::Going);
                }
                None => break,
            }
            self.ask(medium, mover, pipes);
        }
        Ok(if self.ahead.is_empty() { Progress::Done } else { Progress::Going })
    }

    fn ask<E: Endpoints>(&mut self, medium: &dyn Medium, mover: &mut impl Mover, pipes: &Pipes<E>) {
        while !self.ahead.is_empty() {
            let Some(slot @ None) = self.window.get_mut(slot_of(self.next)) else { return };
            // A read by the ring costs more than its bytes, and there are others beside it: the largest.
            let chunk = if self.immediate { self.chunk } else { DATA_LEN };
            let (mut want, mut rest) = self.ahead.split_at(chunk.into());
            let Some(mut buf) = pipes.data() else { return };
            let made = match medium.map(want) {
                Extent::File { file, offset, len }
                    if self.immediate && len == want.len() && {
                        self.immediate = read_now(medium, mover, &file, offset, &mut buf, len);
                        self.immediate
                    } =>
                {
                    *slot = Some(Chunk::Ready { buf, len: len.to_usize() });
                    self.chunk = (self.chunk * GROWTH).min(DATA_LEN);
                    self.ahead = rest;
                    self.next = self.next.wrapping_add(1);
                    // To be sent before the next is read.
                    return;
                }
                Extent::File { file, offset, len } => {
                    // Only the last extent of an image may end off a packet boundary, with the padding of its last block behind.
                    if len < want.len() && !is_padding(medium, want, len) {
                        (want, rest) = self.ahead.split_at(len);
                    }
                    let bytes = len.min(want.len()).to_usize();
                    match mover.read(&file, offset, buf, bytes, OpTag(self.next)) {
                        Ok(()) => {
                            self.waited = true;
                            Chunk::Reading { file: bytes, len: want.len().to_usize() }
                        }
                        // The ring is full: asked again after its next completion.
                        Err(_) => return,
                    }
                }
                Extent::Zero { len } => {
                    (want, rest) = self.ahead.split_at(len.min(want.len()));
                    let len = want.len().to_usize();
                    buf.iter_mut().take(len).for_each(|byte| *byte = 0);
                    Chunk::Ready { buf, len }
                }
                Extent::Fault { kind, .. } => Chunk::Failed(kind),
            };
            *slot = Some(made);
            self.ahead = rest;
            self.next = self.next.wrapping_add(1);
        }
    }
}

/// Reads `len` bytes into the start of `buf`, if they are at hand.
pub(super) fn read_now(
    medium: &dyn Medium,
    mover: &mut impl Mover,
    file: &Arc<File>,
    at: ByteOffset,
    buf: &mut Buf,
    len: ByteLen,
) -> bool {
    let Some(to) = buf.get_mut(..len.to_usize()) else { return false };
    match medium.residence() {
        Residence::Memory => mover.read_now(file, at, to, Wait::ForMemory),
        Residence::Local => mover.read_now(file, at, to, Wait::Never),
        Residence::Remote => false,
    }
}

fn slot_of(tag: u32) -> usize {
    ByteLen::from(tag).to_usize() % WINDOW
}

/// Whether all of `want` behind its first `len` bytes is padding.
fn is_padding(medium: &dyn Medium, want: ByteRange, len: ByteLen) -> bool {
    let (_, tail) = want.split_at(len);
    matches!(medium.map(tail), Extent::Zero { len } if len == tail.len())
}
