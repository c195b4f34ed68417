//! Who we are to which server: lines of a file that others must not read.
//!
//! ```text
//! # origin               kind    what
//! https://files.example  basic   alice  correct horse battery staple
//! http://10.0.0.5:8080   bearer  eyJhbGciOi…
//! ```
//! A line is for its origin (scheme, host, port) alone, so that no redirect takes it elsewhere.

use std::{
    fmt,
    fs::File,
    io::Read,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::Path,
};

use base64::Engine;

use super::{
    address::{Address, Origin},
    error::UrlErrorKind,
};

const FILE_BYTES_MAX: u64 = 65_536;

/// What a credentials file says. Not shown.
#[derive(Default)]
pub(super) struct Credentials(Vec<(Origin, String)>);

impl Credentials {
    /// # Errors
    /// [`UrlErrorKind::Credentials`]: it cannot be read, everybody may read it, or a line makes no sense.
    pub(super) fn load(path: &Path) -> Result<Self, UrlErrorKind> {
        let bad = |problem| UrlErrorKind::Credentials { path: path.display().to_string(), problem };
        let open = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path);
        let file =
            open.map_err(|_| bad("cannot be opened; check the path, and that the daemon may read it"))?;
        let metadata = file.metadata().map_err(|_| bad("cannot be read; check its storage"))?;
        if !metadata.is_file() {
            return Err(bad("is no file; give the path of one"));
        }
        if metadata.mode() & 0o007 != 0 {
            return Err(bad("can be read by everybody; try `chmod o-rwx` on it"));
        }
        let mut text = String::new();
        let read = file.take(FILE_BYTES_MAX).read_to_string(&mut text);
        read.map_err(|_| bad("is no text in UTF-8; write it anew"))?;
        Self::parse(&text).ok_or_else(|| {
            bad("has a line that is neither `ORIGIN basic USER PASSWORD` nor `ORIGIN bearer TOKEN`; mend it")
        })
    }

    fn parse(text: &str) -> Option<Self> {
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        lines.map(parse_line).collect::<Option<_>>().map(Self)
    }

    /// The `Authorization` for a server, from the URL itself or from the file.
    pub(super) fn authorization(&self, address: &Address) -> Option<String> {
        if let Some((user, password)) = address.user() {
            return Some(basic(user, password));
        }
        let origin = address.origin();
        self.0.iter().find(|(known, _)| *known == origin).map(|(_, header)| header.clone())
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Credentials of {} origins", self.0.len())
    }
}

fn parse_line(line: &str) -> Option<(Origin, String)> {
    let word = |text: &'_ str| {
        let end = text.find(char::is_whitespace).unwrap_or(text.len());
        (text[..end].to_owned(), text[end..].trim_start().to_owned())
    };
    let (origin, rest) = word(line);
    let (kind, rest) = word(&rest);
    let header = match kind.as_str() {
        "basic" => {
            let (user, password) = word(&rest);
            (!user.is_empty()).then(|| basic(&user, &password))
        }
        "bearer" => (!rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_graphic()))
            .then(|| format!("Bearer {rest}")),
        _ => None,
    }?;
    Some((Origin::parse(&origin).ok()?, header))
}

fn basic(user: &str, password: &str) -> String {
    let encoded = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
    format!("Basic {encoded}")
}

#[cfg(test)]
mod tests {
    use std::{io::Write, os::unix::fs::PermissionsExt};

    use super::*;

    #[test]
    fn credentials_go_to_their_own_origin_and_to_no_other() {
        let text = "# a comment\n\nhttps://h basic Aladdin open sesame\nhttp://h:8080 bearer t0ken\n";
        let credentials = Credentials::parse(text).unwrap();
        let of = |url: &str| credentials.authorization(&Address::parse(url).unwrap());
        // The example of RFC 7617 §2.
        assert_eq!(of("https://h/x").as_deref(), Some("Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="));
        assert_eq!(of("http://h:8080/x").as_deref(), Some("Bearer t0ken"));
        for other in ["http://h/x", "https://h:8080/x", "https://h.evil/x", "https://x.h/x"] {
            assert_eq!(of(other), None, "{other}");
        }
        assert!(of("http://me:pw@h/x").is_some());
        assert!(!format!("{credentials:?}").contains("sesame"));
    }

    #[test]
    fn a_file_that_everybody_may_read_is_refused() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(b"https://h bearer x\n").unwrap();
        assert!(Credentials::load(file.path()).is_ok());
        file.as_file().set_permissions(std::fs::Permissions::from_mode(0o644)).unwrap();
        let error = Credentials::load(file.path()).unwrap_err().to_string();
        assert!(error.contains("chmod o-rwx"), "{error}");
    }

    #[test]
    fn a_line_that_makes_no_sense_is_refused() {
        for bad in
            ["https://h", "https://h basic", "https://h digest a b", "h basic a b", "https://h bearer a b"]
        {
            assert!(Credentials::parse(bad).is_none(), "{bad}");
        }
    }
}
