//! The target: finds the unit and the opcode of a CDB, checks what the opcode demands, and keeps the sense data.

use super::cdb::Cdb;
use super::format;
use super::media_op::MediaOp;
use super::mode_select;
use super::opcodes::{self, Direction, Handler, MediumNeed, Opcode, UnderAttention};
use super::optical;
use super::pending::{Effect, List, Pending, PendingParameters};
use super::response::Response;
use super::sense::{LOGICAL_UNIT_NOT_SUPPORTED, PARAMETER_LIST_LENGTH_ERROR, Sense};
use super::unit::{PowerState, Unit};

/// The most units of a target: Bulk-Only Transport has four bits for a LUN (BOT 1.0 §5.1).
pub const LUNS_MAX: usize = 16;

/// No response is longer.
pub const RESPONSE_LEN_MAX: usize = 8192;

/// No parameter list that we ask for is longer.
pub const PARAMETERS_LEN_MAX: u32 = 512;

/// SCSI status, as far as Bulk-Only Transport can tell it to the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Done.
    Good,
    /// Not done; sense data waits for REQUEST SENSE.
    CheckCondition,
}

/// How a command goes on.
#[must_use]
#[derive(Debug)]
pub enum Reply {
    /// It is over, without data.
    Status(Status),
    /// It is over and GOOD; the host gets the first `len` bytes of the response buffer. At least one.
    Data {
        /// Already cut to the allocation length.
        len: usize,
    },
    /// It needs the medium. Answer with [`Target::complete`].
    Media(MediaOp, Pending),
    /// It needs a parameter list from the host. Answer with [`Target::parameters`].
    Parameters {
        /// Bytes that the host will send: 1 to [`PARAMETERS_LEN_MAX`].
        len: u32,
        /// The command that waits.
        pending: PendingParameters,
    },
}

/// How a command goes on once its parameter list is there.
#[must_use]
#[derive(Debug)]
pub enum ListReply {
    /// It is over.
    Status(Status),
    /// It needs the medium, and no more data. Answer with [`Target::complete`].
    Media(MediaOp, Pending),
}

/// What a handler answers where it does not refuse.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// GOOD without data.
    Done,
    /// GOOD with what was written, cut to this allocation length.
    Data { allocation: u32 },
    /// The medium is needed.
    Media(MediaOp),
    /// A parameter list of this length is needed.
    Parameters { len: u32, list: List },
}

/// Up to sixteen units, LUNs 0 and up without gaps.
#[derive(Debug)]
pub struct Target {
    units: Vec<Unit>,
}

impl Target {
    /// A target with these units; the first is LUN 0.
    ///
    /// # Panics
    /// With more than [`LUNS_MAX`] units. The configuration refuses that much earlier.
    pub fn new(units: Vec<Unit>) -> Self {
        assert!(units.len() <= LUNS_MAX, "a target has at most {LUNS_MAX} units");
        Self { units }
    }

    /// The unit with this LUN.
    pub fn unit(&self, lun: u8) -> Option<&Unit> {
        self.units.get(usize::from(lun))
    }

    /// The unit with this LUN, to insert, remove and change it.
    pub fn unit_mut(&mut self, lun: u8) -> Option<&mut Unit> {
        self.units.get_mut(usize::from(lun))
    }

    /// How many units there are.
    pub fn units(&self) -> u8 {
        u8::try_from(self.units.len()).unwrap_or(u8::MAX)
    }

    /// Does what `cdb` says, or says what is needed for it. Any bytes are allowed, and any LUN.
    ///
    /// `response` has at least [`RESPONSE_LEN_MAX`] bytes.
    pub fn execute(&mut self, lun: u8, cdb: &[u8], response: &mut [u8]) -> Reply {
        debug_assert!(response.len() >= RESPONSE_LEN_MAX, "room for the longest response");
        let mut out = Response::new(response);
        match self.dispatch(Cdb::new(lun, cdb), &mut out) {
            Ok(Outcome::Done) => Reply::Status(Status::Good),
            Ok(Outcome::Data { allocation }) => {
                // The one place where a response is cut.
                match out.len().min(usize::try_from(allocation).unwrap_or(usize::MAX)) {
                    0 => Reply::Status(Status::Good),
                    len => Reply::Data { len },
                }
            }
            Ok(Outcome::Media(op)) => {
                if let Some(unit) = self.unit_mut(lun) {
                    unit.set_power(PowerState::Active);
                }
                Reply::Media(op, Pending::new(lun, effect_of(op)))
            }
            Ok(Outcome::Parameters { len, .. }) if len > PARAMETERS_LEN_MAX => {
                Reply::Status(self.refuse(lun, PARAMETER_LIST_LENGTH_ERROR))
            }
            Ok(Outcome::Parameters { len, list }) => {
                Reply::Parameters { len, pending: PendingParameters::new(lun, list) }
            }
            Err(sense) => Reply::Status(self.refuse(lun, sense)),
        }
    }

    /// Ends a command that needed the medium, with what came of it.
    pub fn complete(&mut self, pending: Pending, result: Result<(), Sense>) -> Status {
        let (lun, effect) = (pending.lun, pending.effect);
        pending.disarm();
        let Some(unit) = self.unit_mut(lun) else {
            return Status::CheckCondition;
        };
        let result = result.and_then(|()| match effect {
            Effect::None => Ok(()),
            Effect::Unload => {
                unit.open_tray();
                Ok(())
            }
            Effect::Load => {
                unit.close_tray();
                unit.ready().map(|_| ())
            }
        });
        self.conclude(lun, result)
    }

