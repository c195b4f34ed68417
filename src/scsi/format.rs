//! FORMAT UNIT of a disk (SBC-3 §5.2), as far as a medium that needs no formatting may answer it.
//!
//! Without an initialization pattern the contents of the blocks after it are the device's affair, so they stay as they are and
//! nothing is done. Whatever asks for more is refused: protection information, defect lists, patterns.

use super::cdb::Cdb;
use super::pending::List;
use super::response::Response;
use super::sense::{PARAMETER_LIST_LENGTH_ERROR, Sense, WRITE_PROTECTED};
use super::target::Outcome;
use super::unit::Unit;

pub(super) fn format_unit(unit: &mut Unit, cdb: &Cdb, _: &mut Response<'_>) -> Result<Outcome, Sense> {
    let (long, has_list) = (cdb.bit::<1>(5), cdb.bit::<1>(4));
    if cdb.byte::<1>() & 0xC0 != 0 {
        // FMTPINFO.
        return Err(Sense::in_cdb_bit(1, 7));
    }
    if !has_list && cdb.byte::<1>() & 0x2F != 0 {
        // LONGLIST, CMPLST and DEFECT LIST FORMAT speak of a list.
        return Err(Sense::in_cdb_bit(1, 5));
    }
    if !unit.writable() {
        return Err(WRITE_PROTECTED);
    }
    if !has_list {
        return Ok(Outcome::Done);
    }
    Ok(Outcome::Parameters { len: if long { 8 } else { 4 }, list: List::Format { long } })
}

/// Checks a parameter list header: no initialization pattern, no defects. IMMED changes nothing, as it is over at once.
pub(super) fn accept(long: bool, list: &[u8]) -> Result<(), Sense> {
    const IP: u8 = 0x08;
    const NEEDS_FOV: u8 = 0x70;
    const FOV: u8 = 0x80;
    let (usage, flags, rest, len_at) = match (long, list) {
        (false, [usage, flags, rest @ ..]) if rest.len() == 2 => (*usage, *flags, rest, 2),
        (true, [usage, flags, _, rest @ ..]) if rest.len() == 5 => (*usage, *flags, rest, 3),
        _ => return Err(PARAMETER_LIST_LENGTH_ERROR),
    };
    if usage & 0x07 != 0 {
        return Err(Sense::in_parameters(0));
    }
    if flags & IP != 0 || (flags & FOV == 0 && flags & NEEDS_FOV != 0) {
        return Err(Sense::in_parameters(1));
    }
    match rest.iter().position(|byte| *byte != 0) {
        None => Ok(()),
        Some(index) => Err(Sense::in_parameters(index.saturating_add(len_at))),
    }
}
