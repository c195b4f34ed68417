//! INQUIRY, REPORT LUNS, MODE SENSE, REPORT SUPPORTED OPERATION CODES.

use super::*;
use crate::scsi::opcodes::{self, TABLE};
use crate::scsi::sense::*;

/// Read with `sg_inq --inhex`: SPC-4, RMB=1, additional length 91, and the version descriptors "SAM-5 (no version claimed)",
/// "SPC-4 (no version claimed)", "SBC-3 (no version claimed)", "USB Mass Storage Class Bulk-Only Transport, Revision 1.0".
#[test]
fn a_disk_says_what_it_is() {
    let inquiry = data(&mut disk(64), &[0x12, 0, 0, 0, 0xFF, 0]);
    assert_eq!(inquiry.len(), 96);
    assert_eq!(inquiry[..8], [0x00, 0x80, 0x06, 0x02, 91, 0, 0, 0]);
    assert_eq!(&inquiry[8..36], b"RINGDRV Virtual Disk    0100");
    assert_eq!(inquiry[58..66], [0x00, 0xA0, 0x04, 0x60, 0x04, 0xC0, 0x17, 0x30]);
}

/// As above; `sg_inq` reads the third descriptor as "MMC-6 (no version claimed)".
#[test]
fn an_optical_drive_says_what_it_is() {
    let inquiry = data(&mut optical(64), &[0x12, 0, 0, 0, 0xFF, 0]);
    assert_eq!(inquiry[..5], [0x05, 0x80, 0x06, 0x02, 91]);
    assert_eq!(inquiry[58..66], [0x00, 0xA0, 0x04, 0x60, 0x04, 0xE0, 0x17, 0x30]);
}

#[test]
fn inquiry_is_cut_to_the_allocation_length_and_its_length_field_is_not() {
    let mut target = disk(64);
    let whole = data(&mut target, &[0x12, 0, 0, 0, 96, 0]);
    for allocation in 1..96 {
        assert_eq!(data(&mut target, &[0x12, 0, 0, 0, allocation, 0]), whole[..usize::from(allocation)]);
    }
    assert_eq!(send(&mut target, &[0x12, 0, 0, 0, 0, 0]), Answer::Good);
    assert_eq!(data(&mut target, &[0x12, 0, 0, 0xFF, 0xFF, 0]), whole);
}

#[test]
fn inquiry_refuses_a_page_without_evpd() {
    let mut target = disk(64);
    assert_eq!(send(&mut target, &[0x12, 0, 0x80, 0, 252, 0]), Answer::Check(Sense::in_cdb(2)));
    assert_eq!(send(&mut target, &[0x12, 2, 0, 0, 252, 0]), Answer::Check(Sense::in_cdb_bit(1, 1)));
}

#[test]
fn identities_are_checked_and_padded() {
    let long = Identity::new("ninechars", "p", "1", "s").unwrap_err();
    assert_eq!(long.to_string(), "vendor \"ninechars\" has 9 characters; use at most 8");
    assert!(matches!(Identity::new("v", "pröduct", "1", "s"), Err(InvalidIdentity::Characters { .. })));
    assert!(matches!(Identity::new("v", "p", "1\n", "s"), Err(InvalidIdentity::Characters { .. })));
    assert_eq!(Identity::new("v", "p", "1", " "), Err(InvalidIdentity::NoSerial));
    assert!(Identity::new("v", "p", "1", &"s".repeat(65)).is_err());
    assert_eq!(Identity::new("v", "p", "1", "s").unwrap().vendor(), b"v       ");
}

/// SPC-4, REPORT LUNS parameter data; peripheral device addressing (SAM-5).
#[test]
fn report_luns_lists_every_unit() {
    let units = (0..16).map(|_| Unit::new(Kind::Disk, identity())).collect();
    let mut target = Target::new(units);
    let luns = data(&mut target, &[0xA0, 0, 2, 0, 0, 0, 0, 0, 1, 0, 0, 0]);
    assert_eq!(luns.len(), 8 + 16 * 8);
    assert_eq!(luns[..8], [0, 0, 0, 128, 0, 0, 0, 0]);
    assert_eq!(luns[8 + 15 * 8..], [0, 15, 0, 0, 0, 0, 0, 0]);
    assert_eq!(data(&mut target, &[0xA0, 0, 1, 0, 0, 0, 0, 0, 1, 0, 0, 0]), [0; 8]);
    assert_eq!(send(&mut target, &[0xA0, 0, 3, 0, 0, 0, 0, 0, 1, 0, 0, 0]), Answer::Check(Sense::in_cdb(2)));
}

