//! The phases of a command: from the answer of `scsi` to the CSW.
//!
//! ```text
//!   command ──► answer ─────────────────────────────────────────► conclude ─► end ─► send_csw
//!          └──► media_command ─► Held ─► In ── all queued ──► Look ─────────► end
//!          │                         ├─► Out ── all stored ────────────────► end
//!          │                         ├─► Compound ── done ─► (Out, dropped) ► end
//!          │                         └─► Sync ─ stored ──────────► conclude ─┘
//!          └──► Out (parameter list) ──► Held ─► Sync ──► or at once ──────► end
//! ```
//! `conclude` first takes and drops what the host insists on sending. Called by `function`, which owns the state.

use std::io;
use std::time::Duration;

use crate::{
    bot::{self, CBW_LEN, CSW_LEN, Command, CommandStatus, DataEnd, DataPhase, Intent},
    gadget::endpoints::{EndpointDone, Endpoints, Wake},
    media::{Allocation, FaultKind},
    ring::{Mover, OpTag, pool::Buf},
    scsi::{Compound, ListReply, MediaOp, Pending, Reply, Sense, Status, Unit, lba_status, sense},
    units::{BlockRange, BlockSize, Blocks, ByteLen, ByteRange},
};

use super::{
    data_in::{self, DataIn, Progress},
    data_out::{self, DataOut},
    fault::Way,
    flights::{Interest, Owner, Purpose},
    function::{Function, Open, OutEnd, Phase},
    handover::{self, Behind, Last},
    look::{ReadEnd, ReadMoved},
    pipes::PipeError,
    statistics::{Outcome, Transfer},
};

impl<E: Endpoints, M: Mover> Function<E, M> {
    /// The read of a CBW is done.
    pub(super) fn cbw(&mut self, mut buf: Buf, len: usize) -> Result<(), PipeError> {
        // One that comes when this process is about to end is its successor's.
        if !matches!(self.phase, Phase::Idle) || self.leaving.is_some() {
            return Ok(());
        }
        let mut head: Option<[u8; CBW_LEN]> = buf.first_chunk().copied().filter(|_| len == CBW_LEN);
        if self.pipes.handover.is_draining() {
            // The last packet of what has come; all before it is left over.
            let last = buf.get(..len).and_then(|came| came.chunks(self.pipes.max_packet().max(1)).last());
            head = last.and_then(|last| last.try_into().ok());
            if !head.is_some_and(|cbw| cbw.starts_with(b"USBC")) {
                drop(buf);
                return self.left_over();
            }
            handover::to_front(&mut buf);
            self.pipes.handover.drained();
        }
        let received = match &head {
            Some(cbw) => self.bot.receive_cbw(cbw),
            None => self.bot.receive_cbw(buf.get(..len).unwrap_or_default()),
        };
        // Given back, because the next CBW needs it.
        drop(buf);
        match received {
            Ok(command) if self.limbo.is_some() => self.command_in_limbo(command),
            Ok(command) => self.command(command),
            Err(error) => {
                tracing::warn!(function = self.name, %error, "invalid CBW; halted until the host resets");
                self.break_off();
                Ok(())
            }
        }
    }

    pub(super) fn command(&mut self, command: Command) -> Result<(), PipeError> {
        let lun = command.lun.0;
        // What a command that ended early had under way.
        self.mover.give_up(Interest::Abandoned);
        self.progress = self.mover.now();
        self.waited = Duration::ZERO;
        self.open(&command);
        let mut response = self.pipes.small()?;
        match self.target.execute(lun, &command.cdb, &mut response) {
            Reply::Status(status) => self.answer(status, Intent::None, None),
            Reply::Data { len } => {
                let intent = Intent::In(u64::try_from(len).unwrap_or(u64::MAX));
                self.answer(Status::Good, intent, Some(response))
            }
            Reply::Media(op, pending) => self.media_command(op, pending),
            Reply::Parameters { len, pending } => {
                let plan = self.bot.plan(Intent::Out(len.into()));
                self.open.data = plan.phase;
                match plan.phase {
                    DataPhase::Out { receive, keep } if plan.execute => {
                        let data = DataOut::new(receive, keep, data_out::Sink::List(None));
                        self.phase = Phase::Out { data, end: OutEnd::List(pending) };
                        self.pump_out()
                    }
                    DataPhase::None | DataPhase::In { .. } | DataPhase::Out { .. } => {
                        self.target.abandon_parameters(pending);
                        self.conclude(Status::CheckCondition)
                    }
                }
            }
        }
    }

