//! What a unit's successor must know of it: the drive keeps these bytes where they outlive the process.
//!
//! Called by the drive, after each command and each change. Everything in it is what a host would notice if it were gone: unit
//! attentions it has not heard of, what it has set, what it has reserved, and the sense data that it may be about to ask for.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::attention::{Attention, Attentions};
use super::mode::Modes;
use super::reservation::Reservations;
use super::sense::{ABORTED_COMMAND, Sense, SenseKey};
use super::unit::{MediaEvent, OperationalChange, PowerState, Prevention, Unit};

const TRAY_OPEN: u8 = 1;
const PREVENT: u8 = 2;
const PERSISTENT: u8 = 4;
const WRITE_CACHE: u8 = 8;
const DESCRIPTOR_SENSE: u8 = 16;
const SOFTWARE_WRITE_PROTECT: u8 = 32;
const POWER_CHANGED: u8 = 64;

/// A unit as bytes, for this build or one that says the same of its layout.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct KeptUnit {
    reservation_key: u64,
    reservation_generation: u32,
    /// 0: none.
    reservation_type: u8,
    attentions: u8,
    flags: u8,
    /// 0: none.
    media_event: u8,
    /// 0: none.
    operational_change: u8,
    power: u8,
    /// As `keep_sense` gives it.
    sense: [u8; 3],
    /// As `sense`.
    deferred: [u8; 3],
}
const _: () = assert!(size_of::<KeptUnit>() == 24);

/// Whether there is any sense data, and whether it is about an earlier command: bits beside its key.
const PRESENT: u8 = 0x80;
const DEFERRED: u8 = 0x40;

/// Key, additional sense code and qualifier. INFORMATION and field pointer are not worth keeping.
fn keep_sense(sense: Option<Sense>) -> [u8; 3] {
    sense.map_or([0; 3], |sense| {
        let deferred = if sense.deferred { DEFERRED } else { 0 };
        [PRESENT | deferred | sense.key.code(), sense.asc, sense.ascq]
    })
}

fn resume_sense([key, asc, ascq]: [u8; 3]) -> Result<Option<Sense>, NotUnderstood> {
    if key & PRESENT == 0 {
        return Ok(None);
    }
    let deferred = key & DEFERRED != 0;
    let key = SenseKey::from_code(key & !(PRESENT | DEFERRED)).ok_or(NotUnderstood)?;
    Ok(Some(Sense { deferred, ..Sense::new(key, asc, ascq) }))
}

/// The bytes are none of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the state of a drive that the last process left is not understood")]
pub struct NotUnderstood;

impl Unit {
    /// What its successor must know. What it is, and what is in it, the caller knows.
    pub fn keep(&self) -> KeptUnit {
        let (reservation_key, reservation_generation, reservation_type) = self.reservations.keep();
        let flag = |is: bool, flag: u8| if is { flag } else { 0 };
        let Prevention { prevent, persistent } = self.prevention;
        let Modes { write_cache, descriptor_sense, software_write_protect } = self.modes;
        KeptUnit {
            reservation_key,
            reservation_generation,
            reservation_type,
            attentions: self.attentions.bits(),
            flags: flag(self.tray_open(), TRAY_OPEN)
                | flag(prevent, PREVENT)
                | flag(persistent, PERSISTENT)
                | flag(write_cache, WRITE_CACHE)
                | flag(descriptor_sense, DESCRIPTOR_SENSE)
                | flag(software_write_protect, SOFTWARE_WRITE_PROTECT)
                | flag(self.power_changed, POWER_CHANGED),
            media_event: match self.media_event {
                None => 0,
                Some(MediaEvent::EjectRequest) => 1,
                Some(MediaEvent::NewMedia) => 2,
                Some(MediaEvent::MediaRemoval) => 3,
            },
            operational_change: match self.operational_change {
                None => 0,
                Some(OperationalChange::Features) => 1,
                Some(OperationalChange::Reset) => 2,
                Some(OperationalChange::Inquiry) => 3,
            },
            power: match self.power {
                PowerState::Active => 0,
                PowerState::Idle => 1,
                PowerState::Standby => 2,
                PowerState::Sleep => 3,
            },
            sense: keep_sense(self.sense),
            deferred: keep_sense(self.deferred),
        }
    }

