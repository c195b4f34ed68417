//! The host reads and writes exactly the bytes of the image.

use anyhow::{Result, ensure};
use hw_tests::board::Board;
use hw_tests::host::Caching;
use hw_tests::image::{self, MIB};
use hw_tests::rig::{Backend, Drive, Rig, Setup};
use hw_tests::tool;

use crate::{ALL, Case};

pub(crate) const CASES: &[Case] = &[
    Case { name: "a_random_image_is_read_whole_and_identical", on: ALL, run: a_random_image_is_read_whole },
    Case {
        name: "fio_verifies_random_writes_and_the_image_is_what_the_host_wrote",
        on: ALL,
        run: fio_verifies,
    },
];

fn a_random_image_is_read_whole(board: &Board, backend: Backend) -> Result<()> {
    let scratch = board.scratch()?;
    let path = image::random(scratch.file("image"), 1, 64)?;
    let ours = image::sha_of_file(&path)?;
    let rig = Rig::start(board, backend, &Setup::of([Drive::disk().with(&path)]))?;
    let lun = rig.lun(0)?;
    ensure!(lun.len() == 64 * MIB, "the host sees {} bytes", lun.len());
    for caching in [Caching::Direct, Caching::Buffered] {
        let theirs = lun.sha(caching)?;
        ensure!(theirs == ours, "{caching:?}: the host read {theirs:?}, the image is {ours:?}");
    }
    rig.stop()
}

fn fio_verifies(board: &Board, backend: Backend) -> Result<()> {
    let scratch = board.scratch()?;
    let path = image::random(scratch.file("image"), 2, 64)?;
    let rig = Rig::start(board, backend, &Setup::of([Drive::disk().with(&path).writable()]))?;
    let lun = rig.lun(0)?;
    // The reference is only here to check the arguments.
    let seconds = if backend == Backend::Kernel { 5 } else { board.fio_seconds().as_secs() };
    let node = format!("--filename={}", lun.node.display());
    let runtime = format!("--runtime={seconds}");
    let said = tool::run(
        "fio",
        [
            "--name=verify",
            &node,
            &runtime,
            "--time_based",
            "--direct=1",
            "--rw=randrw",
            "--bsrange=4k-1m",
            "--blockalign=4k",
            "--size=64m",
            "--verify=crc32c",
            "--verify_backlog=64",
            "--verify_fatal=1",
            "--do_verify=1",
            "--ioengine=psync",
            "--randseed=7",
            "--end_fsync=1",
        ],
    )?;
    ensure!(said.contains("err= 0"), "fio said:\n{said}");
    let theirs = lun.sha(Caching::Direct)?;
    rig.eject_when_closed(0)?;
    let ours = image::sha_of_file(&path)?;
    ensure!(theirs == ours, "the host's disk is {theirs:?}, the image {ours:?}");
    rig.stop()
}
