//! MODE SELECT (SPC-4): accepts a list that leaves everything as it is, since no parameter can be changed.

use super::cdb::Cdb;
use super::mode::{self, Page};
use super::pending::List;
use super::response::Response;
use super::sense::{PARAMETER_LIST_LENGTH_ERROR, Sense};
use super::target::Outcome;
use super::unit::Unit;

/// Which header the list has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Form {
    /// MODE SELECT(6): 4 bytes.
    Six,
    /// MODE SELECT(10): 8 bytes.
    Ten,
}

/// The longest page or descriptor that we compare with, header included.
const PAGE_LEN_MAX: usize = 64;

pub(super) fn mode_select_6(_: &mut Unit, cdb: &Cdb, _: &mut Response<'_>) -> Result<Outcome, Sense> {
    ask(cdb, u32::from(cdb.byte::<4>()), List::ModeSelect6)
}

pub(super) fn mode_select_10(_: &mut Unit, cdb: &Cdb, _: &mut Response<'_>) -> Result<Outcome, Sense> {
    ask(cdb, u32::from(cdb.be16::<7>()), List::ModeSelect10)
}

/// Saved pages do not exist; a list of length zero is no error.
fn ask(cdb: &Cdb, len: u32, list: List) -> Result<Outcome, Sense> {
    if cdb.bit::<1>(0) {
        return Err(Sense::in_cdb_bit(1, 0));
    }
    if !cdb.bit::<1>(4) {
        // Vendor-specific pages of SCSI-1.
        return Err(Sense::in_cdb_bit(1, 4));
    }
    Ok(if len == 0 { Outcome::Done } else { Outcome::Parameters { len, list } })
}

/// Checks a list against the current values. Mode data length and medium type are reserved here, and the device-specific
/// parameter's bits cannot be set by the host, so the header's only meaning is its descriptors.
pub(super) fn accept(unit: &Unit, form: Form, list: &[u8]) -> Result<(), Sense> {
    let (header_len, descriptor_len, long) = match (form, list) {
        (Form::Six, [_, _, _, len, ..]) => (4, usize::from(*len), false),
        (Form::Ten, [_, _, _, _, flags, _, high, low, ..]) => {
            (8, usize::from(u16::from_be_bytes([*high, *low])), flags & 1 != 0)
        }
        _ => return Err(PARAMETER_LIST_LENGTH_ERROR),
    };
    let rest = list.get(header_len..).unwrap_or_default();
    let (descriptor, mut rest) = rest.split_at_checked(descriptor_len).ok_or(PARAMETER_LIST_LENGTH_ERROR)?;
    let mut at = header_len;
    if !descriptor.is_empty() {
        let write = if long { mode::long_block_descriptor } else { mode::block_descriptor };
        same(descriptor, 0xFF, at, |out| write(unit, out))?;
    }
    at = at.saturating_add(descriptor_len);
    while let [code, len, ..] = rest {
        // Bit 6 announces a subpage. Bit 7 (PS) is reserved here, and hosts send it back as they got it.
        let page = (code & 0x40 == 0).then(|| Page::find(unit, code & 0x3F)).flatten();
        let page = page.ok_or(Sense::in_parameters(at))?;
        let page_len = usize::from(*len).saturating_add(2);
        let (bytes, next) = rest.split_at_checked(page_len).ok_or(PARAMETER_LIST_LENGTH_ERROR)?;
        same(bytes, 0x7F, at, |out| page.write(unit, out))?;
        rest = next;
        at = at.saturating_add(page_len);
    }
    if rest.is_empty() { Ok(()) } else { Err(PARAMETER_LIST_LENGTH_ERROR) }
}

/// INVALID FIELD IN PARAMETER LIST, with the first byte that differs from what `write` gives. Of the first byte only the bits
/// in `mask` count.
fn same(bytes: &[u8], mask: u8, at: usize, write: impl FnOnce(&mut Response<'_>)) -> Result<(), Sense> {
    let mut buffer = [0; PAGE_LEN_MAX];
    let mut current = Response::new(&mut buffer);
    write(&mut current);
    let current = current.since(0);
    let sent = |index: usize| bytes.get(index).map(|byte| if index == 0 { byte & mask } else { *byte });
    match (0..bytes.len().max(current.len())).find(|&index| sent(index) != current.get(index).copied()) {
        None => Ok(()),
        Some(index) => Err(Sense::in_parameters(at.saturating_add(index))),
    }
}
