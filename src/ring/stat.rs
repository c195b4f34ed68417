//! What statx(2) is asked for and answers.

use std::mem;

use io_uring::{opcode, squeue, types::Fd};

use super::FileStat;
use crate::units::ByteLen;

/// No more than [`FileStat`] takes: after each read the time of the last access is out of date, and a file server would be asked
/// for it.
const WANTED: u32 = libc::STATX_INO | libc::STATX_SIZE | libc::STATX_MTIME | libc::STATX_NLINK;

/// Where the kernel writes its answer: heap memory, which does not move with this.
#[derive(Debug)]
pub(super) struct Found(Box<libc::statx>);

impl Default for Found {
    fn default() -> Self {
        // SAFETY: all-zero bytes are a valid statx: integers only.
        Self(Box::new(unsafe { mem::zeroed() }))
    }
}

impl Found {
    /// The operation that fills it. It must be here until that has ended.
    pub(super) fn entry(&mut self, file: Fd) -> squeue::Entry {
        let to: *mut libc::statx = &raw mut *self.0;
        opcode::Statx::new(file, c"".as_ptr(), to.cast())
            .flags(libc::AT_EMPTY_PATH | libc::AT_STATX_FORCE_SYNC)
            .mask(WANTED)
            .build()
    }

    pub(super) fn stat(&self) -> FileStat {
        let found = &self.0;
        FileStat {
            device: libc::makedev(found.stx_dev_major, found.stx_dev_minor),
            inode: found.stx_ino,
            len: ByteLen(found.stx_size),
            modified: (found.stx_mtime.tv_sec, found.stx_mtime.tv_nsec.into()),
            named: found.stx_nlink > 0,
        }
    }
}
