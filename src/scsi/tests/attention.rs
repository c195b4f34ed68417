//! Unit attentions, sense data, the lock and the tray.

use super::*;
use crate::scsi::sense::*;

#[test]
fn a_new_unit_tells_of_power_on_and_not_of_what_was_done_to_it_before() {
    let mut unit = Unit::new(Kind::Disk, identity());
    unit.insert(disk_medium(64));
    unit.set_write_protected(true);
    let mut target = Target::new(vec![unit]);
    target.bus_reset();
    assert_eq!(send(&mut target, &TEST_UNIT_READY), Answer::Check(RESET_OCCURRED));
    assert_eq!(request_sense(&mut target), (6, 0x29, 0));
    assert_eq!(send(&mut target, &TEST_UNIT_READY), Answer::Good);
}

#[test]
fn a_medium_that_came_while_a_reset_waits_is_told_of_too() {
    let mut target = disk(64);
    target.bus_reset();
    target.unit_mut(0).unwrap().insert(disk_medium(128));
    assert_eq!(request_sense(&mut target), (6, 0x29, 0));
    assert_eq!(request_sense(&mut target), (6, 0x28, 0));
    assert_eq!(send(&mut target, &TEST_UNIT_READY), Answer::Good);
}

#[test]
fn attentions_are_told_in_the_order_of_their_urgency_whatever_came_first() {
    let mut target = disk(64);
    let unit = target.unit_mut(0).unwrap();
    unit.set_write_protected(true);
    unit.remove();
    unit.set_kind(Kind::Optical, identity()).unwrap();
    unit.insert(disc(64));
    target.bus_reset();
    let told: Vec<_> = (0..5).map(|_| request_sense(&mut target)).collect();
    assert_eq!(told, [(6, 0x29, 0), (6, 0x3F, 3), (6, 0x28, 0), (6, 0x2A, 1), (0, 0, 0)]);
}

#[test]
fn an_attention_raised_twice_is_told_once() {
    let mut target = disk(64);
    target.bus_reset();
    target.bus_reset();
    assert_eq!(send(&mut target, &TEST_UNIT_READY), Answer::Check(RESET_OCCURRED));
    assert_eq!(send(&mut target, &TEST_UNIT_READY), Answer::Good);
}

/// SAM-5: INQUIRY, REPORT LUNS and REQUEST SENSE; MMC-6: GET CONFIGURATION and GET EVENT STATUS NOTIFICATION.
#[test]
fn some_commands_run_while_an_attention_waits_and_do_not_take_it() {
    let mut target = optical(64);
    target.bus_reset();
    for cdb in [
        &[0x12, 0, 0, 0, 36, 0][..],
        &[0xA0, 0, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0],
        &[0x46, 0, 0, 0, 0, 0, 0, 0, 8, 0],
        &[0x4A, 1, 0, 0, 0x10, 0, 0, 0, 8, 0],
    ] {
        assert!(matches!(send(&mut target, cdb), Answer::Data(_)), "{cdb:02X?}");
    }
    assert_eq!(send(&mut target, &TEST_UNIT_READY), Answer::Check(RESET_OCCURRED));
}

#[test]
fn sense_data_last_until_the_next_command_and_are_taken_once() {
    let mut target = disk(64);
    let beyond = [0x28, 0, 0, 0, 1, 0, 0, 0, 1, 0];
    assert_eq!(send(&mut target, &beyond), Answer::Check(LBA_OUT_OF_RANGE));
    assert_eq!(request_sense(&mut target), (5, 0x21, 0));
    assert_eq!(request_sense(&mut target), (0, 0, 0));
    assert_eq!(send(&mut target, &beyond), Answer::Check(LBA_OUT_OF_RANGE));
    assert_eq!(send(&mut target, &TEST_UNIT_READY), Answer::Good);
    assert_eq!(request_sense(&mut target), (0, 0, 0));
}

#[test]
fn a_reset_takes_the_sense_data_of_the_command_before_it() {
    let mut target = disk(64);
    send(&mut target, &[0x28, 0, 0, 0, 1, 0, 0, 0, 1, 0]);
    target.bus_reset();
    assert_eq!(target.unit(0).unwrap().last_sense(), None);
    assert_eq!(request_sense(&mut target), (6, 0x29, 0));
}

#[test]
fn a_medium_that_is_gone_again_is_not_announced() {
    let mut target = target(Kind::Disk, None);
    target.unit_mut(0).unwrap().insert(disk_medium(64));
    target.unit_mut(0).unwrap().remove();
    assert_eq!(send(&mut target, &TEST_UNIT_READY), Answer::Check(MEDIUM_NOT_PRESENT));
}