    pub(super) fn open(&mut self, command: &Command) {
        let Command { lun, expected, cdb } = command;
        let opcode = cdb.first().copied().unwrap_or_default();
        let tally = Some(self.tally(opcode));
        self.open = Open { lun: lun.0, opcode, expected: *expected, data: DataPhase::None, listed: 0, tally };
    }

    /// The command needs no image: `response` is what the host gets of it.
    fn answer(&mut self, status: Status, intent: Intent, response: Option<Buf>) -> Result<(), PipeError> {
        let plan = self.bot.plan(intent);
        self.open.data = plan.phase;
        match (plan.phase, response) {
            (DataPhase::In { send }, Some(response)) if send > 0 => {
                let len = usize::try_from(send).unwrap_or(0);
                self.pipes.send_data(response, len, Wake::Later)?;
                self.end(status, send)
            }
            _ => self.conclude(status),
        }
    }

    fn media_command(&mut self, op: MediaOp, pending: Pending) -> Result<(), PipeError> {
        let bytes = |range| self.bytes(range).map(|range| range.len().0);
        let intent = match op {
            MediaOp::Read(range) => Intent::In(bytes(range).unwrap_or(u64::MAX)),
            MediaOp::ReadSectors { range, part } => {
                Intent::In(range.count().0.saturating_mul(part.len().into()))
            }
            MediaOp::Write { range, .. } => Intent::Out(bytes(range).unwrap_or(u64::MAX)),
            MediaOp::Compound(op) => {
                let medium = self.target.unit(self.open.lun).and_then(Unit::medium);
                let len = medium.and_then(|medium| op.data_out(medium.block_size));
                Intent::Out(len.unwrap_or(u64::MAX))
            }
            MediaOp::LbaStatus { len, .. } => Intent::In(len.into()),
            MediaOp::Verify(_)
            | MediaOp::Prefetch(_)
            | MediaOp::Flush
            | MediaOp::FlushSoon
            | MediaOp::Load
            | MediaOp::Unload => Intent::None,
        };
        let plan = self.bot.plan(intent);
        self.open.data = plan.phase;
        if !plan.execute {
            self.target.abandon(pending);
            return self.conclude(Status::CheckCondition);
        }
        if let Some(tally) = &mut self.open.tally {
            tally.transfer = match op {
                MediaOp::Read(_) | MediaOp::ReadSectors { .. } => {
                    Transfer::Read { bytes: 0, in_memory: None }
                }
                MediaOp::Write { .. } | MediaOp::Compound(Compound::WriteAndVerify(_)) => {
                    Transfer::Write { bytes: 0 }
                }
                _ => Transfer::None,
            };
        }
        self.phase = Phase::Held { op, pending };
        self.start_held()
    }

    /// Where on the medium of the open command's unit these blocks are.
    pub(super) fn bytes(&self, range: BlockRange) -> Option<ByteRange> {
        self.target.unit(self.open.lun)?.medium()?.block_size.byte_range(range)
    }

