//! The seam between an image and the drive loop.

use std::{fmt, fs::File, io, sync::Arc};

use super::{FaultKind, Identity, SourceState, overlay::OverlayState, url::FetchState};
use crate::units::{BlockSize, ByteLen, ByteOffset, ByteRange};

/// Where a run of an image's bytes is.
#[derive(Clone, Debug)]
pub enum Extent {
    /// In this file: read or write them there.
    File {
        /// The file; the handle keeps it open while bytes move.
        file: Arc<File>,
        /// Where in the file.
        offset: ByteOffset,
        /// How many.
        len: ByteLen,
    },
    /// Nowhere: they read as zeroes.
    Zero {
        /// How many.
        len: ByteLen,
    },
    /// Not here yet, but being fetched: to be asked for again once the medium has called its [`Waker`].
    Pending {
        /// How many.
        len: ByteLen,
    },
    /// They cannot be had.
    Fault {
        /// Why.
        kind: FaultKind,
        /// How many.
        len: ByteLen,
    },
}

/// What has become of a file whose bytes are still those of the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Nothing.
    Same,
    /// It has lost its name, to another file or for good.
    Nameless,
}

/// How to learn whether the file of a medium is still what was inserted.
#[derive(Clone, Copy, Debug)]
pub enum Watch<'a> {
    /// After each read, by [`Medium::look`]; where that is about a server, by asking now and then besides.
    Look,
    /// After each read, by asking for what the file is then: the answer is for [`Medium::compare`].
    Ask(&'a Arc<File>),
    /// By asking now and then, behind the commands.
    Seldom,
}

/// A run of bytes of which all or none have storage behind them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allocation {
    /// Whether they have; those that have not read as zeroes.
    pub stored: bool,
    /// How many.
    pub len: ByteLen,
}

/// How near bytes are, which decides how they are best read. Of two the farther is the greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Residence {
    /// In memory always: tmpfs.
    Memory,
    /// On storage of this machine, so perhaps in the page cache, which can be asked without waiting.
    Local,
    /// Behind a network, or who knows where: whoever asks may wait for ever.
    Remote,
}

impl Residence {
    /// Whether a write that fails so may tell of bytes that were written before, of which the kernel then tells nobody else: NFS tells
    /// any write of what there is no room for.
    pub fn tells_of_others(self, kind: FaultKind) -> bool {
        let no_room = matches!(kind, FaultKind::NoSpace | FaultKind::Quota | FaultKind::TooLarge);
        no_room && self == Self::Remote
    }
}

/// Tells the drive that bytes which were [`Extent::Pending`] are here, or will never be: that it shall ask again. From any thread,
/// at any time, as often as wanted; it does not block.
#[derive(Clone)]
pub struct Waker(Arc<dyn Fn() + Send + Sync>);

impl Waker {
    /// Wakes by calling `f`.
    pub fn new(f: impl Fn() + Send + Sync + 'static) -> Self {
        Self(Arc::new(f))
    }

    /// Wakes.
    pub fn wake(&self) {
        (self.0)();
    }
}

impl Default for Waker {
    /// Nobody sleeps.
    fn default() -> Self {
        Self::new(|| ())
    }
}

impl fmt::Debug for Waker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Waker")
    }
}

/// Of a medium for which a sync of one file is not enough: makes durable all that was written to it so far, by itself.
pub trait Store {
    /// Begins to. Calls the medium's [`Waker`] when that has ended; does not block.
    fn begin(&self, ticket: u32);

    /// One that has ended, with its ticket.
    fn next(&self) -> Option<(u32, io::Result<()>)>;

    /// Whether something that was written may be lost for good. If not, one that has failed may be tried again.
    fn has_lost(&self) -> bool;
}

/// Something that holds the bytes of a drive. Called from the drive thread, once per piece of a command: implementations
/// answer from memory, and neither block nor allocate.
pub trait Medium: fmt::Debug + Send {
    /// What people call it: a path, or the name that came with a descriptor.
    fn name(&self) -> String;

    /// The blocks that it was measured in.
    fn block_size(&self) -> BlockSize;

    /// Length in bytes; whole blocks.
    fn len(&self) -> ByteLen;

    /// Bytes that are really stored; [`Medium::len`] fills up the last block.
    fn stored(&self) -> ByteLen {
        self.len()
    }

