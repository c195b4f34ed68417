//! TRIM: what the host no longer needs takes no room on our side.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use hw_tests::board::Board;
use hw_tests::host::{self, Lun};
use hw_tests::image::{self, MIB};
use hw_tests::rig::{Backend, Drive, Rig, Setup};
use hw_tests::scsi::{self, Data};
use hw_tests::tool;

use crate::{Case, DAEMON, ENGINES};

pub(crate) const CASES: &[Case] = &[
    Case { name: "fstrim_on_the_host_gives_storage_back_and_loses_nothing", on: ENGINES, run: fstrim },
    Case { name: "sg3_utils_unmap_and_write_same_do_as_they_say", on: DAEMON, run: sg3_utils },
];

/// Bytes of the image that have storage behind them.
fn allocated(path: &Path) -> Result<u64> {
    Ok(fs::metadata(path)?.blocks() * 512)
}

/// usb-storage never asks a drive what it can do, so a person (or a udev rule) has to tell the host. It forgets when it looks for
/// partitions again, as it does after each writer has closed the disk.
fn allow_unmap(lun: &Lun) -> Result<()> {
    let disk = host::child(&lun.sysfs.join("scsi_disk"), "").context("the host has no disk of it")?;
    fs::write(disk.join("provisioning_mode"), "unmap").context("the host does not let us choose UNMAP")
}

fn fstrim(board: &Board, backend: Backend) -> Result<()> {
    let scratch = board.scratch()?;
    let path = image::blank(scratch.file("image"), 64 * MIB)?;
    let rig = Rig::start(board, backend, &Setup::of([Drive::disk().with(&path).writable()]))?;
    let lun = rig.lun(0)?;
    tool::run("mkfs.ext4", ["-q".as_ref(), lun.node.as_os_str()])?;
    let point = scratch.file("mnt");
    fs::create_dir(&point)?;
    tool::run("mount", ["-t".as_ref(), "ext4".as_ref(), lun.node.as_path(), &point])?;
    allow_unmap(&lun)?;
    let kept = image::noise(1, 3_000_000);
    fs::write(point.join("kept"), &kept)?;
    fs::write(point.join("deleted"), image::noise(2, 24 << 20))?;
    tool::run("sync", ["-f".as_ref(), point.as_os_str()])?;
    let full = allocated(&path)?;
    fs::remove_file(point.join("deleted"))?;
    // What was deleted is free once the journal says so.
    tool::run("sync", ["-f".as_ref(), point.as_os_str()])?;
    tool::run("fstrim", [&point])?;
    let trimmed = allocated(&path)?;
    ensure!(full - trimmed > 20 * MIB, "{full} bytes allocated before, {trimmed} after");
    tool::run("umount", [&point])?;
    lun.forget()?;
    tool::run(
        "mount",
        ["-t", "ext4", "-o", "ro"]
            .map(AsRef::as_ref)
            .into_iter()
            .chain([lun.node.as_os_str(), point.as_os_str()]),
    )?;
    ensure!(fs::read(point.join("kept"))? == kept, "a file that was not deleted changed");
    tool::run("umount", [&point])?;
    tool::run("e2fsck", ["-f", "-n"].map(AsRef::as_ref).into_iter().chain([path.as_os_str()]))?;
    rig.stop()
}

fn sg3_utils(board: &Board, backend: Backend) -> Result<()> {
    let scratch = board.scratch()?;
    let path = image::random(scratch.file("image"), 3, 4)?;
    let rig = Rig::start(board, backend, &Setup::of([Drive::disk().with(&path).writable()]))?;
    let lun = rig.lun(0)?;
    let before = allocated(&path)?;
    let sg = |program: &str, args: &[&str]| {
        tool::run(program, args.iter().map(AsRef::as_ref).chain([lun.sg.as_os_str()]))
    };
    let capacity = sg("sg_readcap", &["--long"])?;
    ensure!(capacity.contains("lbpme=1, lbprz=1"), "sg_readcap said: {capacity}");
    // 1 MiB at 1 MiB.
    sg("sg_unmap", &["--lba=2048", "--num=2048", "--force"])?;
    let after = allocated(&path)?;
    ensure!(before - after == MIB, "{before} bytes allocated before, {after} after");
    ensure!(
        image::peek(&path, MIB, 1 << 20)?.iter().all(|byte| *byte == 0),
        "unmapped blocks are not zeroes"
    );
    let status = sg("sg_get_lba_status", &["--lba=2048", "--brief"])?;
    ensure!(status.contains("0x0000000000000800  0x800  1"), "sg_get_lba_status said: {status}");
    sg("sg_write_same", &["--16", "--lba=4096", "--num=2048", "--xferlen=512", "--in=/dev/zero", "--unmap"])?;
    ensure!(
        after - allocated(&path)? == MIB,
        "WRITE SAME with UNMAP gave {} bytes back",
        after - allocated(&path)?
    );
    sg("sg_write_same", &["--16", "--lba=2050", "--num=3", "--ndob"])?;
    ensure!(allocated(&path)? >= before - 2 * MIB, "WRITE SAME without UNMAP made a hole");
    let whole =
        [image::peek(&path, 0, 1 << 20)?, vec![0; 2 << 20], image::peek(&path, 3 * MIB, 1 << 20)?].concat();
    ensure!(image::peek(&path, 0, 4 << 20)? == whole, "other blocks changed");
    let zeroes = scratch.file("zeroes");
    fs::write(&zeroes, [0; 512])?;
    let equal = scsi::command(&lun, &[0x2f, 6, 0, 0, 8, 0, 0, 0x10, 0, 0], Data::Out(&zeroes, 512))?;
    ensure!(equal.good(), "VERIFY of zeroes with BYTCHK 11b said: {}", equal.text);
    let differs = scsi::command(&lun, &[0x2f, 6, 0, 0, 7, 0xff, 0, 0, 1, 0], Data::Out(&zeroes, 512))?;
    ensure!(
        differs.has_sense("Miscompare", "Miscompare during verify operation"),
        "VERIFY said: {}",
        differs.text
    );
    rig.stop()
}