/// What Linux asks of a disk: page 3Fh for WP (bit 7 of the device-specific parameter, DPOFUA is bit 4) and page 08h for WCE
/// (bit 2 of byte 2), as SBC-3's tables have them.
#[test]
fn linux_learns_of_write_protection_and_of_the_cache() {
    let mut target = disk(0x0102_0304);
    let all = data(&mut target, &[0x1A, 0, 0x3F, 0, 192, 0]);
    assert_eq!(all[..12], [67, 0, 0x10, 8, 0x01, 0x02, 0x03, 0x04, 0, 0x00, 0x02, 0x00]);
    assert_eq!(all.len(), 4 + 8 + 12 + 20 + 12 + 12);
    let cache = data(&mut target, &[0x1A, 0x08, 0x08, 0, 4 + 20, 0]);
    assert_eq!(cache[..7], [23, 0, 0x10, 0, 0x08, 0x12, 0x04]);
    target.unit_mut(0).unwrap().set_write_protected(true);
    request_sense(&mut target);
    assert_eq!(data(&mut target, &[0x1A, 0, 0x3F, 0, 4, 0])[2], 0x90);
    target.unit_mut(0).unwrap().remove();
    assert_eq!(data(&mut target, &[0x1A, 0, 0x3F, 0, 4, 0]), [59, 0, 0x10, 0], "no block descriptor");
}

/// SBC-3: more blocks than 32 bits hold are told as FFFFFFFFh, or in full with LLBAA.
#[test]
fn block_descriptors_hold_large_disks() {
    let mut target = disk(0x01_0203_0405);
    let short = data(&mut target, &[0x5A, 0, 0x08, 0, 0, 0, 0, 0, 16, 0]);
    assert_eq!(short, [0, 34, 0, 0x10, 0, 0, 0, 8, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0x00, 0x02, 0x00]);
    let long = data(&mut target, &[0x5A, 0x10, 0x08, 0, 0, 0, 0, 0, 24, 0]);
    assert_eq!(long[..8], [0, 42, 0, 0x10, 1, 0, 0, 16]);
    assert_eq!(long[8..], [0, 0, 0, 1, 2, 3, 4, 5, 0, 0, 0, 0, 0, 0, 2, 0]);
}

/// SPC-4, page control. WCE is bit 2 of byte 2 of page 08h (SBC-3); D_SENSE is bit 2 of byte 2, SWP bit 3 of byte 4 of page 0Ah;
/// DEXCPT is bit 3 of byte 2 of page 1Ch. `sg_modes --inhex` reads them so.
#[test]
fn mode_values_are_current_changeable_and_default_and_never_saved() {
    let mut target = disk(64);
    let mut page = |code: u8| {
        let bytes = data(&mut target, &[0x1A, 0x08, code, 0, 252, 0]);
        let set =
            (6..bytes.len()).filter(|at| bytes[*at] != 0).map(|at| (at - 4, bytes[at])).collect::<Vec<_>>();
        (bytes[4], usize::from(bytes[5]), set)
    };
    for control in [0x00, 0x80] {
        assert_eq!(page(control | 0x01), (0x01, 10, vec![]));
        assert_eq!(page(control | 0x08), (0x08, 18, vec![(2, 0x04)]));
        assert_eq!(page(control | 0x0A), (0x0A, 10, vec![]));
        assert_eq!(page(control | 0x1C), (0x1C, 10, vec![(2, 0x08)]));
    }
    assert_eq!(page(0x41), (0x01, 10, vec![]));
    assert_eq!(page(0x48), (0x08, 18, vec![(2, 0x04)]));
    assert_eq!(page(0x4A), (0x0A, 10, vec![(2, 0x04), (4, 0x08)]));
    assert_eq!(page(0x5C), (0x1C, 10, vec![]));
    assert_eq!(
        send(&mut target, &[0x1A, 0, 0xC8, 0, 252, 0]),
        Answer::Check(SAVING_PARAMETERS_NOT_SUPPORTED)
    );
    assert_eq!(send(&mut target, &[0x1A, 0, 0x08, 1, 252, 0]), Answer::Check(Sense::in_cdb(3)));
}

/// Linux (sr) reads from page 2Ah: 29h in byte 6 is a tray (bits 7-5 = 1) that ejects (bit 3) and locks (bit 0); bit 1 tells
/// that it is locked.
#[test]
fn linux_learns_that_the_drive_has_a_tray_and_a_lock() {
    let mut target = optical(64);
    let page = data(&mut target, &[0x5A, 0, 0x2A, 0, 0, 0, 0, 0, 128, 0]);
    assert_eq!(page[..8], [0, 38, 0, 0, 0, 0, 0, 0]);
    assert_eq!(page[8..16], [0x2A, 30, 0x1B, 0, 0, 0, 0x29, 0]);
    send(&mut target, &PREVENT);
    assert_eq!(data(&mut target, &[0x5A, 0, 0x2A, 0, 0, 0, 0, 0, 128, 0])[14], 0x2B);
}

