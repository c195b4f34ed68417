//! What is on the disc, and how the drive is.

use crate::scsi::cdb::Cdb;
use crate::scsi::response::Response;
use crate::scsi::sense::{LBA_OUT_OF_RANGE, Sense};
use crate::scsi::target::Outcome;
use crate::scsi::unit::Unit;

/// The buffer that is told of: four reads of 256 KiB are under way at once.
pub(super) const BUFFER_KIB: u16 = 1024;

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
    if cdb.bit::<1>(2) {
        // OPEN: the first open track from there on; all are complete.
        return Err(Sense::in_cdb_bit(1, 2));
    }
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

/// MMC-6, READ BUFFER CAPACITY: nothing of the buffer is taken, since nothing is written.
pub(in crate::scsi) fn read_buffer_capacity(
    _: &mut Unit,
    cdb: &Cdb,
    out: &mut Response<'_>,
) -> Result<Outcome, Sense> {
    let in_blocks = cdb.bit::<1>(0);
    let len = if in_blocks { u32::from(BUFFER_KIB) / 2 } else { u32::from(BUFFER_KIB).saturating_mul(1024) };
    out.push(&[0, 0, 0, u8::from(in_blocks)]);
    out.be32(len);
    out.be32(len);
    out.seal16(0);
    Ok(Outcome::Data { allocation: u32::from(cdb.be16::<7>()) })
}

/// MMC-6, SEEK(10): there is nothing to move, but the address must exist.
pub(in crate::scsi) fn seek(unit: &mut Unit, cdb: &Cdb, _: &mut Response<'_>) -> Result<Outcome, Sense> {
    if u64::from(cdb.be32::<2>()) < unit.ready()?.blocks.0 {
        Ok(Outcome::Done)
    } else {
        Err(LBA_OUT_OF_RANGE)
    }
}
