//! Commands of several steps: those that compare, WRITE SAME and UNMAP (SBC-3).
//!
//! ```text
//!   Take ─► Begin ─► VERIFY, BYTCHK 01b ─────────────► Compare ─► Take the next piece, or Done
//!    ▲  │        ├─► VERIFY, BYTCHK 11b ─────────────► Compare piece by piece ─────► Done
//!    └──┘        ├─► WRITE AND VERIFY ─────► Write ──► Compare ─► Take the next piece, or Done
//!   until the    ├─► COMPARE AND WRITE ────► Compare ─► Write ───────────────────► Done
//!   bytes are    ├─► WRITE SAME ───────────► Write piece by piece, or Punch ─► Store ─► Done
//!   there        └─► UNMAP ────────────────► Punch range by range ──────────► Store ─► Done
//!                                 any step ─► Done, with what went wrong
//! ```
//! One thing is under way at a time, with the OUT pipe or with the ring, and no more than two buffers are in use. Nothing here is
//! fast; the paths that must be are `data_in` and `data_out`. What only compares ends as a read does, by `look`. Called by `function` and `phases`. A reset drops the whole state:
//! what is under way then comes back to nobody, and the next command waits for it as for any other.

use crate::{
    bot::DataPhase,
    gadget::endpoints::{EndpointDone, Endpoints},
    media::{Extent, FaultKind, Medium},
    ring::{MoveOp, Moved, Mover, OpTag, pool::Buf},
    scsi::{self, Compound as Op, Pending, Sense, Status, UnmapList, sense},
    units::{BlockSize, ByteLen, ByteOffset, ByteRange, Lba},
};

use super::{
    data_out::{self, DataOut},
    fault::{self, Way},
    flights::{On, Owner},
    function::{Function, OutEnd, Phase},
    loaded,
    look::{ReadEnd, ReadMoved},
    pipes::{PipeError, Pipes, data_tag},
};

/// What comes next, once nothing is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// Ask the host for bytes.
    Take,
    /// The host's bytes are there.
    Begin,
    /// Read from the image what the host's bytes are compared with.
    Compare,
    /// Write the host's bytes.
    Write,
    /// Make a hole.
    Punch,
    /// Make it durable, where that is promised.
    Store,
    /// Nothing.
    Done(Result<(), Failure>),
}

/// Why it ended before its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Failure {
    /// The image.
    Fault { kind: FaultKind, way: Way, lba: Option<Lba> },
    /// The host, or what it sent.
    Told(Sense),
}

#[derive(Debug)]
pub(super) struct Compound {
    op: Op,
    block: BlockSize,
    step: Step,
    /// The pipe or the ring has something of ours.
    waiting: bool,
    /// Bytes that the host will send and that were not yet asked for.
    left: u32,
    /// Of the bytes to come, those that the command takes.
    keep: usize,
    /// Bytes that it has taken.
    taken: u32,
    /// The host's bytes at work, and how many.
    host: Option<Buf>,
    have: usize,
    /// How many of them were compared; with one block for all, how many bytes of the image were.
    compared: usize,
    /// How many bytes of the piece at work were written.
    stored: usize,
    /// All of the image that it is about, and what is still to be done of it.
    whole: ByteRange,
    ahead: ByteRange,
    list: Option<UnmapList>,
    /// Ranges of the list that were dealt with.
    punched: usize,
}

impl Compound {
    /// `whole` is empty for UNMAP. `phase` is what host and device agreed to move.
    fn new(op: Op, block: BlockSize, whole: ByteRange, phase: DataPhase) -> Self {
        let (left, keep) = match phase {
            DataPhase::Out { receive, keep } => (receive, ByteLen::from(keep).to_usize()),
            DataPhase::None | DataPhase::In { .. } => (0, 0),
        };
        let step = if keep > 0 { Step::Take } else { Step::Begin };
        Self {
            op,
            block,
            step,
            waiting: false,
            left,
            keep,
            taken: 0,
            host: None,
            have: 0,
            compared: 0,
            stored: 0,
            whole,
            ahead: whole,
            list: None,
            punched: 0,
        }
    }

