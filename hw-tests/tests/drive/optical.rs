//! Optical drives of any size.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Result, ensure};
use hw_tests::board::Board;
use hw_tests::cdrom::{self, DvdLayer};
use hw_tests::host::{Caching, Lun};
use hw_tests::image;
use hw_tests::rig::{Backend, Drive, Rig, Setup};
use hw_tests::scsi::{self, Data};
use hw_tests::tool;

use crate::{ALL, Case, DAEMON, ENGINES};

pub(crate) const CASES: &[Case] = &[
    Case { name: "a_small_iso_is_read_whole_as_optical", on: ALL, run: a_small_iso_is_read_whole },
    Case {
        name: "an_iso_of_over_4_4_gib_shows_its_full_size_and_its_last_block",
        on: DAEMON,
        run: a_large_iso,
    },
    Case { name: "a_dvd_of_8_5_gb_is_known_and_whole", on: DAEMON, run: a_full_dvd },
    Case { name: "a_bd_of_25_gb_with_udf_2_50_is_known_and_mounts", on: DAEMON, run: a_full_bd },
    Case { name: "the_tray_opens_and_closes_as_the_host_says", on: DAEMON, run: tray },
    Case { name: "whole_sectors_of_a_cd_reach_the_host", on: ENGINES, run: whole_sectors },
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
        file.read_exact_at(&mut bytes, block * BLOCK)?;
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

/// Puts noise into the first block that is free, the last, and some in between; tells which.
fn mark(path: &Path, first: u64, blocks: u64) -> Result<Vec<u64>> {
    let mut random = fastrand::Rng::with_seed(blocks);
    let mut known = vec![first, blocks - 1];
    known.extend((0..24).map(|_| random.u64(first..blocks)));
    for block in &known {
        image::poke(path, block * BLOCK, &image::noise(*block, 2048))?;
    }
    Ok(known)
}

/// The size is right, and so are the marked blocks.
fn check_marked(lun: &Lun, file: &File, blocks: u64, known: &[u64]) -> Result<()> {
    ensure!(lun.len() == blocks * BLOCK, "the host sees {} bytes, not {}", lun.len(), blocks * BLOCK);
    for block in known {
        let mut bytes = [0; 2048];
        file.read_exact_at(&mut bytes, block * BLOCK)?;
        ensure!(bytes[..] == image::noise(*block, 2048), "block {block} is not what was put there");
    }
    let session = cdrom::last_session(&lun.node)?;
    ensure!(session == (0, false), "the last session: {session:?}");
    Ok(())
}

/// What udev and libblkid say.
fn names(lun: &Lun) -> Result<String> {
    let mut said = tool::run("/lib/udev/cdrom_id", [&lun.node])?;
    said += &tool::run("blkid", ["-p".as_ref(), "-o".as_ref(), "export".as_ref(), lun.node.as_os_str()])?;
    Ok(said)
}

fn says(said: &str, wanted: &[&str]) -> Result<()> {
    for line in wanted {
        ensure!(said.lines().any(|said| said == *line), "no {line:?} in:\n{said}");
    }
    Ok(())
}

/// A primary volume descriptor and the end of descriptors (ECMA-119 §8): enough for those who look for an ISO 9660 volume.
fn name_volume(path: &Path, name: &str, blocks: u32) -> Result<()> {
    let mut descriptor = [0; 2048];
    descriptor[..7].copy_from_slice(b"\x01CD001\x01");
    descriptor[8..72].fill(b' ');
    descriptor[40..40 + name.len()].copy_from_slice(name.as_bytes());
    descriptor[80..84].copy_from_slice(&blocks.to_le_bytes());
    descriptor[84..88].copy_from_slice(&blocks.to_be_bytes());
    descriptor[128..132].copy_from_slice(&[0x00, 0x08, 0x08, 0x00]);
    image::poke(path, 16 * BLOCK, &descriptor)?;
    image::poke(path, 17 * BLOCK, b"\xFFCD001\x01")
}

fn a_full_dvd(board: &Board, backend: Backend) -> Result<()> {
    let scratch = board.scratch()?;
    // All that two layers hold (ECMA-364).
    let blocks: u32 = 4_173_824;
    let path = image::blank(scratch.file("iso"), u64::from(blocks) * BLOCK)?;
    name_volume(&path, "RINGDVD", blocks)?;
    let known = mark(&path, 18, blocks.into())?;
    let rig = Rig::start(board, backend, &Setup::of([Drive::optical().with(&path)]))?;
    let lun = rig.lun(0)?;
    let file = lun.open(Caching::Buffered)?;
    check_marked(&lun, &file, blocks.into(), &known)?;
    let layer = cdrom::dvd_layer(&lun.node)?;
    let wanted = DvdLayer {
        book_type: 0,
        layers: 1,
        opposite: true,
        start: 0x03_0000,
        end: 0xFC_FFFF,
        end_of_layer_0: 0x22_D7FF,
    };
    ensure!(layer == wanted, "DVD_READ_STRUCT gave {layer:x?}");
    drop(file);
    says(
        &names(&lun)?,
        &[
            "ID_CDROM_DVD=1",
            "ID_CDROM_MEDIA_DVD=1",
            "ID_CDROM_MEDIA_TRACK_COUNT_DATA=1",
            "TYPE=iso9660",
            "LABEL=RINGDVD",
        ],
    )?;
    rig.stop()
}

fn a_full_bd(board: &Board, backend: Backend) -> Result<()> {
    let scratch = board.scratch()?;
    let blocks: u64 = 12_219_392;
    let path = image::blank(scratch.file("iso"), blocks * BLOCK)?;
    // Of UDF 2.50 it makes only media that are written once, with their table of addresses in the last block.
    let whole = format!("--minblocks={blocks}");
    let mut args = vec!["--media-type=bdr", "--udfrev=2.50", "--blocksize=2048", "--label=RINGBD", &whole];
    let image = path.display().to_string();
    args.push(&image);
    tool::run("mkudffs", args)?;
    let rig = Rig::start(board, backend, &Setup::of([Drive::optical().with(&path)]))?;
    let lun = rig.lun(0)?;
    let file = lun.open(Caching::Buffered)?;
    let last = image::peek(&path, (blocks - 1) * BLOCK, 2048)?;
    ensure!(last.iter().any(|byte| *byte != 0), "mkudffs left the last block empty");
    check_marked(&lun, &file, blocks, &[])?;
    let refusal = cdrom::dvd_layer(&lun.node);
    ensure!(
        refusal.as_ref().is_err_and(|why| why.to_string().contains("ioctl")),
        "a BD was described as a DVD: {refusal:?}"
    );
    drop(file);
    says(
        &names(&lun)?,
        &["ID_CDROM_BD=1", "ID_CDROM_MEDIA_BD=1", "TYPE=udf", "LABEL=RINGBD", "VERSION=2.50"],
    )?;
    let information = scsi::command(&lun, &[0xad, 1, 0, 0, 0, 0, 0, 0, 0x10, 4, 0, 0], Data::In(4100))?;
    ensure!(information.good() && information.text.contains("BDO"), "{}", information.text);
    let point = scratch.file("mnt");
    fs::create_dir(&point)?;
    tool::run(
        "mount",
        [
            "-t".as_ref(),
            "udf".as_ref(),
            "-o".as_ref(),
            "ro".as_ref(),
            lun.node.as_os_str(),
            point.as_os_str(),
        ],
    )?;
    let listed = fs::read_dir(&point).map(Iterator::count);
    tool::run("umount", [&point])?;
    ensure!(listed.is_ok(), "the mounted volume cannot be read: {listed:?}");
    rig.eject_when_closed(0)?;
    // Blocks of the data alone: the volume is of no use after this.
    let known = mark(&path, 0, blocks)?;
    rig.insert(0, &path)?;
    let file = lun.open(Caching::Buffered)?;
    check_marked(&lun, &file, blocks, &known)?;
    drop(file);
    rig.stop()
}

fn tray(board: &Board, backend: Backend) -> Result<()> {
    let scratch = board.scratch()?;
    let path = image::random(scratch.file("iso"), 6, 1)?;
    let rig = Rig::start(board, backend, &Setup::of([Drive::optical().with(&path)]))?;
    let lun = rig.lun(0)?;
    scsi::drain_attentions(&lun)?;
    ensure!(scsi::eject_when_closed(&lun)?.good(), "the host could not eject");
    let open = scsi::test_unit_ready(&lun)?;
    ensure!(open.has_sense("Not Ready", "Medium not present - tray open"), "ejected: {}", open.text);
    // Nothing is in it, so loading ends in NOT READY.
    let load = scsi::command(&lun, &[0x1b, 0, 0, 0, 3, 0], Data::None)?;
    ensure!(load.has_sense("Not Ready", "Medium not present - tray closed"), "loaded: {}", load.text);
    let closed = scsi::test_unit_ready(&lun)?;
    ensure!(closed.has_sense("Not Ready", "Medium not present - tray closed"), "closed: {}", closed.text);
    rig.insert(0, &path)?;
    scsi::drain_attentions(&lun)?;
    ensure!(scsi::test_unit_ready(&lun)?.good(), "an inserted disc is not ready");
    rig.stop()
}

fn whole_sectors(board: &Board, backend: Backend) -> Result<()> {
    let scratch = board.scratch()?;
    let path = image::random(scratch.file("iso"), 5, 4)?;
    let rig = Rig::start(board, backend, &Setup::of([Drive::optical().with(&path)]))?;
    let lun = rig.lun(0)?;
    scsi::drain_attentions(&lun)?;
    let (start, count) = (1000, 48);
    let raw = scratch.file("raw");
    let len = (count * 2352_usize).to_string();
    let args = ["-r", &len, "-o", &raw.display().to_string(), &lun.sg.display().to_string()];
    let cdb = ["be", "0", "0", "0", "3", "e8", "0", "0", "30", "f8", "0", "0"];
    tool::run("sg_raw", args.into_iter().chain(cdb))?;
    let (raw, data) = (fs::read(&raw)?, image::peek(&path, start * BLOCK, count * 2048)?);
    ensure!(raw.len() == count * 2352, "{} bytes of {count} sectors", raw.len());
    for (number, (sector, data)) in raw.chunks(2352).zip(data.chunks(2048)).enumerate() {
        ensure!(sector[..12] == [0, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 0], "sector {number}");
        ensure!(sector[15] == 1 && sector[16..2064] == *data, "the user data of sector {number} differ");
    }
    // LBA 1000 is 00:15:25.
    ensure!(raw[12..15] == [0x00, 0x15, 0x25], "the address is {:02x?}", &raw[12..15]);
    rig.stop()
}
