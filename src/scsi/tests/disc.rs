//! Optical commands about the disc and the drive.

use super::*;
use crate::scsi::sense::*;

const CD: u64 = 333_000;
/// One layer of a DVD, two full ones (DVD+R DL), one layer of a BD.
const DVD: u64 = 2_295_104;
const DVD_9: u64 = 4_173_824;
const BD: u64 = 12_219_392;

fn structure(target: &mut Target, media: u8, layer: u8, format: u8) -> Answer {
    send(target, &[0xAD, media, 0, 0, 0, 0, layer, format, 0x20, 0, 0, 0])
}

fn whole_structure(target: &mut Target, media: u8, format: u8) -> Vec<u8> {
    match structure(target, media, 0, format) {
        Answer::Data(bytes) => bytes,
        other => panic!("format {format:02X}h came to {other:?}"),
    }
}

/// Lengths as QEMU's `ide_dvd_read_structure` has them; ECMA-267 begins the data area at 30000h.
#[test]
fn the_layer_of_a_dvd_is_described() {
    let mut target = optical(DVD);
    let physical = whole_structure(&mut target, 0, 0x00);
    assert_eq!(physical.len(), 4 + 2048);
    assert_eq!(physical[..8], [0x08, 0x02, 0, 0, 0x01, 0x0F, 0x01, 0x00]);
    assert_eq!(physical[8..20], [0x00, 0x03, 0x00, 0x00, 0x00, 0x26, 0x05, 0x3F, 0, 0, 0, 0]);
    assert!(physical[20..].iter().all(|byte| *byte == 0));
    assert_eq!(structure(&mut target, 0, 1, 0x00), Answer::Check(Sense::in_cdb(6)), "no second layer");
}

/// What drives tell of a full DVD+R DL: data from 030000h to FCFFFFh, the first layer up to 22D7FFh.
#[test]
fn the_two_layers_of_a_dvd_mirror_each_other() {
    let physical = whole_structure(&mut optical(DVD_9), 0, 0x00);
    assert_eq!(physical[6], 0x31, "two layers, opposite track path, embossed");
    assert_eq!(physical[8..20], [0x00, 0x03, 0x00, 0x00, 0x00, 0xFC, 0xFF, 0xFF, 0x00, 0x22, 0xD7, 0xFF]);
}

#[test]
fn a_dvd_has_no_copyright_no_maker_and_no_burst_cutting_area() {
    let mut target = optical(DVD);
    assert_eq!(whole_structure(&mut target, 0, 0x01), [0, 6, 0, 0, 0, 0, 0, 0]);
    let maker = whole_structure(&mut target, 0, 0x04);
    assert_eq!((maker.len(), &maker[..4]), (4 + 2048, &[0x08, 0x02, 0, 0][..]));
    for format in [0x02, 0x03, 0x05, 0x10, 0xC0] {
        assert_eq!(structure(&mut target, 0, 0, format), Answer::Check(Sense::in_cdb(7)), "{format:02X}h");
    }
}

/// MMC-6, READ DISC STRUCTURE, BD disc information, by the offsets that Aaru's decoder reads.
#[test]
fn a_bd_has_disc_information() {
    let info = whole_structure(&mut optical(BD), 1, 0x00);
    assert_eq!(info.len(), 4 + 4096);
    assert_eq!(info[..4], [0x10, 0x02, 0, 0]);
    let unit = &info[4..];
    assert_eq!(unit[..8], [b'D', b'I', 1, 1 << 3, 0, 0, 64, 0]);
    assert_eq!(unit[8..14], [b'B', b'D', b'O', 0x01, 0x11, 0x01]);
    // A BD-ROM of 25 GB: 12,219,392 sectors from 100000h on.
    assert_eq!(unit[20..32], [0x00, 0xCA, 0x73, 0xFF, 0x00, 0x10, 0x00, 0x00, 0x00, 0xCA, 0x73, 0xFE]);
    assert!(unit[32..].iter().all(|byte| *byte == 0));
    let two = whole_structure(&mut optical(2 * BD), 1, 0x00);
    assert_eq!(two[4 + 12], 0x21);
    // Layer 1 of such a disc begins at 01358C00h.
    assert_eq!(two[4 + 20..4 + 24], (0x0135_8C00_u32 + 12_219_392 - 1).to_be_bytes());
}

