//! The programs of a CIFS server, for tests on the board.

use anyhow::{Result, bail};

use super::apt::Apt;
use crate::project;

/// Unpacks Debian's `samba` and what of its dependencies this machine lacks. Installed, it would serve from this machine; where it
/// is installed already, tests take that.
pub(crate) fn ensure() -> Result<()> {
    let tree = project::board_dir()?.join("samba");
    let program = tree.join("usr/sbin/smbd");
    if program.exists() || std::path::Path::new("/usr/sbin/smbd").exists() {
        return Ok(());
    }
    eprintln!("unpacking Samba below {}", tree.display());
    let apt = Apt::open(None)?;
    apt.unpack(&apt.lacking("samba")?, &tree)?;
    if !program.exists() {
        bail!("Debian's samba has no {}; it may have moved", program.display());
    }
    Ok(())
}
