//! A file server that stops to answer, in the middle of reads and of writes: the host waits and loses nothing, and nobody else waits.
//!
//! `RINGDRIVE_OUTAGES` is how often the server is gone in each of the four kinds of work (2), `RINGDRIVE_OUTAGE_SECONDS` for how long
//! (3). Fifty outages of 20 s take half an hour by the board's clock, and much less where instructions are counted as time.

use std::fs::{self, File};
use std::ops::Deref;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use hw_tests::board::Board;
use hw_tests::daemon::Daemon;
use hw_tests::host::Lun;
use hw_tests::image::{self, MIB};
use hw_tests::nfs::{Server, Version};
use hw_tests::rig::{Backend, Drive, Rig, Setup};
use hw_tests::wait::{wait_for, wait_until};
use serde_json::Value;

use crate::{Case, DAEMON, variable};

pub(crate) const CASES: &[Case] =
    &[Case { name: "a_dead_file_server_is_an_answer_and_its_return_is_noticed", on: DAEMON, run: hang }];

/// What a client waits for an answer: a second, and what a busy machine adds. Whoever waits for the server waits longer.
const AT_ONCE: Duration = Duration::from_millis(2500);
/// From the word to the end of the daemon: five seconds, and what this machine adds.
const END: Duration = Duration::from_millis(7500);
/// How long a function is held up by a command for a dead image: its deadline, and what this machine adds.
const HELD_UP: Duration = Duration::from_millis(2500);
const DEADLINE_MS: u32 = 1000;
/// From the server's return, and as long again as it was gone: a mount is heard of when its connection is made anew, or TCP
/// retransmits.
const BACK: Duration = Duration::from_secs(20);
/// After which softly mounted areas give up.
const SOFT: Duration = Duration::from_secs(15);
const LOOK_EVERY: Duration = Duration::from_secs(1);
const STEP: usize = 64 * 1024;
/// The host has done up to so many steps more when the server goes.
const ANY_MOMENT: u64 = 16;

/// What one run is about.
struct Run<'a> {
    server: &'a Server,
    daemon: &'a Daemon,
    dead: &'a Lun,
    alive: &'a Lun,
    outages: u64,
    gone: Duration,
}

fn hang(board: &Board, backend: Backend) -> Result<()> {
    let scratch = board.scratch()?;
    let mut server = Server::start()?;
    let local = image::random(scratch.file("local"), 90, 4)?;
    let other = image::random(scratch.file("other"), 89, 4)?;
    let outages = variable("RINGDRIVE_OUTAGES", 2)?;
    let gone = Duration::from_secs(variable("RINGDRIVE_OUTAGE_SECONDS", 3)?);
    let mut said = String::new();
    // As areas are mounted, where there is time for that: a soft one gives up after 15 s.
    let soft = if gone > SOFT { "softerr,timeo=50,retrans=2" } else { "soft,timeo=5,retrans=2" };
    for (seed, (name, options)) in (91..).zip([("hard", "hard,timeo=50,retrans=2"), ("soft", soft)]) {
        let dir = server.mount(name, Version::V3, options)?;
        let file = format!("{name}.img");
        image::random(server.file(&file), seed, 32)?;
        let drives = [
            Drive::disk().named("far").with(&dir.join(&file)).writable().deadline_ms(DEADLINE_MS),
            Drive::disk().named("near").with(&local),
        ];
        let mut rig = Rig::start(board, backend, &Setup::of(drives))?;
        let (dead, alive) = (rig.lun(0)?, rig.lun(1)?);
        let daemon = rig.daemon()?;
        let run = Run { server: &server, daemon, dead: &dead, alive: &alive, outages, gone };
        reads(&run, &server.file(&file)).with_context(|| format!("{name} mount, reads"))?;
        let write = if name == "hard" { writes } else { soft_writes };
        write(&run, &server.file(&file), &dir.join(&file), seed)
            .with_context(|| format!("{name} mount, writes"))?;
        ejected(&run, &other).with_context(|| format!("{name} mount, eject"))?;
        said += &daemon.log();
        ended(rig, &server, &dead, &dir.join(&file)).with_context(|| format!("{name} mount, end"))?;
    }
    ensure!(
        said.contains("connections are made anew"),
        "the kernel was always first to find the server:\n{said}"
    );
    Ok(())
}

/// Cuts the network at some moment of the host's work; when that was.
fn cut(run: &Run<'_>, steps: &AtomicU64) -> Result<Instant> {
    let moment = steps.load(Ordering::Relaxed) + 2 + fastrand::u64(..ANY_MOMENT);
    wait_until(BACK, "the host is at work", || steps.load(Ordering::Relaxed) > moment)?;
    run.server.cut()?;
    Ok(Instant::now())
}

