//! virtme-ng, in a Python environment of its own.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use xshell::{Shell, cmd};

use crate::project;

/// Newer ones may change the QEMU command line that `vm` builds on.
const VERSION: &str = "1.42";

/// Installs virtme-ng below the target directory; gives its `bin`.
pub(crate) fn ensure() -> Result<PathBuf> {
    let dir = project::target_dir()?.join("virtme");
    let stamp = dir.join("version");
    let bin = dir.join("bin");
    if fs::read_to_string(&stamp).is_ok_and(|found| found == VERSION) && bin.join("vng").exists() {
        return Ok(bin);
    }
    eprintln!("installing virtme-ng {VERSION} from PyPI into {}", dir.display());
    let shell = Shell::new()?;
    cmd!(shell, "python3 -m venv --clear {dir}")
        .quiet()
        .run()
        .context("cannot make a Python environment; install python3-venv")?;
    let pip = bin.join("pip");
    cmd!(shell, "{pip} install --quiet --disable-pip-version-check virtme-ng=={VERSION}")
        .quiet()
        .run()
        .context("cannot install virtme-ng; check the way to PyPI and try again")?;
    fs::write(&stamp, VERSION)?;
    Ok(bin)
}
