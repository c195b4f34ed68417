//! The control socket tells a session as it happens.

use anyhow::{Context, Result, ensure};
use hw_tests::board::Board;
use hw_tests::configfs;
use hw_tests::host::{Caching, UsbDevice};
use hw_tests::image;
use hw_tests::rig::{Backend, Drive, Rig, Setup};
use hw_tests::scsi;
use hw_tests::wait::{ENUMERATION, wait_until};
use serde_json::{Value, json};

use crate::{Case, DAEMON};

pub(crate) const CASES: &[Case] = &[
    Case { name: "a_session_is_told_in_order", on: DAEMON, run: session },
    Case { name: "shutdown_by_the_command_line_leaves_nothing_behind", on: DAEMON, run: shutdown },
    Case { name: "replug_is_seen_by_the_host_as_a_new_device", on: DAEMON, run: replug },
    Case { name: "a_locked_drive_refuses_other_clients", on: DAEMON, run: locked },
    Case { name: "the_state_of_a_drive_is_what_the_host_sees", on: DAEMON, run: state },
];

fn session(board: &Board, backend: Backend) -> Result<()> {
    let scratch = board.scratch()?;
    let path = image::random(scratch.file("image"), 30, 2)?;
    let mut rig = Rig::start(board, backend, &Setup::of([Drive::disk()]))?;
    let lun = rig.lun(0)?;
    let events = rig.daemon()?.events()?;
    // The command line does not tell when it has subscribed; the first event does.
    wait_until(ENUMERATION, "the first event", || {
        let _ = scsi::prevent(&lun, true).and_then(|()| scsi::prevent(&lun, false));
        !events.seen().is_empty()
    })?;
    let told = events.seen().len();
    rig.device.authorize(false)?;
    events.await_event("disconnected", |event| event["function"] == "usb0")?;
    rig.device.authorize(true)?;
    let connected = events.await_event("connected", |event| event["function"] == "usb0")?;
    ensure!(connected["speed"] == board.speed.name(), "connected at {connected}");
    drop(lun);
    rig.insert(0, &path)?;
    let inserted = events.await_event("inserted", |event| event["drive"] == 0)?;
    ensure!(inserted["image"]["name"] == json!(path), "inserted: {inserted}");
    let lun = rig.lun(0)?;
    lun.sha(Caching::Direct)?;
    events.await_event("first_read", |event| event["drive"] == 0)?;
    lun.settle()?;
    scsi::prevent(&lun, true)?;
    scsi::prevent(&lun, false)?;
    rig.eject_when_closed(0)?;
    events.await_event("ejected", |event| event["by"] == "client")?;
    rig.insert(0, &path)?;
    scsi::drain_attentions(&lun)?;
    ensure!(scsi::eject_when_closed(&lun)?.good(), "the host could not eject");
    events.await_event("ejected", |event| event["by"] == "host")?;
    let order: Vec<Value> = events.seen().iter().skip(told).map(|event| event["event"].clone()).collect();
    let place = |name: &str| order.iter().position(|event| event == name).context(name.to_owned());
    let places = ["disconnected", "connected", "inserted", "first_read", "prevented", "ejected"].map(place);
    let places = places.into_iter().collect::<Result<Vec<usize>>>()?;
    // Whoever opens a drive prevents removal first: only here is it not told which comes before which.
    let expected = places.iter().take(4).chain(places.last()).is_sorted();
    ensure!(expected, "out of order: {order:?}");
    rig.stop()
}

fn shutdown(board: &Board, backend: Backend) -> Result<()> {
    let mut rig = Rig::start(board, backend, &Setup::of([Drive::disk()]))?;
    let daemon = rig.daemon()?;
    ensure!(!configfs::mounts().is_empty() && daemon.socket().exists(), "nothing to leave behind");
    daemon.cli(&["shutdown"])?;
    daemon.must_end_well()?;
    ensure!(!daemon.socket().exists(), "the socket is left behind");
    let (mounts, points) = (configfs::mounts(), configfs::mount_points());
    ensure!(mounts.is_empty() && points.is_empty(), "FunctionFS is left behind: {mounts:?}, {points:?}");
    let left = configfs::gadgets();
    ensure!(left.is_empty() && board.bound().is_none(), "left behind: {left:?}, {:?}", board.bound());
    rig.device.await_gone(std::time::Duration::from_secs(2))
}

fn replug(board: &Board, backend: Backend) -> Result<()> {
    let scratch = board.scratch()?;
    let path = image::random(scratch.file("image"), 32, 2)?;
    let mut rig = Rig::start(board, backend, &Setup::of([Drive::disk().with(&path)]))?;
    rig.daemon()?.cli(&["replug"])?;
    rig.device.await_gone(ENUMERATION)?;
    rig.device = UsbDevice::await_serial(&rig.device.serial)?;
    ensure!(
        rig.lun(0)?.sha(Caching::Direct)? == image::sha_of_file(&path)?,
        "another image after the replug"
    );
    rig.stop()
}

fn locked(board: &Board, backend: Backend) -> Result<()> {
    let scratch = board.scratch()?;
    let path = image::random(scratch.file("image"), 33, 2)?;
    let mut rig = Rig::start(board, backend, &Setup::of([Drive::disk()]))?;
    let key = rig.daemon()?.cli(&["lock", "disk"])?.trim().to_owned();
    let refused = rig.insert(0, &path).err().context("inserted into a locked drive")?;
    ensure!(refused.to_string().contains("lock"), "no reason in: {refused:#}");
    ensure!(rig.daemon()?.state()?["drives"][0]["locked"] == true, "not told as locked");
    rig.daemon()?.cli(&["unlock", "disk", "--key", &key])?;
    rig.insert(0, &path)?;
    rig.stop()
}

fn state(board: &Board, backend: Backend) -> Result<()> {
    let scratch = board.scratch()?;
    let path = image::random(scratch.file("image"), 31, 2)?;
    let setup = Setup::of([Drive::optical(), Drive::disk().with(&path).writable()]);
    let mut rig = Rig::start(board, backend, &setup)?;
    let lun = rig.lun(1)?;
    lun.sha(Caching::Direct)?;
    let file = lun.open(Caching::Direct)?;
    let state = rig.daemon()?.state()?;
    let drives = state["drives"].as_array().cloned().unwrap_or_default();
    ensure!(drives.len() == 2, "two drives in {state:#}");
    ensure!(drives[0]["kind"] == "optical" && drives[0]["image"].is_null(), "drive 0: {:#}", drives[0]);
    let disk = &drives[1];
    ensure!(disk["name"] == "disk" && disk["lun"] == 1 && disk["prevented"] == true, "drive 1: {disk:#}");
    ensure!(disk["image"]["bytes"] == 2 * image::MIB && disk["image"]["rw"] == true, "drive 1: {disk:#}");
    ensure!(disk["host"]["state"] == "connected", "drive 1: {disk:#}");
    ensure!(disk["host"]["speed"] == board.speed.name(), "drive 1: {disk:#}");
    drop(file);
    rig.stop()
}
