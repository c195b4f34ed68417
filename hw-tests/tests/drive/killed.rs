//! The daemon is killed in the middle of things.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hw_tests::board::Board;
use hw_tests::configfs;
use hw_tests::daemon::Daemon;
use hw_tests::host::{Caching, UsbDevice};
use hw_tests::image;
use hw_tests::rig::{Backend, Drive, Setup, new_serial};
use hw_tests::wait::wait_until;

use crate::unplug::Load;
use crate::{Case, ENGINES};

pub(crate) const CASES: &[Case] =
    &[Case { name: "kill_9_frees_the_port_and_a_new_daemon_needs_no_cleaning", on: ENGINES, run: kill_9 }];

/// The promise.
const LIMIT: Duration = Duration::from_secs(2);

fn kill_9(board: &Board, backend: Backend) -> Result<()> {
    configfs::sweep()?;
    let scratch = board.scratch()?;
    let path = image::random(scratch.file("image"), 8, 16)?;
    let ours = image::sha_of_file(&path)?;
    let (serial, stem) = (new_serial(), scratch.file("daemon"));
    let setup = Setup::of([Drive::disk().with(&path)]);
    let mut daemon = Daemon::serve(board, backend, &setup, &serial, &stem)?;
    for _ in 0..3 {
        let device = UsbDevice::await_serial(&serial)?;
        let lun = device.await_lun(0, 0)?;
        ensure!(lun.sha(Caching::Direct)? == ours, "the host did not read the image");
        let load = Load::start(&lun.node)?;
        daemon.kill()?;
        wait_until(LIMIT, "the port is free after kill -9", || board.bound().is_none())?;
        device.await_gone(LIMIT)?;
        load.await_failure()?;
        daemon = daemon.start_again().context("a new daemon after kill -9")?;
    }
    let lun = UsbDevice::await_serial(&serial)?.await_lun(0, 0)?;
    ensure!(lun.sha(Caching::Direct)? == ours, "the last daemon does not serve the image");
    daemon.stop()?;
    let left = configfs::gadgets();
    ensure!(left.is_empty(), "gadgets are left in configfs: {left:?}");
    Ok(())
}
