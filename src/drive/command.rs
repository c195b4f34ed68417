//! What can be asked of a drive, and what a drive tells: the one definition of each, which the control socket carries as JSON.
//!
//! Requests go to the function's thread through [`Handle::send`] and are answered through a [`ReplyTo`], between two commands of
//! the host; events flow the other way. Nothing here blocks.

use std::{fmt, io, sync::Arc, time::Duration};

use crossbeam_channel::{Receiver, Sender, TrySendError};
use nix::sys::eventfd::{EfdFlags, EventFd};
use serde::{Deserialize, Serialize};

use crate::{
    bot::StallPolicy,
    gadget::Speed,
    media::{Medium, SourceState, overlay::OverlayState, url::FetchState},
    scsi::Kind,
    units::BlockSize,
};

use super::statistics::Statistics;

/// Most requests that wait for one function; further ones are refused as [`Refusal::Busy`].
pub const REQUESTS_MAX: usize = 64;

/// A drive's number, counted over all functions in the order of the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct DriveIndex(pub u16);

/// A drive as it is now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DriveState {
    /// Its number.
    pub drive: DriveIndex,
    /// Its name in the configuration.
    pub name: String,
    /// The USB function that carries it.
    pub function: String,
    /// Its logical unit number within that function.
    pub lun: u8,
    /// What the host sees.
    pub kind: Kind,
    /// The blocks that it has: an image is to be opened for these.
    pub block_size: BlockSize,
    /// The image in it, if any.
    pub image: Option<ImageState>,
    /// Whether the next image will be inserted writable unless the insert says otherwise.
    pub rw: bool,
    /// Whether the host prevents removal (PREVENT ALLOW MEDIUM REMOVAL).
    pub prevented: bool,
    /// How short data phases end.
    pub stall: StallPolicy,
    /// The host, as the device port shows it.
    pub host: HostState,
}

/// What a drive has done.
#[derive(Clone, Debug)]
pub struct DriveStatistics {
    /// Its number.
    pub drive: DriveIndex,
    /// Its name in the configuration.
    pub name: String,
    /// What it is.
    pub kind: Kind,
    /// Since its function started, when every number was zero.
    pub uptime: Duration,
    /// The numbers.
    pub statistics: Statistics,
}

/// The image in a drive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageState {
    /// Its path, or the name that came with a descriptor.
    pub name: String,
    /// Its length in bytes.
    pub bytes: u64,
    /// Whether the host may write.
    pub rw: bool,
    /// Whether the host has read from it since it was inserted.
    pub first_read: bool,
    /// Whether its source can be used.
    pub source: SourceState,
    /// How the fetching goes, of an image behind a URL.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub fetch: Option<FetchState>,
    /// What becomes of the host's writes, of an image with an overlay.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub overlay: Option<OverlayState>,
}

/// What the device port knows of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum HostState {
    /// No host has configured us.
    Disconnected,
    /// A host uses us.
    Connected {
        /// The speed of the link.
        speed: Speed,
    },
    /// A host has put the bus to sleep.
    Suspended {
        /// The speed of the link.
        speed: Speed,
    },
}

/// Who took an image out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EjectedBy {
    /// A client of the control socket.
    Client,
    /// A client, against the host's PREVENT.
    Force,
    /// The host (START STOP UNIT with LoEj).
    Host,
}

