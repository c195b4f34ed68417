//! Storage areas: file servers that the daemon mounts itself, and mounts again when they are lost. Without fstab, without helper
//! programs; `docs/areas.md` tells users, `docs/decisions/0005-areas-by-mount-2.md` why so.
//!
//! `ringdrived` hands [`Areas::start`] what [`crate::config`] checked. Each area has a thread of its own, because nothing that
//! touches a file server may be waited for by anybody else:
//!
//! ```text
//!              mounted                    serving
//! connecting ──────────► mounted ◄──────────────────────┐
//!     │                    │ │ server silent            │
//!     │ refused            │ └───────────────► failed (still mounted, looked at)
//!     ▼          lost      ▼
//!   failed (not mounted, tried with back-off) ──────────► mounted
//! ```
//!
//! | module | what |
//! |---|---|
//! | `area` | an area as the configuration has it |
//! | `source` | `nfs://` and `cifs://` |
//! | `options` | the mount options that are safe to take from a user |
//! | `credentials` | who we are to a CIFS server |
//! | `child` | the process that calls mount(2) |
//! | `kernel` | mounting by that process, looking whether it is there still, unmounting |
//! | `watch` | the states above, and the thread |
//! | `reconnect`, `sockets` | connections to file servers that were gone, of areas and of others' mounts |

mod area;
mod child;
mod credentials;
mod kernel;
mod options;
mod reconnect;
mod sockets;
mod source;
mod watch;

use std::{
    io,
    sync::Arc,
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, Sender, bounded, never, select};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

pub use self::{
    area::{Area, Version},
    child::mount_for_parent,
    options::Options,
    reconnect::Reconnect,
    source::{Protocol, Source},
};
use self::{
    kernel::Kernel,
    watch::{Condition, Pace},
};

/// Areas in one configuration; each has a thread.
pub const AREAS_MAX: usize = 16;
/// Below it areas are mounted that have no `path`.
pub const AREAS_DIR: &str = "/run/ringdrive/areas";

/// How long the threads together may take to unmount.
const STOP_TIMEOUT: Duration = Duration::from_secs(1);

/// A mistake in a value, for an error that says where it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// What is wrong.
    pub cause: String,
    /// What to write instead.
    pub cure: String,
}

impl Mistake {
    fn new(cause: impl Into<String>, cure: impl Into<String>) -> Self {
        Self { cause: cause.into(), cure: cure.into() }
    }
}

/// Whether an area can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AreaState {
    /// The first try to mount it is under way.
    Connecting,
    /// It is mounted, and the server answers.
    Mounted,
    /// It cannot be mounted, or its server does not answer; tried again and again.
    Failed,
}

/// An area as it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AreaReport {
    /// Its name in the configuration.
    pub name: String,
    /// The server and what of it, as a URL.
    pub source: String,
    /// The mount point.
    pub path: String,
    /// Whether images in it may be written to.
    pub rw: bool,
    /// Whether it can be used.
    pub state: AreaState,
    /// Why not, where it has failed.
    pub cause: Option<String>,
}

/// What becomes of an area.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum News {
    /// It can be used, for the first time or again.
    Mounted,
    /// It cannot, or not any more.
    Lost {
        /// "Cause; cure".
        cause: String,
    },
}

/// The areas of a daemon, at work until dropped.
#[derive(Debug)]
pub struct Areas {
    areas: Vec<Running>,
    /// Dropped, it tells all threads to end.
    stop: Option<Sender<()>>,
}

#[derive(Debug)]
struct Running {
    area: Area,
    condition: Arc<Mutex<Condition>>,
    thread: JoinHandle<()>,
}

impl Areas {
    /// Starts to mount all; does not wait for any. `tell` is called on the areas' threads.
    ///
    /// # Errors
    /// That of starting a thread.
    pub fn start(areas: Vec<Area>, tell: impl Fn(&Area, News) + Clone + Send + 'static) -> io::Result<Self> {
        let (stop, stopped) = bounded(0);
        let start = |area: Area| {
            let (mounter, stopped, tell) = (Kernel::new(area.clone()), Stop(stopped.clone()), tell.clone());
            let condition = Arc::new(Mutex::new(Condition::Connecting));
            let (shared, described) = (Arc::clone(&condition), area.clone());
            let thread = thread::Builder::new().name(format!("area-{}", area.name)).spawn(move || {
                watch::run(mounter, &stopped, Pace::default(), |condition, news| {
                    *shared.lock() = condition.clone();
                    if let Some(news) = news {
                        tell(&described, news);
                    }
                });
            })?;
            Ok(Running { area, condition, thread })
        };
        Ok(Self { areas: areas.into_iter().map(start).collect::<io::Result<_>>()?, stop: Some(stop) })
    }

    /// All of them, in the order of the configuration. Never waits for a server.
    pub fn report(&self) -> Vec<AreaReport> {
        let report = |running: &Running| {
            let (state, cause) = match &*running.condition.lock() {
                Condition::Connecting => (AreaState::Connecting, None),
                Condition::Mounted => (AreaState::Mounted, None),
                Condition::Failed { cause } => (AreaState::Failed, Some(cause.clone())),
            };
            let Area { name, source, path, rw, .. } = &running.area;
            let path = path.display().to_string();
            AreaReport { name: name.clone(), source: source.to_string(), path, rw: *rw, state, cause }
        };
        self.areas.iter().map(report).collect()
    }
}

impl Drop for Areas {
    /// Unmounts all, within a second: what is stuck is left to the end of the process.
    fn drop(&mut self) {
        drop(self.stop.take());
        let deadline = Instant::now() + STOP_TIMEOUT;
        for running in self.areas.drain(..) {
            let (ended, end) = bounded::<()>(1);
            let name = running.area.name;
            // Joining has no time limit; a thread that joins has.
            let joins = thread::Builder::new().spawn(move || {
                let _ = running.thread.join();
                drop(ended);
            });
            let late = joins.is_err() || end.recv_deadline(deadline).is_err_and(|error| error.is_timeout());
            if late {
                tracing::warn!(area = name, "the area does not let go of its server; it may stay mounted");
            }
        }
    }
}

/// Tells a thread when to end: when the other side is dropped.
#[derive(Clone, Debug)]
struct Stop(Receiver<()>);

/// What waiting came to.
#[derive(Debug, PartialEq, Eq)]
enum Awaited<T> {
    Done(T),
    /// Whoever was to answer has died.
    Dead,
    Late,
    Stopped,
}

impl Stop {
    /// Waits for an answer, the end, or `limit`.
    fn wait_for<T>(&self, answer: &Receiver<T>, limit: Duration) -> Awaited<T> {
        select! {
            recv(answer) -> answer => answer.map_or(Awaited::Dead, Awaited::Done),
            recv(self.0) -> _ => Awaited::Stopped,
            default(limit) => Awaited::Late,
        }
    }

    /// Whether the end came within `limit`.
    fn within(&self, limit: Duration) -> bool {
        self.wait_for(&never::<()>(), limit) == Awaited::Stopped
    }
}