    /// Starts the command that waits for the image to be quiet.
    pub(super) fn start_held(&mut self) -> Result<(), PipeError> {
        let lun = self.open.lun;
        let Phase::Held { op, .. } = self.phase else { return Ok(()) };
        let refused = if op == MediaOp::Load { None } else { self.untouchable(lun, op) };
        // The kernel tells once of what it could not store: the first of two syncs under way, of which nobody may have waited for one.
        let overlaps = || op.promises() && (self.mover.syncs(lun) || !self.mover.has_place(lun));
        if refused.is_none() && (self.mover.is_busy(lun) || self.settles(lun) || overlaps()) {
            return Ok(());
        }
        let Phase::Held { pending, .. } = std::mem::replace(&mut self.phase, Phase::Idle) else {
            return Ok(());
        };
        if let Some(sense) = refused {
            return self.complete(pending, Err(sense));
        }
        let range = op.blocks_moved().and_then(|range| self.bytes(range));
        let head = match (op, range) {
            (MediaOp::Read(_), Some(range)) => self.prefetched(lun, range),
            _ => {
                self.prefetch.discard();
                None
            }
        };
        if op == MediaOp::Load {
            // Nobody waits at an open tray with an image: it only closes.
            return self.complete(pending, Ok(()));
        }
        let Some(loaded) = self.drives.get_mut(usize::from(lun)).and_then(|drive| drive.loaded.as_mut())
        else {
            return self.complete(pending, Err(sense::MEDIUM_NOT_PRESENT));
        };
        let residence = loaded.image.residence();
        match (op, range, self.open.data) {
            (MediaOp::Read(blocks), Some(range), DataPhase::In { send }) => {
                let data = DataIn::new(range, send.into(), data_in::Sink::Host, residence, head);
                self.phase = Phase::In { data, pending };
                self.note_first_read(lun, blocks.start().0);
                let went = self.pump_in();
                // Behind the reads of this command, for which the host waits.
                self.read_ahead(lun, range);
                went
            }
            (MediaOp::ReadSectors { .. }, ..) => self.start_sectors(op, range, pending),
            (MediaOp::Verify(_), Some(range), _) => {
                let data = DataIn::new(range, range.len(), data_in::Sink::Nowhere, residence, None);
                self.phase = Phase::In { data, pending };
                self.pump_in()
            }
            (MediaOp::Write { fua, .. }, Some(range), DataPhase::Out { receive, keep }) => {
                // With FUA too: what it stores before it fails or is abandoned is not durable.
                loaded.written = loaded.written.wrapping_add(1);
                let block = loaded.image.block_size();
                let sink = data_out::Sink::Image { ahead: range, block, durable: fua };
                self.phase =
                    Phase::Out { data: DataOut::new(receive, keep, sink), end: OutEnd::Write(pending) };
                self.pump_out()
            }
            (MediaOp::Flush | MediaOp::Unload, ..) => self.start_sync(op == MediaOp::Unload, pending),
            (
                MediaOp::Compound(_) | MediaOp::FlushSoon | MediaOp::Prefetch(_) | MediaOp::LbaStatus { .. },
                ..,
            ) => self.start_other(op, pending),
            (MediaOp::Load | MediaOp::Read(_) | MediaOp::Verify(_) | MediaOp::Write { .. }, ..) => {
                self.complete(pending, Err(sense::LBA_OUT_OF_RANGE))
            }
        }
    }

    fn start_sync(&mut self, unload: bool, pending: Pending) -> Result<(), PipeError> {
        let lun = self.open.lun;
        let loaded = self.drives.get(usize::from(lun)).and_then(|drive| drive.loaded.as_ref());
        let Some(loaded) = loaded else { return self.complete(pending, Err(sense::MEDIUM_NOT_PRESENT)) };
        let purpose = loaded.purpose(Owner::Command, lun);
        self.phase = Phase::Sync { pending, unload };
        match loaded.is_unstored() {
            _ if loaded.lost => self.synced(purpose, Err(io::Error::from_raw_os_error(libc::EIO))),
            true if self.mover.on(purpose).store(&*loaded.image, OpTag(0)) => Ok(()),
            true => self.synced(purpose, Err(io::ErrorKind::ResourceBusy.into())),
            false => self.synced(purpose, Ok(0)),
        }
    }

    /// The rest of [`Function::start_held`]: what is not asked for every day.
    fn start_other(&mut self, op: MediaOp, pending: Pending) -> Result<(), PipeError> {
        let lun = self.open.lun;
        let range = match op {
            MediaOp::Prefetch(range) => self.bytes(range),
            MediaOp::LbaStatus { start, .. } => {
                BlockRange::new(start, Blocks(1)).and_then(|range| self.bytes(range))
            }
            _ => None,
        };
        let Some(loaded) = self.drives.get_mut(usize::from(lun)).and_then(|drive| drive.loaded.as_mut())
        else {
            return self.complete(pending, Err(sense::MEDIUM_NOT_PRESENT));
        };
        match (op, range, self.open.data) {
            (MediaOp::Compound(op), ..) => {
                loaded.written = loaded.written.wrapping_add(u32::from(!op.only_reads()));
                self.start_compound(op, pending)
            }
            (MediaOp::FlushSoon, ..) => {
                let lost = loaded.lost;
                // One that the ring has no room for is left to the next flush.
                let purpose = loaded.purpose(Owner::Flush, lun);
                let _ = loaded.is_unstored() && self.mover.on(purpose).store(&*loaded.image, OpTag(0));
                self.complete(pending, if lost { Err(sense::WRITE_ERROR) } else { Ok(()) })
            }
            (MediaOp::Prefetch(_), Some(range), _) => {
                loaded.will_read(range, &mut self.mover.on(loaded.purpose(Owner::Ahead, lun)));
                self.complete(pending, Ok(()))
            }
            (MediaOp::LbaStatus { start, .. }, Some(range), DataPhase::In { send }) => {
                let block = u64::from(loaded.image.block_size().bytes());
                let Allocation { stored, len } = loaded.image.allocation(range.start());
                let hole = if stored { 0 } else { len.0 / block };
                let blocks = if hole > 0 { hole } else { len.0.div_ceil(block) };
                self.send_lba_status(&lba_status(start, Blocks(blocks), hole == 0), send, pending)
            }
            _ => self.complete(pending, Err(sense::LBA_OUT_OF_RANGE)),
        }
    }

