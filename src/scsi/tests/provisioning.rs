//! UNMAP, WRITE SAME, GET LBA STATUS, COMPARE AND WRITE, WRITE AND VERIFY, PRE-FETCH, FORMAT UNIT. CDBs and lists are those that
//! sg3_utils 1.46 sends with the options named.

use super::*;
use crate::scsi::sense::*;

const BLOCKS: u64 = 0x1000;

fn thick() -> Target {
    target(Kind::Disk, Some(Medium { thin: false, ..disk_medium(BLOCKS) }))
}

fn protected() -> Target {
    target(Kind::Disk, Some(Medium { write_protected: true, thin: false, ..disk_medium(BLOCKS) }))
}

fn compound(op: Compound) -> Answer {
    Answer::Media(MediaOp::Compound(op))
}

/// `sg_unmap --lba=0x10 --num=8`: the CDB, and the list behind it.
const UNMAP: [u8; 10] = [0x42, 0, 0, 0, 0, 0, 0, 0, 0x18, 0];
const UNMAP_LIST: [u8; 24] =
    [0, 0x16, 0, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 8, 0, 0, 0, 0];

#[test]
fn unmap_is_for_thin_media_that_may_be_written_and_anchors_nothing() {
    assert_eq!(send(&mut disk(BLOCKS), &UNMAP), compound(Compound::Unmap { list_len: 24, durable: false }));
    assert_eq!(send(&mut thick(), &UNMAP), Answer::Check(INVALID_COMMAND_OPERATION_CODE));
    assert_eq!(send(&mut protected(), &UNMAP), Answer::Check(WRITE_PROTECTED));
    let with = |at: usize, byte| {
        let mut cdb = UNMAP;
        cdb[at] = byte;
        send(&mut disk(BLOCKS), &cdb)
    };
    assert_eq!(with(1, 1), Answer::Check(Sense::in_cdb_bit(1, 0)));
    assert_eq!(with(8, 0), Answer::Good, "a list of length zero is no error");
    assert_eq!(with(8, 7), Answer::Check(PARAMETER_LIST_LENGTH_ERROR));
    assert_eq!(with(7, 0xFF), Answer::Check(Sense::in_cdb(7)));
}

#[test]
fn an_unmap_list_is_taken_whole_or_not_at_all() {
    let medium = disk_medium(BLOCKS);
    let list = UnmapList::check(&UNMAP_LIST, &medium).unwrap();
    assert_eq!(
        (list.len(), list.range(&UNMAP_LIST, 0), list.range(&UNMAP_LIST, 1)),
        (1, Some(range(0x10, 8)), None)
    );
    let mut beyond = UNMAP_LIST;
    beyond[14] = 0x10;
    assert_eq!(UnmapList::check(&beyond, &medium), Err(LBA_OUT_OF_RANGE));
    let mut wraps = UNMAP_LIST;
    wraps[8..16].fill(0xFF);
    assert_eq!(UnmapList::check(&wraps, &medium), Err(LBA_OUT_OF_RANGE));
    for len in 0..8 {
        assert_eq!(UnmapList::check(&UNMAP_LIST[..len], &medium), Err(PARAMETER_LIST_LENGTH_ERROR));
    }
    for len in 8..24 {
        assert!(
            UnmapList::check(&UNMAP_LIST[..len], &medium).unwrap().is_empty(),
            "half a descriptor is none"
        );
    }
    // Two descriptors that are too much together; the second's count is at byte 32.
    let large = Medium { blocks: Blocks(1 << 40), ..medium };
    let mut two = UNMAP_LIST.to_vec();
    two.extend_from_slice(&UNMAP_LIST[8..]);
    two[3] = 0x20;
    for at in [16, 32] {
        two[at..at + 4].copy_from_slice(&(limits::UNMAP_BLOCKS_MAX / 2).to_be_bytes());
    }
    assert!(UnmapList::check(&two, &large).is_ok());
    two[35] += 1;
    assert_eq!(UnmapList::check(&two, &large), Err(Sense::in_parameters(32)));
}

#[test]
fn an_unmap_list_of_255_descriptors_is_whole_and_of_256_refused() {
    let medium = disk_medium(BLOCKS);
    let list = |count: u16| {
        let mut list = vec![0; 8];
        list[2..4].copy_from_slice(&(count * 16).to_be_bytes());
        (0..count).for_each(|_| list.extend_from_slice(&UNMAP_LIST[8..]));
        list
    };
    assert_eq!(UnmapList::check(&list(255), &medium).unwrap().len(), 255);
    assert_eq!(UnmapList::check(&list(256), &medium), Err(Sense::in_parameters(2)));
}

