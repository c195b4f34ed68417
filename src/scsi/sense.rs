//! Sense data: what went wrong, and its two encodings (SPC-4 §4.5).

use std::fmt;

use super::response::Response;

/// The sense keys that we report (SPC-4 §4.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SenseKey {
    /// 0h: nothing to report.
    NoSense,
    /// 2h: the unit cannot be accessed now.
    NotReady,
    /// 3h: the medium has a flaw.
    MediumError,
    /// 4h: the device has one.
    HardwareError,
    /// 5h: the host asked for something we do not do.
    IllegalRequest,
    /// 6h: something happened that the host must know.
    UnitAttention,
    /// 7h: the medium is protected.
    DataProtect,
    /// Bh: we gave the command up.
    AbortedCommand,
    /// Eh: compared data differ.
    Miscompare,
}

impl SenseKey {
    /// The four bits on the wire.
    pub const fn code(self) -> u8 {
        match self {
            Self::NoSense => 0x0,
            Self::NotReady => 0x2,
            Self::MediumError => 0x3,
            Self::HardwareError => 0x4,
            Self::IllegalRequest => 0x5,
            Self::UnitAttention => 0x6,
            Self::DataProtect => 0x7,
            Self::AbortedCommand => 0xB,
            Self::Miscompare => 0xE,
        }
    }

    /// The key with these four bits, if we ever report it.
    pub(super) fn from_code(code: u8) -> Option<Self> {
        const ALL: [SenseKey; 9] = [
            SenseKey::NoSense,
            SenseKey::NotReady,
            SenseKey::MediumError,
            SenseKey::HardwareError,
            SenseKey::IllegalRequest,
            SenseKey::UnitAttention,
            SenseKey::DataProtect,
            SenseKey::AbortedCommand,
            SenseKey::Miscompare,
        ];
        ALL.into_iter().find(|key| key.code() == code)
    }

    const fn name(self) -> &'static str {
        match self {
            Self::NoSense => "NO SENSE",
            Self::NotReady => "NOT READY",
            Self::MediumError => "MEDIUM ERROR",
            Self::HardwareError => "HARDWARE ERROR",
            Self::IllegalRequest => "ILLEGAL REQUEST",
            Self::UnitAttention => "UNIT ATTENTION",
            Self::DataProtect => "DATA PROTECT",
            Self::AbortedCommand => "ABORTED COMMAND",
            Self::Miscompare => "MISCOMPARE",
        }
    }
}

/// Which byte of the command or of its parameter list is wrong (SPC-4 §4.5, field pointer).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldPointer {
    /// A byte of the CDB, and the most significant bit of the field where it is less than a byte.
    Cdb {
        /// Byte in the CDB.
        byte: u16,
        /// Bit in that byte.
        bit: Option<u8>,
    },
    /// A byte of the parameter list.
    Parameters {
        /// Byte in the list.
        byte: u16,
    },
}

impl FieldPointer {
    /// SKSV, C/D, BPV, bit pointer, field pointer (SPC-4 §4.5).
    fn encode(self) -> [u8; 3] {
        let (flags, byte) = match self {
            Self::Cdb { byte, bit: Some(bit) } => (0xC8 | (bit & 0x07), byte),
            Self::Cdb { byte, bit: None } => (0xC0, byte),
            Self::Parameters { byte } => (0x80, byte),
        };
        let [high, low] = byte.to_be_bytes();
        [flags, high, low]
    }
}

/// Sense data of one condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sense {
    /// Sense key.
    pub key: SenseKey,
    /// Additional sense code.
    pub asc: u8,
    /// Additional sense code qualifier.
    pub ascq: u8,
    /// INFORMATION: for medium errors the LBA of the first bad block (SBC-3, READ (10)), for COMPARE AND WRITE the offset of the
    /// first byte that differs.
    pub information: Option<u64>,
    /// The wrong field, for ILLEGAL REQUEST.
    pub field: Option<FieldPointer>,
    /// It is about an earlier command, which was said to have gone well (SPC-4 §4.5, deferred error).
    pub deferred: bool,
}

