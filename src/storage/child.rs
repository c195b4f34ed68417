//! The process that mounts one area: `ringdrived --mount-area`, with the area as JSON on its standard input. It is a process
//! because name servers and mount(2) wait for as long as they like, and a signal can end a process.
//!
//! It ends with 0, or has said on its standard output why not; the first line counts.

use std::{
    io,
    net::{IpAddr, ToSocketAddrs},
    path::PathBuf,
    process::ExitCode,
};

use nix::{errno::Errno, mount::mount, unistd::alarm};

use super::{Area, credentials::Credentials};

/// The child's own end, should its parent die before it: a little later than the parent's patience.
const END_S: u32 = 25;
/// The version whose paths begin elsewhere than those of the others.
const OTHER_ROOT: &str = "3";

/// Why an area is not mounted.
#[derive(Debug, thiserror::Error)]
pub(super) enum MountError {
    /// The file with user and password.
    #[error("the credentials file {path} {problem}")]
    Credentials { path: PathBuf, problem: &'static str },
    /// No address.
    #[error("the server's name {host:?} cannot be resolved: {source}; check the name and the name server")]
    Name { host: String, source: io::Error },
    /// The kernel, or through it the server, said no.
    #[error("{device} cannot be mounted: {}: {}; {}", errno.desc(), meaning(*errno).0, meaning(*errno).1)]
    Refused { device: String, errno: Errno },
    /// The mount point.
    #[error("the mount point {path} cannot be made: {source}; check the path, or choose another")]
    Point { path: PathBuf, source: io::Error },
    /// There is something.
    #[error("the mount point {path} {what}; choose another `path`")]
    Taken { path: PathBuf, what: &'static str },
    /// Nobody answers.
    #[error("the server did not answer in time; check that it runs, and the network")]
    Late,
    /// An earlier try does not end.
    #[error("the kernel is still busy with an earlier try; it ends when the server answers")]
    Stuck,
    /// The daemon ends.
    #[error("the daemon ends; start it again")]
    Stopped,
    /// Of our own process.
    #[error("the process that mounts cannot be run: {0}; check the limits of the daemon")]
    Process(#[from] io::Error),
    /// What the process said.
    #[error("{0}")]
    Said(String),
}

/// What an errno of mount(2) means here, and what to do.
fn meaning(errno: Errno) -> (&'static str, &'static str) {
    match errno {
        Errno::ENODEV => {
            ("this kernel lacks the file system", "install the kernel module (nfs, nfsv3, nfsv4 or cifs)")
        }
        Errno::EPROTONOSUPPORT | Errno::EOPNOTSUPP => {
            ("the server or this kernel lacks the version", "try another `version`")
        }
        Errno::ENOENT | Errno::ENXIO | Errno::ENOTDIR | Errno::EREMOTE => {
            ("the server has no such export or share", "check the path in `source`")
        }
        Errno::EACCES | Errno::ENOKEY | Errno::EKEYREJECTED | Errno::EKEYEXPIRED => {
            ("the server denies it to us", "check the server's exports, or `credentials`")
        }
        Errno::EPERM => (
            "the server denies it to us, or the daemon may not mount",
            "check the server's exports, and that the daemon has CAP_SYS_ADMIN",
        ),
        Errno::EINVAL => ("this kernel does not take an option", "remove `options` one by one"),
        Errno::EBUSY => {
            ("something is mounted there with other options", "unmount it, or choose another `path`")
        }
        Errno::ESTALE => ("the server has forgotten what it had exported", "export it anew"),
        _ => ("the server cannot be reached", "check that it runs, its port, and the network"),
    }
}

/// The whole of `ringdrived --mount-area`.
pub fn mount_for_parent() -> ExitCode {
    match mount_area() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn mount_area() -> Result<(), MountError> {
    alarm::set(END_S);
    let area: Area = serde_json::from_reader(io::stdin().lock()).map_err(io::Error::from)?;
    let credentials = match &area.credentials {
        Some(path) => Credentials::load(path)?,
        None => Credentials::default(),
    };
    let address = resolve(&area)?;
    let device = area.source.device();
    let kind = area.source.protocol.name();
    let refused = |errno| MountError::Refused { device: device.clone(), errno };
    let try_one = |version: Option<&str>| {
        let data = area.data(address, version, &credentials);
        mount(Some(device.as_str()), &area.path, Some(kind), area.flags(), Some(data.as_str()))
    };
    // What is tried besides needs ports of the server that may be shut, and then it is waited for until the parent ends it.
    negotiate(&area.versions(), try_one, |errno| println!("{}", refused(errno))).map_err(refused)
}

/// Tries one version after the other, as mount.nfs does: a server or a kernel that lacks one may have the next, and a server of
/// version 4 that does not know the path, or denies it, may have it for version 3, which names paths from another root. `go_on` is
/// told before that is tried.
///
/// # Errors
/// What the first version said that there is, or else the last one.
fn negotiate(
    versions: &[Option<&str>],
    mut try_one: impl FnMut(Option<&str>) -> nix::Result<()>,
    go_on: impl Fn(Errno),
) -> nix::Result<()> {
    let mut told = None;
    for version in versions {
        // Minor versions have one root.
        if told.is_some_and(|errno| !is_lack(errno)) && *version != Some(OTHER_ROOT) {
            continue;
        }
        match try_one(*version) {
            Ok(()) => return Ok(()),
            Err(errno) => {
                if told.is_none_or(is_lack) {
                    told = Some(errno);
                }
                match (is_lack(errno), is_of_root(errno)) {
                    (false, false) => break,
                    (false, true) if versions.last() != Some(version) => go_on(errno),
                    _ => {}
                }
            }
        }
    }
    Err(told.unwrap_or(Errno::EPROTONOSUPPORT))
}

/// The server lacks the version and says so, or this kernel does: it may be built without NFS 4, or without 3.
fn is_lack(errno: Errno) -> bool {
    matches!(errno, Errno::EPROTONOSUPPORT | Errno::EINVAL | Errno::ENODEV)
}

/// The path is not to be had from the root of version 4. Old servers say EPERM where they lack version 4.
fn is_of_root(errno: Errno) -> bool {
    matches!(errno, Errno::ENOENT | Errno::EPERM)
}

fn resolve(area: &Area) -> Result<IpAddr, MountError> {
    let host = &area.source.host;
    let name = |source| MountError::Name { host: host.clone(), source };
    let mut addresses = (host.as_str(), 0).to_socket_addrs().map_err(name)?;
    let none = || name(io::Error::from(io::ErrorKind::NotFound));
    addresses.next().map(|address| address.ip()).ok_or_else(none)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Option<&str>; 4] = [Some("4.2"), Some("4.1"), Some("4.0"), Some("3")];

    /// A server, by what mount(2) says to version 4.2, 4.1, 4.0 and 3: which are tried, what comes of it, and what is said before.
    fn play(says: [nix::Result<()>; 4], versions: &[Option<&str>]) -> (String, nix::Result<()>, Vec<Errno>) {
        let said = std::cell::RefCell::new(Vec::new());
        let mut tried = Vec::new();
        let try_one = |version: Option<&str>| {
            tried.push(version.unwrap().to_owned());
            says[ALL.iter().position(|known| *known == version).unwrap()]
        };
        let result = negotiate(versions, try_one, |errno| said.borrow_mut().push(errno));
        (tried.join(" "), result, said.into_inner())
    }

    #[test]
    fn versions_are_tried_as_mount_nfs_does() {
        use Errno::{EACCES, EINVAL, EIO, ENODEV, ENOENT, EPERM, EPROTONOSUPPORT, ETIMEDOUT};
        let lacks = Err(EPROTONOSUPPORT);
        let none = Vec::new;
        for (says, wanted) in [
            ([Ok(()); 4], ("4.2", Ok(()), none())),
            ([lacks, Ok(()), Ok(()), Ok(())], ("4.2 4.1", Ok(()), none())),
            ([lacks, lacks, lacks, Ok(())], ("4.2 4.1 4.0 3", Ok(()), none())),
            ([Err(EINVAL), Err(EINVAL), Err(EINVAL), Ok(())], ("4.2 4.1 4.0 3", Ok(()), none())),
            ([Err(ENODEV), Err(ENODEV), Err(ENODEV), Ok(())], ("4.2 4.1 4.0 3", Ok(()), none())),
            // Its root of version 4 is elsewhere.
            ([Err(ENOENT), Ok(()), Ok(()), Ok(())], ("4.2 3", Ok(()), vec![ENOENT])),
            ([lacks, Err(EPERM), Ok(()), Ok(())], ("4.2 4.1 3", Ok(()), vec![EPERM])),
            // There is none such, whatever version 3 says, which may not be there at all.
            ([Err(ENOENT), Ok(()), Ok(()), lacks], ("4.2 3", Err(ENOENT), vec![ENOENT])),
            ([Err(ENOENT), Ok(()), Ok(()), Err(ETIMEDOUT)], ("4.2 3", Err(ENOENT), vec![ENOENT])),
            // A server of version 3 alone says what counts.
            ([lacks, lacks, lacks, Err(EACCES)], ("4.2 4.1 4.0 3", Err(EACCES), none())),
            ([lacks, lacks, lacks, Err(ENOENT)], ("4.2 4.1 4.0 3", Err(ENOENT), none())),
            ([lacks; 4], ("4.2 4.1 4.0 3", lacks, none())),
            // Denied, or not there: no other version mends that.
            ([Err(EACCES), Ok(()), Ok(()), Ok(())], ("4.2", Err(EACCES), none())),
            ([Err(EIO), Ok(()), Ok(()), Ok(())], ("4.2", Err(EIO), none())),
            ([lacks, Err(ETIMEDOUT), Ok(()), Ok(())], ("4.2 4.1", Err(ETIMEDOUT), none())),
        ] {
            let (tried, result, said) = play(says, &ALL);
            assert_eq!((tried.as_str(), result, said), wanted, "{says:?}");
        }
    }

    #[test]
    fn the_version_that_was_asked_for_is_the_only_one_tried() {
        for says in [Errno::ENOENT, Errno::EPROTONOSUPPORT, Errno::EPERM] {
            let (tried, result, said) = play([Err(says), Ok(()), Ok(()), Ok(())], &ALL[..1]);
            assert_eq!((tried.as_str(), result, said), ("4.2", Err(says), Vec::new()));
        }
    }

    #[test]
    fn every_refusal_has_a_cause_and_a_cure() {
        for errno in (1..134).map(Errno::from_raw) {
            let message = MountError::Refused { device: "nas:/iso".into(), errno }.to_string();
            let (cause, cure) = message.rsplit_once("; ").unwrap();
            assert!(cause.starts_with("nas:/iso cannot be mounted: ") && cure.len() > 10, "{message}");
        }
    }
}
