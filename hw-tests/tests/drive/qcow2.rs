//! Disks in qcow2 files: the host sees what qemu-img does, at the speed of a raw image, and writes to an overlay. For longer by hand
//! with `RINGDRIVE_QCOW2_MIB=200`.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hw_tests::board::Board;
use hw_tests::host::Caching;
use hw_tests::image::{self, Sha};
use hw_tests::rig::{Backend, Drive, Rig, Setup};
use hw_tests::tool;

use crate::overlay::{make_and_fill, must_be, text};
use crate::{Case, DAEMON, variable};

pub(crate) const CASES: &[Case] = &[
    Case { name: "the_host_reads_the_disk_in_a_qcow2_file_as_qemu_img_does", on: DAEMON, run: read },
    Case { name: "the_host_writes_to_a_qcow2_image_and_its_backing_file_stays", on: DAEMON, run: write },
    Case { name: "an_overlay_takes_what_a_host_writes_from_a_qcow2_image", on: DAEMON, run: write_beside },
];

/// So often is the same read, of which the fastest counts.
const ROUNDS: usize = 3;

fn qemu_img(args: &[&str]) -> Result<()> {
    tool::run("qemu-img", args).map(drop)
}

/// Noise, zeroes, and what can be compressed.
fn disk(path: PathBuf, mib: u64) -> Result<PathBuf> {
    let path = image::blank(path, mib << 20)?;
    for part in 0..mib {
        let bytes = match part % 3 {
            0 => image::noise(part, 1 << 20),
            1 => vec![0; 1 << 20],
            _ => image::versioned(part, part << 20, 1 << 20),
        };
        image::poke(&path, part << 20, &bytes)?;
    }
    Ok(path)
}

fn read(board: &Board, backend: Backend) -> Result<()> {
    let mib = variable("RINGDRIVE_QCOW2_MIB", 24)?;
    let scratch = board.scratch()?;
    let raw = disk(scratch.file("raw"), mib)?;
    let golden = image::sha_of_file(&raw)?;
    let mut rig = Rig::start(board, backend, &Setup::of([Drive::disk()]))?;
    let file = scratch.file("qcow2");
    let path = text(&file)?;
    for (name, options) in [
        ("plain", &["-o", "cluster_size=64k"][..]),
        ("of small clusters", &["-o", "cluster_size=4k"]),
        ("with extended L2 entries", &["-o", "extended_l2=on"]),
        ("compressed", &["-c"]),
        ("compressed with zstd", &["-c", "-o", "compression_type=zstd"]),
    ] {
        let convert = ["convert", "-f", "raw", "-O", "qcow2"].iter().chain(options).copied();
        qemu_img(&convert.chain([text(&raw)?, path]).collect::<Vec<_>>())?;
        // Beside each other, because the machine may be busy with something else.
        let usual = time(&mut rig, &["insert", "0", text(&raw)?], golden)?;
        let took = time(&mut rig, &["insert", "0", path], golden).with_context(|| name.to_owned())?;
        let percent = usual.as_secs_f64() / took.as_secs_f64() * 100.0;
        println!("{name}: {took:?}, a raw image {usual:?}: {percent:.0} % of its speed");
    }
    chain(&mut rig, &scratch.file("top"), &file)?;
    rig.stop()
}

/// The least time that it takes the host to read all of an image, which must be so.
fn time(rig: &mut Rig, insert: &[&str], golden: Sha) -> Result<Duration> {
    rig.daemon()?.cli(insert)?;
    let lun = rig.lun(0)?;
    let mut least = Duration::MAX;
    for _ in 0..ROUNDS {
        let began = Instant::now();
        ensure!(lun.sha(Caching::Direct)? == golden, "the host sees another disk");
        least = least.min(began.elapsed());
    }
    lun.settle()?;
    rig.eject_when_closed(0)?;
    Ok(least)
}