    /// Whether there is nothing in it. Media are never empty; an empty drive has no medium.
    fn is_empty(&self) -> bool {
        self.len().0 == 0
    }

    /// Where the bytes at the start of `range` are. The extent is never longer than `range` and, unless `range` is empty, never
    /// empty: ask again for what is left. Beyond the end there is only [`FaultKind::OutOfRange`].
    ///
    /// To ask is to wish: a medium that has to fetch bytes starts to fetch what it has not of all of `range`, answers
    /// [`Extent::Pending`] for its start, and calls its [`Waker`] when that answer has changed. The drive asks so ahead of a
    /// stream, too, and may never come back for what it asked for.
    fn map(&self, range: ByteRange) -> Extent;

    /// Where bytes that are to be written at the start of `range` go, of a writable medium: for the rest, ask again. A medium may have to
    /// prepare the place first: it is [`Extent::Pending`] until then.
    fn map_write(&self, range: ByteRange) -> Extent {
        self.map(range)
    }

    /// The bytes of `range` are where [`Medium::map_write`] said, or a hole is. For how many of them, from the start, that holds for
    /// good; the rest has to be written again. Called before the command ends; does not block.
    ///
    /// # Errors
    /// Why they are lost.
    fn written(&self, range: ByteRange) -> Result<ByteLen, FaultKind> {
        Ok(range.len())
    }

    /// What to call when an answer of [`Extent::Pending`] has changed. Given once, before the first [`Medium::map`].
    fn set_waker(&mut self, _waker: Waker) {}

    /// Whether bytes may be written where [`Medium::map`] says they are.
    fn writable(&self) -> bool;

    /// How near the bytes of its files are.
    fn residence(&self) -> Residence {
        Residence::Remote
    }

    /// Whether a hole can be made in its file, so that bytes give their storage back and read as zeroes.
    fn thin(&self) -> bool {
        false
    }

    /// Whether the bytes from `at` on have storage behind them, and for how many bytes that holds: at least one, and never past
    /// the end. Whoever cannot tell without waiting says that all have.
    fn allocation(&self, at: ByteOffset) -> Allocation {
        Allocation { stored: true, len: ByteLen(self.len().0.saturating_sub(at.0)) }
    }

    /// How to learn whether the file is still what was inserted.
    fn watch(&self) -> Watch<'_> {
        match self.residence() {
            Residence::Memory | Residence::Local => Watch::Look,
            Residence::Remote => Watch::Seldom,
        }
    }

    /// Whether it is, where that can be told without waiting.
    ///
    /// # Errors
    /// What has become of it.
    fn look(&self) -> Result<Standing, FaultKind> {
        Ok(Standing::Same)
    }

    /// The same by what the file is `now`, for which the drive has asked.
    ///
    /// # Errors
    /// As [`Medium::look`].
    fn compare(&self, _now: &Identity) -> Result<Standing, FaultKind> {
        Ok(Standing::Same)
    }

    /// What to fdatasync so that completed writes are durable; `None` where there is nothing to make durable.
    fn file_for_sync(&self) -> Option<&Arc<File>>;

    /// What whoever is to serve it after the end of this process needs: its file, and what that was; `None` where there is more to it.
    fn kept(&self) -> Option<(&Arc<File>, Identity)> {
        None
    }

    /// What its file was when it was inserted, where it is one.
    fn identity(&self) -> Option<Identity> {
        None
    }

    /// Whether its file is a qcow2 file, and the medium the disk in it.
    fn is_qcow2(&self) -> bool {
        false
    }

    /// Who makes completed writes durable, if not a sync of that file.
    fn own_store(&self) -> Option<&dyn Store> {
        None
    }

    /// What became of the host's writes, of a medium that keeps them from its image.
    fn overlay_state(&self) -> Option<OverlayState> {
        None
    }

    /// How the fetching goes, of a medium whose bytes come from elsewhere.
    fn fetch_state(&self) -> Option<FetchState> {
        None
    }

    /// Whether its source can be used, of a medium that asks its source itself.
    fn source_state(&self) -> SourceState {
        SourceState::Online
    }
}

impl Extent {
    /// Bytes in it.
    pub fn len(&self) -> ByteLen {
        match self {
            Self::File { len, .. } | Self::Zero { len } | Self::Pending { len } | Self::Fault { len, .. } => {
                *len
            }
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len().0 == 0
    }
}
