//! Addresses in minutes, seconds and frames (MMC-6, MSF addresses).

use crate::scsi::response::Response;
use crate::units::Lba;

/// Frames in a second, and blocks before LBA 0.
const FRAMES_PER_SECOND: u64 = 75;
const PREGAP_BLOCKS: u64 = 150;

/// Minutes, seconds, frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Msf(pub(super) [u8; 3]);

impl From<Lba> for Msf {
    /// An address past what a byte of minutes can say (a DVD) stays at the last one.
    fn from(lba: Lba) -> Self {
        let frames = lba.0.saturating_add(PREGAP_BLOCKS);
        let seconds = frames / FRAMES_PER_SECOND;
        let small = |value: u64| u8::try_from(value).ok();
        match (small(seconds / 60), small(seconds % 60), small(frames % FRAMES_PER_SECOND)) {
            (Some(minutes), Some(seconds), Some(frames)) => Self([minutes, seconds, frames]),
            _ => Self([u8::MAX, 59, 74]),
        }
    }
}

impl Msf {
    /// The block there; `None` where it lies before LBA 0, or is no address.
    pub(super) fn lba(self) -> Option<Lba> {
        let Self([minutes, seconds, frames]) = self;
        if seconds > 59 || frames > 74 {
            return None;
        }
        let seconds = u64::from(minutes).saturating_mul(60).saturating_add(u64::from(seconds));
        let frames = seconds.saturating_mul(FRAMES_PER_SECOND).saturating_add(u64::from(frames));
        frames.checked_sub(PREGAP_BLOCKS).map(Lba)
    }
}

/// Four bytes: a block address, or zero and minutes, seconds, frames.
pub(super) fn write_address(lba: Lba, msf: bool, out: &mut Response<'_>) {
    if msf {
        out.byte(0);
        out.push(&Msf::from(lba).0);
    } else {
        out.be32(u32::try_from(lba.0).unwrap_or(u32::MAX));
    }
}
