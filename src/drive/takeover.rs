//! From one process to the next: what a function makes of the record that its predecessor left, and how it leaves one itself.
//!
//! Of a command that the predecessor had begun, this function knows how far it was, but not how much the host has seen of it: with the
//! process went the requests that the kernel had. So the host gets an end that makes it try again.
//!
//! ```text
//!   unbegun ─► done as if nothing had been
//!   begun ─┬─ data-in ──► IN halted, CSW "failed", ABORTED COMMAND
//!          ├─ data-out ─► CSW "failed" at once; whatever still comes before the next CBW is dropped
//!          └─ no data ──► CSW "failed"
//!   answered ─► Silent ── CBW ─► it had its CSW
//!                 └─ nothing for a while ─► Asked: IN halted, the CSW behind it ─┬─ taken ─► it had not
//!                                                                                └─ nothing ─► Halted: the host has nothing to ask
//! ```
//! A host that waits for bytes or for the CSW meets the halt and then reads the CSW (BOT 1.0 §6.7.2, §5.3.3). Nothing but a halt
//! may stand on IN while the host perhaps waits for nothing, because a next command would take it for its data: behind the halt
//! there is time to take the CSW away again. The halt of an idle host stays, as taking it away would confuse the data toggles: a
//! next command without data-in meets it at its CSW, which hosts know, and one with data-in fails and is tried again.
//! A CSW after data that the host may have in part is "failed"; one that stood alone is sent again as it was.
//!
//! Called by `function`.

use std::{fmt, fs::File, sync::Arc, time::Duration};

use crate::{
    bot::{self, CBW_LEN, Command, CommandStatus, Expected, Intent, StallPolicy},
    gadget::{
        Speed,
        endpoints::{Endpoints, Halted, Pipe, TransferError, Wake},
    },
    media::Medium,
    ring::Mover,
    scsi::Status,
};

use super::{
    command::{EjectedBy, Event, HostState, Refusal, ReplyTo},
    function::{Function, Phase},
    handover::{Behind, Handover, KeptDrive, KeptImage, Last, Unfinished},
    pipes::{PipeError, data_tag},
};

/// How long a host that has its CSW may take to its next command before it is asked: with the start of this process behind it, much
/// longer than one that has anything to do.
const SILENCE: Duration = Duration::from_millis(200);
/// How long a host may take to clear a halt and read a CSW.
const ASKED: Duration = Duration::from_secs(1);
/// How long the command at hand may take to its end before it is left to the successor.
const LEAVE: Duration = Duration::from_secs(1);
/// How long what was written may take to become durable then. The kernel has it all the same, or the image stores it when it is dropped.
const LEAVE_STORE: Duration = Duration::from_secs(1);
/// SPC-4. The host asks for it behind a command that has failed; that it fails too is a reason for a reset.
const REQUEST_SENSE: u8 = 0x03;

/// What whoever keeps descriptors for a successor is told.
#[derive(Debug)]
pub enum Keep {
    /// This is in a drive now.
    Image {
        /// Which drive.
        lun: u8,
        /// Which of its images, as [`KeptDrive::number`].
        number: u32,
        /// Its file.
        file: Arc<File>,
    },
    /// That is gone.
    Gone {
        /// Which drive.
        lun: u8,
        /// Which of its images.
        number: u32,
    },
}

/// Where that goes; called on the function's thread, so it must not block.
pub type Keeper = Box<dyn Fn(Keep) + Send>;

/// A CSW of the predecessor that the host may or may not have.
#[derive(Clone, Copy, Debug)]
pub(super) enum Limbo {
    Silent { last: Last, until: Duration },
    Asked { until: Duration, halt: Halt },
    Idle { halt: Halt },
}

/// Whether IN is halted for a host that waits for nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Halt {
    No,
    /// By the predecessor; the host may have cleared it.
    Perhaps,
    Yes,
}

/// The end of this process is waited for.
pub(super) struct Leaving {
    until: Duration,
    reply: ReplyTo<Result<(), Refusal>>,
}

impl fmt::Debug for Leaving {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Leaving until {:?}", self.until)
    }
}

