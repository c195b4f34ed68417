//! The most that one command of a disk may ask for. Read by the handlers that refuse more, by the Block Limits VPD page (B0h), which
//! tells hosts, and by the drive, which has room for as much.

use crate::units::BlockSize;

/// MAXIMUM TRANSFER LENGTH: what a 10-byte CDB can say, so that only longer CDBs can pass it. At 4096 bytes a block it is less than
/// the 4 GiB that a CBW can carry.
pub const TRANSFER_BLOCKS_MAX: u32 = 0xFFFF;

/// MAXIMUM COMPARE AND WRITE LENGTH. What is compared and what is written, of the longest blocks, fit one buffer of the drive.
pub const COMPARE_BLOCKS_MAX: u8 = 8;

/// MAXIMUM UNMAP LBA COUNT, over all descriptors of a command. Linux sends up to 7FFFFFh where it could not ask (drivers/scsi/sd.h),
/// as for every USB drive.
pub const UNMAP_BLOCKS_MAX: u32 = 0x100_0000;

/// MAXIMUM UNMAP BLOCK DESCRIPTOR COUNT: a parameter list of them fits one buffer of the drive.
pub const UNMAP_DESCRIPTORS_MAX: u16 = 255;

/// MAXIMUM WRITE SAME LENGTH: what a 10-byte CDB can say. All of it may have to be written, while the host's patience runs.
pub const WRITE_SAME_BLOCKS_MAX: u32 = 0xFFFF;

/// WSNZ: WRITE SAME of zero blocks, which once meant "to the end", is refused.
pub const WRITE_SAME_NON_ZERO: bool = true;

/// OPTIMAL UNMAP GRANULARITY in blocks: 4096 bytes, which is what file systems and the page cache give back at least.
pub const fn unmap_granularity(block_size: BlockSize) -> u32 {
    match block_size {
        BlockSize::B512 => 8,
        BlockSize::B2048 => 2,
        BlockSize::B4096 => 1,
    }
}
