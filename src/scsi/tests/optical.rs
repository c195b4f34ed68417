//! Optical commands.

use super::*;
use crate::scsi::sense::*;

/// 74 minutes: 333,000 blocks, so the lead-out is at 74:02:00.
const CD: u64 = 333_000;
const DVD: u64 = 2_295_104;
const BD: u64 = 12_219_392;

fn toc(target: &mut Target, msf: bool, format: u8, start: u8) -> Answer {
    send(target, &[0x43, if msf { 2 } else { 0 }, format, 0, 0, 0, start, 0x03, 0x24, 0])
}

/// QEMU, `cdrom_read_toc`, with the lead-out marked as of a data track that may not be copied, as the track is.
#[test]
fn the_table_of_contents_has_one_track_and_the_lead_out() {
    let mut target = optical(CD);
    let track_lba = [0, 0x14, 1, 0, 0, 0, 0, 0];
    let track_msf = [0, 0x14, 1, 0, 0, 0, 2, 0];
    let out_lba = [0, 0x14, 0xAA, 0, 0x00, 0x05, 0x14, 0xC8];
    let out_msf = [0, 0x14, 0xAA, 0, 0, 74, 2, 0];
    for start in [0, 1] {
        let expected = [&[0, 18, 1, 1][..], &track_lba, &out_lba].concat();
        assert_eq!(toc(&mut target, false, 0, start), Answer::Data(expected));
        let expected = [&[0, 18, 1, 1][..], &track_msf, &out_msf].concat();
        assert_eq!(toc(&mut target, true, 0, start), Answer::Data(expected));
    }
    let expected = [&[0, 10, 1, 1][..], &out_lba].concat();
    assert_eq!(toc(&mut target, false, 0, 0xAA), Answer::Data(expected));
    for start in [2, 99, 0xA9, 0xFF] {
        assert_eq!(toc(&mut target, false, 0, start), Answer::Check(Sense::in_cdb(6)));
    }
}

/// QEMU, `READ_TOC` format 1: 12 bytes, length 0Ah, sessions 1 to 1.
#[test]
fn the_session_table_names_one_session() {
    let mut target = optical(CD);
    let expected = [0, 0x0A, 1, 1, 0, 0x14, 1, 0, 0, 0, 0, 0];
    assert_eq!(toc(&mut target, false, 1, 0), Answer::Data(expected.to_vec()));
}

/// QEMU, `cdrom_read_toc_raw` with MSF.
#[test]
fn the_full_table_of_contents_has_four_points() {
    let mut target = optical(CD);
    let expected = [
        &[0, 46, 1, 1][..],
        &[1, 0x14, 0, 0xA0, 0, 0, 0, 0, 1, 0, 0],
        &[1, 0x14, 0, 0xA1, 0, 0, 0, 0, 1, 0, 0],
        &[1, 0x14, 0, 0xA2, 0, 0, 0, 0, 74, 2, 0],
        &[1, 0x14, 0, 0x01, 0, 0, 0, 0, 0, 2, 0],
    ]
    .concat();
    assert_eq!(toc(&mut target, true, 2, 0), Answer::Data(expected.clone()));
    assert_eq!(toc(&mut target, false, 2, 1), Answer::Data(expected));
    for format in 3..16 {
        assert_eq!(toc(&mut target, false, format, 0), Answer::Check(Sense::in_cdb_bit(2, 3)));
    }
}

#[test]
fn the_format_in_the_control_byte_counts_where_the_new_place_is_empty() {
    let mut target = optical(CD);
    let sff = data(&mut target, &[0x43, 2, 0, 0, 0, 0, 0, 3, 0x24, 0x80]);
    assert_eq!(Answer::Data(sff), toc(&mut target, true, 2, 0));
    let both = data(&mut target, &[0x43, 2, 1, 0, 0, 0, 0, 3, 0x24, 0x80]);
    assert_eq!(Answer::Data(both), toc(&mut target, true, 1, 0));
}

#[test]
fn a_lead_out_past_the_last_minute_stays_there() {
    let Answer::Data(bytes) = toc(&mut optical(DVD), true, 0, 0xAA) else { panic!() };
    assert_eq!(bytes[8..], [0, 255, 59, 74]);
    let Answer::Data(bytes) = toc(&mut optical(1 << 33), false, 0, 0xAA) else { panic!() };
    assert_eq!(bytes[8..], [0xFF; 4]);
}

