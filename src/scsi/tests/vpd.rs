//! Vital product data.

use super::*;
use crate::scsi::sense::*;

fn page(target: &mut Target, code: u8) -> Vec<u8> {
    data(target, &[0x12, 1, code, 0, 252, 0])
}

/// libiscsi's Inquiry.SupportedVPD reads every page that is listed.
#[test]
fn every_listed_page_can_be_read_and_no_other() {
    for (mut target, listed) in
        [(disk(64), vec![0x00, 0x80, 0x83, 0xB0, 0xB1, 0xB2]), (optical(64), vec![0x00, 0x80, 0x83])]
    {
        let list = page(&mut target, 0x00);
        assert_eq!(list[1..4], [0x00, 0, u8::try_from(listed.len()).unwrap()]);
        assert_eq!(list[4..], listed);
        for code in 0..=0xFF {
            match send(&mut target, &[0x12, 1, code, 0, 252, 0]) {
                Answer::Data(bytes) => {
                    assert!(listed.contains(&code));
                    assert_eq!((bytes[1], usize::from(bytes[3])), (code, bytes.len() - 4));
                }
                other => {
                    assert!(!listed.contains(&code));
                    assert_eq!(other, Answer::Check(Sense::in_cdb(2)));
                }
            }
        }
    }
}

#[test]
fn the_serial_number_is_told_as_it_is() {
    assert_eq!(page(&mut disk(64), 0x80), *b"\x00\x80\x00\x0C0123456789AB");
}

/// `sg_vpd --inhex` reads: NAA, locally assigned, 0x31a0f6d7f11c6752; T10 vendor identification "RINGDRV ", "Virtual Disk", serial
/// number; SCSI name string naa.31A0F6D7F11C6752; all of the addressed logical unit.
#[test]
fn a_unit_has_three_names() {
    let names = page(&mut disk(64), 0x83);
    assert_eq!(names[..4], [0x00, 0x83, 0, 12 + 40 + 28]);
    assert_eq!(names[4..16], [0x01, 0x03, 0, 8, 0x31, 0xA0, 0xF6, 0xD7, 0xF1, 0x1C, 0x67, 0x52]);
    assert_eq!(names[16..56], *b"\x02\x01\x00\x24RINGDRV Virtual Disk    0123456789AB");
    assert_eq!(names[56..], *b"\x03\x08\x00\x18naa.31A0F6D7F11C6752\0\0\0\0");
}

#[test]
fn units_with_other_serial_numbers_have_other_names_and_the_same_one_every_time() {
    let name = |serial: &str| {
        let identity = Identity::new("RINGDRV", "Virtual Disk", "0100", serial).unwrap();
        let mut target = Target::new(vec![Unit::new(Kind::Disk, identity)]);
        page(&mut target, 0x83)[8..16].to_vec()
    };
    let mut names: Vec<_> = (0..1000).map(|serial| name(&serial.to_string())).collect();
    assert!(names.iter().all(|name| name[0] >> 4 == 3), "locally assigned");
    assert_eq!(name("7"), names[7]);
    names.sort();
    names.dedup();
    assert_eq!(names.len(), 1000);
}

/// Offsets and lengths of SBC-3's table; `sg_vpd --inhex` reads them so. libiscsi's Inquiry.BlockLimits wants page length 3Ch, and of a
/// unit with UNMAP both of its limits, within a million.
#[test]
fn block_limits_offer_unmap_only_where_the_medium_is_thin() {
    let mut target = disk(64);
    let limits = page(&mut target, 0xB0);
    assert_eq!(limits[..4], [0x00, 0xB0, 0, 0x3C]);
    let field = |bytes: &[u8], at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap());
    assert_eq!((field(&limits, 20), field(&limits, 24), field(&limits, 28)), (0x10_0000, 255, 8));
    let thick = Medium { thin: false, ..disk_medium(64) };
    target.unit_mut(0).unwrap().insert(thick);
    send(&mut target, &TEST_UNIT_READY);
    let limits = page(&mut target, 0xB0);
    assert_eq!(limits[20..36], [0; 16]);
    target.unit_mut(0).unwrap().remove();
    assert_eq!(page(&mut target, 0xB0), limits, "without a medium nothing is promised");
}

/// SBC-3: rate 0001h does not rotate. `sg_vpd --inhex` reads "Non-rotating medium (e.g. solid state)".
#[test]
fn nothing_rotates() {
    let characteristics = page(&mut disk(64), 0xB1);
    assert_eq!(characteristics[..6], [0x00, 0xB1, 0, 0x3C, 0x00, 0x01]);
    assert_eq!(characteristics[6..], [0; 58]);
}

/// `sg_vpd --inhex` reads of the first: LBPU, LBPWS, LBPWS10 and LBPRZ 1, ANC_SUP 0, thin provisioned.
#[test]
fn provisioning_is_thin_where_the_medium_is() {
    let mut target = disk(64);
    assert_eq!(page(&mut target, 0xB2), [0x00, 0xB2, 0, 4, 0, 0xE4, 0x02, 0]);
    target.unit_mut(0).unwrap().insert(Medium { thin: false, ..disk_medium(64) });
    assert_eq!(page(&mut target, 0xB2), [0x00, 0xB2, 0, 4, 0, 0, 0, 0]);
}

/// SPC-4, incorrect logical unit numbers: the peripheral qualifier says so in every page.
#[test]
fn a_missing_unit_has_only_the_list_of_pages() {
    let mut target = disk(64);
    let missing = |target: &mut Target, code| send_to(target, 5, &[0x12, 1, code, 0, 252, 0]);
    assert_eq!(missing(&mut target, 0x00), Answer::Data(vec![0x7F, 0x00, 0, 1, 0x00]));
    assert_eq!(missing(&mut target, 0x83), Answer::Check(LOGICAL_UNIT_NOT_SUPPORTED));
}
