//! Commands on blocks: capacity, reading, writing, comparing, flushing (SBC-3 §5; READ FORMAT CAPACITIES from MMC-6).
//!
//! DPO is a hint that we do not take. FUA of a read needs nothing: reads see every write that was accepted. FUA_NV (an
//! obsolete bit) is ignored.

use super::cdb::Cdb;
use super::limits::{COMPARE_BLOCKS_MAX, TRANSFER_BLOCKS_MAX};
use super::media_op::{Compound, MediaOp};
use super::response::Response;
use super::sense::{LBA_OUT_OF_RANGE, Sense, WRITE_PROTECTED};
use super::target::Outcome;
use super::unit::{Kind, Medium, Unit};
use crate::units::{BlockRange, Blocks, Lba};

/// The blocks that the CDB names, on the medium that is in.
pub(super) fn range(unit: &Unit, cdb: &Cdb) -> Result<BlockRange, Sense> {
    let medium = unit.ready()?;
    let (start, count) = cdb.block_fields()?;
    BlockRange::new(start, count).filter(|range| range.fits(medium.blocks)).ok_or(LBA_OUT_OF_RANGE)
}

/// The same, no longer than a disk transfers at once. Optical units tell no limit.
fn transfer(unit: &Unit, cdb: &Cdb) -> Result<BlockRange, Sense> {
    let range = range(unit, cdb)?;
    if unit.kind() == Kind::Disk && range.count().0 > u64::from(TRANSFER_BLOCKS_MAX) {
        return Err(Sense::in_cdb(if cdb.len_code() == 12 { 6 } else { 10 }));
    }
    Ok(range)
}

fn is_empty(range: BlockRange) -> bool {
    range.count() == Blocks(0)
}

pub(super) fn read(unit: &mut Unit, cdb: &Cdb, _: &mut Response<'_>) -> Result<Outcome, Sense> {
    cdb.refuse_protection()?;
    let range = transfer(unit, cdb)?;
    Ok(if is_empty(range) { Outcome::Done } else { Outcome::Media(MediaOp::Read(range)) })
}

pub(super) fn write(unit: &mut Unit, cdb: &Cdb, _: &mut Response<'_>) -> Result<Outcome, Sense> {
    cdb.refuse_protection()?;
    let range = transfer(unit, cdb)?;
    if is_empty(range) {
        return Ok(Outcome::Done);
    }
    if !unit.writable() {
        return Err(WRITE_PROTECTED);
    }
    // In WRITE(6) this bit belongs to the LBA.
    let fua = !unit.modes.write_cache || cdb.opcode() >> 5 != 0 && cdb.bit::<1>(3);
    Ok(Outcome::Media(MediaOp::Write { range, fua }))
}

/// BYTCHK: 00b compares nothing, 01b each block with the host's, 11b all blocks with one of the host's. Optical units compare
/// nothing: in MMC-6 the bit is for media that we do not have.
pub(super) fn verify(unit: &mut Unit, cdb: &Cdb, _: &mut Response<'_>) -> Result<Outcome, Sense> {
    cdb.refuse_protection()?;
    let range = range(unit, cdb)?;
    let op = match (cdb.byte::<1>() >> 1 & 0x03, unit.kind()) {
        (0b00, _) => MediaOp::Verify(range),
        (0b01, Kind::Disk) => MediaOp::Compound(Compound::Compare(transfer(unit, cdb)?)),
        (0b11, Kind::Disk) => MediaOp::Compound(Compound::CompareEach(range)),
        _ => return Err(Sense::in_cdb_bit(1, 2)),
    };
    Ok(if is_empty(range) { Outcome::Done } else { Outcome::Media(op) })
}

/// BYTCHK 00b (look at the medium) and 01b (compare) are the same to us: what was written is read back and compared.
pub(super) fn write_and_verify(unit: &mut Unit, cdb: &Cdb, _: &mut Response<'_>) -> Result<Outcome, Sense> {
    cdb.refuse_protection()?;
    if cdb.bit::<1>(2) {
        return Err(Sense::in_cdb_bit(1, 2));
    }
    let range = transfer(unit, cdb)?;
    if is_empty(range) {
        return Ok(Outcome::Done);
    }
    if !unit.writable() {
        return Err(WRITE_PROTECTED);
    }
    Ok(Outcome::Media(MediaOp::Compound(Compound::WriteAndVerify(range))))
}

