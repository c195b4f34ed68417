//! The two wrappers as they stand on the wire (BOT 1.0 §5.1, §5.2), parsed once and built once.

use std::{fmt, ops::Deref};

use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    byteorder::{LE, U32},
};

/// Bytes in a CBW.
pub const CBW_LEN: usize = 31;
/// Bytes in a CSW.
pub const CSW_LEN: usize = 13;
/// Longest command block that fits into a CBW.
pub const CDB_LEN_MAX: usize = 16;

const CBW_SIGNATURE: u32 = 0x4342_5355;
const CSW_SIGNATURE: u32 = 0x5342_5355;
const DIRECTION_IN: u8 = 0x80;
const LUN_MASK: u8 = 0x0f;

/// Command Block Wrapper, table 5.1.
#[derive(FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Cbw {
    signature: U32<LE>,
    tag: U32<LE>,
    data_transfer_length: U32<LE>,
    flags: u8,
    lun: u8,
    cb_length: u8,
    cb: [u8; CDB_LEN_MAX],
}
const _: () = assert!(size_of::<Cbw>() == CBW_LEN);

/// Command Status Wrapper, table 5.2.
#[derive(FromBytes, IntoBytes, Immutable, Unaligned)]
#[repr(C)]
struct Csw {
    signature: U32<LE>,
    tag: U32<LE>,
    data_residue: U32<LE>,
    status: u8,
}
const _: () = assert!(size_of::<Csw>() == CSW_LEN);

/// Logical unit number: 0..=15, four bits of bCBWLUN.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Lun(pub u8);

/// dCBWTag: the host's name for a command, echoed in its CSW.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CbwTag(pub u32);

/// What the host will move, in bytes: dCBWDataTransferLength with the direction bit. A length of zero is `None` whatever
/// the direction bit says (§5.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// Hn: no data phase.
    None,
    /// Hi: device to host; never 0.
    In(u32),
    /// Ho: host to device; never 0.
    Out(u32),
}

/// A command descriptor block of 1..=16 bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Cdb {
    bytes: [u8; CDB_LEN_MAX],
    len: usize,
}

/// A command that the host opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Command {
    /// The logical unit it is for; that unit may not exist.
    pub lun: Lun,
    /// The data phase that the host is going to perform.
    pub expected: Expected,
    /// The SCSI command.
    pub cdb: Cdb,
}

/// Why a CBW is not valid (§6.2.1) or not meaningful (§6.2.2). The device answers both by halting its pipes until a reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidCbw {
    /// Not 31 bytes.
    #[error("CBW of {actual} bytes instead of {CBW_LEN}; the host must perform reset recovery")]
    Length {
        /// Bytes received.
        actual: usize,
    },
    /// Not `USBC`.
    #[error(
        "CBW signature {actual:#010x} instead of {CBW_SIGNATURE:#010x}; the host must perform reset recovery"
    )]
    Signature {
        /// dCBWSignature as received.
        actual: u32,
    },
    /// bCBWCBLength outside 1..=16.
    #[error("CBW with a command block of {0} bytes instead of 1 to 16; the host must perform reset recovery")]
    CdbLength(u8),
    /// A reserved bit of bmCBWFlags or bCBWLUN is set.
    #[error(
        "CBW with reserved bits (flags {flags:#04x}, LUN {lun:#04x}); the host must perform reset recovery"
    )]
    Reserved {
        /// bmCBWFlags as received.
        flags: u8,
        /// bCBWLUN as received.
        lun: u8,
    },
    /// Neither after a CSW nor after a reset.
    #[error("CBW while a command is open or a reset is due; the host must perform reset recovery")]
    OutOfTurn,
}

/// bCSWStatus, table 5.3.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WireStatus {
    Passed,
    Failed,
    PhaseError,
}

impl Cdb {
    /// `None` where `bytes` is empty or longer than 16.
    pub fn new(bytes: &[u8]) -> Option<Self> {
        let mut cdb = Self { bytes: [0; CDB_LEN_MAX], len: bytes.len() };
        if bytes.is_empty() {
            return None;
        }
        cdb.bytes.get_mut(..bytes.len())?.copy_from_slice(bytes);
        Some(cdb)
    }
}

impl Deref for Cdb {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or(&self.bytes)
    }
}

impl fmt::Debug for Cdb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Cdb({:02x?})", &**self)
    }
}

impl Expected {
    /// Bytes, whatever the direction.
    pub fn len(self) -> u32 {
        match self {
            Self::None => 0,
            Self::In(len) | Self::Out(len) => len,
        }
    }

    /// Whether there is no data phase.
    pub fn is_empty(self) -> bool {
        self == Self::None
    }
}

/// Parses one OUT transfer as a CBW. Everything but its turn is checked here.
pub(super) fn parse_cbw(bytes: &[u8]) -> Result<(CbwTag, Command), InvalidCbw> {
    let cbw = Cbw::ref_from_bytes(bytes).map_err(|_| InvalidCbw::Length { actual: bytes.len() })?;
    if cbw.signature.get() != CBW_SIGNATURE {
        return Err(InvalidCbw::Signature { actual: cbw.signature.get() });
    }
    if cbw.flags & !DIRECTION_IN != 0 || cbw.lun & !LUN_MASK != 0 {
        return Err(InvalidCbw::Reserved { flags: cbw.flags, lun: cbw.lun });
    }
    let cdb = cbw.cb.get(..usize::from(cbw.cb_length)).and_then(Cdb::new);
    let cdb = cdb.ok_or(InvalidCbw::CdbLength(cbw.cb_length))?;
    let expected = match cbw.data_transfer_length.get() {
        0 => Expected::None,
        len if cbw.flags & DIRECTION_IN != 0 => Expected::In(len),
        len => Expected::Out(len),
    };
    Ok((CbwTag(cbw.tag.get()), Command { lun: Lun(cbw.lun), expected, cdb }))
}

/// A CSW for the command that `csw` was for, with another end.
pub(super) fn change_csw(csw: &[u8; CSW_LEN], residue: u32, status: WireStatus) -> [u8; CSW_LEN] {
    let Csw { tag, .. } = zerocopy::transmute!(*csw);
    build_csw(CbwTag(tag.get()), residue, status)
}

/// The CSW that ends the command `tag`; `residue` in bytes.
pub(super) fn build_csw(tag: CbwTag, residue: u32, status: WireStatus) -> [u8; CSW_LEN] {
    let status = match status {
        WireStatus::Passed => 0,
        WireStatus::Failed => 1,
        WireStatus::PhaseError => 2,
    };
    zerocopy::transmute!(Csw {
        signature: U32::new(CSW_SIGNATURE),
        tag: U32::new(tag.0),
        data_residue: U32::new(residue),
        status,
    })
}
