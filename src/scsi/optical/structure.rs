//! READ DISC STRUCTURE (MMC-6): of a DVD the formats 00h, 01h and 04h, of a BD the format 00h, of both the list FFh of them.
//! Format 03h (burst cutting area) is refused, as on any DVD that has none (QEMU refuses it too).

use super::profile::Profile;
use crate::scsi::cdb::Cdb;
use crate::scsi::response::Response;
use crate::scsi::sense::Sense;
use crate::scsi::target::Outcome;
use crate::scsi::unit::Unit;
use crate::units::Blocks;

const FORMAT_LIST: u8 = 0xFF;

/// The formats of a kind of disc, with the length of what is answered, header included.
const DVD_FORMATS: [(u8, u16); 3] = [(0x00, 4 + 2048), (0x01, 4 + 4), (0x04, 4 + 2048)];
const BD_FORMATS: [(u8, u16); 1] = [(0x00, 4 + 4096)];

/// The first physical sector of the data area (ECMA-267).
const DVD_START: u32 = 0x03_0000;

/// The first physical address of the data zone of a BD.
const BD_START: u32 = 0x10_0000;

/// Bytes of a DI unit of a BD-ROM that mean something: header of 8, type of 4, 52 that depend on it.
const DI_LEN: u8 = 64;

pub(in crate::scsi) fn read_disc_structure(
    unit: &mut Unit,
    cdb: &Cdb,
    out: &mut Response<'_>,
) -> Result<Outcome, Sense> {
    let profile = match cdb.byte::<1>() & 0x0F {
        0 => Profile::Dvd,
        1 => Profile::Bd,
        _ => return Err(Sense::in_cdb_bit(1, 3)),
    };
    let format = cdb.byte::<7>();
    out.zeros(4);
    if format == FORMAT_LIST {
        // The list is of the drive: it needs no medium.
        list(profile, out);
    } else {
        let blocks = profile.demand(unit)?;
        let layers = profile.layers(blocks);
        if cdb.byte::<6>() >= layers {
            return Err(Sense::in_cdb(6));
        }
        match (profile, format) {
            (Profile::Dvd, 0x00) => dvd_physical(blocks, layers, out),
            // No copy protection, no region.
            (Profile::Dvd, 0x01) => out.zeros(4),
            // Manufacturing information: none.
            (Profile::Dvd, 0x04) => out.zeros(2048),
            (Profile::Bd, 0x00) => bd_disc_information(blocks, layers, out),
            _ => return Err(Sense::in_cdb(7)),
        }
    }
    out.seal16(0);
    Ok(Outcome::Data { allocation: u32::from(cdb.be16::<8>()) })
}

/// Each entry: the format, RDS (readable), its length.
fn list(profile: Profile, out: &mut Response<'_>) {
    let formats: &[(u8, u16)] = if profile == Profile::Bd { &BD_FORMATS } else { &DVD_FORMATS };
    for (format, len) in formats {
        out.push(&[*format, 0x40]);
        out.be16(*len);
    }
}

/// The last address of the data area, and of its first layer, on a disc that starts at `start`. Two layers are read one after the
/// other, the second from the outside in: its addresses are the complements, in the bits of `mask`, of those below it.
fn last_addresses(start: u32, mask: u32, unit: u32, blocks: Blocks, layers: u8) -> (u32, u32) {
    let blocks = u32::try_from(blocks.0).unwrap_or(u32::MAX);
    let last_of = |count: u32| start.saturating_add(count).saturating_sub(1);
    if layers < 2 {
        return (last_of(blocks), last_of(blocks));
    }
    // Half of the error correction blocks.
    let below = blocks.div_ceil(2).checked_next_multiple_of(unit).unwrap_or(u32::MAX);
    let turn = !last_of(below) & mask;
    (turn.saturating_add(blocks.saturating_sub(below)).saturating_sub(1), last_of(below))
}

/// The layer descriptor.
fn dvd_physical(blocks: Blocks, layers: u8, out: &mut Response<'_>) {
    let at = out.len();
    let two = layers == 2;
    let (last, last_below) = last_addresses(DVD_START, 0x00FF_FFFF, 16, blocks, layers);
    // DVD-ROM, version 1; 120 mm, no maximum rate; embossed, opposite track path; 0.267 µm and 0.74 µm.
    out.push(&[0x01, 0x0F, if two { 0x31 } else { 0x01 }, 0x00]);
    out.be32(DVD_START);
    out.be32(last);
    out.be32(if two { last_below } else { 0 });
    // No burst cutting area.
    pad(out, at, 2048);
}

/// One DI unit, that of the first layer.
fn bd_disc_information(blocks: Blocks, layers: u8, out: &mut Response<'_>) {
    let at = out.len();
    let (last, last_below) = last_addresses(BD_START, 0x01FF_FFFF, 32, blocks, layers);
    // Format 1; one unit in the block, of layer 0, the first.
    out.push(b"DI\x01\x08\x00\x00");
    out.push(&[DI_LEN, 0]);
    out.push(b"BDO");
    // 120 mm, class 0, version 1; embossed layers; 74.5 nm channel bits (25 GB a layer); no burst cutting area.
    out.push(&[0x01, layers << 4 | 0x01, 0x01, 0, 0, 0, 0, 0, 0]);
    out.be32(last);
    // First and last address unit: they are numbered by sectors, two each.
    out.be32(BD_START);
    out.be32(last_below & !1);
    pad(out, at, 4096);
}

/// Zeroes up to `len` bytes behind `at`.
fn pad(out: &mut Response<'_>, at: usize, len: usize) {
    let written = out.since(at).len();
    out.zeros(len.saturating_sub(written));
}
