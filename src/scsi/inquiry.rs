//! INQUIRY and its standard data (SPC-4, INQUIRY command).

use super::cdb::Cdb;
use super::response::Response;
use super::sense::Sense;
use super::target::{Outcome, Target};
use super::unit::{Kind, Unit};
use super::vpd;

/// "Not capable of supporting a device on this LUN", device type unknown (SPC-4, peripheral qualifier).
const NO_UNIT: u8 = 0x7F;

/// Standards that we conform to (SPC-4, version descriptor values): SAM-5, SPC-4, then the kind's own, then USB Bulk-Only
/// Transport 1.0.
const DISK_VERSIONS: [u16; 4] = [0x00A0, 0x0460, 0x04C0, 0x1730];
const OPTICAL_VERSIONS: [u16; 4] = [0x00A0, 0x0460, 0x04E0, 0x1730];

pub(super) fn inquiry(target: &mut Target, cdb: &Cdb, out: &mut Response<'_>) -> Result<Outcome, Sense> {
    if cdb.bit::<1>(1) {
        // CMDDT, obsolete since SPC-3.
        return Err(Sense::in_cdb_bit(1, 1));
    }
    let unit = target.unit(cdb.lun());
    match (cdb.bit::<1>(0), cdb.byte::<2>()) {
        (false, 0) => standard(unit, out),
        (true, page) => vpd::page(unit, device_type(unit), page, out)?,
        // A page code without EVPD.
        (false, _) => return Err(Sense::in_cdb(2)),
    }
    Ok(Outcome::Data { allocation: u32::from(cdb.be16::<3>()) })
}

fn device_type(unit: Option<&Unit>) -> u8 {
    unit.map_or(NO_UNIT, |unit| unit.kind().peripheral_device_type())
}

/// 96 bytes. RMB is set, the version is SPC-4, the response data format 2.
fn standard(unit: Option<&Unit>, out: &mut Response<'_>) {
    out.push(&[device_type(unit), if unit.is_some() { 0x80 } else { 0 }, 0x06, 0x02, 0, 0, 0, 0]);
    match unit.map(Unit::identity) {
        Some(identity) => {
            out.push(identity.vendor());
            out.push(identity.product());
            out.push(identity.revision());
        }
        None => out.push(&[b' '; 8 + 16 + 4]),
    }
    out.zeros(22);
    let versions = match unit.map(Unit::kind) {
        Some(Kind::Disk) => DISK_VERSIONS,
        Some(Kind::Optical) => OPTICAL_VERSIONS,
        None => [0; 4],
    };
    for version in versions {
        out.be16(version);
    }
    out.zeros(30);
    out.seal8(4);
}
