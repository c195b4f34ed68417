//! Transport and target, walked through whole: 256 operation codes, all service actions, CDBs cut anywhere, allocation lengths
//! from 0 to 300, both kinds with and without a medium, and no unit at all.
//!
//! Each command goes through Bulk-Only Transport and must come to a legal CSW; no byte past the allocation length is ever sent.
//! Every listed operation code meets the whole product. The others never get as far as their allocation length, so of those
//! lengths they meet a few.

// What clippy.toml allows in unit tests.
#![allow(clippy::unwrap_used)]

use std::{
    sync::atomic::{AtomicU64, AtomicUsize, Ordering},
    thread,
};

use ringdrive::{
    bot::{Bot, CommandStatus, DataPhase, Intent, StallPolicy},
    scsi::{Identity, Kind, MediaOp, Medium, RESPONSE_LEN_MAX, Reply, Status, Target, Unit, listed, sense},
    units::{BlockSize, Blocks},
};

const ACTIONS: u8 = 32;
const CDB_LEN_MAX: usize = 16;
const ALLOCATION_MAX: u32 = 300;
const DIRECTION_IN: u8 = 0x80;
/// More than any allocation length that is tried, so that what is sent shows in the residue.
const HOST_EXPECTS: u32 = 4096;
/// A LUN without a unit.
const NOBODY: u8 = 1;

/// Where the allocation length stands, first byte and bytes: by the length of the CDB (SPC-4 §4.2.5), but for those that have it
/// elsewhere.
fn allocation_field(opcode: u8) -> (usize, usize) {
    match (opcode, opcode >> 5) {
        // INQUIRY, RECEIVE DIAGNOSTIC RESULTS.
        (0x12 | 0x1C, _) => (3, 2),
        // GET PERFORMANCE, READ DISC STRUCTURE, MECHANISM STATUS.
        (0xAC | 0xAD | 0xBD, _) => (8, 2),
        (_, 0) => (4, 1),
        (_, 1 | 2) => (7, 2),
        (_, 5) => (6, 4),
        _ => (10, 4),
    }
}

/// The most bytes that the CDB asks for; `None`: it counts blocks, or nothing.
fn asked_for(cdb: &[u8], allocation: u32) -> Option<u32> {
    match cdb[0] {
        // Descriptors of 16 bytes behind a header of 8.
        0xAC => Some(8 + 16 * allocation),
        0x08 | 0x28 | 0x88 | 0xA8 | 0xB9 | 0xBE => None,
        // READ CAPACITY(10) has a fixed length.
        0x25 => Some(8),
        _ => Some(allocation),
    }
}

fn unit(kind: Kind, medium: Option<Medium>) -> Unit {
    let mut unit = Unit::new(kind, Identity::new("RINGDRV", "Exhaustive", "1", "0123456789AB").unwrap());
    if let Some(medium) = medium {
        unit.insert(medium);
    }
    unit
}

/// A disk and a disc, a drive of each kind without, each with its unit attentions told.
fn states() -> [Target; 4] {
    let disk = Medium { blocks: Blocks(64), block_size: BlockSize::B512, write_protected: false, thin: true };
    let disc =
        Medium { blocks: Blocks(64), block_size: BlockSize::B2048, write_protected: true, thin: false };
    [(Kind::Disk, Some(disk)), (Kind::Optical, Some(disc)), (Kind::Disk, None), (Kind::Optical, None)].map(
        |(kind, medium)| {
            let mut target = Target::new(vec![unit(kind, medium)]);
            let mut response = [0; RESPONSE_LEN_MAX];
            while let Reply::Data { .. } = target.execute(0, &[3, 0, 0, 0, 18, 0], &mut response) {
                if response[2] & 0x0F == 0 {
                    break;
                }
            }
            target
        },
    )
}

/// A transport and what a command needs, made once.
struct Host {
    bot: Bot,
    response: Vec<u8>,
    tag: u32,
    sent_something: u64,
}

