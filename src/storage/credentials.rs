//! Who we are to a CIFS server: `username=`, `password=` and `domain=` lines, as mount.cifs(8) has them, in a file that only its
//! owner may read. Read by the process that mounts, at each try, and by nobody else.

use std::{
    fmt,
    fs::File,
    io::Read,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::Path,
};

use super::child::MountError;

const FILE_BYTES_MAX: u64 = 4096;

/// What the file says; nobody in particular by default. Not shown.
#[derive(Default)]
pub(super) struct Credentials {
    username: Option<String>,
    password: Option<String>,
    domain: Option<String>,
}

impl Credentials {
    /// # Errors
    /// [`MountError::Credentials`]: it cannot be read, others may read it, or a line makes no sense.
    pub(super) fn load(path: &Path) -> Result<Self, MountError> {
        let bad = |problem| MountError::Credentials { path: path.to_owned(), problem };
        // A pipe would keep whoever opens it.
        let open = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path);
        let file =
            open.map_err(|_| bad("cannot be opened; check the path, and that the daemon may read it"))?;
        let metadata = file.metadata().map_err(|_| bad("cannot be read; check its storage"))?;
        if !metadata.is_file() {
            return Err(bad("is no file; give the path of one"));
        }
        if metadata.mode() & 0o077 != 0 {
            return Err(bad("can be read by others than its owner; try `chmod 600` on it"));
        }
        let mut text = String::new();
        let read = file.take(FILE_BYTES_MAX).read_to_string(&mut text);
        read.map_err(|_| bad("is no text in UTF-8; write it anew"))?;
        Self::parse(&text).ok_or_else(|| {
            bad("has a line that is neither `username=`, `password=` nor `domain=`, or no username; mend it")
        })
    }

    fn parse(text: &str) -> Option<Self> {
        let mut this = Self::default();
        for line in text.lines().filter(|line| !line.trim().is_empty() && !line.starts_with('#')) {
            let (key, value) = line.split_once('=')?;
            if value.chars().any(char::is_control) {
                return None;
            }
            let (place, is_name) = match key.trim() {
                "username" | "user" => (&mut this.username, true),
                "domain" | "dom" => (&mut this.domain, true),
                "password" | "pass" => (&mut this.password, false),
                _ => return None,
            };
            // A comma ends an option; only of passwords the kernel takes two for one.
            if place.is_some() || (is_name && value.contains(',')) {
                return None;
            }
            *place = Some(if is_name { value.trim().to_owned() } else { value.to_owned() });
        }
        this.username.as_ref().filter(|name| !name.is_empty())?;
        Some(this)
    }

    /// The options that say it to the kernel, which shows all but the password in /proc/mounts.
    pub(super) fn data(&self) -> String {
        let Some(username) = &self.username else { return "guest".to_owned() };
        let domain = self.domain.iter().map(|domain| format!(",domain={domain}")).collect::<String>();
        let password = self.password.as_deref().unwrap_or_default().replace(',', ",,");
        format!("username={username}{domain},password={password}")
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials")
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt};

    use super::*;

    #[test]
    fn a_password_may_have_any_character_and_cannot_become_an_option() {
        let credentials =
            Credentials::parse("# nas\nusername = alice\ndomain=LAB\npassword=a,suid=b c \n").unwrap();
        assert_eq!(credentials.data(), "username=alice,domain=LAB,password=a,,suid=b c ");
        assert_eq!(format!("{credentials:?}"), "Credentials");
        assert_eq!(Credentials::default().data(), "guest");
    }

    #[test]
    fn lines_that_make_no_sense_are_refused() {
        for text in [
            "",
            "password=x",
            "username=",
            "username=a,suid",
            "user=a\nuser=b",
            "user=a\nnonsense",
            "user=a\nuid=0",
        ] {
            assert!(Credentials::parse(text).is_none(), "{text:?}");
        }
    }

    #[test]
    fn a_file_that_others_may_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c");
        fs::write(&path, "username=alice\npassword=horse\n").unwrap();
        for (mode, good) in [(0o600, true), (0o400, true), (0o640, false), (0o604, false)] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(Credentials::load(&path).is_ok(), good, "{mode:o}");
        }
        for path in [dir.path().to_owned(), dir.path().join("none")] {
            let refused = Credentials::load(&path).unwrap_err().to_string();
            assert!(refused.contains("; "), "{refused}");
        }
    }
}
