//! MODE SELECT: lists that change nothing, or only what can be changed, pass.

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
    let status = match target.parameters(pending, list) {
        ListReply::Status(status) => status,
        ListReply::Media(op, pending) => {
            assert_eq!(op, MediaOp::Flush);
            target.complete(pending, Ok(()))
        }
    };
    match status {
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

/// Page, byte in it, bit: WCE (SBC-3), D_SENSE, SWP (SPC-4).
const CHANGEABLE: [(u8, usize, u8); 3] = [(0x08, 2, 0x04), (0x0A, 2, 0x04), (0x0A, 4, 0x08)];

#[test]
fn every_changed_bit_of_a_page_is_refused_at_its_byte_unless_it_may_change() {
    let mut target = disk(64);
    for page in [0x01, 0x08, 0x0A, 0x1C] {
        let mut list = data(&mut target, &[0x1A, 8, page, 0, 252, 0]);
        list[0] = 0;
        for (at, bit) in (5..list.len()).flat_map(|at| (0..8).map(move |bit| (at, bit))) {
            let mut changed = list.clone();
            changed[at] ^= 1 << bit;
            let before = target.unit(0).unwrap().modes;
            if CHANGEABLE.contains(&(page, at - 4, 1 << bit)) {
                assert_eq!(select_6(&mut target, &changed), Ok(()));
                assert_eq!(data(&mut target, &[0x1A, 8, page, 0, 252, 0])[at], changed[at]);
                assert_eq!(select_6(&mut target, &list), Ok(()));
            } else {
                // A longer page runs past the end of the list.
                let longer = at == 5 && changed[5] > list[5];
                let at = Sense::in_parameters(at);
                let expected = if longer { PARAMETER_LIST_LENGTH_ERROR } else { at };
                assert_eq!(select_6(&mut target, &changed), Err(expected));
            }
            assert_eq!(target.unit(0).unwrap().modes, before);
        }
    }
}

#[test]
fn a_list_with_one_wrong_page_changes_nothing() {
    let mut target = disk(64);
    let mut list = data(&mut target, &[0x1A, 8, 0x3F, 0, 252, 0]);
    list[0] = 0;
    // WCE off, and a bit of the page behind it.
    list[4 + 12 + 2] = 0;
    list[4 + 12 + 20 + 8] = 1;
    assert_eq!(select_6(&mut target, &list), Err(Sense::in_parameters(44)));
    assert_eq!(data(&mut target, &[0x1A, 8, 0x08, 0, 252, 0])[6], 0x04);
}

/// The list that Linux' sd sends for `echo "write through" > cache_type`, and Windows for "quick removal".
#[test]
fn without_write_cache_every_write_is_durable_until_a_reset() {
    let mut target = disk(64);
    let mut list = data(&mut target, &[0x1A, 8, 0x08, 0, 192, 0]);
    list[..3].fill(0);
    list[6] = 0;
    let cached = |target: &mut Target, stored: Result<(), Sense>| {
        let mut response = [0; RESPONSE_LEN_MAX];
        let cdb = [0x15, 0x10, 0, 0, 24, 0];
        let Reply::Parameters { pending, .. } = target.execute(0, &cdb, &mut response) else { panic!() };
        match target.parameters(pending, &list) {
            ListReply::Media(MediaOp::Flush, pending) => target.complete(pending, stored),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(cached(&mut target, Err(WRITE_ERROR)), Status::CheckCondition);
    assert_eq!(request_sense(&mut target), (3, 0x0C, 0));
    assert_eq!(cached(&mut target, Ok(())), Status::Good, "it is tried again, though it is off already");
    let write = |fua| Answer::Media(MediaOp::Write { range: range(1, 1), fua });
    for cdb in [&[0x0A, 0, 0, 1, 1, 0][..], &[0x2A, 0, 0, 0, 0, 1, 0, 0, 1, 0]] {
        assert_eq!(send(&mut target, cdb), write(true));
    }
    assert_eq!(send(&mut target, &TEST_UNIT_READY), Answer::Good, "the sender is not told");
    assert_eq!(data(&mut target, &[0x1A, 8, 0x88, 0, 192, 0])[6], 0x04, "the default is as it was");
    target.bus_reset();
    send(&mut target, &TEST_UNIT_READY);
    assert_eq!(send(&mut target, &[0x0A, 0, 0, 1, 1, 0]), write(false));
}

/// libiscsi's ModeSense6.Control-SWP.
#[test]
fn software_write_protection_refuses_writes_and_still_stores_earlier_ones() {
    let mut target = disk(64);
    let mut list = data(&mut target, &[0x1A, 8, 0x0A, 0, 252, 0]);
    list[0] = 0;
    list[8] = 0x08;
    assert_eq!(select_6(&mut target, &list), Ok(()));
    assert_eq!(data(&mut target, &[0x1A, 8, 0x0A, 0, 252, 0])[2], 0x90, "WP");
    assert_eq!(send(&mut target, &[0x2A, 0, 0, 0, 0, 1, 0, 0, 1, 0]), Answer::Check(WRITE_PROTECTED));
    assert!(matches!(send(&mut target, &[0x28, 0, 0, 0, 0, 1, 0, 0, 1, 0]), Answer::Media(_)));
    let flush = Answer::Media(MediaOp::Flush);
    assert_eq!(send(&mut target, &[0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0]), flush);
}

#[test]
fn a_list_cut_short_anywhere_but_between_pages_is_a_length_error() {
    let mut target = disk(64);
    let mut list = data(&mut target, &[0x1A, 0, 0x3F, 0, 252, 0]);
    list[0] = 0;
    // Header with descriptor, then pages 01h, 08h, 0Ah and 1Ch.
    let boundaries = [12, 24, 44, 56, 68];
    for len in 1..=list.len() {
        let expected = if boundaries.contains(&len) { Ok(()) } else { Err(PARAMETER_LIST_LENGTH_ERROR) };
        assert_eq!(select_6(&mut target, &list[..len]), expected, "{len} bytes");
    }
}

#[test]
fn unknown_pages_subpages_and_other_capacities_are_refused() {
    let mut target = disk(64);
    assert_eq!(select_6(&mut target, &[0, 0, 0, 0, 0x1B, 0]), Err(Sense::in_parameters(4)));
    assert_eq!(select_6(&mut target, &[0, 0, 0, 0, 0x48, 0]), Err(Sense::in_parameters(4)));
    let resize = [0, 0, 0, 8, 0, 0, 0, 65, 0, 0, 2, 0];
    assert_eq!(select_6(&mut target, &resize), Err(Sense::in_parameters(7)));
    let other_block_length = [0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 16, 0];
    assert_eq!(select_6(&mut target, &other_block_length), Err(Sense::in_parameters(10)));
    // SBC-3: no number, and the largest, leave the capacity as it is.
    for count in [0, 0xFF] {
        let same = [0, 0, 0, 8, count, count, count, count, 0, 0, 2, 0];
        assert_eq!(select_6(&mut target, &same), Ok(()));
    }
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
