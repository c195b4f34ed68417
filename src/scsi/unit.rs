//! One logical unit: what it is, what is in it, and what the host has not been told yet.

use serde::{Deserialize, Serialize};
use thiserror::Error;

use super::attention::{Attention, Attentions};
use super::mode::Modes;
use super::reservation::Reservations;
use super::sense::{MEDIUM_NOT_PRESENT, MEDIUM_NOT_PRESENT_TRAY_CLOSED, MEDIUM_NOT_PRESENT_TRAY_OPEN, Sense};
use crate::units::{BlockSize, Blocks};

/// The longest serial number. With vendor and product it still fits the 255 bytes of a T10 designator (SPC-4 §7.8).
const SERIAL_LEN_MAX: usize = 64;

/// What a unit is. Both kinds have removable media.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Direct access block device, peripheral device type 00h.
    Disk,
    /// CD, DVD or BD drive, peripheral device type 05h; never writes.
    Optical,
}

impl Kind {
    pub(super) const fn peripheral_device_type(self) -> u8 {
        match self {
            Self::Disk => 0x00,
            Self::Optical => 0x05,
        }
    }
}

/// What INQUIRY tells of a unit: ASCII, padded with spaces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    vendor: [u8; 8],
    product: [u8; 16],
    revision: [u8; 4],
    serial: String,
}

/// A string that INQUIRY cannot carry.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum InvalidIdentity {
    /// Too long.
    #[error("{field} {value:?} has {} characters; use at most {max}", .value.chars().count())]
    Long {
        /// Which string.
        field: &'static str,
        /// What it was.
        value: String,
        /// How long it may be.
        max: usize,
    },
    /// Not graphic ASCII (SPC-4 §4.4).
    #[error(
        "{field} {value:?} has characters other than printable ASCII; use letters, digits, punctuation and spaces"
    )]
    Characters {
        /// Which string.
        field: &'static str,
        /// What it was.
        value: String,
    },
    /// No serial number: hosts would take all drives for one.
    #[error("the serial number is empty; give the drive one that stays the same")]
    NoSerial,
}

impl Identity {
    /// Vendor of up to 8 characters, product 16, revision 4, serial number 1 to 64.
    ///
    /// # Errors
    /// [`InvalidIdentity`] where a string is too long or not printable ASCII, or the serial number is empty.
    pub fn new(vendor: &str, product: &str, revision: &str, serial: &str) -> Result<Self, InvalidIdentity> {
        let serial = checked("serial", serial, SERIAL_LEN_MAX)?.trim();
        if serial.is_empty() {
            return Err(InvalidIdentity::NoSerial);
        }
        Ok(Self {
            vendor: padded("vendor", vendor)?,
            product: padded("product", product)?,
            revision: padded("revision", revision)?,
            serial: serial.to_owned(),
        })
    }

    /// T10 vendor identification.
    pub fn vendor(&self) -> &[u8; 8] {
        &self.vendor
    }

    /// Product identification.
    pub fn product(&self) -> &[u8; 16] {
        &self.product
    }

    /// Product revision level.
    pub fn revision(&self) -> &[u8; 4] {
        &self.revision
    }

    /// Product serial number.
    pub fn serial(&self) -> &str {
        &self.serial
    }
}

fn checked<'a>(field: &'static str, value: &'a str, max: usize) -> Result<&'a str, InvalidIdentity> {
    if !value.bytes().all(|byte| (0x20..=0x7E).contains(&byte)) {
        return Err(InvalidIdentity::Characters { field, value: value.to_owned() });
    }
    if value.len() > max {
        return Err(InvalidIdentity::Long { field, value: value.to_owned(), max });
    }
    Ok(value)
}

fn padded<const LEN: usize>(field: &'static str, value: &str) -> Result<[u8; LEN], InvalidIdentity> {
    let mut bytes = [b' '; LEN];
    for (to, byte) in bytes.iter_mut().zip(checked(field, value, LEN)?.bytes()) {
        *to = byte;
    }
    Ok(bytes)
}

