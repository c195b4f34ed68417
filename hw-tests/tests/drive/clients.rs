//! Clients of the control socket that mean no good, while the host uses the drive.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use hw_tests::board::Board;
use hw_tests::host::{Caching, Lun, attribute};
use hw_tests::image::{self, Sha};
use hw_tests::rig::{Backend, Drive, Rig, Setup};
use hw_tests::socket;
use hw_tests::wait::wait_until;

use crate::{Case, ENGINES};

pub(crate) const CASES: &[Case] = &[Case {
    name: "clients_that_crowd_flood_babble_or_never_read_do_not_disturb_a_drive_in_use",
    on: ENGINES,
    run: abused,
}];

/// For all of the host's reads, and for any answer, on a busy machine.
const LIMIT: Duration = Duration::from_secs(90);
/// More than there are places.
const CROWD: usize = 200;

/// One client's whole visit; `false`: it was turned away because others had all places.
type Visit = fn(&Path) -> Result<bool>;

fn abused(board: &Board, backend: Backend) -> Result<()> {
    let scratch = board.scratch()?;
    let path = image::random(scratch.file("image"), 50, 16)?;
    let ours = image::sha_of_file(&path)?;
    let mut rig = Rig::start(board, backend, &Setup::of([Drive::disk().with(&path)]))?;
    let lun = rig.lun(0)?;
    let socket = rig.daemon()?.socket().to_owned();
    let visits: [Visit; 4] = [crowd, endless_line, junk, never_reads];
    let counts = visits.map(|_| AtomicU32::new(0));
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let (socket, over) = (&socket, &over);
        let guests: Vec<_> = visits
            .into_iter()
            .zip(&counts)
            .map(|(visit, count)| scope.spawn(move || come_again(visit, socket, count, over)))
            .collect();
        let read = read_among(&lun, ours, &counts);
        over.store(true, Ordering::Relaxed);
        for guest in guests {
            guest.join().ok().context("a client panicked")??;
        }
        read
    })?;
    // It serves the well-behaved as before.
    let state = rig.daemon()?.state()?;
    ensure!(state["drives"][0]["image"]["first_read"] == true, "the state afterwards: {state:#}");
    rig.stop()
}

fn come_again(visit: Visit, socket: &Path, count: &AtomicU32, over: &AtomicBool) -> Result<()> {
    while !over.load(Ordering::Relaxed) {
        if visit(socket)? {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }
    Ok(())
}

/// Reads the drive whole until each client has come and gone meanwhile, and has been there before.
fn read_among(lun: &Lun, ours: Sha, counts: &[AtomicU32; 4]) -> Result<()> {
    let counted = || counts.each_ref().map(|count| count.load(Ordering::Relaxed));
    wait_until(LIMIT, "each client has been served", || counted().iter().all(|count| *count > 0))
        .with_context(|| format!("visits: {:?}", counted()))?;
    let before = counted();
    let troubles = || ["ioerr_cnt", "iotmo_cnt"].map(|name| attribute(&lun.sysfs, name));
    let troubles_before = troubles();
    let started = Instant::now();
    loop {
        let theirs = lun.sha(Caching::Direct)?;
        ensure!(theirs == ours, "the host read {theirs:?}, the image is {ours:?}");
        ensure!(started.elapsed() < LIMIT, "the host reads too slowly, or not among {:?}", counted());
        if before.iter().zip(counted()).all(|(before, now)| now > *before) {
            break;
        }
    }
    ensure!(
        troubles() == troubles_before,
        "commands failed or timed out: {troubles_before:?}, {:?}",
        troubles()
    );
    Ok(())
}

fn connect(socket: &Path) -> Result<UnixStream> {
    socket::connect(socket, LIMIT)
}

/// The next line; `None`: turned away at the door.
fn answer(stream: &UnixStream) -> Result<Option<String>> {
    Ok(Some(socket::answer(stream)?).filter(|line| !line.contains("too_many_clients")))
}

/// All connect, then all ask.
fn crowd(socket: &Path) -> Result<bool> {
    let clients = (0..CROWD).map(|_| connect(socket)).collect::<Result<Vec<_>>>()?;
    let mut turned_away = 0;
    for mut client in &clients {
        // Fails for those who have been turned away already.
        let _ = client.write_all(b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"version\"}\n");
        match answer(client)? {
            None => turned_away += 1,
            Some(line) => ensure!(line.contains("\"protocol\""), "to version: {line:?}"),
        }
    }
    let places = ringdrive::control::CLIENTS_MAX;
    ensure!(turned_away >= CROWD - places, "{turned_away} of {CROWD} were turned away, for {places} places");
    Ok(true)
}

fn endless_line(socket: &Path) -> Result<bool> {
    let mut client = connect(socket)?;
    while write(&mut client, &[b'['; 4096])? {}
    let Some(line) = answer(&client)? else { return Ok(false) };
    ensure!(line.contains("invalid_request"), "to an endless line: {line:?}");
    Ok(true)
}

fn junk(socket: &Path) -> Result<bool> {
    let mut client = connect(socket)?;
    let mut bytes = image::noise(51, 4096);
    bytes.push(b'\n');
    if !write(&mut client, &bytes)? {
        return Ok(false);
    }
    let Some(line) = answer(&client)? else { return Ok(false) };
    ensure!(line.contains("\"error\""), "to junk: {line:?}");
    Ok(true)
}

/// Subscribes, and asks until the daemon has had enough of it.
fn never_reads(socket: &Path) -> Result<bool> {
    let mut client = connect(socket)?;
    let subscribed = write(&mut client, b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"subscribe\"}\n")?;
    if !subscribed || answer(&client)?.is_none() {
        return Ok(false);
    }
    let questions = b"{\"jsonrpc\":\"2.0\",\"id\":2,\"method\":\"state\"}\n".repeat(64);
    while write(&mut client, &questions)? {}
    Ok(true)
}

/// `false`: the daemon has closed the connection.
fn write(client: &mut UnixStream, bytes: &[u8]) -> Result<bool> {
    use std::io::ErrorKind::{BrokenPipe, ConnectionReset};
    match client.write_all(bytes) {
        Ok(()) => Ok(true),
        Err(error) if matches!(error.kind(), BrokenPipe | ConnectionReset) => Ok(false),
        Err(error) => bail!("the daemon does not read: {error}"),
    }
}
