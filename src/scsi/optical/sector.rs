//! A whole CD sector in mode 1, computed from its user data (ECMA-130 §14 and annex A).
//!
//! ```text
//!    0        12       16            2064    2068   2076         2248         2352
//!    │ sync   │ header │ user data   │ EDC   │ zero │ P parity   │ Q parity   │
//! ```
//! P and Q are a product code over the 2340 bytes behind the sync: even and odd bytes apart, 43 columns of 24 bytes (P), then
//! 26 diagonals of 43 bytes (Q), each with two parity bytes. The field is GF(2⁸) with x⁸ + x⁴ + x³ + x² + 1.

use super::msf::Msf;
use crate::units::Lba;

/// Bytes of a whole sector.
pub const SECTOR_LEN: usize = 2352;

const HEADER: u16 = 12;
const USER_DATA: u16 = 16;
const EDC: u16 = 2064;
const END: u16 = 2352;

/// The generator of the EDC, (x¹⁶ + x¹⁵ + x² + 1)(x¹⁶ + x² + x + 1), least significant bit first.
const EDC_REVERSED: u32 = 0x8001_801B_u32.reverse_bits();

/// 16-bit words that P and Q protect: header to EDC, and for Q the P parity too.
const P_COLUMNS: usize = 43;
const P_ROWS: usize = 24;
const Q_DIAGONALS: usize = 26;
const Q_WORDS: usize = P_COLUMNS * Q_DIAGONALS;

/// The part of a sector that READ CD asks for: one run of bytes, because the standard allows no gaps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SectorPart {
    from: u16,
    to: u16,
}

impl SectorPart {
    /// What READ(10) gives too.
    pub(super) const USER_DATA: Self = Self { from: USER_DATA, to: EDC };

    /// The main channel selection bits of READ CD for mode 1 sectors, which have no sub-header. `None` where the standard
    /// calls the combination illegal.
    pub(super) fn selected_by(byte: u8) -> Option<Self> {
        let [sync, sub_header, header, user_data, edc] =
            [0x80, 0x40, 0x20, 0x10, 0x08].map(|bit| byte & bit != 0);
        if (edc && !user_data) || (sync && !header && (user_data || sub_header)) {
            return None;
        }
        let from = match (sync, header) {
            (true, _) => 0,
            (false, true) => HEADER,
            (false, false) => USER_DATA,
        };
        let to = match (edc, user_data, header, sync) {
            (true, ..) => END,
            (false, true, ..) => EDC,
            (false, false, true, _) => USER_DATA,
            (false, false, false, true) => HEADER,
            (false, false, false, false) => from,
        };
        Some(Self { from, to })
    }

    /// Bytes of each sector.
    pub fn len(self) -> u16 {
        self.to.saturating_sub(self.from)
    }

    /// Nothing is asked for.
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// Whether the user data must be known for it.
    pub fn needs_user_data(self) -> bool {
        self.to > USER_DATA
    }

    /// Builds it for the sector at `lba`, in `sector`. Of `user_data` the first 2048 bytes count; what is missing of them is zero.
    pub fn build<'a>(self, lba: Lba, user_data: &[u8], sector: &'a mut [u8; SECTOR_LEN]) -> &'a [u8] {
        sector.fill(0);
        put(sector, 1, &[0xFF; 10]);
        let Msf([minutes, seconds, frames]) = lba.into();
        put(sector, HEADER, &[bcd(minutes), bcd(seconds), bcd(frames), 1]);
        put(sector, USER_DATA, user_data.get(..2048).unwrap_or(user_data));
        if self.to > EDC {
            let edc = edc(sector.get(..usize::from(EDC)).unwrap_or_default());
            put(sector, EDC, &edc.to_le_bytes());
            add_parity(sector);
        }
        sector.get(usize::from(self.from)..usize::from(self.to)).unwrap_or_default()
    }
}

fn put(sector: &mut [u8; SECTOR_LEN], at: u16, bytes: &[u8]) {
    for (to, byte) in sector.iter_mut().skip(usize::from(at)).zip(bytes) {
        *to = *byte;
    }
}

/// Two decimal digits; a CD has no more than 99 minutes.
fn bcd(value: u8) -> u8 {
    ((value / 10 % 10) << 4) | (value % 10)
}

/// CRC of the bytes, least significant bit first.
fn edc(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0, |crc: u32, byte| {
        (0..8).fold(
            crc ^ u32::from(*byte),
            |crc, _| {
                if crc & 1 == 0 { crc >> 1 } else { crc >> 1 ^ EDC_REVERSED }
            },
        )
    })
}

