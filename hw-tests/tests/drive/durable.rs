//! What the host was told is durable is on the disk, behind the page cache.
//!
//! The image lies on an ext4 in a file on a loop device, whose blocks are all written and known: what has reached the disk is read from
//! that file, past the file system. Nothing is written back by itself meanwhile, so each step first shows that its bytes are in the
//! page cache only.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use hw_tests::board::{Board, Scratch, Speed};
use hw_tests::host::{self, Lun};
use hw_tests::image::{self, MIB, peek, versioned};
use hw_tests::rig::{Backend, Drive, Rig, Setup};
use hw_tests::scsi::{self, Data};
use hw_tests::tool;
use hw_tests::wait::{ENUMERATION, wait_until};

use crate::{Case, DAEMON, DAEMON_AND_KERNEL};

pub(crate) const CASES: &[Case] = &[
    Case { name: "what_any_host_is_told_is_durable_is_on_the_disk", on: DAEMON_AND_KERNEL, run: basic },
    Case { name: "each_way_to_ask_for_durability_keeps_its_promise", on: DAEMON, run: commands },
    Case { name: "what_was_written_is_on_the_disk_once_the_medium_leaves", on: DAEMON, run: leaving },
    Case { name: "what_was_written_is_stored_when_the_host_sleeps_or_leaves", on: DAEMON, run: going },
];

/// Bytes of the image.
const LEN: usize = 4 << 20;
/// What each step writes: a page.
const STEP: usize = 4096;

/// Keeps the kernel from writing back by itself.
struct NoWriteback(String);

impl NoWriteback {
    const PATH: &str = "/proc/sys/vm/dirty_writeback_centisecs";

    fn begin() -> Result<Self> {
        let was = fs::read_to_string(Self::PATH)?;
        fs::write(Self::PATH, "0")?;
        Ok(Self(was))
    }
}

impl Drop for NoWriteback {
    fn drop(&mut self) {
        let _ = fs::write(Self::PATH, self.0.trim());
    }
}

/// A mounted ext4 on a disk that can be looked at.
struct Disk {
    /// What the disk holds.
    device: PathBuf,
    mount: PathBuf,
    /// The image on it.
    image: PathBuf,
    /// Where on the disk each page of the image is.
    pages: Vec<u64>,
    _quiet: NoWriteback,
}

impl Disk {
    fn new(scratch: &Scratch) -> Result<Self> {
        let device = image::blank(scratch.file("disk"), 32 * MIB)?;
        let mount = scratch.file("mount");
        fs::create_dir(&mount)?;
        tool::run("mkfs.ext4", ["-q".as_ref(), "-b".as_ref(), "4096".as_ref(), device.as_os_str()])?;
        tool::run("mount", ["-o".as_ref(), "loop".as_ref(), device.as_os_str(), mount.as_os_str()])?;
        let image = mount.join("image");
        let mut disk = Self { device, mount, image, pages: Vec::new(), _quiet: NoWriteback::begin()? };
        fs::write(&disk.image, versioned(0, 0, LEN))?;
        tool::run("sync", ["-f".as_ref(), disk.image.as_os_str()])?;
        disk.pages = pages_of(&tool::run("filefrag", ["-v".as_ref(), disk.image.as_os_str()])?);
        ensure!(disk.pages.len() == LEN / STEP, "of the image {} pages are on the disk", disk.pages.len());
        for (at, expected) in (0..).step_by(STEP).zip(versioned(0, 0, LEN).chunks(STEP)) {
            ensure!(disk.stored(at)? == expected, "the page at {at} is not where the file system says");
        }
        Ok(disk)
    }

    /// What the disk holds of the page at `at` of the image.
    fn stored(&self, at: u64) -> Result<Vec<u8>> {
        let page = usize::try_from(at)? / STEP;
        peek(&self.device, *self.pages.get(page).context("past the end")?, STEP)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = tool::try_run("umount", ["-l".as_ref(), self.mount.as_os_str()]);
    }
}

/// Where on the disk each page of a file is, from what `filefrag -v` says of its extents, in blocks of 4096 bytes. Extents that
/// are allocated and not written yet are left out.
fn pages_of(said: &str) -> Vec<u64> {
    let mut pages = Vec::new();
    for line in said.lines().filter(|line| !line.contains("unwritten")) {
        let fields: Vec<&str> = line.split(':').collect();
        let [number, _, physical, length, ..] = fields[..] else { continue };
        let first = physical.split("..").next().and_then(|first| first.trim().parse::<u64>().ok());
        if let (Ok(_), Some(first), Ok(length)) =
            (number.trim().parse::<u32>(), first, length.trim().parse::<u64>())
        {
            pages.extend((first..first + length).map(|block| block * 4096));
        }
    }
    pages
}

