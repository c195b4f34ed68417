//! What clients ask of the drives of a function: answered between two commands of the host.
//!
//! ```text
//!   waiting ──► (function quiet) ──► answered
//!                      │
//!                      └──► Settling: written bytes are made durable ──► answered
//! ```
//! A query of state or statistics is answered at once. While something settles, commands that need an image wait (`Phase::Held`), others do not.

use std::{fs::File, io, sync::Arc, thread};

use crate::{
    gadget::endpoints::Endpoints,
    media::{Extent, Medium, Residence},
    ring::{Mover, OpTag},
    scsi::{self, Kind},
    units::{BlockSize, ByteLen, ByteRange},
};

use super::{
    command::{
        DriveState, DriveStatistics, EjectedBy, Event, ImageState, Refusal, ReplyTo, Request, Setting,
    },
    function::Function,
    read_ahead::ReadAhead,
};

/// The sync that a request waits for.
pub(super) const SETTLE: OpTag = OpTag(u32::MAX);
/// One hint to the kernel, which cuts off what is longer than one request to the storage (mm/readahead.c); 128 KiB is the least.
const HINT_MAX: ByteLen = ByteLen(128 * 1024);

/// The most that a PRE-FETCH brings: eight hints, which leaves room on the ring for what cannot do without.
const PREFETCH_MAX: ByteLen = ByteLen(1024 * 1024);

/// An image in a drive.
#[derive(Debug)]
pub(super) struct Loaded {
    pub(super) image: Box<dyn Medium>,
    /// The host has read from it.
    pub(super) first_read: bool,
    /// Something was written since the last sync.
    pub(super) dirty: bool,
    /// A sync has failed. The kernel reports that once and forgets the bytes, so no later sync may be believed.
    pub(super) lost: bool,
    /// Its bytes were not all in memory when last asked for, or are never expected to be.
    pub(super) slow: bool,
    stream: ReadAhead,
}

/// What waits until written bytes are durable.
#[derive(Debug)]
pub(super) enum Settling {
    Eject {
        lun: u8,
        force: bool,
        reply: ReplyTo<Result<String, Refusal>>,
    },
    /// Drive after drive, from `lun` on.
    Stop {
        lun: u8,
        lost: Option<String>,
        reply: ReplyTo<Result<(), Refusal>>,
    },
}

impl Loaded {
    /// The file to sync, if something was written.
    pub(super) fn unstored_file(&self) -> Option<Arc<File>> {
        self.image.file_for_sync().filter(|_| self.dirty).cloned()
    }

    /// Asks the kernel for what a stream will read next, where its bytes were not in memory. Whether the read goes on with one.
    fn read_ahead(&mut self, range: ByteRange, mover: &mut impl Mover) -> bool {
        let (goes_on, hint) = self.stream.advance(range);
        if let Some(hint) = hint.filter(|_| self.slow) {
            self.hint(hint, mover);
        }
        goes_on
    }

    /// The host will read these bytes soon. No more than a stream has ahead is asked for.
    pub(super) fn will_read(&self, range: ByteRange, mover: &mut impl Mover) {
        self.hint(range.split_at(PREFETCH_MAX).0, mover);
    }

    fn hint(&self, mut hint: ByteRange, mover: &mut impl Mover) {
        while !hint.is_empty() {
            let (piece, rest) = hint.split_at(HINT_MAX);
            hint = rest;
            if let Extent::File { file, offset, len } = self.image.map(piece) {
                mover.will_read(&file, offset, len);
            }
        }
    }

