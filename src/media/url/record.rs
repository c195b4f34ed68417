//! What is known of a cache file, on disk: which chunks of which version of which URL are in it.
//!
//! Two slots of one size; the one with a right digest and the higher generation holds. A slot is written only after fdatasync of
//! the data that it speaks of, and always the one that does not hold: a crash at any time leaves a record that claims nothing that is
//! not there.
//!
//! | bytes of a slot | |
//! |---|---|
//! | 8 | `RDURL` 0 0 1 |
//! | 8 | generation, little-endian as all numbers |
//! | 32 | SHA-256 of the URL |
//! | 8 | length of the image |
//! | 4 | bytes in a chunk |
//! | 2 + n, twice | ETag, Last-Modified; a length of FFFFh: none |
//! | 4 + n | the chunks, a bit each, from the lowest bit of the first byte on |
//! | 32 | SHA-256 of all before |
//! | | zeroes up to the size of the slot, a multiple of 4096 |

use std::{fs::File, io, os::unix::fs::FileExt};

use sha2::{Digest, Sha256};

use super::{
    CHUNK,
    range::{Part, Version},
};

const MAGIC: [u8; 8] = *b"RDURL\0\0\x01";
/// Head and strings at their longest.
const HEAD_BYTES_MAX: u64 = 4096;
/// 4 TiB in chunks.
const CHUNKS_MAX: u64 = 1 << 25;

/// A record as it is on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) key: [u8; 32],
    pub(super) part: Part,
    /// A bit for each chunk.
    pub(super) chunks: Vec<u8>,
}

/// The file with the two slots.
#[derive(Debug)]
pub(super) struct RecordFile {
    file: File,
    generation: u64,
}

impl RecordFile {
    /// The record in `file`, if one holds. The next one is written beside it.
    pub(super) fn load(file: File) -> io::Result<(Self, Option<Record>)> {
        let size = file.metadata()?.len() / 2;
        let mut found: Option<(u64, Record)> = None;
        for slot in 0..2 {
            let mut bytes = Vec::new();
            // One that is longer than any is none.
            if size > 0 && size <= slot_bytes(CHUNKS_MAX) {
                bytes = vec![0; usize::try_from(size).unwrap_or(0)];
                file.read_exact_at(&mut bytes, slot * size)?;
            }
            if let Some((generation, record)) = decode(&bytes)
                && generation % 2 == slot
                && found.as_ref().is_none_or(|(best, _)| generation > *best)
            {
                found = Some((generation, record));
            }
        }
        let generation = found.as_ref().map_or(0, |(generation, _)| *generation);
        Ok((Self { file, generation }, found.map(|(_, record)| record)))
    }

    /// Forgets everything, durably.
    pub(super) fn clear(&mut self) -> io::Result<()> {
        self.generation = 0;
        self.file.set_len(0)?;
        self.file.sync_all()
    }

    /// Makes `record` the one that holds, durably. What it claims must be durable already.
    pub(super) fn store(&mut self, record: &Record) -> io::Result<()> {
        let size = slot_bytes(chunks_of(record.part.total));
        if self.file.metadata()?.len() != size * 2 {
            self.clear()?;
            self.file.set_len(size * 2)?;
        }
        let generation = self.generation + 1;
        self.file.write_all_at(&encode(record, generation), generation % 2 * size)?;
        self.file.sync_data()?;
        self.generation = generation;
        Ok(())
    }
}

/// Chunks in so many bytes.
pub(super) fn chunks_of(bytes: u64) -> u64 {
    bytes.div_ceil(CHUNK)
}

fn slot_bytes(chunks: u64) -> u64 {
    (HEAD_BYTES_MAX + chunks.div_ceil(8)).next_multiple_of(4096)
}

fn encode(record: &Record, generation: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(record.chunks.len() + 4096);
    bytes.extend(MAGIC);
    bytes.extend(generation.to_le_bytes());
    bytes.extend(record.key);
    bytes.extend(record.part.total.to_le_bytes());
    bytes.extend(CHUNK.to_le_bytes().iter().take(4));
    for text in [&record.part.version.etag, &record.part.version.modified] {
        let len = text.as_ref().map_or(u16::MAX, |text| u16::try_from(text.len()).unwrap_or(u16::MAX));
        bytes.extend(len.to_le_bytes());
        bytes.extend(text.iter().flat_map(|text| text.bytes()));
    }
    bytes.extend(u32::try_from(record.chunks.len()).unwrap_or(u32::MAX).to_le_bytes());
    bytes.extend(&record.chunks);
    let digest = Sha256::digest(&bytes);
    bytes.extend(digest);
    bytes
}

