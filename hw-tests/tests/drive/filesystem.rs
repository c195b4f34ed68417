//! A file system made, filled and checked from both ends.

use std::fs;

use anyhow::{Result, ensure};
use hw_tests::board::Board;
use hw_tests::image;
use hw_tests::rig::{Backend, Drive, Rig, Setup};
use hw_tests::tool;

use crate::{ALL, Case};

pub(crate) const CASES: &[Case] =
    &[Case { name: "a_fat_file_system_written_by_the_host_is_sound_on_our_side", on: ALL, run: fat }];

fn fat(board: &Board, backend: Backend) -> Result<()> {
    let scratch = board.scratch()?;
    let path = image::blank(scratch.file("image"), 32 << 20)?;
    let rig = Rig::start(board, backend, &Setup::of([Drive::disk().with(&path).writable()]))?;
    let lun = rig.lun(0)?;
    // Else the host would not send SYNCHRONIZE CACHE.
    ensure!(
        lun.cache_type().as_deref() == Some("write back"),
        "the host takes the cache for {:?}",
        lun.cache_type()
    );
    tool::run("mkfs.vfat", ["-n".as_ref(), "RINGTEST".as_ref(), lun.node.as_os_str()])?;
    let point = scratch.file("mnt");
    fs::create_dir(&point)?;
    tool::run("mount", ["-t".as_ref(), "vfat".as_ref(), lun.node.as_path(), &point])?;
    let files: Vec<(String, Vec<u8>)> = (0..8)
        .map(|n| (format!("FILE{n}.BIN"), image::noise(n, 300_000 + usize::try_from(n).unwrap_or(0))))
        .collect();
    for (name, content) in &files {
        fs::write(point.join(name), content)?;
    }
    tool::run("umount", [&point])?;
    // umount ended with SYNCHRONIZE CACHE: what the host wrote is in the image, with the medium still inserted.
    tool::run("fsck.vfat", ["-n".as_ref(), path.as_os_str()])?;
    let copy = scratch.file("copy");
    for (name, content) in &files {
        let _ = fs::remove_file(&copy);
        let inside = format!("::/{name}");
        tool::run("mcopy", ["-i".as_ref(), path.as_os_str(), inside.as_ref(), copy.as_os_str()])?;
        ensure!(fs::read(&copy)? == *content, "{name} in the image is not what the host wrote");
    }
    let sync = tool::try_run("sg_sync", [&lun.sg])?;
    ensure!(sync.ok(), "SYNCHRONIZE CACHE(10) failed: {}", sync.text);
    rig.stop()
}
