//! Persistent reservations of the only initiator. Offsets and codes are those of SPC-4's tables; `sg_persist` and libiscsi's suite
//! take the same way.

use super::*;
use crate::scsi::sense::*;

const KEY: u64 = 0x0123_4567_89AB_CDEF;
const OTHER: u64 = 0x1111_2222_3333_4444;

const REGISTER: u8 = 0;
const RESERVE: u8 = 1;
const RELEASE: u8 = 2;
const CLEAR: u8 = 3;
const PREEMPT: u8 = 4;
const PREEMPT_AND_ABORT: u8 = 5;
const REGISTER_AND_IGNORE: u8 = 6;

const TYPES: [u8; 6] = [1, 3, 5, 6, 7, 8];

fn list(key: u64, service_action_key: u64, flags: u8) -> Vec<u8> {
    let mut list = [key.to_be_bytes(), service_action_key.to_be_bytes()].concat();
    list.extend([0, 0, 0, 0, flags, 0, 0, 0]);
    list
}

fn submit(target: &mut Target, action: u8, kind: u8, list: &[u8]) -> Result<(), Sense> {
    let mut response = [0; RESPONSE_LEN_MAX];
    match target.execute(0, &[0x5F, action, kind, 0, 0, 0, 0, 0, 24, 0], &mut response) {
        Reply::Parameters { len: 24, pending } => match target.parameters(pending, list) {
            ListReply::Status(Status::Good) => Ok(()),
            _ => Err(target.unit(0).unwrap().last_sense().unwrap()),
        },
        other => panic!("{other:?}"),
    }
}

fn out(target: &mut Target, action: u8, kind: u8, key: u64, service_action_key: u64) -> Result<(), Sense> {
    submit(target, action, kind, &list(key, service_action_key, 0))
}

fn read(target: &mut Target, action: u8) -> Vec<u8> {
    data(target, &[0x5E, action, 0, 0, 0, 0, 0, 0x20, 0, 0])
}

fn generation(target: &mut Target) -> u32 {
    u32::from_be_bytes(read(target, 0)[..4].try_into().unwrap())
}

fn keys(target: &mut Target) -> Vec<u64> {
    let bytes = read(target, 0);
    assert_eq!(bytes[4..8], u32::try_from(bytes.len() - 8).unwrap().to_be_bytes());
    bytes[8..].chunks(8).map(|key| u64::from_be_bytes(key.try_into().unwrap())).collect()
}

/// Key and type of the reservation, if there is one.
fn reservation(target: &mut Target) -> Option<(u64, u8)> {
    let bytes = read(target, 1);
    assert_eq!(bytes[4..8], u32::try_from(bytes.len() - 8).unwrap().to_be_bytes());
    (bytes.len() > 8).then(|| {
        assert_eq!((bytes.len(), &bytes[16..21], &bytes[22..]), (24, &[0; 5][..], &[0; 2][..]));
        (u64::from_be_bytes(bytes[8..16].try_into().unwrap()), bytes[21])
    })
}

const CONFLICT: Result<(), Sense> =
    Err(Sense { field: Some(FieldPointer::Parameters { byte: 0 }), ..INVALID_FIELD_IN_PARAMETER_LIST });

/// libiscsi's ProutRegister.Simple, but for the status of the conflict, which USB cannot carry.
#[test]
fn a_key_is_registered_changed_and_unregistered_by_whoever_knows_it() {
    let mut target = disk(64);
    assert!(keys(&mut target).is_empty());
    assert_eq!(out(&mut target, REGISTER, 0, OTHER, KEY), CONFLICT, "not registered yet");
    assert_eq!(out(&mut target, REGISTER, 0, 0, 0), Ok(()), "nothing to do");
    assert_eq!((keys(&mut target), generation(&mut target)), (vec![], 0));
    assert_eq!(out(&mut target, REGISTER, 0, 0, KEY), Ok(()));
    assert_eq!((keys(&mut target), generation(&mut target)), (vec![KEY], 1));
    assert_eq!(out(&mut target, REGISTER, 0, 0, KEY + 1), CONFLICT);
    assert_eq!(out(&mut target, REGISTER, 0, KEY, OTHER), Ok(()));
    assert_eq!((keys(&mut target), generation(&mut target)), (vec![OTHER], 2));
    assert_eq!(out(&mut target, REGISTER_AND_IGNORE, 0, 7, KEY), Ok(()));
    assert_eq!(out(&mut target, REGISTER, 0, KEY, 0), Ok(()));
    assert_eq!((keys(&mut target), generation(&mut target)), (vec![], 4));
}

