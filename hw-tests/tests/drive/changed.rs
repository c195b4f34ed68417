//! An image that somebody truncates, replaces or rewrites while the host reads it: the old bytes or an error, and never a mixture.
//!
//! Each 512 bytes of the image have their version in them, and the host looks at all that it gets.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use hw_tests::board::Board;
use hw_tests::host::Lun;
use hw_tests::image::{self, versioned};
use hw_tests::nfs::{Server, Version};
use hw_tests::rig::{Backend, Drive, Rig, Setup};
use hw_tests::samba::Samba;
use hw_tests::scsi::{self, Data};
use hw_tests::tool;
use hw_tests::wait::wait_until;

use crate::{Case, DAEMON};

pub(crate) const CASES: &[Case] = &[
    Case { name: "in_memory_it_is_never_mixed", on: DAEMON, run: memory },
    Case { name: "on_a_disk_it_is_never_mixed", on: DAEMON, run: disk },
    Case { name: "on_nfs_it_is_never_mixed", on: DAEMON, run: nfs },
    Case { name: "on_cifs_it_is_never_mixed", on: DAEMON, run: cifs },
];

const LEN: u64 = 8 << 20;
const STEP: usize = 64 * 1024;
const OLD: u64 = 1;
const NEW: u64 = 2;
const PATIENCE: Duration = Duration::from_secs(60);
/// How long the host may be given old bytes that this machine has kept, until the server of the image is asked: a second, and a busy
/// machine adds to that.
const UNTOLD: Duration = Duration::from_secs(4);

/// What somebody does to the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    /// Cut off behind its first quarter.
    Truncated,
    /// Another file gets its name.
    Replaced,
    /// Other bytes of the same length.
    Rewritten,
}

impl Event {
    const ALL: [Self; 3] = [Self::Truncated, Self::Replaced, Self::Rewritten];

    /// Makes all ready that takes time; what is given lets it happen.
    fn prepare(self, path: &Path) -> Result<Box<dyn FnOnce() -> Result<()>>> {
        let (file, path) = (File::options().write(true).open(path)?, path.to_owned());
        Ok(match self {
            Self::Truncated => Box::new(move || Ok(file.set_len(LEN / 4)?)),
            Self::Replaced => {
                let other = path.with_extension("new");
                image_of(&other, NEW)?;
                Box::new(move || Ok(fs::rename(&other, &path)?))
            }
            Self::Rewritten => {
                let bytes = whole(NEW);
                Box::new(move || {
                    file.write_all_at(&bytes, 0)?;
                    // Another client of the server may keep it for itself until then.
                    Ok(file.sync_all()?)
                })
            }
        })
    }
}

fn whole(version: u64) -> Vec<u8> {
    versioned(version, 0, usize::try_from(LEN).unwrap_or(0))
}

fn image_of(path: &Path, version: u64) -> Result<()> {
    fs::write(path, whole(version)).with_context(|| format!("cannot write {}", path.display()))
}

fn memory(board: &Board, backend: Backend) -> Result<()> {
    let scratch = board.scratch()?;
    let image = scratch.file("image");
    all_events(board, backend, &Event::ALL, &Place::local(&image))?;
    compared(board, backend, &image)
}

/// VERIFY that compares (SBC-3, BYTCHK 01b) is the first to meet the change: the host is not told that it has the new bytes there.
fn compared(board: &Board, backend: Backend, path: &Path) -> Result<()> {
    image_of(path, OLD)?;
    let rig = Rig::start(board, backend, &Setup::of([Drive::disk().with(path)]))?;
    let lun = rig.lun(0)?;
    scsi::drain_attentions(&lun)?;
    let verify = |version: u64| {
        let bytes = path.with_extension("bytes");
        fs::write(&bytes, versioned(version, 0, 4096))?;
        scsi::command(&lun, &[0x2f, 0x02, 0, 0, 0, 0, 0, 0, 8, 0], Data::Out(&bytes, 4096))
    };
    let same = verify(OLD)?;
    ensure!(same.good(), "before the change: {}", same.text);
    let other = verify(NEW)?;
    ensure!(other.has_sense("Miscompare", ""), "other bytes, before the change: {}", other.text);
    Event::Rewritten.prepare(path)?()?;
    let changed = verify(NEW)?;
    ensure!(changed.has_sense("Medium Error", ""), "after the change: {}", changed.text);
    rig.stop()
}