/// A host that writes to a drive, and looks at the disk below it.
struct Bench {
    rig: Rig,
    lun: Lun,
    disk: Disk,
    scratch: Scratch,
    /// Steps so far.
    steps: u64,
}

impl Bench {
    fn start(board: &Board, backend: Backend) -> Result<Self> {
        let scratch = board.scratch()?;
        let disk = Disk::new(&scratch)?;
        let rig = Rig::start(board, backend, &Setup::of([Drive::disk().with(&disk.image).writable()]))?;
        let lun = rig.lun(0)?;
        Ok(Self { rig, lun, disk, scratch, steps: 0 })
    }

    /// Writes a page that was never written before, with WRITE(10) and these flags; where it is.
    fn write(&mut self, flags: u8) -> Result<u64> {
        self.steps += 1;
        // Not one behind the other, so that nothing looks like a stream.
        let at = (self.steps * 37 % 1024) * 4096;
        let file = self.scratch.file("page");
        fs::write(&file, versioned(1, at, STEP))?;
        let lba = u32::try_from(at / 512)?.to_be_bytes();
        let cdb = [&[0x2a, flags], &lba[..], &[0, 0, 8, 0]].concat();
        let outcome = scsi::command(&self.lun, &cdb, Data::Out(&file, STEP))?;
        ensure!(outcome.good(), "WRITE(10) said: {}", outcome.text);
        ensure!(peek(&self.disk.image, at, STEP)? == versioned(1, at, STEP), "GOOD, but not written");
        Ok(at)
    }

    fn is_stored(&self, at: u64) -> Result<bool> {
        let stored = self.disk.stored(at)?;
        let versions = image::versions_in(&stored, at, &[0, 1])?;
        Ok(versions == [1])
    }

    /// Writes a page, which is in the page cache only.
    fn write_to_cache(&mut self) -> Result<u64> {
        let at = self.write(0)?;
        ensure!(!self.is_stored(at)?, "a plain write is on the disk at once; this trial would prove nothing");
        Ok(at)
    }

    fn must_be_stored(&self, at: u64) -> Result<()> {
        ensure!(self.is_stored(at)?, "the page at {at} is in the page cache only");
        Ok(())
    }

    /// Nothing tells of it but the disk.
    fn await_stored(&self, at: u64) -> Result<()> {
        wait_until(ENUMERATION, "it is stored", || self.is_stored(at).is_ok_and(|stored| stored))
    }

    fn good(&self, what: &str, cdb: &[u8], data: Data<'_>) -> Result<()> {
        let outcome = scsi::command(&self.lun, cdb, data)?;
        ensure!(outcome.good(), "{what} said: {}", outcome.text);
        Ok(())
    }

    /// What was written before this command is stored after it.
    fn promises(&mut self, what: &str, cdb: &[u8]) -> Result<()> {
        let at = self.write_to_cache()?;
        self.good(what, cdb, Data::None)?;
        self.must_be_stored(at).with_context(|| format!("after {what}"))
    }

    fn insert_again(&mut self) -> Result<()> {
        self.rig.insert(0, &self.disk.image)?;
        let outcomes = scsi::drain_attentions(&self.lun)?;
        ensure!(outcomes.last().is_some_and(scsi::Outcome::good), "not ready after an insert: {outcomes:?}");
        Ok(())
    }

    fn stop(self) -> Result<()> {
        self.rig.stop()
    }
}

/// SYNCHRONIZE CACHE(10) of these blocks.
fn synchronize(lba: u32, blocks: u16) -> Vec<u8> {
    [&[0x35, 0][..], &lba.to_be_bytes(), &[0], &blocks.to_be_bytes(), &[0]].concat()
}

fn basic(board: &Board, backend: Backend) -> Result<()> {
    let mut bench = Bench::start(board, backend)?;
    bench.promises("SYNCHRONIZE CACHE(10)", &synchronize(0, 0))?;
    let cached = bench.write_to_cache()?;
    let forced = bench.write(8)?;
    // On the board's kernel (6.12) a write with FUA to f_mass_storage is in the page cache only.
    if backend != Backend::Kernel {
        bench.must_be_stored(forced).context("after a write with FUA")?;
    }
    scsi::prevent(&bench.lun, true)?;
    scsi::prevent(&bench.lun, false)?;
    bench.must_be_stored(cached).context("after PREVENT was released")?;
    bench.stop()
}

