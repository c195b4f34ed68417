//! Block commands.

use super::*;
use crate::scsi::sense::*;

const BLOCKS: u64 = 0x1000;

/// The same range in each of the four layouts: LBA 10h, 8 blocks.
const READS: [&[u8]; 4] = [
    &[0x08, 0, 0, 0x10, 8, 0],
    &[0x28, 0, 0, 0, 0, 0x10, 0, 0, 8, 0],
    &[0xA8, 0, 0, 0, 0, 0x10, 0, 0, 0, 8, 0, 0],
    &[0x88, 0, 0, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 8, 0, 0],
];

/// WRITE opcodes are the READ opcodes plus two (SBC-3, commands for direct access block devices).
fn write_of(read: &[u8]) -> Vec<u8> {
    let mut cdb = read.to_vec();
    cdb[0] += 2;
    cdb
}

#[test]
fn every_layout_names_the_same_blocks() {
    for mut target in [disk(BLOCKS), optical(BLOCKS)] {
        for cdb in READS {
            assert_eq!(send(&mut target, cdb), Answer::Media(MediaOp::Read(range(0x10, 8))), "{cdb:02X?}");
        }
    }
    for cdb in READS {
        let write = MediaOp::Write { range: range(0x10, 8), fua: false };
        assert_eq!(send(&mut disk(BLOCKS), &write_of(cdb)), Answer::Media(write), "{cdb:02X?}");
    }
}

#[test]
fn a_length_of_zero_is_256_blocks_in_six_bytes_and_nothing_elsewhere() {
    let mut target = disk(BLOCKS);
    let read = [0x08, 0, 0, 0, 0, 0];
    assert_eq!(send(&mut target, &read), Answer::Media(MediaOp::Read(range(0, 256))));
    for cdb in &READS[1..] {
        let mut cdb = cdb.to_vec();
        let len = cdb.len();
        cdb[if len == 10 { 8 } else { len - 3 }] = 0;
        assert_eq!(send(&mut target, &cdb), Answer::Good, "{cdb:02X?}");
        assert_eq!(send(&mut target, &write_of(&cdb)), Answer::Good, "{cdb:02X?}");
    }
}

/// The LBA of READ(6) has 21 bits; the three above were the LUN.
#[test]
fn the_top_bits_of_a_six_byte_address_are_not_part_of_it() {
    let mut target = disk(1 << 22);
    let read = [0x08, 0xFF, 0xFF, 0xFF, 1, 0];
    assert_eq!(send(&mut target, &read), Answer::Media(MediaOp::Read(range(0x1F_FFFF, 1))));
    let write = [0x0A, 0x08, 0, 0, 1, 0];
    let expected = MediaOp::Write { range: range(0x8_0000, 1), fua: false };
    assert_eq!(send(&mut target, &write), Answer::Media(expected), "bit 3 is address, not FUA");
}

#[test]
fn fua_is_taken_from_writes_and_dpo_and_fua_nv_are_let_pass() {
    let mut target = disk(BLOCKS);
    for cdb in &READS[1..] {
        for (flags, fua) in [(0x08, true), (0x10, false), (0x02, false), (0x1A, true)] {
            let mut cdb = cdb.to_vec();
            cdb[1] = flags;
            assert_eq!(send(&mut target, &cdb), Answer::Media(MediaOp::Read(range(0x10, 8))));
            let write = MediaOp::Write { range: range(0x10, 8), fua };
            assert_eq!(send(&mut target, &write_of(&cdb)), Answer::Media(write), "{cdb:02X?}");
        }
    }
}

/// EDK2's USB mass storage driver sends `Lun << 5` in byte 1; SBC-3 has RDPROTECT there, which we refuse.
#[test]
fn protection_is_refused_unless_it_is_a_firmware_telling_the_unit_number() {
    let mut units = Vec::new();
    for _ in 0..3 {
        let mut unit = Unit::new(Kind::Disk, identity());
        unit.insert(disk_medium(BLOCKS));
        units.push(unit);
    }
    let mut target = Target::new(units);
    for lun in 0..3 {
        for _ in 0..2 {
            send_to(&mut target, lun, &TEST_UNIT_READY);
        }
        for bits in 0..8 {
            for opcode in [0x28, 0x2A, 0x2F] {
                let cdb = [opcode, bits << 5, 0, 0, 0, 0, 0, 0, 1, 0];
                let refused = send_to(&mut target, lun, &cdb) == Answer::Check(Sense::in_cdb_bit(1, 7));
                assert_eq!(refused, bits != 0 && bits != lun, "LUN {lun}, bits {bits}");
            }
        }
    }
}

#[test]
fn the_last_block_can_be_read_and_the_next_cannot() {
    let mut target = disk(BLOCKS);
    for (start, count, fits) in [
        (BLOCKS - 1, 1, true),
        (BLOCKS - 1, 2, false),
        (BLOCKS, 0, true),
        (BLOCKS + 1, 0, false),
        (BLOCKS, 1, false),
        (u64::MAX, 0, false),
        (u64::MAX, u32::MAX, false),
        (0, u32::MAX, false),
    ] {
        for opcode in [0x88, 0x8A, 0x8F] {
            let mut cdb = [0; 16];
            cdb[0] = opcode;
            cdb[2..10].copy_from_slice(&start.to_be_bytes());
            cdb[10..14].copy_from_slice(&count.to_be_bytes());
            let refused = send(&mut target, &cdb) == Answer::Check(LBA_OUT_OF_RANGE);
            assert_eq!(refused, !fits, "{opcode:02X} {start}+{count}");
        }
    }
}