fn decode(bytes: &[u8]) -> Option<(u64, Record)> {
    fn take<'a>(rest: &mut &'a [u8], len: usize) -> Option<&'a [u8]> {
        let (taken, after) = rest.split_at_checked(len)?;
        *rest = after;
        Some(taken)
    }
    let mut rest = bytes;
    (take(&mut rest, 8)? == MAGIC).then_some(())?;
    let generation = u64::from_le_bytes(take(&mut rest, 8)?.try_into().ok()?);
    let key = take(&mut rest, 32)?.try_into().ok()?;
    let total = u64::from_le_bytes(take(&mut rest, 8)?.try_into().ok()?);
    let chunk = u32::from_le_bytes(take(&mut rest, 4)?.try_into().ok()?);
    let mut text = || {
        let len = u16::from_le_bytes(take(&mut rest, 2)?.try_into().ok()?);
        if len == u16::MAX {
            return Some(None);
        }
        String::from_utf8(take(&mut rest, len.into())?.to_vec()).ok().map(Some)
    };
    let version = Version { etag: text()?, modified: text()? };
    let len = u32::from_le_bytes(take(&mut rest, 4)?.try_into().ok()?);
    let chunks = take(&mut rest, usize::try_from(len).ok()?)?.to_vec();
    let (body, _) = bytes.split_at_checked(bytes.len() - rest.len())?;
    let whole = Sha256::digest(body).as_slice() == take(&mut rest, 32)?;
    let fits = u64::from(chunk) == CHUNK && u64::from(len) == chunks_of(total).div_ceil(8);
    (whole && fits).then_some((generation, Record { key, part: Part { total, version }, chunks }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(chunks: u8) -> Record {
        let version = Version { etag: Some("\"x\"".to_owned()), modified: None };
        Record { key: [7; 32], part: Part { total: CHUNK * 5 + 1, version }, chunks: vec![chunks] }
    }

    #[test]
    fn whatever_a_crash_tears_the_older_record_or_the_newer_one_holds() {
        let file = tempfile::tempfile().unwrap();
        let (mut slots, none) = RecordFile::load(file.try_clone().unwrap()).unwrap();
        assert_eq!(none, None);
        let mut before = None;
        for chunks in [1, 3, 7, 15] {
            let old = before.clone();
            let mut was = vec![0; usize::try_from(file.metadata().unwrap().len()).unwrap()];
            file.read_exact_at(&mut was, 0).unwrap();
            slots.store(&record(chunks)).unwrap();
            before = Some(record(chunks));
            let load = || RecordFile::load(file.try_clone().unwrap()).unwrap().1;
            assert_eq!(load(), before);
            let mut now = vec![0; usize::try_from(file.metadata().unwrap().len()).unwrap()];
            file.read_exact_at(&mut now, 0).unwrap();
            was.resize(now.len(), 0);
            // Of the write any prefix may have got to the disk.
            let first = was.iter().zip(&now).position(|(was, now)| was != now).unwrap();
            for torn in (first..first + 140).step_by(3) {
                let mut bytes = now[..torn].to_vec();
                bytes.extend(&was[torn..]);
                file.write_all_at(&bytes, 0).unwrap();
                let held = load();
                assert!(held == old || held == before, "torn at {torn}: {held:?}");
            }
            file.write_all_at(&now, 0).unwrap();
        }
    }

    #[test]
    fn a_record_of_another_size_or_with_a_flipped_bit_does_not_hold() {
        let bytes = encode(&record(1), 1);
        assert!(decode(&bytes).is_some());
        for at in 0..bytes.len() {
            let mut flipped = bytes.clone();
            flipped[at] ^= 1;
            assert!(decode(&flipped).is_none(), "byte {at}");
            assert!(decode(&bytes[..at]).is_none(), "cut at {at}");
        }
        let long = Record { chunks: vec![1, 0], ..record(1) };
        assert!(decode(&encode(&long, 1)).is_none());
    }
}