/// Times α.
fn double(value: u8) -> u8 {
    value << 1 ^ if value & 0x80 == 0 { 0 } else { 0x1D }
}

/// Divided by α + 1, which is a product with its inverse F4h.
fn over_three(value: u8) -> u8 {
    [7, 6, 5, 4, 3, 2, 1, 0]
        .into_iter()
        .fold(0, |product, bit| double(product) ^ if 0xF4_u8 >> bit & 1 == 0 { 0 } else { value })
}

/// The two parity bytes that make the sums of the code word, and of the code word times falling powers of α, zero.
fn parity(data: impl Iterator<Item = u8>) -> [u8; 2] {
    let (sum, weighted) = data.fold((0, 0), |(sum, weighted), byte| (sum ^ byte, double(weighted) ^ byte));
    let first = over_three(sum ^ double(double(weighted)));
    [first, sum ^ first]
}

/// Byte `plane` (0 or 1) of a 16-bit word, counted from the header.
fn place(word: usize, plane: usize) -> usize {
    usize::from(HEADER).saturating_add(word.saturating_mul(2)).saturating_add(plane)
}

fn add_parity(sector: &mut [u8; SECTOR_LEN]) {
    for plane in 0..2 {
        for column in 0..P_COLUMNS {
            let words = (column..).step_by(P_COLUMNS);
            protect(sector, plane, words.clone().take(P_ROWS), words.skip(P_ROWS));
        }
    }
    for plane in 0..2 {
        for diagonal in 0..Q_DIAGONALS {
            let start = diagonal.saturating_mul(P_COLUMNS);
            let words = (start..).step_by(P_COLUMNS.saturating_add(1)).map(|word| word % Q_WORDS);
            let parity = (Q_WORDS.saturating_add(diagonal)..).step_by(Q_DIAGONALS);
            protect(sector, plane, words.take(P_COLUMNS), parity);
        }
    }
}