#[test]
fn each_unit_keeps_its_own_sense_data() {
    let unit = |kind| Unit::new(kind, identity());
    let mut target = Target::new(vec![unit(Kind::Disk), unit(Kind::Optical)]);
    assert_eq!(send_to(&mut target, 1, &TEST_UNIT_READY), Answer::Check(RESET_OCCURRED));
    assert_eq!(target.unit(0).unwrap().last_sense(), None);
    assert_eq!(target.unit(1).unwrap().last_sense(), Some(RESET_OCCURRED));
    assert_eq!(request_sense(&mut target), (6, 0x29, 0));
    assert_eq!(target.unit(1).unwrap().last_sense(), Some(RESET_OCCURRED));
}

/// `sg_decode_sense f0 00 03 00 12 34 56 0a …` says: Medium Error, Unrecovered read error, Info fld=0x123456 [1193046].
#[test]
fn the_drives_own_sense_reaches_the_host_with_the_bad_block() {
    let mut target = disk(1 << 24);
    let read = [0x28, 0, 0, 0x12, 0x34, 0x50, 0, 0, 8, 0];
    let bad = UNRECOVERED_READ_ERROR.with_information(0x12_3456);
    assert_eq!(finish(&mut target, &read, Err(bad)), Status::CheckCondition);
    let fixed = data(&mut target, &[0x03, 0, 0, 0, 252, 0]);
    assert_eq!(fixed, [0xF0, 0, 3, 0, 0x12, 0x34, 0x56, 10, 0, 0, 0, 0, 0x11, 0, 0, 0, 0, 0]);
}

/// SPC-4 §4.5: in fixed format INFORMATION has 32 bits; the descriptor format has 64.
/// `sg_decode_sense 72 03 11 00 00 00 00 0c 00 0a 80 00 …` says: Information: 0x0000001234567890.
#[test]
fn a_bad_block_past_two_terabytes_is_told_in_descriptor_format_only() {
    let mut target = disk(1 << 40);
    let read = [0x88, 0, 0, 0, 0, 0x12, 0x34, 0x56, 0x78, 0x90, 0, 0, 0, 1, 0, 0];
    let bad = Err(UNRECOVERED_READ_ERROR.with_information(0x12_3456_7890));
    finish(&mut target, &read, bad);
    assert_eq!(data(&mut target, &[0x03, 0, 0, 0, 18, 0])[..8], [0x70, 0, 3, 0, 0, 0, 0, 10]);
    finish(&mut target, &read, bad);
    assert_eq!(
        data(&mut target, &[0x03, 1, 0, 0, 252, 0]),
        [0x72, 3, 0x11, 0, 0, 0, 0, 12, 0x00, 10, 0x80, 0, 0, 0, 0, 0x12, 0x34, 0x56, 0x78, 0x90]
    );
}

/// `sg_decode_sense` reads both as: Illegal Request, Invalid field in cdb, Error in Command: byte 2 bit 5.
#[test]
fn an_invalid_field_is_pointed_at_in_both_formats() {
    let mut target = disk(64);
    let unknown_page = [0x1A, 0, 0x1B, 0, 252, 0];
    assert_eq!(send(&mut target, &unknown_page), Answer::Check(Sense::in_cdb_bit(2, 5)));
    let fixed = data(&mut target, &[0x03, 0, 0, 0, 18, 0]);
    assert_eq!(fixed, [0x70, 0, 5, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x24, 0, 0, 0xCD, 0, 2]);
    send(&mut target, &unknown_page);
    let descriptor = data(&mut target, &[0x03, 1, 0, 0, 252, 0]);
    assert_eq!(descriptor, [0x72, 5, 0x24, 0, 0, 0, 0, 8, 0x02, 6, 0, 0, 0xCD, 0, 2, 0]);
}