/// libiscsi's ProutReserve.Simple and PrinReportCapabilities.Simple.
#[test]
fn every_type_is_reserved_read_back_and_released() {
    let mut target = disk(64);
    // CRH; TMV; the mask has all six types (SPC-4, REPORT CAPABILITIES).
    assert_eq!(read(&mut target, 2), [0, 8, 0x10, 0x80, 0xEA, 0x01, 0, 0]);
    assert_eq!(out(&mut target, RESERVE, 3, 0, 0), CONFLICT, "not registered");
    out(&mut target, REGISTER, 0, 0, KEY).unwrap();
    for kind in TYPES {
        assert_eq!(reservation(&mut target), None);
        assert_eq!(out(&mut target, RELEASE, kind, KEY, 0), Ok(()), "nothing to release");
        assert_eq!(out(&mut target, RESERVE, kind, OTHER, 0), CONFLICT);
        assert_eq!(out(&mut target, RESERVE, kind, KEY, 0), Ok(()));
        assert_eq!(out(&mut target, RESERVE, kind, KEY, 0), Ok(()), "the same again");
        // All registrants hold types 7 and 8, so no key is told.
        let key = if kind >= 7 { 0 } else { KEY };
        assert_eq!(reservation(&mut target), Some((key, kind)));
        for other in TYPES.into_iter().filter(|other| *other != kind) {
            assert_eq!(out(&mut target, RESERVE, other, KEY, 0), CONFLICT);
            let release = out(&mut target, RELEASE, other, KEY, 0);
            assert_eq!(release, Err(INVALID_RELEASE_OF_PERSISTENT_RESERVATION));
        }
        assert_eq!(out(&mut target, RELEASE, kind, KEY, 0), Ok(()));
    }
    assert_eq!(generation(&mut target), 1, "reserving is not counted");
}

/// libiscsi's ProutClear.Simple.
#[test]
fn clear_removes_all_and_counts_once() {
    let mut target = disk(64);
    out(&mut target, REGISTER_AND_IGNORE, 0, 0, KEY).unwrap();
    out(&mut target, RESERVE, 3, KEY, 0).unwrap();
    assert_eq!(out(&mut target, CLEAR, 0, OTHER, 0), CONFLICT);
    assert_eq!(out(&mut target, CLEAR, 0, KEY, 0), Ok(()));
    assert_eq!((reservation(&mut target), keys(&mut target), generation(&mut target)), (None, vec![], 2));
    assert_eq!(out(&mut target, CLEAR, 0, 0, 0), CONFLICT, "not registered");
}

#[test]
fn unregistering_releases_the_reservation() {
    let mut target = disk(64);
    out(&mut target, REGISTER, 0, 0, KEY).unwrap();
    out(&mut target, RESERVE, 5, KEY, 0).unwrap();
    out(&mut target, REGISTER, 0, KEY, 0).unwrap();
    assert_eq!(reservation(&mut target), None);
}

#[test]
fn an_initiator_may_preempt_itself_and_nobody_else() {
    for action in [PREEMPT, PREEMPT_AND_ABORT] {
        let mut target = disk(64);
        out(&mut target, REGISTER, 0, 0, KEY).unwrap();
        let no_such_key = Err(Sense::in_parameters(8));
        assert_eq!(out(&mut target, action, 1, KEY, OTHER), no_such_key);
        assert_eq!(out(&mut target, action, 1, KEY, 0), no_such_key);
        out(&mut target, RESERVE, 1, KEY, 0).unwrap();
        assert_eq!(out(&mut target, action, 8, KEY, KEY), Ok(()));
        assert_eq!(reservation(&mut target), Some((0, 8)));
        assert_eq!(out(&mut target, action, 3, KEY, 0), Ok(()), "zero is all registrants");
        assert_eq!((reservation(&mut target), generation(&mut target)), (Some((KEY, 3)), 3));
        out(&mut target, RELEASE, 3, KEY, 0).unwrap();
        assert_eq!(out(&mut target, action, 3, KEY, KEY), Ok(()), "its registration goes");
        assert!(keys(&mut target).is_empty());
    }
}

/// SPC-4, READ FULL STATUS: key, R_HOLDER, scope and type, relative target port, TransportID of 24 bytes.
#[test]
fn the_full_status_names_the_holder() {
    let mut target = disk(64);
    assert_eq!(read(&mut target, 3), [0; 8]);
    out(&mut target, REGISTER, 0, 0, KEY).unwrap();
    assert_eq!(read(&mut target, 3)[20..22], [0, 0]);
    out(&mut target, RESERVE, 6, KEY, 0).unwrap();
    let status = read(&mut target, 3);
    assert_eq!((status.len(), &status[..8]), (8 + 24 + 24, &[0, 0, 0, 1, 0, 0, 0, 48][..]));
    assert_eq!(status[8..16], KEY.to_be_bytes());
    assert_eq!(status[16..32], [0, 0, 0, 0, 1, 6, 0, 0, 0, 0, 0, 1, 0, 0, 0, 24]);
    assert_eq!(status[32..], [&[0x0F][..], &[0; 23]].concat());
}

