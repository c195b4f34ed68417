//! What the model host knows of the medium: storage that does not answer, what sense data may say of it, and what it holds in the end.

use ringdrive::media::SourceState;

use super::Checker;
use crate::{
    job::{Job, Moves, What},
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

    pub(super) fn check_attention(&mut self, lun: u8, code: [u8; 2]) -> Result<(), String> {
        match self.attentions.get_mut(usize::from(lun)) {
            Some(left) if *left > 0 => {
                *left -= 1;
                self.mark("unit attention");
                Ok(())
            }
            _ => Err(format!("unit attention {code:02x?} without a cause")),
        }
    }

    /// Byte `at` differs, which the sense data must name unless they `may_lack` it.
    pub(super) fn check_miscompare(&mut self, at: usize, sense: &[u8], may_lack: bool) -> Result<(), String> {
        self.mark("miscompare");
        let told = u32::from_be_bytes(sense[3..7].try_into().unwrap());
        let named = sense[0] == 0xf0 && usize::try_from(told).unwrap() == at;
        match sense[12..14] {
            [0x1d, 0] if named || may_lack => Ok(()),
            _ => Err(format!("byte {at} differs, but sense is {sense:02x?}")),
        }
    }

    /// The whole medium through the bus, at the end of a life.
    pub fn read_back(&mut self, lun: usize) -> Result<(), String> {
        let (blocks, block) = (self.disks[lun].blocks(), self.disks[lun].block);
        let count = u16::try_from(blocks).unwrap().to_be_bytes();
        let cdb = [&[0x28, 0, 0, 0, 0, 0, 0], &count[..], &[0]].concat();
        let len = u32::try_from(blocks * block).unwrap();
        let what = What::Read { lba: 0, count: blocks };
        self.honest(&Job::new(u8::try_from(lun).unwrap(), cdb, Moves::In(len), what))
    }
}
