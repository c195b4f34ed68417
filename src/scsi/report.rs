//! Commands about the target: REQUEST SENSE, REPORT LUNS, REPORT SUPPORTED OPERATION CODES (all SPC-4).

use super::cdb::Cdb;
use super::opcodes::{self, Opcode};
use super::response::Response;
use super::sense::{LOGICAL_UNIT_NOT_SUPPORTED, NO_SENSE, Sense};
use super::target::{Outcome, Target};
use super::unit::Unit;

/// Takes the sense data of the command before; without any, the most urgent unit attention.
///
/// DESC asks for the descriptor format. D_SENSE asks for it in the sense data of a CHECK CONDITION (SPC-4, control mode page),
/// which in Bulk-Only Transport is what this command takes.
pub(super) fn request_sense(
    target: &mut Target,
    cdb: &Cdb,
    out: &mut Response<'_>,
) -> Result<Outcome, Sense> {
    let (sense, by_mode) = match target.unit_mut(cdb.lun()) {
        Some(unit) => match unit.sense.take() {
            Some(sense) => (sense, unit.modes.descriptor_sense),
            None => (unit.attentions.take().unwrap_or(NO_SENSE), false),
        },
        None => (LOGICAL_UNIT_NOT_SUPPORTED, false),
    };
    if by_mode || cdb.bit::<1>(0) {
        sense.encode_descriptor(out);
    } else {
        sense.encode_fixed(out);
    }
    Ok(Outcome::Data { allocation: u32::from(cdb.byte::<4>()) })
}

/// SELECT REPORT 00h and 02h list the units; 01h only well-known ones, of which there are none.
pub(super) fn report_luns(target: &mut Target, cdb: &Cdb, out: &mut Response<'_>) -> Result<Outcome, Sense> {
    let luns = match cdb.byte::<2>() {
        0x00 | 0x02 => target.luns(),
        0x01 => 0..0,
        _ => return Err(Sense::in_cdb(2)),
    };
    // The four reserved bytes are not counted in the length.
    out.be32(u32::from(luns.end).saturating_mul(8));
    out.zeros(4);
    for lun in luns {
        // Peripheral device addressing, bus 0 (SAM-5).
        out.push(&[0, lun, 0, 0, 0, 0, 0, 0]);
    }
    Ok(Outcome::Data { allocation: cdb.be32::<6>() })
}

/// All commands, or one of them, as the opcode table has them.
pub(super) fn supported_operation_codes(
    unit: &mut Unit,
    cdb: &Cdb,
    out: &mut Response<'_>,
) -> Result<Outcome, Sense> {
    let timeouts = cdb.bit::<2>(7);
    let (opcode, action) = (cdb.byte::<3>(), cdb.be16::<4>());
    let mut rows = opcodes::of_kind(unit.kind());
    match cdb.byte::<2>() & 0x07 {
        0 => all_commands(rows, timeouts, out),
        1 => {
            let row = rows.find(|row| row.opcode == opcode);
            if row.is_some_and(|row| row.service_action.is_some()) {
                return Err(Sense::in_cdb(3));
            }
            one_command(row, timeouts, out);
        }
        2 => {
            let mut same_opcode = rows.filter(|row| row.opcode == opcode).peekable();
            if same_opcode.peek().is_some_and(|row| row.service_action.is_none()) {
                return Err(Sense::in_cdb(3));
            }
            one_command(same_opcode.find(|row| u16::from(row.action()) == action), timeouts, out);
        }
        3 => {
            let row = rows.find(|row| row.opcode == opcode && u16::from(row.action()) == action);
            one_command(row, timeouts, out);
        }
        _ => return Err(Sense::in_cdb_bit(2, 2)),
    }
    Ok(Outcome::Data { allocation: cdb.be32::<6>() })
}

fn all_commands(rows: impl Iterator<Item = &'static Opcode>, timeouts: bool, out: &mut Response<'_>) {
    out.zeros(4);
    for row in rows {
        let flags = u8::from(row.service_action.is_some()) | if timeouts { 0x02 } else { 0 };
        out.push(&[row.opcode, 0, 0, row.action(), 0, flags]);
        out.be16(u16::try_from(row.cdb_len()).unwrap_or(0));
        if timeouts {
            no_timeouts(out);
        }
    }
    out.seal32(0);
}

fn one_command(row: Option<&Opcode>, timeouts: bool, out: &mut Response<'_>) {
    let Some(row) = row else {
        // SUPPORT 001b: not supported.
        out.push(&[0, 0x01, 0, 0]);
        return;
    };
    // SUPPORT 011b: as the standard says.
    out.push(&[0, if timeouts { 0x83 } else { 0x03 }, 0, 0]);
    out.push(row.usage);
    out.seal16(2);
    if timeouts {
        no_timeouts(out);
    }
}

/// A timeouts descriptor that names no time (SPC-4).
fn no_timeouts(out: &mut Response<'_>) {
    out.push(&[0x00, 0x0A, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
}
