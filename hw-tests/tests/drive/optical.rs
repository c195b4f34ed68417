//! Optical drives of any size.

use anyhow::{Result, ensure};
use hw_tests::board::Board;
use hw_tests::host::Caching;
use hw_tests::image;
use hw_tests::rig::{Backend, Drive, Rig, Setup};
use hw_tests::tool;

use crate::{ALL, Case, DAEMON};

pub(crate) const CASES: &[Case] = &[
    Case { name: "a_small_iso_is_read_whole_as_optical", on: ALL, run: a_small_iso_is_read_whole },
    Case {
        name: "an_iso_of_over_4_4_gib_shows_its_full_size_and_its_last_block",
        on: DAEMON,
        run: a_large_iso,
    },
];

const BLOCK: u64 = 2048;

fn a_small_iso_is_read_whole(board: &Board, backend: Backend) -> Result<()> {
    let scratch = board.scratch()?;
    let path = image::random(scratch.file("iso"), 3, 8)?;
    let rig = Rig::start(board, backend, &Setup::of([Drive::optical().with(&path)]))?;
    let lun = rig.lun(0)?;
    ensure!(lun.name().starts_with("sr"), "the host made {} of it", lun.node.display());
    let (theirs, ours) = (lun.sha(Caching::Buffered)?, image::sha_of_file(&path)?);
    ensure!(theirs == ours, "the host read {theirs:?}, the image is {ours:?}");
    ensure!(lun.open_rw(Caching::Buffered).is_err(), "the host opened a CD for writing");
    rig.stop()
}

fn a_large_iso(board: &Board, backend: Backend) -> Result<()> {
    let scratch = board.scratch()?;
    let blocks: u64 = 2_400_001;
    let path = image::blank(scratch.file("iso"), blocks * BLOCK)?;
    let four_gib = (4 << 30) / BLOCK;
    // Where f_mass_storage ends: 256 × 60 × 75 blocks.
    let msf_end = 256 * 60 * 75;
    let known = [0, msf_end - 1, msf_end, four_gib - 1, four_gib, blocks - 1];
    for block in known {
        image::poke(&path, block * BLOCK, &image::noise(block, 2048))?;
    }
    let rig = Rig::start(board, backend, &Setup::of([Drive::optical().with(&path)]))?;
    let lun = rig.lun(0)?;
    // The host looks at the medium when it opens the drive.
    let file = lun.open(Caching::Buffered)?;
    ensure!(lun.len() == blocks * BLOCK, "the host sees {} bytes, not {}", lun.len(), blocks * BLOCK);
    for block in known {
        let mut bytes = [0; 2048];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut bytes, block * BLOCK)?;
        ensure!(bytes[..] == image::noise(block, 2048), "block {block} is not what was put there");
    }
    drop(file);
    let sg = lun.sg.display().to_string();
    let capacity = tool::run("sg_readcap", ["--brief", &sg])?;
    ensure!(capacity.trim() == format!("0x{blocks:x} 0x{BLOCK:x}"), "sg_readcap said: {capacity}");
    let inquiry = tool::run("sg_inq", [&sg])?;
    ensure!(inquiry.contains("PDT=5") && inquiry.contains("RMB=1"), "sg_inq said:\n{inquiry}");
    let features = tool::run("sg_get_config", [&sg])?.to_lowercase();
    ensure!(features.contains("current profile: dvd-rom"), "sg_get_config said:\n{features}");
    rig.stop()
}