/// libiscsi's PrinReadKeys.Truncate and PrinServiceactionRange.
#[test]
fn reading_is_cut_without_changing_lengths_and_unknown_actions_are_refused() {
    let mut target = disk(64);
    out(&mut target, REGISTER, 0, 0, KEY).unwrap();
    assert_eq!(data(&mut target, &[0x5E, 0, 0, 0, 0, 0, 0, 0, 8, 0]), [0, 0, 0, 1, 0, 0, 0, 8]);
    for action in 0..0x20 {
        let answer = send(&mut target, &[0x5E, action, 0, 0, 0, 0, 0, 0x40, 0, 0]);
        if action < 4 {
            assert!(matches!(answer, Answer::Data(_)));
        } else {
            assert_eq!(answer, Answer::Check(Sense::in_cdb_bit(1, 4)));
        }
        let answer = send(&mut target, &[0x5F, action, 1, 0, 0, 0, 0, 0, 24, 0]);
        let known = if action < 7 { Answer::Parameters(24) } else { Answer::Check(Sense::in_cdb_bit(1, 4)) };
        assert_eq!(answer, known);
    }
}

#[test]
fn other_scopes_types_lengths_and_flags_are_refused() {
    let mut target = disk(64);
    for action in [RESERVE, RELEASE, PREEMPT, PREEMPT_AND_ABORT] {
        let mut ask = |kind| send(&mut target, &[0x5F, action, kind, 0, 0, 0, 0, 0, 24, 0]);
        assert_eq!(ask(0x11), Answer::Check(Sense::in_cdb_bit(2, 7)));
        for kind in (0..16).filter(|kind| !TYPES.contains(kind)) {
            assert_eq!(ask(kind), Answer::Check(Sense::in_cdb_bit(2, 3)));
        }
    }
    for len in [0, 23, 25] {
        let cdb = [0x5F, REGISTER, 0, 0, 0, 0, 0, 0, len, 0];
        assert_eq!(send(&mut target, &cdb), Answer::Check(PARAMETER_LIST_LENGTH_ERROR));
    }
    for flags in [0x01, 0x08] {
        let answer = submit(&mut target, REGISTER, 0, &list(0, KEY, flags));
        assert_eq!(answer, Err(Sense::in_parameters(20)));
    }
    assert_eq!(submit(&mut target, REGISTER, 0, &list(0, KEY, 0x04)), Ok(()), "all of one port");
    for len in 0..24 {
        let answer = submit(&mut target, CLEAR, 0, &list(KEY, 0, 0)[..len]);
        assert_eq!(answer, Err(PARAMETER_LIST_LENGTH_ERROR));
    }
    assert_eq!(keys(&mut target), [KEY]);
}

#[test]
fn a_registration_outlives_a_reset_and_not_the_device() {
    let mut target = disk(64);
    out(&mut target, REGISTER, 0, 0, KEY).unwrap();
    target.bus_reset();
    send(&mut target, &TEST_UNIT_READY);
    assert_eq!(keys(&mut target), [KEY]);
    let unit = target.unit_mut(0).unwrap();
    unit.remove();
    unit.set_kind(Kind::Optical, identity()).unwrap();
    unit.set_kind(Kind::Disk, identity()).unwrap();
    send(&mut target, &TEST_UNIT_READY);
    assert!(keys(&mut target).is_empty());
}

/// libiscsi's Reserve6.Simple, with a registration and without.
#[test]
fn the_old_reservation_commands_succeed() {
    let mut target = disk(64);
    for _ in 0..2 {
        for opcode in [0x16, 0x17] {
            assert_eq!(send(&mut target, &[opcode, 0, 0, 0, 0, 0]), Answer::Good);
            assert_eq!(
                send(&mut target, &[opcode, 0x10, 0, 0, 0, 0]),
                Answer::Check(Sense::in_cdb_bit(1, 4)),
                "no third parties"
            );
        }
        for opcode in [0x56, 0x57] {
            assert_eq!(send(&mut target, &[opcode, 0, 0, 0, 0, 0, 0, 0, 0, 0]), Answer::Good);
        }
        out(&mut target, REGISTER_AND_IGNORE, 0, 0, KEY).unwrap();
    }
}
