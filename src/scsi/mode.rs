//! MODE SENSE and the mode pages (SPC-4, MODE SENSE and §7.5; SBC-3 and MMC-6, mode parameters).
//!
//! What the host can change are a few bits, the [`SWITCHES`]; everything else is fixed. Called by MODE SENSE, and by MODE SELECT to
//! compare with.

use super::cdb::Cdb;
use super::opcodes::Kinds;
use super::optical::pages;
use super::response::Response;
use super::sense::{SAVING_PARAMETERS_NOT_SUPPORTED, Sense};
use super::target::Outcome;
use super::unit::{Kind, Unit};

/// Page code that stands for all pages, and subpage code for all subpages.
const ALL_PAGES: u8 = 0x3F;
const ALL_SUBPAGES: u8 = 0xFF;

/// A mode page in page_0 format.
pub(super) struct Page {
    code: u8,
    kinds: Kinds,
    /// Writes what follows the page length.
    body: fn(&Unit, &mut Response<'_>),
}

/// What MODE SELECT can change. It lasts until the next reset: nothing is saved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Modes {
    /// WCE: writes are promised at SYNCHRONIZE CACHE or with FUA. Without it, each as it ends (SBC-3, caching mode page).
    pub(super) write_cache: bool,
    /// D_SENSE: sense data of a CHECK CONDITION are in descriptor format (SPC-4, control mode page).
    pub(super) descriptor_sense: bool,
    /// SWP: writes are refused (SPC-4, control mode page).
    pub(super) software_write_protect: bool,
}

impl Default for Modes {
    fn default() -> Self {
        Self { write_cache: true, descriptor_sense: false, software_write_protect: false }
    }
}

/// A bit of a page that MODE SELECT can change. The page's body leaves it at zero.
pub(super) struct Switch {
    page: u8,
    /// Byte in the page, and bit in that byte.
    pub(super) at: usize,
    pub(super) mask: u8,
    /// Where its value is kept.
    pub(super) value: fn(&mut Modes) -> &mut bool,
}

const SWITCHES: [Switch; 3] = [
    Switch { page: 0x08, at: 2, mask: 0x04, value: |modes| &mut modes.write_cache },
    Switch { page: 0x0A, at: 2, mask: 0x04, value: |modes| &mut modes.descriptor_sense },
    Switch { page: 0x0A, at: 4, mask: 0x08, value: |modes| &mut modes.software_write_protect },
];

/// In the order of page codes, in which MODE SENSE returns them (SPC-4, MODE SENSE (6)).
const PAGES: &[Page] = &[
    Page { code: 0x01, kinds: Kinds::Both, body: error_recovery },
    Page { code: 0x08, kinds: Kinds::Disk, body: caching },
    Page { code: 0x0A, kinds: Kinds::Disk, body: control },
    Page { code: 0x0D, kinds: Kinds::Optical, body: pages::cd_device_parameters },
    Page { code: 0x0E, kinds: Kinds::Optical, body: pages::cd_audio_control },
    Page { code: 0x1A, kinds: Kinds::Optical, body: pages::power_condition },
    Page { code: 0x1C, kinds: Kinds::Disk, body: informational_exceptions },
    Page { code: 0x1D, kinds: Kinds::Optical, body: pages::timeout_and_protect },
    Page { code: 0x2A, kinds: Kinds::Optical, body: pages::capabilities },
];

/// No retries, no corrections reported: an image either gives its bytes or does not.
fn error_recovery(_: &Unit, out: &mut Response<'_>) {
    out.zeros(10);
}

/// Nothing but WCE.
fn caching(_: &Unit, out: &mut Response<'_>) {
    out.zeros(18);
}

/// Nothing but D_SENSE and SWP: one task set, in order, never busy.
fn control(_: &Unit, out: &mut Response<'_>) {
    out.zeros(10);
}

/// DEXCPT: no exceptions are reported (SPC-4, informational exceptions control mode page).
fn informational_exceptions(_: &Unit, out: &mut Response<'_>) {
    out.byte(0x08);
    out.zeros(9);
}

/// What PC asks for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Values {
    Current,
    Changeable,
    Default,
}

impl Page {
    /// The page of `unit` with this code.
    pub(super) fn find(unit: &Unit, code: u8) -> Option<&'static Self> {
        PAGES.iter().find(|page| page.code == code && page.kinds.include(unit.kind()))
    }

    /// What the host can change in this page.
    pub(super) fn switches(&self) -> impl Iterator<Item = &'static Switch> {
        SWITCHES.iter().filter(|switch| switch.page == self.code)
    }

    /// The page with every switch off.
    pub(super) fn write_fixed(&self, unit: &Unit, out: &mut Response<'_>) {
        let at = out.len();
        out.push(&[self.code, 0]);
        (self.body)(unit, out);
        out.seal8(at.saturating_add(1));
    }

    fn write(&self, unit: &Unit, values: Values, out: &mut Response<'_>) {
        let at = out.len();
        self.write_fixed(unit, out);
        let mut modes = unit.modes;
        match values {
            Values::Current => {}
            Values::Default => modes = Modes::default(),
            Values::Changeable => out.clear_from(at.saturating_add(2)),
        }
        for switch in self.switches() {
            if values == Values::Changeable || *(switch.value)(&mut modes) {
                out.set_bits(at.saturating_add(switch.at), switch.mask);
            }
        }
    }
}

