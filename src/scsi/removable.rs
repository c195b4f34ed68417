//! Readiness, the tray and the lock: TEST UNIT READY, START STOP UNIT, PREVENT ALLOW MEDIUM REMOVAL.

use super::cdb::Cdb;
use super::media_op::MediaOp;
use super::response::Response;
use super::sense::{MEDIUM_REMOVAL_PREVENTED, Sense};
use super::target::Outcome;
use super::unit::{Kind, PowerState, Unit};

/// The opcode table has asked already.
pub(super) fn test_unit_ready(_: &mut Unit, _: &Cdb, _: &mut Response<'_>) -> Result<Outcome, Sense> {
    Ok(Outcome::Done)
}

/// SBC-3 and MMC-6, START STOP UNIT. A power condition is kept for the power events of an optical unit and changes no answer: a
/// file has no motor, so a stopped unit goes on answering. Conditions to come are accepted too. Stopping, and each condition in
/// which a disk cannot be written, make written data durable, unless NO_FLUSH says not to. IMMED is not taken up: the status comes
/// when the work is done.
pub(super) fn start_stop_unit(unit: &mut Unit, cdb: &Cdb, _: &mut Response<'_>) -> Result<Outcome, Sense> {
    let (start, load_eject) = (cdb.bit::<4>(0), cdb.bit::<4>(1));
    let condition = cdb.byte::<4>() >> 4;
    if condition != 0 {
        match condition {
            0x1 => unit.set_power(PowerState::Active),
            0x2 => unit.set_power(PowerState::Idle),
            0x3 => unit.set_power(PowerState::Standby),
            // MMC-6's own.
            0x5 => unit.set_power(PowerState::Sleep),
            _ => {}
        }
        return Ok(if condition == 0x3 && !cdb.bit::<4>(2) { flush(unit) } else { Outcome::Done });
    }
    match (load_eject, start) {
        (false, true) => unit.ready().map(|_| Outcome::Done),
        (false, false) if cdb.bit::<4>(2) => Ok(Outcome::Done),
        (false, false) => Ok(flush(unit)),
        (true, true) if unit.medium().is_some() => Ok(Outcome::Done),
        (true, true) => Ok(Outcome::Media(MediaOp::Load)),
        (true, false) if unit.prevented() => Err(MEDIUM_REMOVAL_PREVENTED),
        (true, false) if unit.medium().is_some() => Ok(Outcome::Media(MediaOp::Unload)),
        (true, false) => {
            unit.open_tray();
            Ok(Outcome::Done)
        }
    }
}

/// Makes what was written durable, if something may have been.
fn flush(unit: &Unit) -> Outcome {
    if unit.may_hold_writes() { Outcome::Media(MediaOp::Flush) } else { Outcome::Done }
}

/// The persistent states are MMC's, so a disk refuses them. A medium that may be removed may be gone soon, so what was written is
/// made durable before the status. Should that fail, removal is allowed all the same.
pub(super) fn prevent_allow(unit: &mut Unit, cdb: &Cdb, _: &mut Response<'_>) -> Result<Outcome, Sense> {
    let field = cdb.byte::<4>() & 0x03;
    let prevent = field & 1 != 0;
    match (field >> 1, unit.kind()) {
        (0, _) => unit.prevention.prevent = prevent,
        (_, Kind::Optical) => unit.prevention.persistent = prevent,
        (_, Kind::Disk) => return Err(Sense::in_cdb_bit(4, 1)),
    }
    Ok(if unit.prevented() { Outcome::Done } else { flush(unit) })
}