/// What is in a unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Medium {
    /// Its size.
    pub blocks: Blocks,
    /// Its logical block length.
    pub block_size: BlockSize,
    /// Whether writes are refused. Optical units refuse them anyway.
    pub write_protected: bool,
    /// Whether unmapped blocks give their storage back and read as zeroes (SBC-3 §4.7, logical block provisioning).
    pub thin: bool,
}

/// A media event that GET EVENT STATUS NOTIFICATION reports once (MMC-6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MediaEvent {
    EjectRequest,
    NewMedia,
    MediaRemoval,
}

/// An operational change event (MMC-6), of which the one that is told last stands for those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OperationalChange {
    /// Another medium, or none: other features and another profile are current.
    Features,
    /// The unit was reset.
    Reset,
    /// INQUIRY would answer differently now.
    Inquiry,
}

/// Power states of an optical unit (MMC-6, power management). They mean nothing but what the host hears of them: a command that
/// needs the medium makes the unit active again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PowerState {
    Active,
    Idle,
    Standby,
    Sleep,
}

/// What the host forbids (MMC-6, PREVENT ALLOW MEDIUM REMOVAL). The two states are independent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Prevention {
    pub(super) prevent: bool,
    pub(super) persistent: bool,
}

/// The unit holds a medium, so what it is cannot be changed.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("the drive holds an image, so its kind cannot change; eject the image first")]
pub struct Occupied;

/// One logical unit.
#[derive(Clone, Debug)]
pub struct Unit {
    kind: Kind,
    identity: Identity,
    medium: Option<Medium>,
    tray_open: bool,
    pub(super) prevention: Prevention,
    pub(super) modes: Modes,
    pub(super) reservations: Reservations,
    pub(super) attentions: Attentions,
    pub(super) media_event: Option<MediaEvent>,
    pub(super) operational_change: Option<OperationalChange>,
    pub(super) power: PowerState,
    /// The power state has changed since the host was last told of it.
    pub(super) power_changed: bool,
    pub(super) sense: Option<Sense>,
    /// An error of an earlier command that the next one tells.
    pub(super) deferred: Option<Sense>,
}

impl Unit {
    /// An empty unit, tray closed, just powered on (unit attention 29/00).
    pub fn new(kind: Kind, identity: Identity) -> Self {
        let mut unit = Self {
            kind,
            identity,
            medium: None,
            tray_open: false,
            prevention: Prevention::default(),
            modes: Modes::default(),
            reservations: Reservations::default(),
            attentions: Attentions::default(),
            media_event: None,
            operational_change: None,
            power: PowerState::Active,
            power_changed: false,
            sense: None,
            deferred: None,
        };
        unit.attentions.raise(Attention::PowerOn);
        unit
    }

    /// What it is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// What INQUIRY tells of it.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// What is in it.
    pub fn medium(&self) -> Option<&Medium> {
        self.medium.as_ref()
    }

    /// Whether the host forbids removal, persistently or not.
    pub fn prevented(&self) -> bool {
        self.prevention.prevent || self.prevention.persistent
    }

    /// Whether the host opened the tray. Only an optical unit has one.
    pub fn tray_open(&self) -> bool {
        self.tray_open
    }

    /// Sense data of the last command, if it ended in CHECK CONDITION and REQUEST SENSE has not taken it.
    pub fn last_sense(&self) -> Option<Sense> {
        self.sense
    }

    /// An error of a command that has ended, which the host must still hear of: the next command tells it (SPC-4 §4.5).
    pub fn defer(&mut self, sense: Sense) {
        self.deferred = Some(sense);
    }

    /// Puts a medium in, in place of one that is there. The host learns of it by unit attention 28/00 and, on an optical
    /// unit, by the event NewMedia.
    pub fn insert(&mut self, medium: Medium) {
        self.medium = Some(medium);
        self.tray_open = false;
        self.attentions.raise(Attention::MediumChanged);
        self.media_event = Some(MediaEvent::NewMedia);
        self.operational_change = Some(OperationalChange::Features);
        self.set_power(PowerState::Active);
    }

