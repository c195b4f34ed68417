//! `nfs://HOST[:PORT]/EXPORT` and `cifs://HOST[:PORT]/SHARE[/FOLDER…]`, parsed once.

use std::{fmt, net::Ipv6Addr};

use serde::{Deserialize, Serialize};

use super::Mistake;

const HOST_LEN_MAX: usize = 253;
/// Less than the page that mount(2) takes.
const PATH_LEN_MAX: usize = 1024;

/// How a file server is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Protocol {
    /// NFS 3 and 4.
    Nfs,
    /// SMB 2.1 and later.
    Cifs,
}

impl Protocol {
    /// The URL's scheme, and the kernel's name of the file system.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Nfs => "nfs",
            Self::Cifs => "cifs",
        }
    }
}

/// A file server, and what of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    pub(super) protocol: Protocol,
    /// A name or an address; an IPv6 address without its brackets.
    pub(super) host: String,
    pub(super) port: Option<u16>,
    /// From `/` on, decoded, without a `/` at the end.
    path: String,
}

impl Source {
    /// # Errors
    /// What is wrong with the URL.
    pub fn parse(url: &str) -> Result<Self, Mistake> {
        let cure = "write nfs://SERVER/EXPORT or cifs://SERVER/SHARE";
        let mistake = |cause: &str| Mistake::new(format!("{cause} in the source of the area"), cure);
        let (scheme, rest) = url.split_once("://").ok_or_else(|| mistake("there is no ://"))?;
        let protocol = match scheme {
            "nfs" => Protocol::Nfs,
            "cifs" | "smb" => Protocol::Cifs,
            _ => return Err(mistake("neither nfs:// nor cifs:// stands")),
        };
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        if authority.contains('@') {
            return Err(Mistake::new(
                "a user stands in the source of the area, where everybody would see it",
                "put user and password into a file, and name it with `credentials`",
            ));
        }
        let (host, port) = split_port(authority).ok_or_else(|| mistake("there is no server's name"))?;
        if protocol == Protocol::Cifs && host.contains(':') {
            return Err(Mistake::new(
                "a share cannot be named by an IPv6 address",
                "use the server's name; /etc/hosts can give it one",
            ));
        }
        let path = decode(path).ok_or_else(|| mistake("what is encoded with % is no UTF-8"))?;
        let path = path.trim_end_matches('/').to_owned();
        if path.len() > PATH_LEN_MAX || path.chars().any(char::is_control) {
            return Err(mistake("a path that is too long, or has control characters, stands"));
        }
        let share = path.split('/').nth(1).unwrap_or_default();
        if protocol == Protocol::Cifs && (share.is_empty() || path.contains('\\')) {
            return Err(mistake("no share stands"));
        }
        if path.split('/').any(|part| part == "..") {
            return Err(mistake("`..` stands"));
        }
        Ok(Self { protocol, host, port, path })
    }

    /// How it is spoken to.
    pub fn protocol(&self) -> Protocol {
        self.protocol
    }

    /// What mount(2) and /proc/self/mountinfo call it.
    pub(super) fn device(&self) -> String {
        let Self { path, .. } = self;
        match self.protocol {
            Protocol::Cifs => format!("//{}{path}", self.host),
            Protocol::Nfs => format!("{}:{}", self.bracketed(), if path.is_empty() { "/" } else { path }),
        }
    }

    fn bracketed(&self) -> String {
        if self.host.contains(':') { format!("[{}]", self.host) } else { self.host.clone() }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}", self.protocol.name(), self.bracketed())?;
        if let Some(port) = self.port {
            write!(f, ":{port}")?;
        }
        f.write_str(if self.path.is_empty() { "/" } else { &self.path })
    }
}

fn split_port(authority: &str) -> Option<(String, Option<u16>)> {
    let (host, port) = match authority.strip_prefix('[') {
        Some(rest) => {
            let (host, rest) = rest.split_once(']')?;
            host.parse::<Ipv6Addr>().ok()?;
            (host, if rest.is_empty() { None } else { Some(rest.strip_prefix(':')?) })
        }
        None => {
            let (host, port) =
                authority.split_once(':').map_or((authority, None), |(host, port)| (host, Some(port)));
            let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
            let fits = (1..=HOST_LEN_MAX).contains(&host.len()) && host.chars().all(plain);
            (Some(host).filter(|_| fits)?, port)
        }
    };
    let port = match port {
        None => None,
        Some(port) => Some(port.parse().ok().filter(|port| *port != 0)?),
    };
    Some((host.to_owned(), port))
}

/// `%41` is `A`; a `%` without two digits is a `%`. `None`: not UTF-8.
fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let digit = |at: usize| tail.get(at).and_then(|byte| char::from(*byte).to_digit(16));
        let encoded = digit(0).zip(digit(1)).and_then(|(high, low)| u8::try_from(high * 16 + low).ok());
        match encoded.filter(|_| *first == b'%') {
            Some(byte) => {
                bytes.push(byte);
                rest = tail.get(2..).unwrap_or_default();
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_what_mount_calls_them() {
        for (url, device, shown) in [
            ("nfs://10.0.0.5/srv/iso", "10.0.0.5:/srv/iso", "nfs://10.0.0.5/srv/iso"),
            ("nfs://nas/", "nas:/", "nfs://nas/"),
            ("nfs://nas", "nas:/", "nfs://nas/"),
            ("nfs://nas:2050/a/", "nas:/a", "nfs://nas:2050/a"),
            ("nfs://[fe80::1]:2049/a", "[fe80::1]:/a", "nfs://[fe80::1]:2049/a"),
            ("nfs://nas/with%20blank 100%", "nas:/with blank 100%", "nfs://nas/with blank 100%"),
            ("cifs://nas.lan/iso", "//nas.lan/iso", "cifs://nas.lan/iso"),
            ("smb://nas:1445/iso/ä/b", "//nas/iso/ä/b", "cifs://nas:1445/iso/ä/b"),
        ] {
            let source = Source::parse(url).unwrap();
            assert_eq!((source.device().as_str(), source.to_string().as_str()), (device, shown), "{url}");
        }
    }

    #[test]
    fn what_is_no_source_is_refused() {
        for url in [
            "",
            "nas:/srv",
            "http://nas/a",
            "nfs://",
            "nfs:///srv",
            "nfs://:2049/srv",
            "nfs://nas:0/srv",
            "nfs://nas:70000/srv",
            "nfs://nas:/srv",
            "nfs://[fe80::1/srv",
            "nfs://[x]/srv",
            "nfs://[::1]2049/a",
            "nfs://na s/srv",
            "nfs://nas,vers=3/srv",
            "nfs://nas/a/../b",
            "nfs://nas/%00",
            "nfs://nas/%ff",
            "nfs://nas/a\nb",
            "cifs://nas",
            "cifs://nas/",
            "cifs://nas//a",
            "cifs://nas/a\\b",
            "cifs://[::1]/a",
        ] {
            let refused = Source::parse(url).expect_err(url);
            assert!(!refused.cause.is_empty() && !refused.cure.is_empty());
        }
        let long = format!("nfs://nas/{}", "a".repeat(PATH_LEN_MAX));
        assert!(Source::parse(&long).is_err() && Source::parse(&long[..1024]).is_ok());
    }

    #[test]
    fn a_password_in_a_source_is_refused_and_not_repeated() {
        let refused = Source::parse("cifs://alice:horse@nas/iso").unwrap_err();
        assert!(refused.cure.contains("credentials") && !format!("{refused:?}").contains("horse"));
    }
}