    /// Becomes what its predecessor was, after the medium that was in it has been put in.
    ///
    /// # Errors
    /// [`NotUnderstood`]; the unit is then unchanged.
    pub fn resume(&mut self, kept: &KeptUnit) -> Result<(), NotUnderstood> {
        let is = |flag: u8| kept.flags & flag != 0;
        let reservations =
            Reservations::resume(kept.reservation_key, kept.reservation_generation, kept.reservation_type)
                .ok_or(NotUnderstood)?;
        let media_event = match kept.media_event {
            0 => None,
            1 => Some(MediaEvent::EjectRequest),
            2 => Some(MediaEvent::NewMedia),
            3 => Some(MediaEvent::MediaRemoval),
            _ => return Err(NotUnderstood),
        };
        let operational_change = match kept.operational_change {
            0 => None,
            1 => Some(OperationalChange::Features),
            2 => Some(OperationalChange::Reset),
            3 => Some(OperationalChange::Inquiry),
            _ => return Err(NotUnderstood),
        };
        let power = match kept.power {
            0 => PowerState::Active,
            1 => PowerState::Idle,
            2 => PowerState::Standby,
            3 => PowerState::Sleep,
            _ => return Err(NotUnderstood),
        };
        let (sense, deferred) = (resume_sense(kept.sense)?, resume_sense(kept.deferred)?);
        self.set_tray_open(is(TRAY_OPEN));
        self.prevention = Prevention { prevent: is(PREVENT), persistent: is(PERSISTENT) };
        self.modes = Modes {
            write_cache: is(WRITE_CACHE),
            descriptor_sense: is(DESCRIPTOR_SENSE),
            software_write_protect: is(SOFTWARE_WRITE_PROTECT),
        };
        self.reservations = reservations;
        self.attentions = Attentions::from_bits(kept.attentions);
        (self.media_event, self.operational_change) = (media_event, operational_change);
        (self.power, self.power_changed) = (power, is(POWER_CHANGED));
        (self.sense, self.deferred) = (sense, deferred);
        Ok(())
    }

    /// What was in it could not be had again: as [`Unit::remove`], after [`Unit::resume`].
    pub fn resume_empty(&mut self) {
        self.deferred = None;
        self.prevention = Prevention::default();
        self.attentions.withdraw(Attention::MediumChanged);
        self.media_event = Some(MediaEvent::MediaRemoval);
        self.operational_change = Some(OperationalChange::Features);
    }

    /// What is in it is not what was in its predecessor, though it has the same name (unit attention 28/00).
    pub fn resume_changed(&mut self) {
        self.attentions.raise(Attention::MediumChanged);
        self.media_event = Some(MediaEvent::NewMedia);
        self.operational_change = Some(OperationalChange::Features);
    }

    /// The command at hand was begun by a predecessor that did not end it: ABORTED COMMAND, after which hosts try again.
    pub fn interrupted(&mut self) {
        self.sense = Some(ABORTED_COMMAND);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scsi::{Identity, Kind, Medium};
    use crate::units::{BlockSize, Blocks};

    fn unit() -> Unit {
        Unit::new(Kind::Optical, Identity::new("v", "p", "r", "s").unwrap())
    }

    #[test]
    fn a_unit_is_what_its_predecessor_was() {
        let mut before = unit();
        let medium =
            Medium { blocks: Blocks(16), block_size: BlockSize::B2048, write_protected: true, thin: false };
        before.insert(medium);
        before.prevention.persistent = true;
        before.modes.write_cache = false;
        before.reservations = Reservations::resume(0x1234, 7, 3).unwrap();
        before.sense = Some(Sense::new(SenseKey::MediumError, 0x11, 0).deferred());
        before.defer(Sense::new(SenseKey::MediumError, 0x0c, 0));
        before.set_power(PowerState::Standby);
        let kept = KeptUnit::read_from_bytes(before.keep().as_bytes()).unwrap();
        let mut after = unit();
        after.insert(medium);
        after.resume(&kept).unwrap();
        assert_eq!(format!("{after:?}"), format!("{before:?}"));
    }

    #[test]
    fn nonsense_is_refused() {
        for nonsense in [
            KeptUnit { reservation_type: 2, ..unit().keep() },
            KeptUnit { media_event: 4, ..unit().keep() },
            KeptUnit { operational_change: 9, ..unit().keep() },
            KeptUnit { power: 4, ..unit().keep() },
            KeptUnit { sense: [0x81, 0, 0], ..unit().keep() },
        ] {
            assert_eq!(unit().resume(&nonsense), Err(NotUnderstood));
        }
    }
}