impl<E: Endpoints, M: Mover> Function<E, M> {
    /// Keeps its state in `handover`, which has just begun, and tells `keeper` of its images. To be called before anything happens.
    pub fn keep_in(&mut self, handover: Handover, keeper: Keeper) {
        self.pipes.handover = handover;
        self.keeper = keeper;
        self.keep_drives();
    }

    /// Becomes what its predecessor was that left this, with the images that could be had again; the rest is empty. The host is
    /// spoken to at [`BusEvent::TakenOver`](crate::gadget::BusEvent::TakenOver). As [`Function::keep_in`] otherwise.
    pub fn resume(
        &mut self,
        mut handover: Handover,
        drives: &[KeptDrive],
        mut media: Vec<(u8, Box<dyn Medium>)>,
        keeper: Keeper,
    ) {
        if handover.never_stalls() {
            self.bot.set_stall(StallPolicy::Never);
        }
        self.pipes.resume(handover);
        for (lun, kept) in (0u8..).zip(drives) {
            let found = media.iter().position(|(of, _)| *of == lun).map(|at| media.swap_remove(at).1);
            self.resume_drive(lun, kept, found);
        }
        self.keeper = keeper;
        self.keep_drives();
    }

    fn resume_drive(&mut self, lun: u8, kept: &KeptDrive, medium: Option<Box<dyn Medium>>) {
        let Some(unit) = self.target.unit_mut(lun) else { return };
        let identity = unit.identity().clone();
        // It is empty yet, so its kind can change.
        let _ = unit.set_kind(kept.kind, identity);
        let Some(drive) = self.drive_mut(lun) else { return };
        (drive.rw, drive.inserted) = (kept.rw, kept.number);
        let mut changed = false;
        if let Some((medium, image)) = medium.zip(kept.image.as_ref()) {
            changed = image.identity.is_some_and(|was| medium.compare(&was).is_err());
            // It keeps its number.
            drive.inserted = kept.number.wrapping_sub(1);
            if let Err(error) = self.put_in(lun, medium) {
                tracing::warn!(%error, lun, "an image is not taken over");
                if let Some(drive) = self.drive_mut(lun) {
                    drive.inserted = kept.number;
                }
            }
        }
        if let (Some(image), Some(loaded)) = (&kept.image, self.loaded_mut(lun)) {
            loaded.lost = image.lost;
            loaded.first_read = image.first_read;
            // What was written by then may not be durable.
            loaded.written = u32::from(loaded.image.writable());
        }
        let is_gone = kept.image.is_some() && self.loaded(lun).is_none();
        let index = self.index(lun);
        let Some(unit) = self.target.unit_mut(lun) else { return };
        if let Err(error) = unit.resume(&kept.unit) {
            tracing::warn!(%error, lun, "a drive begins anew");
        }
        if is_gone {
            unit.resume_empty();
        }
        if changed {
            unit.resume_changed();
        }
        let prevented = unit.prevented();
        if let Some(drive) = self.drive_mut(lun) {
            drive.prevented = prevented;
        }
        if let Some(image) = kept.image.as_ref().filter(|_| is_gone) {
            self.tell(Event::Ejected { drive: index, image: image.name.clone(), by: EjectedBy::Force });
        }
    }

    /// What scsi knows of a unit, for a successor.
    pub(super) fn keep_unit(&mut self, lun: u8) {
        if self.pipes.handover.is_kept()
            && let Some(unit) = self.target.unit(lun)
        {
            self.pipes.handover.keep_unit(lun, unit.keep());
        }
    }

    /// All of it, after whatever is no command.
    pub(super) fn keep_drives(&mut self) {
        if !self.pipes.handover.is_kept() {
            return;
        }
        self.pipes.handover.set_stall(self.bot.stall() == StallPolicy::Never);
        for lun in self.target.luns() {
            let (Some(unit), Some(drive)) = (self.target.unit(lun), self.drive(lun)) else { continue };
            let image = drive.loaded.as_ref().map(|loaded| KeptImage {
                name: loaded.image.name(),
                writable: loaded.image.writable(),
                identity: loaded.image.kept().map(|(_, identity)| identity),
                lost: loaded.lost,
                first_read: loaded.first_read,
            });
            let kept = KeptDrive {
                kind: unit.kind(),
                rw: drive.rw,
                number: drive.inserted,
                image,
                unit: unit.keep(),
            };
            self.pipes.handover.keep_drive(lun, &kept);
        }
    }

