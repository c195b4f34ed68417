//! The io_uring reactor: the only mover of image bytes, and the clock and the ear of a drive's thread.
//!
//! One [`Ring`] per function, made and used on that function's drive thread. The drive loop hands it buffers from a
//! [`pool::Pool`] and gets them back with the result; it watches eventfds (endpoint completions, commands) and sets timers, so
//! that everything the loop waits for arrives from [`Ring::wait`] and [`Ring::next`].
//!
//! The loop sees the moving half as the trait [`Mover`], which the simulation implements over a model file.
//!
//! ```text
//!            read/write/sync, watch, timer            wait()                    next()
//!   caller ───────────────────────────────▶ in flight ───────▶ completion queue ───────▶ caller
//!      ▲  Err(buf): full, nothing happened      │                                           │
//!      └────────────────────────────────────────┴── cancel(): ends without a completion     │
//!      └───────────────────────── the buffer, the tag, the result ──────────────────────────┘
//! ```
//!
//! Invariants: a buffer given to the ring comes back exactly once, in [`Moved`] or in the `Err` of the call; what the kernel
//! may still write to is never freed (a ring dropped with a stuck operation leaks that buffer); a completion belongs to the
//! operation it was made for, because keys carry a generation; the completion queue has room for everything in flight.
#![allow(unsafe_code)]

mod error;
pub mod pool;
mod reactor;
mod slab;
mod stat;

use std::{fs::File, io, ops::Range, sync::Arc};

use self::pool::Buf;
pub use self::{
    error::{RingError, SetupFailure},
    reactor::{OpKey, Ring, RingOptions},
};
use crate::units::{ByteLen, ByteOffset};

/// What the drive loop called an operation when it started it; handed back untouched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OpTag(pub u32);

/// What a finished operation was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MoveOp {
    /// File to buffer.
    Read,
    /// Buffer to file.
    Write,
    /// fdatasync(2).
    Sync,
    /// fallocate(2), to make a hole.
    Punch,
    /// statx(2).
    Stat,
}

/// A finished file operation, with its buffer.
#[derive(Debug)]
pub struct Moved {
    /// As given.
    pub tag: OpTag,
    /// What it was.
    pub op: MoveOp,
    /// The buffer given; `None` where none moved.
    pub buf: Option<Buf>,
    /// Bytes moved, from the start of the part of the buffer that was named. May be short: a read that meets the end of the file, a write that meets the
    /// end of the space.
    pub result: io::Result<usize>,
    /// What a successful [`MoveOp::Stat`] found.
    pub stat: Option<FileStat>,
}

/// What a file is, as far as anybody needs it here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileStat {
    /// `st_dev`.
    pub device: u64,
    /// Inode.
    pub inode: u64,
    /// Bytes.
    pub len: ByteLen,
    /// Time of the last change of contents: seconds and nanoseconds since 1970.
    pub modified: (i64, i64),
    /// Somewhere it has a name.
    pub named: bool,
}

/// Something that [`Ring::next`] brought.
#[derive(Debug)]
pub enum Completion<U> {
    /// A file operation is done.
    Moved(Moved),
    /// A watched descriptor became readable (or failed, which a read of it will tell).
    Event(U),
    /// A timer ran out.
    Timer(U),
}

/// How long [`Mover::read_now`] may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// As long as memory needs to be copied: only what the page cache holds (RWF_NOWAIT).
    Never,
    /// The file is memory; at worst it is swapped out.
    ForMemory,
}

/// Moves bytes between files and buffers, without blocking. Implemented by [`Ring`] and by the simulation.
///
/// Operations may complete in any order; one that must follow another is to be started after the other's completion.
pub trait Mover {
    /// Reads from `at` on into `part` of `buf`.
    ///
    /// # Errors
    /// The buffer, when as many operations are in flight as there may be: try again after the next completion.
    fn read(
        &mut self,
        file: &Arc<File>,
        at: ByteOffset,
        buf: Buf,
        part: Range<usize>,
        tag: OpTag,
    ) -> Result<(), Buf>;

    /// Writes `part` of `buf` at `at`. `durable`: done only when the bytes would survive a power cut
    /// (RWF_DSYNC), which is what FUA promises.
    ///
    /// # Errors
    /// As [`Mover::read`].
    fn write(
        &mut self,
        file: &Arc<File>,
        at: ByteOffset,
        buf: Buf,
        part: Range<usize>,
        durable: bool,
        tag: OpTag,
    ) -> Result<(), Buf>;

    /// Fills `to` from `at` now, by a system call, if all of it is in memory and `wait` allows. `false`: it is not; start a read.
    fn read_now(&mut self, file: &Arc<File>, at: ByteOffset, to: &mut [u8], wait: Wait) -> bool;

    /// Lets the kernel know that these bytes will be read soon. Nobody hears of its end.
    fn will_read(&mut self, file: &Arc<File>, at: ByteOffset, len: ByteLen);

    /// Makes durable everything whose write completed before this call (fdatasync). `false`: full, as in [`Mover::read`].
    #[must_use]
    fn sync(&mut self, file: &Arc<File>, tag: OpTag) -> bool;

    /// Gives the storage behind `len` bytes at `at` back, so that they read as zeroes; the file keeps its length
    /// (FALLOC_FL_PUNCH_HOLE). `false`: full, as in [`Mover::read`].
    #[must_use]
    fn punch(&mut self, file: &Arc<File>, at: ByteOffset, len: ByteLen, tag: OpTag) -> bool;

    /// Asks whoever has the file what it is now (AT_STATX_FORCE_SYNC). `false`: full, as in [`Mover::read`].
    #[must_use]
    fn stat(&mut self, file: &Arc<File>, tag: OpTag) -> bool;
}
