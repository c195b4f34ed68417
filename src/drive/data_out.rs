//! A data-out phase: exact reads from the host, and what becomes of the bytes.
//!
//! ```text
//!   receive (OUT pipe) ──► kept bytes ──► write (ring) ──► stored
//!                     └──► the rest is dropped
//! ```
//! The next chunks are asked for while earlier ones are being written. What is asked for is exactly what remains, in whole packets: a
//! larger request would swallow the next CBW (kernel.md §1.4). A host that ends early with a short packet ends the phase, and
//! whatever is still queued is cancelled. Called by `function`.

use crate::{
    gadget::endpoints::{EndpointDone, Endpoints, Pipe},
    media::{Extent, FaultKind, Medium},
    ring::{Moved, Mover, OpTag, pool::Buf},
    units::{BlockSize, ByteLen, ByteRange},
};

use super::{
    data_in::Progress,
    pipes::{DATA_LEN, PipeError, Pipes, data_tag},
};

/// OUT requests queued at once: one being filled, the others behind it.
const WINDOW: usize = 4;
/// Those, and pieces that came and are not written yet.
const PIECES: usize = 8;
/// The largest of them, which a buffer holds.
pub(super) const CHUNK: u32 = 256 * 1024;
const _: () = assert!(CHUNK as usize == DATA_LEN);
/// The last one of a larger phase is no longer than this, because the host waits until it is written. Whole blocks.
const LAST_CHUNK: u32 = 32 * 1024;

/// What the kept bytes are for.
#[derive(Debug)]
pub(super) enum Sink {
    /// The image, from the start of `ahead`.
    Image {
        /// Where the next kept bytes go.
        ahead: ByteRange,
        /// Only whole blocks are written when the host ends early.
        block: BlockSize,
        /// Stable before the command ends (SBC-3 FUA).
        durable: bool,
    },
    /// A parameter list, that fits into one buffer.
    List(Option<(Buf, usize)>),
    /// Nothing.
    Nowhere,
}

/// Bytes that came and are to be written.
#[derive(Debug)]
struct Piece {
    /// Where what is not written yet goes: the bytes from `from` on.
    place: ByteRange,
    from: usize,
    /// None while the ring has it.
    buf: Option<Buf>,
}

#[derive(Debug)]
pub(super) struct DataOut {
    sink: Sink,
    /// Bytes not yet asked for.
    left: u32,
    /// Bytes that the command still takes; those after it are dropped.
    keep: usize,
    /// Requests that the pipe still holds.
    queued: usize,
    /// What is to be written, in no order; the tag of a write is the place in here.
    pieces: [Option<Piece>; PIECES],
    /// Bytes stored or kept.
    moved: u64,
    fault: Option<FaultKind>,
    ended_early: bool,
}

impl DataOut {
    /// Reads `receive` bytes and gives the first `keep` to `sink`.
    pub(super) fn new(receive: u32, keep: u32, sink: Sink) -> Self {
        let keep = ByteLen::from(keep).to_usize();
        let pieces = [const { None }; PIECES];
        Self { sink, left: receive, keep, queued: 0, pieces, moved: 0, fault: None, ended_early: false }
    }

    /// Bytes stored or kept.
    pub(super) fn moved(&self) -> u64 {
        self.moved
    }

    /// Whether the host sent less than its CBW said.
    pub(super) fn ended_early(&self) -> bool {
        self.ended_early
    }

    /// Whether what was stored is durable before the command ends.
    pub(super) fn is_durable(&self) -> bool {
        matches!(self.sink, Sink::Image { durable: true, .. })
    }

    /// The parameter list, if that is what came.
    pub(super) fn into_list(self) -> Option<(Buf, usize)> {
        match self.sink {
            Sink::List(list) => list,
            Sink::Image { .. } | Sink::Nowhere => None,
        }
    }

    /// Writes what can be written, asks for what fits into the window, and says how far the phase is.
    pub(super) fn pump<E: Endpoints>(
        &mut self,
        image: Option<(&dyn Medium, &mut impl Mover)>,
        pipes: &mut Pipes<E>,
    ) -> Result<Progress, PipeError> {
        match image {
            Some((medium, mover)) => self.write_pieces(medium, mover),
            None => self.give_up(FaultKind::Gone),
        }
        while self.left > 0 && self.queued < WINDOW && self.queued + self.writing() < PIECES {
            let Some(buf) = pipes.data() else { break };
            let all_but_last = self.left.saturating_sub(1) / LAST_CHUNK * LAST_CHUNK;
            let want = if all_but_last == 0 { self.left } else { all_but_last.min(CHUNK) };
            let whole_packets = ByteLen::from(want).to_usize().next_multiple_of(pipes.max_packet().max(1));
            pipes.receive(buf, whole_packets, data_tag(want))?;
            self.queued += 1;
            self.left -= want;
        }
        if self.left > 0 || self.queued > 0 || self.writing() > 0 {
            return Ok(Progress::Going);
        }
        Ok(self.fault.map_or(Progress::Done, Progress::Fault))
    }

