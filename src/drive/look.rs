//! Before a read is said to have gone well: whether what was read is still what was inserted.
//!
//! ```text
//!   all bytes read, and queued to the host ──┬─ the file can be looked at ──────────────► GOOD, or MEDIUM ERROR
//!                                            ├─ its server is asked ─► Look ─ it says ──► GOOD, or MEDIUM ERROR
//!                                            └─ asked now and then, behind the command ► GOOD
//! ```
//! Whoever writes to a file changes its length or time first, so what is asked for after the bytes were read tells of all of them,
//! wherever they were kept before. The host takes the bytes meanwhile, so that it waits for the answer only where that takes longer.
//! Called by `phases`, `sectors_in`, `compound` and `source`.

use std::time::Duration;

use crate::{
    gadget::endpoints::Endpoints,
    media::{FaultKind, Identity, Residence, Standing, Watch},
    ring::{Moved, Mover, OpTag},
    scsi::{Pending, Sense},
    units::Lba,
};

use super::{
    command::Event,
    fault::Way,
    flights::Owner,
    function::{Function, Phase},
    loaded::Health,
    pipes::PipeError,
};

/// How often whoever has the file is asked in any case, while it is read: what the kernel has heard of it, or keeps of its bytes,
/// may be old.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// A read, or a comparison, that moved all that it will.
#[derive(Debug)]
pub(super) struct ReadEnd {
    pub(super) pending: Pending,
    /// The first block of the command.
    pub(super) first: Lba,
    pub(super) moved: ReadMoved,
    /// What has come of it, if the bytes are those of the image.
    pub(super) result: Result<(), Sense>,
}

/// The data phase of what reads.
#[derive(Clone, Copy, Debug)]
pub(super) enum ReadMoved {
    /// So many bytes to the host.
    In(u32),
    /// None.
    Nothing,
    /// So many from the host, which may still send `left`.
    Out { moved: u32, left: u32 },
}

/// What a look at the file says.
enum Looked {
    Same,
    Other(FaultKind),
    /// Nothing yet.
    Ask,
}

impl<E: Endpoints, M: Mover> Function<E, M> {
    /// Ends a read, at once or after a look. `fault` is why it has not moved everything, and the block that could not be had: the
    /// host may take those before it for good (SPC-4 §4.5.2.4), which is up to the look as well.
    pub(super) fn end_read(
        &mut self,
        read: ReadEnd,
        fault: Option<(FaultKind, Lba)>,
    ) -> Result<(), PipeError> {
        let result = match (self.look_at_file(self.open.lun), fault) {
            (Looked::Same, None) => read.result,
            (Looked::Same, Some((kind, lba))) => Err(self.fault(kind, Way::Read, Some(lba))),
            (Looked::Other(kind), _) => Err(self.fault(kind, Way::Read, Some(read.first))),
            (Looked::Ask, Some((kind, _))) => {
                // The file itself says whether it is gone for good.
                if matches!(kind, FaultKind::Stale | FaultKind::Truncated) {
                    self.probe(self.open.lun);
                }
                Err(self.fault(kind, Way::Read, Some(read.first)))
            }
            (Looked::Ask, None) => {
                self.phase = Phase::Look { read, asked: false };
                return self.ask_for_look();
            }
        };
        self.answer_read(read, result)
    }

    fn answer_read(&mut self, read: ReadEnd, result: Result<(), Sense>) -> Result<(), PipeError> {
        let status = self.target.complete(read.pending, result);
        match read.moved {
            ReadMoved::In(moved) => self.end(status, moved),
            ReadMoved::Nothing => self.conclude(status),
            ReadMoved::Out { moved, left } => self.drop_rest(status, left, moved),
        }
    }

