//! GET PERFORMANCE, SET CD SPEED and SET STREAMING (MMC-6). A file has one speed, that of the board; what is told is the most
//! that such a medium may have, and what is asked for changes nothing.

use super::profile::Profile;
use crate::scsi::cdb::Cdb;
use crate::scsi::pending::List;
use crate::scsi::response::Response;
use crate::scsi::sense::{PARAMETER_LIST_LENGTH_ERROR, Sense};
use crate::scsi::target::Outcome;
use crate::scsi::unit::Unit;

/// Bytes of a performance descriptor, as SET STREAMING sends it.
const STREAMING_LEN: usize = 28;

/// Types 00h (performance) and 03h (write speed, of which a read-only medium has none).
pub(in crate::scsi) fn get_performance(
    unit: &mut Unit,
    cdb: &Cdb,
    out: &mut Response<'_>,
) -> Result<Outcome, Sense> {
    let medium = unit.ready()?;
    let last = u32::try_from(medium.blocks.0.saturating_sub(1)).unwrap_or(u32::MAX);
    out.zeros(8);
    match cdb.byte::<10>() {
        0x00 => {
            // Of writing there is nothing to tell, and neither is there of exceptions: no block is slower.
            if cdb.bit::<1>(2) {
                return Err(Sense::in_cdb_bit(1, 2));
            }
            let except = cdb.byte::<1>() & 0x03;
            if except == 0 {
                let speed = u32::from(Profile::of(unit).map_or(0, Profile::speed));
                for value in [0, speed, last, speed] {
                    out.be32(value);
                }
            } else {
                out.patch(4, &[0x01]);
            }
        }
        0x03 => {}
        _ => return Err(Sense::in_cdb(10)),
    }
    out.seal32(0);
    // What the host limits is the number of descriptors.
    let descriptors = u32::from(cdb.be16::<8>());
    Ok(Outcome::Data { allocation: descriptors.saturating_mul(16).saturating_add(8) })
}

/// The nearest speed that the drive has is taken (MMC-6), which is always the same.
pub(in crate::scsi) fn set_cd_speed(_: &mut Unit, _: &Cdb, _: &mut Response<'_>) -> Result<Outcome, Sense> {
    Ok(Outcome::Done)
}

/// Type 00h: a performance descriptor.
pub(in crate::scsi) fn set_streaming(
    _: &mut Unit,
    cdb: &Cdb,
    _: &mut Response<'_>,
) -> Result<Outcome, Sense> {
    if cdb.byte::<8>() != 0 {
        return Err(Sense::in_cdb(8));
    }
    Ok(match u32::from(cdb.be16::<9>()) {
        0 => Outcome::Done,
        len => Outcome::Parameters { len, list: List::Streaming },
    })
}

/// Checks the descriptor. EXACT would be a promise to keep the rate, or to refuse; the rate of a file cannot be promised.
pub(in crate::scsi) fn accept_streaming(unit: &Unit, list: &[u8]) -> Result<(), Sense> {
    if list.len() != STREAMING_LEN {
        return Err(PARAMETER_LIST_LENGTH_ERROR);
    }
    let flags = list.first().copied().unwrap_or(0);
    if flags & 0x04 != 0 {
        // RDD: the defaults again; the rest does not count.
        return Ok(());
    }
    if flags & 0x02 != 0 {
        return Err(Sense::in_parameters(0));
    }
    let field = |at: usize| {
        list.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |be| u32::from_be_bytes(*be))
    };
    let (start, end) = (field(4), field(8));
    if start > end {
        return Err(Sense::in_parameters(4));
    }
    if unit.medium().is_some_and(|medium| u64::from(start) >= medium.blocks.0) {
        return Err(Sense::in_parameters(4));
    }
    Ok(())
}