    fn send_lba_status(&mut self, status: &[u8], send: u32, pending: Pending) -> Result<(), PipeError> {
        // First, because the pipe may be gone.
        let ended = self.target.complete(pending, Ok(()));
        let mut response = self.pipes.small()?;
        response.iter_mut().zip(status).for_each(|(to, byte)| *to = *byte);
        self.pipes.send_data(response, ByteLen::from(send).to_usize(), Wake::Later)?;
        self.end(ended, send)
    }

    /// Answers a command that moved nothing.
    pub(super) fn complete(&mut self, pending: Pending, result: Result<(), Sense>) -> Result<(), PipeError> {
        let status = self.target.complete(pending, result);
        self.conclude(status)
    }

    pub(super) fn pump_in(&mut self) -> Result<(), PipeError> {
        let Phase::In { data, .. } = &mut self.phase else { return Ok(()) };
        let lun = self.open.lun;
        let loaded = self.drives.get(usize::from(lun)).and_then(|drive| drive.loaded.as_ref());
        let progress = match loaded {
            Some(loaded) => {
                let mut mover = self.mover.on(loaded.purpose(Owner::Command, lun));
                data.pump(&*loaded.image, &mut mover, &mut self.pipes)?
            }
            None => Progress::Fault(FaultKind::Gone),
        };
        if progress == Progress::Going {
            return Ok(());
        }
        let block = loaded.map_or(BlockSize::B512, |loaded| loaded.image.block_size());
        let Phase::In { data, pending } = std::mem::replace(&mut self.phase, Phase::Idle) else {
            return Ok(());
        };
        if let Some(loaded) = self.loaded_mut(lun) {
            loaded.slow |= data.waited();
        }
        let fault = match progress {
            Progress::Fault(kind) => Some((kind, data.lba(block))),
            Progress::Going | Progress::Done => {
                if let Some(tally) = &mut self.open.tally {
                    tally.had_all(!data.waited());
                }
                None
            }
        };
        let moved = match data.sink() {
            data_in::Sink::Host => ReadMoved::In(u32::try_from(data.moved()).unwrap_or(u32::MAX)),
            data_in::Sink::Nowhere => ReadMoved::Nothing,
        };
        self.end_read(ReadEnd { pending, first: data.first(block), moved, result: Ok(()) }, fault)
    }

    pub(super) fn data_received(&mut self, done: EndpointDone) -> Result<(), PipeError> {
        let Phase::Out { data, .. } = &mut self.phase else { return self.compound_received(done) };
        data.received(done, &mut self.pipes);
        self.pump_out()
    }

    pub(super) fn pump_out(&mut self) -> Result<(), PipeError> {
        let Phase::Out { data, .. } = &mut self.phase else { return Ok(()) };
        let loaded = self.drives.get(usize::from(self.open.lun)).and_then(|drive| drive.loaded.as_ref());
        let medium = loaded.map(|loaded| &*loaded.image);
        let purpose = loaded.map(|loaded| loaded.purpose(Owner::Command, self.open.lun));
        let mut mover = purpose.map(|purpose| self.mover.on(purpose));
        let progress = data.pump(medium.zip(mover.as_mut()), &mut self.pipes)?;
        if progress == Progress::Going {
            return Ok(());
        }
        // A durable write of one that stores by itself is durable only then.
        let stores = data.is_durable() && medium.is_some_and(|medium| medium.own_store().is_some());
        let Phase::Out { data, end } = std::mem::replace(&mut self.phase, Phase::Idle) else { return Ok(()) };
        let moved = u32::try_from(data.moved()).unwrap_or(u32::MAX);
        let status = match end {
            OutEnd::Answered(status) => status,
            OutEnd::Moved { status, moved } => return self.end(status, moved),
            OutEnd::Write(pending) => {
                let result = match progress {
                    Progress::Fault(kind) => Err(self.fault(kind, Way::Write, None)),
                    Progress::Going | Progress::Done if data.ended_early() => Err(sense::DATA_PHASE_ERROR),
                    Progress::Going | Progress::Done if stores && moved > 0 => {
                        self.open.listed = moved;
                        return self.start_sync(false, pending);
                    }
                    Progress::Going | Progress::Done => Ok(()),
                };
                if result.is_ok() && data.is_durable() {
                    self.note_written_durably(self.open.lun);
                }
                self.target.complete(pending, result)
            }
            OutEnd::List(pending) => {
                let list = data.into_list();
                let bytes = list.as_ref().and_then(|(buf, len)| buf.get(..*len)).unwrap_or_default();
                match self.target.parameters(pending, bytes) {
                    ListReply::Status(status) => status,
                    ListReply::Media(op, pending) => {
                        self.open.listed = moved;
                        self.phase = Phase::Held { op, pending };
                        return self.start_held();
                    }
                }
            }
        };
        self.end(status, moved)
    }

