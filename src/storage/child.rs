//! The process that mounts one area: `ringdrived --mount-area`, with the area as JSON on its standard input. It is a process
//! because name servers and mount(2) wait for as long as they like, and a signal can end a process.
//!
//! It ends with 0, or says on its standard output why not.

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
    let mut refused = Errno::EPROTONOSUPPORT;
    for version in area.versions() {
        let data = area.data(address, version, &credentials);
        let kind = area.source.protocol.name();
        match mount(Some(device.as_str()), &area.path, Some(kind), area.flags(), Some(data.as_str())) {
            Ok(()) => return Ok(()),
            // The server lacks the version, and says so.
            Err(Errno::EPROTONOSUPPORT) => {}
            // This kernel lacks the version: it may be built without NFS 4, or without 3.
            Err(errno @ (Errno::EINVAL | Errno::ENODEV)) => refused = errno,
            Err(errno) => return Err(MountError::Refused { device, errno }),
        }
    }
    Err(MountError::Refused { device, errno: refused })
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

    #[test]
    fn every_refusal_has_a_cause_and_a_cure() {
        for errno in (1..134).map(Errno::from_raw) {
            let message = MountError::Refused { device: "nas:/iso".into(), errno }.to_string();
            let (cause, cure) = message.rsplit_once("; ").unwrap();
            assert!(cause.starts_with("nas:/iso cannot be mounted: ") && cure.len() > 10, "{message}");
        }
    }
}