pub(super) fn mode_sense_6(unit: &mut Unit, cdb: &Cdb, out: &mut Response<'_>) -> Result<Outcome, Sense> {
    out.push(&[0, medium_type(unit), device_specific(unit), 0]);
    if !cdb.bit::<1>(3) {
        block_descriptor(unit, out);
    }
    descriptor_len(out, 3, 4);
    selected_pages(unit, cdb, out)?;
    out.seal8(0);
    Ok(Outcome::Data { allocation: u32::from(cdb.byte::<4>()) })
}

pub(super) fn mode_sense_10(unit: &mut Unit, cdb: &Cdb, out: &mut Response<'_>) -> Result<Outcome, Sense> {
    let long = cdb.bit::<1>(4) && unit.kind() == Kind::Disk;
    out.push(&[0, 0, medium_type(unit), device_specific(unit), u8::from(long), 0, 0, 0]);
    match (cdb.bit::<1>(3), long) {
        (true, _) => {}
        (false, false) => block_descriptor(unit, out),
        (false, true) => long_block_descriptor(unit, out),
    }
    descriptor_len(out, 7, 8);
    selected_pages(unit, cdb, out)?;
    out.seal16(0);
    Ok(Outcome::Data { allocation: u32::from(cdb.be16::<7>()) })
}

/// SFF-8020i has the state of an empty tray here, and some hosts still look; reserved since.
fn medium_type(unit: &Unit) -> u8 {
    match (unit.kind(), unit.medium(), unit.tray_open()) {
        (Kind::Disk, ..) | (Kind::Optical, Some(_), _) => 0x00,
        (Kind::Optical, None, false) => 0x70,
        (Kind::Optical, None, true) => 0x71,
    }
}

/// WP and DPOFUA (SBC-3, mode parameters); reserved for optical units (MMC-6, mode parameter list).
fn device_specific(unit: &Unit) -> u8 {
    match (unit.kind(), unit.medium()) {
        (Kind::Optical, _) => 0,
        (Kind::Disk, Some(_)) if !unit.writable() => 0x90,
        (Kind::Disk, _) => 0x10,
    }
}

/// Short LBA descriptor of a disk (SBC-3, mode parameters). Optical units have none (MMC-6, mode parameter list), and an empty
/// unit has nothing to say in one.
pub(super) fn block_descriptor(unit: &Unit, out: &mut Response<'_>) {
    if let (Kind::Disk, Some(medium)) = (unit.kind(), unit.medium()) {
        out.be32(u32::try_from(medium.blocks.0).unwrap_or(u32::MAX));
        out.byte(0);
        out.be24(medium.block_size.bytes());
    }
}

/// Long LBA descriptor (SBC-3, mode parameters).
pub(super) fn long_block_descriptor(unit: &Unit, out: &mut Response<'_>) {
    if let (Kind::Disk, Some(medium)) = (unit.kind(), unit.medium()) {
        out.be64(medium.blocks.0);
        out.be32(0);
        out.be32(medium.block_size.bytes());
    }
}

/// Fills in the block descriptor length at `at`; what was written past the header is the descriptor.
fn descriptor_len(out: &mut Response<'_>, at: usize, header_len: usize) {
    let len = out.len().saturating_sub(header_len);
    out.patch(at, &[u8::try_from(len).unwrap_or(0)]);
}

fn selected_pages(unit: &Unit, cdb: &Cdb, out: &mut Response<'_>) -> Result<(), Sense> {
    let values = match cdb.byte::<2>() >> 6 {
        0 => Values::Current,
        1 => Values::Changeable,
        2 => Values::Default,
        _ => return Err(SAVING_PARAMETERS_NOT_SUPPORTED),
    };
    if !matches!(cdb.byte::<3>(), 0 | ALL_SUBPAGES) {
        return Err(Sense::in_cdb(3));
    }
    match cdb.byte::<2>() & 0x3F {
        ALL_PAGES => {
            for page in PAGES.iter().filter(|page| page.kinds.include(unit.kind())) {
                page.write(unit, values, out);
            }
        }
        code => {
            let page = Page::find(unit, code).ok_or(Sense::in_cdb_bit(2, 5))?;
            page.write(unit, values, out);
        }
    }
    Ok(())
}
