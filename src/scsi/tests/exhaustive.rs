//! Small spaces walked through whole, and large ones at random: nothing panics, nothing passes the allocation length.

use proptest::prelude::*;

use super::*;
use crate::scsi::opcodes::TABLE;

/// A value that no response byte is compared with: what lies past `len` must keep it.
const UNTOUCHED: u8 = 0xEE;

/// Where each command that answers with data has its allocation length: first byte and bytes.
fn allocation_field(opcode: u8) -> Option<(usize, usize)> {
    Some(match opcode {
        0x03 | 0x1A => (4, 1),
        0x12 | 0x1C => (3, 2),
        0x23 | 0x42..=0x44 | 0x46 | 0x4A | 0x4D | 0x51 | 0x52 | 0x5A | 0x5C | 0x5E => (7, 2),
        0x9E => (10, 4),
        0xA0 | 0xA3 => (6, 4),
        0xAD | 0xBD => (8, 2),
        _ => return None,
    })
}

fn allocation(cdb: &[u8]) -> Option<usize> {
    if let [0xAC, _, _, _, _, _, _, _, high, low, ..] = cdb {
        // GET PERFORMANCE limits the number of descriptors, of 16 bytes each, behind a header of 8.
        return Some(8 + 16 * usize::from(u16::from_be_bytes([*high, *low])));
    }
    let (at, len) = allocation_field(cdb[0])?;
    Some(cdb[at..at + len].iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte)))
}

/// Checks what every answer must keep to, and answers what waits.
fn check(target: &mut Target, lun: u8, cdb: &[u8]) {
    let mut response = [UNTOUCHED; RESPONSE_LEN_MAX];
    match target.execute(lun, cdb, &mut response) {
        Reply::Status(Status::Good) => {}
        Reply::Status(Status::CheckCondition) => {
            if let Some(unit) = target.unit(lun) {
                let sense = unit.last_sense().expect("CHECK CONDITION leaves sense data");
                assert_ne!(sense.key, SenseKey::NoSense, "{cdb:02X?}");
            }
        }
        Reply::Data { len } => {
            assert!((1..=RESPONSE_LEN_MAX).contains(&len));
            match allocation(cdb) {
                Some(allocation) => assert!(len <= allocation, "{cdb:02X?}: {len} > {allocation}"),
                None => assert_eq!((cdb[0], len), (0x25, 8), "no allocation length: READ CAPACITY(10)"),
            }
        }
        Reply::Media(op, pending) => {
            let medium = *target.unit(lun).unwrap().medium().unwrap_or(&disc(0));
            match op {
                MediaOp::Read(range)
                | MediaOp::ReadSectors { range, .. }
                | MediaOp::Write { range, .. }
                | MediaOp::Verify(range)
                | MediaOp::Prefetch(range) => {
                    assert!(range.fits(medium.blocks) && range.count().0 > 0, "{cdb:02X?}: {range:?}");
                }
                MediaOp::Compound(op) => {
                    let fits = |range: BlockRange| range.fits(medium.blocks) && range.count().0 > 0;
                    assert!(op.range().is_none_or(fits), "{cdb:02X?}: {op:?}");
                    assert!(op.data_out(medium.block_size).is_some());
                }
                MediaOp::LbaStatus { start, len } => {
                    assert!(start.0 < medium.blocks.0 && (1..=LBA_STATUS_LEN).contains(&len));
                    assert!(usize::try_from(len).unwrap() <= allocation(cdb).unwrap());
                }
                MediaOp::Flush | MediaOp::FlushSoon | MediaOp::Load | MediaOp::Unload => {}
            }
            target.abandon(pending);
        }
        Reply::Parameters { len, pending } => {
            assert!((1..=PARAMETERS_LEN_MAX).contains(&len));
            target.abandon_parameters(pending);
        }
    }
}

/// With a disk, a CD, a DVD and a BD, and without.
fn all_states() -> [Target; 6] {
    let empty = |kind| target(kind, None);
    [disk(64), optical(64), optical(400_000), optical(1 << 24), empty(Kind::Disk), empty(Kind::Optical)]
}

