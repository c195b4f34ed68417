//! The story of the demo, one line a step.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use xshell::Shell;

use super::device::{self, Serving};
use super::files::{self, FILES};
use super::host::{self, Drives, Mount};
use crate::vm::Speed;

/// Tells it; an error is a step that did not hold, with the daemon's log printed.
pub(crate) fn tell(iso: &Path, speed: Speed) -> Result<()> {
    let shell = Shell::new()?;
    let dir = tempfile::Builder::new().prefix("ringdrive-demo-").tempdir()?;
    let (cd, flash) = (dir.path().join("memtest86+.iso"), dir.path().join("flash.img"));
    fs::copy(iso, &cd)?;
    device::make_flash(&shell, &flash)?;
    done("a new 64 MiB flash image with a FAT file system");
    let mut daemon = Serving::start(&shell, dir.path(), &cd, &flash, speed)?;
    done("ringdrived serves memtest86+'s ISO as a CD, and the flash image read-write");
    let outcome = with_daemon(&shell, dir.path(), &cd, &flash, &mut daemon);
    if outcome.is_err() {
        eprintln!("ringdrived said:\n{}", daemon.log());
    }
    outcome
}

fn with_daemon(shell: &Shell, dir: &Path, cd: &Path, flash: &Path, daemon: &mut Serving) -> Result<()> {
    let drives = Drives::appear()?;
    let names = [&drives.cd, &drives.flash].map(|path| path.display());
    done(&format!("the host sees a CD {} and a disk {} at {} Mbit/s", names[0], names[1], drives.link));
    let read = read_cd(cd, &drives)?;
    let write = use_file_systems(shell, dir, &drives)?;
    host::eject(shell, &drives.flash)?;
    host::eject(shell, &drives.cd)?;
    done("the host ejected both, and sees that the media are gone");
    let _ = daemon.ask(shell, &["state"]).map(|state| println!("{state}"));
    daemon.shut_down(shell)?;
    done("ringdrived ended, and its gadget with it");
    device::check_flash(shell, flash)?;
    done(&format!(
        "the flash image: fsck finds nothing, all {} files are as the host wrote them",
        FILES.len()
    ));
    println!("all held: CD read at {read:.1} MB/s, flash disk written at {write:.1} MB/s");
    Ok(())
}

/// The host reads the CD whole; gives MB/s.
fn read_cd(image: &Path, drives: &Drives) -> Result<f64> {
    let (ours, length) = files::sha256(fs::File::open(image)?)?;
    let size = host::size(&drives.cd)?;
    ensure!(size == length, "the host sees a CD of {size} bytes, the ISO has {length}");
    let theirs = host::read_whole(&drives.cd)?;
    let rate = megabytes_per_second(theirs.length, theirs.took);
    println!("  SHA-256 of the ISO         {ours}\n  SHA-256 of the host's copy {}", theirs.sha256);
    ensure!(ours == theirs.sha256 && theirs.length == length, "the host read something else than the ISO");
    done(&format!("the host read the CD whole: {length} bytes, {rate:.1} MB/s, both SHA-256 lines equal"));
    Ok(rate)
}

/// The host mounts both, reads the one and writes to the other; gives MB/s.
fn use_file_systems(shell: &Shell, dir: &Path, drives: &Drives) -> Result<f64> {
    let on_cd = Mount::new(shell, &drives.cd, "iso9660", "ro", &dir.join("on-cd"))?;
    let on_flash =
        Mount::new(shell, &drives.flash, "vfat", "rw,utf8,iocharset=ascii", &dir.join("on-flash"))?;
    done("the host mounted both");
    let (count, bytes) = host::read_all_files(&dir.join("on-cd"))?;
    ensure!(count > 0, "the CD's file system is empty");
    done(&format!("the host read {count} files, {bytes} bytes, from the CD's file system"));
    let (written, took) = host::write_files(&dir.join("on-flash"))?;
    let started = Instant::now();
    on_flash.unmount(shell)?;
    let rate = megabytes_per_second(written, took + started.elapsed());
    done(&format!(
        "the host wrote {} files, {written} bytes, {rate:.1} MB/s, and unmounted the disk",
        FILES.len()
    ));
    on_cd.unmount(shell)?;
    done("the host unmounted the CD");
    Ok(rate)
}

fn done(what: &str) {
    println!("✓ {what}");
}

fn megabytes_per_second(bytes: u64, took: Duration) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "a rate for people, of far less than 2^52 bytes")]
    let megabytes = bytes as f64 / 1e6;
    megabytes / took.as_secs_f64()
}
