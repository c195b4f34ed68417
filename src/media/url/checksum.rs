//! Whether an image is the one that was meant.

use std::{fmt, fs::File, io, os::unix::fs::FileExt};

use sha2::{Digest as _, Sha256};

/// A SHA-256 digest.
#[derive(Clone, PartialEq, Eq)]
pub struct Digest([u8; 32]);

/// Where the digest that an image must have comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Checksum {
    /// Known.
    Known(Digest),
    /// In the file `SHA256SUMS` beside the image.
    Beside,
}

impl Digest {
    /// 64 hexadecimal digits.
    pub fn parse(text: &str) -> Option<Self> {
        let mut digest = [0; 32];
        if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        for (byte, at) in digest.iter_mut().zip((0..).step_by(2)) {
            *byte = u8::from_str_radix(text.get(at..at + 2)?, 16).ok()?;
        }
        Some(Self(digest))
    }

    /// That of `name` in a text as sha256sum(1) writes it.
    pub(super) fn in_sums(text: &str, name: &str) -> Option<Self> {
        text.lines().find_map(|line| {
            let (digest, rest) = line.split_once(' ')?;
            // A space for text, an asterisk for binary.
            let listed = rest.strip_prefix([' ', '*']).unwrap_or(rest);
            (listed.strip_prefix("./").unwrap_or(listed) == name).then(|| Self::parse(digest))?
        })
    }

    /// That of the first `len` bytes; `None` once `stop` says so.
    pub(super) fn of_file(file: &File, len: u64, stop: impl Fn() -> bool) -> io::Result<Option<Self>> {
        let mut hasher = Sha256::new();
        let mut buffer = vec![0; 1 << 20];
        let mut at = 0;
        while at < len {
            if stop() {
                return Ok(None);
            }
            let wanted = usize::try_from(len - at).map_or(buffer.len(), |left| left.min(buffer.len()));
            let piece = &mut buffer[..wanted];
            file.read_exact_at(piece, at)?;
            hasher.update(&*piece);
            at += u64::try_from(wanted).map_err(io::Error::other)?;
        }
        Ok(Some(Self(hasher.finalize().into())))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    /// FIPS 180-2, appendix B.1.
    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn a_digest_is_that_of_the_standard() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"abcdef").unwrap();
        let digest = Digest::of_file(&file, 3, || false).unwrap();
        assert_eq!(digest, Digest::parse(ABC));
        assert_eq!(digest.unwrap().to_string(), ABC);
        assert_eq!(Digest::of_file(&file, 3, || true).unwrap(), None);
        assert!(Digest::parse(&ABC[1..]).is_none() && Digest::parse(&ABC.replace('a', "g")).is_none());
    }

    #[test]
    fn a_name_is_found_in_sums_of_both_modes() {
        let text = format!("{}  other.iso\n{ABC}  ./a b.iso\r\n{ABC} *c.iso\nnonsense\n", "0".repeat(64));
        let of = |name| Digest::in_sums(&text, name).map(|digest| digest.to_string());
        assert_eq!(of("a b.iso").as_deref(), Some(ABC));
        assert_eq!(of("c.iso").as_deref(), Some(ABC));
        assert_eq!(of("other.iso").unwrap(), "0".repeat(64));
        assert_eq!(of("b.iso"), None);
    }
}
