//! Images with an overlay: the host writes, the base stays, and qemu-img agrees with the host. Makes, fills and kills by hand for
//! longer with `RINGDRIVE_OVERLAY_MIB=200` and `RINGDRIVE_OVERLAY_KILLS=100`.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hw_tests::board::Board;
use hw_tests::configfs;
use hw_tests::daemon::Daemon;
use hw_tests::host::{Caching, Lun, UsbDevice};
use hw_tests::image::{self, Sha};
use hw_tests::rig::{Backend, Drive, Rig, Setup, new_serial};
use hw_tests::scsi;
use hw_tests::tool;
use hw_tests::wait::wait_until;
use serde_json::{Value, json};

use crate::{Case, DAEMON, variable};

pub(crate) const CASES: &[Case] = &[
    Case { name: "the_host_writes_to_an_overlay_which_is_dropped_kept_or_copied", on: DAEMON, run: life },
    Case { name: "an_overlay_is_sound_and_whole_after_kill_9_at_any_moment", on: DAEMON, run: killed },
];

/// The promise.
const DISCARD: Duration = Duration::from_millis(100);

pub(crate) fn text(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))
}

fn life(board: &Board, backend: Backend) -> Result<()> {
    let mib = variable("RINGDRIVE_OVERLAY_MIB", 8)?;
    let scratch = board.scratch()?;
    let base = image::random(scratch.file("base"), 60, mib + mib / 4 + 8)?;
    let golden = image::sha_of_file(&base)?;
    let overlay = scratch.file("overlay");
    let mut rig = Rig::start(board, backend, &Setup::of([Drive::disk()]))?;
    insert(rig.daemon()?, &base, &overlay)?;
    let lun = rig.lun(0)?;
    let point = scratch.file("mnt");
    fs::create_dir(&point)?;
    make_and_fill(&lun, &point, mib)?;
    ensure!(image::sha_of_file(&base)? == golden, "the base has changed");
    let seen = lun.sha(Caching::Direct)?;
    ensure!(seen != golden, "the host sees the base");
    lun.settle()?;

    let copy = scratch.file("copy");
    rig.daemon()?.cli(&["overlay", "export", "0", text(&copy)?]).context("the export")?;
    ensure!(image::sha_of_file(&copy)? == seen, "the exported file is not what the host sees");
    rig.eject_when_closed(0)?;
    must_be(&overlay, &scratch.file("converted"), seen)?;

    insert(rig.daemon()?, &base, &overlay).context("again")?;
    ensure!(rig.lun(0)?.sha(Caching::Direct)? == seen, "inserted again, it is another");
    let insert = json!({"drive": 0, "path": base, "overlay": overlay});
    discard(&mut rig, golden, &insert)?;

    make_and_fill(&rig.lun(0)?, &point, mib.min(8))?;
    let seen = rig.lun(0)?.sha(Caching::Direct)?;
    rig.lun(0)?.settle()?;
    commit(&mut rig)?;
    ensure!(image::sha_of_file(&base)? == seen, "the base is not what the host saw");
    tool::run("fsck.vfat", ["-n".as_ref(), base.as_os_str()])?;
    ensure!(rig.lun(0)?.sha(Caching::Direct)? == seen, "after the commit the host sees another");
    rig.lun(0)?.settle()?;
    rig.eject_when_closed(0)?;
    must_be(&overlay, &scratch.file("committed"), seen)?;
    rig.stop()
}

fn insert(daemon: &Daemon, base: &Path, overlay: &Path) -> Result<()> {
    daemon.cli(&["insert", "0", text(base)?, "--overlay", text(overlay)?]).map(drop)
}

/// The host makes a file system and writes so much to it.
pub(crate) fn make_and_fill(lun: &Lun, point: &Path, mib: u64) -> Result<()> {
    tool::run("mkfs.vfat", [lun.node.as_os_str()])?;
    tool::run("mount", ["-t".as_ref(), "vfat".as_ref(), lun.node.as_path(), point])?;
    for part in 0..mib.div_ceil(8) {
        fs::write(point.join(format!("{part}")), image::noise(part, 8 << 20))?;
    }
    tool::run("umount", [point])?;
    tool::run("fsck.vfat", ["-n".as_ref(), lun.node.as_os_str()])?;
    lun.settle()
}

