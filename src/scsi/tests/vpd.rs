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
