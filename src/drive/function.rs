//! The function: which phase a command is in, what the bus did, and what comes next.
//!
//! ```text
//!              ENABLE                  CBW
//!   Down ──────────────► Idle ─────────────────► (scsi answers)
//!     ▲                   ▲                        │
//!     │ DISABLE,          │ CSW and the next       ├── no image needed ──────────────► end
//!     │ from any phase    │ CBW read queued        ├── Held ─► a phase of its own ───► end
//!     │                   │                        └── Out (parameters, or dropped) ─► end
//!   Aborting ◄────────────┤
//!     │  ▲                └── end ◄── Stalling: the IN pipe runs dry, is halted
//!     │  └─ Bulk-Only Reset, from any phase
//!     ▼
//!   Idle, once both pipes have given everything back
//!
//!   Broken: an invalid CBW, or a transfer that the kernel would not take; both pipes halted until a reset (BOT 1.0 §6.6.1)
//! ```
//!
//! Called by `thread` (and the simulation) with one event at a time. Invariants: every [`scsi::Pending`](crate::scsi::Pending) is
//! answered or abandoned; a command touches the image only when no operation of an abandoned one may still end in
//! time, and none that is late may change it; the next CBW read is
//! queued right behind the CSW, which is safe because the OUT pipe is never halted but for an invalid CBW.

use std::{collections::VecDeque, fmt, io, time::Duration};

use crate::{
    bot::{Bot, CSW_LEN, DataPhase, Expected, StallPolicy},
    gadget::{
        ResetTicket,
        endpoints::{EndpointDone, Endpoints, Halted, Pipe, TransferError, Wake},
    },
    media::{Medium, Waker},
    ring::{MoveOp, Moved, Mover, pool::Pool},
    scsi::{Identity, Kind, MediaOp, Pending, PendingParameters, Status, Target, Unit},
    units::BlockSize,
};

use super::{
    command::{DriveIndex, Event, HostState, Request},
    compound::Compound,
    data_in::DataIn,
    data_out::DataOut,
    flights::{self, Flights, Interest, Owner, Purpose},
    handover::Behind,
    loaded::{self, Loaded},
    look::ReadEnd,
    pipes::{CBW, CSW, PipeError, Pipes},
    prefetch::Prefetch,
    sectors_in::SectorsIn,
    settle::{Settling, Stopping},
    statistics::{Clock, Clocks, Statistics, Tally},
    takeover::{Keeper, Leaving, Limbo},
};

/// How long after a refused halt, or a cancel of requests that wake nobody, to look again: a few bus intervals.
const LOOK_SOON: Duration = Duration::from_micros(500);
/// How long after requests that wake nobody to look what became of them: a host that clears halts at odd moments ends them.
const LOOK_LATE: Duration = Duration::from_millis(20);
/// How long both pipes are halted again and again, for a host that clears a halt but does not reset: nobody tells us of it, and a pipe
/// that stayed silent then would cost the host its whole patience.
const HALT_AGAIN: Duration = Duration::from_secs(10);

/// A drive as configured.
#[derive(Clone, Debug)]
pub struct DriveOptions {
    /// Its name.
    pub name: String,
    /// What the host sees.
    pub kind: Kind,
    /// Its INQUIRY strings and serial number.
    pub identity: Identity,
    /// Whether images are inserted writable by default.
    pub rw: bool,
    /// Its logical block length while it is a disk.
    pub block_size: BlockSize,
    /// How long an operation on its image may take.
    pub deadline: Duration,
}

/// A function as configured.
#[derive(Clone, Debug)]
pub struct FunctionOptions {
    /// Its name.
    pub name: String,
    /// The number of its first drive.
    pub first: DriveIndex,
    /// How short data phases end.
    pub stall: StallPolicy,
    /// Its drives, by LUN; at most 16.
    pub drives: Vec<DriveOptions>,
}

/// A drive at work.
#[derive(Debug)]
pub(super) struct Drive {
    pub(super) name: String,
    pub(super) rw: bool,
    pub(super) block_size: BlockSize,
    pub(super) loaded: Option<Loaded>,
    /// Images that were taken out while the ring still had something of them.
    pub(super) left: Vec<(u32, Box<dyn Medium>)>,
    /// Counts images.
    pub(super) inserted: u32,
    pub(super) settling: Option<Settling>,
    /// What was written is to be stored, though nobody waits.
    pub(super) to_store: bool,
    pub(super) deadline: Duration,
    /// As last told by an event.
    pub(super) prevented: bool,
    pub(super) statistics: Statistics,
}

