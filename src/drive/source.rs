//! When the storage under an image does not answer.
//!
//! ```text
//!            past the deadline, or an error that says so
//!   Online ────────────────────────────────────────────► Offline ──┐ asked again and again,
//!     ▲                                                    │  ▲     │ by one operation
//!     └── it answers, and nothing late may change it ──────┘  └─────┘
//!     └── the file is not what was inserted ──► Changed (until another image is inserted)
//! ```
//! A command whose operation is late ends with NOT READY; the operation stays with the ring, and its buffer with it. While a source
//! is offline its commands are answered at once. As long as a late write may still land, nothing else touches the image.
//! Called by `function`; tells the host by the sense data of `fault`, and people by events.

use std::time::Duration;

use crate::{
    gadget::endpoints::Endpoints,
    media::{Extent, FaultKind, Residence, SourceState, Waker},
    ring::{MoveOp, Moved, Mover, OpTag},
    scsi::{MediaOp, Sense, sense},
    units::{ByteLen, ByteOffset, ByteRange, Lba},
};

use super::{
    command::Event,
    fault::{self, Way},
    flights::{BUFFERS_PER_DRIVE, Flight, Interest, Owner},
    function::{Function, Open, OutEnd, Phase},
    loaded::{Health, Loaded},
    pipes::PipeError,
};

/// How long to wait before a source that is offline is asked for the first time, and how long at most after that.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// What a command may wait for its image, however many operations it needs: hosts give up after 30 s.
const COMMAND_MAX: Duration = Duration::from_secs(28);
/// The same error again so soon after the source was found to answer is about the bytes, not about the source.
const BELIEVED: Duration = Duration::from_secs(5);

/// Whether an error is the source's, which may come back, rather than the bytes'.
fn may_come_back(kind: FaultKind, residence: Residence) -> bool {
    match kind {
        FaultKind::TimedOut | FaultKind::Unreachable | FaultKind::CacheFull => true,
        // What a soft mount says of a server that does not answer.
        FaultKind::Io => residence == Residence::Remote,
        _ => false,
    }
}

impl<E: Endpoints, M: Mover> Function<E, M> {
    /// A medium has called its waker: bytes that were [pending](Extent::Pending) may be here, or a store of its own has ended.
    pub fn woken(&mut self) {
        while let Some(done) = self.next_stored() {
            self.moved(done);
        }
        let before = self.position();
        let went = self.pump();
        if self.position() != before {
            self.progress = self.mover.now();
        }
        self.settle_pipes(went);
        self.probe_woken();
        self.serve();
    }

    /// A store that has ended, as if the ring had done it.
    fn next_stored(&self) -> Option<Moved> {
        let loaded = self.drives.iter().filter_map(|drive| drive.loaded.as_ref()).map(|loaded| &loaded.image);
        let left = self.drives.iter().flat_map(|drive| &drive.left).map(|(_, image)| image);
        let (ticket, result) = loaded.chain(left).find_map(|image| image.own_store()?.next())?;
        Some(Moved {
            tag: OpTag(ticket),
            op: MoveOp::Sync,
            buf: None,
            result: result.map(|()| 0),
            stat: None,
        })
    }

    /// What media that are inserted from now on call when they have news; it must bring about [`Function::woken`].
    pub fn set_waker(&mut self, waker: Waker) {
        self.waker = waker;
    }

    /// Whether the command at hand waits for room on the ring, of which nobody may tell: hints of others take it, too.
    pub(super) fn wants_room(&self) -> bool {
        !self.mover.serves_command() && !matches!(self.phase, Phase::Held { .. }) && self.awaits_image()
    }

    pub(super) fn loaded_mut(&mut self, lun: u8) -> Option<&mut Loaded> {
        self.drive_mut(lun)?.loaded.as_mut()
    }

    pub(super) fn loaded(&self, lun: u8) -> Option<&Loaded> {
        self.drive(lun)?.loaded.as_ref()
    }

    pub(super) fn deadline(&self, lun: u8) -> Duration {
        self.drive(lun).map_or(Duration::MAX, |drive| drive.deadline)
    }

