//! Vital product data (SPC-4 §7.8; SBC-3 §6.5 for the pages of disks). Called by INQUIRY.

use super::limits;
use super::response::Response;
use super::sense::Sense;
use super::unit::{Identity, Kind, Unit};

/// Hosts are told of no more, though more is taken: libiscsi's Inquiry.BlockLimits holds larger numbers for mistakes.
const UNMAP_BLOCKS_TOLD: u32 = 0x10_0000;

/// A vital product data page.
struct Page {
    code: u8,
    /// Whether optical units have it too; MMC-6 has no page of its own.
    optical: bool,
    /// Writes what follows the page length.
    body: fn(&Unit, &mut Response<'_>),
}

/// In ascending order, in which the first of them lists them.
const PAGES: [Page; 6] = [
    Page { code: 0x00, optical: true, body: supported_pages },
    Page { code: 0x80, optical: true, body: unit_serial_number },
    Page { code: 0x83, optical: true, body: device_identification },
    Page { code: 0xB0, optical: false, body: block_limits },
    Page { code: 0xB1, optical: false, body: block_device_characteristics },
    Page { code: 0xB2, optical: false, body: logical_block_provisioning },
];

fn pages_of(unit: &Unit) -> impl Iterator<Item = &'static Page> {
    let kind = unit.kind();
    PAGES.iter().filter(move |page| page.optical || kind == Kind::Disk)
}

/// The page with this code; a LUN without a unit has only the list of pages.
pub(super) fn page(
    unit: Option<&Unit>,
    device_type: u8,
    code: u8,
    out: &mut Response<'_>,
) -> Result<(), Sense> {
    let at = out.len();
    out.push(&[device_type, code, 0, 0]);
    match (unit, code) {
        (None, 0x00) => out.byte(0x00),
        (None, _) => return Err(Sense::in_cdb(2)),
        (Some(unit), code) => {
            let page = pages_of(unit).find(|page| page.code == code).ok_or(Sense::in_cdb(2))?;
            (page.body)(unit, out);
        }
    }
    out.seal16(at.saturating_add(2));
    Ok(())
}

fn supported_pages(unit: &Unit, out: &mut Response<'_>) {
    for page in pages_of(unit) {
        out.byte(page.code);
    }
}

fn unit_serial_number(unit: &Unit, out: &mut Response<'_>) {
    out.push(unit.identity().serial().as_bytes());
}

/// All three name the logical unit: best first, since hosts take the first that they understand.
fn device_identification(unit: &Unit, out: &mut Response<'_>) {
    let identity = unit.identity();
    let naa = locally_assigned(identity);
    // Binary; NAA.
    out.push(&[0x01, 0x03, 0, 8]);
    out.be64(naa);
    t10_designator(identity, out);
    scsi_name(naa, out);
}

/// NAA 3h: the other 60 bits are ours to choose (SPC-4 §7.8.6). FNV-1a of all that tells units apart, so that they stay the same
/// as long as the serial number does.
fn locally_assigned(identity: &Identity) -> u64 {
    let (vendor, product, serial) = (identity.vendor(), identity.product(), identity.serial());
    let bytes = vendor.iter().chain(product).chain(serial.as_bytes());
    let hash = bytes.fold(0xCBF2_9CE4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01B3)
    });
    // The four bits that NAA takes the place of are not lost.
    0x3 << 60 | (hash ^ hash >> 60) & 0x0FFF_FFFF_FFFF_FFFF
}

/// Vendor, then product and serial number, as the standard recommends (SPC-4 §7.8.6).
fn t10_designator(identity: &Identity, out: &mut Response<'_>) {
    let at = out.len();
    // ASCII; T10 vendor ID.
    out.push(&[0x02, 0x01, 0, 0]);
    out.push(identity.vendor());
    out.push(identity.product());
    out.push(identity.serial().as_bytes());
    out.seal8(at.saturating_add(3));
}

/// "naa." and sixteen digits, ended by zeroes up to a multiple of four (SPC-4 §7.8.6).
fn scsi_name(naa: u64, out: &mut Response<'_>) {
    // UTF-8; SCSI name string.
    out.push(&[0x03, 0x08, 0, 24]);
    out.push(b"naa.");
    for byte in naa.to_be_bytes() {
        for nibble in [byte >> 4, byte & 0x0F] {
            out.byte(match nibble {
                0..=9 => nibble.saturating_add(b'0'),
                _ => nibble.saturating_add(b'A' - 10),
            });
        }
    }
    out.zeros(4);
}

/// No transfer has a best size; no prefetch is too long.
fn block_limits(unit: &Unit, out: &mut Response<'_>) {
    let thin = thin(unit);
    let if_thin = |limit: u32| if thin { limit } else { 0 };
    out.push(&[u8::from(limits::WRITE_SAME_NON_ZERO), limits::COMPARE_BLOCKS_MAX, 0, 0]);
    out.be32(limits::TRANSFER_BLOCKS_MAX);
    out.zeros(4 + 4);
    out.be32(if_thin(limits::UNMAP_BLOCKS_MAX.min(UNMAP_BLOCKS_TOLD)));
    out.be32(if_thin(u32::from(limits::UNMAP_DESCRIPTORS_MAX)));
    out.be32(if_thin(unit.medium().map_or(0, |medium| limits::unmap_granularity(medium.block_size))));
    // Alignment of UNMAP: not reported.
    out.be32(0);
    out.be64(u64::from(limits::WRITE_SAME_BLOCKS_MAX));
    out.zeros(20);
}

/// Nothing rotates (0001h), and the rest is not reported.
fn block_device_characteristics(_: &Unit, out: &mut Response<'_>) {
    out.be16(0x0001);
    out.zeros(58);
}

/// With thin provisioning: LBPU, LBPWS, LBPWS10 and LBPRZ, since a hole reads as zeroes. All zeroes without.
fn logical_block_provisioning(unit: &Unit, out: &mut Response<'_>) {
    out.push(if thin(unit) { &[0, 0xE4, 0x02, 0] } else { &[0, 0, 0, 0] });
}

fn thin(unit: &Unit) -> bool {
    unit.medium().is_some_and(|medium| medium.thin)
}
