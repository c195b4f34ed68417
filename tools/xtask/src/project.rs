//! Where things are: the source tree, cargo's target directory, and the board's files below it.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use xshell::{Shell, cmd};

/// The root of the source tree.
pub(crate) fn root() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.ancestors().nth(2).unwrap_or(manifest).to_owned()
}

/// Cargo's target directory, absolute; `CARGO_TARGET_DIR` is honoured.
pub(crate) fn target_dir() -> Result<PathBuf> {
    let dir = env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
    std::path::absolute(&dir).with_context(|| format!("no absolute path for {}", dir.display()))
}

/// Kernel, downloads and running boards.
pub(crate) fn board_dir() -> Result<PathBuf> {
    Ok(target_dir()?.join("board"))
}

/// The release binaries, which come first on the board's `PATH`.
pub(crate) fn release_dir() -> Result<PathBuf> {
    Ok(target_dir()?.join("release"))
}

/// Builds the binaries that are in [`release_dir`].
pub(crate) fn build_release(shell: &Shell) -> Result<()> {
    let _root = shell.push_dir(root());
    cmd!(shell, "cargo build --quiet --release --package ringdrive --bins").quiet().run()?;
    Ok(())
}

/// `first`, then the directories of system tools, then this process's own `PATH`.
///
/// `sbin` is on it because `modprobe`, `mkfs.vfat` and `fsck.vfat` live there and a user's `PATH` often lacks it.
pub(crate) fn path_with(first: &Path) -> Result<OsString> {
    let system = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];
    let own = env::var_os("PATH").unwrap_or_default();
    let dirs = std::iter::once(first.to_owned())
        .chain(system.iter().map(PathBuf::from))
        .chain(env::split_paths(&own));
    env::join_paths(dirs)
        .with_context(|| format!("{} cannot be put on PATH; choose a directory without ':'", first.display()))
}
