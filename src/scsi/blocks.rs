//! Commands on blocks: capacity, reading, writing, verifying, flushing (SBC-3 §5; READ FORMAT CAPACITIES from MMC-6).
//!
//! DPO is a hint that we do not take. FUA of a read needs nothing: reads see every write that was accepted. FUA_NV (an
//! obsolete bit) is ignored.

use super::cdb::Cdb;
use super::response::Response;
use super::sense::{LBA_OUT_OF_RANGE, Sense, WRITE_PROTECTED};
use super::target::{MediaOp, Outcome};
use super::unit::{Medium, Unit};
use crate::units::{BlockRange, Blocks};

/// The blocks that the CDB names, on the medium that is in.
fn range(unit: &Unit, cdb: &Cdb) -> Result<BlockRange, Sense> {
    let medium = unit.ready()?;
    let (start, count) = cdb.block_fields()?;
    BlockRange::new(start, count).filter(|range| range.fits(medium.blocks)).ok_or(LBA_OUT_OF_RANGE)
}

fn is_empty(range: BlockRange) -> bool {
    range.count() == Blocks(0)
}

pub(super) fn read(unit: &mut Unit, cdb: &Cdb, _: &mut Response<'_>) -> Result<Outcome, Sense> {
    cdb.refuse_protection()?;
    let range = range(unit, cdb)?;
    Ok(if is_empty(range) { Outcome::Done } else { Outcome::Media(MediaOp::Read(range)) })
}

pub(super) fn write(unit: &mut Unit, cdb: &Cdb, _: &mut Response<'_>) -> Result<Outcome, Sense> {
    cdb.refuse_protection()?;
    let range = range(unit, cdb)?;
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

/// BYTCHK = 00b only: no data is compared with the host's.
pub(super) fn verify(unit: &mut Unit, cdb: &Cdb, _: &mut Response<'_>) -> Result<Outcome, Sense> {
    cdb.refuse_protection()?;
    if cdb.byte::<1>() & 0x06 != 0 {
        return Err(Sense::in_cdb_bit(1, 2));
    }
    let range = range(unit, cdb)?;
    Ok(if is_empty(range) { Outcome::Done } else { Outcome::Media(MediaOp::Verify(range)) })
}

/// Flushes everything whatever the range (SBC-3 allows more than was asked), but checks the range. IMMED is not taken
/// up: the status comes when the data are durable.
pub(super) fn synchronize_cache(unit: &mut Unit, cdb: &Cdb, _: &mut Response<'_>) -> Result<Outcome, Sense> {
    range(unit, cdb)?;
    Ok(if unit.may_hold_writes() { Outcome::Media(MediaOp::Flush) } else { Outcome::Done })
}

/// The last address. A medium without blocks has none; sources refuse to be that small.
fn last_lba(medium: Medium) -> u64 {
    medium.blocks.0.saturating_sub(1)
}

/// Saturates at FFFFFFFFh, which tells the host to ask READ CAPACITY(16) (SBC-3, READ CAPACITY (10)).
pub(super) fn read_capacity_10(unit: &mut Unit, _: &Cdb, out: &mut Response<'_>) -> Result<Outcome, Sense> {
    let medium = unit.ready()?;
    out.be32(u32::try_from(last_lba(medium)).unwrap_or(u32::MAX));
    out.be32(medium.block_size.bytes());
    Ok(Outcome::Data { allocation: u32::MAX })
}

/// No protection, one physical block per logical block, no provisioning (SBC-3, READ CAPACITY (16)).
pub(super) fn read_capacity_16(unit: &mut Unit, cdb: &Cdb, out: &mut Response<'_>) -> Result<Outcome, Sense> {
    let medium = unit.ready()?;
    out.be64(last_lba(medium));
    out.be32(medium.block_size.bytes());
    out.zeros(20);
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