    /// Asks, unless that is done. If there is no room: again after the next completion.
    pub(super) fn ask_for_look(&mut self) -> Result<(), PipeError> {
        let lun = self.open.lun;
        let Phase::Look { ref mut asked, .. } = self.phase else { return Ok(()) };
        let loaded = self.drives.get(usize::from(lun)).and_then(|drive| drive.loaded.as_ref());
        let Some(loaded) = loaded.filter(|_| !*asked) else { return Ok(()) };
        if let Watch::Ask(file) = loaded.image.watch() {
            *asked = self.mover.on(loaded.purpose(Owner::Command, lun)).stat(file, OpTag(0));
        }
        Ok(())
    }

    /// What was asked for is here.
    pub(super) fn looked(&mut self, done: &Moved) -> Result<(), PipeError> {
        let result = match &done.result {
            Ok(_) => self.compare(self.open.lun, done),
            Err(error) => Err(FaultKind::from(error)),
        };
        if result == Err(FaultKind::Stale) {
            self.changed(self.open.lun, FaultKind::Stale);
        }
        self.end_look(result)
    }

    /// Somebody has said what the file is, or nobody will.
    pub(super) fn end_look(&mut self, result: Result<(), FaultKind>) -> Result<(), PipeError> {
        match std::mem::replace(&mut self.phase, Phase::Idle) {
            Phase::Look { read, .. } => {
                let looked = result.map_err(|kind| self.fault(kind, Way::Read, Some(read.first)));
                let result = looked.and(read.result);
                self.answer_read(read, result)
            }
            other => {
                self.phase = other;
                Ok(())
            }
        }
    }

    fn look_at_file(&mut self, lun: u8) -> Looked {
        let now = self.mover.now();
        let Some(loaded) = self.loaded_mut(lun) else { return Looked::Same };
        // Who is asked after each read need not be asked besides.
        let due = loaded.health == Health::Online
            && loaded.image.residence() == Residence::Remote
            && !matches!(loaded.image.watch(), Watch::Ask(_))
            && now.saturating_sub(loaded.looked) >= LOOK_EVERY;
        if due {
            loaded.looked = now;
            self.probe(lun);
        }
        let Some(loaded) = self.loaded(lun) else { return Looked::Same };
        match loaded.image.watch() {
            Watch::Look => match loaded.image.look() {
                Ok(standing) => {
                    self.stands(lun, standing);
                    Looked::Same
                }
                Err(kind) => {
                    self.changed(lun, kind);
                    Looked::Other(kind)
                }
            },
            Watch::Ask(_) => Looked::Ask,
            Watch::Seldom => Looked::Same,
        }
    }

    /// Takes what the file is now; what is wrong with it.
    pub(super) fn compare(&mut self, lun: u8, done: &Moved) -> Result<(), FaultKind> {
        let looked = match (done.stat, self.loaded(lun)) {
            (Some(stat), Some(loaded)) => loaded.image.compare(&Identity::from(stat)),
            _ => Ok(Standing::Same),
        };
        match looked {
            Ok(standing) => {
                self.stands(lun, standing);
                Ok(())
            }
            Err(kind) => {
                self.changed(lun, kind);
                Err(kind)
            }
        }
    }

    /// Somebody else has changed the image.
    pub(super) fn changed(&mut self, lun: u8, why: FaultKind) {
        let Some(loaded) = self.loaded_mut(lun).filter(|loaded| loaded.health != Health::Changed) else {
            return;
        };
        loaded.health = Health::Changed;
        let image = loaded.image.name();
        self.tell(Event::SourceChanged { drive: self.index(lun), image, cause: why.to_string() });
    }

    /// A file that was replaced is still there for the drive, which goes on with it; people hear of it, once.
    fn stands(&mut self, lun: u8, standing: Standing) {
        let Some(loaded) = self.loaded_mut(lun) else { return };
        if standing == Standing::Same || loaded.nameless {
            return;
        }
        loaded.nameless = true;
        let image = loaded.image.name();
        let cause =
            "the file was replaced or removed; the drive goes on with the old one until it is ejected";
        self.tell(Event::SourceChanged { drive: self.index(lun), image, cause: cause.to_owned() });
    }
}
