//! What the model host knows of storage that does not answer.

use ringdrive::media::SourceState;

use super::Checker;
use crate::{
    media::SECOND,
    world::{Nanos, World},
};

impl Checker {
    /// How often storage of this unit was slower than any should be.
    pub(super) fn stuck(&self, lun: u8) -> u64 {
        self.disks.get(usize::from(lun)).map_or(0, |disk| self.port.world.stuck(&disk.file))
    }

    /// Whether something is under way that is.
    pub(super) fn is_stuck(&self, lun: u8) -> bool {
        let media = &self.port.world.media;
        self.disks.get(usize::from(lun)).is_some_and(|disk| media.is_stuck(&disk.file))
    }

    pub(super) fn is_offline(&mut self, lun: u8) -> bool {
        let World { device, now, .. } = &mut self.port.world;
        device.source(*now, lun) == Some(SourceState::Offline)
    }

    /// Storage comes back, by itself or because somebody mends it, and with it the drive.
    pub(super) fn await_source(&mut self, lun: u8) -> Result<(), String> {
        self.mark("source offline");
        let patience = if self.rng.bool() { 90 * SECOND } else { 0 };
        self.until_online(lun, patience);
        let World { media, now, .. } = &mut self.port.world;
        let patience = 2 * SECOND + 4 * media.delay_max();
        let mended = *now;
        if self.is_offline(lun) {
            self.port.world.release();
            self.until_online(lun, patience);
        }
        if self.is_offline(lun) {
            let waited = (self.port.world.now - mended) / 1_000_000;
            return Err(format!("unit {lun} is still offline {waited} ms after its storage was mended"));
        }
        self.mark("source online again");
        Ok(())
    }

    pub(super) fn until_online(&mut self, lun: u8, patience: Nanos) {
        let end = self.port.world.now + patience;
        while self.port.world.now < end && self.is_offline(lun) && self.port.world.step() {}
    }
}
