//! GET CONFIGURATION (MMC-6 §5 and GET CONFIGURATION): profiles and features.

use super::profile::Profile;
use crate::scsi::cdb::Cdb;
use crate::scsi::response::Response;
use crate::scsi::sense::Sense;
use crate::scsi::target::Outcome;
use crate::scsi::unit::Unit;

/// A feature descriptor (MMC-6 §5).
struct Feature {
    code: u16,
    version: u8,
    persistent: bool,
    current: fn(Option<Profile>) -> bool,
    /// Writes the feature dependent data; its length is a multiple of four.
    data: fn(&Unit, &mut Response<'_>),
}

fn always(_: Option<Profile>) -> bool {
    true
}

fn loaded(profile: Option<Profile>) -> bool {
    profile.is_some()
}

fn nothing(_: &Unit, _: &mut Response<'_>) {}

/// In the order of feature codes, in which they are returned.
const FEATURES: &[Feature] = &[
    Feature { code: 0x0000, version: 0, persistent: true, current: always, data: profile_list },
    // Core: interface standard USB; DBE and INQ2 as version 2 wants.
    Feature {
        code: 0x0001,
        version: 2,
        persistent: true,
        current: always,
        data: |_, out| out.push(&[0, 0, 0, 8, 0x03, 0, 0, 0]),
    },
    // Morphing: operational change events, polled only.
    Feature {
        code: 0x0002,
        version: 1,
        persistent: true,
        current: always,
        data: |_, out| out.push(&[0x02, 0, 0, 0]),
    },
    // Removable medium: tray; loads, ejects, locks; no prevent jumper.
    Feature {
        code: 0x0003,
        version: 1,
        persistent: true,
        current: always,
        data: |_, out| out.push(&[0x39, 0, 0, 0]),
    },
    // Random readable.
    Feature {
        code: 0x0010,
        version: 0,
        persistent: false,
        current: loaded,
        data: |unit, out| {
            out.be32(2048);
            out.be16(Profile::of(unit).map_or(1, Profile::blocking));
            // PP: there is an error recovery page.
            out.push(&[0x01, 0]);
        },
    },
    // Multi-read: any kind of CD is read.
    Feature {
        code: 0x001D,
        version: 0,
        persistent: false,
        current: |profile| profile == Some(Profile::Cd),
        data: nothing,
    },
    // CD read: no C2 pointers, no CD-Text.
    Feature {
        code: 0x001E,
        version: 2,
        persistent: false,
        current: |profile| profile == Some(Profile::Cd),
        data: |_, out| out.zeros(4),
    },
    // DVD read: DVD-ROM; dual layer too.
    Feature {
        code: 0x001F,
        version: 1,
        persistent: false,
        current: |profile| profile == Some(Profile::Dvd),
        data: |_, out| out.push(&[0, 0, 0x01, 0]),
    },
    // BD read: BD-ROM class 1.
    Feature {
        code: 0x0040,
        version: 0,
        persistent: false,
        current: |profile| profile == Some(Profile::Bd),
        data: bd_read,
    },
    // Power management.
    Feature { code: 0x0100, version: 0, persistent: true, current: always, data: nothing },
    // Timeout: mode page 1Dh, no group 3.
    Feature { code: 0x0105, version: 1, persistent: true, current: always, data: |_, out| out.zeros(4) },
    // Real-time streaming: READ BUFFER CAPACITY counts blocks, SET CD SPEED, GET PERFORMANCE type 3; no writing.
    Feature {
        code: 0x0107,
        version: 4,
        persistent: false,
        current: loaded,
        data: |_, out| out.push(&[0x1A, 0, 0, 0]),
    },
    Feature { code: 0x0108, version: 0, persistent: true, current: always, data: serial_number },
];

fn profile_list(unit: &Unit, out: &mut Response<'_>) {
    let current = Profile::of(unit);
    for profile in Profile::ALL {
        out.be16(profile.number());
        out.push(&[u8::from(current == Some(profile)), 0]);
    }
}

/// Four bytes reserved, then bit maps of readable versions per class: BD-RE, BD-R, BD-ROM (MMC-6, BD read feature).
fn bd_read(_: &Unit, out: &mut Response<'_>) {
    out.zeros(4 + 8 + 8);
    // BD-ROM class 1, version 1.
    out.push(&[0, 0, 0, 0x02, 0, 0, 0, 0]);
}

/// Padded with spaces to a multiple of four (MMC-6, drive serial number feature).
fn serial_number(unit: &Unit, out: &mut Response<'_>) {
    let at = out.len();
    out.push(unit.identity().serial().as_bytes());
    while !out.since(at).len().is_multiple_of(4) {
        out.byte(b' ');
    }
}

pub(in crate::scsi) fn get_configuration(
    unit: &mut Unit,
    cdb: &Cdb,
    out: &mut Response<'_>,
) -> Result<Outcome, Sense> {
    let profile = Profile::of(unit);
    let start = cdb.be16::<2>();
    let wanted: fn(&Feature, u16, Option<Profile>) -> bool = match cdb.byte::<1>() & 0x03 {
        0 => |feature, start, _| feature.code >= start,
        1 => |feature, start, profile| feature.code >= start && (feature.current)(profile),
        2 => |feature, start, _| feature.code == start,
        _ => return Err(Sense::in_cdb_bit(1, 1)),
    };
    out.zeros(6);
    out.be16(profile.map_or(0, Profile::number));
    for feature in FEATURES.iter().filter(|feature| wanted(feature, start, profile)) {
        out.be16(feature.code);
        let flags = u8::from(feature.persistent) << 1 | u8::from((feature.current)(profile));
        let at = out.len().saturating_add(1);
        out.push(&[feature.version << 2 | flags, 0]);
        (feature.data)(unit, out);
        out.seal8(at);
    }
    out.seal32(0);
    Ok(Outcome::Data { allocation: u32::from(cdb.be16::<7>()) })
}
