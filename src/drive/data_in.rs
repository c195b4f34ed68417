//! A data-in phase with an image behind it, and VERIFY, which is the same without a host.
//!
//! ```text
//!   map ──► read (ring) ──► [window, in order] ──► send (IN pipe)
//! ```
//! Up to [`WINDOW`] reads are under way at once and may end in any order; the bytes leave in order. The first chunk is small, so
//! that the host gets its first packet early. Called by `function`; owns no buffer that the ring or an engine holds.

use crate::{
    gadget::endpoints::{Endpoints, Pipe, Wake},
    media::{Extent, FaultKind, Medium},
    ring::{Moved, Mover, OpTag, Payload, window::Windows},
    units::{BlockSize, ByteLen, ByteOffset, ByteRange, Lba},
};

use super::pipes::{PipeError, Pipes};

/// Reads under way at once.
const WINDOW: usize = 8;
/// The first chunk of a larger phase.
const FIRST_CHUNK: ByteLen = ByteLen(16 * 1024);

/// Requests queued to the host at once; with those in the window no more than there are buffers.
const QUEUED: u32 = 8;
/// One in so many of them wakes us to queue more. Divides [`QUEUED`], so that a full queue always has one.
const WAKE_EVERY: u32 = 4;

/// Where the bytes come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// The page cache, where they are in it; else as [`Source::Ring`].
    PageCache,
    /// Reads by the ring.
    Ring,
}

/// Where the bytes of the phase go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sink {
    /// To the host.
    Host(Source),
    /// Nowhere: they only have to be readable (SBC-3 VERIFY with BYTCHK 00b).
    Nowhere,
}

#[derive(Debug)]
enum Chunk {
    /// The ring reads the first `file` bytes; the rest, up to `len`, are zeroes behind the end of the image.
    Reading { file: usize, len: usize },
    /// The first `len` bytes of the buffer are next.
    Ready { bytes: Payload, len: usize },
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
}

impl DataIn {
    /// For the first `len` bytes of `range`: the host may want fewer than the command has (BOT 1.0 §6.7.2, case 7).
    pub(super) fn new(range: ByteRange, len: ByteLen, sink: Sink) -> Self {
        let ahead = range.split_at(len).0;
        Self {
            sink,
            start: range.start(),
            ahead,
            moved: 0,
            window: [const { None }; WINDOW],
            first: 0,
            next: 0,
        }
    }

    /// Bytes queued to the host, or verified.
    pub(super) fn moved(&self) -> u64 {
        self.moved
    }

    /// Where the bytes go.
    pub(super) fn sink(&self) -> Sink {
        self.sink
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
                Chunk::Ready { bytes: Payload::Buf(buf), len }
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
        windows: &mut Windows,
        pipes: &mut Pipes<E>,
    ) -> Result<Progress, PipeError> {
        self.ask(medium, mover, windows, pipes);
        while let Some(slot) = self.window.get_mut(slot_of(self.first)) {
            match slot.take() {
                ready @ Some(Chunk::Ready { .. })
                    if self.sink != Sink::Nowhere && pipes.queued(Pipe::In) >= QUEUED =>
                {
                    *slot = ready;
                    return Ok(Progress::Going);
                }
                Some(Chunk::Ready { bytes, len }) => {
                    self.first = self.first.wrapping_add(1);
                    self.moved += ByteLen::from(len).0;
                    let is_last = self.ahead.is_empty() && self.first == self.next;
                    let wake = if !is_last && self.first.is_multiple_of(WAKE_EVERY) {
                        Wake::Now
                    } else {
                        Wake::Later
                    };
                    match self.sink {
                        Sink::Host(_) => pipes.send_data(bytes, len, wake)?,
                        Sink::Nowhere => drop(bytes),
                    }
                }
                Some(Chunk::Failed(kind)) => return Ok(Progress::Fault(kind)),
                reading @ Some(Chunk::Reading { .. }) => {
                    *slot = reading;
                    return Ok(Progress::Going);
                }
                None => break,
            }
            self.ask(medium, mover, windows, pipes);
        }
        Ok(if self.ahead.is_empty() { Progress::Done } else { Progress::Going })
    }

    fn ask<E: Endpoints>(
        &mut self,
        medium: &dyn Medium,
        mover: &mut impl Mover,
        windows: &mut Windows,
        pipes: &Pipes<E>,
    ) {
        while !self.ahead.is_empty() {
            let Some(slot @ None) = self.window.get_mut(slot_of(self.next)) else { return };
            let chunk = ByteLen::from(pipes.chunk());
            let small = self.next == 0 && self.ahead.len() > chunk;
            let (mut want, mut rest) =
                self.ahead.split_at(if small { FIRST_CHUNK.min(chunk) } else { chunk });
            let extent = medium.map(want);
            if self.sink == Sink::Host(Source::PageCache)
                && let Extent::File { file, offset, len } = &extent
                && *len == want.len()
                && let Some(piece) = windows.piece(file, *offset, len.to_usize())
            {
                *slot = Some(Chunk::Ready { bytes: Payload::Piece(piece), len: len.to_usize() });
                self.ahead = rest;
                self.next = self.next.wrapping_add(1);
                continue;
            }
            let Some(mut buf) = pipes.data() else { return };
            let made = match extent {
                Extent::File { file, offset, len } => {
                    // Only the last extent of an image may end off a packet boundary, with the padding of its last block behind.
                    if len < want.len() && !is_padding(medium, want, len) {
                        (want, rest) = self.ahead.split_at(len);
                    }
                    let bytes = len.min(want.len()).to_usize();
                    match mover.read(&file, offset, buf, bytes, OpTag(self.next)) {
                        Ok(()) => Chunk::Reading { file: bytes, len: want.len().to_usize() },
                        // The ring is full: asked again after its next completion.
                        Err(_) => return,
                    }
                }
                Extent::Zero { len } => {
                    (want, rest) = self.ahead.split_at(len.min(want.len()));
                    let len = want.len().to_usize();
                    buf.iter_mut().take(len).for_each(|byte| *byte = 0);
                    Chunk::Ready { bytes: Payload::Buf(buf), len }
                }
                Extent::Fault { kind, .. } => Chunk::Failed(kind),
            };
            *slot = Some(made);
            self.ahead = rest;
            self.next = self.next.wrapping_add(1);
        }
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