fn configuration(target: &mut Target, rt: u8, start: u16) -> Vec<u8> {
    let [high, low] = start.to_be_bytes();
    data(target, &[0x46, rt, high, low, 0, 0, 0, 0x10, 0, 0])
}

/// Feature code, "current" and length of each descriptor.
fn features(bytes: &[u8]) -> Vec<(u16, bool, usize)> {
    let mut list = Vec::new();
    let mut rest = &bytes[8..];
    while !rest.is_empty() {
        let len = usize::from(rest[3]);
        list.push((u16::from_be_bytes([rest[0], rest[1]]), rest[2] & 1 != 0, len));
        rest = &rest[4 + len..];
    }
    list
}

#[test]
fn the_profile_follows_the_size_of_the_medium() {
    for (blocks, profile, read) in [
        (1, 0x0008, &[0x1D, 0x1E][..]),
        (360_000, 0x0008, &[0x1D, 0x1E]),
        (360_001, 0x0010, &[0x1F]),
        (4_173_824, 0x0010, &[0x1F]),
        (4_173_825, 0x0040, &[0x40]),
        (BD, 0x0040, &[0x40]),
    ] {
        let bytes = configuration(&mut optical(blocks), 1, 0);
        assert_eq!(u16::from_be_bytes([bytes[6], bytes[7]]), profile, "{blocks} blocks");
        let current: Vec<_> = features(&bytes).into_iter().map(|(code, ..)| code).collect();
        let expected = [&[0, 1, 2, 3, 0x10], read, &[0x100, 0x105, 0x107, 0x108]].concat();
        assert_eq!(current, expected, "{blocks} blocks");
    }
}

/// Profile list, core and removable medium features as QEMU's `scsi_get_configuration` has them, but for the interface
/// (USB: 8), the INQ2 bit, the BD profile, and version 1 of the last, where MMC-6 defines the load bit.
#[test]
fn the_configuration_of_a_dvd_is_listed_in_order() {
    let bytes = configuration(&mut optical(DVD), 0, 0);
    let len = u32::try_from(bytes.len()).unwrap() - 4;
    assert_eq!(bytes[..8], [&len.to_be_bytes()[..], &[0, 0, 0, 0x10]].concat());
    assert_eq!(bytes[8..24], [0, 0, 0x03, 12, 0, 0x40, 0, 0, 0, 0x10, 1, 0, 0, 0x08, 0, 0]);
    assert_eq!(bytes[24..36], [0, 1, 0x0B, 8, 0, 0, 0, 8, 0x03, 0, 0, 0]);
    assert_eq!(bytes[44..52], [0, 3, 0x07, 4, 0x39, 0, 0, 0]);
    assert_eq!(bytes[52..64], [0, 0x10, 0x01, 8, 0, 0, 8, 0, 0, 16, 1, 0]);
    let all: Vec<_> = features(&bytes).into_iter().map(|(code, current, _)| (code, current)).collect();
    let expected = [
        (0, true),
        (1, true),
        (2, true),
        (3, true),
        (0x10, true),
        (0x1D, false),
        (0x1E, false),
        (0x1F, true),
        (0x40, false),
        (0x100, true),
        (0x105, true),
        (0x107, true),
        (0x108, true),
    ];
    assert_eq!(all, expected);
    assert_eq!(bytes[bytes.len() - 16..], *b"\x01\x08\x03\x0C0123456789AB");
}

#[test]
fn an_empty_drive_has_no_current_profile_and_no_current_reading() {
    let mut target = target(Kind::Optical, None);
    let bytes = configuration(&mut target, 1, 0);
    assert_eq!(bytes[6..8], [0, 0]);
    let current: Vec<_> = features(&bytes).into_iter().map(|(code, ..)| code).collect();
    assert_eq!(current, [0, 1, 2, 3, 0x100, 0x105, 0x108]);
}

#[test]
fn one_feature_or_those_from_a_number_on_can_be_asked_for() {
    let mut target = optical(CD);
    assert_eq!(features(&configuration(&mut target, 2, 0x1E)), [(0x1E, true, 4)]);
    assert_eq!(configuration(&mut target, 2, 0x55), [0, 0, 0, 4, 0, 0, 0, 8], "not ours: header only");
    assert_eq!(features(&configuration(&mut target, 0, 0x108)), [(0x108, true, 12)]);
    assert_eq!(send(&mut target, &[0x46, 3, 0, 0, 0, 0, 0, 0, 8, 0]), Answer::Check(Sense::in_cdb_bit(1, 1)));
}