    pub(super) fn state(&self) -> ImageState {
        ImageState {
            name: self.image.name(),
            bytes: self.image.stored().0,
            rw: self.image.writable(),
            first_read: self.first_read,
        }
    }
}

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
            Request::Stop { .. } => {
                self.waiting.push_front(request);
                self.disconnect();
                self.serve();
            }
            Request::Insert { .. } | Request::Eject { .. } | Request::Set { .. } => {
                if self.stopping {
                    request.refuse(&Refusal::Stopped);
                } else if self.waiting.len() >= super::command::REQUESTS_MAX {
                    request.refuse(&Refusal::Busy);
                } else {
                    self.waiting.push_back(request);
                    self.serve();
                }
            }
        }
    }

    /// Answers what waits, as far as the function is quiet.
    pub(super) fn serve(&mut self) {
        while self.quiet() && !self.stopped {
            match self.waiting.pop_front() {
                None | Some(Request::State { .. } | Request::Stats { .. }) => return,
                Some(Request::Insert { lun, image, reply }) => reply.send(self.insert(lun, image)),
                Some(Request::Eject { lun, force, reply }) => self.eject(lun, force, reply),
                Some(Request::Set { lun, setting, reply }) => reply.send(self.set(lun, setting)),
                Some(Request::Stop { reply }) => self.stop(0, None, reply),
            }
        }
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

    fn insert(&mut self, lun: u8, mut image: Box<dyn Medium>) -> Result<ImageState, Refusal> {
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
        let stream = ReadAhead::default();
        let loaded = Loaded { image, first_read: false, dirty: false, lost: false, slow, stream };
        let state = loaded.state();
        drive.loaded = Some(loaded);
        if let Some(unit) = self.target.unit_mut(lun) {
            unit.insert(medium);
        }
        self.tell(Event::Inserted { drive: self.index(lun), image: state.clone() });
        Ok(state)
    }

    fn eject(&mut self, lun: u8, force: bool, reply: ReplyTo<Result<String, Refusal>>) {
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
        let file = loaded.unstored_file();
        self.settling = Some(Settling::Eject { lun, force, reply });
        self.sync(file);
    }

    fn stop(&mut self, from: u8, lost: Option<String>, reply: ReplyTo<Result<(), Refusal>>) {
        let unstored = (from..)
            .zip(self.drives.iter().skip(usize::from(from)))
            .find_map(|(lun, drive)| Some((lun, drive.loaded.as_ref()?.unstored_file()?)));
        match unstored {
            Some((lun, file)) => {
                self.settling = Some(Settling::Stop { lun, lost, reply });
                self.sync(Some(file));
            }
            None => {
                let drives = self.drives.iter().filter_map(|drive| drive.loaded.as_ref());
                let earlier = || drives.filter(|loaded| loaded.lost).map(|loaded| loaded.image.name()).next();
                let lost =
                    lost.or_else(|| earlier().map(|name| format!("an earlier sync of {name:?} failed")));
                self.stopped = true;
                reply.send(lost.map_or(Ok(()), |why| Err(Refusal::Sync(why))));
            }
        }
    }

    fn sync(&mut self, file: Option<Arc<File>>) {
        match file {
            // Not counted, so that the other drives go on meanwhile.
            Some(file) if self.mover.inner().sync(&file, SETTLE) => {}
            Some(_) => self.settled(Err(io::ErrorKind::ResourceBusy.into())),
            None => self.settled(Ok(0)),
        }
    }

    /// Whether something of this drive is being made durable for a request.
    pub(super) fn settles(&self, lun: u8) -> bool {
        match &self.settling {
            Some(Settling::Eject { lun: settling, .. }) => *settling == lun,
            Some(Settling::Stop { .. }) => true,
            None => false,
        }
    }

    /// The sync that somebody waited for has ended.
    pub(super) fn settled(&mut self, result: io::Result<usize>) {
        let settling = self.settling.take();
        if let (Some(Settling::Eject { lun, .. } | Settling::Stop { lun, .. }), Err(error)) =
            (&settling, &result)
        {
            self.note_lost(*lun, error);
        }
        match settling {
            Some(Settling::Eject { lun, force, reply }) => match result {
                Err(error) if !force => reply.send(Err(Refusal::Sync(error.to_string()))),
                Ok(_) | Err(_) => {
                    let by = if force { EjectedBy::Force } else { EjectedBy::Client };
                    if let Some(unit) = self.target.unit_mut(lun) {
                        unit.remove();
                    }
                    reply.send(self.take_out(lun, by).ok_or(Refusal::Empty));
                }
            },
            Some(Settling::Stop { lun, lost, reply }) => {
                let lost = lost.or(result.err().map(|error| error.to_string()));
                self.stop(lun.saturating_add(1), lost, reply);
            }
            None => {}
        }
    }

    /// The host ejected the medium; scsi knows already.
    pub(super) fn host_ejected(&mut self, lun: u8) {
        self.take_out(lun, EjectedBy::Host);
    }

    fn take_out(&mut self, lun: u8, by: EjectedBy) -> Option<String> {
        self.prefetch.discard();
        let loaded = self.drive_mut(lun)?.loaded.take()?;
        let name = loaded.image.name();
        close(loaded.image);
        self.tell(Event::Ejected { drive: self.index(lun), image: name.clone(), by });
        self.note_prevented(lun);
        Some(name)
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
            && loaded.read_ahead(range, &mut self.mover)
        {
            let slow = loaded.slow;
            self.want_next(lun, range, slow);
        }
    }

    pub(super) fn note_first_read(&mut self, lun: u8, lba: u64) {
        let Some(loaded) = self.drive_mut(lun).and_then(|drive| drive.loaded.as_mut()) else { return };
        if !std::mem::replace(&mut loaded.first_read, true) {
            self.tell(Event::FirstRead { drive: self.index(lun), lba });
        }
    }

    /// What was written to the drive cannot be made durable.
    pub(super) fn note_lost(&mut self, lun: u8, error: &io::Error) {
        if error.kind() == io::ErrorKind::ResourceBusy {
            // The ring was full: the sync was not even tried.
            return;
        }
        if let Some(loaded) = self.drive_mut(lun).and_then(|drive| drive.loaded.as_mut()) {
            loaded.lost = true;
            tracing::error!(image = loaded.image.name(), %error, "what the host wrote could not be stored and may be lost");
        }
    }

    /// Everything written to the drive is durable.
    pub(super) fn note_stored(&mut self, lun: u8) {
        if let Some(loaded) = self.drive_mut(lun).and_then(|drive| drive.loaded.as_mut()) {
            loaded.dirty = false;
        }
    }
}