/// `sg_write_same --10 --lba=16 --num=8`, and `--16`, with `--unmap` and `--ndob`.
#[test]
fn write_same_takes_one_block_or_none() {
    let ten = [0x41, 0, 0, 0, 0, 0x10, 0, 0, 8, 0];
    let sixteen = |flags| [0x93, flags, 0, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 8, 0, 0];
    let expected = |zeroes, unmap| {
        compound(Compound::WriteSame { range: range(0x10, 8), zeroes, unmap, durable: false })
    };
    assert_eq!(send(&mut disk(BLOCKS), &ten), expected(false, false));
    assert_eq!(send(&mut disk(BLOCKS), &sixteen(0x08)), expected(false, true));
    assert_eq!(send(&mut disk(BLOCKS), &sixteen(0x01)), expected(true, false));
    assert_eq!(send(&mut disk(BLOCKS), &sixteen(0x09)), expected(true, true));
    assert_eq!(send(&mut thick(), &sixteen(0x01)), expected(true, false));
    assert_eq!(send(&mut thick(), &sixteen(0x08)), Answer::Check(Sense::in_cdb_bit(1, 3)), "LBPWS is zero");
    assert_eq!(send(&mut protected(), &sixteen(0x00)), Answer::Check(WRITE_PROTECTED));
    // Protection, ANCHOR, PBDATA, LBDATA.
    for (flags, bit) in [(0x20, 7), (0x10, 4), (0x04, 2), (0x02, 2)] {
        assert_eq!(send(&mut disk(BLOCKS), &sixteen(flags)), Answer::Check(Sense::in_cdb_bit(1, bit)));
    }
}

