//! The service manager's descriptor store (sd_notify(3), FDSTORE): what this process wants its successor to have.
//!
//! ```text
//!   start ── LISTEN_FDS, LISTEN_FDNAMES ──► kept by the last process ──► taken over, or forgotten
//!   at work ── NOTIFY_SOCKET: FDSTORE, FDSTOREREMOVE ──► kept for the next one
//! ```
//! There is a store where the manager says so: `$FDSTORE` (systemd 254; a unit for an older one sets it itself), or descriptors that
//! come from it. Names begin with `ringdrive.`, then the function's: `.state`, `.ep0`, `.in`, `.out`, and `.lunL.N` for the image N
//! of the drive L.

use std::{
    collections::BTreeSet,
    env, fs,
    fs::File,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    sync::Arc,
    thread,
    time::Duration,
};

use crossbeam_channel::{Receiver, Sender, bounded};
use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    unistd::pipe2,
};
use parking_lot::Mutex;
use ringdrive::{
    drive::{Keep, Keeper},
    gadget,
};
use sd_notify::NotifyState;

const PREFIX: &str = "ringdrive.";
/// Images to be kept or forgotten that wait; what finds no room is opened by its name in the next process.
const WAITING_MAX: usize = 64;
/// How long the manager may take to do what it was told.
const BARRIER: Duration = Duration::from_secs(2);

/// The names under which something is kept.
static KEPT: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

/// What the last process has left, by name.
pub(crate) type Left = Vec<(String, OwnedFd)>;

/// The store, which takes and forgets.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    keeper: Sender<(String, Keep)>,
}

/// The name of something of a function.
pub(crate) fn name_of(function: &str, what: &str) -> String {
    format!("{PREFIX}{function}.{what}")
}

/// The name of an image.
pub(crate) fn name_of_image(function: &str, lun: u8, number: u32) -> String {
    name_of(function, &format!("lun{lun}.{number}"))
}

/// Whether there is a store, and what it has kept. To be called before anything is opened.
pub(crate) fn find() -> (bool, Left) {
    let numbers: Vec<_> = match sd_notify::listen_fds_with_names() {
        Ok(numbers) => numbers.collect(),
        Err(error) => {
            eprintln!("ringdrived: what the service manager has passed is not understood: {error}");
            Vec::new()
        }
    };
    let mut left = gadget::inherited(numbers);
    left.retain(|(name, _)| name.starts_with(PREFIX));
    KEPT.lock().extend(left.iter().map(|(name, _)| name.clone()));
    let max = env::var("FDSTORE").ok().and_then(|max| max.parse::<u32>().ok()).unwrap_or(0);
    (env::var_os("NOTIFY_SOCKET").is_some() && (max > 0 || !left.is_empty()), left)
}

impl Store {
    /// Its thread. To be started after signals were blocked.
    pub(crate) fn start() -> io::Result<Self> {
        let (keeper, todo) = bounded(WAITING_MAX);
        thread::Builder::new().name("keeper".into()).spawn(move || keep_images(&todo))?;
        Ok(Self { keeper })
    }

    /// Where a function tells which images are to be kept.
    pub(crate) fn keeper(&self, function: &str) -> Keeper {
        let (keeper, function) = (self.keeper.clone(), function.to_owned());
        Box::new(move |keep| {
            if keeper.try_send((function.clone(), keep)).is_err() {
                tracing::warn!(
                    function,
                    "an image is not kept for the next process; it will look for its name"
                );
            }
        })
    }
}

/// The thread that opens images anew, which may take any time.
fn keep_images(todo: &Receiver<(String, Keep)>) {
    for (function, keep) in todo {
        match keep {
            Keep::Image { lun, number, file } => {
                let again = open_again(&file);
                store(&name_of_image(&function, lun, number), again.as_ref().unwrap_or(&file));
            }
            Keep::Gone { lun, number } => forget(&name_of_image(&function, lun, number)),
        }
    }
}

/// The same file without its lock, which is to end with this process, and without its claim to a device.
fn open_again(file: &Arc<File>) -> Option<File> {
    let flags = fcntl(&**file, FcntlArg::F_GETFL).map(OFlag::from_bits_retain).ok()?;
    let writable = flags & OFlag::O_ACCMODE == OFlag::O_RDWR;
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    fs::OpenOptions::new().read(true).write(writable).open(path).ok()
}

/// Has a descriptor kept under this name. Whether it is, nobody says.
pub(crate) fn store(name: &str, fd: impl AsFd) {
    KEPT.lock().insert(name.to_owned());
    // Not polled: an endpoint has nothing to say to the manager, and one that has lost its host must stay.
    let state = [NotifyState::FdStore, NotifyState::FdName(name), NotifyState::Custom("FDPOLL=0")];
    if let Err(error) = sd_notify::notify_with_fds(&state, &[fd.as_fd()]) {
        tracing::warn!(name, %error, "the service manager does not keep a descriptor for the next process");
    }
}

/// Has what is kept under this name closed.
pub(crate) fn forget(name: &str) {
    KEPT.lock().remove(name);
    if let Err(error) = sd_notify::notify(&[NotifyState::FdStoreRemove, NotifyState::FdName(name)]) {
        tracing::warn!(name, %error, "the service manager does not give up a descriptor");
    }
}

/// Has everything closed that is kept, and waits until it is.
pub(crate) fn forget_all() {
    let kept = std::mem::take(&mut *KEPT.lock());
    if !kept.is_empty() {
        kept.iter().for_each(|name| forget(name));
        barrier();
    }
}

/// Waits until the manager has done what it was told so far.
fn barrier() {
    let Ok((ours, theirs)) = pipe2(OFlag::O_CLOEXEC) else { return };
    let told = sd_notify::notify_with_fds(&[NotifyState::Custom("BARRIER=1")], &[theirs.as_fd()]);
    drop(theirs);
    if told.is_ok() {
        await_closed(ours.as_fd());
    }
}

fn await_closed(ours: BorrowedFd<'_>) {
    let limit = PollTimeout::try_from(BARRIER).unwrap_or(PollTimeout::MAX);
    let closed = poll(&mut [PollFd::new(ours, PollFlags::empty())], limit);
    if closed != Ok(1) {
        tracing::warn!("the service manager does not say that it has done what it was told");
    }
}
