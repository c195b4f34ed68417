//! SEND DIAGNOSTIC, RECEIVE DIAGNOSTIC RESULTS and LOG SENSE (SPC-4): what a host may ask of our health. There is nothing to test
//! and nothing is counted for the host, so all three say that, by the rules.

use super::cdb::Cdb;
use super::response::Response;
use super::sense::Sense;
use super::target::Outcome;
use super::unit::Unit;

/// The page that lists the pages, of diagnostic and of log pages alike.
const SUPPORTED_PAGES: u8 = 0x00;
const ALL_SUBPAGES: u8 = 0xFF;

/// The default self-test, which always passes; without SELFTEST nothing is asked at all. No other self-test is there, and no page
/// can be sent.
pub(super) fn send_diagnostic(_: &mut Unit, cdb: &Cdb, _: &mut Response<'_>) -> Result<Outcome, Sense> {
    if cdb.byte::<1>() >> 5 != 0 {
        return Err(Sense::in_cdb_bit(1, 7));
    }
    if cdb.be16::<3>() != 0 {
        return Err(Sense::in_cdb(3));
    }
    Ok(Outcome::Done)
}

/// Without PCV the page is the one that SEND DIAGNOSTIC asked for, which can only be the list.
pub(super) fn receive_diagnostic_results(
    _: &mut Unit,
    cdb: &Cdb,
    out: &mut Response<'_>,
) -> Result<Outcome, Sense> {
    if cdb.bit::<1>(0) && cdb.byte::<2>() != SUPPORTED_PAGES {
        return Err(Sense::in_cdb(2));
    }
    out.push(&[SUPPORTED_PAGES, 0, 0, 1, SUPPORTED_PAGES]);
    Ok(Outcome::Data { allocation: u32::from(cdb.be16::<3>()) })
}

/// The list of pages, with and without subpages. It has no parameters, so PC and the parameter pointer say nothing.
pub(super) fn log_sense(_: &mut Unit, cdb: &Cdb, out: &mut Response<'_>) -> Result<Outcome, Sense> {
    if cdb.byte::<2>() & 0x3F != SUPPORTED_PAGES {
        return Err(Sense::in_cdb_bit(2, 5));
    }
    match cdb.byte::<3>() {
        0x00 => out.push(&[SUPPORTED_PAGES, 0, 0, 1, SUPPORTED_PAGES]),
        // SPF, and pairs of page and subpage.
        ALL_SUBPAGES => {
            out.push(&[0x40 | SUPPORTED_PAGES, ALL_SUBPAGES, 0, 4]);
            out.push(&[SUPPORTED_PAGES, 0x00, SUPPORTED_PAGES, ALL_SUBPAGES]);
        }
        _ => return Err(Sense::in_cdb(3)),
    }
    Ok(Outcome::Data { allocation: u32::from(cdb.be16::<7>()) })
}