/// The drive has one command at work, so nothing comes between the two halves.
pub(super) fn compare_and_write(unit: &mut Unit, cdb: &Cdb, _: &mut Response<'_>) -> Result<Outcome, Sense> {
    cdb.refuse_protection()?;
    let medium = unit.ready()?;
    let (start, count) = (Lba(cdb.be64::<2>()), cdb.byte::<13>());
    let range = BlockRange::new(start, Blocks(u64::from(count)))
        .filter(|range| range.fits(medium.blocks))
        .ok_or(LBA_OUT_OF_RANGE)?;
    if count > COMPARE_BLOCKS_MAX {
        return Err(Sense::in_cdb(13));
    }
    if count == 0 {
        return Ok(Outcome::Done);
    }
    if !unit.writable() {
        return Err(WRITE_PROTECTED);
    }
    let fua = !unit.modes.write_cache || cdb.bit::<1>(3);
    Ok(Outcome::Media(MediaOp::Compound(Compound::CompareAndWrite { range, fua })))
}

/// A count of zero means up to the last block. The status would be CONDITION MET where all fits our cache, which Bulk-Only
/// Transport tells as it tells GOOD. It comes at once, with IMMED and without.
pub(super) fn prefetch(unit: &mut Unit, cdb: &Cdb, _: &mut Response<'_>) -> Result<Outcome, Sense> {
    let range = range(unit, cdb)?;
    let left = unit.ready()?.blocks.0.saturating_sub(range.start().0);
    let range = if is_empty(range) { BlockRange::new(range.start(), Blocks(left)) } else { Some(range) };
    Ok(match range.filter(|range| !is_empty(*range)) {
        Some(range) => Outcome::Media(MediaOp::Prefetch(range)),
        None => Outcome::Done,
    })
}

/// Flushes everything whatever the range (SBC-3 allows more than was asked), but checks the range. With IMMED the status does
/// not wait for it; should it fail then, the next flush does.
pub(super) fn synchronize_cache(unit: &mut Unit, cdb: &Cdb, _: &mut Response<'_>) -> Result<Outcome, Sense> {
    range(unit, cdb)?;
    Ok(match (unit.may_hold_writes(), cdb.bit::<1>(1)) {
        (false, _) => Outcome::Done,
        (true, true) => Outcome::Media(MediaOp::FlushSoon),
        (true, false) => Outcome::Media(MediaOp::Flush),
    })
}

/// The last address. A medium without blocks has none; sources refuse to be that small.
fn last_lba(medium: Medium) -> u64 {
    medium.blocks.0.saturating_sub(1)
}

/// PMI asks for the last block before which access slows down, of which there is none but the last. Without it an address makes
/// no sense (SBC-2, READ CAPACITY; obsolete in SBC-3; the kernel's f_mass_storage refuses the same, so hosts are known clean).
fn refuse_address(pmi: bool, lba: u64) -> Result<(), Sense> {
    if lba != 0 && !pmi { Err(Sense::in_cdb(2)) } else { Ok(()) }
}

/// Saturates at FFFFFFFFh, which tells the host to ask READ CAPACITY(16) (SBC-3, READ CAPACITY (10)).
pub(super) fn read_capacity_10(unit: &mut Unit, cdb: &Cdb, out: &mut Response<'_>) -> Result<Outcome, Sense> {
    let medium = unit.ready()?;
    refuse_address(cdb.bit::<8>(0), u64::from(cdb.be32::<2>()))?;
    out.be32(u32::try_from(last_lba(medium)).unwrap_or(u32::MAX));
    out.be32(medium.block_size.bytes());
    Ok(Outcome::Data { allocation: u32::MAX })
}

/// No protection, one physical block per logical block; LBPME and LBPRZ of a thin medium (SBC-3, READ CAPACITY (16)).
pub(super) fn read_capacity_16(unit: &mut Unit, cdb: &Cdb, out: &mut Response<'_>) -> Result<Outcome, Sense> {
    let medium = unit.ready()?;
    refuse_address(cdb.bit::<14>(0), cdb.be64::<2>())?;
    out.be64(last_lba(medium));
    out.be32(medium.block_size.bytes());
    out.zeros(2);
    out.byte(if medium.thin { 0xC0 } else { 0 });
    out.zeros(17);
    Ok(Outcome::Data { allocation: cdb.be32::<10>() })
}

/// One current capacity descriptor: formatted media, or no media present (MMC-6, READ FORMAT CAPACITIES).
pub(super) fn read_format_capacities(
    unit: &mut Unit,
    cdb: &Cdb,
    out: &mut Response<'_>,
) -> Result<Outcome, Sense> {
    let (blocks, descriptor, block_len) = match unit.medium() {
        Some(medium) => (medium.blocks.0, 0x02, medium.block_size.bytes()),
        None => (u64::from(u32::MAX), 0x03, 512),
    };
    out.push(&[0, 0, 0, 8]);
    out.be32(u32::try_from(blocks).unwrap_or(u32::MAX));
    out.byte(descriptor);
    out.be24(block_len);
    Ok(Outcome::Data { allocation: u32::from(cdb.be16::<7>()) })
}
