//! The socket file: made, replaced when stale, refused when live, removed at the end.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt, chown};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use nix::unistd::{Gid, Group};
use std::os::fd::AsRawFd;

/// Why there is no control socket.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Somebody listens there.
    #[error("another ringdrived listens on {0}; stop it, or give this one another `socket` in [control]")]
    InUse(PathBuf),
    /// The path is taken by something else.
    #[error("{0} is there and is no socket; remove it, or change `socket` in [control]")]
    NotASocket(PathBuf),
    /// The configured group does not exist.
    #[error(
        "there is no group {0:?}; create it with `groupadd --system {0}`, or change `group` in [control]"
    )]
    NoGroup(String),
    /// The kernel refused a step.
    #[error("cannot {step} {path}; try as root, or with another `socket` in [control]")]
    Io {
        /// What was tried.
        step: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// A listening socket whose file goes when it does.
#[derive(Debug)]
pub(super) struct Listener {
    pub(super) socket: UnixListener,
    file: SocketFile,
}

#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    /// Device and inode: a file that somebody put in our place is not ours to remove.
    identity: (u64, u64),
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path).is_ok_and(|now| (now.dev(), now.ino()) == self.identity);
        if ours && let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove the control socket");
        }
    }
}

/// The group of that name.
pub(super) fn find_group(name: &str) -> Result<Gid, SocketError> {
    match Group::from_name(name) {
        Ok(Some(group)) => Ok(group.gid),
        _ => Err(SocketError::NoGroup(name.to_owned())),
    }
}

impl Listener {
    /// Listens on `path`, for its owner and `group` alone.
    pub(super) fn bind(path: &Path, group: Option<Gid>) -> Result<Self, SocketError> {
        let failed = |step| move |source| SocketError::Io { step, path: path.to_owned(), source };
        if let Some(parent) = path.parent() {
            DirBuilder::new()
                .recursive(true)
                .mode(0o755)
                .create(parent)
                .map_err(failed("create the directory of"))?;
        }
        let socket = match UnixListener::bind(path) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                remove_stale(path)?;
                UnixListener::bind(path)
            }
            other => other,
        }
        .map_err(failed("listen on"))?;
        let there = fs::symlink_metadata(path).map_err(failed("look at"))?;
        let file = SocketFile { path: path.to_owned(), identity: (there.dev(), there.ino()) };
        if let Some(group) = group {
            chown(path, None, Some(group.as_raw())).map_err(failed("set the group of"))?;
        }
        fs::set_permissions(path, Permissions::from_mode(0o660)).map_err(failed("set the mode of"))?;
        socket.set_nonblocking(true).map_err(failed("listen on"))?;
        Ok(Self { socket, file })
    }

    pub(super) fn path(&self) -> &Path {
        &self.file.path
    }
}

/// Removes the socket of a daemon that was killed, and nothing else.
fn remove_stale(path: &Path) -> Result<(), SocketError> {
    let failed = |step| move |source| SocketError::Io { step, path: path.to_owned(), source };
    let there = fs::symlink_metadata(path).map_err(failed("look at"))?;
    if !there.file_type().is_socket() {
        return Err(SocketError::NotASocket(path.to_owned()));
    }
    // Non-blocking: a daemon whose backlog is full is alive too.
    let probe =
        socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK, None)
            .map_err(|errno| failed("probe")(errno.into()))?;
    let address = UnixAddr::new(path).map_err(|errno| failed("probe")(errno.into()))?;
    match connect(probe.as_raw_fd(), &address) {
        Err(Errno::ECONNREFUSED) => {
            tracing::info!(path = %path.display(), "replacing the control socket of a daemon that is gone");
            fs::remove_file(path).map_err(failed("remove the stale"))
        }
        Ok(()) | Err(Errno::EAGAIN) => Err(SocketError::InUse(path.to_owned())),
        Err(errno) => Err(failed("probe")(errno.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_is_made_with_its_directory_and_goes_with_its_owner() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b/control.sock");
        let listener = Listener::bind(&path, None).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
        assert_eq!(fs::metadata(path.parent().unwrap()).unwrap().permissions().mode() & 0o777, 0o755);
        drop(listener);
        assert!(!path.exists());
    }

    #[test]
    fn a_stale_socket_is_replaced_and_a_live_one_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control.sock");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "std leaves the file, as a killed daemon does");
        let _first = Listener::bind(&path, None).unwrap();
        let second = Listener::bind(&path, None).unwrap_err();
        assert!(matches!(second, SocketError::InUse(_)), "{second}");
    }

    #[test]
    fn a_file_that_is_no_socket_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control.sock");
        fs::write(&path, "precious").unwrap();
        let error = Listener::bind(&path, None).unwrap_err();
        assert!(matches!(error, SocketError::NotASocket(_)), "{error}");
        assert_eq!(fs::read(&path).unwrap(), b"precious");
    }

    #[test]
    fn a_file_put_in_our_place_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("control.sock");
        let listener = Listener::bind(&path, None).unwrap();
        fs::rename(&path, dir.path().join("old")).unwrap();
        fs::write(&path, "precious").unwrap();
        drop(listener);
        assert!(path.exists());
    }

    #[test]
    fn a_group_that_does_not_exist_is_refused_with_the_cure() {
        let error = find_group("no-such-group-here").unwrap_err().to_string();
        assert!(error.contains("groupadd --system no-such-group-here"), "{error}");
        assert_eq!(find_group("root").unwrap(), Gid::from_raw(0));
    }
}