    /// How long the command at hand waits for its image from now on: for one operation the deadline, for all of them two.
    fn patience(&self) -> Duration {
        let deadline = self.deadline(self.open.lun);
        deadline.min(deadline.saturating_mul(2).min(COMMAND_MAX).saturating_sub(self.waited))
    }

    /// The one place where a fault of the image becomes sense data and a person hears of it.
    pub(super) fn fault(&mut self, kind: FaultKind, way: Way, lba: Option<Lba>) -> Sense {
        let lun = self.open.lun;
        let now = self.mover.now();
        let watched = self.loaded(lun).map_or(SourceState::Online, |loaded| loaded.image.source_state());
        let doubted = self.loaded(lun).filter(|_| watched <= SourceState::Offline).is_some_and(|loaded| {
            let believed = loaded.back_since.is_some_and(|since| now.saturating_sub(since) < BELIEVED);
            may_come_back(kind, loaded.image.residence()) && (kind == FaultKind::TimedOut || !believed)
        });
        let sense = if doubted { sense::BECOMING_READY } else { fault::sense_of(kind, way, lba) };
        self.tell_failed(kind, sense);
        // A medium that knows that its source is gone goes on with what it has.
        if doubted && watched == SourceState::Online {
            self.offline(lun, kind, None);
        }
        sense
    }

    /// As [`Function::fault`], of a sync.
    pub(super) fn loss(&self, kind: FaultKind) -> Sense {
        let sense = fault::sense_of_loss(kind);
        self.tell_failed(kind, sense);
        sense
    }

    fn tell_failed(&self, kind: FaultKind, sense: Sense) {
        let Open { lun, opcode, .. } = self.open;
        self.tell(Event::Failed {
            drive: self.index(lun),
            opcode,
            sense: [sense.key.code(), sense.asc, sense.ascq],
            cause: kind.to_string(),
        });
    }

    /// What a command for an image gets at once, if it must not touch it.
    pub(super) fn untouchable(&mut self, lun: u8, op: MediaOp) -> Option<Sense> {
        let loaded = self.loaded(lun)?;
        match loaded.health {
            Health::Online => None,
            Health::Changed => Some(self.fault(FaultKind::Changed, Way::Read, None)),
            // Nothing is to be stored.
            Health::Offline { .. }
                if !loaded.is_dirty() && (op == MediaOp::Unload || op == MediaOp::Flush && loaded.synced) =>
            {
                None
            }
            Health::Offline { .. } if self.is_here(lun, op) => None,
            Health::Offline { .. } => Some(sense::BECOMING_READY),
        }
    }

    /// Whether a medium that fetches has already fetched all that this reads.
    fn is_here(&self, lun: u8, op: MediaOp) -> bool {
        let (MediaOp::Read(range) | MediaOp::ReadSectors { range, .. } | MediaOp::Verify(range)) = op else {
            return false;
        };
        let image = self.loaded(lun).map(|loaded| &loaded.image);
        let Some((image, mut range)) =
            image.filter(|image| image.fetch_state().is_some()).zip(self.bytes(range))
        else {
            return false;
        };
        while !range.is_empty() {
            match image.map(range) {
                Extent::File { len, .. } | Extent::Zero { len } if len > ByteLen(0) => {
                    range = range.split_at(len).1;
                }
                _ => return false,
            }
        }
        true
    }

    pub(super) fn offline(&mut self, lun: u8, why: FaultKind, wanted: Option<ByteRange>) {
        let now = self.mover.now();
        let Some(loaded) = self.loaded_mut(lun).filter(|loaded| loaded.health == Health::Online) else {
            return;
        };
        let ask_at = now + PAUSE_MIN;
        let told = loaded.image.source_state() == SourceState::Online;
        loaded.health = Health::Offline { ask_at, pause: PAUSE_MIN, answers: false, wanted, told };
        if !told {
            return;
        }
        let image = loaded.image.name();
        self.tell(Event::SourceOffline { drive: self.index(lun), image, cause: why.to_string() });
    }

