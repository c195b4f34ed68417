//! What the disk must hold, sector by sector, and what a host may believe about it.
//!
//! Each sector's bytes name the write that put them there, so a wrong sector tells where it came from.

use std::{cell::Cell, fs::File, os::unix::fs::FileExt, sync::Arc};

/// The model's unit, in bytes; every block size is a multiple.
pub const SECTOR: usize = 512;

/// A write, or 0 for what the image held at first.
pub type WriteId = u64;

/// The write that leaves zeroes.
pub const ZEROES: WriteId = u64::MAX;
/// Of writes that put the same bytes into every sector.
pub const SAME: WriteId = 1 << 62;

/// One medium.
pub struct Disk {
    /// What each sector may hold: one write after a good CSW, several after a write that was cut short.
    sectors: Vec<Vec<WriteId>>,
    pub file: Arc<File>,
    pub block: usize,
    pub writable: bool,
    /// Its bytes have to be fetched.
    pub slow: bool,
    /// The block behind the last transfer.
    pub next: Cell<usize>,
    /// Reads since the last other transfer, each where the one before it ended.
    pub stream: Cell<u32>,
}

/// The bytes that `write` puts into `sector`.
fn fill(write: WriteId, sector: usize, bytes: &mut [u8]) {
    if write == ZEROES {
        return bytes.fill(0);
    }
    let sector = if write & SAME == 0 { sector } else { 0 };
    let mut word =
        write.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (sector as u64).wrapping_mul(0xd1b5_4a32_d192_ed03);
    for (index, chunk) in bytes.chunks_exact_mut(8).enumerate() {
        word = word.wrapping_add(0xa076_1d64_78bd_642f).rotate_left(23);
        let value = match index {
            0 => write,
            1 => sector as u64,
            _ => word,
        };
        chunk.copy_from_slice(&value.to_le_bytes());
    }
}

/// The bytes of a write of whole sectors.
pub fn bytes_of(write: WriteId, first: usize, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count * SECTOR];
    for (index, chunk) in bytes.chunks_exact_mut(SECTOR).enumerate() {
        fill(write, first + index, chunk);
    }
    bytes
}

impl Disk {
    /// Fills `file` with what the medium holds at first.
    pub fn new(file: Arc<File>, blocks: usize, block: usize, writable: bool) -> Self {
        let sectors = blocks * block / SECTOR;
        file.write_all_at(&bytes_of(0, 0, sectors), 0).unwrap();
        Self {
            sectors: vec![vec![0]; sectors],
            file,
            block,
            writable,
            slow: false,
            next: Cell::new(0),
            stream: Cell::new(0),
        }
    }

    pub fn blocks(&self) -> usize {
        self.sectors.len() * SECTOR / self.block
    }

    /// Sectors of a run of blocks.
    pub fn sectors(&self, lba: usize, count: usize) -> std::ops::Range<usize> {
        let per_block = self.block / SECTOR;
        lba * per_block..(lba + count) * per_block
    }

    /// What these sectors hold, and whether that is certain.
    pub fn believed(&self, sectors: std::ops::Range<usize>) -> (Vec<u8>, bool) {
        let mut bytes = vec![0; sectors.len() * SECTOR];
        let mut certain = true;
        for (sector, chunk) in sectors.zip(bytes.chunks_exact_mut(SECTOR)) {
            let allowed = &self.sectors[sector];
            certain &= allowed.iter().all(|write| *write == allowed[0]);
            fill(allowed[0], sector, chunk);
        }
        (bytes, certain)
    }

    /// Whether these sectors may all be zeroes.
    pub fn may_be_zeroes(&self, mut sectors: std::ops::Range<usize>) -> bool {
        sectors.all(|sector| self.sectors[sector].contains(&ZEROES))
    }

    /// A write that got a good CSW.
    pub fn written(&mut self, write: WriteId, sectors: std::ops::Range<usize>) {
        for sector in &mut self.sectors[sectors] {
            *sector = vec![write];
        }
    }

    /// A write that was cut short: old or new, sector by sector.
    pub fn perhaps_written(&mut self, write: WriteId, sectors: std::ops::Range<usize>) {
        for sector in &mut self.sectors[sectors] {
            sector.push(write);
        }
    }

    /// Checks what the host read from `first` on; a last partial sector counts. What was read is from then on the truth.
    pub fn check(&mut self, first: usize, bytes: &[u8]) -> Result<(), String> {
        let mut expected = [0; SECTOR];
        for (sector, got) in (first..).zip(bytes.chunks(SECTOR)) {
            let allowed = &mut self.sectors[sector];
            // The first bytes of a sector may be those of several writes.
            let found: Vec<_> = allowed
                .iter()
                .copied()
                .filter(|write| {
                    fill(*write, sector, &mut expected);
                    got == &expected[..got.len()]
                })
                .collect();
            if found.is_empty() {
                return Err(format!("sector {sector} may hold {allowed:?} but holds {}", describe(got)));
            }
            *allowed = found;
        }
        Ok(())
    }

    /// Checks what READ CD gave of `count` sectors, of each this part.
    pub fn check_sectors(
        &mut self,
        lba: usize,
        count: usize,
        part: &std::ops::Range<usize>,
        bytes: &[u8],
    ) -> Result<(), String> {
        if bytes.len() > count * part.len() {
            return Err(format!("{} bytes for {count} sectors", bytes.len()));
        }
        (lba..)
            .zip(bytes.chunks(part.len()))
            .try_for_each(|(block, bytes)| self.check_sector(block, part.start, bytes))
    }

    /// Checks bytes of a CD sector in mode 1, of which the first is `from`: header and user data (ECMA-130 §14).
    fn check_sector(&mut self, block: usize, from: usize, bytes: &[u8]) -> Result<(), String> {
        let frames = block + 150;
        let header =
            [frames / 75 / 60, frames / 75 % 60, frames % 75].map(|value| value / 10 * 16 + value % 10);
        for (at, value) in (12..).zip(header.into_iter().chain([1])) {
            if at >= from && bytes.get(at - from).is_some_and(|byte| usize::from(*byte) != value) {
                return Err(format!("header of sector {block} in {}", describe(bytes)));
            }
        }
        let end = bytes.len().min(2064 - from);
        self.check(
            self.sectors(block, 1).start,
            bytes.get(16_usize.saturating_sub(from)..end).unwrap_or_default(),
        )
    }

    /// The image itself, at the end of a run.
    pub fn check_image(&mut self) -> Result<(), String> {
        let mut image = vec![0; self.sectors.len() * SECTOR];
        self.file.read_exact_at(&mut image, 0).unwrap();
        self.check(0, &image)
    }
}

fn describe(bytes: &[u8]) -> String {
    let word = |at: usize| bytes.get(at..at + 8).map(|word| u64::from_le_bytes(word.try_into().unwrap()));
    match (word(0), word(8)) {
        (Some(write), Some(sector)) if write < 1 << 32 && sector < 1 << 32 => {
            format!("write {write} of sector {sector}, or a mixture with it")
        }
        _ => format!("{:02x?}…", &bytes[..bytes.len().min(16)]),
    }
}