    /// Goes on as far as it can; the result, once it is done.
    fn pump<E: Endpoints>(
        &mut self,
        image: &dyn Medium,
        medium: &scsi::Medium,
        mover: &mut On<'_, impl Mover>,
        pipes: &mut Pipes<E>,
    ) -> Result<Option<Result<(), Failure>>, PipeError> {
        while !self.waiting {
            let went = match self.step {
                Step::Take => self.take(pipes)?,
                Step::Begin => self.begin(medium, pipes),
                Step::Compare => self.compare(image, mover, pipes),
                Step::Write => self.write(image, mover),
                Step::Punch => self.punch(image, mover),
                Step::Store => self.store(image, mover),
                Step::Done(result) => return Ok(Some(result)),
            };
            // All buffers are in use, the ring has no room, or the image has not fetched the bytes yet: again when that changes.
            if went.is_none() {
                break;
            }
        }
        Ok(None)
    }

    /// Never more than what remains, in whole packets: a larger request would swallow the next CBW (kernel.md §1.4).
    fn take<E: Endpoints>(&mut self, pipes: &mut Pipes<E>) -> Result<Option<()>, PipeError> {
        let Some(buf) = pipes.data() else { return Ok(None) };
        let want = self.left.min(data_out::CHUNK);
        let whole_packets = ByteLen::from(want).to_usize().next_multiple_of(pipes.max_packet().max(1));
        pipes.receive(buf, whole_packets, data_tag(want))?;
        self.left -= want;
        self.waiting = true;
        Ok(Some(()))
    }

    /// A piece of the host's bytes has come.
    fn received(&mut self, done: EndpointDone) {
        self.waiting = false;
        let want = ByteLen::from(done.tag.0).to_usize();
        let came = done.result.unwrap_or(0).min(want);
        let kept = came.min(self.keep);
        self.keep -= kept;
        self.taken = self.taken.saturating_add(u32::try_from(kept).unwrap_or(u32::MAX));
        match &mut self.host {
            None => self.host = Some(done.buf),
            // What a command takes at once fits one buffer.
            Some(host) => {
                let to = host.get_mut(self.have..).unwrap_or_default();
                to.iter_mut().zip(done.buf.iter().take(kept)).for_each(|(to, byte)| *to = *byte);
            }
        }
        self.have += kept;
        if came < want {
            self.left = 0;
        }
        self.step = if self.keep > 0 && self.left == 0 {
            Step::Done(Err(Failure::Told(sense::DATA_PHASE_ERROR)))
        } else if self.keep > 0 && !self.is_stream() {
            Step::Take
        } else {
            Step::Begin
        };
    }

    /// Whether each piece of the host's bytes is dealt with before the next.
    fn is_stream(&self) -> bool {
        matches!(self.op, Op::Compare(_) | Op::WriteAndVerify(_))
    }

    /// Whether it leaves the image as it is.
    fn only_compares(&self) -> bool {
        matches!(self.op, Op::Compare(_) | Op::CompareEach(_))
    }

    fn first(&self) -> Lba {
        Lba(self.whole.start().0 / u64::from(self.block.bytes()))
    }

    fn begin<E: Endpoints>(&mut self, medium: &scsi::Medium, pipes: &Pipes<E>) -> Option<()> {
        self.step = match self.op {
            Op::Compare(_) | Op::CompareEach(_) | Op::CompareAndWrite { .. } => Step::Compare,
            Op::WriteAndVerify(_) => Step::Write,
            Op::WriteSame { unmap, .. } => {
                let mut host = self.host.take().or_else(|| pipes.data())?;
                let zeroes = self.spread(&mut host);
                self.host = Some(host);
                if unmap && zeroes { Step::Punch } else { Step::Write }
            }
            Op::Unmap { .. } => match UnmapList::check(self.host_bytes(), medium) {
                Ok(list) => {
                    self.list = Some(list);
                    Step::Punch
                }
                Err(sense) => Step::Done(Err(Failure::Told(sense))),
            },
        };
        Some(())
    }

    /// Repeats the one block that came, or zeroes if none did, as far as the buffer and the command go; whether it is zeroes.
    fn spread(&mut self, host: &mut Buf) -> bool {
        let (have, len) = (self.have, host.len().min(self.whole.len().to_usize()));
        let zeroes = host.iter().take(have).all(|byte| *byte == 0);
        if zeroes {
            host.get_mut(..len).unwrap_or_default().fill(0);
        } else {
            (have..len).step_by(have.max(1)).for_each(|at| host.copy_within(..have.min(len - at), at));
        }
        self.have = len;
        zeroes
    }

    fn host_bytes(&self) -> &[u8] {
        self.host.as_ref().and_then(|host| host.get(..self.have)).unwrap_or_default()
    }

