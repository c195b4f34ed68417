//! A running `ringdrived`, as the demo and the measurements start it; killed when dropped.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::unistd::Pid;

use crate::wait::wait_for;

const STOP: Duration = Duration::from_secs(30);

/// The daemon and what it says.
#[derive(Debug)]
pub(crate) struct Daemon {
    child: Child,
    log: PathBuf,
}

impl Daemon {
    /// Starts it with `configuration`, which is kept in `dir` with the log. It does not yet serve; see [`Daemon::check`].
    pub(crate) fn start(dir: &Path, configuration: &str) -> Result<Self> {
        let (config, log) = (dir.join("config.toml"), dir.join("ringdrived.log"));
        fs::write(&config, configuration)?;
        let output = File::create(&log)?;
        let child = Command::new("ringdrived")
            .arg("--config")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .spawn()
            .context("cannot start ringdrived; is it built?")?;
        Ok(Self { child, log })
    }

    /// An error with what it said, if it has ended.
    pub(crate) fn check(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("ringdrived ended, {status}; it said:\n{}", self.said()),
        }
    }

    /// Waits until it has ended, as it was told to.
    pub(crate) fn ended(&mut self) -> Result<()> {
        let status = wait_for("ringdrived to end", STOP, || Ok(self.child.try_wait()?))?;
        ensure!(status.success(), "ringdrived ended with {status}; it said:\n{}", self.said());
        Ok(())
    }

    pub(crate) fn pid(&self) -> Result<Pid> {
        Ok(Pid::from_raw(i32::try_from(self.child.id())?))
    }

    /// What it logged.
    pub(crate) fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Both fail when it has ended, which is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
