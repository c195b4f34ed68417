//! memtest86+'s ISO: a small, real, bootable image that Debian distributes.

use std::path::PathBuf;

use anyhow::{Result, bail};

use super::apt::Apt;
use crate::project;

/// Unpacks the package, whose installation would reconfigure a boot loader; gives the ISO.
pub(crate) fn ensure() -> Result<PathBuf> {
    let tree = project::board_dir()?.join("memtest86+");
    let iso = tree.join("usr/lib/memtest86+/memtest86+x64.iso");
    if !iso.exists() {
        eprintln!("unpacking memtest86+ below {}", tree.display());
        Apt::open(None)?.unpack(&["memtest86+".to_owned()], &tree)?;
    }
    if !iso.exists() {
        bail!("Debian's memtest86+ package has no {}; it may have moved", iso.display());
    }
    Ok(iso)
}