/// The command that the host waits for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Open {
    pub(super) lun: u8,
    pub(super) opcode: u8,
    /// What the host expects of it.
    pub(super) expected: Expected,
    /// What the host transfers for it.
    pub(super) data: DataPhase,
    /// Bytes of its parameter list, once that is there, or of a write that is still to be made durable.
    pub(super) listed: u32,
    /// What is to be counted of it; `None` once it is.
    pub(super) tally: Option<Tally>,
}

/// What ends a data-out phase.
#[derive(Debug)]
pub(super) enum OutEnd {
    /// The command was answered before; the bytes are dropped.
    Answered(Status),
    /// As before; so many bytes had been taken by then.
    Moved { status: Status, moved: u32 },
    /// The image took them.
    Write(Pending),
    /// They are a parameter list.
    List(PendingParameters),
}

// There is one Phase a function; a box would be an allocation a command.
#[allow(clippy::large_enum_variant)]
#[derive(Debug)]
pub(super) enum Phase {
    Down,
    Idle,
    Held { op: MediaOp, pending: Pending },
    In { data: DataIn, pending: Pending },
    Sectors { data: SectorsIn, pending: Pending },
    Look { read: ReadEnd, asked: bool },
    Out { data: DataOut, end: OutEnd },
    Compound { data: Compound, pending: Pending },
    Sync { pending: Pending, unload: bool },
    Stalling { csw: [u8; CSW_LEN] },
    Broken { in_halted: bool, out_halted: bool },
    Aborting(After),
}

#[derive(Debug)]
pub(super) enum After {
    Down,
    Idle,
    Reset(ResetTicket),
}

/// Where events go; called on the function's thread, so it must not block.
pub type EventSink = Box<dyn Fn(Event) + Send>;

/// One Bulk-Only function with its drives.
pub struct Function<E, M> {
    pub(super) name: String,
    pub(super) first: DriveIndex,
    pub(super) bot: Bot,
    pub(super) target: Target,
    pub(super) drives: Vec<Drive>,
    pub(super) mover: Flights<M>,
    pub(super) host: HostState,
    /// And since when.
    pub(super) waiting: VecDeque<(Duration, Request)>,
    pub(super) stop: Option<Stopping>,
    pub(super) stopping: bool,
    pub(super) stopped: bool,
    events: EventSink,
    pub(super) waker: Waker,
    pub(super) prefetch: Prefetch,
    pub(super) pipes: Pipes<E>,
    pub(super) phase: Phase,
    pub(super) open: Open,
    /// When the command at hand last went on.
    pub(super) progress: Duration,
    /// How long the command at hand has waited for its image before that.
    pub(super) waited: Duration,
    pub(super) clock: Clock,
    pub(super) halt_again: bool,
    /// A CSW of the predecessor that the host may or may not have.
    pub(super) limbo: Option<Limbo>,
    /// Who keeps the files of images for a successor.
    pub(super) keeper: Keeper,
    pub(super) leaving: Option<Leaving>,
}

