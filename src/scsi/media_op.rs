//! What the drive is asked to do with a medium.

use super::SectorPart;
use crate::units::{BlockRange, BlockSize, Lba};

/// What the drive must do with the medium.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MediaOp {
    /// Send these blocks, at least one.
    Read(BlockRange),
    /// Send this part of each of these CD sectors, at least one: what [`SectorPart::build`] makes of the blocks.
    ReadSectors {
        /// Which.
        range: BlockRange,
        /// What of each; not empty.
        part: SectorPart,
    },
    /// Receive and keep these blocks, at least one.
    Write {
        /// Where.
        range: BlockRange,
        /// Whether they must be durable before the status is sent.
        fua: bool,
    },
    /// See that these blocks, at least one, can be read; no data for the host.
    Verify(BlockRange),
    /// Take several steps.
    Compound(Compound),
    /// These blocks will be read soon. Nothing needs to come of it.
    Prefetch(BlockRange),
    /// Send the first bytes of [`lba_status`](super::lba_status) for the blocks from `start` on.
    LbaStatus {
        /// A block of the medium.
        start: Lba,
        /// 1 to [`LBA_STATUS_LEN`](super::LBA_STATUS_LEN).
        len: u32,
    },
    /// Make all that was written durable.
    Flush,
    /// Begin to make all that was written durable, and do not wait for it.
    FlushSoon,
    /// Bring a medium, if there is one to bring: [`Unit::insert`](super::Unit::insert) it before
    /// [`Target::complete`](super::Target::complete).
    Load,
    /// Make all that was written durable and let the medium go; [`Target::complete`](super::Target::complete) then empties the
    /// unit.
    Unload,
}

/// An operation of several steps. All ranges have at least one block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compound {
    /// Receive as many blocks and compare them with those on the medium (SBC-3, VERIFY with BYTCHK 01b).
    Compare(BlockRange),
    /// Receive one block and compare it with each of those on the medium (BYTCHK 11b).
    CompareEach(BlockRange),
    /// Receive blocks, make them durable, read them back and compare (SBC-3, WRITE AND VERIFY).
    WriteAndVerify(BlockRange),
    /// Receive twice as many blocks; if the first half is what the medium holds, keep the second (SBC-3, COMPARE AND WRITE).
    /// At most [`COMPARE_BLOCKS_MAX`](super::limits::COMPARE_BLOCKS_MAX) blocks.
    CompareAndWrite {
        /// Where.
        range: BlockRange,
        /// Whether what is written must be durable before the status is sent.
        fua: bool,
    },
    /// Keep the same bytes in each block (SBC-3, WRITE SAME).
    WriteSame {
        /// Where.
        range: BlockRange,
        /// The bytes are zeroes, and the host sends none; otherwise it sends one block.
        zeroes: bool,
        /// The storage of blocks that are to be zeroes is to be given back. Of thin media only.
        unmap: bool,
        /// Whether it must be durable before the status is sent.
        durable: bool,
    },
    /// Receive a list of ranges and give their storage back: check it as an [`UnmapList`](super::UnmapList).
    Unmap {
        /// Its length in bytes, at least 8.
        list_len: u16,
        /// Whether it must be durable before the status is sent.
        durable: bool,
    },
}

impl Compound {
    /// Bytes that the host sends for it; `None` where they pass 2^64.
    pub fn data_out(self, block_size: BlockSize) -> Option<u64> {
        let blocks = |count: u64| count.checked_mul(u64::from(block_size.bytes()));
        match self {
            Self::Compare(range) | Self::WriteAndVerify(range) => blocks(range.count().0),
            Self::CompareEach(_) | Self::WriteSame { zeroes: false, .. } => blocks(1),
            Self::CompareAndWrite { range, .. } => blocks(range.count().0.checked_mul(2)?),
            Self::WriteSame { zeroes: true, .. } => Some(0),
            Self::Unmap { list_len, .. } => Some(u64::from(list_len)),
        }
    }

    /// The blocks that it is about; `None` where the host has yet to name them.
    pub fn range(self) -> Option<BlockRange> {
        match self {
            Self::Compare(range)
            | Self::CompareEach(range)
            | Self::WriteAndVerify(range)
            | Self::CompareAndWrite { range, .. }
            | Self::WriteSame { range, .. } => Some(range),
            Self::Unmap { .. } => None,
        }
    }

    /// Whether GOOD says that what it wrote is durable.
    pub fn promises(self) -> bool {
        match self {
            Self::Compare(_) | Self::CompareEach(_) => false,
            Self::WriteAndVerify(_) => true,
            Self::CompareAndWrite { fua: durable, .. }
            | Self::WriteSame { durable, .. }
            | Self::Unmap { durable, .. } => durable,
        }
    }

    /// Whether it leaves the medium as it was.
    pub fn only_reads(self) -> bool {
        matches!(self, Self::Compare(_) | Self::CompareEach(_))
    }
}

impl MediaOp {
    /// Whether GOOD says that something is durable.
    pub fn promises(&self) -> bool {
        match *self {
            Self::Flush | Self::Unload => true,
            Self::Write { fua, .. } => fua,
            Self::Compound(op) => op.promises(),
            _ => false,
        }
    }

    /// The blocks that go from the medium or to it as they are.
    pub fn blocks_moved(&self) -> Option<BlockRange> {
        match *self {
            Self::Read(range)
            | Self::ReadSectors { range, .. }
            | Self::Verify(range)
            | Self::Write { range, .. } => Some(range),
            _ => None,
        }
    }
}
