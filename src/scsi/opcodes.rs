//! The opcode table: every command that we know, and all that is to be checked before its handler runs.
//!
//! A row's `usage` is the CDB usage data of REPORT SUPPORTED OPERATION CODES (SPC-4): the opcode, then a one for each
//! bit that we look at or let pass. Its length is the length of the CDB. Rows are in the order of opcode and service action.
//!
//! MMC-6 has no READ(6), READ(16), WRITE and VERIFY(16) for drives that only read. Optical units list them all the same: a
//! host that tries them gets its data, or DATA PROTECT for a write, which tells more than INVALID COMMAND OPERATION CODE.

use super::cdb::Cdb;
use super::response::Response;
use super::sense::{INVALID_COMMAND_OPERATION_CODE, Sense};
use super::target::{Outcome, Target};
use super::unit::{Kind, Unit};
use super::{
    blocks, diagnostic, format, inquiry, mode, mode_select, optical, provisioning, removable, report,
    reservation,
};

/// The direction of a command's data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Direction {
    None,
    In,
    Out,
}

/// Which units have the command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kinds {
    Both,
    Disk,
    Optical,
}

impl Kinds {
    pub(super) fn include(self, kind: Kind) -> bool {
        match self {
            Self::Both => true,
            Self::Disk => kind == Kind::Disk,
            Self::Optical => kind == Kind::Optical,
        }
    }
}

/// What happens to the command while a unit attention waits (SAM-5, and MMC-6 for its own commands).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum UnderAttention {
    /// It ends in CHECK CONDITION and reports the condition.
    Refused,
    /// It runs, and the condition goes on waiting.
    Allowed,
}

/// Whether the command ends in NOT READY without a medium.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MediumNeed {
    Present,
    None,
}

/// What becomes of bits of the CDB in which the standards have no field, or in which we take up none. SPC-4 lets a device refuse
/// or ignore them; hosts decide what is wise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reserved {
    /// They pass: nobody has shown yet that all hosts leave them alone.
    Ignored,
    /// Bytes without any field must be zero, save for the three bits that were the LUN in SCSI-2: EDK2 still puts it there
    /// (UsbMassBoot.c, `USB_BOOT_LUN`). That all hosts keep to this is known from Linux' mass storage gadget, which has refused
    /// such bytes of these commands since 2003 (f_mass_storage.c, `check_command`).
    Bytes,
    /// Every bit must be zero. Commands that firmware does not send; the systems and tools that do (Linux' sd.c and scsi_lib.c,
    /// sg3_utils, libiscsi) clear the CDB before they fill it in.
    Bits,
}

