//! Reading a CDB. Offsets are checked when the program is compiled, so reading a field cannot fail.

use super::sense::{INVALID_COMMAND_OPERATION_CODE, Sense};
use crate::units::{Blocks, Lba};

/// The longest CDB that Bulk-Only Transport carries.
const CDB_LEN_MAX: usize = 16;

/// A CDB, padded with zeroes to 16 bytes, and the LUN that it is for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cdb {
    bytes: [u8; CDB_LEN_MAX],
    len: usize,
    lun: u8,
}

impl Cdb {
    /// Bytes past the sixteenth are left out: no command that we know has them.
    pub(super) fn new(lun: u8, from: &[u8]) -> Self {
        let mut bytes = [0; CDB_LEN_MAX];
        for (to, byte) in bytes.iter_mut().zip(from) {
            *to = *byte;
        }
        Self { bytes, len: from.len().min(CDB_LEN_MAX), lun }
    }

    /// Bytes that the host sent.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Length of the CDB by the group code in the opcode (SPC-4, operation code), for the groups that have one.
    pub(super) fn len_code(&self) -> usize {
        match self.opcode() >> 5 {
            0 => 6,
            1 | 2 => 10,
            4 => 16,
            5 => 12,
            _ => 0,
        }
    }

    pub(super) fn lun(&self) -> u8 {
        self.lun
    }

    pub(super) fn opcode(&self) -> u8 {
        self.byte::<0>()
    }

    /// All sixteen bytes.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn field<const AT: usize, const LEN: usize>(&self) -> [u8; LEN] {
        const { assert!(AT + LEN <= CDB_LEN_MAX, "the field lies within the CDB") };
        self.bytes.get(AT..).and_then(|rest| rest.first_chunk()).copied().unwrap_or([0; LEN])
    }

    pub(super) fn byte<const AT: usize>(&self) -> u8 {
        let [byte] = self.field::<AT, 1>();
        byte
    }

    pub(super) fn bit<const AT: usize>(&self, bit: u8) -> bool {
        self.byte::<AT>() & (1 << bit) != 0
    }

    pub(super) fn be16<const AT: usize>(&self) -> u16 {
        u16::from_be_bytes(self.field::<AT, 2>())
    }

    pub(super) fn be24<const AT: usize>(&self) -> u32 {
        let [high, middle, low] = self.field::<AT, 3>();
        u32::from_be_bytes([0, high, middle, low])
    }

    pub(super) fn be32<const AT: usize>(&self) -> u32 {
        u32::from_be_bytes(self.field::<AT, 4>())
    }

    pub(super) fn be64<const AT: usize>(&self) -> u64 {
        u64::from_be_bytes(self.field::<AT, 8>())
    }

    /// LBA and transfer length of a command in one of the four standard layouts, told apart by the group code in the opcode
    /// (SPC-4, operation code). In a 6-byte CDB a length of zero means 256 (SBC-3, READ (6)).
    pub(super) fn block_fields(&self) -> Result<(Lba, Blocks), Sense> {
        let (lba, blocks) = match self.opcode() >> 5 {
            0 => {
                let blocks = self.byte::<4>();
                (u64::from(self.be24::<1>() & 0x1F_FFFF), if blocks == 0 { 256 } else { u32::from(blocks) })
            }
            1 | 2 => (u64::from(self.be32::<2>()), u32::from(self.be16::<7>())),
            4 => (self.be64::<2>(), self.be32::<10>()),
            5 => (u64::from(self.be32::<2>()), self.be32::<6>()),
            _ => return Err(INVALID_COMMAND_OPERATION_CODE),
        };
        Ok((Lba(lba), Blocks(u64::from(blocks))))
    }

    /// Refuses RDPROTECT, WRPROTECT and VRPROTECT: we have no protection information (SBC-3, protection information model).
    ///
    /// These three bits were the LUN in SCSI-2, and EDK2's USB driver still puts it there for units other than 0, so the
    /// unit's own number passes.
    pub(super) fn refuse_protection(&self) -> Result<(), Sense> {
        let bits = self.byte::<1>() >> 5;
        if self.opcode() >> 5 != 0 && bits != 0 && bits != self.lun {
            return Err(Sense::in_cdb_bit(1, 7));
        }
        Ok(())
    }
}
