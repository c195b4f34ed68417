//! READ CD and READ CD MSF (MMC-6): of a mode 1 sector the user data, or any other part of its 2352 bytes. No sub-channels
//! and no C2 error pointers.

use super::msf::Msf;
use super::profile::Profile;
use super::sector::SectorPart;
use crate::scsi::cdb::Cdb;
use crate::scsi::media_op::MediaOp;
use crate::scsi::response::Response;
use crate::scsi::sense::{ILLEGAL_MODE_FOR_THIS_TRACK, LBA_OUT_OF_RANGE, Sense};
use crate::scsi::target::Outcome;
use crate::scsi::unit::Unit;
use crate::units::{BlockRange, Blocks, Lba};

pub(in crate::scsi) fn read_cd(unit: &mut Unit, cdb: &Cdb, _: &mut Response<'_>) -> Result<Outcome, Sense> {
    let range = BlockRange::new(Lba(u64::from(cdb.be32::<2>())), Blocks(u64::from(cdb.be24::<6>())));
    read(unit, cdb, range)
}

/// The ending address is that of the first sector that is not read.
pub(in crate::scsi) fn read_cd_msf(
    unit: &mut Unit,
    cdb: &Cdb,
    _: &mut Response<'_>,
) -> Result<Outcome, Sense> {
    let start = Msf([cdb.byte::<3>(), cdb.byte::<4>(), cdb.byte::<5>()]).lba().ok_or(LBA_OUT_OF_RANGE)?;
    let end = Msf([cdb.byte::<6>(), cdb.byte::<7>(), cdb.byte::<8>()]).lba().ok_or(LBA_OUT_OF_RANGE)?;
    let count = end.0.checked_sub(start.0).ok_or(Sense::in_cdb(3))?;
    read(unit, cdb, BlockRange::new(start, Blocks(count)))
}

/// Both commands have the expected sector type and what is wanted of a sector at the same places.
fn read(unit: &Unit, cdb: &Cdb, range: Option<BlockRange>) -> Result<Outcome, Sense> {
    let medium = unit.ready()?;
    // Any, or mode 1.
    if !matches!(cdb.byte::<1>() >> 2 & 0x07, 0 | 2) {
        return Err(ILLEGAL_MODE_FOR_THIS_TRACK);
    }
    if cdb.byte::<9>() & 0x06 != 0 {
        return Err(Sense::in_cdb_bit(9, 2));
    }
    let part = SectorPart::selected_by(cdb.byte::<9>()).ok_or(Sense::in_cdb_bit(9, 7))?;
    if cdb.byte::<10>() & 0x07 != 0 {
        return Err(Sense::in_cdb_bit(10, 2));
    }
    let range = range.filter(|range| range.fits(medium.blocks)).ok_or(LBA_OUT_OF_RANGE)?;
    Ok(if part.is_empty() || range.count() == Blocks(0) {
        Outcome::Done
    } else if part == SectorPart::USER_DATA {
        // On a DVD or BD too, where the command has no place: a host that tries gets its data.
        Outcome::Media(MediaOp::Read(range))
    } else if Profile::of(unit) == Some(Profile::Cd) {
        Outcome::Media(MediaOp::ReadSectors { range, part })
    } else {
        return Err(ILLEGAL_MODE_FOR_THIS_TRACK);
    })
}
