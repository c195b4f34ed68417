//! What is here of an overlay, in memory and in its file, and the order in which the file is told.
//!
//! ```text
//!   the drive has written bytes ──► set: bits in memory, their pages dirty
//!                                            │ store
//!      sync of the file ──► L2 entries of the dirty pages are written ──► sync of the file
//! ```
//! The file says that a subcluster is here only after its bytes are durable, so that after a power cut it is the new one or the
//! base's, and what was stored before is there. Knows no thread and no clock; a file only as a [`BlockFile`], so that a test can cut
//! the power between any two of its calls.

use std::{
    fs::File,
    io,
    ops::Range,
    os::unix::fs::FileExt,
    sync::{
        OnceLock,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
};

use super::{
    error::Foreign,
    layout::{ENTRY, Geometry, Head, SUBCLUSTERS},
};
use crate::units::{ByteLen, ByteOffset, ByteRange};

/// Clusters whose bits are allocated, and written to the file, together: 16 KiB of L2 entries.
const PAGE: usize = 1024;
/// Pages that are read or written at once when all are.
const PAGES_AT_ONCE: usize = 64;

/// A file as far as an overlay needs it.
pub trait BlockFile {
    /// Fills `to` with the bytes from `at` on.
    ///
    /// # Errors
    /// Those of pread(2), and the end of the file.
    fn get(&self, to: &mut [u8], at: u64) -> io::Result<()>;

    /// Writes all of `bytes` at `at`.
    ///
    /// # Errors
    /// Those of pwrite(2).
    fn put(&self, bytes: &[u8], at: u64) -> io::Result<()>;

    /// Makes durable what was written (fdatasync).
    ///
    /// # Errors
    /// Those of fdatasync(2).
    fn sync(&self) -> io::Result<()>;
}

impl BlockFile for File {
    fn get(&self, to: &mut [u8], at: u64) -> io::Result<()> {
        self.read_exact_at(to, at)
    }

    fn put(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        self.write_all_at(bytes, at)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }
}

/// Which subclusters are here.
#[derive(Debug)]
pub(super) struct Store {
    geometry: Geometry,
    /// A word a cluster, as in the L2 entries. Pages of which nothing is here may be missing.
    pages: Box<[OnceLock<Box<[AtomicU32]>>]>,
    /// The file does not say yet what the page does.
    dirty: Box<[AtomicBool]>,
    /// Subclusters that are here.
    here: AtomicU64,
}

/// Why a file was not taken.
#[derive(Debug)]
pub(super) enum LoadError {
    Io(io::Error),
    Foreign(Foreign),
}

impl From<io::Error> for LoadError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// Writes what an empty overlay has in its file; it must be empty. The head comes last.
pub(super) fn format(file: &impl BlockFile, head: &Head) -> io::Result<()> {
    let geometry = &head.geometry;
    let all = 0..geometry.clusters();
    for first in all.clone().step_by(PAGE * PAGES_AT_ONCE) {
        let count = (all.end - first).min(ByteLen::from(PAGE * PAGES_AT_ONCE).0);
        let nothing = std::iter::repeat_n(0, ByteLen(count).to_usize());
        file.put(&geometry.entries(first, nothing), geometry.entry(first))?;
    }
    for (at, bytes) in geometry.tables() {
        file.put(&bytes, at)?;
    }
    file.put(&head.to_bytes(), 0)
}

impl Store {
    /// Of a disk of which nothing is here.
    pub(super) fn new(geometry: Geometry) -> Self {
        let pages = ByteLen(geometry.clusters().div_ceil(ByteLen::from(PAGE).0)).to_usize();
        Self {
            geometry,
            pages: (0..pages).map(|_| OnceLock::new()).collect(),
            dirty: (0..pages).map(|_| AtomicBool::new(false)).collect(),
            here: AtomicU64::new(0),
        }
    }

    /// Reads what `file` says; its head was read before.
    pub(super) fn load(file: &impl BlockFile, geometry: Geometry) -> Result<Self, LoadError> {
        for (at, expected) in geometry.tables() {
            let mut found = vec![0; expected.len()];
            file.get(&mut found, at)?;
            if found != expected {
                return Err(LoadError::Foreign(Foreign::Layout));
            }
        }
        let new = Self::new(geometry);
        let entry_len = ByteLen(ENTRY).to_usize();
        let mut entries = vec![0; PAGE * PAGES_AT_ONCE * entry_len];
        let all = geometry.clusters();
        for first in (0..all).step_by(PAGE * PAGES_AT_ONCE) {
            let count = ByteLen(all - first).to_usize().min(PAGE * PAGES_AT_ONCE);
            let entries = entries.get_mut(..count * entry_len).unwrap_or_default();
            file.get(entries, geometry.entry(first))?;
            let bits = geometry.bits(first, entries).map_err(LoadError::Foreign)?;
            for (cluster, bits) in (first..).zip(bits) {
                new.add_word(cluster, bits);
            }
        }
        new.dirty.iter().for_each(|dirty| dirty.store(false, Ordering::SeqCst));
        Ok(new)
    }

    pub(super) fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// What is here of a cluster.
    pub(super) fn word(&self, cluster: u64) -> u32 {
        let (page, at) = place(cluster);
        let words = self.pages.get(page).and_then(OnceLock::get);
        words.and_then(|words| words.get(at)).map_or(0, |word| word.load(Ordering::SeqCst))
    }

    /// More of a cluster is here than was known. Whether that is so.
    pub(super) fn add_word(&self, cluster: u64, bits: u32) -> bool {
        let (page, at) = place(cluster);
        if bits == 0 {
            return false;
        }
        let Some((words, dirty)) = self.pages.get(page).zip(self.dirty.get(page)) else { return false };
        let words = words.get_or_init(|| (0..PAGE).map(|_| AtomicU32::new(0)).collect());
        let before = words.get(at).map_or(bits, |word| word.fetch_or(bits, Ordering::SeqCst));
        let new = bits & !before;
        let news = new != 0;
        if news {
            self.here.fetch_add(new.count_ones().into(), Ordering::SeqCst);
            // After the bits: a store that takes the mark away has not read them yet.
            dirty.store(true, Ordering::SeqCst);
        }
        news
    }

    fn is_here(&self, subcluster: u64) -> bool {
        self.word(subcluster / SUBCLUSTERS) >> (subcluster % SUBCLUSTERS) & 1 == 1
    }

    /// Whether the first byte of `range` is here, and for how many of its bytes that holds.
    pub(super) fn run(&self, range: ByteRange) -> (bool, ByteLen) {
        let len = self.geometry.subcluster();
        let (start, end) = (range.start().0, range.end().0);
        let first = start / len;
        let here = self.is_here(first);
        let mut at = first + 1;
        while at * len < end {
            let word = self.word(at / SUBCLUSTERS);
            let ahead = if here { word } else { !word } >> (at % SUBCLUSTERS);
            let same = u64::from(ahead.trailing_ones()).min(SUBCLUSTERS - at % SUBCLUSTERS);
            at += same;
            if same == 0 || !at.is_multiple_of(SUBCLUSTERS) {
                break;
            }
        }
        (here, ByteLen((at * len).min(end) - start))
    }

    /// Subclusters that `range` touches and does not cover, of those that are not here: the bytes beside it are still the base's.
    pub(super) fn torn(&self, range: ByteRange) -> [Option<u64>; 2] {
        let whole = self.whole(range);
        let len = self.geometry.subcluster();
        let (first, last) = (range.start().0 / len, range.end().0.saturating_sub(1) / len);
        let torn = |at: u64| (!range.is_empty() && !whole.contains(&at) && !self.is_here(at)).then_some(at);
        [torn(first), torn(last).filter(|_| last != first)]
    }

    /// The bytes of a subcluster, as far as the disk goes.
    pub(super) fn subcluster(&self, at: u64) -> Option<ByteRange> {
        let len = self.geometry.subcluster();
        let start = at * len;
        let all = self.geometry.len().0.checked_sub(start)?;
        ByteRange::new(ByteOffset(start), ByteLen(len.min(all)))
    }

    /// The subclusters that `range` covers; the end of the disk ends the last one.
    fn whole(&self, range: ByteRange) -> Range<u64> {
        let len = self.geometry.subcluster();
        let end = range.end().0;
        let end = if end >= self.geometry.len().0 { end.div_ceil(len) } else { end / len };
        range.start().0.div_ceil(len)..end
    }

    /// `range` has been written. Calls `changed` with the clusters of which more is here now. How many of its bytes are here: those of
    /// a subcluster that it does not cover and that was not here before are not.
    pub(super) fn set<E>(
        &self,
        range: ByteRange,
        changed: impl FnOnce(Range<u64>) -> Result<(), E>,
    ) -> Result<ByteLen, E> {
        let whole = self.whole(range);
        let mut news = false;
        let clusters = whole.start / SUBCLUSTERS..whole.end.div_ceil(SUBCLUSTERS);
        for cluster in clusters.clone() {
            let first = cluster * SUBCLUSTERS;
            let from = whole.start.max(first) - first;
            let to = whole.end.min(first + SUBCLUSTERS).saturating_sub(first);
            news |= self.add_word(cluster, bits(from..to));
        }
        if news {
            changed(clusters)?;
        }
        let len = self.geometry.subcluster();
        let behind = range.end().0.saturating_sub(whole.end.max(range.start().0.div_ceil(len)) * len);
        let is_here = behind == 0 || self.is_here(range.end().0.saturating_sub(1) / len);
        Ok(ByteLen(range.len().0 - if is_here { 0 } else { behind.min(range.len().0) }))
    }

    /// Whether the file does not say yet all that is here.
    pub(super) fn is_dirty(&self) -> bool {
        self.dirty.iter().any(|dirty| dirty.load(Ordering::SeqCst))
    }

    /// Makes all that is here durable.
    pub(super) fn store(&self, file: &impl BlockFile) -> io::Result<()> {
        let taken: Vec<(usize, Vec<u8>)> = self
            .dirty
            .iter()
            .enumerate()
            .filter(|(_, dirty)| dirty.swap(false, Ordering::SeqCst))
            .map(|(page, _)| (page, self.entries(page)))
            .collect();
        let stored = file.sync().and_then(|()| {
            for (page, entries) in &taken {
                file.put(entries, self.geometry.entry(first_of(*page)))?;
            }
            if taken.is_empty() { Ok(()) } else { file.sync() }
        });
        if stored.is_err() {
            for (page, _) in taken {
                if let Some(dirty) = self.dirty.get(page) {
                    dirty.store(true, Ordering::SeqCst);
                }
            }
        }
        stored
    }

    fn entries(&self, page: usize) -> Vec<u8> {
        let first = first_of(page);
        let end = (first + ByteLen::from(PAGE).0).min(self.geometry.clusters());
        self.geometry.entries(first, (first..end).map(|cluster| self.word(cluster)))
    }

    /// Bytes that are here.
    pub(super) fn bytes_here(&self) -> ByteLen {
        let count = self.here.load(Ordering::SeqCst);
        ByteLen((count * self.geometry.subcluster()).min(self.geometry.len().0))
    }

    /// The runs of bytes that are here.
    pub(super) fn runs(&self) -> impl Iterator<Item = ByteRange> {
        let len = self.geometry.len();
        let mut ahead = ByteRange::new(ByteOffset(0), len);
        std::iter::from_fn(move || {
            loop {
                let rest = ahead.filter(|rest| !rest.is_empty())?;
                let (here, len) = self.run(rest);
                let (run, behind) = rest.split_at(len);
                ahead = Some(behind);
                if here {
                    return Some(run);
                }
            }
        })
    }
}

fn place(cluster: u64) -> (usize, usize) {
    let cluster = ByteLen(cluster).to_usize();
    (cluster / PAGE, cluster % PAGE)
}

fn first_of(page: usize) -> u64 {
    ByteLen::from(page * PAGE).0
}

/// Some of 32 bits.
fn bits(range: Range<u64>) -> u32 {
    let below = |end: u64| 1_u64.checked_shl(u32::try_from(end).unwrap_or(0)).unwrap_or(0).wrapping_sub(1);
    let bits = below(range.end.min(SUBCLUSTERS)) & !below(range.start.min(SUBCLUSTERS));
    u32::try_from(bits & u64::from(u32::MAX)).unwrap_or(0)
}

#[cfg(test)]
mod tests;