fn disk(board: &Board, backend: Backend) -> Result<()> {
    let scratch = board.scratch()?;
    let (device, dir) = (image::blank(scratch.file("ext4"), 64 << 20)?, scratch.file("mounted"));
    fs::create_dir_all(&dir)?;
    tool::run("mkfs.ext4", ["-q".as_ref(), device.as_os_str()])?;
    tool::run("mount", ["-o".as_ref(), "loop".as_ref(), device.as_os_str(), dir.as_os_str()])?;
    let done = all_events(board, backend, &Event::ALL, &Place::local(&dir.join("image")));
    tool::run("umount", ["-l".as_ref(), dir.as_os_str()])?;
    done
}

fn nfs(board: &Board, backend: Backend) -> Result<()> {
    let mut server = Server::start()?;
    for (name, version) in [("v3", Version::V3), ("v42", Version::V42)] {
        let dir = server.mount(name, version, "hard")?;
        let (theirs, ours) = (server.file("image"), dir.join("image"));
        let place = Place { theirs: &theirs, ours: &ours, untold: UNTOLD, names_are_seen: true };
        all_events(board, backend, &Event::ALL, &place).with_context(|| format!("NFS {version:?}"))?;
    }
    Ok(())
}

fn cifs(board: &Board, backend: Backend) -> Result<()> {
    let scratch = board.scratch()?;
    let mut server = Samba::start(&scratch)?;
    let ours = server.mount("changed", "hard")?;
    // By another client: what somebody does to the server's disk behind its back, the server tells nobody who has a lease.
    let theirs = server.mount("theirs", "hard")?;
    let (theirs, ours) = (theirs.join("image"), ours.join("image"));
    // Linux's client takes a file that has no name any more for one that has (`bogus file nlink value 0`).
    let place = Place { theirs: &theirs, ours: &ours, untold: UNTOLD, names_are_seen: false };
    all_events(board, backend, &[Event::Truncated, Event::Replaced], &place)?;
    image_of(&theirs, OLD)?;
    let rig = Rig::start(board, backend, &Setup::of([Drive::disk().with(&ours)]))?;
    let refused = Event::Rewritten.prepare(&theirs)?();
    ensure!(refused.is_err(), "another client rewrote what a drive has locked");
    let read = rig.lun(0)?.read_at(0, STEP)?;
    ensure!(read == versioned(OLD, 0, STEP), "the host was given new bytes");
    rig.stop()
}

/// Where the file is.
#[derive(Clone, Copy)]
struct Place<'a> {
    /// As whoever changes it has it.
    theirs: &'a Path,
    /// As the drive has it.
    ours: &'a Path,
    /// How long a change may go unseen.
    untold: Duration,
    /// Whether the drive can see that the file's name is another's.
    names_are_seen: bool,
}

impl<'a> Place<'a> {
    fn local(path: &'a Path) -> Self {
        Self { theirs: path, ours: path, untold: Duration::ZERO, names_are_seen: true }
    }
}

fn all_events(board: &Board, backend: Backend, events: &[Event], place: &Place<'_>) -> Result<()> {
    for event in events {
        image_of(place.theirs, OLD)?;
        one_event(board, backend, *event, place).with_context(|| format!("{event:?}"))?;
        fs::remove_file(place.theirs)?;
    }
    Ok(())
}

/// One read of the host.
#[derive(Clone, Debug)]
struct Seen {
    begun: Instant,
    ended: Instant,
    /// The versions that its bytes are of, if it got any.
    got: Option<Vec<u64>>,
}

