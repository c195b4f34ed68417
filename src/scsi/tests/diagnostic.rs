//! SEND DIAGNOSTIC, RECEIVE DIAGNOSTIC RESULTS, LOG SENSE.

use super::*;

#[test]
fn the_default_self_test_passes_and_there_is_no_other() {
    let mut target = disk(64);
    assert_eq!(send(&mut target, &[0x1D, 0x04, 0, 0, 0, 0]), Answer::Good);
    assert_eq!(send(&mut target, &[0x1D, 0x10, 0, 0, 0, 0]), Answer::Good);
    for code in 1..8 {
        assert_eq!(send(&mut target, &[0x1D, code << 5, 0, 0, 0, 0]), Answer::Check(Sense::in_cdb_bit(1, 7)));
    }
    assert_eq!(send(&mut target, &[0x1D, 0x10, 0, 0, 4, 0]), Answer::Check(Sense::in_cdb(3)));
}

/// SPC-4, supported diagnostic pages: page code 00h, one page.
#[test]
fn the_only_diagnostic_page_is_the_list() {
    let mut target = disk(64);
    assert_eq!(data(&mut target, &[0x1C, 1, 0, 0, 252, 0]), [0, 0, 0, 1, 0]);
    assert_eq!(data(&mut target, &[0x1C, 0, 0, 0, 252, 0]), [0, 0, 0, 1, 0]);
    assert_eq!(send(&mut target, &[0x1C, 1, 0x40, 0, 252, 0]), Answer::Check(Sense::in_cdb(2)));
}

/// `sg_logs --inhex` reads "Supported log pages" and "Supported log pages and subpages": 0x00 and 0x00,0xff.
#[test]
fn the_only_log_pages_are_the_lists() {
    let mut target = disk(64);
    let mut log = |page: u8, subpage: u8| send(&mut target, &[0x4D, 0, page, subpage, 0, 0, 0, 0, 252, 0]);
    assert_eq!(log(0x40, 0x00), Answer::Data(vec![0x00, 0, 0, 1, 0x00]));
    assert_eq!(log(0x40, 0xFF), Answer::Data(vec![0x40, 0xFF, 0, 4, 0x00, 0x00, 0x00, 0xFF]));
    assert_eq!(log(0x4D, 0x00), Answer::Check(Sense::in_cdb_bit(2, 5)), "no temperature");
    assert_eq!(log(0x40, 0x01), Answer::Check(Sense::in_cdb(3)));
}