fn event(target: &mut Target, classes: u8, allocation: u8) -> Vec<u8> {
    data(target, &[0x4A, 1, 0, 0, classes, 0, 0, 0, allocation, 0])
}

/// QEMU, `scsi_get_event_status_notification`: descriptor length 4, class 4; no class: length 0, NEA.
#[test]
fn media_events_are_told_once() {
    let mut target = target(Kind::Optical, None);
    assert_eq!(event(&mut target, 0x10, 8), [0, 4, 4, 0x56, 0, 0x00, 0, 0]);
    target.unit_mut(0).unwrap().insert(disc(CD));
    assert_eq!(event(&mut target, 0x10, 4), [0, 4, 4, 0x56], "cut before the event: it is kept");
    assert_eq!(event(&mut target, 0x10, 8), [0, 4, 4, 0x56, 2, 0x02, 0, 0]);
    assert_eq!(event(&mut target, 0x10, 8), [0, 4, 4, 0x56, 0, 0x02, 0, 0]);
    target.unit_mut(0).unwrap().request_eject();
    assert_eq!(event(&mut target, 0x10, 8), [0, 4, 4, 0x56, 1, 0x02, 0, 0]);
    request_sense(&mut target);
    assert_eq!(finish(&mut target, &EJECT, Ok(())), Status::Good);
    assert_eq!(event(&mut target, 0x10, 8), [0, 4, 4, 0x56, 3, 0x01, 0, 0]);
}

#[test]
fn the_most_urgent_class_with_an_event_is_told() {
    let mut target = optical(CD);
    assert_eq!(event(&mut target, 0xFE, 8)[2..], [1, 0x56, 2, 0, 0, 1], "features have changed");
    assert_eq!(event(&mut target, 0xFE, 8)[2..5], [4, 0x56, 2], "NewMedia");
    assert_eq!(event(&mut target, 0xFE, 8)[2..], [1, 0x56, 0, 0, 0, 0], "nothing more");
    assert_eq!(event(&mut target, 0x44, 8)[2..], [2, 0x56, 0, 1, 0, 0], "power: active");
    assert_eq!(event(&mut target, 0x40, 8)[2..], [6, 0x56, 0, 0, 0, 0]);
    assert_eq!(event(&mut target, 0x28, 8), [0, 0, 0x80, 0x56], "classes that we have not");
    assert_eq!(
        send(&mut target, &[0x4A, 0, 0, 0, 0x10, 0, 0, 0, 8, 0]),
        Answer::Check(Sense::in_cdb_bit(1, 0)),
        "asynchronous"
    );
}

/// QEMU, `scsi_read_disc_information`, all 34 bytes.
#[test]
fn disc_information_is_that_of_a_finished_disc() {
    let mut target = optical(CD);
    let mut expected = vec![0, 32, 0x0E, 1, 1, 1, 1, 0x20];
    expected.resize(34, 0);
    assert_eq!(data(&mut target, &[0x51, 0, 0, 0, 0, 0, 0, 0, 34, 0]), expected);
    assert_eq!(
        send(&mut target, &[0x51, 1, 0, 0, 0, 0, 0, 0, 34, 0]),
        Answer::Check(Sense::in_cdb_bit(1, 2))
    );
}

#[test]
fn track_information_is_found_by_block_track_and_session() {
    let mut target = optical(CD);
    let ask = |kind, address: u32| {
        let [a, b, c, d] = address.to_be_bytes();
        [0x52, kind, a, b, c, d, 0, 0, 64, 0]
    };
    let track = data(&mut target, &ask(1, 1));
    assert_eq!(track.len(), 36);
    assert_eq!(track[..8], [0, 34, 1, 1, 0, 4, 1, 0]);
    assert_eq!(track[24..28], [0x00, 0x05, 0x14, 0xC8]);
    assert_eq!(data(&mut target, &ask(0, 332_999)), track);
    assert_eq!(data(&mut target, &ask(2, 1)), track);
    assert_eq!(send(&mut target, &ask(0, 333_000)), Answer::Check(LBA_OUT_OF_RANGE));
    assert_eq!(send(&mut target, &ask(1, 2)), Answer::Check(Sense::in_cdb(2)));
}

