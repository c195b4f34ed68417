//! What is on the disc, and READ CD.

use crate::scsi::cdb::Cdb;
use crate::scsi::media_op::MediaOp;
use crate::scsi::response::Response;
use crate::scsi::sense::{ILLEGAL_MODE_FOR_THIS_TRACK, LBA_OUT_OF_RANGE, Sense};
use crate::scsi::target::Outcome;
use crate::scsi::unit::Unit;
use crate::units::{BlockRange, Blocks, Lba};

/// Standard disc information (MMC-6, READ DISC INFORMATION): one complete session, finished, unrestricted use.
pub(in crate::scsi) fn read_disc_information(
    _: &mut Unit,
    cdb: &Cdb,
    out: &mut Response<'_>,
) -> Result<Outcome, Sense> {
    if cdb.byte::<1>() & 0x07 != 0 {
        return Err(Sense::in_cdb_bit(1, 2));
    }
    // State of the last session 11b, disc status 10b; first track, sessions, first and last track in the last session; URU.
    out.push(&[0, 0, 0x0E, 1, 1, 1, 1, 0x20]);
    // Disc type CD-ROM; no identification, no lead-in, no lead-out, no bar code, no OPC entries.
    out.zeros(26);
    out.seal16(0);
    Ok(Outcome::Data { allocation: u32::from(cdb.be16::<7>()) })
}

/// Track information block (MMC-6, READ TRACK INFORMATION). The address is an LBA, a track or a session; there is one track and
/// one session.
pub(in crate::scsi) fn read_track_information(
    unit: &mut Unit,
    cdb: &Cdb,
    out: &mut Response<'_>,
) -> Result<Outcome, Sense> {
    let blocks = unit.ready()?.blocks.0;
    let address = cdb.be32::<2>();
    match cdb.byte::<1>() & 0x03 {
        0 if u64::from(address) < blocks => {}
        0 => return Err(LBA_OUT_OF_RANGE),
        1 | 2 if address == 1 => {}
        1 | 2 => return Err(Sense::in_cdb(2)),
        _ => return Err(Sense::in_cdb_bit(1, 1)),
    }
    // Track and session 1; track mode 4: data, recorded uninterrupted; data mode 1.
    out.push(&[0, 0, 1, 1, 0, 0x04, 0x01, 0]);
    // Start address, next writable address, free blocks, fixed packet size.
    out.zeros(16);
    out.be32(u32::try_from(blocks).unwrap_or(u32::MAX));
    // Last recorded address (not valid), high bytes of track and session.
    out.zeros(8);
    out.seal16(0);
    Ok(Outcome::Data { allocation: u32::from(cdb.be16::<7>()) })
}

/// MMC-6, MECHANISM STATUS: no changer, idle; the tray.
pub(in crate::scsi) fn mechanism_status(
    unit: &mut Unit,
    cdb: &Cdb,
    out: &mut Response<'_>,
) -> Result<Outcome, Sense> {
    out.push(&[0, if unit.tray_open() { 0x10 } else { 0 }, 0, 0, 0, 1, 0, 0]);
    Ok(Outcome::Data { allocation: u32::from(cdb.be16::<8>()) })
}

/// READ CD (MMC-6) of user data, which is what READ(10) gives too; headers, error correction bytes and sub-channels
/// are refused.
pub(in crate::scsi) fn read_cd(unit: &mut Unit, cdb: &Cdb, _: &mut Response<'_>) -> Result<Outcome, Sense> {
    // Expected sector type: any, or mode 1.
    if !matches!(cdb.byte::<1>() >> 2 & 0x07, 0 | 2) {
        return Err(ILLEGAL_MODE_FOR_THIS_TRACK);
    }
    let user_data = match cdb.byte::<9>() & 0xFE {
        0x00 => false,
        0x10 => true,
        _ => return Err(Sense::in_cdb(9)),
    };
    if cdb.byte::<10>() & 0x07 != 0 {
        return Err(Sense::in_cdb_bit(10, 2));
    }
    let (start, count) = (Lba(u64::from(cdb.be32::<2>())), Blocks(u64::from(cdb.be24::<6>())));
    let range = BlockRange::new(start, count)
        .filter(|range| range.fits(unit.medium().map_or(Blocks(0), |medium| medium.blocks)))
        .ok_or(LBA_OUT_OF_RANGE)?;
    let nothing = !user_data || count == Blocks(0);
    Ok(if nothing { Outcome::Done } else { Outcome::Media(MediaOp::Read(range)) })
}