    /// Takes the medium out against the host's will if need be: prevention ends with the medium it was for. The host learns
    /// of it by NOT READY 3A and, on an optical unit, by the event MediaRemoval. The tray stays closed, so that a host which
    /// closes open trays does not call for the medium that was just taken.
    pub fn remove(&mut self) {
        if self.medium.take().is_some() {
            self.deferred = None;
            self.prevention = Prevention::default();
            self.attentions.withdraw(Attention::MediumChanged);
            self.media_event = Some(MediaEvent::MediaRemoval);
            self.operational_change = Some(OperationalChange::Features);
        }
    }

    /// Asks the host to eject, as the button of a locked drive does (event EjectRequest). Optical hosts poll for it; a disk
    /// has nothing of the kind, so there it is without effect.
    pub fn request_eject(&mut self) {
        if self.medium.is_some() {
            self.media_event = Some(MediaEvent::EjectRequest);
        }
    }

    /// Makes it a device of another kind (unit attention 3F/03).
    ///
    /// # Errors
    /// [`Occupied`] while it holds a medium.
    pub fn set_kind(&mut self, kind: Kind, identity: Identity) -> Result<(), Occupied> {
        if self.medium.is_some() {
            return Err(Occupied);
        }
        if (kind, &identity) != (self.kind, &self.identity) {
            self.kind = kind;
            self.identity = identity;
            self.tray_open = false;
            self.modes = Modes::default();
            self.reservations = Reservations::default();
            self.attentions.raise(Attention::InquiryChanged);
            self.operational_change = Some(OperationalChange::Inquiry);
        }
        Ok(())
    }

    /// Changes the write protection of the medium that is in (unit attention 2A/01; 28/00 would make hosts drop a mounted
    /// file system). Without a medium it is without effect.
    pub fn set_write_protected(&mut self, write_protected: bool) {
        if let Some(medium) = &mut self.medium
            && medium.write_protected != write_protected
        {
            medium.write_protected = write_protected;
            self.attentions.raise(Attention::ModeParametersChanged);
        }
    }

    /// The medium, or why there is none.
    pub(super) fn ready(&self) -> Result<Medium, Sense> {
        self.medium.ok_or(match (self.kind, self.tray_open) {
            (Kind::Disk, _) => MEDIUM_NOT_PRESENT,
            (Kind::Optical, false) => MEDIUM_NOT_PRESENT_TRAY_CLOSED,
            (Kind::Optical, true) => MEDIUM_NOT_PRESENT_TRAY_OPEN,
        })
    }

    /// Whether the medium that is in may be written: neither it nor the host forbids it.
    pub(super) fn writable(&self) -> bool {
        self.kind == Kind::Disk
            && !self.modes.software_write_protect
            && self.medium.is_some_and(|medium| !medium.write_protected)
    }

    /// Whether writes may wait to be made durable, though further ones may be refused by now.
    pub(super) fn may_hold_writes(&self) -> bool {
        self.kind == Kind::Disk && self.medium.is_some_and(|medium| !medium.write_protected)
    }

    /// The host opened the tray.
    pub(super) fn open_tray(&mut self) {
        self.remove();
        self.tray_open = self.kind == Kind::Optical;
    }

    /// The tray is as it was in a predecessor; only an optical unit has one.
    pub(super) fn set_tray_open(&mut self, open: bool) {
        self.tray_open = open && self.kind == Kind::Optical && self.medium.is_none();
    }

    /// The host closed the tray.
    pub(super) fn close_tray(&mut self) {
        self.tray_open = false;
    }

    /// The host asked for this power state, or for something that needs it.
    pub(super) fn set_power(&mut self, power: PowerState) {
        self.power_changed |= self.power != power;
        self.power = power;
    }

    /// A reset of the transport: prevention ends and mode parameters are as they were at first (SPC-4), sense data is lost, and
    /// the host is told. Persistent reservations stay (SPC-4 §5.13).
    pub(super) fn reset(&mut self) {
        self.prevention = Prevention::default();
        self.modes = Modes::default();
        self.sense = None;
        self.power = PowerState::Active;
        self.power_changed = false;
        self.operational_change = Some(OperationalChange::Reset);
        self.attentions.raise(Attention::Reset);
    }
}
