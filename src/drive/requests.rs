//! What clients ask of the drives of a function: answered between two commands of their drive.
//!
//! ```text
//!   waiting ──► (the drive has no command at hand, or one that waits for dead storage) ──► answered
//!                      │
//!                      └──► `settle`: written bytes are made durable ──► answered
//! ```
//! A query of state or statistics is answered at once. While something settles, commands that need its image wait (`Phase::Held`),
//! others do not.

use std::{sync::Arc, thread, time::Duration};

use crate::{
    gadget::endpoints::Endpoints,
    media::{FaultKind, Medium, Residence},
    ring::Mover,
    scsi::{self, Kind},
    units::{BlockSize, ByteRange},
};

use super::{
    command::{
        DriveState, DriveStatistics, EjectedBy, Event, ImageState, Refusal, ReplyTo, Request, Setting,
    },
    flights::Owner,
    function::{Function, OutEnd, Phase},
    loaded::Loaded,
    settle::STOP,
    takeover::Keep,
};

/// How long a client waits for a command of the drive that it wants to eject from, if that waits for the storage.
const PATIENCE: Duration = Duration::from_millis(300);

/// Closing a file gives its lock back, for which a server is asked that may never answer.
fn close(image: Box<dyn Medium>) {
    if image.residence() == Residence::Remote {
        // Without a thread it is closed here and now.
        let _ = thread::Builder::new().name("close".into()).spawn(move || drop(image));
    }
}

/// The block length of what a drive of this kind holds, with blocks of `disk` bytes if it is a disk.
pub fn block_size(kind: Kind, disk: BlockSize) -> BlockSize {
    match kind {
        Kind::Disk => disk,
        Kind::Optical => BlockSize::B2048,
    }
}

impl<E: Endpoints, M: Mover> Function<E, M> {
    /// Takes a request. It is answered now or, if it must not disturb a command, after that.
    pub fn request(&mut self, request: Request) {
        match request {
            Request::State { reply } => reply.send(self.state()),
            Request::Stats { lun, reply } => reply.send(self.statistics(lun)),
            Request::Leave { reply } => self.leave(reply),
            Request::Stop { .. } => {
                self.waiting.push_front((self.mover.now(), request));
                self.disconnect();
                self.serve();
            }
            Request::Insert { .. }
            | Request::Eject { .. }
            | Request::Discard { .. }
            | Request::Set { .. } => {
                if self.stopping {
                    request.refuse(&Refusal::Stopped);
                } else if self.waiting.len() >= super::command::REQUESTS_MAX {
                    request.refuse(&Refusal::Busy);
                } else {
                    self.waiting.push_back((self.mover.now(), request));
                    self.serve();
                }
            }
        }
    }

    /// Answers what waits, as far as it disturbs no command, in the order of each drive.
    pub(super) fn serve(&mut self) {
        let now = self.mover.now();
        while !self.stopped {
            let mut held_up = [false; 16];
            let next = self.waiting.iter().position(|(since, request)| {
                let lun = request.lun().map(usize::from);
                let waits = lun.and_then(|lun| held_up.get_mut(lun));
                let may = self.may_serve(request, now.saturating_sub(*since));
                match waits {
                    Some(waits) => {
                        *waits |= !may;
                        !*waits
                    }
                    None => may,
                }
            });
            let Some((_, request)) = next.and_then(|next| self.waiting.remove(next)) else { return };
            match request {
                Request::State { .. } | Request::Stats { .. } | Request::Leave { .. } => {}
                Request::Insert { lun, image, reply } => reply.send(self.insert(lun, image)),
                Request::Eject { lun, force, reply } => self.eject_from(lun, force, reply),
                Request::Discard { lun, force, reply } => self.discard(lun, force, reply),
                Request::Set { lun, setting, reply } => reply.send(self.set(lun, setting)),
                Request::Stop { reply } => self.stop(reply, STOP),
            }
            self.keep_drives();
        }
    }

    /// When a request that waits for a command has waited for long enough.
    pub(super) fn next_served(&self) -> Option<Duration> {
        if !self.awaits_image() {
            return None;
        }
        let now = self.mover.now();
        self.waiting.iter().map(|(since, _)| (*since + PATIENCE).saturating_sub(now)).min()
    }