    /// How much of what is ahead the host's bytes at work are for.
    fn share(&self) -> ByteLen {
        match self.op {
            // Of COMPARE AND WRITE the first half; `ahead` shrinks with it.
            Op::CompareEach(_) | Op::CompareAndWrite { .. } => self.ahead.len(),
            _ => ByteLen::from(self.have - self.compared.min(self.have)).min(self.ahead.len()),
        }
    }

    fn compare<E: Endpoints>(
        &mut self,
        image: &dyn Medium,
        mover: &mut impl Mover,
        pipes: &Pipes<E>,
    ) -> Option<()> {
        let mut buf = pipes.data()?;
        let here = self.ahead.split_at(self.share().min(buf.len().into())).0;
        match image.map(here) {
            Extent::File { file, offset, len } => {
                let len = len.min(here.len()).to_usize();
                match mover.read(&file, offset, buf, 0..len, OpTag(0)) {
                    Ok(()) => self.waiting = true,
                    Err(_) => self.fail(FaultKind::Interrupted, Way::Read),
                }
            }
            Extent::Zero { len } => {
                let len = len.min(here.len()).to_usize();
                if let Some(bytes) = buf.get_mut(..len) {
                    bytes.fill(0);
                    self.weigh(bytes);
                }
            }
            Extent::Pending { .. } => return None,
            Extent::Fault { kind, .. } => self.fail(kind, Way::Read),
        }
        Some(())
    }

    /// Compares the next bytes of the image with the host's.
    fn weigh(&mut self, bytes: &[u8]) {
        let host = self.host_bytes();
        let differs = match self.op {
            Op::CompareEach(_) => {
                let at = self.compared.checked_rem(host.len()).unwrap_or(0);
                first_difference(bytes, host.iter().cycle().skip(at))
            }
            _ => first_difference(bytes, host.iter().skip(self.compared)),
        };
        if let Some(at) = differs {
            let sense = match self.op {
                // SBC-3, COMPARE AND WRITE: the offset of the first byte that differs.
                Op::CompareAndWrite { .. } => {
                    sense::MISCOMPARE_DURING_VERIFY.with_information(ByteLen::from(self.compared + at).0)
                }
                _ => sense::MISCOMPARE_DURING_VERIFY,
            };
            self.step = Step::Done(Err(Failure::Told(sense)));
            return;
        }
        self.compared += bytes.len();
        self.ahead = self.ahead.split_at(bytes.len().into()).1;
        self.step = match self.op {
            Op::CompareAndWrite { .. } if self.ahead.is_empty() => {
                let (half, have) = (self.compared, self.have);
                if let Some(host) = &mut self.host {
                    host.copy_within(half.min(have)..have, 0);
                }
                self.have = half;
                self.ahead = self.whole;
                Step::Write
            }
            Op::WriteAndVerify(_) if self.ahead.is_empty() => Step::Store,
            _ if self.ahead.is_empty() => Step::Done(Ok(())),
            Op::Compare(_) | Op::WriteAndVerify(_) if self.compared >= self.have => {
                (self.host, self.have, self.compared) = (None, 0, 0);
                Step::Take
            }
            _ => Step::Compare,
        };
    }

    fn write(&mut self, image: &dyn Medium, mover: &mut impl Mover) -> Option<()> {
        let piece = self.ahead.split_at(self.have.into()).0;
        let here = piece.split_at(self.stored.into()).1;
        let durable = match self.op {
            Op::WriteAndVerify(_) => true,
            Op::CompareAndWrite { fua, .. } => fua,
            _ => false,
        };
        let durable = durable && image.own_store().is_none();
        let extent = image.map_write(here);
        if matches!(extent, Extent::Pending { .. }) {
            return None;
        }
        match (extent, self.host.take()) {
            // The rest of it may be elsewhere.
            (Extent::File { file, offset, len }, Some(buf)) if image.writable() && len.0 > 0 => {
                let part = self.stored..self.stored + len.to_usize();
                match mover.write(&file, offset, buf, part, durable, OpTag(0)) {
                    Ok(()) => self.waiting = true,
                    Err(_) => self.fail(FaultKind::Interrupted, Way::Write),
                }
            }
            (Extent::Fault { kind, .. }, _) => self.fail(kind, Way::Write),
            // Scsi let no write through to any other.
            (_, _) => self.fail(FaultKind::ReadOnly, Way::Write),
        }
        Some(())
    }

