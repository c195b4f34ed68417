//! Readiness, the tray and the lock: TEST UNIT READY, START STOP UNIT, PREVENT ALLOW MEDIUM REMOVAL.

use super::cdb::Cdb;
use super::response::Response;
use super::sense::{MEDIUM_REMOVAL_PREVENTED, Sense};
use super::target::{MediaOp, Outcome};
use super::unit::{Kind, PowerState, Unit};

/// The opcode table has asked already.
pub(super) fn test_unit_ready(_: &mut Unit, _: &Cdb, _: &mut Response<'_>) -> Result<Outcome, Sense> {
    Ok(Outcome::Done)
}

/// SBC-3 and MMC-6, START STOP UNIT. A power condition is kept for the power events of an optical unit and has no other effect: a
/// file has no motor, so a stopped unit goes on answering. IMMED is not taken up: the status comes when the work is done.
pub(super) fn start_stop_unit(unit: &mut Unit, cdb: &Cdb, _: &mut Response<'_>) -> Result<Outcome, Sense> {
    let (start, load_eject) = (cdb.bit::<4>(0), cdb.bit::<4>(1));
    match cdb.byte::<4>() >> 4 {
        0x0 => {}
        condition @ (0x1 | 0x2 | 0x3 | 0x5) => {
            unit.set_power(match condition {
                0x1 => PowerState::Active,
                0x2 => PowerState::Idle,
                0x3 => PowerState::Standby,
                // MMC-6's own.
                _ => PowerState::Sleep,
            });
            return Ok(Outcome::Done);
        }
        // LU_CONTROL, FORCE_IDLE_0, FORCE_STANDBY_0.
        0x7 | 0xA | 0xB => return Ok(Outcome::Done),
        _ => return Err(Sense::in_cdb_bit(4, 7)),
    }
    match (load_eject, start) {
        (false, true) => unit.ready().map(|_| Outcome::Done),
        // Stopping makes written data durable (SBC-3, START STOP UNIT).
        (false, false) if unit.writable() => Ok(Outcome::Media(MediaOp::Flush)),
        (false, false) => Ok(Outcome::Done),
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

/// The persistent states are MMC's, so a disk refuses them.
pub(super) fn prevent_allow(unit: &mut Unit, cdb: &Cdb, _: &mut Response<'_>) -> Result<Outcome, Sense> {
    let field = cdb.byte::<4>() & 0x03;
    let prevent = field & 1 != 0;
    match (field >> 1, unit.kind()) {
        (0, _) => unit.prevention.prevent = prevent,
        (_, Kind::Optical) => unit.prevention.persistent = prevent,
        (_, Kind::Disk) => return Err(Sense::in_cdb_bit(4, 1)),
    }
    Ok(Outcome::Done)
}
