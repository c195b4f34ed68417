//! The programs of an NFS server, for measurements on the board.

use std::path::PathBuf;

use anyhow::{Result, bail};

use super::apt::Apt;
use crate::project;

/// With the libraries that a small system may lack.
const PACKAGES: [&str; 9] = [
    "nfs-kernel-server",
    "nfs-common",
    "rpcbind",
    "libtirpc3",
    "libtirpc-common",
    "libnfsidmap1",
    "libwrap0",
    "libevent-core-2.1-7",
    "libkeyutils1",
];

/// Unpacks the packages, whose installation would have this machine serve NFS; gives the tree.
pub(crate) fn ensure() -> Result<PathBuf> {
    let tree = project::board_dir()?.join("nfs-server");
    let program = tree.join("usr/sbin/rpc.mountd");
    if !program.exists() {
        eprintln!("unpacking an NFS server below {}", tree.display());
        Apt::open(None)?.unpack(&PACKAGES.map(str::to_owned), &tree)?;
    }
    if !program.exists() {
        bail!("Debian's nfs-kernel-server has no {}; it may have moved", program.display());
    }
    Ok(tree)
}
