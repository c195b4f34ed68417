//! Logical block provisioning: UNMAP, WRITE SAME, GET LBA STATUS (SBC-3 §4.7 and §5).
//!
//! A thin medium has the three ways to unmap; any other refuses them, and its capacity data do not offer them. Nothing is ever
//! anchored. Unmapped blocks read as zeroes (LBPRZ).

use super::blocks;
use super::cdb::Cdb;
use super::limits::{UNMAP_BLOCKS_MAX, UNMAP_DESCRIPTORS_MAX, WRITE_SAME_BLOCKS_MAX};
use super::media_op::{Compound, MediaOp};
use super::response::Response;
use super::sense::{
    INVALID_COMMAND_OPERATION_CODE, LBA_OUT_OF_RANGE, PARAMETER_LIST_LENGTH_ERROR, Sense, WRITE_PROTECTED,
};
use super::target::Outcome;
use super::unit::{Medium, Unit};
use crate::units::{BlockRange, Blocks, Lba};

/// The header of an UNMAP parameter list, and each of its block descriptors (SBC-3 §5.28).
const HEADER_LEN: usize = 8;
const DESCRIPTOR_LEN: usize = 16;

/// The longest list that we take: [`UNMAP_DESCRIPTORS_MAX`] descriptors.
const LIST_LEN_MAX: u16 = 8 + 16 * UNMAP_DESCRIPTORS_MAX;

/// The parameter data of GET LBA STATUS with one descriptor.
pub const LBA_STATUS_LEN: u32 = 24;

/// Without a list there is nothing to do.
pub(super) fn unmap(unit: &mut Unit, cdb: &Cdb, _: &mut Response<'_>) -> Result<Outcome, Sense> {
    if !unit.ready()?.thin {
        return Err(if unit.writable() { INVALID_COMMAND_OPERATION_CODE } else { WRITE_PROTECTED });
    }
    if cdb.bit::<1>(0) {
        // ANCHOR.
        return Err(Sense::in_cdb_bit(1, 0));
    }
    match cdb.be16::<7>() {
        0 => Ok(Outcome::Done),
        1..8 => Err(PARAMETER_LIST_LENGTH_ERROR),
        len if len > LIST_LEN_MAX => Err(Sense::in_cdb(7)),
        _ if !unit.writable() => Err(WRITE_PROTECTED),
        list_len => {
            let durable = !unit.modes.write_cache;
            Ok(Outcome::Media(MediaOp::Compound(Compound::Unmap { list_len, durable })))
        }
    }
}

/// A checked UNMAP parameter list, whose bytes stay with whoever received them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnmapList {
    descriptors: usize,
}

impl UnmapList {
    /// Checks a list for a medium. A last descriptor that is not whole is left out (SBC-3 §5.28.2).
    ///
    /// # Errors
    /// The sense data to end the command with; no block is to be unmapped then.
    pub fn check(list: &[u8], medium: &Medium) -> Result<Self, Sense> {
        let [_, _, high, low, _, _, _, _, rest @ ..] = list else { return Err(PARAMETER_LIST_LENGTH_ERROR) };
        let told = usize::from(u16::from_be_bytes([*high, *low])) / DESCRIPTOR_LEN;
        let descriptors = told.min(rest.len() / DESCRIPTOR_LEN);
        if descriptors > usize::from(UNMAP_DESCRIPTORS_MAX) {
            return Err(Sense::in_parameters(2));
        }
        let checked = Self { descriptors };
        let mut total: u64 = 0;
        for index in 0..descriptors {
            let range = checked.range(list, index).filter(|range| range.fits(medium.blocks));
            total = total.saturating_add(range.ok_or(LBA_OUT_OF_RANGE)?.count().0);
            if total > u64::from(UNMAP_BLOCKS_MAX) {
                return Err(Sense::in_parameters(
                    index.saturating_mul(DESCRIPTOR_LEN).saturating_add(HEADER_LEN + 8),
                ));
            }
        }
        Ok(checked)
    }

    /// How many ranges there are.
    pub fn len(&self) -> usize {
        self.descriptors
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.descriptors == 0
    }

    /// A range of the list that was checked; it may be empty.
    pub fn range(&self, list: &[u8], index: usize) -> Option<BlockRange> {
        let at = index.checked_mul(DESCRIPTOR_LEN)?.checked_add(HEADER_LEN)?;
        let (lba, rest) = list.get(at..)?.split_first_chunk()?;
        let count = rest.first_chunk()?;
        let blocks = Blocks(u64::from(u32::from_be_bytes(*count)));
        (index < self.descriptors)
            .then_some(())
            .and_then(|()| BlockRange::new(Lba(u64::from_be_bytes(*lba)), blocks))
    }
}

/// The one block that is written everywhere comes from the host or, with NDOB, is zeroes. UNMAP asks for the storage back, which
/// is given where the block is all zeroes.
pub(super) fn write_same(unit: &mut Unit, cdb: &Cdb, _: &mut Response<'_>) -> Result<Outcome, Sense> {
    cdb.refuse_protection()?;
    let (unmap, long) = (cdb.bit::<1>(3), cdb.len_code() == 16);
    if cdb.bit::<1>(4) {
        // ANCHOR.
        return Err(Sense::in_cdb_bit(1, 4));
    }
    if unmap && !unit.ready()?.thin && unit.writable() {
        return Err(Sense::in_cdb_bit(1, 3));
    }
    if cdb.byte::<1>() & 0x06 != 0 {
        // PBDATA and LBDATA, obsolete: the address in each block.
        return Err(Sense::in_cdb_bit(1, 2));
    }
    let count_at = if long { 10 } else { 7 };
    let (_, count) = cdb.block_fields()?;
    if count == Blocks(0) {
        return Err(Sense::in_cdb(count_at));
    }
    let range = blocks::range(unit, cdb)?;
    if count.0 > u64::from(WRITE_SAME_BLOCKS_MAX) {
        return Err(Sense::in_cdb(count_at));
    }
    if !unit.writable() {
        return Err(WRITE_PROTECTED);
    }
    let (zeroes, durable) = (long && cdb.bit::<1>(0), !unit.modes.write_cache);
    Ok(Outcome::Media(MediaOp::Compound(Compound::WriteSame { range, zeroes, unmap, durable })))
}

/// One descriptor: from the block asked for to where its state changes.
pub(super) fn get_lba_status(unit: &mut Unit, cdb: &Cdb, _: &mut Response<'_>) -> Result<Outcome, Sense> {
    let medium = unit.ready()?;
    let (start, allocation) = (Lba(cdb.be64::<2>()), cdb.be32::<10>());
    if start.0 >= medium.blocks.0 {
        return Err(LBA_OUT_OF_RANGE);
    }
    match allocation.min(LBA_STATUS_LEN) {
        0 => Ok(Outcome::Done),
        len => Ok(Outcome::Media(MediaOp::LbaStatus { start, len })),
    }
}

/// The parameter data of GET LBA STATUS (SBC-3 §5.6.2) for blocks that are all mapped, or all deallocated.
pub fn lba_status(start: Lba, blocks: Blocks, mapped: bool) -> [u8; 24] {
    let mut data = [0; 24];
    let mut out = Response::new(&mut data);
    out.be32(LBA_STATUS_LEN.saturating_sub(4));
    out.zeros(4);
    out.be64(start.0);
    out.be32(u32::try_from(blocks.0).unwrap_or(u32::MAX));
    out.byte(if mapped { 0 } else { 1 });
    out.zeros(3);
    data
}
