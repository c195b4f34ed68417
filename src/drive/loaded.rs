//! An image in a drive: what was written to it, what a stream will read next, and whether its source answers.

use std::time::Duration;

use crate::{
    media::{Extent, Medium, SourceState},
    ring::Mover,
    units::{ByteLen, ByteRange},
};

use super::{
    command::ImageState,
    flights::{Owner, Purpose},
    function::Drive,
    read_ahead::ReadAhead,
};

/// One hint to the kernel, which cuts off what is longer than one request to the storage (mm/readahead.c); 128 KiB is the least.
const HINT_MAX: ByteLen = ByteLen(128 * 1024);
/// The most that a PRE-FETCH brings: eight hints, which leaves room on the ring for what cannot do without.
const PREFETCH_MAX: ByteLen = ByteLen(1024 * 1024);

/// Whether the source of an image answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Health {
    Online,
    /// It did not, and is asked now and then whether it does again.
    Offline {
        /// When to ask next.
        ask_at: Duration,
        /// How long to wait after that.
        pause: Duration,
        /// It has answered; what is late has still to end.
        answers: bool,
        /// What it did not give.
        wanted: Option<ByteRange>,
        /// People have heard of it; otherwise the medium tells them by itself.
        told: bool,
    },
    /// Somebody else has changed the image: old and new would mix.
    Changed,
}

/// An image in a drive.
#[derive(Debug)]
pub(super) struct Loaded {
    pub(super) image: Box<dyn Medium>,
    /// Which of the images that were inserted.
    pub(super) number: u32,
    /// The host has read from it.
    pub(super) first_read: bool,
    /// Counts commands that wrote.
    pub(super) written: u32,
    /// The last of them whose bytes are durable.
    pub(super) stored: u32,
    /// A sync has succeeded since it was inserted. Until then bytes may be in memory only that came before: by a daemon that died,
    /// or before an eject by force.
    pub(super) synced: bool,
    /// A sync has failed. The kernel reports that once and forgets the bytes, so no later sync may be believed.
    pub(super) lost: bool,
    /// Its bytes were not all in memory when last asked for, or are never expected to be.
    pub(super) slow: bool,
    pub(super) health: Health,
    /// When the source was last found to answer again.
    pub(super) back_since: Option<Duration>,
    /// When the file was last looked at.
    pub(super) looked: Duration,
    /// The file has lost its name, and people have heard of it.
    pub(super) nameless: bool,
    pub(super) stream: ReadAhead,
}

/// The image in a drive, whatever else of the function is in use.
pub(super) fn image_of(drives: &[Drive], lun: u8) -> Option<&dyn Medium> {
    drives.get(usize::from(lun))?.loaded.as_ref().map(|loaded| &*loaded.image)
}

impl Loaded {
    pub(super) fn new(image: Box<dyn Medium>, number: u32, slow: bool) -> Self {
        Self {
            image,
            number,
            first_read: false,
            written: 0,
            stored: 0,
            synced: false,
            lost: false,
            slow,
            health: Health::Online,
            back_since: None,
            looked: Duration::ZERO,
            nameless: false,
            stream: ReadAhead::default(),
        }
    }

    pub(super) fn purpose(&self, owner: Owner, lun: u8) -> Purpose {
        Purpose { owner, lun, image: self.number, written: self.written }
    }

    /// Whether something was written that is not known to be durable.
    pub(super) fn is_dirty(&self) -> bool {
        self.written != self.stored
    }

    /// Whether something was, before the last command of which this is the count.
    pub(super) fn was_dirty(&self, written: u32) -> bool {
        self.stored.wrapping_add(1) != written
    }

    /// Whether something is to be made durable: what was written, or may have been before it was inserted.
    pub(super) fn is_unstored(&self) -> bool {
        let may_be = !self.synced && self.health == Health::Online;
        (self.is_dirty() || may_be) && self.image.file_for_sync().is_some()
    }

    /// Asks the kernel for what a stream will read next, where its bytes were not in memory. Whether the read goes on with one.
    pub(super) fn read_ahead(&mut self, range: ByteRange, mover: &mut impl Mover) -> bool {
        let (goes_on, hint) = self.stream.advance(range);
        if let Some(hint) = hint.filter(|_| self.slow) {
            self.hint(hint, mover);
        }
        goes_on
    }

    /// The host will read these bytes soon. No more than a stream has ahead is asked for.
    pub(super) fn will_read(&self, range: ByteRange, mover: &mut impl Mover) {
        self.hint(range.split_at(PREFETCH_MAX).0, mover);
    }

    fn hint(&self, mut hint: ByteRange, mover: &mut impl Mover) {
        while !hint.is_empty() && self.health == Health::Online {
            let (piece, rest) = hint.split_at(HINT_MAX);
            hint = rest;
            if let Extent::File { file, offset, len } = self.image.map(piece) {
                mover.will_read(&file, offset, len);
            }
        }
    }

    /// What the drive found, or what the medium knows by itself, whichever is worse.
    pub(super) fn source_state(&self) -> SourceState {
        let found = match self.health {
            Health::Online => SourceState::Online,
            Health::Offline { .. } => SourceState::Offline,
            Health::Changed => SourceState::Changed,
        };
        found.max(self.image.source_state())
    }

    pub(super) fn state(&self) -> ImageState {
        ImageState {
            name: self.image.name(),
            bytes: self.image.stored().0,
            rw: self.image.writable(),
            first_read: self.first_read,
            source: self.source_state(),
            fetch: self.image.fetch_state(),
            overlay: self.image.overlay_state(),
        }
    }
}
