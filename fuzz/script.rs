//! How bytes become commands. What a script lacks at its end is zero.

use crate::host::Expected;

/// Longest data phase that a host asks for; more only costs time.
const LENGTH_MAX: u32 = 1 << 20;

/// What is left of a script.
pub struct Script<'a>(pub &'a [u8]);

/// A command as the CBW has it.
#[derive(Debug)]
pub struct Command {
    pub lun: u8,
    pub expected: Expected,
    pub cdb: Vec<u8>,
}

impl<'a> Script<'a> {
    /// The next byte, of a script that goes on.
    pub fn next(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    pub fn byte(&mut self) -> u8 {
        self.next().unwrap_or(0)
    }

    pub fn word(&mut self) -> u16 {
        u16::from_le_bytes([self.byte(), self.byte()])
    }

    /// Up to `len` bytes.
    pub fn bytes(&mut self, len: usize) -> &'a [u8] {
        let (first, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        first
    }

    /// A command block of 1 to 16 bytes, for one of four LUNs, of which the last are none.
    pub fn command(&mut self) -> Command {
        let flags = self.byte();
        let unit = if flags & 0x40 == 0 { 1 } else { 512 };
        let length = (u32::from(self.word()) * unit).min(LENGTH_MAX);
        let expected = match (length, flags & 0x80) {
            (0, _) => Expected::None,
            (length, 0) => Expected::Out(length),
            (length, _) => Expected::In(length),
        };
        let len = usize::from(flags >> 2 & 0x0F) + 1;
        let mut cdb = self.bytes(len).to_vec();
        cdb.resize(len, 0);
        Command { lun: flags & 0x03, expected, cdb }
    }

    /// What the host sends in the data phase of a command: some bytes of the script, then zeroes.
    pub fn data_out(&mut self, expected: Expected) -> Vec<u8> {
        let Expected::Out(length) = expected else { return Vec::new() };
        let length = usize::try_from(length).unwrap();
        let given = usize::from(self.byte()).min(length);
        let mut bytes = self.bytes(given).to_vec();
        bytes.resize(length, 0);
        bytes
    }
}