#[test]
fn the_structures_of_another_disc_are_not_there() {
    for (blocks, media) in [(CD, 0), (CD, 1), (DVD, 1), (BD, 0)] {
        for format in [0x00, 0x01, 0x04] {
            assert_eq!(
                structure(&mut optical(blocks), media, 0, format),
                Answer::Check(INCOMPATIBLE_FORMAT),
                "{blocks} blocks"
            );
        }
    }
    let mut empty = target(Kind::Optical, None);
    assert_eq!(structure(&mut empty, 0, 0, 0), Answer::Check(MEDIUM_NOT_PRESENT_TRAY_CLOSED));
    assert_eq!(structure(&mut empty, 2, 0, 0), Answer::Check(Sense::in_cdb_bit(1, 3)));
}

/// QEMU, format FFh: format, 40h for readable, length; of an empty drive too.
#[test]
fn the_list_of_structures_tells_lengths_that_come_true() {
    for (media, blocks) in [(0, DVD), (1, BD)] {
        let listed = whole_structure(&mut target(Kind::Optical, None), media, 0xFF);
        let mut target = optical(blocks);
        assert_eq!(whole_structure(&mut target, media, 0xFF), listed);
        assert_eq!(usize::from(u16::from_be_bytes([listed[0], listed[1]])) + 2, listed.len());
        for entry in listed[4..].chunks(4) {
            let len = usize::from(u16::from_be_bytes([entry[2], entry[3]]));
            assert_eq!(entry[1], 0x40);
            assert_eq!(whole_structure(&mut target, media, entry[0]).len(), len);
        }
    }
}

fn performance(target: &mut Target, tolerance: u8, descriptors: u8, kind: u8) -> Answer {
    send(target, &[0xAC, tolerance, 0, 0, 0, 0, 0, 0, 0, descriptors, kind, 0])
}

/// MMC-6, GET PERFORMANCE: header of 8, descriptors of 16 (start LBA, speed, end LBA, speed).
#[test]
fn performance_is_the_same_over_the_whole_disc() {
    let mut target = optical(DVD);
    let mut whole = vec![0, 0, 0, 20, 0, 0, 0, 0];
    whole.extend([0, 0, 0, 0, 0, 0, 0x56, 0x90, 0x00, 0x23, 0x05, 0x3F, 0, 0, 0x56, 0x90]);
    assert_eq!(performance(&mut target, 0x10, 1, 0), Answer::Data(whole.clone()));
    assert_eq!(performance(&mut target, 0x10, 0, 0), Answer::Data(whole[..8].to_vec()));
    assert_eq!(
        performance(&mut target, 0x11, 8, 0),
        Answer::Data(vec![0, 0, 0, 4, 1, 0, 0, 0]),
        "exceptions"
    );
    assert_eq!(performance(&mut target, 0, 8, 3), Answer::Data(vec![0, 0, 0, 4, 0, 0, 0, 0]), "write speeds");
    assert_eq!(performance(&mut target, 0x14, 1, 0), Answer::Check(Sense::in_cdb_bit(1, 2)), "of writing");
    assert_eq!(performance(&mut target, 0, 1, 1), Answer::Check(Sense::in_cdb(10)));
}

fn streaming(target: &mut Target, list: &[u8]) -> Result<(), Sense> {
    let len = u8::try_from(list.len()).unwrap();
    let cdb = [0xB6, 0, 0, 0, 0, 0, 0, 0, 0, 0, len, 0];
    let mut response = [0; RESPONSE_LEN_MAX];
    let Reply::Parameters { pending, .. } = target.execute(0, &cdb, &mut response) else { panic!() };
    match target.parameters(pending, list) {
        ListReply::Status(Status::Good) => Ok(()),
        ListReply::Status(Status::CheckCondition) => Err(target.unit(0).unwrap().last_sense().unwrap()),
        ListReply::Media(op, _) => panic!("{op:?}"),
    }
}