    fn may_serve(&self, request: &Request, waited: Duration) -> bool {
        let Some(lun) = request.lun() else {
            return matches!(self.phase, Phase::Down | Phase::Idle | Phase::Broken { .. });
        };
        if self.settles(lun) {
            return false;
        }
        match request {
            _ if self.open.lun != lun || !self.uses_image() => true,
            // Refused, which needs no waiting.
            Request::Insert { .. } => self.loaded(lun).is_some(),
            Request::Eject { .. } | Request::Discard { .. } => self.awaits_image() && waited >= PATIENCE,
            _ => false,
        }
    }

    /// Whether the command at hand moves bytes of its image, or is about to.
    pub(super) fn uses_image(&self) -> bool {
        matches!(
            self.phase,
            Phase::Held { .. }
                | Phase::In { .. }
                | Phase::Sectors { .. }
                | Phase::Look { .. }
                | Phase::Compound { .. }
                | Phase::Sync { .. }
                | Phase::Out { end: OutEnd::Write(_) | OutEnd::List(_), .. }
        )
    }

    /// An eject; the command that has waited for long for the image, if there is one, goes without.
    fn eject_from(&mut self, lun: u8, force: bool, reply: ReplyTo<Result<String, Refusal>>) {
        let refused = !force && self.target.unit(lun).is_some_and(scsi::Unit::prevented);
        if self.open.lun == lun && self.uses_image() && !refused {
            if let Some(loaded) = self.loaded(lun).filter(|loaded| !force && loaded.is_dirty()) {
                return reply.send(Err(Refusal::NotStored(loaded.image.name())));
            }
            let went = self.time_out(FaultKind::Ejected);
            self.settle_pipes(went);
        }
        self.eject(lun, force, reply);
    }

    /// An eject that has nothing to store.
    fn discard(&mut self, lun: u8, force: bool, reply: ReplyTo<Result<String, Refusal>>) {
        let refused = !force && self.target.unit(lun).is_some_and(scsi::Unit::prevented);
        if let Some(loaded) = self.loaded_mut(lun).filter(|_| !refused) {
            (loaded.stored, loaded.lost) = (loaded.written, false);
        }
        self.eject_from(lun, force, reply);
    }

    fn state(&self) -> Vec<DriveState> {
        (0u8..)
            .zip(&self.drives)
            .map(|(lun, drive)| {
                let unit = self.target.unit(lun);
                DriveState {
                    drive: self.index(lun),
                    name: drive.name.clone(),
                    function: self.name.clone(),
                    lun,
                    kind: unit.map_or(Kind::Disk, scsi::Unit::kind),
                    block_size: block_size(unit.map_or(Kind::Disk, scsi::Unit::kind), drive.block_size),
                    image: drive.loaded.as_ref().map(Loaded::state),
                    rw: drive.rw,
                    prevented: unit.is_some_and(scsi::Unit::prevented),
                    stall: self.bot.stall(),
                    host: self.host,
                }
            })
            .collect()
    }

    /// Copies only: what is made of it is made on the thread that asks.
    fn statistics(&self, lun: Option<u8>) -> Vec<DriveStatistics> {
        let uptime = (self.clock)();
        (0u8..)
            .zip(&self.drives)
            .filter(|(of, _)| lun.is_none_or(|lun| lun == *of))
            .filter_map(|(lun, drive)| {
                Some(DriveStatistics {
                    drive: self.index(lun),
                    name: drive.name.clone(),
                    kind: self.target.unit(lun)?.kind(),
                    uptime,
                    statistics: drive.statistics.clone(),
                })
            })
            .collect()
    }

    fn insert(&mut self, lun: u8, image: Box<dyn Medium>) -> Result<ImageState, Refusal> {
        let state = self.put_in(lun, image)?;
        if let Some(loaded) = self.loaded(lun)
            && let Some((file, _)) = loaded.image.kept()
        {
            (self.keeper)(Keep::Image { lun, number: loaded.number, file: Arc::clone(file) });
        }
        Ok(state)
    }

    /// Puts an image into an empty drive.
    pub(super) fn put_in(&mut self, lun: u8, mut image: Box<dyn Medium>) -> Result<ImageState, Refusal> {
        let waker = self.waker.clone();
        let kind = self.target.unit(lun).map(scsi::Unit::kind).ok_or(Refusal::NoDrive)?;
        let drive = self.drive_mut(lun).ok_or(Refusal::NoDrive)?;
        if let Some(loaded) = &drive.loaded {
            return Err(Refusal::Occupied(loaded.image.name()));
        }
        if image.block_size() != block_size(kind, drive.block_size) {
            return Err(Refusal::KindChanged);
        }
        if kind == Kind::Optical && image.writable() {
            return Err(Refusal::Optical);
        }
        let medium = scsi::Medium {
            blocks: image.block_size().blocks_in(image.len()),
            block_size: image.block_size(),
            write_protected: !image.writable(),
            thin: image.thin(),
        };
        image.set_waker(waker);
        let slow = image.residence() == Residence::Remote;
        drive.inserted = drive.inserted.wrapping_add(1);
        let loaded = Loaded::new(image, drive.inserted, slow);
        let state = loaded.state();
        drive.loaded = Some(loaded);
        if let Some(unit) = self.target.unit_mut(lun) {
            unit.insert(medium);
        }
        self.tell(Event::Inserted { drive: self.index(lun), image: state.clone() });
        Ok(state)
    }