fn chain(rig: &mut Rig, top: &Path, base: &Path) -> Result<()> {
    let (top, base) = (text(top)?, text(base)?);
    qemu_img(&["create", "-q", "-f", "qcow2", "-b", base, "-F", "qcow2", top])?;
    tool::run("qemu-io", ["-f", "qcow2", "-c", "write -P 5 1000448 300032", "-c", "write -z 5M 1M", top])?;
    let refused = rig.daemon()?.try_cli(&["insert", "0", top])?;
    ensure!(!refused.ok() && refused.text.contains("--backing"), "with what is below it: {}", refused.text);
    let judge = format!("{top}.raw");
    qemu_img(&["convert", "-f", "qcow2", "-O", "raw", top, &judge])?;
    let golden = image::sha_of_file(Path::new(&judge))?;
    fs::remove_file(&judge)?;
    time(rig, &["insert", "0", top, "--backing"], golden).map(drop)
}

fn write(board: &Board, backend: Backend) -> Result<()> {
    let mib = variable("RINGDRIVE_QCOW2_MIB", 8)?;
    let scratch = board.scratch()?;
    let raw = disk(scratch.file("raw"), mib + mib / 4 + 8)?;
    let before = image::sha_of_file(&raw)?;
    let file = scratch.file("qcow2");
    qemu_img(&["create", "-q", "-f", "qcow2", "-b", text(&raw)?, "-F", "raw", text(&file)?])?;
    let mut rig = Rig::start(board, backend, &Setup::of([Drive::disk()]))?;
    let insert = ["insert", "0", text(&file)?, "--rw", "--backing"];
    rig.daemon()?.cli(&insert)?;
    let (lun, point) = (rig.lun(0)?, scratch.file("mnt"));
    fs::create_dir(&point)?;
    ensure!(lun.sha(Caching::Direct)? == before, "the host sees another disk");
    make_and_fill(&lun, &point, mib)?;
    // Stored, while it is in use.
    lun.write_at(4 << 20, &image::noise(77, 100 << 12))?;
    let seen = lun.sha(Caching::Direct)?;
    lun.settle()?;
    rig.eject_when_closed(0)?;
    must_be(&file, &scratch.file("converted"), seen)?;
    ensure!(image::sha_of_file(&raw)? == before, "the backing file has changed");
    rig.daemon()?.cli(&insert).context("again")?;
    ensure!(rig.lun(0)?.sha(Caching::Direct)? == seen, "inserted again, it is another");
    rig.stop()
}

fn write_beside(board: &Board, backend: Backend) -> Result<()> {
    let mib = variable("RINGDRIVE_QCOW2_MIB", 8)?;
    let scratch = board.scratch()?;
    let raw = disk(scratch.file("raw"), mib + mib / 4 + 8)?;
    let (base, overlay) = (scratch.file("base"), scratch.file("overlay"));
    qemu_img(&["convert", "-f", "raw", "-O", "qcow2", "-c", text(&raw)?, text(&base)?])?;
    let before = image::sha_of_file(&base)?;
    let mut rig = Rig::start(board, backend, &Setup::of([Drive::disk()]))?;
    let insert = ["insert", "0", text(&base)?, "--overlay", text(&overlay)?];
    rig.daemon()?.cli(&insert)?;
    let (lun, point) = (rig.lun(0)?, scratch.file("mnt"));
    fs::create_dir(&point)?;
    // Before all of it is written anew.
    ensure!(lun.sha(Caching::Direct)? == image::sha_of_file(&raw)?, "the host sees another disk");
    make_and_fill(&lun, &point, mib)?;
    let seen = lun.sha(Caching::Direct)?;
    lun.settle()?;
    let refused = rig.daemon()?.try_cli(&["overlay", "commit", "0"])?;
    ensure!(!refused.ok() && refused.text.contains("export"), "committed: {}", refused.text);
    rig.eject_when_closed(0)?;
    must_be(&overlay, &scratch.file("converted"), seen)?;
    ensure!(image::sha_of_file(&base)? == before, "the image has changed");
    rig.daemon()?.cli(&insert).context("again")?;
    ensure!(rig.lun(0)?.sha(Caching::Direct)? == seen, "inserted again, it is another");
    rig.stop()
}