macro_rules! senses {
    ($($(#[$doc:meta])* $name:ident = $key:ident $asc:literal $ascq:literal $text:literal;)*) => {
        $($(#[$doc])* pub const $name: Sense = Sense::new(SenseKey::$key, $asc, $ascq);)*

        /// The standard's words for an additional sense code that we know (SPC-4, ASC and ASCQ assignments).
        fn text(asc: u8, ascq: u8) -> Option<&'static str> {
            match (asc, ascq) {
                $(($asc, $ascq) => Some($text),)*
                _ => None,
            }
        }
    };
}

/// The target gave the command up; the host may send it again.
pub const ABORTED_COMMAND: Sense = Sense::new(SenseKey::AbortedCommand, 0x00, 0x00);

senses! {
    /// Nothing to report.
    NO_SENSE = NoSense 0x00 0x00 "no additional sense information";
    /// The unit is coming up; the host should ask again.
    BECOMING_READY = NotReady 0x04 0x01 "logical unit is in process of becoming ready";
    /// The unit does not answer in time.
    COMMUNICATION_TIMEOUT = HardwareError 0x08 0x01 "logical unit communication time-out";
    /// The medium would not take the data.
    WRITE_ERROR = MediumError 0x0C 0x00 "write error";
    /// The medium would not give the data.
    UNRECOVERED_READ_ERROR = MediumError 0x11 0x00 "unrecovered read error";
    /// What was compared differs.
    MISCOMPARE_DURING_VERIFY = Miscompare 0x1D 0x00 "miscompare during verify operation";
    /// A parameter list ends in the middle of something.
    PARAMETER_LIST_LENGTH_ERROR = IllegalRequest 0x1A 0x00 "parameter list length error";
    /// The opcode is not in our table.
    INVALID_COMMAND_OPERATION_CODE = IllegalRequest 0x20 0x00 "invalid command operation code";
    /// The range passes the last block.
    LBA_OUT_OF_RANGE = IllegalRequest 0x21 0x00 "logical block address out of range";
    /// The host sent other data than the command takes.
    DATA_PHASE_ERROR = AbortedCommand 0x4B 0x00 "data phase error";
    /// A CDB field has a value we do not support.
    INVALID_FIELD_IN_CDB = IllegalRequest 0x24 0x00 "invalid field in CDB";
    /// No unit has this LUN.
    LOGICAL_UNIT_NOT_SUPPORTED = IllegalRequest 0x25 0x00 "logical unit not supported";
    /// A parameter list field has a value we do not support.
    INVALID_FIELD_IN_PARAMETER_LIST = IllegalRequest 0x26 0x00 "invalid field in parameter list";
    /// RELEASE of another type than that of the reservation.
    INVALID_RELEASE_OF_PERSISTENT_RESERVATION = IllegalRequest 0x26 0x04 "invalid release of persistent reservation";
    /// The medium is read-only.
    WRITE_PROTECTED = DataProtect 0x27 0x00 "write protected";
    /// No space is left behind the medium (SBC-3, thin provisioning).
    SPACE_ALLOCATION_FAILED = DataProtect 0x27 0x07 "space allocation failed write protect";
    /// A medium was inserted.
    MEDIUM_MAY_HAVE_CHANGED = UnitAttention 0x28 0x00 "not ready to ready change, medium may have changed";
    /// Power on or reset.
    RESET_OCCURRED = UnitAttention 0x29 0x00 "power on, reset, or bus device reset occurred";
    /// MODE SENSE would answer differently now.
    MODE_PARAMETERS_CHANGED = UnitAttention 0x2A 0x01 "mode parameters changed";
    /// READ DISC STRUCTURE of another kind of disc than the one that is in.
    INCOMPATIBLE_FORMAT = IllegalRequest 0x30 0x02 "cannot read medium - incompatible format";
    /// PC = 11b.
    SAVING_PARAMETERS_NOT_SUPPORTED = IllegalRequest 0x39 0x00 "saving parameters not supported";
    /// No medium, on a unit without a tray.
    MEDIUM_NOT_PRESENT = NotReady 0x3A 0x00 "medium not present";
    /// No medium, tray closed.
    MEDIUM_NOT_PRESENT_TRAY_CLOSED = NotReady 0x3A 0x01 "medium not present - tray closed";
    /// No medium, tray open.
    MEDIUM_NOT_PRESENT_TRAY_OPEN = NotReady 0x3A 0x02 "medium not present - tray open";
    /// INQUIRY would answer differently now.
    INQUIRY_DATA_CHANGED = UnitAttention 0x3F 0x03 "inquiry data has changed";
    /// A bug or an exhausted resource on our side.
    INTERNAL_TARGET_FAILURE = HardwareError 0x44 0x00 "internal target failure";
    /// The host itself prevents removal.
    MEDIUM_REMOVAL_PREVENTED = IllegalRequest 0x53 0x02 "medium removal prevented";
    /// READ CD asks for a sector type that the track has not.
    ILLEGAL_MODE_FOR_THIS_TRACK = IllegalRequest 0x64 0x00 "illegal mode for this track";
}

impl Sense {
    /// Sense data without INFORMATION and field pointer.
    pub const fn new(key: SenseKey, asc: u8, ascq: u8) -> Self {
        Self { key, asc, ascq, information: None, field: None, deferred: false }
    }

    /// The same with INFORMATION: the LBA of the first bad block.
    pub const fn with_information(self, lba: u64) -> Self {
        Self { information: Some(lba), ..self }
    }

    /// The same about an earlier command.
    pub const fn deferred(self) -> Self {
        Self { deferred: true, ..self }
    }

    /// INVALID FIELD IN CDB, with the byte.
    pub const fn in_cdb(byte: u16) -> Self {
        Self { field: Some(FieldPointer::Cdb { byte, bit: None }), ..INVALID_FIELD_IN_CDB }
    }

    /// INVALID FIELD IN CDB, with the byte and the most significant bit of the field.
    pub const fn in_cdb_bit(byte: u16, bit: u8) -> Self {
        Self { field: Some(FieldPointer::Cdb { byte, bit: Some(bit) }), ..INVALID_FIELD_IN_CDB }
    }

    /// INVALID FIELD IN PARAMETER LIST, with the byte; without a pointer where the byte is past 65,535.
    pub fn in_parameters(byte: usize) -> Self {
        let field = u16::try_from(byte).ok().map(|byte| FieldPointer::Parameters { byte });
        Self { field, ..INVALID_FIELD_IN_PARAMETER_LIST }
    }

    /// Fixed format, 18 bytes (SPC-4 §4.5.3). INFORMATION that does not fit 32 bits leaves VALID at zero.
    pub(super) fn encode_fixed(&self, out: &mut Response<'_>) {
        let information = self.information.and_then(|lba| u32::try_from(lba).ok());
        let valid = if information.is_some() { 0x80 } else { 0 };
        out.byte(valid | 0x70 | u8::from(self.deferred));
        out.push(&[0, self.key.code()]);
        out.be32(information.unwrap_or(0));
        out.push(&[10, 0, 0, 0, 0, self.asc, self.ascq, 0]);
        out.push(&self.field.map_or([0; 3], FieldPointer::encode));
    }

    /// Descriptor format (SPC-4 §4.5.2): 8 bytes, 12 more with INFORMATION, 8 more with a field pointer.
    pub(super) fn encode_descriptor(&self, out: &mut Response<'_>) {
        let at = out.len();
        out.push(&[0x72 | u8::from(self.deferred), self.key.code(), self.asc, self.ascq, 0, 0, 0, 0]);
        if let Some(information) = self.information {
            out.push(&[0x00, 0x0A, 0x80, 0]);
            out.be64(information);
        }
        if let Some(field) = self.field {
            out.push(&[0x02, 0x06, 0, 0]);
            out.push(&field.encode());
            out.byte(0);
        }
        out.seal8(at.saturating_add(7));
    }
}

impl fmt::Display for Sense {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {:02X}/{:02X}", self.key.name(), self.asc, self.ascq)?;
        if let Some(text) = text(self.asc, self.ascq) {
            write!(f, " ({text})")?;
        }
        match self.field {
            Some(FieldPointer::Cdb { byte, .. }) => write!(f, " at CDB byte {byte}")?,
            Some(FieldPointer::Parameters { byte }) => write!(f, " at parameter byte {byte}")?,
            None => {}
        }
        match self.information {
            Some(lba) => write!(f, " at LBA {lba}"),
            None => Ok(()),
        }
    }
}
