//! Tests of the target, by command. Expected bytes come from the standards' tables, from QEMU's scsi-disk and cdrom emulation,
//! or were read back with sg3_utils' decoders, as each test says.

// A test that overflows fails, as it should.
#![allow(clippy::arithmetic_side_effects)]

mod attention;
mod diagnostic;
mod disc;
mod disk;
mod exhaustive;
mod identify;
mod optical;
mod provisioning;
mod reservation;
mod reserved;
mod select;
mod vpd;

use super::sense::Sense;
use super::*;
use crate::units::{BlockRange, BlockSize, Blocks, Lba};

fn identity() -> Identity {
    Identity::new("RINGDRV", "Virtual Disk", "0100", "0123456789AB").unwrap()
}

fn disk_medium(blocks: u64) -> Medium {
    Medium { blocks: Blocks(blocks), block_size: BlockSize::B512, write_protected: false, thin: true }
}

fn disc(blocks: u64) -> Medium {
    Medium { blocks: Blocks(blocks), block_size: BlockSize::B2048, write_protected: true, thin: false }
}

/// A target of one unit whose unit attentions have been told.
fn target(kind: Kind, medium: Option<Medium>) -> Target {
    let mut unit = Unit::new(kind, identity());
    if let Some(medium) = medium {
        unit.insert(medium);
    }
    let mut target = Target::new(vec![unit]);
    for _ in 0..4 {
        request_sense(&mut target);
    }
    target
}

fn disk(blocks: u64) -> Target {
    target(Kind::Disk, Some(disk_medium(blocks)))
}

fn optical(blocks: u64) -> Target {
    target(Kind::Optical, Some(disc(blocks)))
}

fn range(start: u64, count: u64) -> BlockRange {
    BlockRange::new(Lba(start), Blocks(count)).unwrap()
}

/// What a command came to, with nothing left to answer.
#[derive(Debug, PartialEq, Eq)]
enum Answer {
    Good,
    Data(Vec<u8>),
    Check(Sense),
    Media(MediaOp),
    Parameters(u32),
}

fn send_to(target: &mut Target, lun: u8, cdb: &[u8]) -> Answer {
    let mut response = [0xEE; RESPONSE_LEN_MAX];
    match target.execute(lun, cdb, &mut response) {
        Reply::Status(Status::Good) => Answer::Good,
        Reply::Status(Status::CheckCondition) => {
            let none = sense::LOGICAL_UNIT_NOT_SUPPORTED;
            Answer::Check(target.unit(lun).map_or(none, |unit| unit.last_sense().unwrap()))
        }
        Reply::Data { len } => Answer::Data(response[..len].to_vec()),
        Reply::Media(op, pending) => {
            target.abandon(pending);
            Answer::Media(op)
        }
        Reply::Parameters { len, pending } => {
            target.abandon_parameters(pending);
            Answer::Parameters(len)
        }
    }
}

fn send(target: &mut Target, cdb: &[u8]) -> Answer {
    send_to(target, 0, cdb)
}

/// Response bytes of a command that must succeed with data.
fn data(target: &mut Target, cdb: &[u8]) -> Vec<u8> {
    match send(target, cdb) {
        Answer::Data(bytes) => bytes,
        other => panic!("{cdb:02X?} came to {other:?}"),
    }
}

/// Sense key, ASC and ASCQ as REQUEST SENSE tells them.
fn request_sense(target: &mut Target) -> (u8, u8, u8) {
    let bytes = data(target, &[0x03, 0, 0, 0, 18, 0]);
    (bytes[2], bytes[12], bytes[13])
}

/// Runs a command that needs the medium to its end.
fn finish(target: &mut Target, cdb: &[u8], result: Result<(), Sense>) -> Status {
    let mut response = [0; RESPONSE_LEN_MAX];
    match target.execute(0, cdb, &mut response) {
        Reply::Media(_, pending) => target.complete(pending, result),
        other => panic!("{cdb:02X?} came to {other:?}"),
    }
}

const TEST_UNIT_READY: [u8; 6] = [0; 6];
const EJECT: [u8; 6] = [0x1B, 0, 0, 0, 0x02, 0];
const LOAD: [u8; 6] = [0x1B, 0, 0, 0, 0x03, 0];
const PREVENT: [u8; 6] = [0x1E, 0, 0, 0, 1, 0];
const ALLOW: [u8; 6] = [0x1E, 0, 0, 0, 0, 0];