/// Cuts the network while `work` goes on, looks around meanwhile, mends it, and waits until `work` goes on.
fn outage(run: &Run<'_>, steps: &AtomicU64) -> Result<()> {
    let gone = cut(run, steps)?;
    let seen = look_around(run, gone);
    run.server.mend()?;
    let back = Instant::now();
    seen?;
    let limit = BACK + run.gone;
    wait_until(limit, "the source is online", || source(run.daemon).is_ok_and(|source| source == "online"))?;
    let after = steps.load(Ordering::Relaxed);
    wait_until(limit, "the host goes on", || steps.load(Ordering::Relaxed) > after)?;
    eprintln!("went on {} ms after the server was back", back.elapsed().as_millis());
    Ok(())
}

/// While the server is gone: everybody else is served, and the state says so.
fn look_around(run: &Run<'_>, gone: Instant) -> Result<()> {
    let mut offline = false;
    let (mut slowest, mut slowest_state) = (Duration::ZERO, Duration::ZERO);
    while gone.elapsed() < run.gone || !offline {
        ensure!(gone.elapsed() < BACK, "never offline");
        let asked = Instant::now();
        offline |= source(run.daemon)? == "offline";
        slowest_state = slowest_state.max(asked.elapsed());
        ensure!(slowest_state < AT_ONCE, "state took {} ms", slowest_state.as_millis());
        let asked = Instant::now();
        run.alive.read_at(0, STEP)?;
        slowest = slowest.max(asked.elapsed());
        // Asked too often, a board that counts instructions as time never comes to the end.
        let _ = wait_until(LOOK_EVERY, "the next look", || asked.elapsed() >= LOOK_EVERY || !offline);
    }
    eprintln!(
        "the other drive took {} ms at most, state {} ms",
        slowest.as_millis(),
        slowest_state.as_millis()
    );
    ensure!(slowest < HELD_UP, "the other drive took {} ms", slowest.as_millis());
    Ok(())
}

fn source(daemon: &Daemon) -> Result<String> {
    let state = daemon.state()?;
    let source = state.pointer("/drives/0/image/source").and_then(Value::as_str);
    Ok(source.with_context(|| format!("no source in {state}"))?.to_owned())
}

/// Does `work` with one number after the other, on a thread, while the server goes and comes. Each time is told by events.
fn at_work(run: &Run<'_>, work: impl Fn(u64) -> Result<()> + Sync) -> Result<()> {
    let (steps, enough) = (AtomicU64::new(0), AtomicBool::new(false));
    let events = run.daemon.events()?;
    thread::scope(|scope| {
        let worker = scope.spawn(|| {
            while !enough.load(Ordering::Relaxed) {
                work(steps.load(Ordering::Relaxed))?;
                steps.fetch_add(1, Ordering::Relaxed);
            }
            Ok::<_, anyhow::Error>(())
        });
        let seen = (0..run.outages).try_for_each(|_| outage(run, &steps));
        enough.store(true, Ordering::Relaxed);
        let worked = worker.join().map_err(|_| anyhow::anyhow!("the host panicked"))?;
        worked.context("the host failed").and(seen)
    })?;
    let told = |name: &str| events.seen().iter().filter(|event| event["event"] == name).count();
    let outages = usize::try_from(run.outages)?;
    let both = || told("source_offline") >= outages && told("source_online") == told("source_offline");
    wait_until(BACK, "as many events of the source's end and return as there were", both)
        .with_context(|| format!("{:?}", events.seen()))
}

/// Each step reads bytes that this machine's cache does not hold.
fn reads(run: &Run<'_>, file: &Path) -> Result<()> {
    let all = fs::read(file)?;
    at_work(run, |step| {
        let at = usize::try_from(step)? * STEP % all.len();
        if at == 0 {
            fs::write("/proc/sys/vm/drop_caches", "1")?;
        }
        let read = run.dead.read_at(u64::try_from(at)?, STEP)?;
        ensure!(all.get(at..at + STEP) == Some(&read), "wrong bytes at {at}");
        Ok(())
    })
}

/// Each step writes and has it made durable, which needs the server.
fn writes(run: &Run<'_>, file: &Path, _: &Path, seed: u64) -> Result<()> {
    let last = AtomicU64::new(0);
    at_work(run, |step| {
        run.dead.write_at(at(step), &image::noise(seed + step, STEP))?;
        last.store(step, Ordering::Relaxed);
        Ok(())
    })?;
    stored(file, last.load(Ordering::Relaxed), 64, seed)
}

