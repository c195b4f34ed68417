//! The start of what a stream reads next, brought into a buffer while the host still takes the bytes before it.
//!
//! ```text
//!              a stream's read is on its way            flush
//!   Nothing ─────────────────────────────────► Wanted ────────► Ready ── its read comes ─► (to the data phase)
//!      ▲                                          │               ▲  └── anything else, or too late ─► Nothing
//!      │                              not in memory; by the ring  │
//!      │                                          └─► Reading ────┘
//!      │                                                 ├── its read comes ─► Adopted ──┐
//!      │                                                 └── anything else ──► Abandoned ┤
//!      └──────────────────────────────── the ring is done ───────────────────────────────┘
//! ```
//! So the host's next command finds its bytes in one buffer, and the link does not wait for storage. Called by `phases` and
//! `function`. Invariants: one buffer and one operation at most; what somebody may have changed since, by any command but a read, is
//! dropped; bytes are kept for [`KEPT`] only, because others may write to the image.

use std::time::Duration;

use crate::{
    gadget::endpoints::Endpoints,
    media::Extent,
    ring::{Moved, Mover, OpTag, pool::Buf},
    units::{ByteLen, ByteRange},
};

use super::{
    data_in::{FIRST_CHUNK, read_now},
    function::{Function, Phase},
    pipes::DATA_LEN,
};

/// The read of the ring that no command has asked for.
pub(super) const PREFETCH: OpTag = OpTag(u32::MAX);
/// Of bulk endpoints, at SuperSpeed; a multiple of the others (USB 3.2 §9.6.6).
const LARGEST_PACKET: u64 = 1024;
/// A host that streams comes back sooner.
const KEPT: Duration = Duration::from_millis(100);

/// Bytes of a drive's image.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted {
    lun: u8,
    range: ByteRange,
}

#[derive(Debug, Default)]
pub(super) enum Prefetch {
    #[default]
    Nothing,
    Wanted(Wanted),
    Reading(Wanted),
    Ready {
        what: Wanted,
        buf: Buf,
        since: Duration,
    },
    Adopted,
    Abandoned,
}

/// The first `len` bytes of a command, in the first bytes of a buffer: all of them, or whole packets.
#[derive(Debug)]
pub(super) enum Head {
    /// Here.
    Ready { buf: Buf, len: ByteLen },
    /// They come with [`PREFETCH`].
    Reading { len: ByteLen },
}

impl Wanted {
    /// How much of it is of use to a command for `range` of the unit's bytes.
    fn of_use(&self, lun: u8, range: ByteRange) -> Option<ByteLen> {
        let (len, all) = (self.range.len(), range.len());
        let used = if len < all { ByteLen(len.0 - len.0 % LARGEST_PACKET) } else { all };
        (self.lun == lun && self.range.start() == range.start() && used > ByteLen(0)).then_some(used)
    }
}

impl Prefetch {
    /// The first bytes of `range`, if they are there or on their way. They are no longer kept, whichever way.
    fn take(&mut self, lun: u8, range: ByteRange, now: impl FnOnce() -> Duration) -> Option<Head> {
        match std::mem::take(self) {
            Self::Ready { what, buf, since } if now().saturating_sub(since) < KEPT => {
                what.of_use(lun, range).map(|len| Head::Ready { buf, len })
            }
            Self::Reading(what) => {
                let len = what.of_use(lun, range);
                *self = if len.is_some() { Self::Adopted } else { Self::Abandoned };
                len.map(|len| Head::Reading { len })
            }
            other => {
                *self = other;
                self.discard();
                None
            }
        }
    }

    pub(super) fn discard(&mut self) {
        *self = match std::mem::take(self) {
            Self::Nothing | Self::Wanted(_) | Self::Ready { .. } => Self::Nothing,
            Self::Reading(_) | Self::Abandoned => Self::Abandoned,
            Self::Adopted => Self::Adopted,
        };
    }

    /// The ring is done with it. Gives it back if it is a command's by now.
    pub(super) fn done(&mut self, done: Moved, now: Duration) -> Option<Moved> {
        match std::mem::take(self) {
            Self::Adopted => return Some(Moved { tag: OpTag(0), ..done }),
            Self::Reading(what) => {
                let is_whole = done.result.is_ok_and(|len| ByteLen::from(len) == what.range.len());
                if let Some(buf) = done.buf.filter(|_| is_whole) {
                    *self = Self::Ready { what, buf, since: now };
                }
            }
            _ => {}
        }
        None
    }

    /// What a read of `range` lets expect, if it goes on with a stream.
    fn want(&mut self, lun: u8, range: ByteRange) {
        self.discard();
        let len = range.len().min(ByteLen::from(DATA_LEN));
        if let (Self::Nothing, Some(range)) = (&self, ByteRange::new(range.end(), len)) {
            *self = Self::Wanted(Wanted { lun, range });
        }
    }
}

impl<E: Endpoints, M: Mover> Function<E, M> {
    /// A read of `range` begins: its first bytes, if they are here, and what to bring next.
    pub(super) fn prefetched(&mut self, lun: u8, range: ByteRange) -> Option<Head> {
        let head = self.prefetch.take(lun, range, &self.clock);
        if matches!(head, Some(Head::Reading { .. })) {
            self.mover.adopt();
        }
        head
    }

    /// A read of `range` goes on with a stream. Where bytes are at hand, those of a short command are brought as quickly when it
    /// comes, and for a long one the first are a small part, but bringing them competes with the link.
    pub(super) fn want_next(&mut self, lun: u8, range: ByteRange, slow: bool) {
        if slow || (FIRST_CHUNK..=DATA_LEN).contains(&range.len().to_usize()) {
            self.prefetch.want(lun, range);
        }
    }

    /// Brings what is wanted, once the command before it is out of hand.
    pub(super) fn prefetch(&mut self) {
        let Prefetch::Wanted(what) = self.prefetch else { return };
        if !matches!(self.phase, Phase::Idle) {
            return;
        }
        self.prefetch = Prefetch::Nothing;
        let Wanted { lun, range } = what;
        let Some(loaded) = self.drives.get_mut(usize::from(lun)).and_then(|drive| drive.loaded.as_mut())
        else {
            return;
        };
        let Extent::File { file, offset, len } = loaded.image.map(range) else { return };
        let Some(mut buf) = self.pipes.data().filter(|_| len == range.len()) else { return };
        // Past the count: no command has asked for it yet.
        let mover = self.mover.inner();
        let all = 0..len.to_usize();
        let is_here = read_now(&*loaded.image, mover, &file, offset, &mut buf, all.clone());
        loaded.slow = !is_here;
        if is_here {
            self.prefetch = Prefetch::Ready { what, buf, since: (self.clock)() };
        } else if mover.read(&file, offset, buf, all, PREFETCH).is_ok() {
            self.prefetch = Prefetch::Reading(what);
        }
    }
}