#[test]
fn speeds_are_taken_as_wishes() {
    let mut target = optical(CD);
    assert_eq!(send(&mut target, &[0xBB, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0, 0, 0, 0, 0, 0]), Answer::Good);
    assert_eq!(send(&mut target, &[0xB6, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]), Answer::Good);
    assert_eq!(send(&mut target, &[0xB6, 0, 0, 0, 0, 0, 0, 0, 5, 0, 28, 0]), Answer::Check(Sense::in_cdb(8)));
    let mut wish = [0; 28];
    wish[8..12].copy_from_slice(&332_999_u32.to_be_bytes());
    assert_eq!(streaming(&mut target, &wish), Ok(()));
    assert_eq!(streaming(&mut target, &wish[..27]), Err(PARAMETER_LIST_LENGTH_ERROR));
    wish[4..8].copy_from_slice(&333_000_u32.to_be_bytes());
    assert_eq!(streaming(&mut target, &wish), Err(Sense::in_parameters(4)));
    wish[0] = 0x02;
    assert_eq!(streaming(&mut target, &wish), Err(Sense::in_parameters(0)), "exactly");
    wish[0] = 0x04;
    assert_eq!(streaming(&mut target, &wish), Ok(()), "defaults");
}

#[test]
fn the_buffer_is_empty_and_tells_its_size_in_bytes_or_blocks() {
    let mut target = optical(CD);
    let bytes = data(&mut target, &[0x5C, 0, 0, 0, 0, 0, 0, 0, 12, 0]);
    assert_eq!(bytes, [0, 10, 0, 0, 0x00, 0x10, 0, 0, 0x00, 0x10, 0, 0]);
    let blocks = data(&mut target, &[0x5C, 1, 0, 0, 0, 0, 0, 0, 12, 0]);
    assert_eq!(blocks, [0, 10, 0, 1, 0, 0, 0x02, 0, 0, 0, 0x02, 0]);
}

/// MMC-3, READ SUB-CHANNEL: the formats' lengths, and 15h for "no current audio status".
#[test]
fn the_sub_channel_has_a_position_but_no_audio() {
    let mut target = optical(CD);
    let mut ask = |msf: u8, subq: u8, format: u8, track: u8| {
        send(&mut target, &[0x42, msf, subq, format, 0, 0, track, 0, 48, 0])
    };
    assert_eq!(ask(0, 0, 1, 0), Answer::Data(vec![0, 0x15, 0, 0]));
    let position = vec![0, 0x15, 0, 12, 1, 0x14, 1, 1, 0, 0, 2, 0, 0, 0, 0, 0];
    assert_eq!(ask(2, 0x40, 1, 0), Answer::Data(position));
    for (format, track) in [(2, 0), (3, 1)] {
        let Answer::Data(bytes) = ask(0, 0x40, format, track) else { panic!() };
        assert_eq!((bytes.len(), bytes[3], bytes[4], bytes[8]), (24, 20, format, 0), "not valid");
    }
    assert_eq!(ask(0, 0x40, 3, 2), Answer::Check(Sense::in_cdb(6)));
    assert_eq!(ask(0, 0x40, 0, 0), Answer::Check(Sense::in_cdb(3)));
}

/// f_mass_storage answers READ HEADER with data mode 1 and the address.
#[test]
fn a_header_is_that_of_a_mode_1_sector() {
    let mut target = optical(CD);
    assert_eq!(data(&mut target, &[0x44, 0, 0, 5, 0x14, 0xC7, 0, 0, 8, 0]), [1, 0, 0, 0, 0, 5, 0x14, 0xC7]);
    assert_eq!(data(&mut target, &[0x44, 2, 0, 5, 0x14, 0xC7, 0, 0, 8, 0]), [1, 0, 0, 0, 0, 74, 1, 74]);
    let beyond = [0x44, 0, 0, 5, 0x14, 0xC8, 0, 0, 8, 0];
    assert_eq!(send(&mut target, &beyond), Answer::Check(LBA_OUT_OF_RANGE));
}