    /// Goes on with a command that needed a parameter list, with the list. Bytes that the host did not send are missing from it.
    pub fn parameters(&mut self, pending: PendingParameters, list: &[u8]) -> ListReply {
        let (lun, kind) = (pending.lun, pending.list);
        pending.disarm();
        let Some(unit) = self.unit_mut(lun) else {
            return ListReply::Status(Status::CheckCondition);
        };
        let result = match kind {
            List::ModeSelect6 => mode_select::accept(unit, mode_select::Form::Six, list),
            List::ModeSelect10 => mode_select::accept(unit, mode_select::Form::Ten, list),
            List::Format { long } => format::accept(long, list).map(|()| None),
            List::Reservation(action) => unit.reservations.accept(action, list).map(|()| None),
            List::Streaming => optical::accept_streaming(unit, list).map(|()| None),
        };
        match result {
            Ok(Some(op)) => ListReply::Media(op, Pending::new(lun, effect_of(op))),
            Ok(None) => ListReply::Status(Status::Good),
            Err(sense) => ListReply::Status(self.refuse(lun, sense)),
        }
    }

    /// Gives up a command whose host is gone: reset, unplugged. The unit is as if it had not been sent.
    pub fn abandon(&mut self, pending: Pending) {
        pending.disarm();
    }

    /// Gives up a command that waits for its parameter list.
    pub fn abandon_parameters(&mut self, pending: PendingParameters) {
        pending.disarm();
    }

    /// The transport was reset: each unit allows removal, forgets its sense data and what MODE SELECT changed, and raises unit
    /// attention 29/00.
    pub fn bus_reset(&mut self) {
        for unit in &mut self.units {
            unit.reset();
        }
    }

    /// The LUNs of all units.
    pub fn luns(&self) -> std::ops::Range<u8> {
        0..self.units()
    }

    fn conclude(&mut self, lun: u8, result: Result<(), Sense>) -> Status {
        match result {
            Ok(()) => Status::Good,
            Err(sense) => self.refuse(lun, sense),
        }
    }

    /// A missing unit keeps no sense data: REQUEST SENSE to it always answers the same.
    fn refuse(&mut self, lun: u8, sense: Sense) -> Status {
        if let Some(unit) = self.unit_mut(lun) {
            unit.sense = Some(sense);
        }
        Status::CheckCondition
    }

    fn dispatch(&mut self, cdb: Cdb, out: &mut Response<'_>) -> Result<Outcome, Sense> {
        let kind = self.unit(cdb.lun()).map(Unit::kind);
        let found = opcodes::find(&cdb, kind);
        if let Some(unit) = self.unit_mut(cdb.lun()) {
            // SPC-4 §4.5: sense data lasts until the next command, which for REQUEST SENSE is the one that takes it.
            if !found.is_ok_and(Opcode::takes_sense) {
                unit.sense = None;
            }
        }
        let opcode = match (kind, found) {
            (None, Ok(opcode)) if matches!(opcode.handler, Handler::Target(_)) => opcode,
            (None, _) => return Err(LOGICAL_UNIT_NOT_SUPPORTED),
            (Some(_), found) => found?,
        };
        // The bytes past a short CDB would be guesses. Hosts err in the other direction: they send 10 or 12 bytes for a
        // 6-byte command, which is let pass.
        if cdb.len() < opcode.cdb_len() {
            return Err(Sense::in_cdb(u16::try_from(cdb.len()).unwrap_or(u16::MAX)));
        }
        let outcome = match opcode.handler {
            Handler::Target(handler) => {
                opcode.refuse_reserved(&cdb)?;
                handler(self, &cdb, out)
            }
            Handler::Unit(handler) => {
                let unit = self.unit_mut(cdb.lun()).ok_or(LOGICAL_UNIT_NOT_SUPPORTED)?;
                if opcode.under_attention == UnderAttention::Refused
                    && let Some(sense) = unit
                        .attentions
                        .take()
                        .or_else(|| unit.deferred.take().map(|sense| opcode.tell_deferred(sense)))
                {
                    return Err(sense);
                }
                opcode.refuse_reserved(&cdb)?;
                if opcode.medium == MediumNeed::Present {
                    unit.ready()?;
                }
                handler(unit, &cdb, out)
            }
        }?;
        debug_assert!(
            outcome.goes(opcode.direction),
            "{}: {outcome:?} is not what the table says",
            opcode.name
        );
        Ok(outcome)
    }
}

impl Outcome {
    /// Whether data of this command may go that way. A command that has data need not move any.
    fn goes(&self, direction: Direction) -> bool {
        match self {
            Self::Done => true,
            Self::Data { .. }
            | Self::Media(MediaOp::Read(_) | MediaOp::ReadSectors { .. } | MediaOp::LbaStatus { .. }) => {
                direction == Direction::In
            }
            Self::Parameters { .. } | Self::Media(MediaOp::Write { .. } | MediaOp::Compound(_)) => {
                direction == Direction::Out
            }
            // VERIFY has data where it compares.
            Self::Media(MediaOp::Verify(_)) => direction != Direction::In,
            Self::Media(_) => direction == Direction::None,
        }
    }
}

fn effect_of(op: MediaOp) -> Effect {
    match op {
        MediaOp::Load => Effect::Load,
        MediaOp::Unload => Effect::Unload,
        _ => Effect::None,
    }
}
