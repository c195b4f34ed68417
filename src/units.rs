//! Units that every room shares: block addresses, block counts, byte offsets. Only the legal operations exist, and those that
//! can overflow return `None`.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A logical block address (SBC-3 §4.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lba(pub u64);

/// A number of logical blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Blocks(pub u64);

/// A position in an image, in bytes. 64 bits on every machine: images are larger than 4 GiB on 32-bit boards too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteOffset(pub u64);

/// A length in an image, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteLen(pub u64);

/// The logical block length of a unit. In JSON its number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "u32", try_from = "u32")]
pub enum BlockSize {
    /// 512 bytes: disks.
    B512,
    /// 2048 bytes: optical media.
    B2048,
    /// 4096 bytes: disks with native 4 KiB blocks.
    B4096,
}

/// A run of blocks whose end does not overflow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockRange {
    start: Lba,
    count: Blocks,
}

/// A run of bytes whose end does not overflow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ByteRange {
    start: ByteOffset,
    len: ByteLen,
}

/// A number of bytes that no unit has in a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0} is no block size; try 512, 2048 or 4096")]
pub struct InvalidBlockSize(u32);

impl From<BlockSize> for u32 {
    fn from(size: BlockSize) -> Self {
        size.bytes()
    }
}

impl TryFrom<u32> for BlockSize {
    type Error = InvalidBlockSize;

    fn try_from(bytes: u32) -> Result<Self, InvalidBlockSize> {
        [Self::B512, Self::B2048, Self::B4096]
            .into_iter()
            .find(|size| size.bytes() == bytes)
            .ok_or(InvalidBlockSize(bytes))
    }
}

impl BlockSize {
    /// Bytes in one block.
    pub const fn bytes(self) -> u32 {
        match self {
            Self::B512 => 512,
            Self::B2048 => 2048,
            Self::B4096 => 4096,
        }
    }

    /// Whole blocks in `len`; a last partial block is left out.
    pub fn blocks_in(self, len: ByteLen) -> Blocks {
        Blocks(len.0 / u64::from(self.bytes()))
    }

    /// The bytes of `range`, or `None` where they pass 2^64.
    pub fn byte_range(self, range: BlockRange) -> Option<ByteRange> {
        let size = u64::from(self.bytes());
        ByteRange::new(
            ByteOffset(range.start.0.checked_mul(size)?),
            ByteLen(range.count.0.checked_mul(size)?),
        )
    }
}

impl BlockRange {
    /// `None` where the end passes 2^64.
    pub fn new(start: Lba, count: Blocks) -> Option<Self> {
        start.0.checked_add(count.0).map(|_| Self { start, count })
    }

    /// First block.
    pub fn start(self) -> Lba {
        self.start
    }

    /// Number of blocks.
    pub fn count(self) -> Blocks {
        self.count
    }

    /// Whether the range lies wholly on a medium of `capacity` blocks. An empty range may stand at the very end
    /// (SBC-3 §5: a transfer length of zero is not an error).
    pub fn fits(self, capacity: Blocks) -> bool {
        self.start.0.checked_add(self.count.0).is_some_and(|end| end <= capacity.0)
    }
}

impl ByteRange {
    /// `None` where the end passes 2^64.
    pub fn new(start: ByteOffset, len: ByteLen) -> Option<Self> {
        start.0.checked_add(len.0).map(|_| Self { start, len })
    }

    /// First byte.
    pub fn start(self) -> ByteOffset {
        self.start
    }

    /// Number of bytes.
    pub fn len(self) -> ByteLen {
        self.len
    }

    /// Whether there is nothing in it.
    pub fn is_empty(self) -> bool {
        self.len.0 == 0
    }

    /// The first `len` bytes, or all of them, and what is behind.
    pub fn split_at(self, len: ByteLen) -> (Self, Self) {
        let head = len.0.min(self.len.0);
        (
            Self { start: self.start, len: ByteLen(head) },
            Self { start: ByteOffset(self.start.0 + head), len: ByteLen(self.len.0 - head) },
        )
    }

    /// One past the last byte.
    pub fn end(self) -> ByteOffset {
        ByteOffset(self.start.0 + self.len.0)
    }
}

impl ByteLen {
    /// For lengths of buffers, which are small; saturates where `usize` is narrower.
    pub fn to_usize(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

impl From<usize> for ByteLen {
    fn from(len: usize) -> Self {
        Self(u64::try_from(len).unwrap_or(u64::MAX))
    }
}

impl From<u32> for ByteLen {
    fn from(len: u32) -> Self {
        Self(len.into())
    }
}

impl fmt::Display for ByteLen {
    /// In the unit a person would use: `4.7 GB` (powers of ten, as drives are sold), `512 B`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [(u64, &str); 4] =
            [(1_000_000_000_000, "TB"), (1_000_000_000, "GB"), (1_000_000, "MB"), (1_000, "kB")];
        match UNITS.iter().find(|(size, _)| self.0 >= *size) {
            Some((size, name)) => {
                let tenths = self.0 / (size / 10);
                write!(f, "{}.{} {name}", tenths / 10, tenths % 10)
            }
            None => write!(f, "{} B", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_past_the_address_space_does_not_exist() {
        assert_eq!(BlockRange::new(Lba(u64::MAX), Blocks(1)), None);
        let far = BlockRange::new(Lba(1 << 60), Blocks(1)).unwrap();
        assert_eq!(BlockSize::B4096.byte_range(far), None);
    }

    #[test]
    fn an_empty_range_fits_at_the_end_but_not_beyond() {
        let at = |lba| BlockRange::new(Lba(lba), Blocks(0)).unwrap();
        assert!(at(10).fits(Blocks(10)));
        assert!(!at(11).fits(Blocks(10)));
    }

    #[test]
    fn lengths_print_as_drives_are_sold() {
        assert_eq!(ByteLen(511).to_string(), "511 B");
        assert_eq!(ByteLen(4_700_372_992).to_string(), "4.7 GB");
    }
}
