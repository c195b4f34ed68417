//! GET EVENT STATUS NOTIFICATION (MMC-6), polled.

use crate::scsi::cdb::Cdb;
use crate::scsi::response::Response;
use crate::scsi::sense::Sense;
use crate::scsi::target::Outcome;
use crate::scsi::unit::{MediaEvent, OperationalChange, PowerState, Unit};

/// Notification classes that can be asked for; the lowest is the most urgent (MMC-6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    OperationalChange,
    PowerManagement,
    Media,
    DeviceBusy,
}

const CLASSES: [Class; 4] =
    [Class::OperationalChange, Class::PowerManagement, Class::Media, Class::DeviceBusy];

/// Header byte 3: the classes above.
const SUPPORTED: u8 = 0x56;

/// No event available.
const NEA: u8 = 0x80;

impl Class {
    const fn code(self) -> u8 {
        match self {
            Self::OperationalChange => 1,
            Self::PowerManagement => 2,
            Self::Media => 4,
            Self::DeviceBusy => 6,
        }
    }

    fn requested(self, cdb: &Cdb) -> bool {
        cdb.bit::<4>(self.code())
    }

    fn has_event(self, unit: &Unit) -> bool {
        match self {
            Self::OperationalChange => unit.operational_change.is_some(),
            Self::PowerManagement => unit.power_changed,
            Self::Media => unit.media_event.is_some(),
            Self::DeviceBusy => false,
        }
    }
}

pub(in crate::scsi) fn get_event_status(
    unit: &mut Unit,
    cdb: &Cdb,
    out: &mut Response<'_>,
) -> Result<Outcome, Sense> {
    if !cdb.bit::<1>(0) {
        // Asynchronous notification is not supported.
        return Err(Sense::in_cdb_bit(1, 0));
    }
    let requested = || CLASSES.into_iter().filter(|class| class.requested(cdb));
    // A class with an event; without one, the most urgent class, which then tells its state.
    let class = requested().find(|class| class.has_event(unit)).or_else(|| requested().next());
    out.zeros(2);
    match class {
        None => out.push(&[NEA, SUPPORTED]),
        Some(class) => {
            out.push(&[class.code(), SUPPORTED]);
            let allocation = cdb.be16::<7>();
            event(class, unit, allocation, out);
        }
    }
    let descriptor = u16::try_from(out.len().saturating_sub(4)).unwrap_or(0);
    out.patch(0, &descriptor.to_be_bytes());
    Ok(Outcome::Data { allocation: u32::from(cdb.be16::<7>()) })
}

/// Four bytes: the event, the state, and what belongs to the class. An event that does not fit the allocation length is not lost
/// (MMC-6).
fn event(class: Class, unit: &mut Unit, allocation: u16, out: &mut Response<'_>) {
    let fits = allocation > 4;
    match class {
        Class::OperationalChange => {
            // Available; or whether removal is prevented persistently.
            let status = if unit.prevention.persistent { 0x80 } else { 0 };
            match if fits { unit.operational_change.take() } else { None } {
                None => out.push(&[0, status, 0, 0]),
                // A change has occurred, and which.
                Some(change) => out.push(&[2, status, 0, change.code()]),
            }
        }
        Class::PowerManagement => {
            // The change succeeded.
            let event = u8::from(fits && std::mem::take(&mut unit.power_changed));
            out.push(&[event, unit.power.code(), 0, 0]);
        }
        Class::Media => {
            let state = u8::from(unit.tray_open()) | u8::from(unit.medium().is_some()) << 1;
            let event = if fits { unit.media_event.take() } else { None };
            out.push(&[event.map_or(0, MediaEvent::code), state, 0, 0]);
        }
        // No change; not busy.
        Class::DeviceBusy => out.zeros(4),
    }
}

impl OperationalChange {
    /// Operational change (MMC-6).
    const fn code(self) -> u8 {
        match self {
            Self::Features => 1,
            Self::Reset => 3,
            Self::Inquiry => 5,
        }
    }
}

impl PowerState {
    /// Power status (MMC-6).
    const fn code(self) -> u8 {
        match self {
            Self::Active => 1,
            Self::Idle => 2,
            Self::Standby => 3,
            Self::Sleep => 4,
        }
    }
}

impl MediaEvent {
    /// Media event code (MMC-6).
    const fn code(self) -> u8 {
        match self {
            Self::EjectRequest => 1,
            Self::NewMedia => 2,
            Self::MediaRemoval => 3,
        }
    }
}