#[test]
fn seeking_needs_a_block_to_seek_to() {
    let mut target = optical(CD);
    assert_eq!(send(&mut target, &[0x2B, 0, 0, 5, 0x14, 0xC7, 0, 0, 0, 0]), Answer::Good);
    let beyond = [0x2B, 0, 0, 5, 0x14, 0xC8, 0, 0, 0, 0];
    assert_eq!(send(&mut target, &beyond), Answer::Check(LBA_OUT_OF_RANGE));
}

fn event(target: &mut Target, classes: u8) -> Vec<u8> {
    data(target, &[0x4A, 1, 0, 0, classes, 0, 0, 0, 8, 0])[4..].to_vec()
}

/// MMC-6, power management class: event 1 (succeeded), status 1 active to 4 sleep. Windows' and Linux' drivers stop asking at 0.
#[test]
fn power_states_are_events_and_work_ends_them() {
    let mut target = optical(CD);
    assert_eq!(event(&mut target, 4), [0, 1, 0, 0]);
    for (condition, status) in [(0x20, 2), (0x30, 3), (0x50, 4), (0x10, 1), (0x30, 3)] {
        assert_eq!(send(&mut target, &[0x1B, 0, 0, 0, condition, 0]), Answer::Good);
        assert_eq!(event(&mut target, 4), [1, status, 0, 0]);
        assert_eq!(event(&mut target, 4), [0, status, 0, 0]);
    }
    assert_eq!(finish(&mut target, &[0x28, 0, 0, 0, 0, 0, 0, 0, 1, 0], Ok(())), Status::Good);
    assert_eq!(event(&mut target, 4), [1, 1, 0, 0], "active again");
}

/// MMC-6, operational change class: event 2 (changed), 1 features, 3 reset; bit 7 of the status: prevented persistently.
#[test]
fn operational_changes_are_told_once() {
    let mut target = optical(CD);
    assert_eq!(event(&mut target, 2), [2, 0, 0, 1]);
    assert_eq!(event(&mut target, 2), [0, 0, 0, 0]);
    target.bus_reset();
    assert_eq!(event(&mut target, 2), [2, 0, 0, 3]);
    request_sense(&mut target);
    assert_eq!(send(&mut target, &[0x1E, 0, 0, 0, 3, 0]), Answer::Good);
    assert_eq!(event(&mut target, 2), [0, 0x80, 0, 0]);
    assert_eq!(send(&mut target, &[0x1E, 0, 0, 0, 2, 0]), Answer::Good);
    target.unit_mut(0).unwrap().remove();
    assert_eq!(event(&mut target, 2), [2, 0, 0, 1]);
}

/// MMC-3 tables of the pages: their lengths, 60 seconds and 75 frames in 0Dh.
#[test]
fn the_mode_pages_of_an_optical_drive_follow_each_other() {
    let mut target = optical(CD);
    let all = data(&mut target, &[0x5A, 0, 0x3F, 0, 0, 0, 0, 1, 0, 0]);
    let mut pages = Vec::new();
    let mut rest = &all[8..];
    while let [code, len, ..] = rest {
        let len = usize::from(*len);
        pages.push((*code, len));
        rest = &rest[2 + len..];
    }
    let lengths = |code| pages.iter().find(|page| page.0 == code).map(|page| page.1);
    for (code, len) in [(0x01, 10), (0x0D, 6), (0x0E, 14), (0x1A, 10), (0x1D, 10), (0x2A, 30)] {
        assert_eq!(lengths(code), Some(len), "{code:02X}h");
    }
    let page = data(&mut target, &[0x5A, 0, 0x0D, 0, 0, 0, 0, 1, 0, 0]);
    assert_eq!(page[8..], [0x0D, 6, 0, 0, 0, 60, 0, 75]);
    let page = data(&mut target, &[0x5A, 0, 0x4E, 0, 0, 0, 0, 1, 0, 0]);
    assert!(page[10..].iter().all(|byte| *byte == 0), "nothing of it can be changed");
}
