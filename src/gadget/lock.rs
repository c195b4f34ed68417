//! One daemon per gadget: a lock file that the kernel releases when the daemon ends, however it ends.

use std::{
    fs::{self, File, OpenOptions},
    io::{Read, Write},
    path::Path,
};

use nix::fcntl::{Flock, FlockArg};

use super::error::GadgetError;

/// Held while a gadget is served.
#[derive(Debug)]
pub(super) struct Lock {
    _file: Flock<File>,
}

impl Lock {
    /// Takes `DIR/GADGET.lock`, or tells who has it. The file stays: removing it would let two daemons lock two files.
    pub(super) fn take(dir: &Path, gadget: &str) -> Result<Self, GadgetError> {
        fs::create_dir_all(dir).map_err(GadgetError::io("make the directory", dir))?;
        let path = dir.join(format!("{gadget}.lock"));
        let open = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path);
        let file = open.map_err(GadgetError::io("open the lock file", &path))?;
        let mut file = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(mut file, errno)| {
            if errno != nix::Error::EWOULDBLOCK {
                return GadgetError::io("lock", &path)(errno);
            }
            let mut text = String::new();
            let _ = file.read_to_string(&mut text);
            let holder = match text.trim().parse::<u32>() {
                Ok(pid) => format!("process {pid}"),
                Err(_) => "its process is not known".to_owned(),
            };
            GadgetError::InUse { name: gadget.to_owned(), holder }
        })?;
        // Whoever meets the lock reads this; that it cannot be written is no reason not to serve.
        let _ = file.set_len(0);
        let _ = writeln!(file, "{}", std::process::id());
        Ok(Self { _file: file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_holder_is_told_the_first_ones_process() {
        let dir = tempfile::tempdir().unwrap();
        let first = Lock::take(dir.path(), "g").unwrap();
        let error = Lock::take(dir.path(), "g").unwrap_err().to_string();
        assert!(error.contains(&format!("process {}", std::process::id())), "{error}");
        assert!(Lock::take(dir.path(), "other").is_ok());
        drop(first);
        assert!(Lock::take(dir.path(), "g").is_ok());
    }
}
