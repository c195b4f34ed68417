//! The daemon dies under load, or is restarted, and another one takes over what a descriptor store has kept: a pause for the host, and
//! nothing at all for the keyboard in the same gadget.
//!
//! `RINGDRIVE_KILLS=100 RINGDRIVE_RESTARTS=20` says how many of both; without it there are a few. With `RINGDRIVE_OTHER_BUILD=PROGRAM`
//! each restart is one into another build: into that program, and back.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hw_tests::board::Board;
use hw_tests::configfs;
use hw_tests::daemon::Daemon;
use hw_tests::host::{Caching, UsbDevice};
use hw_tests::image;
use hw_tests::keyboard::Typist;
use hw_tests::rig::{Backend, Drive, Rig, Setup};
use hw_tests::store;
use hw_tests::tool;
use hw_tests::wait::{ENUMERATION, wait_for};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::{Case, DAEMON, ENGINES, variable};

pub(crate) const CASES: &[Case] = &[
    Case { name: "a_changed_configuration_is_served_anew", on: DAEMON, run: changed },
    Case { name: "kills_and_restarts_under_load_are_a_pause", on: ENGINES, run: under_load },
];

/// The promise: no command takes longer, but for what the board itself needs to start a program.
const PAUSE_MAX: Duration = Duration::from_secs(3);

/// fio that writes and verifies until it is told to end.
struct Fio {
    child: Child,
    report: PathBuf,
}

impl Fio {
    fn start(node: &Path, report: PathBuf) -> Result<Self> {
        let mut command = Command::new("fio");
        command.args(["--name=verify", "--direct=1", "--rw=randrw", "--bsrange=4k-512k", "--blockalign=4k"]);
        command.args(["--size=32m", "--time_based", "--runtime=3600", "--verify=crc32c"]);
        command.args(["--verify_backlog=32", "--verify_fatal=1", "--do_verify=1", "--ioengine=psync"]);
        command.arg("--verify_state_save=0");
        command.args(["--randseed=11", "--output-format=json", "--allow_file_create=0"]);
        command.arg(format!("--filename={}", node.display())).arg(format!("--output={}", report.display()));
        let child = command.stdin(Stdio::null()).spawn().context("cannot start fio")?;
        Ok(Self { child, report })
    }

    /// Ends it; the longest that a command took.
    fn finish(mut self) -> Result<Duration> {
        kill(Pid::from_raw(i32::try_from(self.child.id())?), Signal::SIGINT)?;
        wait_for(ENUMERATION * 2, "fio ends", || self.child.try_wait().ok().flatten())?;
        let text = std::fs::read_to_string(&self.report)?;
        let json = text.find('{').and_then(|start| text.get(start..)).context("fio has no report")?;
        let report: Value = serde_json::from_str(json).with_context(|| format!("fio said:\n{text}"))?;
        let job = &report["jobs"][0];
        ensure!(job["error"] == 0, "fio met error {}:\n{text}", job["error"]);
        let of = |way: &str, value: &str| job[way][value]["max"].as_u64();
        let longest =
            ["read", "write"].map(|way| of(way, "clat_ns").or_else(|| of(way, "lat_ns")).unwrap_or(0));
        let done = ["read", "write"].map(|way| job[way]["total_ios"].as_u64().unwrap_or(0));
        ensure!(done.iter().all(|ios| *ios > 0), "fio has not both read and written: {done:?}");
        println!("fio: {} reads, {} writes", done[0], done[1]);
        Ok(Duration::from_nanos(longest.into_iter().max().unwrap_or(0)))
    }
}