/// Who carries the command out.
#[derive(Clone, Copy)]
pub(super) enum Handler {
    /// The unit; a LUN without one answers LOGICAL UNIT NOT SUPPORTED.
    Unit(fn(&mut Unit, &Cdb, &mut Response<'_>) -> Result<Outcome, Sense>),
    /// The target, which answers for a LUN without a unit too (SPC-4, incorrect logical unit numbers).
    Target(fn(&mut Target, &Cdb, &mut Response<'_>) -> Result<Outcome, Sense>),
}

/// A row of the table.
pub(super) struct Opcode {
    pub(super) opcode: u8,
    pub(super) service_action: Option<u8>,
    pub(super) name: &'static str,
    pub(super) usage: &'static [u8],
    pub(super) direction: Direction,
    pub(super) kinds: Kinds,
    pub(super) under_attention: UnderAttention,
    pub(super) medium: MediumNeed,
    pub(super) reserved: Reserved,
    pub(super) handler: Handler,
}

impl Opcode {
    /// Length of the CDB in bytes.
    pub(super) fn cdb_len(&self) -> usize {
        self.usage.len()
    }

    /// INVALID FIELD IN CDB at the first bit that is set and may not be.
    pub(super) fn refuse_reserved(&self, cdb: &Cdb) -> Result<(), Sense> {
        let wrong = |at: u16, usage: u8, byte: u8| match self.reserved {
            Reserved::Bits => byte & !usage,
            Reserved::Bytes if usage != 0 => 0,
            Reserved::Bytes if at == 1 => byte & 0x1F,
            Reserved::Bytes => byte,
            Reserved::Ignored => 0,
        };
        for (at, (usage, byte)) in (0..).zip(self.usage.iter().zip(cdb.bytes())).skip(1) {
            if let Some(bit) = wrong(at, *usage, *byte).checked_ilog2() {
                return Err(Sense::in_cdb_bit(at, u8::try_from(bit).unwrap_or(7)));
            }
        }
        Ok(())
    }

    /// REQUEST SENSE is the only command that finds the sense data of the one before it.
    pub(super) fn takes_sense(&self) -> bool {
        self.opcode == REQUEST_SENSE
    }

    /// The error of an earlier command, as this one tells it. SYNCHRONIZE CACHE was to store what could not be stored, so to it the
    /// error is its own; as a deferred one Linux would retry it, and in the end take the cache for flushed
    /// (scsi_lib.c, `scsi_io_completion_nz_result`, which looks at flushes only where the sense data are current).
    pub(super) fn tell_deferred(&self, sense: Sense) -> Sense {
        if matches!(self.opcode, SYNCHRONIZE_CACHE_10 | SYNCHRONIZE_CACHE_16) {
            sense
        } else {
            sense.deferred()
        }
    }

    /// Service action, zero for a command that has none.
    pub(super) fn action(&self) -> u8 {
        self.service_action.unwrap_or(0)
    }
}

const REQUEST_SENSE: u8 = 0x03;
const SYNCHRONIZE_CACHE_10: u8 = 0x35;
const SYNCHRONIZE_CACHE_16: u8 = 0x91;

/// A row whose handler sees the command whatever state the unit is in.
const fn always(
    name: &'static str,
    usage: &'static [u8],
    direction: Direction,
    kinds: Kinds,
    handler: Handler,
) -> Opcode {
    let [opcode, ..] = usage else { panic!("a CDB has an opcode") };
    Opcode {
        opcode: *opcode,
        service_action: None,
        name,
        usage,
        direction,
        kinds,
        under_attention: UnderAttention::Allowed,
        medium: MediumNeed::None,
        reserved: Reserved::Ignored,
        handler,
    }
}

/// A row that reports unit attentions, and needs no medium.
const fn unit(
    name: &'static str,
    usage: &'static [u8],
    direction: Direction,
    kinds: Kinds,
    handler: fn(&mut Unit, &Cdb, &mut Response<'_>) -> Result<Outcome, Sense>,
) -> Opcode {
    Opcode {
        under_attention: UnderAttention::Refused,
        ..always(name, usage, direction, kinds, Handler::Unit(handler))
    }
}

/// A row that reports unit attentions, and needs a medium.
const fn media(
    name: &'static str,
    usage: &'static [u8],
    direction: Direction,
    kinds: Kinds,
    handler: fn(&mut Unit, &Cdb, &mut Response<'_>) -> Result<Outcome, Sense>,
) -> Opcode {
    Opcode { medium: MediumNeed::Present, ..unit(name, usage, direction, kinds, handler) }
}

/// The same row, whose bytes without a field must be zero.
const fn bytes(row: Opcode) -> Opcode {
    Opcode { reserved: Reserved::Bytes, ..row }
}

/// The same row, all of whose reserved bits must be zero.
const fn bits(row: Opcode) -> Opcode {
    Opcode { reserved: Reserved::Bits, ..row }
}

/// The same row for one service action, which stands in the low five bits of byte 1.
const fn action(row: Opcode) -> Opcode {
    let [_, byte, ..] = row.usage else { panic!("a service action has a byte") };
    Opcode { service_action: Some(*byte & 0x1F), ..row }
}

const fn persistent_reserve_in(usage: &'static [u8]) -> Opcode {
    bits(action(unit("PERSISTENT RESERVE IN", usage, In, Disk, reservation::persistent_reserve_in)))
}

const fn persistent_reserve_out(usage: &'static [u8]) -> Opcode {
    bits(action(unit("PERSISTENT RESERVE OUT", usage, Out, Disk, reservation::persistent_reserve_out)))
}

use Direction::{In, Out};
use Handler::{Target as ByTarget, Unit as ByUnit};
use Kinds::{Both, Disk, Optical};

const NO_DATA: Direction = Direction::None;

#[rustfmt::skip]
pub(super) const TABLE: &[Opcode] = &[
    bytes(media("TEST UNIT READY", &[0x00, 0, 0, 0, 0, 0], NO_DATA, Both, removable::test_unit_ready)),
    bytes(always("REQUEST SENSE", &[REQUEST_SENSE, 0x01, 0, 0, 0xFF, 0], In, Both, ByTarget(report::request_sense))),
    media("FORMAT UNIT", &[0x04, 0xFF, 0, 0, 0, 0], Out, Disk, format::format_unit),
    media("READ(6)", &[0x08, 0x1F, 0xFF, 0xFF, 0xFF, 0], In, Both, blocks::read),
    media("WRITE(6)", &[0x0A, 0x1F, 0xFF, 0xFF, 0xFF, 0], Out, Both, blocks::write),
    bytes(always("INQUIRY", &[0x12, 0x03, 0xFF, 0xFF, 0xFF, 0], In, Both, ByTarget(inquiry::inquiry))),
    bytes(unit("MODE SELECT(6)", &[0x15, 0x11, 0, 0, 0xFF, 0], Out, Both, mode_select::mode_select_6)),
    bits(unit("RESERVE(6)", &[0x16, 0, 0, 0, 0, 0], NO_DATA, Disk, reservation::reserve_or_release)),
    bits(unit("RELEASE(6)", &[0x17, 0, 0, 0, 0, 0], NO_DATA, Disk, reservation::reserve_or_release)),
    bytes(unit("MODE SENSE(6)", &[0x1A, 0x08, 0xFF, 0xFF, 0xFF, 0], In, Both, mode::mode_sense_6)),
    bytes(unit("START STOP UNIT", &[0x1B, 0x01, 0, 0x0F, 0xF7, 0], NO_DATA, Both, removable::start_stop_unit)),
    bits(unit("RECEIVE DIAGNOSTIC RESULTS", &[0x1C, 0x01, 0xFF, 0xFF, 0xFF, 0], In, Disk, diagnostic::receive_diagnostic_results)),
    bits(unit("SEND DIAGNOSTIC", &[0x1D, 0xF7, 0, 0xFF, 0xFF, 0], NO_DATA, Disk, diagnostic::send_diagnostic)),
    bytes(unit("PREVENT ALLOW MEDIUM REMOVAL", &[0x1E, 0, 0, 0, 0x03, 0], NO_DATA, Both, removable::prevent_allow)),
    unit("READ FORMAT CAPACITIES", &[0x23, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF, 0], In, Disk, blocks::read_format_capacities),
    media("READ CAPACITY(10)", &[0x25, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0, 0x01, 0], In, Both, blocks::read_capacity_10),
    media("READ(10)", &[0x28, 0xF8, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0xFF, 0xFF, 0], In, Both, blocks::read),
    media("WRITE(10)", &[0x2A, 0xF8, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0xFF, 0xFF, 0], Out, Both, blocks::write),
    media("SEEK(10)", &[0x2B, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0, 0, 0], NO_DATA, Optical, optical::seek),
    media("WRITE AND VERIFY(10)", &[0x2E, 0xF6, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0xFF, 0xFF, 0], Out, Disk, blocks::write_and_verify),
    media("VERIFY(10)", &[0x2F, 0xF6, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0xFF, 0xFF, 0], Out, Both, blocks::verify),
    media("PRE-FETCH(10)", &[0x34, 0x02, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0xFF, 0xFF, 0], NO_DATA, Disk, blocks::prefetch),
    media("SYNCHRONIZE CACHE(10)", &[0x35, 0x02, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0xFF, 0xFF, 0], NO_DATA, Both, blocks::synchronize_cache),
    media("WRITE SAME(10)", &[0x41, 0xFE, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0xFF, 0xFF, 0], Out, Disk, provisioning::write_same),
    media("UNMAP", &[0x42, 0x01, 0, 0, 0, 0, 0, 0xFF, 0xFF, 0], Out, Disk, provisioning::unmap),
    media("READ SUB-CHANNEL", &[0x42, 0x02, 0x40, 0xFF, 0, 0, 0xFF, 0xFF, 0xFF, 0], In, Optical, optical::read_sub_channel),
    media("READ TOC/PMA/ATIP", &[0x43, 0x02, 0x0F, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xC0], In, Optical, optical::read_toc),
    media("READ HEADER", &[0x44, 0x02, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0xFF, 0xFF, 0], In, Optical, optical::read_header),
    always("GET CONFIGURATION", &[0x46, 0x03, 0xFF, 0xFF, 0, 0, 0, 0xFF, 0xFF, 0], In, Optical, ByUnit(optical::get_configuration)),
    always("GET EVENT STATUS NOTIFICATION", &[0x4A, 0x01, 0, 0, 0xFF, 0, 0, 0xFF, 0xFF, 0], In, Optical, ByUnit(optical::get_event_status)),
    bits(unit("LOG SENSE", &[0x4D, 0, 0xFF, 0xFF, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0], In, Disk, diagnostic::log_sense)),
    media("READ DISC INFORMATION", &[0x51, 0x07, 0, 0, 0, 0, 0, 0xFF, 0xFF, 0], In, Optical, optical::read_disc_information),
    media("READ TRACK INFORMATION", &[0x52, 0x07, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0xFF, 0xFF, 0], In, Optical, optical::read_track_information),
    bytes(unit("MODE SELECT(10)", &[0x55, 0x11, 0, 0, 0, 0, 0, 0xFF, 0xFF, 0], Out, Both, mode_select::mode_select_10)),
    bits(unit("RESERVE(10)", &[0x56, 0, 0, 0, 0, 0, 0, 0, 0, 0], NO_DATA, Disk, reservation::reserve_or_release)),
    bits(unit("RELEASE(10)", &[0x57, 0, 0, 0, 0, 0, 0, 0, 0, 0], NO_DATA, Disk, reservation::reserve_or_release)),
    bytes(unit("MODE SENSE(10)", &[0x5A, 0x18, 0xFF, 0xFF, 0, 0, 0, 0xFF, 0xFF, 0], In, Both, mode::mode_sense_10)),
    unit("READ BUFFER CAPACITY", &[0x5C, 0x01, 0, 0, 0, 0, 0, 0xFF, 0xFF, 0], In, Optical, optical::read_buffer_capacity),
    persistent_reserve_in(&[0x5E, 0x00, 0, 0, 0, 0, 0, 0xFF, 0xFF, 0]),
    persistent_reserve_in(&[0x5E, 0x01, 0, 0, 0, 0, 0, 0xFF, 0xFF, 0]),
    persistent_reserve_in(&[0x5E, 0x02, 0, 0, 0, 0, 0, 0xFF, 0xFF, 0]),
    persistent_reserve_in(&[0x5E, 0x03, 0, 0, 0, 0, 0, 0xFF, 0xFF, 0]),
    persistent_reserve_out(&[0x5F, 0x00, 0xFF, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0]),
    persistent_reserve_out(&[0x5F, 0x01, 0xFF, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0]),
    persistent_reserve_out(&[0x5F, 0x02, 0xFF, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0]),
    persistent_reserve_out(&[0x5F, 0x03, 0xFF, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0]),
    persistent_reserve_out(&[0x5F, 0x04, 0xFF, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0]),
    persistent_reserve_out(&[0x5F, 0x05, 0xFF, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0]),
    persistent_reserve_out(&[0x5F, 0x06, 0xFF, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0]),
    media("READ(16)", &[0x88, 0xF8, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0], In, Both, blocks::read),
    media("COMPARE AND WRITE", &[0x89, 0xF8, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0, 0, 0xFF, 0, 0], Out, Disk, blocks::compare_and_write),
    media("WRITE(16)", &[0x8A, 0xF8, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0], Out, Both, blocks::write),
    media("WRITE AND VERIFY(16)", &[0x8E, 0xF6, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0], Out, Disk, blocks::write_and_verify),
    media("VERIFY(16)", &[0x8F, 0xF6, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0], Out, Both, blocks::verify),
    media("PRE-FETCH(16)", &[0x90, 0x02, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0], NO_DATA, Disk, blocks::prefetch),
    media("SYNCHRONIZE CACHE(16)", &[0x91, 0x02, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0], NO_DATA, Both, blocks::synchronize_cache),
    media("WRITE SAME(16)", &[0x93, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0], Out, Disk, provisioning::write_same),
    action(media("READ CAPACITY(16)", &[0x9E, 0x10, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x01, 0], In, Both, blocks::read_capacity_16)),
    action(media("GET LBA STATUS", &[0x9E, 0x12, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0], In, Disk, provisioning::get_lba_status)),
    bits(always("REPORT LUNS", &[0xA0, 0, 0xFF, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0], In, Both, ByTarget(report::report_luns))),
    bits(action(unit("REPORT SUPPORTED OPERATION CODES", &[0xA3, 0x0C, 0x87, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0], In, Both, report::supported_operation_codes))),
    media("READ(12)", &[0xA8, 0xF8, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0], In, Disk, blocks::read),
    // With STREAMING: read without delays, which is how everything is read.
    media("READ(12)", &[0xA8, 0xF8, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x80, 0], In, Optical, blocks::read),
    media("WRITE(12)", &[0xAA, 0xF8, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0], Out, Both, blocks::write),
    media("GET PERFORMANCE", &[0xAC, 0x1F, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0, 0xFF, 0xFF, 0xFF, 0], In, Optical, optical::get_performance),
    unit("READ DISC STRUCTURE", &[0xAD, 0x0F, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xC0, 0], In, Optical, optical::read_disc_structure),
    media("WRITE AND VERIFY(12)", &[0xAE, 0xF6, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0], Out, Disk, blocks::write_and_verify),
    media("VERIFY(12)", &[0xAF, 0xF6, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0], Out, Both, blocks::verify),
    unit("SET STREAMING", &[0xB6, 0, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0], Out, Optical, optical::set_streaming),
    media("READ CD MSF", &[0xB9, 0x1C, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFE, 0x07, 0], In, Optical, optical::read_cd_msf),
    unit("SET CD SPEED", &[0xBB, 0x03, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0, 0, 0, 0, 0], NO_DATA, Optical, optical::set_cd_speed),
    unit("MECHANISM STATUS", &[0xBD, 0, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF, 0, 0], In, Optical, optical::mechanism_status),
    media("READ CD", &[0xBE, 0x1C, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFE, 0x07, 0], In, Optical, optical::read_cd),
];

/// The rows that a unit of this kind has.
pub(super) fn of_kind(kind: Kind) -> impl Iterator<Item = &'static Opcode> {
    TABLE.iter().filter(move |row| row.kinds.include(kind))
}

/// The row of a command; for a LUN without a unit, of any kind.
///
/// # Errors
/// INVALID COMMAND OPERATION CODE, or INVALID FIELD IN CDB where only the service action is unknown (SPC-4, operation code).
pub(super) fn find(cdb: &Cdb, kind: Option<Kind>) -> Result<&'static Opcode, Sense> {
    let mut refusal = INVALID_COMMAND_OPERATION_CODE;
    for row in TABLE {
        if row.opcode != cdb.opcode() || kind.is_some_and(|kind| !row.kinds.include(kind)) {
            continue;
        }
        match row.service_action {
            Some(action) if action != cdb.byte::<1>() & 0x1F => refusal = Sense::in_cdb_bit(1, 4),
            _ => return Ok(row),
        }
    }
    Err(refusal)
}

/// The standard's name of the commands with this operation code, of units of a kind; of several the first.
pub fn opcode_name(opcode: u8, kind: Kind) -> Option<&'static str> {
    of_kind(kind).find(|row| row.opcode == opcode).map(|row| row.name)
}

/// The standard's name of the command in `cdb`, for messages.
pub fn name_of(cdb: &[u8]) -> &'static str {
    find(&Cdb::new(0, cdb), None).map_or("unknown command", |row| row.name)
}

/// A command as REPORT SUPPORTED OPERATION CODES tells of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Operation code.
    pub opcode: u8,
    /// Service action, of a command that has them.
    pub service_action: Option<u8>,
    /// The standard's name.
    pub name: &'static str,
    /// CDB usage data, as long as the CDB.
    pub usage: &'static [u8],
}

/// All commands that units of a kind have.
pub fn listed(kind: Kind) -> impl Iterator<Item = Listed> {
    of_kind(kind).map(|row| Listed {
        opcode: row.opcode,
        service_action: row.service_action,
        name: row.name,
        usage: row.usage,
    })
}
