//! What cannot be served is refused with cause and cure, and harms nobody.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use hw_tests::board::Board;
use hw_tests::configfs;
use hw_tests::daemon::{self, Daemon, Mode};
use hw_tests::host::Caching;
use hw_tests::image;
use hw_tests::rig::{Backend, Drive, Rig, Setup, new_serial};

use crate::{Case, DAEMON};

pub(crate) const CASES: &[Case] = &[
    Case { name: "a_second_daemon_on_the_same_gadget_is_refused", on: DAEMON, run: second_daemon },
    Case {
        name: "a_port_of_another_name_is_refused_and_told_which_there_are",
        on: DAEMON,
        run: unknown_port,
    },
    Case { name: "a_mistake_in_the_configuration_is_refused_with_its_line", on: DAEMON, run: bad_config },
    Case { name: "images_that_cannot_be_served_are_refused_at_the_start", on: DAEMON, run: bad_images },
    Case { name: "images_that_cannot_be_inserted_leave_the_drive_as_it_is", on: DAEMON, run: bad_inserts },
];

const LIMIT: Duration = Duration::from_secs(20);

/// The daemon ends by itself, not well, and its log names all of `words`; nothing is left in configfs.
fn must_end(config: &str, stem: &Path, words: &[&str]) -> Result<()> {
    let before = configfs::gadgets();
    let path = stem.with_extension("toml");
    fs::write(&path, config)?;
    let mut daemon = Daemon::spawn(&path, stem)?;
    let status = daemon.await_end(LIMIT)?;
    ensure!(status.code().is_some_and(|code| code != 0), "ended with {status}");
    let log = daemon.log().to_lowercase();
    for word in words {
        ensure!(log.contains(&word.to_lowercase()), "no {word:?} in: {log}");
    }
    ensure!(!log.contains("panicked"), "panicked: {log}");
    ensure!(configfs::gadgets() == before, "gadgets {:?} instead of {before:?}", configfs::gadgets());
    Ok(())
}

fn second_daemon(board: &Board, backend: Backend) -> Result<()> {
    let scratch = board.scratch()?;
    let path = image::random(scratch.file("image"), 40, 4)?;
    let setup = Setup::of([Drive::disk().with(&path)]);
    let rig = Rig::start(board, backend, &setup)?;
    let stem = scratch.file("second");
    let socket = stem.with_extension("sock");
    let empty = Setup::of([Drive::disk()]);
    let config = daemon::config(board, backend, Mode::Own, &empty, &new_serial(), &socket);
    must_end(&config, &stem, &[daemon::GADGET, "is served by another ringdrived (process "])?;
    let (theirs, ours) = (rig.lun(0)?.sha(Caching::Direct)?, image::sha_of_file(&path)?);
    ensure!(theirs == ours, "the first daemon's drive was disturbed");
    rig.stop()
}

fn unknown_port(board: &Board, backend: Backend) -> Result<()> {
    configfs::sweep()?;
    let scratch = board.scratch()?;
    let stem = scratch.file("daemon");
    let nowhere = Board { udc: "no_such_port.7".into(), ..board.clone() };
    let setup = Setup::of([Drive::disk()]);
    let config =
        daemon::config(&nowhere, backend, Mode::Own, &setup, &new_serial(), &stem.with_extension("sock"));
    must_end(&config, &stem, &["no_such_port.7", &format!("this machine has: {}", board.udc)])
}

fn bad_config(board: &Board, backend: Backend) -> Result<()> {
    configfs::sweep()?;
    let scratch = board.scratch()?;
    let stem = scratch.file("daemon");
    let good = daemon::config(
        board,
        backend,
        Mode::Own,
        &Setup::of([Drive::disk()]),
        &new_serial(),
        &stem.with_extension("sock"),
    );
    let unknown = good.replacen("[gadget]\n", "[gadget]\ncolour = \"red\"\n", 1);
    must_end(&unknown, &stem, &["colour", ".toml:5:"])?;
    must_end(&good.replacen("kind = \"disk\"", "kind = \"tape\"", 1), &stem, &["tape", "optical", ".toml:"])?;
    must_end(&good.replacen("[gadget]", "[gadget", 1), &stem, &[".toml:4:"])
}

/// Image files that no drive takes, each with a word that the refusal must have.
fn bad_files(board: &Board) -> Result<(hw_tests::board::Scratch, Vec<(std::path::PathBuf, &'static str)>)> {
    let scratch = board.scratch()?;
    let fifo = scratch.file("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRUSR)?;
    let directory = scratch.file("directory");
    fs::create_dir(&directory)?;
    let empty = image::blank(scratch.file("empty"), 0)?;
    let missing = scratch.file("missing");
    let files = vec![(missing, "no such file"), (directory, "directory"), (fifo, "fifo"), (empty, "empty")];
    Ok((scratch, files))
}

fn bad_images(board: &Board, backend: Backend) -> Result<()> {
    configfs::sweep()?;
    let (scratch, files) = bad_files(board)?;
    let stem = scratch.file("daemon");
    for (path, word) in &files {
        let setup = Setup::of([Drive::disk().with(path)]);
        let config =
            daemon::config(board, backend, Mode::Own, &setup, &new_serial(), &stem.with_extension("sock"));
        must_end(&config, &stem, &[&path.display().to_string(), word])?;
    }
    Ok(())
}

fn bad_inserts(board: &Board, backend: Backend) -> Result<()> {
    let (scratch, files) = bad_files(board)?;
    let path = image::random(scratch.file("image"), 41, 4)?;
    let odd = image::blank(scratch.file("odd"), 1000)?;
    let mut rig = Rig::start(board, backend, &Setup::of([Drive::disk()]))?;
    for (path, word) in &files {
        let said = rig.daemon()?.try_cli(&["insert", "0", &path.display().to_string()])?;
        ensure!(
            !said.ok() && said.text.to_lowercase().contains(word),
            "inserting {}: {said:?}",
            path.display()
        );
    }
    let said = rig.daemon()?.try_cli(&["insert", "0", &odd.display().to_string(), "--rw"])?;
    ensure!(!said.ok() && said.text.contains("512"), "inserting 1000 bytes read-write: {said:?}");
    rig.insert(0, &path)?;
    let (theirs, ours) = (rig.lun(0)?.sha(Caching::Direct)?, image::sha_of_file(&path)?);
    ensure!(theirs == ours, "the host read {theirs:?}, the image is {ours:?}");
    rig.stop()
}
