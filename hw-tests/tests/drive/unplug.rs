//! The host goes away in the middle of things.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use hw_tests::board::Board;
use hw_tests::host::{Caching, attribute};
use hw_tests::image;
use hw_tests::rig::{Backend, Drive, Rig, Setup};
use hw_tests::wait::{ENUMERATION, wait_for, wait_until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::{ALL, Case};

pub(crate) const CASES: &[Case] = &[Case {
    name: "a_host_that_vanishes_in_mid_transfer_finds_a_working_drive_again",
    on: ALL,
    run: vanishes,
}];

/// A host program that reads a drive over and over.
pub(crate) struct Load(std::process::Child);

impl Load {
    /// Starts reading, and waits until it moves.
    pub(crate) fn start(node: &std::path::Path) -> Result<Self> {
        let script =
            format!("while dd if={} of=/dev/null bs=1M iflag=direct 2>/dev/null; do :; done", node.display());
        let child = Command::new("sh").arg("-c").arg(script).stdin(Stdio::null()).spawn()?;
        let load = Self(child);
        let (dir, name) = (std::path::Path::new("/sys/class/block"), node.file_name().context("no node")?);
        let stat = format!("{}/stat", name.to_string_lossy());
        let sectors =
            || attribute(dir, &stat).and_then(|stat| stat.split_whitespace().nth(2)?.parse::<u64>().ok());
        let before = sectors().unwrap_or(0);
        wait_until(ENUMERATION, "the host reads", || sectors().is_some_and(|now| now > before + 4096))?;
        Ok(load)
    }

    /// Waits until it has failed, as the drive is gone.
    pub(crate) fn await_failure(mut self) -> Result<()> {
        wait_for(ENUMERATION, "the host gives up reading", || self.0.try_wait().ok().flatten()).map(drop)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        if let Ok(pid) = i32::try_from(self.0.id()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        let _ = self.0.wait();
    }
}

fn vanishes(board: &Board, backend: Backend) -> Result<()> {
    let scratch = board.scratch()?;
    let path = image::random(scratch.file("image"), 6, 16)?;
    let ours = image::sha_of_file(&path)?;
    let rig = Rig::start(board, backend, &Setup::of([Drive::disk().with(&path)]))?;
    for round in 0..3 {
        let lun = rig.lun(0)?;
        let load = Load::start(&lun.node)?;
        rig.device.authorize(false)?;
        load.await_failure()?;
        wait_until(ENUMERATION, "the host drops the drive", || !lun.sysfs.exists())?;
        rig.device.authorize(true)?;
        let theirs = rig.lun(0)?.sha(Caching::Direct)?;
        ensure!(theirs == ours, "round {round}: the host read {theirs:?}, the image is {ours:?}");
    }
    rig.stop()
}