/// By the one who knows qcow2 best.
pub(crate) fn must_be(overlay: &Path, converted: &Path, seen: Sha) -> Result<()> {
    tool::run("qemu-img", ["check".as_ref(), overlay.as_os_str()])?;
    let from = ["convert", "-f", "qcow2", "-O", "raw"].map(AsRef::as_ref);
    tool::run("qemu-img", from.into_iter().chain([overlay.as_os_str(), converted.as_os_str()]))?;
    ensure!(image::sha_of_file(converted)? == seen, "qemu-img sees another disk than the host");
    Ok(())
}

fn discard(rig: &mut Rig, golden: Sha, insert: &Value) -> Result<()> {
    let lun = rig.lun(0)?;
    // Something that is not yet stored, which must hold nobody up.
    let write = |seed| lun.write_unsynced(0, &image::noise(seed, 4 << 20)).and_then(|()| lun.settle());
    write(0)?;
    lun.settle()?;
    scsi::prevent(&lun, true)?;
    let refused = rig.daemon()?.try_cli(&["overlay", "discard", "0"])?;
    ensure!(!refused.ok() && refused.text.contains("prevent"), "discarded under the host: {}", refused.text);
    scsi::prevent(&lun, false)?;
    let daemon = rig.daemon()?;
    // The machine under this board may be busy with others: what everything takes then.
    let (mut usual, mut times) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        wait_until(Duration::from_secs(10), "the host lets it go", || {
            scsi::drain_attentions(&lun).is_ok()
                && daemon
                    .ask("state", &json!({}))
                    .is_ok_and(|state| !state["drives"][0]["prevented"].as_bool().unwrap_or(true))
        })?;
        let began = Instant::now();
        daemon.ask("eject", &json!({"drive": 0}))?;
        daemon.ask("insert", insert)?;
        usual.push(began.elapsed());
    }
    for seed in 1..4 {
        scsi::drain_attentions(&lun)?;
        write(seed)?;
        let began = Instant::now();
        daemon.ask("overlay", &json!({"drive": 0, "action": "discard"}))?;
        times.push(began.elapsed());
    }
    println!("discarded in {times:?}, ejected and inserted in {usual:?}");
    let limit = usual.iter().min().map_or(DISCARD, |usual| DISCARD.max(*usual * 2));
    ensure!(times.iter().min() < Some(&limit), "discards took {times:?}, an eject and an insert {usual:?}");
    let outcomes = scsi::drain_attentions(&lun)?;
    let told = outcomes.iter().any(|outcome| outcome.has_sense("Unit Attention", "medium may have changed"));
    ensure!(told, "the host does not hear of another medium: {outcomes:?}");
    ensure!(rig.lun(0)?.sha(Caching::Direct)? == golden, "after the discard the host does not see the base");
    lun.settle()
}

fn commit(rig: &mut Rig) -> Result<()> {
    let events = rig.daemon()?.events()?;
    // Subscribed, once it hears of something.
    wait_until(Duration::from_secs(20), "events are heard", || {
        let _ = rig.daemon().map(|daemon| daemon.ask("overlay", &json!({"drive": 0, "action": "commit"})));
        events.seen().iter().any(|event| event.get("event") == Some(&json!("copying")))
    })
}

