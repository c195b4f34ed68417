//! What was written is made durable: before an image leaves, or the function ends, for as long as somebody wants to wait; and
//! without anybody when the host goes to sleep or away. What is known to be durable, and what is lost, is noted here.
//!
//! ```text
//!   eject, stop ──► operations of broken-off commands end ──► sync ──► done
//!              └──────────────── too late, or the source is dead ────► refused; by force, or at a stop: done without
//!   suspend, unplug ──► the drive is at rest ──► sync ──► (nobody; an error is deferred to the next command)
//! ```
//! A sync is begun when no other is under way and nothing may still change the image: of what could not be stored the kernel tells
//! one sync, or one durable write, and then nobody. Each drive settles by itself, so that a dead one does not hold up the others.
//! Called by `requests` and `function`.

use std::{io, time::Duration};

use crate::{
    gadget::endpoints::Endpoints,
    media::{FaultKind, Residence},
    ring::{MoveOp, Moved, Mover, OpTag},
};

use super::{
    command::{EjectedBy, Refusal, ReplyTo},
    flights::{self, Flight, Owner},
    function::Function,
    loaded::{Health, Loaded},
};

/// How long whoever ejects by force waits, or ejects what is on a network: what they ask for is answered within a second.
const SOON: Duration = Duration::from_millis(600);
/// How long whoever stops everything waits.
pub(super) const STOP: Duration = Duration::from_secs(3);

/// What waits until written bytes are durable.
#[derive(Debug)]
pub(super) struct Settling {
    purpose: Purpose,
    until: Duration,
    /// The sync is under way.
    syncing: bool,
}

#[derive(Debug)]
enum Purpose {
    Eject { force: bool, reply: ReplyTo<Result<String, Refusal>> },
    Stop,
}

/// A stop, and what could not be stored so far.
#[derive(Debug)]
pub(super) struct Stopping {
    pub(super) lost: Option<String>,
    pub(super) reply: ReplyTo<Result<(), Refusal>>,
}

impl<E: Endpoints, M: Mover> Function<E, M> {
    pub(super) fn eject(&mut self, lun: u8, force: bool, reply: ReplyTo<Result<String, Refusal>>) {
        let Some(loaded) = self.drives.get(usize::from(lun)).and_then(|drive| drive.loaded.as_ref()) else {
            return reply.send(Err(Refusal::Empty));
        };
        if !force && let Some(unit) = self.target.unit_mut(lun).filter(|unit| unit.prevented()) {
            unit.request_eject();
            return reply.send(Err(Refusal::Prevented));
        }
        if loaded.lost && !force {
            return reply.send(Err(Refusal::Sync("an earlier sync of it failed".into())));
        }
        let dead = matches!(loaded.health, Health::Offline { .. });
        if dead && loaded.is_dirty() && !force {
            return reply.send(Err(Refusal::NotStored(loaded.image.name())));
        }
        let wait = match loaded.image.residence() {
            _ if dead => Duration::ZERO,
            _ if force => SOON,
            Residence::Remote => SOON,
            Residence::Memory | Residence::Local => self.deadline(lun),
        };
        self.settle(lun, Purpose::Eject { force, reply }, wait);
    }

    /// Makes all drives durable; the thread may end when they are, or when it takes too long.
    pub(super) fn stop(&mut self, reply: ReplyTo<Result<(), Refusal>>, wait: Duration) {
        self.stop = Some(Stopping { lost: None, reply });
        for lun in self.target.luns() {
            if self.settles(lun) || self.loaded(lun).is_none() {
                continue;
            }
            self.settle(lun, Purpose::Stop, wait);
        }
        self.look_whether_stopped();
    }

    fn settle(&mut self, lun: u8, purpose: Purpose, wait: Duration) {
        let until = self.mover.now() + wait;
        if let Some(drive) = self.drive_mut(lun) {
            drive.settling = Some(Settling { purpose, until, syncing: false });
        }
        self.go_on_settling(lun);
    }

    /// Whether something of this drive is being made durable for a request.
    pub(super) fn settles(&self, lun: u8) -> bool {
        self.drive(lun).is_some_and(|drive| drive.settling.is_some())
    }

    /// Goes on with what settles: after operations that have ended, and at its time.
    pub(super) fn settle_all(&mut self) {
        for lun in self.target.luns() {
            self.go_on_settling(lun);
            self.go_on_storing(lun);
        }
    }

    /// The host sleeps or has gone, perhaps for long and perhaps with our power: what it wrote is stored, though nobody waits.
    pub(super) fn store_all(&mut self) {
        self.drives.iter_mut().for_each(|drive| drive.to_store = true);
        self.settle_all();
    }

    /// As soon as nothing is under way that a sync would have to wait for.
    fn go_on_storing(&mut self, lun: u8) {
        if !self.drive(lun).is_some_and(|drive| drive.to_store) {
            return;
        }
        let in_use = self.open.lun == lun && self.uses_image();
        if in_use || self.settles(lun) || self.mover.is_busy(lun) || self.mover.syncs(lun) {
            return;
        }
        let Some(drive) = self.drives.get_mut(usize::from(lun)) else { return };
        drive.to_store = false;
        let may = |loaded: &&Loaded| !loaded.lost && loaded.health == Health::Online;
        let Some(loaded) = drive.loaded.as_ref().filter(may) else { return };
        if loaded.is_unstored() {
            let purpose = loaded.purpose(Owner::Flush, lun);
            // If there is no room: tried again after the next operation that ends.
            drive.to_store = !self.mover.on(purpose).store(&*loaded.image, OpTag(0));
        }
    }

