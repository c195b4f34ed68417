//! What a medium is taken for, by its size (MMC-6 §5, profiles).

use crate::scsi::sense::{INCOMPATIBLE_FORMAT, Sense};
use crate::scsi::unit::Unit;
use crate::units::Blocks;

/// The largest image shown as a CD: 80 minutes of 75 blocks a second, the longest disc that is sold (QEMU draws the same
/// line).
const CD_BLOCKS_MAX: Blocks = Blocks(80 * 60 * 75);

/// The largest image shown as a DVD of one layer (ECMA-267: 4.7 GB a side).
const DVD_LAYER_BLOCKS_MAX: Blocks = Blocks(2_298_496);

/// The largest image shown as a DVD: one side, two layers. DVD+R DL holds most (ECMA-364: 2,086,912 blocks a layer).
const DVD_BLOCKS_MAX: Blocks = Blocks(2 * 2_086_912);

/// The largest image shown as a BD of one layer (25 GB: 12,219,392 blocks).
const BD_LAYER_BLOCKS_MAX: Blocks = Blocks(12_219_392);

/// A kind of disc. All are read-only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::scsi) enum Profile {
    Cd,
    Dvd,
    Bd,
}

impl Profile {
    /// Most capable first (MMC-6, profile list feature).
    pub(super) const ALL: [Self; 3] = [Self::Bd, Self::Dvd, Self::Cd];

    /// What is in the unit, if anything is.
    pub(super) fn of(unit: &Unit) -> Option<Self> {
        unit.medium().map(|medium| Self::of_size(medium.blocks))
    }

    fn of_size(blocks: Blocks) -> Self {
        match blocks {
            blocks if blocks <= CD_BLOCKS_MAX => Self::Cd,
            blocks if blocks <= DVD_BLOCKS_MAX => Self::Dvd,
            _ => Self::Bd,
        }
    }

    /// CANNOT READ MEDIUM - INCOMPATIBLE FORMAT where the medium is another one; its blocks where it is this one.
    pub(super) fn demand(self, unit: &Unit) -> Result<Blocks, Sense> {
        let blocks = unit.ready()?.blocks;
        if Self::of_size(blocks) == self { Ok(blocks) } else { Err(INCOMPATIBLE_FORMAT) }
    }

    /// Profile number (MMC-6, profile list feature).
    pub(super) const fn number(self) -> u16 {
        match self {
            Self::Cd => 0x0008,
            Self::Dvd => 0x0010,
            Self::Bd => 0x0040,
        }
    }

    /// Blocks that are read together on such a medium.
    pub(super) const fn blocking(self) -> u16 {
        match self {
            Self::Cd => 1,
            Self::Dvd => 16,
            Self::Bd => 32,
        }
    }

    /// The speed that is told: 48 × 176, 16 × 1385 and 12 × 4496, in units of 1000 bytes a second.
    pub(super) const fn speed(self) -> u16 {
        match self {
            Self::Cd => 8448,
            Self::Dvd => 22_160,
            Self::Bd => 53_952,
        }
    }

    /// Layers of a disc of this kind that hold so many blocks.
    pub(super) fn layers(self, blocks: Blocks) -> u8 {
        let two = match self {
            Self::Cd => false,
            Self::Dvd => blocks > DVD_LAYER_BLOCKS_MAX,
            Self::Bd => blocks > BD_LAYER_BLOCKS_MAX,
        };
        if two { 2 } else { 1 }
    }
}
