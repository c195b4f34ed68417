//! The mount options that may be given. What is not in these lists is refused: some options undo what makes a mount safe (`suid`,
//! `dev`, `addr`), and some show secrets (`password`).

use std::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

use super::{Mistake, Protocol};

enum Takes {
    Nothing,
    Number(RangeInclusive<u32>),
    OneOf(&'static [&'static str]),
}
use Takes::{Nothing, Number, OneOf};

const SIZE: RangeInclusive<u32> = 1024..=16 * 1024 * 1024;
const SECONDS: RangeInclusive<u32> = 0..=3600;

/// As in nfs(5).
const NFS: &[(&str, Takes)] = &[
    ("hard", Nothing),
    ("soft", Nothing),
    ("softerr", Nothing),
    ("timeo", Number(1..=6000)),
    ("retrans", Number(0..=100)),
    ("rsize", Number(SIZE)),
    ("wsize", Number(SIZE)),
    ("nconnect", Number(1..=16)),
    ("actimeo", Number(SECONDS)),
    ("acregmin", Number(SECONDS)),
    ("acregmax", Number(SECONDS)),
    ("acdirmin", Number(SECONDS)),
    ("acdirmax", Number(SECONDS)),
    ("nosharecache", Nothing),
    ("noresvport", Nothing),
    ("mountport", Number(1..=65535)),
    ("sec", OneOf(&["sys", "krb5", "krb5i", "krb5p"])),
    ("xprtsec", OneOf(&["none", "tls"])),
];

/// As in mount.cifs(8).
const CIFS: &[(&str, Takes)] = &[
    ("hard", Nothing),
    ("soft", Nothing),
    ("rsize", Number(SIZE)),
    ("wsize", Number(SIZE)),
    ("actimeo", Number(SECONDS)),
    ("echo_interval", Number(1..=600)),
    ("seal", Nothing),
    ("sign", Nothing),
    ("cache", OneOf(&["none", "strict"])),
    ("sec", OneOf(&["ntlmssp", "ntlmsspi", "krb5", "krb5i"])),
    ("nosharesock", Nothing),
];

/// What to do about a server that is gone.
const PATIENCE: [&str; 3] = ["hard", "soft", "softerr"];

/// Options that were checked.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Options(Vec<String>);

impl Options {
    /// Adds one: `name` or `name=value`.
    ///
    /// # Errors
    /// It is not among those that are safe, its value makes no sense, or it contradicts one before.
    pub fn add(&mut self, protocol: Protocol, option: &str) -> Result<(), Mistake> {
        let known = match protocol {
            Protocol::Nfs => NFS,
            Protocol::Cifs => CIFS,
        };
        let (name, value) =
            option.split_once('=').map_or((option, None), |(name, value)| (name, Some(value)));
        let Some((_, takes)) = known.iter().find(|(known, _)| *known == name) else {
            let names: Vec<_> = known.iter().map(|(name, _)| *name).collect();
            return Err(Mistake::new(
                format!("{name:?} is not among the mount options of {} that are safe", protocol.name()),
                format!("choose from {}", names.join(", ")),
            ));
        };
        let wants = |what: String| Err(Mistake::new(format!("{option:?} makes no sense"), what));
        match (takes, value) {
            (Nothing, None) => {}
            (Nothing, Some(_)) => return wants(format!("write {name:?} without a value")),
            (Number(range), Some(value)) if value.parse().is_ok_and(|value| range.contains(&value)) => {}
            (Number(range), _) => {
                return wants(format!("write {name}=NUMBER, from {} to {}", range.start(), range.end()));
            }
            (OneOf(values), Some(value)) if values.contains(&value) => {}
            (OneOf(values), _) => return wants(format!("write {name}= and one of {}", values.join(", "))),
        }
        let contradicts =
            |other: &&str| *other == name || (PATIENCE.contains(other) && PATIENCE.contains(&name));
        if let Some(other) = self.names().find(contradicts) {
            let cause = format!("{option:?} contradicts {other:?}, which stands before it");
            return Err(Mistake::new(cause, "remove one of them"));
        }
        self.0.push(option.to_owned());
        Ok(())
    }

    /// As mount(2) takes them.
    pub(super) fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }

    /// Whether they say what to do about a server that is gone.
    pub(super) fn have_patience(&self) -> bool {
        self.names().any(|name| PATIENCE.contains(&name))
    }

    fn names(&self) -> impl Iterator<Item = &str> {
        self.iter().map(|option| option.split('=').next().unwrap_or(option))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn safe_options_are_taken_as_they_are() {
        let mut options = Options::default();
        for option in ["softerr", "timeo=100", "rsize=1048576", "sec=krb5p"] {
            options.add(Protocol::Nfs, option).unwrap();
        }
        assert_eq!(options.iter().collect::<Vec<_>>().join(","), "softerr,timeo=100,rsize=1048576,sec=krb5p");
        assert!(options.have_patience());
    }

    #[test]
    fn what_would_undo_the_safety_of_a_mount_is_refused() {
        for option in [
            "suid",
            "dev",
            "exec",
            "rw",
            "addr=1.2.3.4",
            "ip=1.2.3.4",
            "password=x",
            "user=x",
            "hard,suid",
            "timeo=5,suid",
            "timeo=",
            "timeo=-1",
            "timeo=0",
            "timeo",
            "rsize=1",
            "rsize=99999999999",
            "hard=1",
            "sec=none",
            "sec",
            "",
            "=",
            "HARD",
            " hard",
            "vers=3",
            "nconnect=17",
            "rsize=2048\nsuid",
            "lookupcache=all",
        ] {
            for protocol in [Protocol::Nfs, Protocol::Cifs] {
                assert!(Options::default().add(protocol, option).is_err(), "{option:?}");
            }
        }
    }

    #[test]
    fn options_of_the_other_protocol_are_refused() {
        assert!(Options::default().add(Protocol::Cifs, "nconnect=4").is_err());
        assert!(Options::default().add(Protocol::Nfs, "seal").is_err());
    }

    #[test]
    fn options_that_contradict_each_other_are_refused() {
        for (first, second) in [("hard", "soft"), ("hard", "hard"), ("timeo=10", "timeo=20")] {
            let mut options = Options::default();
            options.add(Protocol::Nfs, first).unwrap();
            let refused = options.add(Protocol::Nfs, second).unwrap_err();
            assert!(refused.cause.contains("contradicts"), "{refused:?}");
        }
    }
}
