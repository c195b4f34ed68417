//! An area that the daemon mounts by itself, from a real server that comes late, goes, comes back, and forgets.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hw_tests::board::Board;
use hw_tests::daemon::Daemon;
use hw_tests::host::Caching;
use hw_tests::image;
use hw_tests::nfs::Server;
use hw_tests::rig::{Backend, Drive, Rig, Setup};
use hw_tests::samba::{PASSWORD, Samba, USER};
use hw_tests::scsi;
use hw_tests::tool;
use hw_tests::wait::wait_until;

use crate::{Case, DAEMON};

pub(crate) const CASES: &[Case] = &[
    Case { name: "a_server_is_mounted_when_it_is_there_and_again_when_it_is_lost", on: DAEMON, run: mounted },
    Case { name: "what_the_host_writes_to_an_area_is_on_its_server", on: DAEMON, run: written },
    Case { name: "a_share_for_one_user_is_mounted_and_comes_back", on: DAEMON, run: share },
];

const POINT: &str = "/run/ringdrive/areas/iso";
/// Until the daemon tries again, and what TCP adds to it after a cut.
const BACK: Duration = Duration::from_secs(90);
/// What a client waits for an answer: a second, and what a busy machine adds.
const AT_ONCE: Duration = Duration::from_millis(2500);

fn mounted(board: &Board, backend: Backend) -> Result<()> {
    let mut server = Server::start()?;
    let cd = image::random(server.file("a cd.iso"), 95, 8)?;
    let disk = image::random(server.file("disk.img"), 96, 4)?;
    // Of any version: the root of version 4 is not that of the path, which version 3 has.
    let area = format!(
        "[[area]]\nname = \"iso\"\nsource = \"nfs://127.0.0.1{}\"\noptions = [\"softerr\", \"timeo=5\", \"retrans=1\"]\n",
        server.file("").display()
    );
    let drives = [Drive::optical(), Drive::disk().with(&below("disk.img"))];
    server.cut()?;
    let mut rig = Rig::start(board, backend, &Setup::of(drives).configured(area))?;
    ensure!(state(rig.daemon()?)? != "mounted", "mounted from a server that is not there");
    let events = rig.daemon()?.events()?;
    let count = |name: &str| events.seen().iter().filter(|event| event["event"] == name).count();
    server.mend()?;
    await_state(rig.daemon()?, "mounted").context("the server comes late")?;
    // It stands in the configuration.
    let daemon = rig.daemon()?;
    wait_until(BACK, "the disk's image is inserted", || {
        daemon.state().is_ok_and(|state| state["drives"][1]["image"].is_object())
    })?;
    rig.insert(0, &below("a cd.iso"))?;
    // The command line does not tell when it has subscribed; this tells that it has.
    events.await_event("inserted", |event| event["drive"] == 0)?;
    whole(&rig, 0, &cd).context("mounted")?;
    whole(&rig, 1, &disk).context("mounted")?;

    server.cut()?;
    let gone = await_state(rig.daemon()?, "failed").context("the server goes");
    server.mend()?;
    gone?;
    await_state(rig.daemon()?, "mounted").context("the server comes back")?;
    fs::write("/proc/sys/vm/drop_caches", "1")?;
    whole(&rig, 0, &cd).context("back")?;

    for (lose, what) in
        [(unmount as fn(&mut Server) -> Result<()>, "unmounted"), (Server::forget, "forgotten")]
    {
        rig.eject_when_closed(0)?;
        let told = [count("area_lost"), count("area_mounted")];
        lose(&mut server)?;
        let is_more = || told[0] < count("area_lost") && told[1] < count("area_mounted");
        wait_until(BACK, "the area is lost and mounted again", is_more)
            .with_context(|| format!("{what}: {:#?}", events.seen()))?;
        rig.insert(0, &below("a cd.iso")).context(what)?;
        whole(&rig, 0, &cd).context(what)?;
    }
    stop(rig)
}

/// And the area is gone with the daemon.
fn stop(rig: Rig) -> Result<()> {
    rig.stop()?;
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    ensure!(!table.contains(POINT) && !Path::new(POINT).exists(), "the area is left behind: {table}");
    Ok(())
}