impl<E: Endpoints, M: Mover> Function<E, M> {
    /// A function that waits for its host. `mover` is made from the pools, so that it can register them; `clock` times
    /// commands, and how long what was brought ahead is kept.
    ///
    /// # Errors
    /// When the buffers cannot be mapped, or `mover` fails.
    pub fn new<F: From<io::Error>>(
        options: FunctionOptions,
        endpoints: E,
        mover: impl FnOnce(&[Pool]) -> Result<M, F>,
        events: EventSink,
        clocks: Clocks,
    ) -> Result<Self, F> {
        let drives = options.drives.len();
        let pipes = Pipes::new(endpoints, drives)?;
        let mover = mover(&pipes.pools())?;
        let units =
            options.drives.iter().map(|drive| Unit::new(drive.kind, drive.identity.clone())).collect();
        let drive = |DriveOptions { name, rw, block_size, deadline, .. }| Drive {
            name,
            rw,
            block_size,
            loaded: None,
            left: Vec::new(),
            inserted: 0,
            settling: None,
            to_store: false,
            deadline,
            prevented: false,
            statistics: Statistics::new(),
        };
        Ok(Self {
            name: options.name,
            first: options.first,
            bot: Bot::new(options.stall),
            target: Target::new(units),
            drives: options.drives.into_iter().map(drive).collect(),
            mover: Flights::new(mover, clocks.coarse, drives),
            host: HostState::Disconnected,
            waiting: VecDeque::with_capacity(super::command::REQUESTS_MAX),
            stop: None,
            stopping: false,
            stopped: false,
            events,
            waker: Waker::default(),
            prefetch: Prefetch::default(),
            pipes,
            phase: Phase::Down,
            open: Open {
                lun: 0,
                opcode: 0,
                expected: Expected::None,
                data: DataPhase::None,
                listed: 0,
                tally: None,
            },
            progress: Duration::ZERO,
            waited: Duration::ZERO,
            clock: clocks.exact,
            halt_again: false,
            limbo: None,
            keeper: Box::new(drop),
            leaving: None,
        })
    }

    /// The endpoints, for whoever waits on them.
    pub fn endpoints(&mut self) -> &mut E {
        self.pipes.endpoints_mut()
    }

    /// The mover, for whoever waits on it.
    pub fn mover(&mut self) -> &mut M {
        self.mover.inner()
    }

    /// After how long at the latest [`Function::tick`] wants to be called, if at all. To be asked after every event; an earlier tick
    /// does no harm.
    pub fn timer(&self) -> Option<Duration> {
        let soon = self.halt_again || self.leaving.is_some() || matches!(self.phase, Phase::Aborting(_));
        if soon {
            return Some(LOOK_SOON);
        }
        let looks = self.pipes.queued(Pipe::In) > 0 || self.wants_room() || self.halts_again();
        let late = looks.then_some(LOOK_LATE);
        let due = [late, self.next_overdue(), self.next_settled(), self.next_served(), self.next_limbo()];
        due.into_iter().flatten().min()
    }

    /// Whether a stop has been carried out, and the thread may end.
    pub fn stopped(&self) -> bool {
        self.stopped
    }

    /// Hands what was queued to the kernel. To be called once the events at hand are dealt with.
    pub fn flush(&mut self) {
        self.pipes.flush();
        self.prefetch();
    }

    /// The time asked for by [`Function::timer`] has passed.
    pub fn tick(&mut self) {
        self.endpoints_ready();
        self.halt_again = false;
        if self.halts_again() {
            self.phase = Phase::Broken { in_halted: false, out_halted: false };
        }
        let went = self.try_halt().and_then(|()| self.overdue()).and_then(|()| self.pump());
        self.settle_pipes(went);
        let went = self.pursue_limbo();
        self.settle_pipes(went);
        self.settle_all();
        let went = self.start_held();
        self.settle_pipes(went);
        self.serve();
        self.try_leave();
    }

    /// Takes whatever the endpoints have finished; whether there was anything.
    pub fn endpoints_ready(&mut self) -> bool {
        let mut any = false;
        while let Some(done) = self.pipes.reap() {
            any = true;
            let went = self.endpoint_done(done);
            self.settle_pipes(went);
        }
        any
    }

    /// An image operation is done.
    pub fn moved(&mut self, done: Moved) {
        let tag = done.tag;
        let Some(flight) = self.mover.land(tag) else { return };
        let done = flights::as_known(done, &flight);
        let lun = flight.purpose.lun;
        self.note_write_ended(&flight, &done);
        let went = match (flight.interest, flight.purpose.owner) {
            (Interest::Awaited, Owner::Command) => {
                let now = self.mover.now();
                self.waited += now.saturating_sub(self.progress);
                self.progress = now;
                self.command_moved(done, flight.purpose)
            }
            (Interest::Awaited, Owner::Ahead) => {
                self.prefetch.done(tag, done, self.mover.now());
                Ok(())
            }
            (Interest::Awaited, Owner::Settle) if self.settles(lun) => {
                self.settle_synced(lun, flight.purpose.written, done.result);
                Ok(())
            }
            _ => {
                self.stray(&flight, &done);
                drop(done);
                Ok(())
            }
        };
        // There may have been no room for what the command at hand, or a request, wants.
        let went = went.and_then(|()| self.start_held()).and_then(|()| self.pump());
        self.settle_pipes(went);
        self.settle_all();
        self.serve();
    }