/// QEMU, `scsi_emulate_mechanism_status`: eight bytes, one slot.
#[test]
fn the_mechanism_is_idle_and_tells_of_its_door() {
    let mut target = target(Kind::Optical, None);
    let ask = [0xBD, 0, 0, 0, 0, 0, 0, 0, 0, 8, 0, 0];
    assert_eq!(data(&mut target, &ask), [0, 0, 0, 0, 0, 1, 0, 0]);
    send(&mut target, &EJECT);
    assert_eq!(data(&mut target, &ask), [0, 0x10, 0, 0, 0, 1, 0, 0]);
}

#[test]
fn read_cd_gives_what_a_mode_1_sector_has() {
    let mut target = optical(CD);
    let ask =
        |sector_type: u8, channels, sub| [0xBE, sector_type << 2, 0, 0, 0, 5, 0, 0, 2, channels, sub, 0];
    for sector_type in 0..8 {
        let expected = match sector_type {
            0 | 2 => Answer::Media(MediaOp::Read(range(5, 2))),
            _ => Answer::Check(ILLEGAL_MODE_FOR_THIS_TRACK),
        };
        assert_eq!(send(&mut target, &ask(sector_type, 0x10, 0)), expected);
    }
    assert_eq!(send(&mut target, &ask(0, 0x00, 0)), Answer::Good);
    for (channels, len) in [(0xF8, 2352), (0x18, 2336), (0x20, 4), (0xB0, 2064)] {
        let Answer::Media(MediaOp::ReadSectors { range: blocks, part }) =
            send(&mut target, &ask(2, channels, 0))
        else {
            panic!("{channels:02X}h");
        };
        assert_eq!((blocks, part.len()), (range(5, 2), len));
    }
    assert_eq!(send(&mut target, &ask(0, 0x28, 0)), Answer::Check(Sense::in_cdb_bit(9, 7)), "illegal");
    assert_eq!(send(&mut target, &ask(0, 0xFA, 0)), Answer::Check(Sense::in_cdb_bit(9, 2)), "C2 errors");
    assert_eq!(send(&mut target, &ask(0, 0x10, 1)), Answer::Check(Sense::in_cdb_bit(10, 2)));
    let beyond = [0xBE, 0, 0x00, 0x05, 0x14, 0xC8, 0, 0, 1, 0x10, 0, 0];
    assert_eq!(send(&mut target, &beyond), Answer::Check(LBA_OUT_OF_RANGE));
}

#[test]
fn read_cd_msf_names_the_same_blocks() {
    let mut target = optical(CD);
    let ask = |start: [u8; 3], end: [u8; 3]| [&[0xB9, 0, 0][..], &start, &end, &[0x10, 0, 0]].concat();
    let read = |start, count| Answer::Media(MediaOp::Read(range(start, count)));
    assert_eq!(send(&mut target, &ask([0, 2, 0], [0, 2, 1])), read(0, 1));
    assert_eq!(send(&mut target, &ask([74, 1, 74], [74, 2, 0])), read(CD - 1, 1));
    assert_eq!(send(&mut target, &ask([1, 0, 0], [1, 0, 0])), Answer::Good);
    for (start, end, sense) in [
        ([0, 1, 74], [0, 3, 0], LBA_OUT_OF_RANGE),
        ([0, 60, 0], [2, 0, 0], LBA_OUT_OF_RANGE),
        ([0, 2, 75], [2, 0, 0], LBA_OUT_OF_RANGE),
        ([74, 2, 0], [74, 2, 1], LBA_OUT_OF_RANGE),
        ([1, 0, 1], [1, 0, 0], Sense::in_cdb(3)),
    ] {
        assert_eq!(send(&mut target, &ask(start, end)), Answer::Check(sense), "{start:?} to {end:?}");
    }
}

#[test]
fn whole_sectors_are_a_matter_of_cds() {
    let mut target = optical(DVD);
    let ask = |channels| [0xBE, 0, 0, 0, 0, 0, 0, 0, 1, channels, 0, 0];
    assert_eq!(send(&mut target, &ask(0x10)), Answer::Media(MediaOp::Read(range(0, 1))));
    assert_eq!(send(&mut target, &ask(0xF8)), Answer::Check(ILLEGAL_MODE_FOR_THIS_TRACK));
}
