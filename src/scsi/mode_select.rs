//! MODE SELECT (SPC-4): takes a list whole or not at all. All but the changeable bits must be as MODE SENSE told them.
//!
//! With one initiator nobody has to hear of a change by unit attention (SPC-4, MODE SELECT: all but the sender).

use super::cdb::Cdb;
use super::media_op::MediaOp;
use super::mode::{self, Modes, Page};
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

/// Checks a list, then does what it says. Mode data length and medium type are reserved here, and the device-specific
/// parameter's bits cannot be set by the host, so the header's only meaning is its descriptors.
///
/// Where the write cache is off then, what was in it must be made durable first (SBC-3, caching mode page). So it is if it was off
/// before: the switching off may have failed at just that.
pub(super) fn accept(unit: &mut Unit, form: Form, list: &[u8]) -> Result<Option<MediaOp>, Sense> {
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
        same_descriptor(unit, descriptor, long, at)?;
    }
    at = at.saturating_add(descriptor_len);
    let mut modes = unit.modes;
    while let [code, len, ..] = rest {
        // Bit 6 announces a subpage. Bit 7 (PS) is reserved here, and hosts send it back as they got it.
        let page = (code & 0x40 == 0).then(|| Page::find(unit, code & 0x3F)).flatten();
        let page = page.ok_or(Sense::in_parameters(at))?;
        let page_len = usize::from(*len).saturating_add(2);
        let (bytes, next) = rest.split_at_checked(page_len).ok_or(PARAMETER_LIST_LENGTH_ERROR)?;
        take_page(unit, page, bytes, at, &mut modes)?;
        rest = next;
        at = at.saturating_add(page_len);
    }
    if !rest.is_empty() {
        return Err(PARAMETER_LIST_LENGTH_ERROR);
    }
    unit.modes = modes;
    Ok((!modes.write_cache && unit.may_hold_writes()).then_some(MediaOp::Flush))
}

/// A number of blocks of all zeroes or all ones means the capacity as it is (SBC-3 §6.4.2).
fn same_descriptor(unit: &Unit, descriptor: &[u8], long: bool, at: usize) -> Result<(), Sense> {
    let (write, count_len): (fn(&Unit, &mut Response<'_>), _) =
        if long { (mode::long_block_descriptor, 8) } else { (mode::block_descriptor, 4) };
    let count = descriptor.get(..count_len).unwrap_or_default();
    let keeps = count.iter().all(|byte| *byte == 0) || count.iter().all(|byte| *byte == 0xFF);
    let ignored = |index| if keeps && index < count_len { 0xFF } else { 0 };
    same(descriptor, at, ignored, |out| write(unit, out))
}

/// Notes in `modes` what the page changes. Of its first byte only the page code counts.
fn take_page(unit: &Unit, page: &Page, bytes: &[u8], at: usize, modes: &mut Modes) -> Result<(), Sense> {
    let changeable =
        |index| page.switches().filter(|switch| switch.at == index).fold(0, |all, one| all | one.mask);
    let ignored = |index| if index == 0 { 0x80 } else { changeable(index) };
    same(bytes, at, ignored, |out| page.write_fixed(unit, out))?;
    for switch in page.switches() {
        *(switch.value)(modes) = bytes.get(switch.at).is_some_and(|byte| byte & switch.mask != 0);
    }
    Ok(())
}

/// INVALID FIELD IN PARAMETER LIST, with the first byte that differs from what `write` gives in other bits than the ignored ones.
fn same(
    bytes: &[u8],
    at: usize,
    ignored: impl Fn(usize) -> u8,
    write: impl FnOnce(&mut Response<'_>),
) -> Result<(), Sense> {
    let mut buffer = [0; PAGE_LEN_MAX];
    let mut current = Response::new(&mut buffer);
    write(&mut current);
    let current = current.since(0);
    let counted = |bytes: &[u8], index| bytes.get(index).map(|byte| byte & !ignored(index));
    match (0..bytes.len().max(current.len())).find(|&index| counted(bytes, index) != counted(current, index))
    {
        None => Ok(()),
        Some(index) => Err(Sense::in_parameters(at.saturating_add(index))),
    }
}
