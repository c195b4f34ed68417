//! What the other commands need on this machine: Debian packages, Debian's kernel, virtme-ng, memtest86+'s ISO, gungraun's runner.
//!
//! Every step looks first and is quick when there is nothing to do. Only the packages need root; the rest goes below
//! cargo's target directory. Nothing is ever removed from the machine, and its package sources stay as they are.

mod apt;
mod gungraun;
mod kernel;
mod link;
mod memtest;
mod nfs;
mod packages;
mod samba;
mod virtme;

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::fcntl::{Flock, FlockArg};

use crate::project;
use crate::vm::Link;
pub(crate) use kernel::Kernel;

/// Names of directories that exist only while something is unpacked or built.
const WORK_PREFIXES: [&str; 2] = ["unpack-", "link-"];

/// What `vm` needs to start a board.
pub(crate) struct Board {
    /// The unpacked kernel.
    pub(crate) kernel: Kernel,
    /// The `bin` directory of virtme-ng's environment.
    pub(crate) virtme_bin: PathBuf,
    /// A dummy_hcd to load in place of the kernel's own.
    pub(crate) dummy_hcd: Option<PathBuf>,
}

/// `cargo xtask setup`.
pub(crate) fn run() -> Result<()> {
    board(Link::Stock)?;
    memtest_iso()?;
    nfs_server()?;
    samba()?;
    gungraun()?;
    eprintln!("everything is set up");
    Ok(())
}

/// Sets up the virtual board.
pub(crate) fn board(link: Link) -> Result<Board> {
    let _lock = lock()?;
    packages::ensure()?;
    let kernel = kernel::ensure()?;
    let dummy_hcd = match link {
        Link::Stock => None,
        Link::Real => Some(link::ensure(&kernel)?),
    };
    Ok(Board { kernel, virtme_bin: virtme::ensure()?, dummy_hcd })
}

/// memtest86+'s ISO image, unpacked from Debian's package.
pub(crate) fn memtest_iso() -> Result<PathBuf> {
    let _lock = lock()?;
    memtest::ensure()
}

/// The program that counts the instructions of benchmarks, and Valgrind, which it runs.
pub(crate) fn gungraun() -> Result<PathBuf> {
    let _lock = lock()?;
    packages::ensure()?;
    gungraun::ensure()
}

/// Where the programs of an NFS server are, unpacked from Debian's packages.
pub(crate) fn nfs_server() -> Result<PathBuf> {
    let _lock = lock()?;
    nfs::ensure()
}

fn samba() -> Result<()> {
    let _lock = lock()?;
    samba::ensure()
}

/// Two set-ups at once would unpack over each other: the second waits.
fn lock() -> Result<Flock<File>> {
    let dir = project::board_dir()?;
    fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let path = dir.join("setup.lock");
    let file = File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
    let lock = Flock::lock(file, FlockArg::LockExclusive)
        .map_err(|(_, errno)| errno)
        .with_context(|| format!("cannot lock {}", path.display()))?;
    remove_interrupted(&dir)?;
    Ok(lock)
}

/// Removes the work directories of set-ups that were interrupted; whoever holds the lock owns them all.
fn remove_interrupted(dir: &Path) -> Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if WORK_PREFIXES
            .iter()
            .any(|prefix| entry.file_name().as_encoded_bytes().starts_with(prefix.as_bytes()))
        {
            fs::remove_dir_all(entry.path())
                .with_context(|| format!("cannot remove {}", entry.path().display()))?;
        }
    }
    Ok(())
}