/// Puts the parity of the words `data` into the first two words of `to`.
fn protect(
    sector: &mut [u8; SECTOR_LEN],
    plane: usize,
    data: impl Iterator<Item = usize>,
    to: impl Iterator<Item = usize>,
) {
    let bytes = data.map(|word| sector.get(place(word, plane)).copied().unwrap_or(0));
    for (word, byte) in to.zip(parity(bytes)) {
        if let Some(room) = sector.get_mut(place(word, plane)) {
            *room = byte;
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

    use super::*;

    fn whole(lba: u64, user_data: &[u8]) -> [u8; SECTOR_LEN] {
        let mut sector = [0xEE; SECTOR_LEN];
        let part = SectorPart::selected_by(0xF8).unwrap();
        assert_eq!(part.build(Lba(lba), user_data, &mut sector).len(), SECTOR_LEN);
        sector
    }

    /// The catalogue of parametrised CRC algorithms, CRC-32/CD-ROM-EDC: check value of "123456789".
    #[test]
    fn the_edc_is_that_of_the_catalogue() {
        assert_eq!(edc(b"123456789"), 0x6EC2_EDC4);
    }

    /// Multiplication in GF(2⁸) by the definition: carry-less product, reduced by 11Dh.
    fn times(a: u8, b: u8) -> u8 {
        let product =
            (0..8).filter(|bit| b >> bit & 1 == 1).fold(0_u32, |sum, bit| sum ^ u32::from(a) << bit);
        let reduced = (8..16)
            .rev()
            .fold(product, |rest, bit| if rest >> bit & 1 == 1 { rest ^ 0x11D << (bit - 8) } else { rest });
        u8::try_from(reduced).unwrap()
    }

    /// ECMA-130 annex A: H_P × V_P = 0 and H_Q × V_Q = 0, where the first row of H is ones and the second α^25 … α^0 (α^44 … α^0),
    /// and the words of each vector stand where the annex numbers them.
    #[test]
    fn every_syndrome_of_both_codes_is_zero() {
        let user_data: Vec<u8> = (0..2048_u32).map(|at| u8::try_from(at * at * 31 % 251).unwrap()).collect();
        let sector = whole(123_456, &user_data);
        let byte = |word: usize, plane: usize| sector[12 + 2 * word + plane];
        let syndromes = |word: &[u8]| {
            let powers = (0..word.len() - 1).fold(vec![1], |mut powers, _| {
                powers.insert(0, times(powers[0], 2));
                powers
            });
            (
                word.iter().fold(0, |sum, byte| sum ^ byte),
                word.iter().zip(powers).fold(0, |sum, (byte, power)| sum ^ times(*byte, power)),
            )
        };
        for plane in 0..2 {
            for n in 0..43 {
                let word: Vec<u8> = (0..26).map(|m| byte(43 * m + n, plane)).collect();
                assert_eq!(syndromes(&word), (0, 0), "P {n}");
            }
            for n in 0..26 {
                let data = (0..43).map(|m| byte((44 * m + 43 * n) % 1118, plane));
                let word: Vec<u8> =
                    data.chain([byte(43 * 26 + n, plane), byte(44 * 26 + n, plane)]).collect();
                assert_eq!(syndromes(&word), (0, 0), "Q {n}");
            }
        }
        assert!(sector[2076..].iter().any(|byte| *byte != 0));
    }

    /// As the algorithm of the ECM format has them, with which CD images have been checked and rebuilt since 2002.
    #[test]
    fn edc_and_parity_are_those_of_a_foreign_implementation() {
        let user_data: Vec<u8> = (0..2048_u32).map(|at| u8::try_from(at * at * 31 % 251).unwrap()).collect();
        let sector = whole(123_456, &user_data);
        assert_eq!(sector[2064..2068], [0x89, 0x67, 0x11, 0xDA]);
        assert_eq!(sector[2076..2084], [0x5E, 0x8D, 0x54, 0x43, 0x7F, 0x32, 0xDA, 0x66]);
        assert_eq!(sector[2240..2248], [0x4F, 0xFD, 0x7D, 0x60, 0x93, 0x11, 0x3E, 0x60]);
        assert_eq!(sector[2248..2256], [0x46, 0x16, 0xD1, 0x23, 0x8A, 0x1B, 0x08, 0x3A]);
        assert_eq!(sector[2344..], [0x1F, 0x83, 0xC4, 0xA3, 0x31, 0xF6, 0xE0, 0x48]);
    }

    /// ECMA-130 §14: sync, address in BCD, mode; user data as they are; the CRC over all before it and itself is zero.
    #[test]
    fn sync_header_and_edc_stand_where_the_standard_has_them() {
        let user_data = [0x5A; 2048];
        let sector = whole(333_000 - 1, &user_data);
        assert_eq!(sector[..12], [0, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 0]);
        assert_eq!(sector[12..16], [0x74, 0x01, 0x74, 0x01]);
        assert_eq!(sector[16..2064], user_data);
        assert_eq!(edc(&sector[..2068]), 0, "a CRC without inversion");
        assert_eq!(sector[2068..2076], [0; 8]);
        assert_eq!(whole(0, &[])[12..16], [0x00, 0x02, 0x00, 0x01]);
    }

    /// MMC-6, READ CD, number of bytes returned, column mode 1.
    #[test]
    fn each_selection_has_the_length_of_the_standards_table() {
        let table: [(u8, Option<u16>); 32] = [
            (0x00, Some(0)),
            (0x08, None),
            (0x10, Some(2048)),
            (0x18, Some(2336)),
            (0x20, Some(4)),
            (0x28, None),
            (0x30, Some(2052)),
            (0x38, Some(2340)),
            (0x40, Some(0)),
            (0x48, None),
            (0x50, Some(2048)),
            (0x58, Some(2336)),
            (0x60, Some(4)),
            (0x68, None),
            (0x70, Some(2052)),
            (0x78, Some(2340)),
            (0x80, Some(12)),
            (0x88, None),
            (0x90, None),
            (0x98, None),
            (0xA0, Some(16)),
            (0xA8, None),
            (0xB0, Some(2064)),
            (0xB8, Some(2352)),
            (0xC0, None),
            (0xC8, None),
            (0xD0, None),
            (0xD8, None),
            (0xE0, Some(16)),
            (0xE8, None),
            (0xF0, Some(2064)),
            (0xF8, Some(2352)),
        ];
        for (byte, expected) in table {
            assert_eq!(SectorPart::selected_by(byte).map(SectorPart::len), expected, "{byte:02X}h");
        }
    }

    #[test]
    fn a_part_is_cut_from_the_whole() {
        let user_data = [0xA5; 2048];
        let sector = whole(7, &user_data);
        let mut scratch = [0; SECTOR_LEN];
        for byte in (0..=0xF8).step_by(8) {
            if let Some(part) = SectorPart::selected_by(byte) {
                let range = usize::from(part.from)..usize::from(part.to);
                assert_eq!(part.build(Lba(7), &user_data, &mut scratch), &sector[range]);
                assert_eq!(part.needs_user_data(), part.len() > 16);
            }
        }
    }
}