    /// The source is back if it answers and nothing that is late stands in the way.
    fn look_whether_back(&mut self, lun: u8) {
        let now = self.mover.now();
        let Some(loaded) = self.loaded(lun) else { return };
        let (late, may_change) = self.mover.late(lun, loaded.number);
        let blocked = may_change || late >= BUFFERS_PER_DRIVE || self.mover.is_full(lun);
        let Some(loaded) = self.loaded_mut(lun) else { return };
        let Health::Offline { answers: true, told, .. } = loaded.health else { return };
        if blocked {
            return;
        }
        loaded.health = Health::Online;
        loaded.back_since = Some(now);
        if !told {
            return;
        }
        let image = loaded.image.name();
        self.tell(Event::SourceOnline { drive: self.index(lun), image });
    }

    fn answers(&mut self, lun: u8) {
        if let Some(Loaded { health: Health::Offline { answers, .. }, .. }) = self.loaded_mut(lun) {
            *answers = true;
        }
        self.look_whether_back(lun);
    }

    /// Asks the source, by one operation, whether it answers; where bytes are fetched, whether they are here.
    pub(super) fn probe(&mut self, lun: u8) {
        let Some(loaded) = self.drives.get(usize::from(lun)).and_then(|drive| drive.loaded.as_ref()) else {
            return;
        };
        let first = ByteRange::new(ByteOffset(0), ByteLen::from(loaded.image.block_size().bytes()));
        let wanted = match loaded.health {
            Health::Offline { wanted, .. } => wanted.or(first),
            Health::Online | Health::Changed => first,
        };
        match wanted.map(|wanted| loaded.image.map(wanted)) {
            Some(Extent::File { file, .. }) => {
                let purpose = loaded.purpose(Owner::Probe, lun);
                // If there is no room: asked again after the pause.
                let _ = self.mover.on(purpose).stat(&file, OpTag(0));
            }
            Some(Extent::Pending { .. }) | None => {}
            Some(Extent::Zero { .. } | Extent::Fault { .. }) => self.answers(lun),
        }
    }

    /// Whether a medium that woke us has what was missed.
    pub(super) fn probe_woken(&mut self) {
        for lun in self.target.luns() {
            if self
                .loaded(lun)
                .is_some_and(|loaded| matches!(loaded.health, Health::Offline { wanted: Some(_), .. }))
            {
                self.probe(lun);
            }
        }
    }

    /// An operation has ended for which nobody waits any more, or never did.
    pub(super) fn stray(&mut self, flight: &Flight, done: &Moved) {
        let lun = flight.purpose.lun;
        if self.loaded(lun).is_none_or(|loaded| loaded.number != flight.purpose.image) {
            return self.close_left(lun);
        }
        match (flight.op, &done.result) {
            (MoveOp::Sync, Ok(_)) => self.note_stored(lun, flight.purpose.written),
            (MoveOp::Sync, Err(error)) => {
                self.note_unstored(lun, error);
                // Whoever asked has had another answer.
                let sense = fault::sense_of_loss(FaultKind::from(error));
                if let Some(unit) = self.target.unit_mut(lun) {
                    unit.defer(sense);
                }
                self.keep_unit(lun);
            }
            (MoveOp::Write | MoveOp::Punch, _) => {
                if let Some(loaded) = self.loaded_mut(lun) {
                    loaded.written = loaded.written.wrapping_add(1);
                }
            }
            (MoveOp::Stat, Ok(_)) => {
                if self.compare(lun, done).is_ok() {
                    self.answers(lun);
                }
            }
            (MoveOp::Stat, Err(error)) => {
                let kind = FaultKind::from(error);
                match kind {
                    FaultKind::Stale => self.changed(lun, kind),
                    kind if may_come_back(kind, Residence::Remote) => self.offline(lun, kind, None),
                    _ => {}
                }
            }
            (MoveOp::Read, _) => {}
        }
        if flight.interest == Interest::Late && done.result.is_ok() {
            self.answers(lun);
        } else {
            self.look_whether_back(lun);
        }
    }

