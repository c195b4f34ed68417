//! An area as the configuration has it, and what mount(2) is given for it.

use std::{net::IpAddr, path::PathBuf};

use nix::mount::MsFlags;
use serde::{Deserialize, Serialize};

use super::{Mistake, Options, Protocol, Source, credentials::Credentials};

/// The versions that may be asked for, the best first. SMB 1 and 2.0 are not safe to speak.
const NFS_VERSIONS: [&str; 5] = ["4.2", "4.1", "4.0", "4", "3"];
const CIFS_VERSIONS: [&str; 6] = ["3.1.1", "3.0.2", "3.02", "3.0", "3", "2.1"];
/// Those that are tried where none is asked for. CIFS agrees with the server on one by itself.
const NFS_TRIED: [&str; 4] = ["4.2", "4.1", "4.0", "3"];

const NFS_PORT: u16 = 2049;
/// A server that is gone fails an operation after 5 + 10 + 15 seconds: nothing that reads is stuck for ever, and the deadline of
/// the drive comes first.
const NFS_READ_ONLY: &str = "softerr,timeo=50,retrans=2";
/// Of a server that is gone CIFS learns after twice as many seconds.
const CIFS_ECHO_S: u32 = 10;

/// A version of the protocol.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version(String);

impl Version {
    /// # Errors
    /// The protocol has no such version, or it is not safe.
    pub fn parse(protocol: Protocol, text: &str) -> Result<Self, Mistake> {
        let known: &[&str] = match protocol {
            Protocol::Nfs => &NFS_VERSIONS,
            Protocol::Cifs => &CIFS_VERSIONS,
        };
        if known.contains(&text) {
            return Ok(Self(text.to_owned()));
        }
        Err(Mistake::new(
            format!("version {text:?} of {} is not to be had", protocol.name()),
            format!("choose from {}, or remove the key", known.join(", ")),
        ))
    }
}

/// A file server's directory and where it goes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Area {
    /// Unique; fits a file name.
    pub name: String,
    /// The server, and what of it.
    pub source: Source,
    /// `None`: the best that the server has.
    pub version: Option<Version>,
    /// Beside those that every area has.
    pub options: Options,
    /// A file with user and password, for CIFS.
    pub credentials: Option<PathBuf>,
    /// Whether it may be written to.
    pub rw: bool,
    /// The mount point: absolute.
    pub path: PathBuf,
}

impl Area {
    /// To be tried in this order.
    pub(super) fn versions(&self) -> Vec<Option<&str>> {
        match (&self.version, self.source.protocol) {
            (Some(Version(version)), _) => vec![Some(version)],
            (None, Protocol::Nfs) => NFS_TRIED.map(Some).to_vec(),
            (None, Protocol::Cifs) => vec![None],
        }
    }

    /// Nothing on a file server may be a program, a device, or more than it seems.
    pub(super) fn flags(&self) -> MsFlags {
        let safe = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        if self.rw { safe } else { safe | MsFlags::MS_RDONLY }
    }

    /// What the file system is told. The kernel speaks all of the protocols itself, but for the resolution of names.
    pub(super) fn data(&self, address: IpAddr, version: Option<&str>, credentials: &Credentials) -> String {
        let mut data = match self.source.protocol {
            Protocol::Nfs => self.nfs(address, version.unwrap_or("4.2")),
            Protocol::Cifs => self.cifs(address, version, credentials),
        };
        data.extend(self.options.iter().map(str::to_owned));
        data.join(",")
    }

    fn nfs(&self, address: IpAddr, version: &str) -> Vec<String> {
        let proto = if address.is_ipv6() { "tcp6" } else { "tcp" };
        let port = self.source.port.unwrap_or(NFS_PORT);
        let mut data = vec![format!("vers={version},proto={proto},addr={address},port={port}")];
        if version == "3" {
            // Locks of version 3 need a daemon of their own; ours are then good on this machine only.
            data.push(format!("mountvers=3,mountproto={proto},mountaddr={address},nolock"));
        }
        if !self.options.have_patience() {
            // What the host has written must not be given up.
            data.push(if self.rw { "hard" } else { NFS_READ_ONLY }.to_owned());
        }
        data
    }

    fn cifs(&self, address: IpAddr, version: Option<&str>, credentials: &Credentials) -> Vec<String> {
        let mut data = vec![format!("ip={address}")];
        data.extend(self.source.port.map(|port| format!("port={port}")));
        data.extend(version.map(|version| format!("vers={version}")));
        data.push(credentials.data());
        if !self.options.have_patience() {
            data.push(if self.rw { "hard" } else { "soft" }.to_owned());
        }
        if !self.options.iter().any(|option| option.starts_with("echo_interval=")) {
            data.push(format!("echo_interval={CIFS_ECHO_S}"));
        }
        data
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn area(source: &str, rw: bool, options: &[&str]) -> Area {
        let source = Source::parse(source).unwrap();
        let mut checked = Options::default();
        options.iter().for_each(|option| checked.add(source.protocol, option).unwrap());
        let path = "/run/ringdrive/areas/a".into();
        Area { name: "a".into(), source, version: None, options: checked, credentials: None, rw, path }
    }

    fn data(area: &Area, address: &str, version: Option<&str>) -> String {
        area.data(address.parse().unwrap(), version, &Credentials::default())
    }

    #[test]
    fn what_reads_never_waits_for_ever_and_what_writes_never_gives_up() {
        let nfs = area("nfs://nas/iso", false, &["rsize=65536"]);
        assert_eq!(
            data(&nfs, "10.0.0.5", Some("4.2")),
            "vers=4.2,proto=tcp,addr=10.0.0.5,port=2049,softerr,timeo=50,retrans=2,rsize=65536"
        );
        let nfs = area("nfs://nas:2050/iso", true, &[]);
        assert_eq!(
            data(&nfs, "fe80::1", Some("3")),
            "vers=3,proto=tcp6,addr=fe80::1,port=2050,mountvers=3,mountproto=tcp6,mountaddr=fe80::1,nolock,hard"
        );
        let chosen = data(&area("nfs://nas/iso", true, &["soft"]), "10.0.0.5", None);
        assert!(chosen.ends_with(",soft") && !chosen.contains("hard"), "{chosen}");
        let cifs = area("cifs://nas:1445/iso", false, &["echo_interval=5"]);
        assert_eq!(
            data(&cifs, "10.0.0.5", Some("3.0")),
            "ip=10.0.0.5,port=1445,vers=3.0,guest,soft,echo_interval=5"
        );
    }

    #[test]
    fn nothing_on_a_server_is_a_program_or_a_device() {
        let safe = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        assert_eq!(area("nfs://nas/iso", true, &[]).flags(), safe);
        assert_eq!(area("nfs://nas/iso", false, &[]).flags(), safe | MsFlags::MS_RDONLY);
    }

    #[test]
    fn versions_that_are_not_safe_are_not_to_be_had() {
        for (protocol, version) in [
            (Protocol::Nfs, "2"),
            (Protocol::Nfs, "4.2,suid"),
            (Protocol::Nfs, ""),
            (Protocol::Cifs, "1.0"),
            (Protocol::Cifs, "4.2"),
        ] {
            assert!(Version::parse(protocol, version).is_err(), "{version}");
        }
        let mut nfs = area("nfs://nas/iso", false, &[]);
        assert_eq!(nfs.versions(), [Some("4.2"), Some("4.1"), Some("4.0"), Some("3")]);
        nfs.version = Some(Version::parse(Protocol::Nfs, "3").unwrap());
        assert_eq!(nfs.versions(), [Some("3")]);
    }
}
