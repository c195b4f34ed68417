//! Windows: pieces of a local image in the page cache, mapped so that the kernel can take an endpoint's bytes from there without a
//! copy of ours.
//!
//! ```text
//!   image ──► window, 1 MiB, mapped ──► piece, if resident ──► endpoint write copies from it
//!                                    └─► none, if not ───────► the ring reads into a pool buffer
//! ```
//! Called by the drive's data-in phase. Invariants: **no code of ours reads a mapped byte**, so a file that is truncated under us is
//! an EFAULT inside the endpoint write and never a SIGBUS; a piece is handed out only while its pages are in memory, so that the
//! drive thread does not wait for the storage; pieces keep their window mapped; there are never more than [`WINDOWS`] and what
//! the endpoints still hold.

use std::{fmt, fs::File, io, os::unix::fs::FileExt, sync::Arc};

use memmap2::{MmapOptions, MmapRaw};

use crate::units::{ByteLen, ByteOffset};

/// Windows of a function: the one being read, and the one before it, whose last pieces are still on their way.
const WINDOWS: usize = 2;
/// Bytes in a window; a power of two.
const WINDOW_LEN: u64 = 1 << 20;
/// The smallest page of any machine; one residency byte each.
const PAGE_MIN: usize = 4096;
/// Most bytes in one piece.
const PIECE_MAX: usize = 128 * 1024;

/// The windows of one function.
#[derive(Debug, Default)]
pub struct Windows {
    /// The newest last.
    open: Vec<Arc<Window>>,
    distrusted: bool,
}

/// Some bytes of a file, in memory where the kernel finds them.
pub struct Piece {
    window: Arc<Window>,
    /// Inside the window.
    at: usize,
    len: usize,
}

struct Window {
    map: MmapRaw,
    file: Arc<File>,
    start: u64,
}

impl Windows {
    /// None open.
    pub fn new() -> Self {
        Self { open: Vec::with_capacity(WINDOWS), distrusted: false }
    }

    /// `len` bytes of `file` at `at`, if they lie in one window and are in memory.
    pub fn piece(&mut self, file: &Arc<File>, at: ByteOffset, len: usize) -> Option<Piece> {
        let start = at.0 & !(WINDOW_LEN - 1);
        let inside = ByteLen(at.0 - start).to_usize();
        let end = inside.checked_add(len)?;
        if self.distrusted || len == 0 || len > PIECE_MAX || end > ByteLen(WINDOW_LEN).to_usize() {
            return None;
        }
        let window = match self.open.iter().find(|window| window.is(file, start)) {
            Some(window) => Arc::clone(window),
            None => self.open(file, start)?,
        };
        window.is_resident(inside, len).then_some(Piece { window, at: inside, len })
    }

    /// Lets go of all windows, for another image; pieces on their way keep theirs.
    pub fn close(&mut self) {
        *self = Self::new();
    }

    /// Hands out no more pieces until [`Windows::close`]: the kernel could not read one.
    pub fn close_for_good(&mut self) {
        self.open.clear();
        self.distrusted = true;
    }

    fn open(&mut self, file: &Arc<File>, start: u64) -> Option<Arc<Window>> {
        let mut options = MmapOptions::new();
        let map = options.offset(start).len(ByteLen(WINDOW_LEN).to_usize()).map_raw_read_only(file).ok()?;
        let window = Arc::new(Window { map, file: Arc::clone(file), start });
        if self.open.len() >= WINDOWS {
            self.open.remove(0);
        }
        self.open.push(Arc::clone(&window));
        Some(window)
    }
}

impl Window {
    fn is(&self, file: &Arc<File>, start: u64) -> bool {
        self.start == start && Arc::ptr_eq(&self.file, file)
    }