    /// Ends what has taken too long, and asks sources that are offline.
    pub(super) fn overdue(&mut self) -> Result<(), PipeError> {
        let now = self.mover.now();
        let mut out_of_time = false;
        let drives = &self.drives;
        let deadline = |lun: u8| drives.get(usize::from(lun)).map_or(Duration::MAX, |drive| drive.deadline);
        let mut late = [None; 16];
        while let Some(flight) = self.mover.overdue(now, deadline) {
            out_of_time |= flight.purpose.owner == Owner::Command && flight.interest == Interest::Awaited;
            if let Some(slot) = late.get_mut(usize::from(flight.purpose.lun)) {
                *slot = Some(flight.purpose);
            }
        }
        for purpose in late.into_iter().flatten() {
            if self.loaded(purpose.lun).is_some_and(|loaded| loaded.number == purpose.image) {
                self.offline(purpose.lun, FaultKind::TimedOut, None);
            }
        }
        out_of_time |= self.awaits_image() && now.saturating_sub(self.progress) >= self.patience();
        if out_of_time {
            self.time_out(FaultKind::TimedOut)?;
        }
        for lun in self.target.luns() {
            let Some(Loaded { health: Health::Offline { ask_at, pause, answers: false, .. }, .. }) =
                self.loaded_mut(lun)
            else {
                continue;
            };
            if *ask_at <= now {
                *pause = (*pause * 2).min(PAUSE_MAX);
                *ask_at = now + *pause;
                self.probe(lun);
            }
        }
        Ok(())
    }

    /// How long until [`Function::overdue`] has something to do.
    pub(super) fn next_overdue(&self) -> Option<Duration> {
        let now = self.mover.now();
        let awaits = self.awaits_image().then(|| (self.progress + self.patience()).saturating_sub(now));
        let ask = |drive: &super::function::Drive| match drive.loaded.as_ref()?.health {
            Health::Offline { ask_at, answers: false, .. } => Some(ask_at.saturating_sub(now)),
            _ => None,
        };
        let asks = self.drives.iter().filter_map(ask).min();
        [self.mover.next_overdue(|lun| self.deadline(lun)), awaits, asks].into_iter().flatten().min()
    }

    /// Whether the command at hand waits for its image, not for the host.
    pub(super) fn awaits_image(&self) -> bool {
        match &self.phase {
            Phase::Held { .. } | Phase::Look { .. } | Phase::Sync { .. } => true,
            Phase::In { data, .. } => data.awaits_image(),
            Phase::Sectors { data, .. } => data.awaits_image(),
            Phase::Compound { data, .. } => data.awaits_image(),
            Phase::Out { data, end: OutEnd::Write(_) } => data.awaits_image(),
            _ => false,
        }
    }

    /// How far the command at hand is: whether this changes tells whether it goes on.
    pub(super) fn position(&self) -> u64 {
        match &self.phase {
            Phase::In { data, .. } => data.moved(),
            Phase::Sectors { data, .. } => data.moved(),
            Phase::Compound { data, .. } => data.left_of_image(),
            Phase::Out { data, .. } => data.moved(),
            _ => 0,
        }
    }

    /// Ends the command at hand without what it waits for.
    pub(super) fn time_out(&mut self, kind: FaultKind) -> Result<(), PipeError> {
        self.mover.give_up(Interest::Late);
        match &mut self.phase {
            Phase::In { data, .. } => {
                let wanted = data.fail(kind);
                if kind == FaultKind::TimedOut {
                    self.offline(self.open.lun, kind, wanted);
                }
                self.pump_in()
            }
            Phase::Sectors { data, .. } => {
                data.fail(kind);
                self.pump_sectors()
            }
            Phase::Compound { data, .. } => {
                data.give_up(kind);
                self.pump_compound()
            }
            Phase::Out { data, .. } => {
                data.give_up(kind);
                self.pump_out()
            }
            Phase::Look { .. } => self.end_look(Err(kind)),
            Phase::Held { .. } | Phase::Sync { .. } => {
                let (Phase::Held { pending, .. } | Phase::Sync { pending, .. }) =
                    std::mem::replace(&mut self.phase, Phase::Idle)
                else {
                    return Ok(());
                };
                let sense = self.fault(kind, Way::Write, None);
                self.complete(pending, Err(sense))
            }
            _ => Ok(()),
        }
    }
}