    fn command_moved(&mut self, done: Moved, purpose: Purpose) -> Result<(), PipeError> {
        match done.op {
            MoveOp::Sync if matches!(self.phase, Phase::Compound { .. }) => self.compound_moved(done),
            MoveOp::Sync => self.synced(purpose, done.result),
            MoveOp::Read => match &mut self.phase {
                Phase::In { data, .. } => {
                    data.read_done(done);
                    self.pump_in()
                }
                Phase::Sectors { data, .. } => {
                    data.read_done(done);
                    self.pump_sectors()
                }
                _ => self.compound_moved(done),
            },
            MoveOp::Write => match &mut self.phase {
                // What is only received and dropped may meet the last writes of an abandoned command.
                Phase::Out { data, end: OutEnd::Write(_) } => {
                    data.written(done, loaded::image_of(&self.drives, purpose.lun));
                    self.pump_out()
                }
                _ => self.compound_moved(done),
            },
            MoveOp::Stat => self.looked(&done),
            MoveOp::Punch => self.compound_moved(done),
        }
    }

    pub(super) fn tell(&self, event: Event) {
        tracing::info!(?event);
        (self.events)(event);
    }

    pub(super) fn drive(&self, lun: u8) -> Option<&Drive> {
        self.drives.get(usize::from(lun))
    }

    pub(super) fn drive_mut(&mut self, lun: u8) -> Option<&mut Drive> {
        self.drives.get_mut(usize::from(lun))
    }

    pub(super) fn index(&self, lun: u8) -> DriveIndex {
        DriveIndex(self.first.0 + u16::from(lun))
    }

    /// Lets go of the host for good.
    pub(super) fn disconnect(&mut self) {
        self.stopping = true;
        self.abort(After::Down);
    }

    fn endpoint_done(&mut self, done: EndpointDone) -> Result<(), PipeError> {
        self.progress = self.mover.now();
        if matches!(self.phase, Phase::Aborting(_)) {
            // It may have the only buffer for CBWs.
            drop(done);
            return self.try_restart();
        }
        match done.result {
            Ok(len) => match (done.pipe, done.tag) {
                (Pipe::Out, CBW) => self.cbw(done.buf, len),
                (Pipe::Out, _) => self.data_received(done),
                (Pipe::In, tag) => {
                    if tag == CSW {
                        self.limbo = None;
                    }
                    drop(done);
                    self.pump()?;
                    self.try_halt()
                }
            },
            Err(TransferError::Cancelled)
                if done.pipe == Pipe::Out && matches!(self.phase, Phase::Out { .. }) =>
            {
                self.data_received(done)
            }
            Err(TransferError::Cancelled) => self.try_halt(),
            // dwc3 ends what is queued when the host clears a halt (kernel.md §1.3).
            Err(TransferError::Interrupted) if done.tag == CBW => {
                // There is one buffer for CBWs.
                drop(done);
                self.pipes.receive_cbw()
            }
            Err(TransferError::Interrupted) if done.tag == CSW => self.pipes.send_csw(done.buf, Wake::Now),
            Err(error) => Err(PipeError(error)),
        }
    }

    /// Goes on with a phase that may have waited for a buffer, for room in a queue, or for bytes.
    pub(super) fn pump(&mut self) -> Result<(), PipeError> {
        match self.phase {
            Phase::In { .. } => self.pump_in(),
            Phase::Sectors { .. } => self.pump_sectors(),
            Phase::Look { .. } => self.ask_for_look(),
            Phase::Compound { .. } => self.pump_compound(),
            Phase::Out { .. } => self.pump_out(),
            _ => Ok(()),
        }
    }

