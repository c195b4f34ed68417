//! Where the head is: READ SUB-CHANNEL and READ HEADER (MMC-6; READ HEADER is MMC-1's, and f_mass_storage's hosts know it).

use super::msf::write_address;
use super::toc::ADR_CONTROL;
use crate::scsi::cdb::Cdb;
use crate::scsi::response::Response;
use crate::scsi::sense::{LBA_OUT_OF_RANGE, Sense};
use crate::scsi::target::Outcome;
use crate::scsi::unit::Unit;
use crate::units::Lba;

/// Audio status: none to tell.
const NO_AUDIO_STATUS: u8 = 0x15;

/// The position is always the start of the only track; catalog number and ISRC are not valid.
pub(in crate::scsi) fn read_sub_channel(
    _: &mut Unit,
    cdb: &Cdb,
    out: &mut Response<'_>,
) -> Result<Outcome, Sense> {
    let msf = cdb.bit::<1>(1);
    out.push(&[0, NO_AUDIO_STATUS, 0, 0]);
    if cdb.bit::<2>(6) {
        let format = cdb.byte::<3>();
        match format {
            1 => {
                out.push(&[format, ADR_CONTROL, 1, 1]);
                write_address(Lba(0), msf, out);
                // Relative to the start of the track: 00:00:00, and not its pregap.
                out.zeros(4);
            }
            2 => {
                out.push(&[format, 0, 0, 0]);
                out.zeros(16);
            }
            3 if cdb.byte::<6>() == 1 => {
                out.push(&[format, ADR_CONTROL, 1, 0]);
                out.zeros(16);
            }
            3 => return Err(Sense::in_cdb(6)),
            _ => return Err(Sense::in_cdb(3)),
        }
    }
    out.seal16(2);
    Ok(Outcome::Data { allocation: u32::from(cdb.be16::<7>()) })
}

/// Data mode 1, and the address as in the sector's header.
pub(in crate::scsi) fn read_header(
    unit: &mut Unit,
    cdb: &Cdb,
    out: &mut Response<'_>,
) -> Result<Outcome, Sense> {
    let lba = Lba(u64::from(cdb.be32::<2>()));
    if lba.0 >= unit.ready()?.blocks.0 {
        return Err(LBA_OUT_OF_RANGE);
    }
    out.push(&[1, 0, 0, 0]);
    write_address(lba, cdb.bit::<1>(1), out);
    Ok(Outcome::Data { allocation: u32::from(cdb.be16::<7>()) })
}