    /// The host is there, and waits for the predecessor.
    pub(super) fn taken_over(&mut self, speed: Speed) {
        self.host = HostState::Connected { speed };
        self.tell(Event::Connected { function: self.name.clone(), speed });
        if !matches!(self.phase, Phase::Down) {
            // A reset was done already.
            return;
        }
        self.phase = Phase::Idle;
        let unfinished = self.pipes.handover.unfinished();
        tracing::info!(function = self.name, ?unfinished, "taken over");
        let went = match unfinished {
            Unfinished::Nothing => self.pipes.receive_cbw(),
            Unfinished::Answered(last) => {
                self.limbo = Some(Limbo::Silent { last, until: self.mover.now() + SILENCE });
                self.pipes.receive_cbw()
            }
            Unfinished::Unbegun(cbw) => {
                // Once: a command that this process does not survive either fails.
                self.pipes.handover.moving();
                self.pipes.handover.drained();
                self.begin_again(&cbw, Self::command)
            }
            Unfinished::Begun(cbw) => {
                self.begin_again(&cbw, |this, command| this.interrupted(command, false))
            }
            Unfinished::Broken => {
                let _ = self.bot.receive_cbw(&[]);
                self.break_off();
                Ok(())
            }
        };
        self.settle_pipes(went);
        self.serve();
    }

    fn begin_again(
        &mut self,
        cbw: &[u8; CBW_LEN],
        go_on: impl FnOnce(&mut Self, Command) -> Result<(), PipeError>,
    ) -> Result<(), PipeError> {
        match self.bot.receive_cbw(cbw) {
            Ok(command) => go_on(self, command),
            Err(_) => {
                self.break_off();
                Ok(())
            }
        }
    }

    /// Ends a command that the predecessor had begun, or that meets its halt, so that the host tries again.
    fn interrupted(&mut self, command: Command, halted: bool) -> Result<(), PipeError> {
        self.open(&command);
        self.open.data = self.bot.plan(Intent::None).phase;
        let status = match command.cdb.first() {
            // No sense data; then the host tries what it was about.
            Some(&REQUEST_SENSE) => Status::Good,
            _ => {
                if let Some(unit) = self.target.unit_mut(command.lun.0) {
                    unit.interrupted();
                }
                Status::CheckCondition
            }
        };
        match command.expected {
            Expected::In(_) if !halted => self.end(status, 0),
            Expected::None => self.end(status, 0),
            Expected::In(_) | Expected::Out(_) => {
                let behind = match command.expected {
                    Expected::Out(_) => Behind::LeftOvers,
                    Expected::In(_) | Expected::None => Behind::Halt,
                };
                let status = match status {
                    Status::Good => CommandStatus::Passed,
                    Status::CheckCondition => CommandStatus::Failed,
                };
                let ending = self.bot.finish(status, 0);
                self.send_csw_behind(behind, ending.csw, Wake::Now)
            }
        }
    }

    /// Something that is no CBW has come while a command of the predecessor may still be sending its data.
    pub(super) fn left_over(&mut self) -> Result<(), PipeError> {
        let now = self.mover.now();
        match &mut self.limbo {
            Some(Limbo::Silent { until, .. }) => *until = now + SILENCE,
            Some(Limbo::Asked { until, .. }) => *until = now + ASKED,
            Some(Limbo::Idle { .. }) | None => {}
        }
        self.pipes.receive_cbw()
    }