fn written(board: &Board, backend: Backend) -> Result<()> {
    let server = Server::start()?;
    let file = image::random(server.file("disk.img"), 97, 4)?;
    let mut wanted = fs::read(&file)?;
    let area = format!(
        "[[area]]\nname = \"iso\"\nsource = \"nfs://127.0.0.1{}\"\nrw = true\n",
        server.file("").display()
    );
    let drives = [Drive::disk().with(&below("disk.img")).writable()];
    let mut rig = Rig::start(board, backend, &Setup::of(drives).configured(area))?;
    await_state(rig.daemon()?, "mounted")?;
    let daemon = rig.daemon()?;
    wait_until(BACK, "the disk's image is inserted, writable", || {
        daemon.state().is_ok_and(|state| state["drives"][0]["image"]["rw"] == true)
    })?;
    let lun = rig.lun(0)?;
    scsi::drain_attentions(&lun)?;
    for (at, len) in [(0, 4096), (1 << 20, 1 << 20), ((4 << 20) - 65536, 65536)] {
        let bytes = image::noise(98, len);
        lun.write_at(u64::try_from(at)?, &bytes)?;
        wanted.get_mut(at..at + len).context("beyond the image")?.copy_from_slice(&bytes);
        // The host has been told that it is stored.
        ensure!(fs::read(&file)? == wanted, "the server does not have what the host wrote at {at}");
    }
    whole(&rig, 0, &file)?;
    stop(rig)
}

fn share(board: &Board, backend: Backend) -> Result<()> {
    let scratch = board.scratch()?;
    let mut server = Samba::start(&scratch)?;
    server.let_user_in()?;
    let cd = image::random(server.file("a cd.iso"), 99, 8)?;
    let credentials = scratch.file("credentials");
    fs::write(&credentials, format!("username={USER}\npassword={PASSWORD}\n"))?;
    fs::set_permissions(&credentials, Permissions::from_mode(0o600))?;
    let area = format!(
        "[[area]]\nname = \"iso\"\nsource = \"cifs://127.0.0.1/private\"\ncredentials = {credentials:?}\n\
         options = [\"echo_interval=1\"]\n"
    );
    let mut rig = Rig::start(board, backend, &Setup::of([Drive::optical()]).configured(area))?;
    await_state(rig.daemon()?, "mounted")?;
    rig.insert(0, &below("a cd.iso"))?;
    whole(&rig, 0, &cd)?;
    let told = fs::read_to_string("/proc/self/mountinfo")? + &rig.daemon()?.log();
    ensure!(!told.contains("horse"), "the password is told: {told}");
    server.kill()?;
    await_state(rig.daemon()?, "failed").context("the server is killed")?;
    fs::write("/proc/sys/vm/drop_caches", "1")?;
    server.start_again()?;
    await_state(rig.daemon()?, "mounted").context("the server comes back")?;
    whole(&rig, 0, &cd).context("back")?;
    stop(rig)
}

fn below(name: &str) -> PathBuf {
    Path::new(POINT).join(name)
}

fn unmount(_: &mut Server) -> Result<()> {
    tool::run("umount", ["-l", POINT]).map(drop)
}

/// The host reads what the server has.
fn whole(rig: &Rig, drive: usize, file: &Path) -> Result<()> {
    let read = rig.lun(drive)?.sha(Caching::Direct)?;
    ensure!(read == image::sha_of_file(file)?, "the host reads other bytes from drive {drive}");
    Ok(())
}

fn await_state(daemon: &Daemon, wanted: &str) -> Result<()> {
    let began = Instant::now();
    wait_until(BACK, &format!("the area is {wanted}"), || state(daemon).is_ok_and(|state| state == wanted))
        .with_context(|| daemon.log())?;
    eprintln!("the area is {wanted} after {} ms", began.elapsed().as_millis());
    Ok(())
}

/// Of the area; the daemon tells it at once, whatever its server does.
fn state(daemon: &Daemon) -> Result<String> {
    let asked = Instant::now();
    let state = daemon.state()?;
    ensure!(asked.elapsed() < AT_ONCE, "state took {} ms", asked.elapsed().as_millis());
    let area = state.pointer("/areas/0").with_context(|| format!("no area in {state}"))?;
    ensure!((area["state"] == "failed") == area["cause"].is_string(), "no true cause: {area}");
    Ok(area["state"].as_str().map(str::to_owned).unwrap_or_default())
}