    pub(super) fn next_settled(&self) -> Option<Duration> {
        let now = self.mover.now();
        let settling = self.drives.iter().filter_map(|drive| drive.settling.as_ref());
        settling.map(|settling| settling.until.saturating_sub(now)).min()
    }

    fn go_on_settling(&mut self, lun: u8) {
        let now = self.mover.now();
        let Some(drive) = self.drives.get_mut(usize::from(lun)) else { return };
        let (Some(settling), Some(loaded)) = (&mut drive.settling, &drive.loaded) else { return };
        let unstored = loaded.is_unstored();
        if now >= settling.until {
            let late = loaded.is_dirty().then(|| Refusal::NotStored(loaded.image.name()));
            return self.settled(lun, late.map_or(Ok(()), Err));
        }
        let may_change = self.mover.late(lun, loaded.number).1;
        if settling.syncing || self.mover.is_busy(lun) || self.mover.syncs(lun) || may_change {
            return;
        }
        match unstored {
            true => {
                let purpose = loaded.purpose(Owner::Settle, lun);
                // If there is no room: tried again after the next operation that ends.
                settling.syncing = self.mover.on(purpose).store(&*loaded.image, OpTag(0));
            }
            false => {
                let lost =
                    loaded.lost.then(|| format!("an earlier sync of {:?} failed", loaded.image.name()));
                self.settled(lun, lost.map_or(Ok(()), |why| Err(Refusal::Sync(why))));
            }
        }
    }

    /// The sync has ended.
    pub(super) fn settle_synced(&mut self, lun: u8, written: u32, result: io::Result<usize>) {
        match result {
            Ok(_) => self.note_stored(lun, written),
            Err(error) => {
                self.note_unstored(lun, &error);
                return self.settled(lun, Err(Refusal::Sync(error.to_string())));
            }
        }
        if let Some(settling) = self.drive_mut(lun).and_then(|drive| drive.settling.as_mut()) {
            settling.syncing = false;
        }
        self.go_on_settling(lun);
    }

    fn settled(&mut self, lun: u8, result: Result<(), Refusal>) {
        let Some(settling) = self.drive_mut(lun).and_then(|drive| drive.settling.take()) else { return };
        let was_eject = matches!(settling.purpose, Purpose::Eject { .. });
        match (settling.purpose, result) {
            (Purpose::Eject { force: false, reply }, Err(refusal)) => reply.send(Err(refusal)),
            (Purpose::Eject { force, reply }, _) => {
                let by = if force { EjectedBy::Force } else { EjectedBy::Client };
                if let Some(unit) = self.target.unit_mut(lun) {
                    unit.remove();
                }
                reply.send(self.take_out(lun, by).ok_or(Refusal::Empty));
            }
            (Purpose::Stop, result) => {
                if let (Some(stop), Err(refusal)) = (&mut self.stop, result) {
                    stop.lost.get_or_insert(match refusal {
                        Refusal::Sync(why) => why,
                        other => other.to_string(),
                    });
                }
            }
        }
        if was_eject && self.stop.is_some() && self.loaded(lun).is_some() {
            return self.settle(lun, Purpose::Stop, STOP);
        }
        self.look_whether_stopped();
    }

    fn look_whether_stopped(&mut self) {
        if self.stop.is_none() || self.drives.iter().any(|drive| drive.settling.is_some()) {
            return;
        }
        if let Some(Stopping { lost, reply }) = self.stop.take() {
            self.stopped = true;
            reply.send(lost.map_or(Ok(()), |why| Err(Refusal::Sync(why))));
        }
    }

    /// A sync of what was written to the drive has failed.
    pub(super) fn note_unstored(&mut self, lun: u8, error: &io::Error) {
        let store = self.loaded(lun).and_then(|loaded| loaded.image.own_store());
        let may_go_on = store.is_some_and(|store| !store.has_lost());
        // The ring was full: the sync was not even tried.
        if error.kind() != io::ErrorKind::ResourceBusy && !may_go_on {
            self.note_lost(lun, error);
        }
    }

    /// What was written to the drive cannot be made durable.
    fn note_lost(&mut self, lun: u8, error: &io::Error) {
        let drive = self.drives.get_mut(usize::from(lun));
        if let Some(loaded) = drive.and_then(|drive| drive.loaded.as_mut()) {
            loaded.lost = true;
            self.pipes.handover.keep_lost(lun);
            tracing::error!(image = loaded.image.name(), %error, "what the host wrote could not be stored and may be lost");
        }
    }

    /// What had been written to the drive by then is durable.
    pub(super) fn note_stored(&mut self, lun: u8, written: u32) {
        if let Some(loaded) = self.loaded_mut(lun) {
            loaded.stored = written;
            loaded.synced = true;
        }
    }

    /// All that the command at hand wrote is durable by itself.
    pub(super) fn note_written_durably(&mut self, lun: u8) {
        if let Some(loaded) = self.loaded_mut(lun).filter(|loaded| !loaded.was_dirty(loaded.written)) {
            loaded.stored = loaded.written;
        }
    }

    /// With a write that fails the kernel may have told of bytes that were written before, and tells nobody else: one that is to be
    /// durable asks for all that could not be stored of the file, and of others see [`Residence::tells_of_others`].
    pub(super) fn note_write_ended(&mut self, flight: &Flight, done: &Moved) {
        let flights::Purpose { lun, image, written, .. } = flight.purpose;
        let (MoveOp::Write, Err(error)) = (done.op, &done.result) else { return };
        let kind = FaultKind::from(error);
        let tells = |loaded: &Loaded| flight.durable || loaded.image.residence().tells_of_others(kind);
        if self
            .loaded(lun)
            .is_some_and(|loaded| loaded.number == image && loaded.was_dirty(written) && tells(loaded))
        {
            self.note_lost(lun, error);
        }
    }
}
