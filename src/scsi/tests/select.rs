//! MODE SELECT: lists that change nothing pass.

use super::*;
use crate::scsi::sense::*;

const SELECT_6: [u8; 6] = [0x15, 0x10, 0, 0, 0, 0];

fn select_6(target: &mut Target, list: &[u8]) -> Result<(), Sense> {
    let mut cdb = SELECT_6;
    cdb[4] = u8::try_from(list.len()).unwrap();
    submit(target, &cdb, list)
}

fn submit(target: &mut Target, cdb: &[u8], list: &[u8]) -> Result<(), Sense> {
    let mut response = [0; RESPONSE_LEN_MAX];
    let Reply::Parameters { len, pending } = target.execute(0, cdb, &mut response) else { panic!() };
    assert_eq!(usize::try_from(len).unwrap(), list.len());
    match target.parameters(pending, list) {
        Status::Good => Ok(()),
        Status::CheckCondition => Err(target.unit(0).unwrap().last_sense().unwrap()),
    }
}

#[test]
fn what_mode_sense_gave_can_be_sent_back() {
    let mut target = disk(64);
    let mut all = data(&mut target, &[0x1A, 0, 0x3F, 0, 252, 0]);
    all[0] = 0;
    assert_eq!(select_6(&mut target, &all), Ok(()));
    let mut all = data(&mut target, &[0x5A, 0x10, 0x3F, 0, 0, 0, 0, 1, 0, 0]);
    all[1] = 0;
    let cdb = [0x55, 0x10, 0, 0, 0, 0, 0, 0, u8::try_from(all.len()).unwrap(), 0];
    assert_eq!(submit(&mut target, &cdb, &all), Ok(()));
}

#[test]
fn every_changed_bit_of_a_page_is_refused_at_its_byte() {
    let mut target = disk(64);
    let mut list = data(&mut target, &[0x1A, 8, 0x08, 0, 252, 0]);
    list[0] = 0;
    for at in 6..list.len() {
        for bit in 0..8 {
            let mut list = list.clone();
            list[at] ^= 1 << bit;
            assert_eq!(select_6(&mut target, &list), Err(Sense::in_parameters(at)));
        }
    }
}

#[test]
fn a_list_cut_short_anywhere_but_between_pages_is_a_length_error() {
    let mut target = disk(64);
    let mut list = data(&mut target, &[0x1A, 0, 0x3F, 0, 252, 0]);
    list[0] = 0;
    // Header with descriptor, then pages 01h, 08h and 0Ah.
    let boundaries = [12, 24, 44, 56];
    for len in 1..=list.len() {
        let expected = if boundaries.contains(&len) { Ok(()) } else { Err(PARAMETER_LIST_LENGTH_ERROR) };
        assert_eq!(select_6(&mut target, &list[..len]), expected, "{len} bytes");
    }
}

#[test]
fn unknown_pages_subpages_and_other_capacities_are_refused() {
    let mut target = disk(64);
    assert_eq!(select_6(&mut target, &[0, 0, 0, 0, 0x1C, 0]), Err(Sense::in_parameters(4)));
    assert_eq!(select_6(&mut target, &[0, 0, 0, 0, 0x48, 0]), Err(Sense::in_parameters(4)));
    let resize = [0, 0, 0, 8, 0, 0, 0, 65, 0, 0, 2, 0];
    assert_eq!(select_6(&mut target, &resize), Err(Sense::in_parameters(7)));
}

#[test]
fn saving_vendor_pages_and_endless_lists_are_refused_and_nothing_is_accepted() {
    let mut target = disk(64);
    assert_eq!(send(&mut target, &SELECT_6), Answer::Good);
    assert_eq!(send(&mut target, &[0x15, 0x11, 0, 0, 4, 0]), Answer::Check(Sense::in_cdb_bit(1, 0)));
    assert_eq!(send(&mut target, &[0x15, 0x00, 0, 0, 4, 0]), Answer::Check(Sense::in_cdb_bit(1, 4)));
    let endless = [0x55, 0x10, 0, 0, 0, 0, 0, 0xFF, 0xFF, 0];
    assert_eq!(send(&mut target, &endless), Answer::Check(PARAMETER_LIST_LENGTH_ERROR));
}