#[test]
fn a_missing_unit_answers_inquiry_report_luns_and_request_sense_only() {
    let mut target = disk(64);
    let Answer::Data(inquiry) = send_to(&mut target, 5, &[0x12, 0, 0, 0, 96, 0]) else { panic!() };
    assert_eq!(inquiry[0], 0x7F);
    let Answer::Data(luns) = send_to(&mut target, 5, &[0xA0, 0, 0, 0, 0, 0, 0, 0, 0, 64, 0, 0]) else {
        panic!()
    };
    assert_eq!(luns, [0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    for opcode in (0..=0xFF).filter(|opcode| ![0x03, 0x12, 0xA0].contains(opcode)) {
        let cdb = [opcode, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(send_to(&mut target, 5, &cdb), Answer::Check(LOGICAL_UNIT_NOT_SUPPORTED));
    }
    let Answer::Data(sense) = send_to(&mut target, 5, &[0x03, 0, 0, 0, 18, 0]) else { panic!() };
    assert_eq!((sense[2], sense[12], sense[13]), (5, 0x25, 0));
    assert_eq!(send(&mut target, &TEST_UNIT_READY), Answer::Good, "LUN 0 has not noticed");
}

#[test]
fn an_empty_unit_says_why_it_is_not_ready() {
    let mut target = target(Kind::Disk, None);
    assert_eq!(send(&mut target, &TEST_UNIT_READY), Answer::Check(MEDIUM_NOT_PRESENT));
    let mut target = super::target(Kind::Optical, None);
    assert_eq!(send(&mut target, &TEST_UNIT_READY), Answer::Check(MEDIUM_NOT_PRESENT_TRAY_CLOSED));
    assert_eq!(send(&mut target, &EJECT), Answer::Good);
    assert_eq!(send(&mut target, &TEST_UNIT_READY), Answer::Check(MEDIUM_NOT_PRESENT_TRAY_OPEN));
}

#[test]
fn eject_is_refused_while_prevented_and_empties_the_unit_when_the_drive_agrees() {
    let mut target = optical(64);
    for prevent in [1, 3] {
        assert_eq!(send(&mut target, &[0x1E, 0, 0, 0, prevent, 0]), Answer::Good);
        assert!(target.unit(0).unwrap().prevented());
        assert_eq!(send(&mut target, &EJECT), Answer::Check(MEDIUM_REMOVAL_PREVENTED));
        assert_eq!(send(&mut target, &[0x1E, 0, 0, 0, prevent & 2, 0]), Answer::Good);
    }
    assert_eq!(finish(&mut target, &EJECT, Err(WRITE_ERROR)), Status::CheckCondition);
    assert!(target.unit(0).unwrap().medium().is_some(), "a failed eject leaves the medium in");
    assert_eq!(finish(&mut target, &EJECT, Ok(())), Status::Good);
    assert_eq!(send(&mut target, &TEST_UNIT_READY), Answer::Check(MEDIUM_NOT_PRESENT_TRAY_OPEN));
}

/// MMC-6: ALLOW ends PREVENT, and only PERSISTENT ALLOW ends PERSISTENT PREVENT.
#[test]
fn persistent_prevention_is_a_state_of_its_own_and_a_disk_has_none() {
    let mut target = optical(64);
    send(&mut target, &[0x1E, 0, 0, 0, 3, 0]);
    send(&mut target, &ALLOW);
    assert!(target.unit(0).unwrap().prevented());
    send(&mut target, &[0x1E, 0, 0, 0, 2, 0]);
    assert!(!target.unit(0).unwrap().prevented());
    let mut target = disk(64);
    assert_eq!(send(&mut target, &[0x1E, 0, 0, 0, 3, 0]), Answer::Check(Sense::in_cdb_bit(4, 1)));
}

#[test]
fn a_reset_and_a_forced_removal_end_prevention() {
    let mut target = disk(64);
    send(&mut target, &PREVENT);
    target.bus_reset();
    assert!(!target.unit(0).unwrap().prevented());
    request_sense(&mut target);
    send(&mut target, &PREVENT);
    target.unit_mut(0).unwrap().remove();
    assert!(!target.unit(0).unwrap().prevented());
    assert_eq!(send(&mut target, &TEST_UNIT_READY), Answer::Check(MEDIUM_NOT_PRESENT));
}

#[test]
fn load_brings_a_medium_or_ends_not_ready() {
    let mut target = target(Kind::Optical, None);
    send(&mut target, &EJECT);
    assert_eq!(finish(&mut target, &LOAD, Ok(())), Status::CheckCondition);
    assert_eq!(request_sense(&mut target), (2, 0x3A, 1), "the tray is closed now");
    send(&mut target, &EJECT);
    let mut response = [0; RESPONSE_LEN_MAX];
    let Reply::Media(MediaOp::Load, pending) = target.execute(0, &LOAD, &mut response) else { panic!() };
    target.unit_mut(0).unwrap().insert(disc(64));
    assert_eq!(target.complete(pending, Ok(())), Status::Good);
    assert_eq!(send(&mut target, &TEST_UNIT_READY), Answer::Check(MEDIUM_MAY_HAVE_CHANGED));
    assert_eq!(send(&mut target, &LOAD), Answer::Good, "a closed tray stays closed");
}

#[test]
fn start_and_stop_move_nothing_but_the_cache() {
    let mut target = disk(64);
    assert_eq!(send(&mut target, &[0x1B, 0, 0, 0, 0, 0]), Answer::Media(MediaOp::Flush));
    assert_eq!(send(&mut target, &[0x1B, 1, 0, 0, 1, 0]), Answer::Good);
    let standby = send(&mut target, &[0x1B, 0, 0, 0, 0x32, 0]);
    assert_eq!(standby, Answer::Media(MediaOp::Flush), "STANDBY ignores LOEJ");
    for no_flush in [0x04, 0x34] {
        assert_eq!(send(&mut target, &[0x1B, 0, 0, 0, no_flush, 0]), Answer::Good, "NO_FLUSH");
    }
    target.unit_mut(0).unwrap().remove();
    assert_eq!(send(&mut target, &[0x1B, 0, 0, 0, 1, 0]), Answer::Check(MEDIUM_NOT_PRESENT));
}

#[test]
fn a_medium_that_may_be_removed_holds_all_that_was_written() {
    let mut target = disk(64);
    assert_eq!(send(&mut target, &[0x1E, 0, 0, 0, 1, 0]), Answer::Good);
    assert_eq!(send(&mut target, &[0x1E, 0, 0, 0, 0, 0]), Answer::Media(MediaOp::Flush));
    assert!(!target.unit(0).unwrap().prevented(), "whatever becomes of the flush");
    assert_eq!(send(&mut optical(64), &[0x1E, 0, 0, 0, 0, 0]), Answer::Good);
}

/// libiscsi's StartStopUnit.PwrCnd: with a power condition, whichever, LOEJ does not eject, and the unit stays ready.
#[test]
fn no_power_condition_ejects_or_stops_the_unit() {
    for mut target in [disk(64), optical(64)] {
        for condition in 1..16 {
            let answer = send(&mut target, &[0x1B, 1, 0, 0, condition << 4 | 0x02, 0]);
            assert!(matches!(answer, Answer::Good | Answer::Media(MediaOp::Flush)), "{answer:?}");
            assert_eq!(send(&mut target, &TEST_UNIT_READY), Answer::Good);
        }
    }
}

/// SPC-4, control mode page: D_SENSE is for the sense data of a CHECK CONDITION. Without one, DESC alone decides.
#[test]
fn d_sense_asks_for_descriptor_format_in_the_sense_data_of_a_failed_command() {
    let mut target = disk(64);
    target.unit_mut(0).unwrap().modes.descriptor_sense = true;
    send(&mut target, &[0x28, 0, 0, 0, 1, 0, 0, 0, 1, 0]);
    assert_eq!(data(&mut target, &[0x03, 0, 0, 0, 18, 0]), [0x72, 5, 0x21, 0, 0, 0, 0, 0]);
    assert_eq!(data(&mut target, &[0x03, 0, 0, 0, 18, 0])[..3], [0x70, 0, 0]);
    assert_eq!(data(&mut target, &[0x03, 1, 0, 0, 18, 0]), [0x72, 0, 0, 0, 0, 0, 0, 0]);
    send(&mut target, &[0x28, 0, 0, 0, 1, 0, 0, 0, 1, 0]);
    target.bus_reset();
    send(&mut target, &TEST_UNIT_READY);
    assert_eq!(data(&mut target, &[0x03, 0, 0, 0, 18, 0])[..3], [0x70, 0, 6], "a reset ends it");
}

#[test]
fn the_kind_changes_only_while_the_unit_is_empty() {
    let mut target = disk(64);
    let unit = target.unit_mut(0).unwrap();
    assert_eq!(unit.set_kind(Kind::Optical, identity()), Err(Occupied));
    unit.remove();
    unit.set_kind(Kind::Optical, identity()).unwrap();
    assert_eq!(send(&mut target, &TEST_UNIT_READY), Answer::Check(INQUIRY_DATA_CHANGED));
    assert_eq!(data(&mut target, &[0x12, 0, 0, 0, 36, 0])[0], 0x05);
}

#[test]
#[cfg(debug_assertions)]
#[should_panic(expected = "a command of LUN 0 was dropped unanswered")]
fn a_dropped_command_goes_off() {
    let mut target = disk(64);
    let mut response = [0; RESPONSE_LEN_MAX];
    drop(target.execute(0, &[0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0], &mut response));
}

/// SPC-4 §4.5; what Linux makes of a flush that ends with a deferred error, `scsi_io_completion_nz_result` of its scsi_lib.c shows.
#[test]
fn an_error_of_before_is_deferred_but_to_the_command_that_stores_what_was_written_before() {
    let lost = Sense::new(SenseKey::MediumError, 0x0C, 0);
    let synchronize_16 = [&[0x91][..], &[0; 15]].concat();
    let tells: [(&[u8], Sense); 3] = [
        (&TEST_UNIT_READY, lost.deferred()),
        (&[0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0], lost),
        (&synchronize_16, lost),
    ];
    for (cdb, told) in tells {
        let mut target = disk(64);
        target.unit_mut(0).unwrap().defer(lost);
        assert_eq!(send(&mut target, cdb), Answer::Check(told));
        assert_eq!(send(&mut target, &TEST_UNIT_READY), Answer::Good, "told once");
    }
}