/// A soft mount gives up what it was to write, and the host hears of it: what was said to be durable before is stored.
fn soft_writes(run: &Run<'_>, file: &Path, image: &Path, seed: u64) -> Result<()> {
    for outage in 0..run.outages {
        let seed = seed + (outage << 32);
        let (steps, back) = (AtomicU64::new(0), AtomicBool::new(false));
        let write = |step| run.dead.write_at(at(step), &image::noise(seed + step, STEP));
        thread::scope(|scope| {
            let worker = scope.spawn(|| {
                while write(steps.load(Ordering::Relaxed)).is_ok() && !back.load(Ordering::Relaxed) {
                    steps.fetch_add(1, Ordering::Relaxed);
                }
            });
            let seen = cut(run, &steps).and_then(|gone| {
                let seen = look_around(run, gone);
                run.server.mend().and(seen)
            });
            back.store(true, Ordering::Relaxed);
            worker.join().map_err(|_| anyhow::anyhow!("the host panicked"))?;
            seen
        })?;
        // The one that failed may have overwritten the oldest.
        if let Some(last) = steps.load(Ordering::Relaxed).checked_sub(1) {
            stored(file, last, 63, seed)?;
        }
        run.daemon.force_eject(0)?;
        wait_for(BACK + run.gone, "the image can be inserted again", || run.daemon.insert(0, image).ok())?;
        wait_until(BACK, "the host can read it", || run.dead.read_at(0, STEP).is_ok())?;
    }
    Ok(())
}

/// The server holds what the host wrote in the last `count` steps up to `last`.
fn stored(file: &Path, last: u64, count: u64, seed: u64) -> Result<()> {
    let server = File::open(file)?;
    let wrong = (last.saturating_sub(count - 1)..=last).find(|step| {
        let mut stored = vec![0; STEP];
        server.read_exact_at(&mut stored, at(*step)).is_err() || stored != image::noise(seed + step, STEP)
    });
    match wrong {
        None => Ok(()),
        Some(step) => bail!("the server does not hold what the host wrote in step {step} of {last}"),
    }
}

/// 64 places.
fn at(step: u64) -> u64 {
    step % 64 * 256 * 1024 % (16 * MIB)
}

/// With a dead server, a client takes the image out and puts another in.
fn ejected(run: &Run<'_>, local: &Path) -> Result<()> {
    run.dead.settle()?;
    let swap = |daemon: &Daemon| {
        within(AT_ONCE, "eject", || daemon.force_eject(0))?;
        within(AT_ONCE, "insert", || daemon.insert(0, local))
    };
    while_dead(run.server, run.daemon, run.dead, swap)?;
    let read = run.dead.read_at(0, STEP)?;
    ensure!(fs::read(local)?.starts_with(&read), "the host does not read the image that was inserted");
    Ok(())
}

/// With a dead server, the daemon ends.
fn ended(mut rig: Rig, server: &Server, dead: &Lun, image: &Path) -> Result<()> {
    let daemon = rig.daemon()?;
    daemon.force_eject(0)?;
    daemon.insert(0, image)?;
    wait_until(BACK, "the host can read the image", || dead.read_at(0, STEP).is_ok())?;
    while_dead(server, daemon, dead, |daemon| {
        within(AT_ONCE, "shutdown", || daemon.cli(&["shutdown"]))?;
        within(END, "the end", || daemon.must_end_well())
    })
}

/// Does `work` while the host waits for a server that is gone.
fn while_dead<D: Deref<Target = Daemon>>(
    server: &Server,
    daemon: D,
    dead: &Lun,
    work: impl FnOnce(D) -> Result<()>,
) -> Result<()> {
    server.cut()?;
    let done = fs::write("/proc/sys/vm/drop_caches", "1").map_err(Into::into).and_then(|()| {
        thread::scope(|scope| {
            // Whatever comes of it: the host is told that the medium has gone, or the device.
            let reader = scope.spawn(|| drop(dead.read_at(0, STEP)));
            let offline = || source(&daemon).ok().filter(|source| source == "offline");
            let done = wait_for(BACK, "the source is offline", offline).and_then(|_| work(daemon));
            reader.join().map_err(|_| anyhow::anyhow!("the host panicked")).and(done)
        })
    });
    server.mend().and(done)
}

fn within<T>(limit: Duration, what: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let asked = Instant::now();
    let done = work()?;
    eprintln!("{what} took {} ms", asked.elapsed().as_millis());
    ensure!(asked.elapsed() < limit, "{what} took {} ms", asked.elapsed().as_millis());
    Ok(done)
}
