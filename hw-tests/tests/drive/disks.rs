//! Several drives in one gadget, read-only drives, empty drives.

use std::path::Path;

use anyhow::{Result, ensure};
use hw_tests::board::Board;
use hw_tests::host::Caching;
use hw_tests::image;
use hw_tests::raw_bot::RawBot;
use hw_tests::rig::{Backend, Drive, Function, Rig, Setup, Stall};
use hw_tests::scsi::{self, Data};
use hw_tests::tool;

use crate::{ALL, Case, DAEMON_AND_KERNEL};

pub(crate) const CASES: &[Case] = &[
    Case { name: "drives_that_are_luns_of_one_function_keep_apart", on: ALL, run: luns_keep_apart },
    Case { name: "drives_in_functions_of_their_own_keep_apart", on: ALL, run: functions_keep_apart },
    Case { name: "a_read_only_disk_refuses_writes", on: DAEMON_AND_KERNEL, run: read_only_refuses_writes },
    Case { name: "an_empty_drive_says_medium_not_present", on: DAEMON_AND_KERNEL, run: empty_says_so },
    Case { name: "get_max_lun_gives_the_last_lun", on: DAEMON_AND_KERNEL, run: get_max_lun },
];

const NAMES: [&str; 3] = ["first", "second", "third"];

fn luns_keep_apart(board: &Board, backend: Backend) -> Result<()> {
    keep_apart(board, backend, Setup::of)
}

fn functions_keep_apart(board: &Board, backend: Backend) -> Result<()> {
    keep_apart(board, backend, |drives| {
        let functions: Vec<Function> = drives
            .into_iter()
            .map(|drive| Function { name: drive.name, drives: vec![drive], stall: Stall::Auto })
            .collect();
        Setup::of_functions(functions)
    })
}

fn keep_apart(board: &Board, backend: Backend, setup: impl Fn(Vec<Drive>) -> Setup) -> Result<()> {
    let scratch = board.scratch()?;
    let mut images = Vec::new();
    for (seed, name) in (10..).zip(NAMES) {
        images.push(image::random(scratch.file(name), seed, 4)?);
    }
    let drives =
        NAMES.iter().zip(&images).map(|(name, path)| Drive::disk().named(name).with(path).writable());
    let rig = Rig::start(board, backend, &setup(drives.collect()))?;
    let before: Vec<_> = images.iter().map(|path| image::sha_of_file(path)).collect::<Result<_>>()?;
    for (drive, name) in NAMES.iter().enumerate() {
        let lun = rig.lun(drive)?;
        ensure!(lun.inquiry("vendor") == "RINGTEST", "vendor {:?}", lun.inquiry("vendor"));
        ensure!(lun.inquiry("model") == *name, "drive {drive} is {:?}, not {name:?}", lun.inquiry("model"));
        ensure!(lun.sha(Caching::Direct)? == before[drive], "{name} is not its image");
    }
    let mark = image::noise(99, 8192);
    rig.lun(1)?.write_at(4096, &mark)?;
    ensure!(image::peek(&images[1], 4096, mark.len())? == mark, "the write did not reach the second image");
    for other in [0, 2] {
        ensure!(image::sha_of_file(&images[other])? == before[other], "the write reached {}", NAMES[other]);
        ensure!(rig.lun(other)?.sha(Caching::Direct)? == before[other], "{} changed", NAMES[other]);
    }
    rig.stop()
}

fn read_only_refuses_writes(board: &Board, backend: Backend) -> Result<()> {
    let scratch = board.scratch()?;
    let path = scratch.file("image");
    image::blank(path.clone(), 8 << 20)?;
    tool::run("mkfs.vfat", [&path])?;
    let before = image::sha_of_file(&path)?;
    let rig = Rig::start(board, backend, &Setup::of([Drive::disk().with(&path)]))?;
    let lun = rig.lun(0)?;
    ensure!(lun.read_only(), "the host takes the disk for writable");
    ensure!(lun.open_rw(Caching::Direct).is_err(), "the host opened a read-only disk for writing");
    let junk = image::random(scratch.file("junk"), 5, 1)?;
    let write = scsi::command(&lun, &[0x2a, 0, 0, 0, 0, 0, 0, 0, 1, 0], Data::Out(&junk, 512))?;
    ensure!(write.has_sense("Data Protect", "Write protected"), "WRITE(10) said: {}", write.text);
    let point = scratch.file("mnt");
    std::fs::create_dir(&point)?;
    let mount = tool::try_run("mount", ["-t".as_ref(), "vfat".as_ref(), lun.node.as_path(), &point])?;
    ensure!(mount.ok() && mount_options(&point).starts_with("ro"), "mount said: {}", mount.text);
    tool::run("umount", [&point])?;
    ensure!(image::sha_of_file(&path)? == before, "the image changed");
    rig.stop()
}

fn mount_options(point: &Path) -> String {
    let mounts = std::fs::read_to_string("/proc/mounts").unwrap_or_default();
    let wanted = point.display().to_string();
    let options = mounts.lines().find_map(|line| {
        let mut words = line.split(' ').skip(1);
        (words.next()? == wanted).then(|| words.nth(1))?
    });
    options.unwrap_or_default().to_owned()
}

fn empty_says_so(board: &Board, backend: Backend) -> Result<()> {
    let rig = Rig::start(board, backend, &Setup::of([Drive::disk()]))?;
    let lun = rig.lun(0)?;
    ensure!(lun.is_empty(), "the host sees {} bytes", lun.len());
    let outcomes = scsi::drain_attentions(&lun)?;
    let last = outcomes.last().map(|outcome| outcome.has_sense("Not Ready", "Medium not present"));
    ensure!(last == Some(true), "TEST UNIT READY said: {outcomes:?}");
    let error = lun.open(Caching::Buffered).err();
    let code = error.as_ref().and_then(std::io::Error::raw_os_error);
    ensure!(code == Some(libc::ENOMEDIUM), "opening an empty drive gave {error:?}");
    rig.stop()
}

fn get_max_lun(board: &Board, backend: Backend) -> Result<()> {
    for count in [1, 3, 8] {
        let drives: Vec<Drive> = std::iter::repeat_n(Drive::disk(), count).collect();
        let names = ["a", "b", "c", "d", "e", "f", "g", "h"];
        let drives: Vec<Drive> =
            drives.into_iter().zip(names).map(|(drive, name)| drive.named(name)).collect();
        let rig = Rig::start(board, backend, &Setup::of(drives))?;
        rig.lun(count - 1)?;
        let last = RawBot::open(&rig.device)?.max_lun()?;
        ensure!(usize::from(last) + 1 == count, "GET MAX LUN gave {last} for {count} drives");
        rig.stop()?;
    }
    Ok(())
}
