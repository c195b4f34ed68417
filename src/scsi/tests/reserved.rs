//! Bits of a CDB that have no meaning.

use super::*;
use crate::scsi::opcodes::{Reserved, TABLE};

/// What a command with one more bit comes to: whether that bit alone was refused, by byte and bit.
fn refused(target: &mut Target, cdb: &[u8], at: usize, bit: u8) -> bool {
    let mut cdb = cdb.to_vec();
    cdb[at] |= 1 << bit;
    let at = u16::try_from(at).unwrap();
    send(target, &cdb) == Answer::Check(Sense::in_cdb_bit(at, bit))
}

/// f_mass_storage.c, `check_command`, has masks of the bytes that may be other than zero: byte 4 of REQUEST SENSE, PREVENT and so on.
#[test]
fn old_commands_are_checked_as_the_kernels_gadget_checks_them() {
    for (cdb, clean) in [
        (&TEST_UNIT_READY[..], &[2, 3, 4, 5][..]),
        (&[0x03, 0, 0, 0, 18, 0], &[2, 3, 5]),
        (&[0x12, 0, 0, 0, 36, 0], &[5]),
        (&[0x1A, 0, 0x3F, 0, 192, 0], &[5]),
        (&[0x1B, 0, 0, 0, 1, 0], &[2, 5]),
        (&ALLOW, &[1, 2, 3, 5]),
        (&[0x5A, 0, 0x3F, 0, 0, 0, 0, 0, 192, 0], &[4, 5, 6, 9]),
    ] {
        for at in clean.iter().copied() {
            let top = if at == 1 { 5 } else { 8 };
            assert!((0..top).all(|bit| refused(&mut disk(64), cdb, at, bit)), "{cdb:02X?} byte {at}");
        }
    }
}

/// EDK2 puts the LUN into the top three bits of byte 1, as SCSI-2 had it.
#[test]
fn firmware_that_puts_the_lun_into_the_cdb_is_served() {
    for lun in 1..8 {
        let byte = lun << 5;
        for cdb in [
            &[0x00, byte, 0, 0, 0, 0][..],
            &[0x03, byte, 0, 0, 18, 0],
            &[0x12, byte, 0, 0, 36, 0],
            &[0x1A, byte, 0x3F, 0, 192, 0],
            &[0x1B, byte, 0, 0, 1, 0],
            &[0x25, byte, 0, 0, 0, 0, 0, 0, 0, 0],
            &[0x5A, byte, 0x3F, 0, 0, 0, 0, 0, 192, 0],
        ] {
            let answer = send(&mut disk(64), cdb);
            assert!(matches!(answer, Answer::Good | Answer::Data(_)), "{cdb:02X?}: {answer:?}");
        }
    }
}

/// SPC-4: NACA is not supported, and no bit of a command that only well-behaved systems send is left unread.
#[test]
fn every_reserved_bit_of_new_commands_is_refused_where_it_stands() {
    for row in TABLE.iter().filter(|row| row.reserved == Reserved::Bits) {
        let mut cdb = vec![0; row.cdb_len()];
        cdb[0] = row.opcode;
        cdb[1] = row.action();
        for (at, usage) in row.usage.iter().enumerate().skip(1) {
            // Another service action is another command.
            let reserved = if row.service_action.is_some() && at == 1 { 0xE0 } else { !usage };
            for bit in (0..8).filter(|bit| reserved & 1 << bit != 0) {
                assert!(refused(&mut disk(64), &cdb, at, bit), "{} byte {at} bit {bit}", row.name);
            }
        }
    }
}

#[test]
fn a_reserved_bit_waits_behind_a_unit_attention() {
    let mut target = disk(64);
    target.bus_reset();
    assert_eq!(send(&mut target, &[0, 0, 0, 0, 0, 4]), Answer::Check(sense::RESET_OCCURRED));
    assert_eq!(send(&mut target, &[0, 0, 0, 0, 0, 4]), Answer::Check(Sense::in_cdb_bit(5, 2)));
}
