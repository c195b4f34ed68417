//! A descriptor store that speaks as systemd does (sd_notify(3), sd_listen_fds(3)), for boards that do not run it.
//!
//! Takes datagrams at `$NOTIFY_SOCKET`: `FDSTORE=1` and `FDSTOREREMOVE=1` with `FDNAME=`, and `BARRIER=1`. Gives what it has to each
//! process that it starts, with `LISTEN_PID`, `LISTEN_FDS` and `LISTEN_FDNAMES`. Dropped, it closes all of it.
//!
//! It starts a copy of the program in memory: from the file system that the virtual board has of its machine, a start takes seconds.

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use rustix::io::{FdFlags, fcntl_dupfd_cloexec, fcntl_setfd};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

/// As many as a message may bring.
const DESCRIPTORS_MAX: usize = 8;
/// From here on, a shell uses no descriptor by itself.
const HIGH: i32 = 100;

type Kept = Arc<Mutex<Vec<(String, OwnedFd)>>>;

/// The store.
#[derive(Debug)]
pub struct Store {
    socket: PathBuf,
    program: PathBuf,
    kept: Kept,
}

impl Store {
    /// Starts one that listens at `socket`, for a program on PATH, of which it puts a copy beside the socket.
    ///
    /// # Errors
    /// There is something at that path, or no such program.
    pub fn start(socket: PathBuf, program: &str) -> Result<Arc<Self>> {
        let listener = UnixDatagram::bind(&socket).context("cannot bind the notify socket")?;
        let (copy, kept) = (socket.with_file_name(program), Kept::default());
        let this = Arc::new(Self { socket, program: copy, kept: Arc::clone(&kept) });
        this.install(&on_path(program)?)?;
        let alive = Arc::downgrade(&this);
        std::thread::spawn(move || {
            while let Some(message) = receive(&listener) {
                if alive.strong_count() == 0 {
                    return;
                }
                obey(&kept, message);
            }
        });
        Ok(this)
    }

    /// The names of what it has.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        self.lock().iter().map(|(name, _)| name.clone()).collect()
    }

    /// Starts the program, and gives it everything.
    ///
    /// # Errors
    /// It does not start, or there is no shell.
    pub fn spawn(&self, configure: impl FnOnce(&mut Command)) -> Result<Child> {
        let (program, kept) = (&self.program, self.lock());
        let mut passed = Vec::new();
        let mut script = String::from("exec");
        for ((_, fd), number) in kept.iter().zip(3..) {
            let high = fcntl_dupfd_cloexec(fd, HIGH)?;
            script.push_str(&format!(" {number}<&{0} {0}<&-", high.as_raw_fd()));
            passed.push(high);
        }
        let names: Vec<_> = kept.iter().map(|(name, _)| name.as_str()).collect();
        script.push_str(&format!(
            "; export LISTEN_PID=$$ LISTEN_FDS={} LISTEN_FDNAMES={}; exec \"$@\"",
            names.len(),
            names.join(":")
        ));
        let mut command = Command::new("bash");
        command.args(["-c", &script]).args([program, program]);
        command.env("NOTIFY_SOCKET", &self.socket).env("FDSTORE", "64");
        configure(&mut command);
        for fd in &passed {
            fcntl_setfd(fd, FdFlags::empty())?;
        }
        // Closed here again when it has them.
        command.spawn().with_context(|| format!("cannot start {}", program.display()))
    }

    /// An upgrade: from now on, a copy of the program `from` is what starts.
    ///
    /// # Errors
    /// It cannot be copied.
    pub fn install(&self, from: &Path) -> Result<()> {
        let new = self.program.with_extension("new");
        std::fs::copy(from, &new).with_context(|| format!("cannot copy {}", from.display()))?;
        // Not into a file that is being executed.
        Ok(std::fs::rename(new, &self.program)?)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<(String, OwnedFd)>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        // The thread waits for a message, which may be this one.
        if let Ok(socket) = UnixDatagram::unbound() {
            let _ = socket.send_to(b"", &self.socket);
        }
        let _ = std::fs::remove_file(&self.socket);
    }
}

/// Where a program is that is to be on PATH.
///
/// # Errors
/// It is not.
pub fn on_path(program: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").context("no PATH")?;
    let found = std::env::split_paths(&path).map(|dir| dir.join(program)).find(|file| file.is_file());
    found.with_context(|| format!("no {program} on PATH; build it with `cargo build --release`"))
}

fn receive(listener: &UnixDatagram) -> Option<(String, Vec<OwnedFd>)> {
    let mut bytes = [0; 4096];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC;
    let got = recvmsg(listener, &mut [IoSliceMut::new(&mut bytes)], &mut ancillary, flags).ok()?;
    let rights = ancillary.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(rights) => Some(rights),
        _ => None,
    });
    let descriptors = rights.flatten().collect();
    Some((String::from_utf8_lossy(bytes.get(..got.bytes)?).into_owned(), descriptors))
}

fn obey(kept: &Kept, (text, descriptors): (String, Vec<OwnedFd>)) {
    let value = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    let name = value("FDNAME").unwrap_or("stored").to_owned();
    let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
    if value("FDSTORE") == Some("1") {
        kept.extend(descriptors.into_iter().map(|fd| (name.clone(), fd)));
    } else if value("FDSTOREREMOVE") == Some("1") {
        kept.retain(|(other, _)| *other != name);
    }
    // The descriptor of a barrier is closed by now.
}