    fn punch(&mut self, image: &dyn Medium, mover: &mut impl Mover) -> Option<()> {
        let here = match self.list {
            None => (self.punched == 0).then_some(self.whole),
            Some(list) => {
                list.range(self.host_bytes(), self.punched).and_then(|range| self.block.byte_range(range))
            }
        };
        let Some(here) = here else {
            self.step = Step::Store;
            return Some(());
        };
        self.ahead = here;
        match image.map_write(here) {
            _ if here.is_empty() => {}
            Extent::Pending { .. } => return None,
            Extent::File { file, offset, len } if len == here.len() => {
                if !mover.punch(&file, offset, len, OpTag(0)) {
                    return None;
                }
                self.waiting = true;
            }
            Extent::Fault { kind, .. } => self.fail(kind, Way::Write),
            Extent::File { .. } | Extent::Zero { .. } => self.fail(FaultKind::ReadOnly, Way::Write),
        }
        self.punched += 1;
        Some(())
    }

    /// An operation on the image has ended.
    fn moved(&mut self, done: Moved, image: &dyn Medium) {
        self.waiting = false;
        let way = if done.op == MoveOp::Read { Way::Read } else { Way::Write };
        match (done.op, done.result, done.buf) {
            (MoveOp::Sync, Err(error), _) => {
                let sense = fault::sense_of_loss(FaultKind::from(&error));
                self.step = Step::Done(Err(Failure::Told(sense)));
            }
            (_, Err(error), _) => self.fail(FaultKind::from(&error), way),
            // A read or a write may be short; what comes of its rest tells why.
            (MoveOp::Read, Ok(n @ 1..), Some(buf)) => self.weigh(buf.get(..n).unwrap_or_default()),
            (MoveOp::Read, Ok(_), _) => self.fail(FaultKind::Truncated, way),
            (MoveOp::Write, Ok(n @ 1..), buf) => {
                self.host = buf;
                let here = self.ahead.split_at(self.have.into()).0.split_at(self.stored.into()).1;
                match image.written(here.split_at(n.into()).0) {
                    Ok(kept @ ByteLen(1..)) => self.written(kept.to_usize()),
                    Ok(_) => self.fail(FaultKind::NoSpace, way),
                    Err(kind) => self.fail(kind, way),
                }
            }
            (MoveOp::Write, Ok(_), _) => self.fail(FaultKind::NoSpace, way),
            (MoveOp::Punch, Ok(_), _) => {
                if let Err(kind) = image.written(self.ahead) {
                    self.fail(kind, way);
                }
            }
            (MoveOp::Stat, Ok(_), _) => {}
            (MoveOp::Sync, Ok(_), _) => self.step = Step::Done(Ok(())),
        }
    }

    fn written(&mut self, len: usize) {
        let piece = self.ahead.split_at(self.have.into()).0.len();
        self.stored += len;
        if self.stored < piece.to_usize() {
            return;
        }
        self.stored = 0;
        if matches!(self.op, Op::WriteAndVerify(_)) {
            self.step = Step::Compare;
            return;
        }
        self.ahead = self.ahead.split_at(piece).1;
        if self.ahead.is_empty() {
            self.step = Step::Store;
        }
    }

    /// Single writes are durable by themselves where they must be, unless the medium stores by itself.
    fn store(&mut self, image: &dyn Medium, mover: &mut On<'_, impl Mover>) -> Option<()> {
        let durable = match self.op {
            Op::WriteSame { durable, .. } | Op::Unmap { durable, .. } => durable,
            Op::CompareAndWrite { fua, .. } => fua && image.own_store().is_some(),
            Op::WriteAndVerify(_) => image.own_store().is_some(),
            Op::Compare(_) | Op::CompareEach(_) => false,
        };
        match image.file_for_sync().is_some() && durable {
            false => self.step = Step::Done(Ok(())),
            true if mover.store(image, OpTag(0)) => self.waiting = true,
            // There may be no room on the ring.
            true => return None,
        }
        Some(())
    }

    /// Whether it waits for its image, not for the host.
    pub(super) fn awaits_image(&self) -> bool {
        matches!(self.step, Step::Compare | Step::Write | Step::Punch | Step::Store)
    }

    pub(super) fn left_of_image(&self) -> u64 {
        self.ahead.len().0
    }