/// 256 opcodes × 17 lengths × three fillings × seven states (the seventh: no such unit).
#[test]
fn every_opcode_cut_anywhere_ends_well() {
    for opcode in 0..=0xFF {
        for fill in [0x00, 0x5A, 0xFF] {
            let mut cdb = [fill; 16];
            cdb[0] = opcode;
            for len in 0..=16 {
                let cdb = &cdb[..len];
                // A cut CDB has no allocation length; it must not have data either.
                let short = TABLE.iter().any(|row| row.opcode == opcode && len < row.cdb_len());
                for target in &mut all_states() {
                    if short && len > 0 {
                        let answer = send(target, cdb);
                        assert!(matches!(answer, Answer::Check(_)), "{cdb:02X?} came to {answer:?}");
                    } else if len > 0 {
                        check(target, 0, cdb);
                    }
                    send_to(target, 3, cdb);
                }
            }
        }
    }
}

/// Allocation lengths 0 to 300 for all that have one, all service actions: bytes past the allocation length do not count,
/// and what is left is the start of the whole answer.
#[test]
fn every_response_is_a_prefix_of_the_whole_one() {
    for opcode in 0..=0xFF {
        let Some((at, len)) = allocation_field(opcode) else { continue };
        for action in 0..32 {
            for page in [0x00, 0x3F, 0x80] {
                let mut cdb = [0; 16];
                cdb[..3].copy_from_slice(&[opcode, action, page]);
                for (state, fresh) in all_states().into_iter().enumerate() {
                    if opcode == 0x42 && fresh.unit(0).unwrap().kind() == Kind::Disk {
                        // UNMAP, with a parameter list length where READ SUB-CHANNEL has this.
                        continue;
                    }
                    let with = |allocation: u16| {
                        let bytes = u64::from(allocation).to_be_bytes();
                        let mut cdb = cdb;
                        cdb[at..at + len].copy_from_slice(&bytes[8 - len..]);
                        let mut target = Target::new(vec![fresh.unit(0).unwrap().clone()]);
                        send(&mut target, &cdb)
                    };
                    let whole = with(if len == 1 { 0xFF } else { 0x1FFF });
                    let most = if len == 1 { 255 } else { 300 };
                    for allocation in 0..=most {
                        match (&whole, with(allocation)) {
                            (Answer::Data(_), Answer::Good) => assert_eq!(allocation, 0),
                            (Answer::Data(whole), Answer::Data(cut)) => {
                                let expected = whole.len().min(usize::from(allocation));
                                // A media event is taken, or not, by whether it fits.
                                let same = opcode == 0x4A || cut == whole[..expected];
                                assert!(same && cut.len() == expected, "{cdb:02X?} state {state}");
                            }
                            // The drive sends it, and knows how long it may be.
                            (Answer::Media(_), cut) => assert_eq!(cut == Answer::Good, allocation == 0),
                            (whole, cut) => assert_eq!(*whole, cut, "{cdb:02X?} state {state}"),
                        }
                    }
                }
            }
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Command { lun: u8, cdb: Vec<u8>, result: bool },
    List(Vec<u8>),
    Insert,
    Remove,
    RequestEject,
    Protect(bool),
    Reset,
}

/// Half of the commands are listed ones, so that their handlers are reached.
fn commands() -> impl Strategy<Value = Step> {
    let listed = (0..TABLE.len(), prop::collection::vec(any::<u8>(), 16), any::<bool>()).prop_map(
        |(row, mut cdb, small)| {
            if small {
                // Mostly zeroes: valid fields, small addresses.
                cdb.iter_mut().for_each(|byte| *byte &= if *byte & 0xC0 == 0 { 0x03 } else { 0 });
            }
            cdb[0] = TABLE[row].opcode;
            cdb[1] = cdb[1] & 0xE0 | TABLE[row].service_action.unwrap_or(cdb[1] & 0x1F);
            cdb
        },
    );
    let any_bytes = prop::collection::vec(any::<u8>(), 1..=20);
    (0..3_u8, prop_oneof![listed, any_bytes], any::<bool>()).prop_map(|(lun, cdb, result)| Step::Command {
        lun,
        cdb,
        result,
    })
}

fn steps() -> impl Strategy<Value = Step> {
    prop_oneof![
        20 => commands(),
        2 => prop::collection::vec(any::<u8>(), 0..64).prop_map(Step::List),
        1 => Just(Step::Insert),
        1 => Just(Step::Remove),
        1 => Just(Step::RequestEject),
        1 => any::<bool>().prop_map(Step::Protect),
        1 => Just(Step::Reset),
    ]
}

fn take(target: &mut Target, pending: PendingParameters, list: &[u8]) {
    if let ListReply::Media(_, pending) = target.parameters(pending, list) {
        target.complete(pending, Ok(()));
    }
}

fn play(target: &mut Target, step: Step) {
    let mut response = [0; RESPONSE_LEN_MAX];
    match step {
        Step::Command { lun, cdb, result } => match target.execute(lun, &cdb, &mut response) {
            Reply::Media(op, pending) => {
                let before = target.unit(lun).unwrap().medium().copied();
                let result = if result { Ok(()) } else { Err(sense::INTERNAL_TARGET_FAILURE) };
                let status = target.complete(pending, result);
                let unit = target.unit(lun).unwrap();
                assert_eq!(status == Status::CheckCondition, unit.last_sense().is_some());
                if result.is_ok() && op == MediaOp::Unload {
                    assert_eq!(unit.medium(), None);
                } else {
                    assert_eq!(unit.medium().copied(), before);
                }
            }
            Reply::Parameters { pending, .. } => take(target, pending, &cdb),
            Reply::Data { len } => assert!((1..=RESPONSE_LEN_MAX).contains(&len)),
            Reply::Status(Status::Good) => {
                assert!(target.unit(lun).is_none_or(|unit| unit.last_sense().is_none()));
            }
            Reply::Status(Status::CheckCondition) => {
                assert!(target.unit(lun).is_none_or(|unit| unit.last_sense().is_some()));
            }
        },
        Step::List(list) => {
            let cdb = [0x55, 0x10, 0, 0, 0, 0, 0, 0, 64, 0];
            if let Reply::Parameters { pending, .. } = target.execute(0, &cdb, &mut response) {
                take(target, pending, &list);
            }
        }
        Step::Insert => target.unit_mut(0).unwrap().insert(disk_medium(64)),
        Step::Remove => target.unit_mut(0).unwrap().remove(),
        Step::RequestEject => target.unit_mut(1).unwrap().request_eject(),
        Step::Protect(protect) => target.unit_mut(0).unwrap().set_write_protected(protect),
        Step::Reset => target.bus_reset(),
    }
}

proptest! {
    #[test]
    fn no_sequence_of_commands_and_media_changes_breaks_the_target(
        steps in prop::collection::vec(steps(), 1..60),
    ) {
        let mut cd = Unit::new(Kind::Optical, identity());
        cd.insert(disc(64));
        let mut target = Target::new(vec![Unit::new(Kind::Disk, identity()), cd]);
        for step in steps {
            play(&mut target, step);
        }
    }

    #[test]
    fn a_host_that_goes_on_asking_hears_of_everything_and_then_finds_the_unit_ready(
        steps in prop::collection::vec(steps(), 0..40),
    ) {
        let mut target = Target::new(vec![Unit::new(Kind::Disk, identity()), Unit::new(Kind::Optical, identity())]);
        for step in steps {
            play(&mut target, step);
        }
        target.unit_mut(0).unwrap().insert(disk_medium(64));
        // At most one of each of four attentions waits.
        let tries = (0..5).take_while(|_| send(&mut target, &TEST_UNIT_READY) != Answer::Good).count();
        prop_assert!(tries <= 4);
    }
}