fn commands(board: &Board, backend: Backend) -> Result<()> {
    let mut bench = Bench::start(board, backend)?;
    let at = bench.write_to_cache()?;
    let lba = u32::try_from(at / 512)?;
    bench.good("SYNCHRONIZE CACHE of a range", &synchronize(lba, 8), Data::None)?;
    bench.must_be_stored(at).context("after SYNCHRONIZE CACHE of a range")?;
    bench.promises("SYNCHRONIZE CACHE(16)", &[0x91, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])?;
    bench.promises("START STOP UNIT, stop", &[0x1b, 0, 0, 0, 0, 0])?;
    bench.promises("START STOP UNIT, standby", &[0x1b, 0, 0, 0, 0x30, 0])?;
    let at = bench.write_to_cache()?;
    bench.good("START STOP UNIT, stop with NO_FLUSH", &[0x1b, 0, 0, 0, 4, 0], Data::None)?;
    ensure!(!bench.is_stored(at)?, "NO_FLUSH flushed");
    cache_off(&mut bench)?;
    bench.stop()
}

fn cache_off(bench: &mut Bench) -> Result<()> {
    let list = bench.scratch.file("list");
    let select = |bench: &Bench, flags: u8| {
        let page = [&[0, 0, 0, 0, 0x08, 0x12, flags][..], &[0; 17]].concat();
        fs::write(&list, page)?;
        bench.good("MODE SELECT(6)", &[0x15, 0x10, 0, 0, 24, 0], Data::Out(&list, 24))
    };
    let before = bench.write_to_cache()?;
    select(bench, 0)?;
    bench.must_be_stored(before).context("after the write cache was switched off")?;
    let through = bench.write(0)?;
    bench.must_be_stored(through).context("a write without write cache")?;
    select(bench, 4)?;
    bench.write_to_cache().context("with the write cache on again").map(drop)
}

fn leaving(board: &Board, backend: Backend) -> Result<()> {
    let mut bench = Bench::start(board, backend)?;
    let at = bench.write_to_cache()?;
    bench.rig.eject_when_closed(0)?;
    bench.must_be_stored(at).context("after an eject by a client")?;
    bench.insert_again()?;
    let at = bench.write_to_cache()?;
    let eject = scsi::eject(&bench.lun)?;
    ensure!(eject.good(), "START STOP UNIT, eject said: {}", eject.text);
    bench.must_be_stored(at).context("after an eject by the host")?;
    bench.insert_again()?;
    let at = bench.write_to_cache()?;
    let Bench { rig, disk, lun, scratch, steps: _ } = bench;
    rig.stop()?;
    let stored = disk.stored(at)?;
    ensure!(stored == versioned(1, at, STEP), "the daemon stopped well, and the page at {at} is not stored");
    drop((disk, lun, scratch));
    Ok(())
}

/// Lets the host put what nobody uses to sleep at once, or wakes it.
fn sleep(bench: &Bench, may: bool) -> Result<()> {
    for dir in [&bench.lun.sysfs, &bench.rig.device.sysfs] {
        let set = |name: &str, value: &str| {
            let path: PathBuf = dir.join("power").join(name);
            fs::write(&path, value).with_context(|| format!("cannot write {}", path.display()))
        };
        set("autosuspend_delay_ms", "0")?;
        set("control", if may { "auto" } else { "on" })?;
    }
    Ok(())
}

fn going(board: &Board, backend: Backend) -> Result<()> {
    let mut bench = Bench::start(board, backend)?;
    // At SuperSpeed dummy_hcd does not let its device know.
    if board.speed == Speed::High {
        suspended(&mut bench)?;
    }
    let at = bench.write_to_cache()?;
    bench.rig.device.authorize(false)?;
    bench.await_stored(at).context("after the host has left")?;
    bench.stop()
}

fn suspended(bench: &mut Bench) -> Result<()> {
    // Else the host flushes what it puts to sleep.
    let disk = host::child(&bench.lun.sysfs.join("scsi_disk"), "").context("the host has no disk of it")?;
    fs::write(disk.join("cache_type"), "temporary write through")?;
    let at = bench.write_to_cache()?;
    sleep(bench, true)?;
    bench.await_stored(at).context("after a suspend")?;
    let host = bench.rig.state()?["drives"][0]["host"]["state"].clone();
    ensure!(host == "suspended", "stored, but the host is {host}");
    sleep(bench, false)
}