    /// Ends here, whatever is still under way.
    pub(super) fn give_up(&mut self, kind: FaultKind) {
        self.waiting = false;
        self.fail(kind, if self.step == Step::Compare { Way::Read } else { Way::Write });
    }

    fn fail(&mut self, kind: FaultKind, way: Way) {
        let lba = Lba(self.ahead.start().0 / u64::from(self.block.bytes()));
        self.step = Step::Done(Err(Failure::Fault { kind, way, lba: Some(lba) }));
    }
}

fn first_difference<'a>(bytes: &[u8], host: impl Iterator<Item = &'a u8>) -> Option<usize> {
    bytes.iter().zip(host).position(|(byte, host)| byte != host)
}

impl<E: Endpoints, M: Mover> Function<E, M> {
    /// Starts an operation on a quiet image.
    pub(super) fn start_compound(&mut self, op: Op, pending: Pending) -> Result<(), PipeError> {
        let medium = self.target.unit(self.open.lun).and_then(scsi::Unit::medium);
        let whole = match (op.range(), medium) {
            (Some(range), Some(medium)) => medium.block_size.byte_range(range),
            _ => ByteRange::new(ByteOffset(0), ByteLen(0)),
        };
        let (Some(medium), Some(whole)) = (medium, whole) else {
            return self.complete(pending, Err(sense::LBA_OUT_OF_RANGE));
        };
        let data = Compound::new(op, medium.block_size, whole, self.open.data);
        self.phase = Phase::Compound { data, pending };
        self.pump_compound()
    }

    pub(super) fn compound_received(&mut self, done: EndpointDone) -> Result<(), PipeError> {
        let Phase::Compound { data, .. } = &mut self.phase else { return Ok(()) };
        data.received(done);
        self.pump_compound()
    }

    pub(super) fn compound_moved(&mut self, done: Moved) -> Result<(), PipeError> {
        if let (MoveOp::Sync, Err(error)) = (done.op, &done.result) {
            self.note_unstored(self.open.lun, error);
        }
        let Phase::Compound { data, .. } = &mut self.phase else { return Ok(()) };
        if let Some(image) = loaded::image_of(&self.drives, self.open.lun) {
            data.moved(done, image);
        }
        self.pump_compound()
    }

    pub(super) fn pump_compound(&mut self) -> Result<(), PipeError> {
        let Phase::Compound { data, .. } = &mut self.phase else { return Ok(()) };
        let lun = self.open.lun;
        let loaded = self.drives.get(usize::from(lun)).and_then(|drive| drive.loaded.as_ref());
        let medium = self.target.unit(lun).and_then(scsi::Unit::medium);
        let ended = match (loaded, medium) {
            (Some(loaded), Some(medium)) => {
                let mut mover = self.mover.on(loaded.purpose(Owner::Command, lun));
                data.pump(&*loaded.image, medium, &mut mover, &mut self.pipes)?
            }
            _ => Some(Err(Failure::Fault { kind: FaultKind::Gone, way: Way::Read, lba: None })),
        };
        let Some(ended) = ended else { return Ok(()) };
        let Phase::Compound { data, pending } = std::mem::replace(&mut self.phase, Phase::Idle) else {
            return Ok(());
        };
        if data.only_compares() {
            let (fault, result) = match ended {
                Ok(()) => (None, Ok(())),
                Err(Failure::Fault { kind, lba, .. }) => (Some((kind, lba.unwrap_or(data.first()))), Ok(())),
                Err(Failure::Told(sense)) => (None, Err(sense)),
            };
            let moved = ReadMoved::Out { moved: data.taken, left: data.left };
            return self.end_read(ReadEnd { pending, first: data.first(), moved, result }, fault);
        }
        let result = ended.map_err(|failure| match failure {
            Failure::Fault { kind, way, lba } => self.fault(kind, way, lba),
            Failure::Told(sense) => sense,
        });
        let status = self.target.complete(pending, result);
        self.drop_rest(status, data.left, data.taken)
    }

    /// Ends a command of which the host may still insist on sending bytes that nobody takes.
    pub(super) fn drop_rest(&mut self, status: Status, left: u32, moved: u32) -> Result<(), PipeError> {
        if left == 0 {
            return self.end(status, moved);
        }
        let data = DataOut::new(left, 0, data_out::Sink::Nowhere);
        self.phase = Phase::Out { data, end: OutEnd::Moved { status, moved } };
        self.pump_out()
    }
}