impl Drop for Fio {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits until the host waits for a read (0) or a write (1).
fn await_in_flight(disk: &str, way: usize) -> Result<()> {
    let path = format!("/sys/class/block/{disk}/inflight");
    // Much shorter than a command, which a look every 20 ms would miss.
    for _ in 0..2_000_000 {
        let text = std::fs::read_to_string(&path)?;
        if text.split_whitespace().nth(way).is_some_and(|number| number != "0") {
            return Ok(());
        }
    }
    anyhow::bail!("the host does not {}", ["read", "write"][way]);
}

/// How often the host has reset a device since it was started.
fn resets() -> Result<usize> {
    let log = tool::try_run("dmesg", ["--level=info,notice,warn,err"])?.text;
    Ok(log.lines().filter(|line| line.contains("reset ") && line.contains("USB device")).count())
}

/// Before a restart: what is started then may be another build.
fn upgrade(daemon: &Daemon, restart: u64) -> Result<()> {
    let Some(other) = std::env::var_os("RINGDRIVE_OTHER_BUILD") else { return Ok(()) };
    let is_there = restart % 2 == 1;
    daemon.upgrade_to(&if is_there { store::on_path("ringdrived")? } else { other.into() })
}

fn under_load(board: &Board, backend: Backend) -> Result<()> {
    configfs::sweep()?;
    let scratch = board.scratch()?;
    let path = image::random(scratch.file("image"), 40, 32)?;
    let setup = Setup::of([Drive::disk().with(&path).writable()]).beside_keyboard().kept();
    let mut rig = Rig::start(board, backend, &setup)?;
    let typist = Typist::start(rig.keyboard.as_deref().context("no keyboard")?, &rig.device)?;
    let (lun, number) = (rig.lun(0)?, rig.device.number);
    let fio = Fio::start(&lun.node, scratch.file("fio.json"))?;
    let mut rng = fastrand::Rng::with_seed(5);
    let (kills, restarts) = (variable("RINGDRIVE_KILLS", 3)?, variable("RINGDRIVE_RESTARTS", 1)?);
    let resets_before = resets()?;
    let mut slowest = Duration::ZERO;
    for round in 0..kills + restarts {
        let way = usize::from(round % 2 == 1);
        let restart = round.checked_sub(kills);
        restart.map_or(Ok(()), |restart| upgrade(rig.daemon()?, restart))?;
        await_in_flight(&lun.name(), way)?;
        sleep(Duration::from_micros(rng.u64(..4000)));
        let daemon = rig.daemon()?;
        let ended = Instant::now();
        if restart.is_some() {
            daemon.terminate()?;
            daemon.must_end_well()?;
        } else {
            daemon.kill()?;
        }
        let again = daemon.start_again().with_context(|| format!("round {round}"))?;
        *daemon = again;
        // It answers at its socket before it serves.
        let log = wait_for(ENUMERATION, "the next daemon serves", || {
            Some(daemon.log()).filter(|log| log.contains(" ready "))
        })?;
        ensure!(log.contains("taken over from the last process"), "round {round}: not taken over:\n{log}");
        slowest = slowest.max(ended.elapsed());
        let lines = log.lines().filter(|line| line.contains("taken over") || line.contains("WARN"));
        println!(
            "round {round}, after {} ms: {}",
            ended.elapsed().as_millis(),
            lines.collect::<Vec<_>>().join("\n  ")
        );
        typist
            .still_heard("after another daemon has taken over")
            .with_context(|| format!("round {round}"))?;
        let now = UsbDevice::find(&rig.device.serial).context("the host has lost the device")?;
        ensure!(now.number == number, "round {round}: device {number} is now {}", now.number);
        // The host is to be well on its way again.
        sleep(Duration::from_millis(rng.u64(100..600)));
    }
    println!("{} resets by the host", resets()? - resets_before);
    let longest =
        fio.finish().with_context(|| rig.daemon().map(|daemon| daemon.log()).unwrap_or_default())?;
    let (pause, start) = (longest.as_millis(), slowest.as_millis());
    println!(
        "{}: {kills} kills, {restarts} restarts: longest pause {pause} ms, slowest start {start} ms",
        backend.name()
    );
    ensure!(
        longest < PAUSE_MAX + slowest,
        "a command took {pause} ms, and no daemon more than {start} ms to start"
    );
    typist.finish()?;
    let theirs = lun.sha(Caching::Direct)?;
    rig.eject_when_closed(0)?;
    let ours = image::sha_of_file(&path)?;
    ensure!(theirs == ours, "the host's disk is {theirs:?}, the image {ours:?}");
    rig.stop()
}

fn changed(board: &Board, backend: Backend) -> Result<()> {
    configfs::sweep()?;
    let scratch = board.scratch()?;
    let path = image::random(scratch.file("image"), 41, 4)?;
    let ours = image::sha_of_file(&path)?;
    let mut rig = Rig::start(board, backend, &Setup::of([Drive::disk().with(&path)]).kept())?;
    ensure!(rig.lun(0)?.sha(Caching::Direct)? == ours, "the host did not read the image");
    let number = rig.device.number;
    let daemon = rig.daemon()?;
    daemon.kill()?;
    let again = daemon.start_again_with(|config| config.replace("Test disk", "Other disk"))?;
    *daemon = again;
    let serial = rig.device.serial.clone();
    let device = wait_for(ENUMERATION, "the host finds another device", || {
        UsbDevice::find(&serial).filter(|device| device.number != number)
    })?;
    let lun = device.await_lun(0, 0)?;
    ensure!(lun.inquiry("model") == "Other disk", "the host still sees {:?}", lun.inquiry("model"));
    ensure!(lun.sha(Caching::Direct)? == ours, "the host did not read the image again");
    rig.stop()
}