#[test]
fn protected_disks_and_optical_units_refuse_to_write() {
    let mut protected = disk(BLOCKS);
    protected.unit_mut(0).unwrap().set_write_protected(true);
    request_sense(&mut protected);
    let mut writable_disc = Medium { write_protected: false, ..disc(BLOCKS) };
    writable_disc.write_protected = false;
    for mut target in [protected, optical(BLOCKS), target(Kind::Optical, Some(writable_disc))] {
        for cdb in READS {
            assert_eq!(send(&mut target, &write_of(cdb)), Answer::Check(WRITE_PROTECTED));
        }
        assert_eq!(send(&mut target, &[0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0]), Answer::Good);
    }
}

#[test]
fn synchronize_cache_flushes_whatever_range_it_names_if_the_range_exists() {
    let mut target = disk(BLOCKS);
    let all = [0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    assert_eq!(send(&mut target, &all), Answer::Media(MediaOp::Flush));
    let immediate = [0x91, 2, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 2, 0, 0];
    assert_eq!(send(&mut target, &immediate), Answer::Media(MediaOp::FlushSoon));
    let beyond = [0x35, 0, 0, 0, 0x10, 0, 0, 0, 1, 0];
    assert_eq!(send(&mut target, &beyond), Answer::Check(LBA_OUT_OF_RANGE));
}

/// SBC-3, VERIFY: BYTCHK 00b, 01b and 11b; 10b is reserved. MMC-6 has the bit for media that compare.
#[test]
fn verify_compares_with_nothing_with_as_many_blocks_or_with_one() {
    let mut target = disk(BLOCKS);
    for cdb in [
        &[0x2F, 0x10, 0, 0, 0, 4, 0, 0, 2, 0][..],
        &[0xAF, 0x10, 0, 0, 0, 4, 0, 0, 0, 2, 0, 0],
        &[0x8F, 0x10, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 2, 0, 0],
    ] {
        assert_eq!(send(&mut target, cdb), Answer::Media(MediaOp::Verify(range(4, 2))));
        let mut cdb = cdb.to_vec();
        let mut with = |target: &mut Target, flags| {
            cdb[1] = flags;
            send(target, &cdb)
        };
        let blocks = range(4, 2);
        assert_eq!(with(&mut target, 2), Answer::Media(MediaOp::Compound(Compound::Compare(blocks))));
        assert_eq!(with(&mut target, 6), Answer::Media(MediaOp::Compound(Compound::CompareEach(blocks))));
        assert_eq!(with(&mut target, 4), Answer::Check(Sense::in_cdb_bit(1, 2)));
        for flags in [2, 4, 6] {
            assert_eq!(with(&mut optical(BLOCKS), flags), Answer::Check(Sense::in_cdb_bit(1, 2)));
        }
    }
}

/// SBC-3, READ CAPACITY parameter data: the address of the last block, then the block length.
#[test]
fn capacity_is_told_by_its_last_address() {
    let capacity_10 = [0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let capacity_16 = [0x9E, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xFF, 0, 0];
    assert_eq!(data(&mut disk(BLOCKS), &capacity_10), [0, 0, 0x0F, 0xFF, 0, 0, 2, 0]);
    assert_eq!(data(&mut optical(BLOCKS), &capacity_10), [0, 0, 0x0F, 0xFF, 0, 0, 8, 0]);
    // 2^32 blocks: the last address is FFFFFFFFh, which is also the mark for "too large".
    for blocks in [1 << 32, 1 << 33] {
        assert_eq!(data(&mut disk(blocks), &capacity_10)[..4], [0xFF; 4]);
    }
    let capacity = data(&mut disk(0x1_0203_0406), &capacity_16);
    assert_eq!(capacity.len(), 32);
    assert_eq!(capacity[..12], [0, 0, 0, 1, 2, 3, 4, 5, 0, 0, 2, 0]);
    // LBPME and LBPRZ are bits 7 and 6 of byte 14.
    assert_eq!(capacity[12..16], [0, 0, 0xC0, 0]);
    assert!(capacity[16..].iter().all(|byte| *byte == 0));
    let thick =
        data(&mut target(Kind::Disk, Some(Medium { thin: false, ..disk_medium(BLOCKS) })), &capacity_16);
    assert!(thick[12..].iter().all(|byte| *byte == 0));
}

/// MMC-6, READ FORMAT CAPACITIES: descriptor type 2 is formatted media, 3 is no media present. Windows asks with FCh.
#[test]
fn windows_learns_the_format_capacities() {
    let ask = [0x23, 0, 0, 0, 0, 0, 0, 0, 0xFC, 0];
    assert_eq!(data(&mut disk(BLOCKS), &ask), [0, 0, 0, 8, 0, 0, 0x10, 0, 2, 0, 2, 0]);
    let mut empty = target(Kind::Disk, None);
    assert_eq!(data(&mut empty, &ask), [0, 0, 0, 8, 0xFF, 0xFF, 0xFF, 0xFF, 3, 0, 2, 0]);
}

#[test]
fn a_short_cdb_is_refused_and_a_padded_one_is_not() {
    let mut target = disk(BLOCKS);
    assert_eq!(send(&mut target, &[0x28, 0, 0, 0, 0, 0, 0, 0, 1]), Answer::Check(Sense::in_cdb(9)));
    assert_eq!(send(&mut target, &[0; 12]), Answer::Good, "TEST UNIT READY padded to 12 bytes");
    assert_eq!(send(&mut target, &[]), Answer::Check(Sense::in_cdb(0)));
}