#[test]
fn an_empty_tray_shows_in_the_medium_type() {
    let mut target = target(Kind::Optical, None);
    assert_eq!(data(&mut target, &[0x1A, 0, 0x2A, 0, 4, 0])[1], 0x70);
    send(&mut target, &EJECT);
    assert_eq!(data(&mut target, &[0x1A, 0, 0x2A, 0, 4, 0])[1], 0x71);
}

/// SPC-4, CDB usage data: the opcode stands for itself, and so does the service action.
#[test]
fn the_opcode_table_is_in_order_and_true_to_itself() {
    for kind in [Kind::Disk, Kind::Optical] {
        let keys: Vec<_> = opcodes::of_kind(kind).map(|row| (row.opcode, row.service_action)).collect();
        assert!(keys.is_sorted_by(|a, b| a < b), "sorted, and no row twice");
    }
    assert!(TABLE.is_sorted_by_key(|row| (row.opcode, row.service_action)));
    for row in TABLE {
        let expected = match row.opcode >> 5 {
            0 => 6,
            1 | 2 => 10,
            4 => 16,
            5 => 12,
            group => panic!("{}: group {group} has no fixed length", row.name),
        };
        assert_eq!(row.cdb_len(), expected, "{}", row.name);
        assert_eq!(row.usage[0], row.opcode, "{}", row.name);
        assert_eq!(row.usage.last(), Some(&if row.opcode == 0x43 { 0xC0 } else { 0 }), "{}", row.name);
    }
}

#[test]
fn an_opcode_that_is_not_listed_is_refused_and_an_unknown_service_action_is_pointed_at() {
    for (kind, mut target) in [(Kind::Disk, disk(64)), (Kind::Optical, optical(64))] {
        let listed: Vec<_> = opcodes::of_kind(kind).map(|row| row.opcode).collect();
        for opcode in (0..=0xFF).filter(|opcode| !listed.contains(opcode)) {
            let cdb = [opcode, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
            assert_eq!(send(&mut target, &cdb), Answer::Check(INVALID_COMMAND_OPERATION_CODE));
        }
        let cdb = [0x9E, 0x11, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 32, 0, 0];
        assert_eq!(send(&mut target, &cdb), Answer::Check(Sense::in_cdb_bit(1, 4)));
    }
}

/// SPC-4, REPORT SUPPORTED OPERATION CODES.
#[test]
fn supported_operation_codes_are_told_in_all_four_ways() {
    let mut target = disk(64);
    let mut ask = |options: u8, opcode: u8, action: u8| {
        send(&mut target, &[0xA3, 0x0C, options, opcode, 0, action, 0, 0, 0x20, 0, 0, 0])
    };
    let Answer::Data(all) = ask(0, 0, 0) else { panic!() };
    let rows = opcodes::of_kind(Kind::Disk).count();
    assert_eq!(all.len(), 4 + rows * 8);
    assert_eq!(u32::from_be_bytes([all[0], all[1], all[2], all[3]]), u32::try_from(rows * 8).unwrap());
    assert!(all[4..].chunks(8).any(|row| row == [0x9E, 0, 0x00, 0x10, 0, 1, 0, 16]));
    let Answer::Data(timed) = ask(0x80, 0, 0) else { panic!() };
    assert_eq!(timed.len(), 4 + rows * 20);
    let write = [0, 3, 0, 10, 0x2A, 0xF8, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0xFF, 0xFF, 0];
    assert_eq!(ask(1, 0x2A, 0), Answer::Data(write.to_vec()));
    assert_eq!(ask(3, 0x2A, 0), Answer::Data(write.to_vec()));
    assert_eq!(ask(3, 0x2A, 1), Answer::Data(vec![0, 1, 0, 0]));
    assert_eq!(ask(1, 0x43, 0), Answer::Data(vec![0, 1, 0, 0]), "READ TOC is not for disks");
    assert_eq!(ask(1, 0x9E, 0), Answer::Check(Sense::in_cdb(3)));
    assert_eq!(ask(2, 0x2A, 0), Answer::Check(Sense::in_cdb(3)));
    assert!(matches!(ask(2, 0x9E, 0x10), Answer::Data(bytes) if bytes.len() == 20));
    assert_eq!(ask(2, 0x9E, 0x11), Answer::Data(vec![0, 1, 0, 0]));
    assert_eq!(ask(4, 0, 0), Answer::Check(Sense::in_cdb_bit(2, 2)));
    let Answer::Data(timed) = ask(0x81, 0x00, 0) else { panic!() };
    assert_eq!(timed, [0, 0x83, 0, 6, 0, 0, 0, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
}

#[test]
fn commands_have_names_for_messages() {
    assert_eq!(name_of(&[0x28]), "READ(10)");
    assert_eq!(name_of(&[0x9E, 0x10]), "READ CAPACITY(16)");
    assert_eq!(name_of(&[0xFF]), "unknown command");
    assert_eq!(name_of(&[]), "TEST UNIT READY");
}
