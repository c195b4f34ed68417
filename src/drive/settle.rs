//! Before an image leaves, or the function ends: what was written is made durable, for as long as somebody wants to wait.
//!
//! ```text
//!   eject, stop ──► operations of broken-off commands end ──► sync ──► done
//!              └──────────────── too late, or the source is dead ────► refused; by force, or at a stop: done without
//! ```
//! Called by `requests` and `function`. Each drive settles by itself, so that a dead one does not hold up the others.

use std::{io, time::Duration};

use crate::{
    gadget::endpoints::Endpoints,
    media::Residence,
    ring::{Mover, OpTag},
};

use super::{
    command::{EjectedBy, Refusal, ReplyTo},
    flights::Owner,
    function::Function,
    loaded::Health,
};

/// How long whoever ejects by force waits, or ejects what is on a network: what they ask for is answered within a second.
const SOON: Duration = Duration::from_millis(600);
/// How long whoever stops everything waits.
const STOP: Duration = Duration::from_secs(3);

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
    pub(super) fn stop(&mut self, reply: ReplyTo<Result<(), Refusal>>) {
        self.stop = Some(Stopping { lost: None, reply });
        for lun in self.target.luns() {
            if self.settles(lun) || self.loaded(lun).is_none() {
                continue;
            }
            self.settle(lun, Purpose::Stop, STOP);
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
            let late = unstored.then(|| Refusal::NotStored(loaded.image.name()));
            return self.settled(lun, late.map_or(Ok(()), Err));
        }
        if settling.syncing || self.mover.is_busy(lun) {
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
                self.note_lost(lun, &error);
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
}
