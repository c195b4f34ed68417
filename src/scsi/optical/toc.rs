//! READ TOC/PMA/ATIP (MMC-6), formats 0 to 2.

use super::msf::{Msf, write_address};
use crate::scsi::cdb::Cdb;
use crate::scsi::response::Response;
use crate::scsi::sense::Sense;
use crate::scsi::target::Outcome;
use crate::scsi::unit::Unit;
use crate::units::Lba;

/// ADR 1 (position), CONTROL 4 (data track, no copy) (MMC-6, Q sub-channel).
pub(super) const ADR_CONTROL: u8 = 0x14;

/// Track number of the lead-out.
const LEAD_OUT: u8 = 0xAA;

pub(in crate::scsi) fn read_toc(
    unit: &mut Unit,
    cdb: &Cdb,
    out: &mut Response<'_>,
) -> Result<Outcome, Sense> {
    let lead_out = Lba(unit.ready()?.blocks.0);
    let msf = cdb.bit::<1>(1);
    let start = cdb.byte::<6>();
    // SFF-8020i has the format in the control byte, and macOS puts it there still.
    let format = match cdb.byte::<2>() & 0x0F {
        0 => cdb.byte::<9>() >> 6,
        format => format,
    };
    match format {
        0 => tracks(lead_out, msf, start, out)?,
        1 => sessions(msf, out),
        2 => full(lead_out, start, out)?,
        _ => return Err(Sense::in_cdb_bit(2, 3)),
    }
    out.seal16(0);
    Ok(Outcome::Data { allocation: u32::from(cdb.be16::<7>()) })
}

/// Format 0: the track, unless only the lead-out is asked for, and the lead-out.
fn tracks(lead_out: Lba, msf: bool, start: u8, out: &mut Response<'_>) -> Result<(), Sense> {
    if start > 1 && start != LEAD_OUT {
        return Err(Sense::in_cdb(6));
    }
    out.push(&[0, 0, 1, 1]);
    if start <= 1 {
        out.push(&[0, ADR_CONTROL, 1, 0]);
        write_address(Lba(0), msf, out);
    }
    out.push(&[0, ADR_CONTROL, LEAD_OUT, 0]);
    write_address(lead_out, msf, out);
    Ok(())
}

/// Format 1: the first track of the last session.
fn sessions(msf: bool, out: &mut Response<'_>) {
    out.push(&[0, 0, 1, 1, 0, ADR_CONTROL, 1, 0]);
    write_address(Lba(0), msf, out);
}

/// Format 2: the Q sub-channel of the lead-in. Its addresses are always in minutes.
fn full(lead_out: Lba, start: u8, out: &mut Response<'_>) -> Result<(), Sense> {
    if start > 1 {
        return Err(Sense::in_cdb(6));
    }
    out.push(&[0, 0, 1, 1]);
    let points = [
        // First track, disc type CD-ROM.
        (0xA0, [1, 0, 0]),
        // Last track.
        (0xA1, [1, 0, 0]),
        (0xA2, Msf::from(lead_out).0),
        (0x01, Msf::from(Lba(0)).0),
    ];
    for (point, position) in points {
        out.push(&[1, ADR_CONTROL, 0, point, 0, 0, 0, 0]);
        out.push(&position);
    }
    Ok(())
}