    /// The sync of the command at hand has ended.
    pub(super) fn synced(&mut self, purpose: Purpose, result: io::Result<usize>) -> Result<(), PipeError> {
        let lun = purpose.lun;
        if let Err(error) = &result {
            self.note_unstored(lun, error);
        }
        let (pending, unload) = match std::mem::replace(&mut self.phase, Phase::Idle) {
            Phase::Sync { pending, unload } => (pending, unload),
            other => {
                self.phase = other;
                return Ok(());
            }
        };
        let result = match result {
            Ok(_) => {
                self.note_stored(lun, purpose.written);
                Ok(())
            }
            // The ring was full: nothing was tried.
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => Err(sense::ABORTED_COMMAND),
            Err(error) => Err(self.loss(FaultKind::from(&error))),
        };
        let unloaded = unload && result.is_ok();
        let status = self.target.complete(pending, result);
        if unloaded {
            self.host_ejected(lun);
        }
        self.conclude(status)
    }

    /// Ends a command of which nothing but a parameter list was transferred yet: what the host insists on sending is read and dropped
    /// (BOT 1.0 §6.7.3, which allows it; halting OUT would race with what is on its way).
    pub(super) fn conclude(&mut self, status: Status) -> Result<(), PipeError> {
        match self.open.data {
            DataPhase::Out { receive, .. } if self.open.listed == 0 => {
                let data = DataOut::new(receive, 0, data_out::Sink::Nowhere);
                self.phase = Phase::Out { data, end: OutEnd::Answered(status) };
                self.pump_out()
            }
            DataPhase::None | DataPhase::In { .. } | DataPhase::Out { .. } => {
                self.end(status, self.open.listed)
            }
        }
    }

    pub(super) fn end(&mut self, status: Status, moved: u32) -> Result<(), PipeError> {
        let phase_error = matches!(self.bot.state(), bot::State::Data { phase_error: true, .. });
        let (status, outcome) = match status {
            Status::Good => (CommandStatus::Passed, Outcome::Passed),
            Status::CheckCondition => (CommandStatus::Failed, Outcome::Failed),
        };
        if let Some(tally) = &mut self.open.tally {
            tally.outcome = if phase_error { Outcome::PhaseError } else { outcome };
            tally.moved(moved);
        }
        let ending = self.bot.finish(status, moved);
        match ending.data_end {
            DataEnd::Complete => self.send_csw(ending.csw, Wake::Later),
            DataEnd::ShortPacket => {
                let last = usize::try_from(moved).unwrap_or(0).checked_rem(self.pipes.max_packet());
                if last.is_none_or(|last| last == 0) {
                    let empty = self.pipes.small()?;
                    self.pipes.send_data(empty, 0, Wake::Later)?;
                }
                self.send_csw(ending.csw, Wake::Later)
            }
            DataEnd::StallIn => {
                self.phase = Phase::Stalling { csw: ending.csw };
                self.try_halt()
            }
        }
    }

    /// Nobody needs to hear that it arrived, as the next CBW says so, except behind a stall: where the controller ends it as the
    /// host clears the halt, it must be sent again.
    pub(super) fn send_csw(&mut self, csw: [u8; CSW_LEN], wake: Wake) -> Result<(), PipeError> {
        self.send_csw_behind(Behind::Nothing, csw, wake)
    }

    pub(super) fn send_csw_behind(
        &mut self,
        behind: Behind,
        csw: [u8; CSW_LEN],
        wake: Wake,
    ) -> Result<(), PipeError> {
        let Open { opcode, lun, expected, .. } = self.open;
        self.phase = Phase::Idle;
        self.keep_unit(lun);
        self.pipes.answer(Last::new(csw, expected, opcode, lun), behind, wake)?;
        self.count_completed();
        self.bot.csw_sent();
        self.pipes.receive_cbw()?;
        self.note_prevented(lun);
        self.serve();
        Ok(())
    }
}
