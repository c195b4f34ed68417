//! How much one command may ask for: what the block limits page says and the handlers keep to (SBC-3 §6.5.3).

/// Block descriptors of one UNMAP: as many as fit into the longest parameter list.
pub(super) const UNMAP_DESCRIPTORS_MAX: u32 = 31;

/// Blocks of one UNMAP. No limit.
pub(super) const UNMAP_BLOCKS_MAX: u32 = u32::MAX;

/// Bytes that are given back together, by any common file system.
pub(super) const UNMAP_GRANULARITY: u32 = 4096;

/// Blocks of one WRITE SAME. Zero: no limit.
pub(super) const WRITE_SAME_BLOCKS_MAX: u64 = 0;

/// Blocks of one COMPARE AND WRITE. Zero: there is no such command.
pub(super) const COMPARE_AND_WRITE_BLOCKS_MAX: u8 = 0;