fn killed(board: &Board, backend: Backend) -> Result<()> {
    configfs::sweep()?;
    let scratch = board.scratch()?;
    let base = scratch.file("base");
    fs::write(&base, image::versioned(0, 0, LEN))?;
    let overlay = scratch.file("overlay");
    let (serial, stem) = (new_serial(), scratch.file("daemon"));
    let mut daemon = Daemon::serve(board, backend, &Setup::of([Drive::disk()]), &serial, &stem)?;
    let written: Vec<AtomicU64> = (0..PIECES).map(|_| AtomicU64::new(0)).collect();
    let mut unsure = None;
    for round in 1..=variable("RINGDRIVE_OVERLAY_KILLS", 3)? {
        insert(&daemon, &base, &overlay)?;
        let lun = UsbDevice::await_serial(&serial)?.await_lun(0, 0)?;
        must_hold(&lun, &written, unsure)?;
        let version = AtomicU64::new(round << 32);
        unsure = thread::scope(|scope| {
            let writer = scope.spawn(|| write_until_it_fails(&lun, &written, &version));
            let enough = (round << 32) + fastrand::Rng::with_seed(round).u64(20..60);
            wait_until(Duration::from_secs(60), "the host has written", || {
                version.load(Ordering::SeqCst) >= enough || writer.is_finished()
            })?;
            daemon.kill()?;
            let last = writer.join().map_err(|_| anyhow::anyhow!("the writer has panicked"))?;
            // Of the last nobody knows.
            last.map(Some).context("the writes did not end with the daemon")
        })?;
        tool::run("qemu-img", ["check".as_ref(), overlay.as_os_str()]).context("after kill -9")?;
        wait_until(Duration::from_secs(5), "the port is free after kill -9", || board.bound().is_none())?;
        daemon = daemon.start_again().context("a new daemon after kill -9")?;
    }
    insert(&daemon, &base, &overlay)?;
    let lun = UsbDevice::await_serial(&serial)?.await_lun(0, 0)?;
    must_hold(&lun, &written, unsure)?;
    let seen = lun.sha(Caching::Direct)?;
    lun.settle()?;
    wait_until(Duration::from_secs(10), "the host lets it go", || daemon.eject(0).is_ok())?;
    must_be(&overlay, &scratch.file("converted"), seen)?;
    let whole = image::versioned(0, 0, LEN);
    ensure!(fs::read(PathBuf::from(&base))? == whole, "the base has changed");
    daemon.stop()
}

/// Of the disk.
const LEN: usize = 3 << 20;
/// Of the disk, each written with a version of its own.
const PIECE: usize = 12 << 10;
const PIECES: usize = LEN / PIECE;

/// Where and with which version it ended; `None` if the host is at the end of its patience.
fn write_until_it_fails(lun: &Lun, written: &[AtomicU64], version: &AtomicU64) -> Option<(usize, u64)> {
    let mut random = fastrand::Rng::with_seed(version.load(Ordering::SeqCst));
    for _ in 0..100_000 {
        let at = random.usize(..written.len());
        let next = version.load(Ordering::SeqCst) + 1;
        let start = (at * PIECE) as u64;
        // Without a sync: what is acknowledged must outlive the daemon all the same.
        if lun.write_unsynced(start, &image::versioned(next, start, PIECE)).is_err() {
            return Some((at, next));
        }
        written[at].store(next, Ordering::SeqCst);
        version.store(next, Ordering::SeqCst);
    }
    None
}

/// Each piece as it was written last; the one that was being written may be new in part.
fn must_hold(lun: &Lun, written: &[AtomicU64], unsure: Option<(usize, u64)>) -> Result<()> {
    lun.forget()?;
    // At once, because each open costs the host some commands.
    let all = lun.read_at(0, LEN)?;
    for ((at, version), bytes) in written.iter().enumerate().zip(all.chunks_exact(PIECE)) {
        let start = (at * PIECE) as u64;
        let last = version.load(Ordering::SeqCst);
        let new = unsure.filter(|(of, _)| *of == at).map(|(_, new)| new);
        image::versions_in(bytes, start, &[last, new.unwrap_or(last)])
            .with_context(|| format!("piece {at}: what the host was told is written is lost"))?;
        if new.is_some() {
            // One version again, for the next round.
            lun.write_unsynced(start, &image::versioned(last, start, PIECE))?;
        }
    }
    ensure!(lun.len() == LEN as u64, "the disk is of {} bytes", lun.len());
    Ok(())
}