fn one_event(board: &Board, backend: Backend, event: Event, place: &Place<'_>) -> Result<()> {
    let Place { theirs, ours, untold, names_are_seen } = *place;
    let mut rig = Rig::start(board, backend, &Setup::of([Drive::disk().with(ours)]))?;
    let lun = rig.lun(0)?;
    let events = rig.daemon()?.events()?;
    let happen = event.prepare(theirs)?;
    let (reads, enough) = (Mutex::new(Vec::new()), AtomicBool::new(false));
    let count = || reads.lock().map_or(0, |reads: std::sync::MutexGuard<'_, Vec<Seen>>| reads.len());
    let (changed, told) = thread::scope(|scope| {
        let host = scope.spawn(|| read_on(&lun, &reads, &enough));
        let told = (|| {
            // Each read opens the drive, which prevents removal, of which whoever has subscribed is told.
            wait_until(PATIENCE, "the host reads", || count() > 8 && !events.seen().is_empty())?;
            let changed = Instant::now();
            happen()?;
            if event != Event::Replaced || names_are_seen {
                events.await_event("source_changed", |event| event["drive"] == 0)?;
            }
            let told = Instant::now();
            let before = count();
            wait_until(PATIENCE, "the host reads on", || count() > before + 16)?;
            Ok::<_, anyhow::Error>((changed, told))
        })();
        enough.store(true, Ordering::Relaxed);
        host.join().map_err(|_| anyhow!("the host panicked"))?.and(told)
    })?;
    let reads = reads.into_inner().map_err(|_| anyhow!("the host panicked"))?;
    judge(event, &reads, changed, told, untold)?;
    if event != Event::Replaced {
        let outcome = scsi::command(&lun, &[0x28, 0, 0, 0, 0, 0, 0, 0, 8, 0], Data::In(4096))?;
        ensure!(outcome.has_sense("Medium Error", ""), "after the change: {}", outcome.text);
    }
    // It lives on, and so does the drive.
    let other = board.scratch()?;
    image_of(&other.file("other"), NEW)?;
    lun.settle()?;
    rig.force_eject(0)?;
    rig.insert(0, &other.file("other"))?;
    scsi::drain_attentions(&lun)?;
    ensure!(lun.read_at(0, STEP)? == versioned(NEW, 0, STEP), "another image is not read");
    rig.stop()
}

/// Reads places in no order, past the host's cache.
fn read_on(lun: &Lun, reads: &Mutex<Vec<Seen>>, enough: &AtomicBool) -> Result<()> {
    let mut random = fastrand::Rng::with_seed(43);
    while !enough.load(Ordering::Relaxed) {
        let at = random.u64(..LEN / u64::try_from(STEP)?) * u64::try_from(STEP)?;
        let begun = Instant::now();
        let read = lun.read_at(at, STEP);
        let ended = Instant::now();
        let got = match &read {
            Ok(bytes) => Some(image::versions_in(bytes, at, &[OLD, NEW])?),
            Err(_) => None,
        };
        reads.lock().map_err(|_| anyhow!("poisoned"))?.push(Seen { begun, ended, got });
    }
    Ok(())
}

fn judge(event: Event, reads: &[Seen], changed: Instant, told: Instant, untold: Duration) -> Result<()> {
    let old = [OLD].as_slice();
    let got = |read: &Seen, versions: &[u64]| read.got.as_deref() == Some(versions);
    let before = reads.iter().filter(|read| read.ended < changed);
    ensure!(before.clone().all(|read| got(read, old)), "errors before anything happened");
    let new: Vec<&Seen> = reads.iter().filter(|read| read.got.is_some() && !got(read, old)).collect();
    let after: Vec<&Seen> = reads.iter().filter(|read| read.begun > told).collect();
    eprintln!(
        "{event:?}: told after {:?}; {} reads before, {} with new bytes, {} after, of which {} failed",
        told - changed,
        before.count(),
        new.len(),
        after.len(),
        after.iter().filter(|read| read.got.is_none()).count(),
    );
    ensure!(new.is_empty(), "the host was given new bytes: {new:?}");
    ensure!(told - changed < untold.max(Duration::from_secs(2)), "told after {:?}", told - changed);
    // Of a file that was only replaced, the old one is still there.
    let wanted = |read: &&Seen| read.got.is_none() || (event == Event::Replaced && got(read, old));
    ensure!(after.iter().all(wanted), "old bytes of a file that is another: {after:?}");
    Ok(())
}