#[test]
fn write_same_of_no_blocks_too_many_or_beyond_the_end_is_refused() {
    let with = |lba: u64, count: u32| {
        let mut cdb = [0; 16];
        cdb[0] = 0x93;
        cdb[2..10].copy_from_slice(&lba.to_be_bytes());
        cdb[10..14].copy_from_slice(&count.to_be_bytes());
        send(&mut disk(1 << 40), &cdb)
    };
    assert_eq!(with(0, 0), Answer::Check(Sense::in_cdb(10)), "WSNZ");
    assert!(matches!(with(0, limits::WRITE_SAME_BLOCKS_MAX), Answer::Media(_)));
    assert_eq!(with(0, limits::WRITE_SAME_BLOCKS_MAX + 1), Answer::Check(Sense::in_cdb(10)));
    assert_eq!(with(1 << 40, 1), Answer::Check(LBA_OUT_OF_RANGE));
    let ten = [0x41, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    assert_eq!(send(&mut disk(BLOCKS), &ten), Answer::Check(Sense::in_cdb(7)));
}

/// SBC-3, GET LBA STATUS: parameter data length, then LBA, blocks, and the provisioning status in the low bits of byte 20.
#[test]
fn lba_status_is_asked_of_the_drive_and_told_in_24_bytes() {
    let ask = |lba: u64, allocation: u8| {
        let mut cdb = [0x9E, 0x12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, allocation, 0, 0];
        cdb[2..10].copy_from_slice(&lba.to_be_bytes());
        send(&mut disk(BLOCKS), &cdb)
    };
    let status = |len| Answer::Media(MediaOp::LbaStatus { start: Lba(5), len });
    assert_eq!((ask(5, 24), ask(5, 255), ask(5, 7)), (status(24), status(24), status(7)));
    assert_eq!((ask(5, 0), ask(BLOCKS, 24)), (Answer::Good, Answer::Check(LBA_OUT_OF_RANGE)));
    let mut expected = [0; 24];
    (expected[3], expected[15], expected[18], expected[20]) = (20, 5, 1, 1);
    assert_eq!(lba_status(Lba(5), Blocks(256), false), expected);
    assert_eq!(lba_status(Lba(0), Blocks(u64::MAX), true)[16..], [0xFF, 0xFF, 0xFF, 0xFF, 0, 0, 0, 0]);
}

/// `sg_compare_and_write --lba=16 --num=2 --fua`.
#[test]
fn compare_and_write_takes_twice_its_blocks_and_no_more_than_it_may() {
    let cdb = |flags, count| [0x89, flags, 0, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, count, 0, 0];
    let op = Compound::CompareAndWrite { range: range(0x10, 2), fua: true };
    assert_eq!(send(&mut disk(BLOCKS), &cdb(8, 2)), compound(op));
    assert_eq!(op.data_out(BlockSize::B4096), Some(4 * 4096));
    assert_eq!(send(&mut disk(BLOCKS), &cdb(0, 0)), Answer::Good);
    assert_eq!(send(&mut disk(BLOCKS), &cdb(0, 9)), Answer::Check(Sense::in_cdb(13)));
    assert_eq!(send(&mut disk(0x11), &cdb(0, 2)), Answer::Check(LBA_OUT_OF_RANGE));
    assert_eq!(send(&mut protected(), &cdb(0, 1)), Answer::Check(WRITE_PROTECTED));
    assert_eq!(send(&mut disk(BLOCKS), &cdb(0x20, 1)), Answer::Check(Sense::in_cdb_bit(1, 7)));
}

#[test]
fn write_and_verify_compares_whether_asked_to_or_not() {
    for cdb in [
        &[0x2E, 0, 0, 0, 0, 4, 0, 0, 2, 0][..],
        &[0xAE, 0, 0, 0, 0, 4, 0, 0, 0, 2, 0, 0],
        &[0x8E, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 2, 0, 0],
    ] {
        let with = |flags| {
            let mut cdb = cdb.to_vec();
            cdb[1] = flags;
            send(&mut disk(BLOCKS), &cdb)
        };
        let expected = || compound(Compound::WriteAndVerify(range(4, 2)));
        assert_eq!((with(0), with(0x10), with(2)), (expected(), expected(), expected()));
        assert_eq!(
            (with(4), with(6)),
            (Answer::Check(Sense::in_cdb_bit(1, 2)), Answer::Check(Sense::in_cdb_bit(1, 2)))
        );
        assert_eq!(send(&mut protected(), cdb), Answer::Check(WRITE_PROTECTED));
    }
}

#[test]
fn prefetch_of_no_blocks_goes_to_the_end() {
    let prefetch = |lba, count| send(&mut disk(BLOCKS), &[0x34, 0, 0, 0, lba, 0, 0, 0, count, 0]);
    assert_eq!(prefetch(1, 4), Answer::Media(MediaOp::Prefetch(range(0x100, 4))));
    assert_eq!(prefetch(1, 0), Answer::Media(MediaOp::Prefetch(range(0x100, BLOCKS - 0x100))));
    assert_eq!(prefetch(0x10, 0), Answer::Good);
    assert_eq!(prefetch(0x10, 1), Answer::Check(LBA_OUT_OF_RANGE));
}

/// Parameter list headers of `sg_format --format --wait` (FOV and IMMED zero) and of `sg_format --format` (IMMED).
#[test]
fn format_unit_is_accepted_where_it_asks_for_nothing_and_refused_elsewhere() {
    let accept = |long, list: &[u8]| {
        let mut target = disk(BLOCKS);
        let mut response = [0; RESPONSE_LEN_MAX];
        let flags = if long { 0x30 } else { 0x10 };
        match target.execute(0, &[0x04, flags, 0, 0, 0, 0], &mut response) {
            Reply::Parameters { len, pending } => {
                assert_eq!(len, if long { 8 } else { 4 });
                assert!(matches!(target.parameters(pending, list), ListReply::Status(_)));
                target.unit(0).unwrap().last_sense()
            }
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(send(&mut disk(BLOCKS), &[0x04, 0, 0, 0, 0, 0]), Answer::Good);
    assert_eq!((accept(false, &[0; 4]), accept(false, &[0, 2, 0, 0])), (None, None));
    assert_eq!((accept(true, &[0; 8]), accept(true, &[0, 0x82, 0, 0, 0, 0, 0, 0])), (None, None));
    assert_eq!(accept(false, &[0, 0x88, 0, 0]), Some(Sense::in_parameters(1)), "an initialization pattern");
    assert_eq!(accept(false, &[0, 0x40, 0, 0]), Some(Sense::in_parameters(1)), "DPRY without FOV");
    assert_eq!(accept(false, &[0, 0, 0, 8]), Some(Sense::in_parameters(3)), "a defect list");
    assert_eq!(accept(false, &[0, 0, 0]), Some(PARAMETER_LIST_LENGTH_ERROR));
    assert_eq!(send(&mut disk(BLOCKS), &[0x04, 0xC0, 0, 0, 0, 0]), Answer::Check(Sense::in_cdb_bit(1, 7)));
    assert_eq!(send(&mut disk(BLOCKS), &[0x04, 0x08, 0, 0, 0, 0]), Answer::Check(Sense::in_cdb_bit(1, 5)));
    assert_eq!(send(&mut protected(), &[0x04, 0, 0, 0, 0, 0]), Answer::Check(WRITE_PROTECTED));
}

/// SBC-2, READ CAPACITY: without PMI the address must be zero.
#[test]
fn capacity_has_no_address_without_pmi() {
    let ten = |lba, pmi| send(&mut disk(BLOCKS), &[0x25, 0, 0, 0, 0, lba, 0, 0, pmi, 0]);
    let sixteen =
        |lba, pmi| send(&mut disk(BLOCKS), &[0x9E, 0x10, 0, 0, 0, 0, 0, 0, 0, lba, 0, 0, 0, 32, pmi, 0]);
    assert_eq!((ten(1, 1), sixteen(1, 1)), (ten(0, 0), sixteen(0, 0)));
    assert_eq!(ten(1, 0), Answer::Check(Sense::in_cdb(2)));
    assert_eq!(sixteen(1, 0), Answer::Check(Sense::in_cdb(2)));
}

#[test]
fn a_disk_transfers_no_more_blocks_at_once_than_its_limit() {
    for opcode in [0x88, 0x8A, 0x8E] {
        let with = |count: u32| {
            let mut cdb = [0; 16];
            cdb[0] = opcode;
            cdb[10..14].copy_from_slice(&count.to_be_bytes());
            send(&mut disk(1 << 40), &cdb)
        };
        assert!(matches!(with(limits::TRANSFER_BLOCKS_MAX), Answer::Media(_)));
        assert_eq!(with(limits::TRANSFER_BLOCKS_MAX + 1), Answer::Check(Sense::in_cdb(10)));
    }
}