    /// Halts what the phase wants halted, once it is idle.
    pub(super) fn try_halt(&mut self) -> Result<(), PipeError> {
        match self.phase {
            Phase::Stalling { csw } => match self.pipes.halt(Pipe::In) {
                Halted::Yes => self.send_csw_behind(Behind::Halt, csw, Wake::Now),
                // Requests are queued, or the controller's FIFO is not empty yet.
                Halted::Busy => {
                    self.halt_again = true;
                    Ok(())
                }
                Halted::Disabled => Err(PipeError(TransferError::Disabled)),
            },
            Phase::Broken { ref mut in_halted, ref mut out_halted } => {
                let was = [(Pipe::In, *in_halted), (Pipe::Out, *out_halted)];
                for (pipe, _) in was.iter().filter(|(_, halted)| !halted) {
                    match (self.pipes.halt(*pipe), *pipe) {
                        (Halted::Yes, Pipe::In) => *in_halted = true,
                        (Halted::Yes, Pipe::Out) => *out_halted = true,
                        (Halted::Disabled, _) => return Err(PipeError(TransferError::Disabled)),
                        (Halted::Busy, _) => self.halt_again = true,
                    }
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// What a refused or failed request means for the function.
    pub(super) fn settle_pipes(&mut self, went: Result<(), PipeError>) {
        match went {
            Ok(()) => {}
            Err(PipeError(TransferError::Disabled)) => self.abort(After::Down),
            Err(PipeError(error)) => {
                tracing::warn!(function = self.name, %error, "transfer failed; halted until the host resets");
                self.break_off();
            }
        }
    }

    fn halts_again(&self) -> bool {
        let is_new = self.mover.now().saturating_sub(self.progress) < HALT_AGAIN;
        matches!(self.phase, Phase::Broken { .. }) && is_new
    }

    /// The host and we have lost each other: halts both pipes until it resets.
    pub(super) fn break_off(&mut self) {
        self.progress = self.mover.now();
        self.pipes.handover.broken();
        self.abandon(Phase::Broken { in_halted: false, out_halted: false });
        if let Err(error) = self.try_halt() {
            self.settle_pipes(Err(error));
        }
    }

    pub(super) fn abort(&mut self, after: After) {
        let after = if self.stopping { After::Down } else { after };
        self.pipes.handover.reset();
        self.abandon(Phase::Aborting(after));
        let went = self.try_restart();
        self.settle_pipes(went);
    }

    /// Forgets the command at hand, cancels what is queued, and goes on to `next`.
    pub(super) fn abandon(&mut self, next: Phase) {
        self.limbo = None;
        self.count_aborted();
        match std::mem::replace(&mut self.phase, next) {
            Phase::Held { pending, .. }
            | Phase::In { pending, .. }
            | Phase::Sectors { pending, .. }
            | Phase::Compound { pending, .. }
            | Phase::Look { read: ReadEnd { pending, .. }, .. }
            | Phase::Sync { pending, .. } => self.target.abandon(pending),
            Phase::Out { end, .. } => match end {
                OutEnd::Write(pending) => self.target.abandon(pending),
                OutEnd::List(pending) => self.target.abandon_parameters(pending),
                OutEnd::Answered(_) | OutEnd::Moved { .. } => {}
            },
            Phase::Down
            | Phase::Idle
            | Phase::Stalling { .. }
            | Phase::Broken { .. }
            | Phase::Aborting(_) => {}
        }
        self.halt_again = false;
        self.mover.give_up(Interest::Abandoned);
        self.prefetch.discard();
        self.pipes.cancel(Pipe::In);
        self.pipes.cancel(Pipe::Out);
    }

    /// Goes on after an abort, once both pipes have given everything back: only then is queued IN data really dropped
    /// (BOT 1.0 §3.1).
    fn try_restart(&mut self) -> Result<(), PipeError> {
        if self.pipes.queued(Pipe::In) + self.pipes.queued(Pipe::Out) > 0 {
            return Ok(());
        }
        let Phase::Aborting(after) = std::mem::replace(&mut self.phase, Phase::Down) else { return Ok(()) };
        self.bot.reset();
        match after {
            After::Down => {
                self.serve();
                return Ok(());
            }
            // A halt of ours that came too late for the old configuration.
            After::Idle => self.pipes.clear_halts(),
            After::Reset(ticket) => drop(ticket.acknowledge()),
        }
        self.phase = Phase::Idle;
        self.pipes.receive_cbw()?;
        self.serve();
        Ok(())
    }
}

impl<E, M> fmt::Debug for Function<E, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Function")
            .field("name", &self.name)
            .field("phase", &self.phase)
            .finish_non_exhaustive()
    }
}
