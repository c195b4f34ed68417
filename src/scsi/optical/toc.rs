//! READ TOC/PMA/ATIP (MMC-6), formats 0 to 2.

use crate::scsi::cdb::Cdb;
use crate::scsi::response::Response;
use crate::scsi::sense::Sense;
use crate::scsi::target::Outcome;
use crate::scsi::unit::Unit;
use crate::units::Lba;

/// ADR 1 (position), CONTROL 4 (data track, no copy) (MMC-6, Q sub-channel).
const ADR_CONTROL: u8 = 0x14;

/// Track number of the lead-out.
const LEAD_OUT: u8 = 0xAA;

/// Frames in a second, and blocks before LBA 0 (MMC-6, MSF addresses).
const FRAMES_PER_SECOND: u64 = 75;
const PREGAP_BLOCKS: u64 = 150;

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

/// Minutes, seconds, frames. An address past what a byte of minutes can say (a DVD) stays at the last one.
fn minutes_seconds_frames(lba: Lba) -> [u8; 3] {
    let frames = lba.0.saturating_add(PREGAP_BLOCKS);
    let seconds = frames / FRAMES_PER_SECOND;
    let small = |value: u64| u8::try_from(value).ok();
    match (small(seconds / 60), small(seconds % 60), small(frames % FRAMES_PER_SECOND)) {
        (Some(minutes), Some(seconds), Some(frames)) => [minutes, seconds, frames],
        _ => [u8::MAX, 59, 74],
    }
}

fn address(lba: Lba, msf: bool, out: &mut Response<'_>) {
    if msf {
        out.byte(0);
        out.push(&minutes_seconds_frames(lba));
    } else {
        out.be32(u32::try_from(lba.0).unwrap_or(u32::MAX));
    }
}

/// Format 0: the track, unless only the lead-out is asked for, and the lead-out.
fn tracks(lead_out: Lba, msf: bool, start: u8, out: &mut Response<'_>) -> Result<(), Sense> {
    if start > 1 && start != LEAD_OUT {
        return Err(Sense::in_cdb(6));
    }
    out.push(&[0, 0, 1, 1]);
    if start <= 1 {
        out.push(&[0, ADR_CONTROL, 1, 0]);
        address(Lba(0), msf, out);
    }
    out.push(&[0, ADR_CONTROL, LEAD_OUT, 0]);
    address(lead_out, msf, out);
    Ok(())
}

/// Format 1: the first track of the last session.
fn sessions(msf: bool, out: &mut Response<'_>) {
    out.push(&[0, 0, 1, 1, 0, ADR_CONTROL, 1, 0]);
    address(Lba(0), msf, out);
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
        (0xA2, minutes_seconds_frames(lead_out)),
        (0x01, minutes_seconds_frames(Lba(0))),
    ];
    for (point, position) in points {
        out.push(&[1, ADR_CONTROL, 0, point, 0, 0, 0, 0]);
        out.push(&position);
    }
    Ok(())
}
