//! gungraun's runner, which counts the instructions of benchmarks under Valgrind.

use std::path::PathBuf;

use anyhow::{Context, Result};
use xshell::{Shell, cmd};

use crate::project;

/// That of the library in the root's Cargo.toml: runner and library refuse each other otherwise.
const VERSION: &str = "0.20.0";

/// Installs the runner below the target directory; gives its path.
pub(crate) fn ensure() -> Result<PathBuf> {
    let root = project::target_dir()?.join(format!("gungraun-{VERSION}"));
    let runner = root.join("bin/gungraun-runner");
    if !runner.exists() {
        eprintln!("installing gungraun-runner {VERSION} from crates.io into {}", root.display());
        let shell = Shell::new()?;
        cmd!(shell, "cargo install --quiet --locked --version ={VERSION} --root {root} gungraun-runner")
            .env_remove("CARGO_TARGET_DIR")
            .quiet()
            .run()
            .context("cannot install gungraun-runner; check the way to crates.io and try again")?;
    }
    Ok(runner)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_runner_is_of_the_version_of_the_library() {
        let manifest = include_str!("../../../../Cargo.toml");
        assert!(manifest.contains(&format!("gungraun = \"={}\"", super::VERSION)));
    }
}