/// Something that happened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// An image was inserted.
    Inserted {
        /// Where.
        drive: DriveIndex,
        /// What.
        image: ImageState,
    },
    /// An image was taken out.
    Ejected {
        /// Where.
        drive: DriveIndex,
        /// What, as [`ImageState::name`].
        image: String,
        /// By whom.
        by: EjectedBy,
    },
    /// The host prevents removal, or allows it again.
    Prevented {
        /// Which drive.
        drive: DriveIndex,
        /// The new state.
        prevented: bool,
    },
    /// The host read from an image for the first time since it was inserted.
    FirstRead {
        /// Which drive.
        drive: DriveIndex,
        /// The first block it asked for.
        lba: u64,
    },
    /// A host has configured the function.
    Connected {
        /// Which function.
        function: String,
        /// The speed of the link.
        speed: Speed,
    },
    /// The host has gone, or has deconfigured the function.
    Disconnected {
        /// Which function.
        function: String,
    },
    /// The host sent a Bulk-Only Mass Storage Reset.
    Reset {
        /// Which function.
        function: String,
    },
    /// The host put the bus to sleep.
    Suspended {
        /// Which function.
        function: String,
    },
    /// The host woke the bus.
    Resumed {
        /// Which function.
        function: String,
    },
    /// The source of an image does not answer. Commands that need it are refused as NOT READY, and it is asked again and again.
    SourceOffline {
        /// Which drive.
        drive: DriveIndex,
        /// Which image, as [`ImageState::name`].
        image: String,
        /// Why, for a person.
        cause: String,
    },
    /// It answers again.
    SourceOnline {
        /// Which drive.
        drive: DriveIndex,
        /// Which image, as [`ImageState::name`].
        image: String,
    },
    /// Somebody else has changed the image. Commands that would mix old and new are refused as MEDIUM ERROR until it is inserted again;
    /// after a file was only replaced there are none.
    SourceChanged {
        /// Which drive.
        drive: DriveIndex,
        /// Which image, as [`ImageState::name`].
        image: String,
        /// What happened, for a person.
        cause: String,
    },
    /// What is missing of an image behind a URL will never come, or it has the wrong checksum.
    SourceFailed {
        /// Which drive.
        drive: DriveIndex,
        /// Which image, as [`ImageState::name`].
        image: String,
        /// Why, for a person.
        cause: String,
    },
    /// A storage area can be used, for the first time or again.
    AreaMounted {
        /// Its name.
        area: String,
        /// The server, as a URL.
        source: String,
        /// The mount point.
        path: String,
    },
    /// A storage area cannot be used, or not any more. It is tried again and again.
    AreaLost {
        /// Its name.
        area: String,
        /// Why, for a person.
        cause: String,
    },
    /// A command failed in a way that a person should hear of: not the everyday NOT READY, UNIT ATTENTION and ILLEGAL REQUEST.
    Failed {
        /// Which drive.
        drive: DriveIndex,
        /// The operation code.
        opcode: u8,
        /// Sense key, additional sense code and qualifier, as the host sees them.
        sense: [u8; 3],
        /// Why, for a person.
        cause: String,
    },
    /// An image is being downloaded, and will then be inserted.
    Fetching {
        /// Where.
        drive: DriveIndex,
        /// What, as [`ImageState::name`].
        image: String,
        /// Bytes that are here.
        here: u64,
        /// Of so many, if the server says so.
        total: Option<u64>,
    },
    /// What is in an overlay, or all that the host sees of it, is being copied.
    Copying {
        /// Of which drive.
        drive: DriveIndex,
        /// The file that is written.
        to: String,
        /// Bytes that are.
        done: u64,
        /// Of so many.
        total: u64,
    },
    /// All of an image behind a URL is here.
    Fetched {
        /// Where.
        drive: DriveIndex,
        /// What, as [`ImageState::name`].
        image: String,
        /// It has the checksum that it should.
        checked: bool,
        /// Where it is kept.
        kept: Option<String>,
    },
}

/// A change of a drive's settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Setting {
    /// Whether the next image is inserted writable.
    ReadWrite(bool),
    /// What the host sees; only while empty, because INQUIRY data change with it.
    Kind(Kind),
    /// How short data phases end; holds for the whole function.
    Stall(StallPolicy),
}

/// Why a request was not carried out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The host prevents removal.
    #[error("the host prevents removal; eject it there, or eject by force")]
    Prevented,
    /// There is an image in the drive already.
    #[error("the drive holds {0:?}; eject it first")]
    Occupied(String),
    /// There is no such drive.
    #[error("the function has no such drive; see `ringdrive state`")]
    NoDrive,
    /// The drive became another kind between the opening of the image and its insertion.
    #[error("the drive's kind has just changed; insert again")]
    KindChanged,
    /// There is no image in the drive.
    #[error("the drive is empty; insert an image first")]
    Empty,
    /// The setting cannot change while an image is inserted.
    #[error("{0} cannot change while an image is inserted; eject it first")]
    Inserted(&'static str),
    /// Optical drives are never writable.
    #[error("an optical drive is read-only; insert into a disk drive to write")]
    Optical,
    /// What was written could not be made durable, so the image was kept in the drive.
    #[error(
        "what the host wrote could not be stored: {0}; eject by force, and take the contents of the image with care"
    )]
    Sync(String),
    /// What was written is still being made durable, or the storage no longer answers; the image was kept in the drive.
    #[error(
        "the storage of {0:?} has not stored yet what the host wrote; try again later, or eject by force and take the contents with care"
    )]
    NotStored(String),
    /// Too many requests wait.
    #[error("the drive has too many requests waiting; try again")]
    Busy,
    /// The function's thread has ended.
    #[error("the function has stopped; see the daemon's log")]
    Stopped,
}

/// Where an answer goes: called once, on the function's thread, so it must not block.
pub struct ReplyTo<T>(Box<dyn FnOnce(T) + Send>);

impl<T> ReplyTo<T> {
    /// Answers by calling `f`.
    pub fn new(f: impl FnOnce(T) + Send + 'static) -> Self {
        Self(Box::new(f))
    }

