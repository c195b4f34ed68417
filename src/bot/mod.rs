//! Bulk-Only Transport 1.0 as a state machine without I/O. The drive loop calls it; it knows neither pipes nor SCSI.
//!
//! ```text
//!            receive_cbw            plan             finish              csw_sent
//!  ┌─► Ready ────────────► Command ───────► Data ─────────────► Status ─────────────┐
//!  │    │                                                                           │
//!  │    │ receive_cbw: Err (also in any state but Ready)                            │
//!  │    ▼                                                                           │
//!  ├── ResetRequired                                                                │
//!  │ reset (from every state)                                                       │
//!  └────────────────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! Invariants: every command that was opened is ended by one CSW with its tag, or by [`Bot::reset`]; a CSW's residue never
//! exceeds what the host expected; an invalid CBW is answered by nothing but a reset (§6.6.1). What the host sends decides
//! only between `Ok` and `Err`; a call out of order is a mistake of the caller: it asserts in debug builds, and in release
//! builds leaves the state alone.

#![deny(clippy::as_conversions, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

mod plan;
#[cfg(test)]
mod tests;
mod wire;

use serde::{Deserialize, Serialize};

pub use plan::{DataPhase, Intent, Plan};
use plan::{PhaseError, thirteen_cases};
use wire::WireStatus;
pub use wire::{CBW_LEN, CDB_LEN_MAX, CSW_LEN, CbwTag, Cdb, Command, Expected, InvalidCbw, Lun};

/// How the command itself ended; a phase error is for [`Bot`] to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CommandStatus {
    /// bCSWStatus 00h.
    Passed,
    /// bCSWStatus 01h: the host will ask for sense data.
    Failed,
}

/// Whether IN may be halted to end a data phase early.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StallPolicy {
    /// Halt IN where the device sends less than the host expects: what §6.7.2 prefers.
    #[default]
    Auto,
    /// Never halt but for an invalid CBW; a short packet ends the phase. For hosts and controllers that cannot stall right.
    Never,
}

/// How to end the data phase before the CSW.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DataEnd {
    /// Nothing to do.
    Complete,
    /// End IN with a short packet: a zero-length one if the bytes sent are a multiple of the packet size.
    ShortPacket,
    /// Halt IN once it is idle, then queue the CSW.
    StallIn,
}

/// The end of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ending {
    /// How to end the data phase.
    pub data_end: DataEnd,
    /// The CSW to send after it.
    pub csw: [u8; CSW_LEN],
}

/// A CSW in place of one that may never have reached the host: for the same command, of which the host is to believe no byte.
pub fn take_back(csw: &[u8; CSW_LEN], status: CommandStatus, expected: u32) -> [u8; CSW_LEN] {
    let status = match status {
        CommandStatus::Passed => WireStatus::Passed,
        CommandStatus::Failed => WireStatus::Failed,
    };
    wire::change_csw(csw, expected, status)
}

/// Where the transport stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// The next OUT transfer is a CBW.
    Ready,
    /// A command is open; nobody has said yet what it moves.
    Command {
        /// The host's name for it.
        tag: CbwTag,
        /// The data phase that the host performs.
        expected: Expected,
    },
    /// Its data phase is under way.
    Data {
        /// The host's name for it.
        tag: CbwTag,
        /// The data phase that the host performs.
        expected: Expected,
        /// Whether the CSW will say phase error.
        phase_error: bool,
    },
    /// Its CSW is on its way.
    Status,
    /// The host sent an invalid CBW: both pipes stay halted until a reset (§6.6.1).
    ResetRequired,
}

/// The transport of one function.
#[derive(Debug)]
pub struct Bot {
    state: State,
    stall: StallPolicy,
}

impl Bot {
    /// A transport that waits for its first CBW.
    pub fn new(stall: StallPolicy) -> Self {
        Self { state: State::Ready, stall }
    }

    /// Changes the policy, from the next [`Bot::finish`] on.
    pub fn set_stall(&mut self, stall: StallPolicy) {
        self.stall = stall;
    }

    /// The policy in force.
    pub fn stall(&self) -> StallPolicy {
        self.stall
    }

    /// Where the transport stands.
    pub fn state(&self) -> State {
        self.state
    }

    /// Opens the command in `bytes`, which are one whole OUT transfer.
    ///
    /// # Errors
    /// Why it is not a valid and meaningful CBW, now. Halt both pipes; only [`Bot::reset`] leaves that state (§6.6.1).
    pub fn receive_cbw(&mut self, bytes: &[u8]) -> Result<Command, InvalidCbw> {
        let turn = if self.state == State::Ready { Ok(()) } else { Err(InvalidCbw::OutOfTurn) };
        match turn.and_then(|()| wire::parse_cbw(bytes)) {
            Ok((tag, command)) => {
                self.state = State::Command { tag, expected: command.expected };
                Ok(command)
            }
            Err(error) => {
                self.state = State::ResetRequired;
                Err(error)
            }
        }
    }

    /// Weighs what the device would move against what the host expects (§6.7). Once for each command.
    pub fn plan(&mut self, intent: Intent) -> Plan {
        let State::Command { tag, expected } = self.state else {
            debug_assert!(false, "plan in state {:?}", self.state);
            return Plan { phase: DataPhase::None, execute: false };
        };
        let (plan, error) = thirteen_cases(expected, intent);
        self.state = State::Data { tag, expected, phase_error: error == PhaseError::Yes };
        plan
    }

    /// Ends the command. `moved` is the bytes sent, or the bytes kept and processed; the residue is the rest of what the host
    /// expected (§5.2). A planned phase error overrides `status`.
    pub fn finish(&mut self, status: CommandStatus, moved: u32) -> Ending {
        let State::Data { tag, expected, phase_error } = self.state else {
            debug_assert!(false, "finish in state {:?}", self.state);
            let csw = wire::build_csw(CbwTag(0), 0, WireStatus::PhaseError);
            return Ending { data_end: DataEnd::Complete, csw };
        };
        debug_assert!(moved <= expected.len(), "moved {moved} of {expected:?}");
        let residue = expected.len().saturating_sub(moved);
        let status = match (phase_error, status) {
            (true, _) => WireStatus::PhaseError,
            (false, CommandStatus::Passed) => WireStatus::Passed,
            (false, CommandStatus::Failed) => WireStatus::Failed,
        };
        let data_end = match (expected, self.stall) {
            (Expected::In(_), StallPolicy::Auto) if residue > 0 => DataEnd::StallIn,
            (Expected::In(_), StallPolicy::Never) if residue > 0 => DataEnd::ShortPacket,
            (Expected::None | Expected::In(_) | Expected::Out(_), _) => DataEnd::Complete,
        };
        self.state = State::Status;
        Ending { data_end, csw: wire::build_csw(tag, residue, status) }
    }

    /// The host has taken the CSW; the next CBW may come.
    pub fn csw_sent(&mut self) {
        if self.state == State::Status {
            self.state = State::Ready;
        } else {
            debug_assert!(false, "CSW sent in state {:?}", self.state);
        }
    }

    /// Bulk-Only Mass Storage Reset (§3.1), a bus reset, or a new configuration: whatever was open is forgotten. Legal in
    /// every state.
    pub fn reset(&mut self) {
        self.state = State::Ready;
    }
}
