//! From the plug to a usable drive: what the host asks, and that nobody waits.
//!
//! Here it is what the time is made of; the kernel's is printed beside it.

use std::time::Duration;

use anyhow::{Result, ensure};
use hw_tests::board::Board;
use hw_tests::image;
use hw_tests::rig::{Backend, Drive, Rig, Setup, Stall};
use hw_tests::usbmon::{Traffic, Usbmon};

use crate::{Case, DAEMON};

pub(crate) const CASES: &[Case] =
    &[Case { name: "a_drive_is_enumerated_without_waiting_for_a_stall", on: DAEMON, run: without_waiting }];

/// `f_mass_storage` sleeps this long when it cannot halt an endpoint yet.
const STALL_WAIT: Duration = Duration::from_millis(100);

/// How often a drive is plugged in. A wait comes each time; what a busy machine adds does not.
const TIMES: usize = 3;

/// From the plug to a block that the host has read.
fn enumerate(board: &Board, backend: Backend, setup: &Setup) -> Result<Traffic> {
    let tap = Usbmon::start()?;
    let rig = Rig::start(board, backend, setup)?;
    let lun = rig.lun(0)?;
    lun.read_at(0, 4096)?;
    lun.settle()?;
    let traffic = tap.traffic(rig.device.number)?;
    rig.stop()?;
    Ok(traffic)
}

/// The enumeration whose longest transfer was the shortest.
fn quietest(board: &Board, backend: Backend, setup: &Setup) -> Result<Traffic> {
    let mut quietest = enumerate(board, backend, setup)?;
    for _ in 1..TIMES {
        let next = enumerate(board, backend, setup)?;
        if next.longest < quietest.longest {
            quietest = next;
        }
    }
    Ok(quietest)
}

fn without_waiting(board: &Board, backend: Backend) -> Result<()> {
    let scratch = board.scratch()?;
    let path = image::random(scratch.file("image"), 70, 4)?;
    for (name, drive) in [("disk", Drive::disk()), ("optical", Drive::optical())] {
        for stall in [Stall::Auto, Stall::Never] {
            let setup = Setup::of([drive.clone().with(&path)]).stalling(stall);
            let kernel = quietest(board, Backend::Kernel, &setup)?;
            let ours = quietest(board, backend, &setup)?;
            println!("{name}, stall {stall:?}:\n  kernel {kernel}\n  ours   {ours}");
            ensure!(ours.bulk > 10, "{name}: the tap saw only {ours}");
            ensure!(ours.longest < STALL_WAIT, "{name}, stall {stall:?}: somebody waits: {ours}");
            ensure!(stall == Stall::Auto || ours.cleared == 0, "{name}: halted, and must never: {ours}");
        }
    }
    Ok(())
}
