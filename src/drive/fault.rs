//! The one map from media faults to sense data, and from faults and sense to what a person hears.

use crate::{
    media::FaultKind,
    scsi::{Sense, sense},
    units::Lba,
};

/// Which way the bytes were to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// Reading the image.
    Read,
    /// Writing it, or making it durable.
    Write,
}

/// What the host is told. `lba` is the first block that could not be had, where that is known (SPC-4 §4.5.2.4, INFORMATION).
pub(super) fn sense_of(kind: FaultKind, way: Way, lba: Option<Lba>) -> Sense {
    let medium_error = match way {
        Way::Read => sense::UNRECOVERED_READ_ERROR,
        Way::Write => sense::WRITE_ERROR,
    };
    let sense = match kind {
        FaultKind::OutOfRange => sense::LBA_OUT_OF_RANGE,
        FaultKind::Truncated
        | FaultKind::Changed
        | FaultKind::Io
        | FaultKind::Damaged
        | FaultKind::Stale
        | FaultKind::Other(_) => medium_error,
        // SBC-3 §4.7.3.6: a thin image that cannot grow.
        FaultKind::NoSpace | FaultKind::Quota | FaultKind::TooLarge => sense::SPACE_ALLOCATION_FAILED,
        FaultKind::ReadOnly => sense::WRITE_PROTECTED,
        FaultKind::Permission | FaultKind::Refused => sense::INTERNAL_TARGET_FAILURE,
        FaultKind::Unreachable | FaultKind::TimedOut | FaultKind::CacheFull => sense::BECOMING_READY,
        FaultKind::Gone | FaultKind::Ejected => sense::MEDIUM_NOT_PRESENT,
        FaultKind::NoMemory | FaultKind::Interrupted => sense::ABORTED_COMMAND,
    };
    match lba {
        Some(lba) if sense == medium_error => sense.with_information(lba.0),
        _ => sense,
    }
}

/// What the host is told of a sync that failed: whatever the cause, what it wrote before may be lost, and no retry brings it back.
pub(super) fn sense_of_loss(kind: FaultKind) -> Sense {
    match sense_of(kind, Way::Write, None) {
        sense::BECOMING_READY | sense::ABORTED_COMMAND => sense::WRITE_ERROR,
        sense => sense,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_medium_error_names_its_block_and_others_do_not() {
        let named = sense_of(FaultKind::Truncated, Way::Read, Some(Lba(7)));
        assert_eq!(named, sense::UNRECOVERED_READ_ERROR.with_information(7));
        assert_eq!(sense_of(FaultKind::ReadOnly, Way::Write, Some(Lba(7))), sense::WRITE_PROTECTED);
    }
}