    /// The host ejected the medium; scsi knows already.
    pub(super) fn host_ejected(&mut self, lun: u8) {
        self.take_out(lun, EjectedBy::Host);
    }

    pub(super) fn take_out(&mut self, lun: u8, by: EjectedBy) -> Option<String> {
        self.prefetch.discard();
        let loaded = self.drive_mut(lun)?.loaded.take()?;
        self.mover.forget(lun);
        let (name, number) = (loaded.image.name(), loaded.number);
        let is_held = self.mover.holds(lun, number);
        match self.drive_mut(lun) {
            Some(drive) if is_held => drive.left.push((number, loaded.image)),
            _ => close(loaded.image),
        }
        (self.keeper)(Keep::Gone { lun, number });
        self.tell(Event::Ejected { drive: self.index(lun), image: name.clone(), by });
        self.note_prevented(lun);
        self.keep_drives();
        Some(name)
    }

    /// Closes images that were taken out once the ring has nothing of them left: with the last operation a file would be closed on
    /// this thread, which for a server's may take for ever.
    pub(super) fn close_left(&mut self, lun: u8) {
        let Some(drive) = self.drives.get_mut(usize::from(lun)) else { return };
        while let Some(at) = drive.left.iter().position(|(number, _)| !self.mover.holds(lun, *number)) {
            close(drive.left.swap_remove(at).1);
        }
    }

    fn set(&mut self, lun: u8, setting: Setting) -> Result<(), Refusal> {
        let unit = self.target.unit_mut(lun).ok_or(Refusal::NoDrive)?;
        let drive = self.drives.get_mut(usize::from(lun)).ok_or(Refusal::NoDrive)?;
        let inserted = drive.loaded.is_some();
        match setting {
            Setting::Stall(policy) => self.bot.set_stall(policy),
            Setting::ReadWrite(rw) if rw == drive.rw => {}
            Setting::ReadWrite(_) if inserted => return Err(Refusal::Inserted("rw")),
            Setting::ReadWrite(true) if unit.kind() == Kind::Optical => return Err(Refusal::Optical),
            Setting::ReadWrite(rw) => drive.rw = rw,
            Setting::Kind(kind) if kind == unit.kind() => {}
            Setting::Kind(_) if inserted => return Err(Refusal::Inserted("kind")),
            Setting::Kind(kind) => {
                let identity = unit.identity().clone();
                unit.set_kind(kind, identity).map_err(|_| Refusal::Inserted("kind"))?;
                drive.rw &= kind == Kind::Disk;
            }
        }
        Ok(())
    }

    pub(super) fn note_prevented(&mut self, lun: u8) {
        let prevented = self.target.unit(lun).is_some_and(scsi::Unit::prevented);
        let Some(drive) = self.drive_mut(lun).filter(|drive| drive.prevented != prevented) else { return };
        drive.prevented = prevented;
        self.tell(Event::Prevented { drive: self.index(lun), prevented });
    }

    pub(super) fn read_ahead(&mut self, lun: u8, range: ByteRange) {
        let drive = self.drives.get_mut(usize::from(lun));
        if let Some(loaded) = drive.and_then(|drive| drive.loaded.as_mut())
            && loaded.read_ahead(range, &mut self.mover.on(loaded.purpose(Owner::Ahead, lun)))
        {
            let slow = loaded.slow;
            self.want_next(lun, range, slow);
        }
    }

    pub(super) fn note_first_read(&mut self, lun: u8, lba: u64) {
        let Some(loaded) = self.drive_mut(lun).and_then(|drive| drive.loaded.as_mut()) else { return };
        if !std::mem::replace(&mut loaded.first_read, true) {
            self.pipes.handover.keep_first_read(lun);
            self.tell(Event::FirstRead { drive: self.index(lun), lba });
        }
    }
}