    /// mincore(2): pages that are not there, or behind the end of the file, are not resident.
    fn is_resident(&self, at: usize, len: usize) -> bool {
        let first = at - at % page_len();
        let covered = at + len - first;
        let mut pages = [0u8; PIECE_MAX / PAGE_MIN + 1];
        // SAFETY: the range starts on a page and lies in the mapping, because `piece` checked its end. The kernel writes a byte a
        // page, at most one for each PAGE_MIN bytes begun, for which there is room.
        let failed =
            unsafe { libc::mincore(self.map.as_mut_ptr().add(first).cast(), covered, pages.as_mut_ptr()) };
        let pages = pages.get(..covered.div_ceil(page_len())).unwrap_or_default();
        failed == 0 && !pages.is_empty() && pages.iter().all(|page| page & 1 == 1)
    }
}

fn page_len() -> usize {
    // SAFETY: sysconf has no precondition.
    usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(PAGE_MIN)
}

impl Piece {
    /// Bytes in it.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Never.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Where the kernel finds them.
    pub(crate) fn address(&self) -> *const u8 {
        self.window.map.as_ptr().wrapping_add(self.at)
    }

    /// Copies the first bytes to `to`, by reading the file: for those who are not the kernel.
    ///
    /// # Errors
    /// That of pread(2); `UnexpectedEof` when the file has become shorter, or `to` is longer than the piece.
    pub fn read(&self, to: &mut [u8]) -> io::Result<()> {
        if to.len() > self.len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.window.file.read_exact_at(to, self.window.start + ByteLen::from(self.at).0)
    }
}

// SAFETY: the mapping is only ever read, by the kernel, from whatever thread makes the system call.
unsafe impl Send for Window {}
// SAFETY: as above; nothing in a window changes.
unsafe impl Sync for Window {}

impl fmt::Debug for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Window@{:#x}", self.start)
    }
}

impl fmt::Debug for Piece {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Piece@{:#x}[{}]", self.window.start + ByteLen::from(self.at).0, self.len)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn file(len: u64) -> Arc<File> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&vec![7; ByteLen(len).to_usize()]).unwrap();
        Arc::new(file)
    }

    #[test]
    fn resident_bytes_are_found_and_those_behind_the_end_are_not() {
        let file = file(3 * WINDOW_LEN / 2);
        let mut windows = Windows::new();
        let mut bytes = [0; 4096];
        windows.piece(&file, ByteOffset(WINDOW_LEN + 512), 4096).unwrap().read(&mut bytes).unwrap();
        assert_eq!(bytes, [7; 4096]);
        assert!(windows.piece(&file, ByteOffset(3 * WINDOW_LEN / 2), 4096).is_none());
        assert!(windows.piece(&file, ByteOffset(WINDOW_LEN - 512), 1024).is_none(), "crosses two windows");
    }

    #[test]
    fn a_hole_is_not_resident() {
        let sparse = tempfile::tempfile().unwrap();
        sparse.set_len(8 << 30).unwrap();
        assert!(Windows::new().piece(&Arc::new(sparse), ByteOffset(5 << 30), 65536).is_none());
    }

    #[test]
    fn a_file_truncated_under_its_window_has_no_pieces_and_kills_nobody() {
        let file = file(WINDOW_LEN);
        let mut windows = Windows::new();
        let piece = windows.piece(&file, ByteOffset(8192), 4096).unwrap();
        file.set_len(100).unwrap();
        assert_eq!(piece.read(&mut [0; 4096]).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn windows_are_few_and_pieces_outlive_them() {
        let file = file(4 * WINDOW_LEN);
        let mut windows = Windows::new();
        let pieces: Vec<Piece> =
            (0..4).filter_map(|n| windows.piece(&file, ByteOffset(n * WINDOW_LEN), 65536)).collect();
        assert_eq!((pieces.len(), windows.open.len()), (4, WINDOWS));
        windows.close();
        assert_eq!(Arc::strong_count(&file), 5);
        drop(pieces);
        assert_eq!(Arc::strong_count(&file), 1);
    }
}