    /// Answers.
    pub fn send(self, answer: T) {
        (self.0)(answer);
    }
}

impl<T> fmt::Debug for ReplyTo<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ReplyTo")
    }
}

/// What can be asked of a function and its drives. `lun` is the drive's place in the function.
#[derive(Debug)]
pub enum Request {
    /// All its drives as they are.
    State {
        /// In the order of their LUNs.
        reply: ReplyTo<Vec<DriveState>>,
    },
    /// What its drives have done.
    Stats {
        /// Which drive; all if none is named.
        lun: Option<u8>,
        /// In the order of their LUNs; none if there is no such drive.
        reply: ReplyTo<Vec<DriveStatistics>>,
    },
    /// Put an opened image into an empty drive.
    Insert {
        /// Which drive.
        lun: u8,
        /// The image, opened with the access and the block size that the drive needs.
        image: Box<dyn Medium>,
        /// Answered when the host can see it.
        reply: ReplyTo<Result<ImageState, Refusal>>,
    },
    /// Take the image out, once all that was written is durable.
    Eject {
        /// Which drive.
        lun: u8,
        /// Against the host's PREVENT, and even if what was written cannot be stored.
        force: bool,
        /// The name of the image that came out.
        reply: ReplyTo<Result<String, Refusal>>,
    },
    /// Take the image out, without what was written and is not durable yet: nobody wants it.
    Discard {
        /// Which drive.
        lun: u8,
        /// Against the host's PREVENT.
        force: bool,
        /// The name of the image that came out.
        reply: ReplyTo<Result<String, Refusal>>,
    },
    /// Change a setting.
    Set {
        /// Which drive.
        lun: u8,
        /// What.
        setting: Setting,
        /// Whether it was changed.
        reply: ReplyTo<Result<(), Refusal>>,
    },
    /// End the thread, and leave the host to a successor: the command at hand is ended, if that is soon, and what was written is made
    /// durable, if that is soon.
    Leave {
        /// Answered last, with what could not be stored.
        reply: ReplyTo<Result<(), Refusal>>,
    },
    /// Make everything durable, answer nothing more, end the thread.
    Stop {
        /// Answered last, with what could not be stored.
        reply: ReplyTo<Result<(), Refusal>>,
    },
}

/// The way to a function's thread. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Handle {
    requests: Sender<Request>,
    wake: Arc<EventFd>,
}

/// The function's end of a [`Handle`].
#[derive(Debug)]
pub struct Inbox {
    requests: Receiver<Request>,
    wake: Arc<EventFd>,
}

impl Handle {
    /// Both ends of a new way.
    ///
    /// # Errors
    /// The error of eventfd(2).
    pub fn pair() -> io::Result<(Self, Inbox)> {
        let (tx, rx) = crossbeam_channel::bounded(REQUESTS_MAX);
        let wake = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?);
        Ok((Self { requests: tx, wake: wake.clone() }, Inbox { requests: rx, wake }))
    }

    /// Queues a request. One that cannot be queued is answered at once, with [`Refusal::Busy`] or [`Refusal::Stopped`].
    pub fn send(&self, request: Request) {
        match self.requests.try_send(request) {
            // A full eventfd counter is a wake-up that nobody has taken yet.
            Ok(()) => drop(self.wake.write(1)),
            Err(TrySendError::Full(request)) => request.refuse(&Refusal::Busy),
            Err(TrySendError::Disconnected(request)) => request.refuse(&Refusal::Stopped),
        }
    }
}

impl Inbox {
    /// Readable when a request may wait.
    pub fn wake(&self) -> &Arc<EventFd> {
        &self.wake
    }

    /// The next request, if one waits.
    pub fn take(&self) -> Option<Request> {
        self.requests.try_recv().ok()
    }
}

impl Request {
    /// Which drive it is about; `None`: all.
    pub(super) fn lun(&self) -> Option<u8> {
        match self {
            Self::State { .. } | Self::Stats { .. } | Self::Stop { .. } | Self::Leave { .. } => None,
            Self::Insert { lun, .. }
            | Self::Eject { lun, .. }
            | Self::Discard { lun, .. }
            | Self::Set { lun, .. } => Some(*lun),
        }
    }

    /// Answers it with a refusal; a query with no drives.
    pub fn refuse(self, why: &Refusal) {
        match self {
            Self::State { reply } => reply.send(Vec::new()),
            Self::Stats { reply, .. } => reply.send(Vec::new()),
            Self::Insert { reply, .. } => reply.send(Err(why.clone())),
            Self::Eject { reply, .. } | Self::Discard { reply, .. } => reply.send(Err(why.clone())),
            Self::Set { reply, .. } | Self::Stop { reply } | Self::Leave { reply } => {
                reply.send(Err(why.clone()));
            }
        }
    }
}