impl Host {
    fn command(&mut self, target: &mut Target, lun: u8, flags: u8, cdb: &[u8], limit: Option<u32>) {
        self.tag = self.tag.wrapping_add(1);
        let mut cbw = [0; 31];
        cbw[..4].copy_from_slice(b"USBC");
        cbw[4..8].copy_from_slice(&self.tag.to_le_bytes());
        cbw[8..12].copy_from_slice(&HOST_EXPECTS.to_le_bytes());
        (cbw[12], cbw[13], cbw[14]) = (flags, lun, u8::try_from(cdb.len()).unwrap());
        cbw[15..15 + cdb.len()].copy_from_slice(cdb);
        let command = self.bot.receive_cbw(&cbw).unwrap();
        let reply = target.execute(lun, &command.cdb, &mut self.response);
        let (status, phase) = self.carry_out(target, reply, cdb);
        let moved = match phase {
            DataPhase::None => 0,
            DataPhase::In { send } => {
                assert!(limit.is_none_or(|limit| send <= limit), "{cdb:02X?} of {lun}: {send} bytes");
                self.sent_something += u64::from(send > 0);
                send
            }
            DataPhase::Out { keep, .. } => keep,
        };
        if status == CommandStatus::Failed
            && let Some(unit) = target.unit(lun)
        {
            assert!(
                unit.last_sense().is_some_and(|sense| sense.key.code() != 0),
                "{cdb:02X?}: no sense data"
            );
        }
        let csw = self.bot.finish(status, moved).csw;
        self.bot.csw_sent();
        let word = |at: usize| u32::from_le_bytes(csw[at..at + 4].try_into().unwrap());
        assert_eq!((&csw[..4], word(4)), (&b"USBS"[..], self.tag), "{cdb:02X?}");
        assert!(csw[12] <= 2 && word(8) == HOST_EXPECTS - moved, "{cdb:02X?}: {csw:02X?}");
    }

    /// What the drive would do, but that the medium fails, so that it stays what it is.
    fn carry_out(&mut self, target: &mut Target, reply: Reply, cdb: &[u8]) -> (CommandStatus, DataPhase) {
        let (status, intent) = match reply {
            Reply::Status(status) => (status, Intent::None),
            Reply::Data { len } => {
                assert!((1..=RESPONSE_LEN_MAX).contains(&len), "{cdb:02X?}: {len} bytes");
                (Status::Good, Intent::In(len.try_into().unwrap()))
            }
            Reply::Parameters { len, pending } => {
                target.abandon_parameters(pending);
                (Status::Good, Intent::Out(len.into()))
            }
            Reply::Media(op, pending) => {
                let intent = match op {
                    MediaOp::LbaStatus { len, .. } => Intent::In(len.into()),
                    MediaOp::Read(range) => Intent::In(range.count().0 * 512),
                    _ => Intent::None,
                };
                (target.complete(pending, Err(sense::INTERNAL_TARGET_FAILURE)), intent)
            }
        };
        let phase = self.bot.plan(intent).phase;
        match status {
            Status::Good => (CommandStatus::Passed, phase),
            Status::CheckCondition => (CommandStatus::Failed, phase),
        }
    }
}

/// All that begins with this operation code; how many commands that were, and how many were sent data.
fn walk(opcode: u8) -> (u64, u64) {
    let is_listed = [Kind::Disk, Kind::Optical].into_iter().flat_map(listed).any(|row| row.opcode == opcode);
    let allocations: Vec<u32> =
        if is_listed { (0..=ALLOCATION_MAX).collect() } else { vec![0, 1, 36, 255, ALLOCATION_MAX] };
    let (at, len) = allocation_field(opcode);
    let mut host = Host {
        bot: Bot::new(StallPolicy::Auto),
        response: vec![0; RESPONSE_LEN_MAX],
        tag: 0,
        sent_something: 0,
    };
    let mut commands = 0;
    for action in 0..ACTIONS {
        for mut target in states() {
            for allocation in allocations.iter().copied() {
                let mut cdb = [0; CDB_LEN_MAX];
                (cdb[0], cdb[1]) = (opcode, action);
                let bytes = allocation.to_be_bytes();
                cdb[at..at + len].copy_from_slice(&bytes[4 - len..]);
                let kept =
                    u32::try_from(cdb[at..at + len].iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte)))
                        .unwrap();
                for cut in 1..=CDB_LEN_MAX {
                    // A field that is cut off is no field.
                    let limit = if cut < at + len { Some(0) } else { asked_for(&cdb, kept) };
                    host.command(&mut target, 0, DIRECTION_IN, &cdb[..cut], limit);
                    host.command(&mut target, 0, 0, &cdb[..cut], None);
                    host.command(&mut target, NOBODY, DIRECTION_IN, &cdb[..cut], limit);
                    commands += 3;
                }
            }
        }
    }
    (commands, host.sent_something)
}

#[test]
fn every_command_that_can_be_sent_comes_to_a_legal_csw() {
    let (next, commands, sent) = (AtomicUsize::new(0), AtomicU64::new(0), AtomicU64::new(0));
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                while let Ok(opcode) = u8::try_from(next.fetch_add(1, Ordering::Relaxed)) {
                    let (walked, with_data) = walk(opcode);
                    commands.fetch_add(walked, Ordering::Relaxed);
                    sent.fetch_add(with_data, Ordering::Relaxed);
                }
            });
        }
    });
    let (commands, sent) = (commands.into_inner(), sent.into_inner());
    println!("{commands} commands, {sent} of them with data for the host");
    assert!(sent > 1_000_000, "only {sent} of {commands} commands were sent data");
}