    /// Takes a finished OUT request. Errors other than a cancel that we asked for are the caller's to judge before.
    pub(super) fn received<E: Endpoints>(&mut self, done: EndpointDone, pipes: &mut Pipes<E>) {
        self.queued = self.queued.saturating_sub(1);
        let want = ByteLen::from(done.tag.0).to_usize();
        let came = done.result.unwrap_or(0).min(want);
        if came < want && !self.ended_early {
            self.ended_early = true;
            self.left = 0;
            pipes.cancel(Pipe::Out);
        }
        let kept = came.min(self.keep);
        self.keep -= kept;
        if kept > 0 {
            self.store(done.buf, kept);
        }
    }

    /// Takes a finished write.
    pub(super) fn written(&mut self, done: Moved, medium: Option<&dyn Medium>) {
        let Some(slot) = self.pieces.get_mut(ByteLen::from(done.tag.0).to_usize()) else { return };
        let Some(mut piece) = slot.take() else { return };
        match done.result {
            // A write may be short; what comes of its rest tells why.
            Ok(n @ 1..) => {
                let n = match medium.map(|medium| medium.written(piece.place.split_at(n.into()).0)) {
                    Some(Ok(kept @ ByteLen(1..))) => kept.to_usize(),
                    // Too little for the medium to keep: what is in the way of the rest is in the way of all.
                    Some(Ok(_)) => return self.fail(FaultKind::NoSpace),
                    Some(Err(kind)) => return self.fail(kind),
                    None => return self.fail(FaultKind::Gone),
                };
                self.moved += ByteLen::from(n).0;
                piece.from += n;
                piece.place = piece.place.split_at(n.into()).1;
                if !piece.place.is_empty() {
                    piece.buf = done.buf;
                    *slot = Some(piece);
                }
            }
            Ok(_) => self.fail(FaultKind::NoSpace),
            Err(error) => self.fail(FaultKind::from(&error)),
        }
    }

    /// Whether it waits for its image.
    pub(super) fn awaits_image(&self) -> bool {
        self.writing() > 0
    }

    /// Takes what the host still sends, and stores no more of it, whatever is still under way.
    pub(super) fn give_up(&mut self, kind: FaultKind) {
        self.fail(kind);
        self.pieces = [const { None }; PIECES];
    }

    fn fail(&mut self, kind: FaultKind) {
        self.fault.get_or_insert(kind);
    }

    fn writing(&self) -> usize {
        self.pieces.iter().flatten().count()
    }

    fn store(&mut self, buf: Buf, kept: usize) {
        let (ahead, block) = match &mut self.sink {
            Sink::Image { ahead, block, .. } => (ahead, *block),
            // One buffer holds the largest list that scsi asks for, so the list comes in one piece.
            Sink::List(list) => {
                *list = Some((buf, kept));
                self.moved += ByteLen::from(kept).0;
                return;
            }
            Sink::Nowhere => return,
        };
        let len = kept - kept % ByteLen::from(block.bytes()).to_usize();
        let (here, rest) = ahead.split_at(len.into());
        *ahead = rest;
        // There is room, because no more requests were queued.
        if !here.is_empty()
            && let Some(free) = self.pieces.iter_mut().find(|piece| piece.is_none())
        {
            *free = Some(Piece { place: here, from: 0, buf: Some(buf) });
        }
    }

    /// Starts to write what came, as far as its place is at hand and the ring has room.
    fn write_pieces(&mut self, medium: &dyn Medium, mover: &mut impl Mover) {
        let durable = self.is_durable() && medium.own_store().is_none();
        for (slot, tag) in self.pieces.iter_mut().zip(0..) {
            let Some(Piece { place, from, buf: held @ Some(_) }) = slot else { continue };
            let fault = match medium.map_write(*place) {
                _ if self.fault.is_some() => self.fault,
                // The rest of it may be elsewhere.
                Extent::File { file, offset, len } if medium.writable() && len.0 > 0 => {
                    let part = *from..*from + len.to_usize();
                    let write = |buf| mover.write(&file, offset, buf, part, durable, OpTag(tag)).err();
                    *held = held.take().and_then(write);
                    None
                }
                Extent::Pending { .. } => None,
                Extent::Fault { kind, .. } => Some(kind),
                // Scsi let no write through to a medium that is not writable.
                Extent::File { .. } | Extent::Zero { .. } => Some(FaultKind::ReadOnly),
            };
            if fault.is_some() {
                self.fault = fault;
                *slot = None;
            }
        }
    }
}
