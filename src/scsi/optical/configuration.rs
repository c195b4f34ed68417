//! GET CONFIGURATION (MMC-6 §5 and GET CONFIGURATION): profiles and features.

use crate::scsi::cdb::Cdb;
use crate::scsi::response::Response;
use crate::scsi::sense::Sense;
use crate::scsi::target::Outcome;
use crate::scsi::unit::Unit;
use crate::units::Blocks;

/// The largest image shown as a CD: 80 minutes of 75 blocks a second, the longest disc that is sold (QEMU draws the same
/// line).
const CD_BLOCKS_MAX: Blocks = Blocks(80 * 60 * 75);

/// The largest image shown as a DVD: one side, two layers. DVD+R DL holds most (ECMA-364: 2,086,912 blocks a layer).
const DVD_BLOCKS_MAX: Blocks = Blocks(2 * 2_086_912);

/// What the medium is taken for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Profile {
    Cd,
    Dvd,
    Bd,
}

/// Most capable first (MMC-6, profile list feature).
const PROFILES: [Profile; 3] = [Profile::Bd, Profile::Dvd, Profile::Cd];

impl Profile {
    fn of(unit: &Unit) -> Option<Self> {
        unit.medium().map(|medium| match medium.blocks {
            blocks if blocks <= CD_BLOCKS_MAX => Self::Cd,
            blocks if blocks <= DVD_BLOCKS_MAX => Self::Dvd,
            _ => Self::Bd,
        })
    }

    /// Profile number (MMC-6, profile list feature).
    const fn number(self) -> u16 {
        match self {
            Self::Cd => 0x0008,
            Self::Dvd => 0x0010,
            Self::Bd => 0x0040,
        }
    }

    /// Blocks that are read together on such a medium.
    const fn blocking(self) -> u16 {
        match self {
            Self::Cd => 1,
            Self::Dvd => 16,
            Self::Bd => 32,
        }
    }
}

/// A feature descriptor (MMC-6 §5).
struct Feature {
    code: u16,
    version: u8,
    persistent: bool,
    current: fn(Option<Profile>) -> bool,
    /// Writes the feature dependent data; its length is a multiple of four.
    data: fn(Option<Profile>, &mut Response<'_>),
}

fn always(_: Option<Profile>) -> bool {
    true
}

fn nothing(_: Option<Profile>, _: &mut Response<'_>) {}

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
        current: |profile| profile.is_some(),
        data: |profile, out| {
            out.be32(2048);
            out.be16(profile.map_or(1, Profile::blocking));
            out.be16(0);
        },
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
];

fn profile_list(current: Option<Profile>, out: &mut Response<'_>) {
    for profile in PROFILES {
        out.be16(profile.number());
        out.push(&[u8::from(current == Some(profile)), 0]);
    }
}

/// Four bytes reserved, then bit maps of readable versions per class: BD-RE, BD-R, BD-ROM (MMC-6, BD read feature).
fn bd_read(_: Option<Profile>, out: &mut Response<'_>) {
    out.zeros(4 + 8 + 8);
    // BD-ROM class 1, version 1.
    out.push(&[0, 0, 0, 0x02, 0, 0, 0, 0]);
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
        (feature.data)(profile, out);
        out.seal8(at);
    }
    out.seal32(0);
    Ok(Outcome::Data { allocation: u32::from(cdb.be16::<7>()) })
}