    /// The first command after a takeover that found none.
    pub(super) fn command_in_limbo(&mut self, command: Command) -> Result<(), PipeError> {
        let halt = match self.limbo.take() {
            Some(Limbo::Asked { halt, .. }) => {
                // The host did not wait for it.
                self.pipes.cancel(Pipe::In);
                halt
            }
            Some(Limbo::Idle { halt }) => halt,
            Some(Limbo::Silent { last, .. }) if last.halted() => Halt::Perhaps,
            Some(Limbo::Silent { .. }) | None => Halt::No,
        };
        match (command.expected, halt) {
            (Expected::In(_), Halt::Yes) => self.interrupted(command, true),
            // One more halt is one that the host expects.
            (Expected::In(_), Halt::Perhaps) => self.interrupted(command, false),
            (Expected::In(_), Halt::No) | (Expected::Out(_) | Expected::None, _) => self.command(command),
        }
    }

    pub(super) fn next_limbo(&self) -> Option<Duration> {
        match self.limbo? {
            Limbo::Silent { until, .. } | Limbo::Asked { until, .. } => {
                Some(until.saturating_sub(self.mover.now()))
            }
            Limbo::Idle { .. } => None,
        }
    }

    /// Asks a host that says nothing whether it waits for the CSW of the predecessor; believes after a while that it does not.
    pub(super) fn pursue_limbo(&mut self) -> Result<(), PipeError> {
        let now = self.mover.now();
        match self.limbo {
            Some(Limbo::Silent { last, until }) if now >= until => self.ask(last),
            Some(Limbo::Asked { until, halt }) if now >= until => {
                self.pipes.cancel(Pipe::In);
                self.limbo = (halt != Halt::No).then_some(Limbo::Idle { halt });
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn ask(&mut self, last: Last) -> Result<(), PipeError> {
        let halt = match (self.bot.stall(), last.data_in()) {
            // The host has met the halt, or meets it now; it had all the data before. It does not expect two.
            _ if last.halted() => Halt::Perhaps,
            (StallPolicy::Auto, _) => match self.pipes.halt(Pipe::In) {
                Halted::Yes => Halt::Yes,
                Halted::Busy => {
                    // The controller has something that the host has not taken: perhaps the CSW.
                    self.limbo = Some(Limbo::Silent { last, until: self.mover.now() + SILENCE });
                    return Ok(());
                }
                Halted::Disabled => return Err(PipeError(TransferError::Disabled)),
            },
            (StallPolicy::Never, Some(_)) => {
                let empty = self.pipes.small()?;
                self.pipes.send(empty, 0, data_tag(0), Wake::Later)?;
                Halt::No
            }
            (StallPolicy::Never, None) => Halt::No,
        };
        let csw = match last.data_in() {
            _ if last.halted() => last.csw(),
            Some(expected) if last.opcode() == REQUEST_SENSE => {
                bot::take_back(&last.csw(), CommandStatus::Passed, expected)
            }
            Some(expected) => {
                if let Some(unit) = self.target.unit_mut(last.lun()) {
                    unit.interrupted();
                }
                self.keep_unit(last.lun());
                bot::take_back(&last.csw(), CommandStatus::Failed, expected)
            }
            None => last.csw(),
        };
        self.limbo = Some(Limbo::Asked { until: self.mover.now() + ASKED, halt });
        self.pipes.answer_again(last.again(csw, halt != Halt::No), Wake::Now)
    }

    /// Leaves the host to a successor as soon as nothing is half done, or soon.
    pub(super) fn leave(&mut self, reply: ReplyTo<Result<(), Refusal>>) {
        self.leaving = Some(Leaving { until: self.mover.now() + LEAVE, reply });
        self.try_leave();
    }

    pub(super) fn try_leave(&mut self) {
        let Some(Leaving { until, .. }) = &self.leaving else { return };
        let quiet = match self.phase {
            Phase::Down | Phase::Broken { .. } => true,
            Phase::Idle => self.pipes.queued(Pipe::In) == 0 || self.limbo.is_some(),
            _ => false,
        };
        if self.stopping || (!quiet && self.mover.now() < *until) {
            return;
        }
        if let Some(Leaving { reply, .. }) = self.leaving.take() {
            self.stopping = true;
            // Nothing of this is in the record: for the host, and for the successor, it is as it was.
            self.abandon(Phase::Down);
            self.stop(reply, LEAVE_STORE);
        }
    }
}
