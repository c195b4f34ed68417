//! Images from a real web server, nginx, on the board.

use std::fs::{self, File};
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hw_tests::board::{Board, Scratch};
use hw_tests::host::{Caching, Lun};
use hw_tests::image;
use hw_tests::rig::{Backend, Drive, Rig, Setup};
use hw_tests::scsi::{self, Data};
use hw_tests::tool;
use hw_tests::wait::{wait_for, wait_until};
use serde_json::json;

use crate::{Case, DAEMON};

pub(crate) const CASES: &[Case] = &[
    Case { name: "a_cd_over_http_and_https_is_read_whole", on: DAEMON, run: read_whole },
    Case { name: "a_certificate_for_another_name_is_refused", on: DAEMON, run: wrong_name },
    Case { name: "a_cd_larger_than_the_cache_is_read_whole", on: DAEMON, run: larger_than_the_cache },
    Case {
        name: "a_cd_larger_than_the_disk_is_read_whole_while_others_fill_it",
        on: DAEMON,
        run: small_disk,
    },
    Case { name: "a_configured_url_is_inserted_when_its_server_is_there", on: DAEMON, run: configured },
    Case {
        name: "a_signed_url_of_a_long_name_is_read_whole_and_its_query_not_shown",
        on: DAEMON,
        run: signed,
    },
    Case { name: "what_is_packed_is_unpacked_before_the_host_sees_it", on: DAEMON, run: packed },
    Case { name: "a_dead_web_server_is_an_answer_and_its_return_is_noticed", on: DAEMON, run: dead_server },
    Case { name: "a_download_goes_on_after_the_daemon_was_killed", on: DAEMON, run: killed },
];

/// Of the daemon, whatever its server does: a second, and what a busy machine adds to three programs one after the other.
const ANSWER: Duration = Duration::from_secs(4);
const PATIENCE: Duration = Duration::from_secs(60);
const MIB: u64 = 1 << 20;

/// nginx, serving a directory at ports of its own.
struct Nginx {
    child: Child,
    dir: PathBuf,
}

impl Nginx {
    fn start(scratch: &Scratch) -> Result<Self> {
        tool::run("ip", ["link", "set", "lo", "up"])?;
        let dir = scratch.file("web");
        fs::create_dir_all(&dir)?;
        let at = |name: &str| dir.join(name).display().to_string();
        if !dir.join("ca.pem").exists() {
            certificates(&dir)?;
        }
        let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|what| format!("{what}_temp_path {};", at(&format!("{what}.tmp"))))
            .concat();
        let config = format!(
            "daemon off; user root; pid {}; error_log {};\n\
             events {{}}\n\
             http {{ access_log off; {temporary} server {{ root {};\n\
             listen 127.0.0.1:8080; listen 127.0.0.1:8443 ssl; listen 127.0.0.2:8443 ssl; ssl_certificate {}; ssl_certificate_key {}; }} }}\n",
            at("nginx.pid"),
            at("error.log"),
            dir.display(),
            at("server.pem"),
            at("server.key"),
        );
        fs::write(dir.join("nginx.conf"), config)?;
        let child = Command::new("nginx")
            .args(["-c", &at("nginx.conf"), "-e", &at("error.log")])
            .stdin(Stdio::null())
            .spawn()
            .context("no nginx on PATH; `cargo xtask setup` installs it")?;
        let nginx = Self { child, dir };
        wait_until(PATIENCE, "nginx listens", || std::net::TcpStream::connect("127.0.0.1:8443").is_ok())
            .with_context(|| fs::read_to_string(nginx.dir.join("error.log")).unwrap_or_default())?;
        Ok(nginx)
    }

    /// Makes an image of noise there.
    fn image(&self, name: &str, seed: u64, mib: u64) -> Result<PathBuf> {
        image::random(self.dir.join(name), seed, mib)
    }

    /// Ends it, and with it all connections.
    fn stop(mut self) -> Result<()> {
        tool::run("kill", [self.child.id().to_string()])?;
        self.child.wait()?;
        Ok(())
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // The master's children end with it only if it is asked.
        let _ = tool::try_run("kill", [self.child.id().to_string()]);
        let _ = self.child.wait();
    }
}

/// A CA, and a certificate of it for 127.0.0.1.
fn certificates(dir: &Path) -> Result<()> {
    let script = "set -e; new='-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2'; \
                  openssl req -x509 $new -subj /CN=test-ca -keyout ca.key -out ca.pem; \
                  openssl req $new -subj /CN=127.0.0.1 -keyout server.key -out server.csr; \
                  echo subjectAltName=IP:127.0.0.1 >extensions; \
                  openssl x509 -req -days 2 -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial \
                  -extfile extensions -out server.pem";
    let directory = dir.display().to_string();
    tool::run("sh", ["-c", &format!("cd {directory} && {{ {script}; }} 2>&1")]).map(drop)
}

fn start(board: &Board, backend: Backend, scratch: &Scratch, keys: &str) -> Result<Rig> {
    let (cache, ca) = (scratch.file("cache"), scratch.file("web").join("ca.pem"));
    let section = format!("[url]\ncache = {cache:?}\nca_file = {ca:?}\n{keys}\n");
    Rig::start(board, backend, &Setup::of([Drive::optical()]).configured(section))
}

fn read_block(lun: &Lun, block: u64) -> Result<[u8; 2048]> {
    let mut bytes = [0; 2048];
    lun.open(Caching::Buffered)?.read_exact_at(&mut bytes, block * 2048)?;
    Ok(bytes)
}

fn read_whole(board: &Board, backend: Backend) -> Result<()> {
    let scratch = board.scratch()?;
    let nginx = Nginx::start(&scratch)?;
    let path = nginx.image("a b%.iso", 31, 24)?;
    let wanted = image::sha_of_file(&path)?;
    let mut rig = start(board, backend, &scratch, "")?;
    let lun = rig.lun(0)?;
    scsi::drain_attentions(&lun)?;
    for (url, name) in [
        ("http://127.0.0.1:8080/a b%.iso?1", "http://127.0.0.1:8080/a%20b%25.iso?…"),
        ("https://127.0.0.1:8443/a b%.iso", "https://127.0.0.1:8443/a%20b%25.iso"),
    ] {
        let begun = Instant::now();
        rig.daemon()?.ask("insert", &json!({"drive": "cd", "url": url, "keep": true}))?;
        let inserted = begun.elapsed();
        let first = read_block(&lun, 0)?;
        let took = begun.elapsed();
        println!("{url}: inserted after {inserted:?}, the host's first block after {took:?}");
        ensure!(first[..] == image::peek(&path, 0, 2048)?[..], "the first block is another");
        let theirs = lun.sha(Caching::Buffered)?;
        ensure!(theirs == wanted, "the host read {theirs:?} of {url}, the image is {wanted:?}");
        let fetch = || Some(rig_image(&rig)?.get("fetch")?.clone());
        wait_until(PATIENCE, "all is here", || fetch().is_some_and(|fetch| fetch["complete"] == true))?;
        let kept = fetch().context("no fetch in the state")?["kept"].as_str().map(PathBuf::from);
        let kept = kept.context("it was not kept")?;
        ensure!(image::sha_of_file(&kept)? == wanted, "what was kept is another");
        lun.settle()?;
        let said = rig.daemon()?.cli(&["eject", "cd"])?;
        ensure!(said.contains(name), "ejected: {said}");
    }
    rig.stop()
}

/// The image in the drive, as `state` tells.
fn rig_image(rig: &Rig) -> Option<serde_json::Value> {
    rig.state().ok().map(|state| state["drives"][0]["image"].clone())
}

fn wrong_name(board: &Board, backend: Backend) -> Result<()> {
    let scratch = board.scratch()?;
    let nginx = Nginx::start(&scratch)?;
    nginx.image("x.iso", 35, 1)?;
    let mut rig = start(board, backend, &scratch, "")?;
    let said = rig.daemon()?.try_cli(&["insert", "cd", "https://127.0.0.2:8443/x.iso"])?;
    ensure!(said.status == 1 && said.text.contains("certificate is not accepted"), "{}", said.text);
    rig.daemon()?.cli(&["insert", "cd", "https://127.0.0.1:8443/x.iso"])?;
    rig.stop()
}

fn larger_than_the_cache(board: &Board, backend: Backend) -> Result<()> {
    let scratch = board.scratch()?;
    let nginx = Nginx::start(&scratch)?;
    let path = nginx.image("large.iso", 32, 24)?;
    let mut rig = start(board, backend, &scratch, "cache_limit_mib = 8")?;
    let lun = rig.lun(0)?;
    scsi::drain_attentions(&lun)?;
    rig.daemon()?.cli(&["insert", "cd", "https://127.0.0.1:8443/large.iso"])?;
    ensure!(lun.sha(Caching::Buffered)? == image::sha_of_file(&path)?, "the host read something else");
    let used = tool::run("du", ["-sm".as_ref(), scratch.file("cache").as_os_str()])?;
    let used: u64 = used.split_whitespace().next().context("du")?.parse()?;
    ensure!(used <= 10, "the cache has {used} MiB");
    rig.stop()
}

/// A file system of so many MiB in memory, for as long as this lives.
struct Disk(PathBuf);

impl Disk {
    fn mount(at: PathBuf, mib: u64) -> Result<Self> {
        fs::create_dir_all(&at)?;
        let size = format!("size={mib}m");
        tool::run(
            "mount",
            ["-t".as_ref(), "tmpfs".as_ref(), "-o".as_ref(), size.as_ref(), "small".as_ref(), at.as_os_str()],
        )?;
        Ok(Self(at))
    }

    /// Another program writes there until there is no room, but at most `most` bytes: it also gets what the daemon gives up
    /// meanwhile, and would in the end have all. So many bytes it had.
    fn fill(&self, name: &str, most: usize) -> Result<usize> {
        let mut file = File::create(self.0.join(name))?;
        let mut len = 0;
        while len < most {
            match file.write(&[1; 4096]) {
                Ok(written) => len += written,
                Err(error) if error.kind() == ErrorKind::StorageFull => break,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(len)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = tool::run("umount", ["-l".as_ref(), self.0.as_os_str()]);
    }
}

fn small_disk(board: &Board, backend: Backend) -> Result<()> {
    const LEN: u64 = 24;
    let scratch = board.scratch()?;
    let nginx = Nginx::start(&scratch)?;
    let path = nginx.image("large.iso", 36, LEN)?;
    let disk = Disk::mount(scratch.file("cache"), 8)?;
    let mut rig = start(board, backend, &scratch, "")?;
    let lun = rig.lun(0)?;
    scsi::drain_attentions(&lun)?;
    let events = rig.daemon()?.events()?;
    rig.daemon()?.cli(&["insert", "cd", "https://127.0.0.1:8443/large.iso"])?;
    for at in 0..LEN {
        // What the daemon leaves to others, and what it had and gives up for what the host wants next. The last 2 MiB stay its own.
        if [8, 12, 16].contains(&at) {
            let taken = disk.fill(&format!("theirs-{at}"), 2 << 20)?;
            println!("others took {} KiB before MiB {at}", taken / 1024);
        }
        let read = lun.read_at(at * MIB, usize::try_from(MIB)?)?;
        ensure!(
            read == image::peek(&path, at * MIB, read.len())?,
            "the host read something else in MiB {at}"
        );
    }
    let seen = events.seen();
    ensure!(seen.iter().all(|event| event["event"] != "source_failed"), "{seen:#?}");
    // From the start, with what is left.
    ensure!(lun.sha(Caching::Buffered)? == image::sha_of_file(&path)?, "the host read something else");
    rig.stop()
}

fn configured(board: &Board, backend: Backend) -> Result<()> {
    let scratch = board.scratch()?;
    let nginx = Nginx::start(&scratch)?;
    let late = nginx.image("late.iso", 38, 4)?;
    let local = image::random(scratch.file("local.img"), 39, 1)?;
    nginx.stop()?;
    let url = Path::new("http://127.0.0.1:8080/late.iso?secret");
    let drives = [Drive::optical().with(url), Drive::disk().with(url)];
    let section = format!("[url]\ncache = {:?}\n", scratch.file("cache"));
    let mut rig = Rig::start(board, backend, &Setup::of(drives).configured(section))?;
    let events = rig.daemon()?.events()?;
    let awaited = |rig: &Rig, drive: usize| {
        rig.state().map(|state| state["drives"][drive]["awaited"].clone()).unwrap_or_default()
    };
    wait_until(PATIENCE, "the first tries fail", || {
        (0..2).all(|drive| awaited(&rig, drive)["cause"].is_string())
    })?;
    let waits = awaited(&rig, 0);
    ensure!(waits["image"] == "http://127.0.0.1:8080/late.iso?…", "awaited: {waits}");
    ensure!(
        waits["cause"].as_str().is_some_and(|cause| cause.contains("cannot be reached")),
        "awaited: {waits}"
    );
    // Whoever comes first gets the drive.
    rig.insert(1, &local)?;
    ensure!(awaited(&rig, 1).is_null(), "a drive with an image waits for another");
    let _nginx = Nginx::start(&scratch)?;
    wait_until(PATIENCE, "the image is inserted", || awaited(&rig, 0).is_null())?;
    events.await_event("inserted", |event| event["drive"] == 0)?;
    let lun = rig.lun(0)?;
    scsi::drain_attentions(&lun)?;
    ensure!(lun.sha(Caching::Buffered)? == image::sha_of_file(&late)?, "the host read something else");
    ensure!(
        rig.lun(1)?.sha(Caching::Buffered)? == image::sha_of_file(&local)?,
        "the other drive has another image"
    );
    rig.stop()
}

fn signed(board: &Board, backend: Backend) -> Result<()> {
    let scratch = board.scratch()?;
    let nginx = Nginx::start(&scratch)?;
    // As long as a name can be.
    let rest = "n".repeat(243);
    let name = format!("ü 100% {rest}.iso");
    ensure!(name.len() == 255, "the name has {} bytes", name.len());
    let path = nginx.image(&name, 37, 4)?;
    let secret = "5ec2e7";
    let query = format!("X-Signature={secret}&x={}", format!("%2Fü {}", "s".repeat(34)).repeat(100));
    ensure!(query.len() > 4000, "the query has {} bytes", query.len());
    let mut rig = start(board, backend, &scratch, "")?;
    let lun = rig.lun(0)?;
    scsi::drain_attentions(&lun)?;
    let events = rig.daemon()?.events()?;
    rig.daemon()?.cli(&["insert", "cd", &format!("https://127.0.0.1:8443/{name}?{query}")])?;
    let shown = format!("https://127.0.0.1:8443/%C3%BC%20100%25%20{rest}.iso?…");
    let image = rig_image(&rig).context("no image")?;
    ensure!(image["name"] == shown.as_str(), "shown as {}", image["name"]);
    ensure!(lun.sha(Caching::Buffered)? == image::sha_of_file(&path)?, "the host read something else");
    lun.settle()?;
    let said = rig.daemon()?.cli(&["eject", "cd"])?;
    ensure!(said.contains(&shown), "ejected: {said}");
    events.await_event("ejected", |event| event["image"] == shown.as_str())?;
    let told = format!("{:?}{}{said}{image}", events.seen(), rig.daemon()?.log());
    ensure!(!told.contains(secret), "the query is told: {told}");
    rig.stop()
}

fn dead_server(board: &Board, backend: Backend) -> Result<()> {
    let scratch = board.scratch()?;
    let nginx = Nginx::start(&scratch)?;
    let path = nginx.image("x.iso", 33, 16)?;
    // Nothing but what the host asks for is fetched.
    let mut rig = start(board, backend, &scratch, "rate_limit_kib = 1")?;
    let lun = rig.lun(0)?;
    scsi::drain_attentions(&lun)?;
    let url = "http://127.0.0.1:8080/x.iso";
    rig.daemon()?.cli(&["insert", "cd", url])?;
    scsi::drain_attentions(&lun)?;
    // READ(10) of one block at 12 MiB, and of the first.
    let far: u32 = u32::try_from(12 * MIB / 2048)?;
    let read = |block: u32| {
        let [a, b, c, d] = block.to_be_bytes();
        scsi::command(&lun, &[0x28, 0, a, b, c, d, 0, 0, 1, 0], Data::In(2048))
    };
    ensure!(read(0)?.good(), "the first block cannot be read");
    nginx.stop()?;
    let answer = within(Duration::from_secs(10), "a read of what is not here", || read(far))?;
    ensure!(answer.has_sense("Not Ready", "becoming ready"), "{}", answer.text);
    ensure!(within(ANSWER, "a read of what is here", || read(0))?.good(), "the first block has gone");
    let state = within(ANSWER, "state", || rig.daemon()?.state())?;
    ensure!(state["drives"][0]["image"]["source"] == "offline", "{state}");
    within(ANSWER, "eject", || rig.daemon()?.cli(&["eject", "cd"]))?;
    let refused = within(ANSWER, "insert of another", || {
        rig.daemon()?.try_cli(&["insert", "cd", &url.replace('x', "y")])
    })?;
    ensure!(refused.status == 1 && refused.text.contains("cannot be reached"), "{}", refused.text);
    within(ANSWER, "insert from the cache", || rig.daemon()?.cli(&["insert", "cd", url]))?;
    scsi::drain_attentions(&lun)?;
    ensure!(within(ANSWER, "a read of what is here", || read(0))?.good(), "it was not in the cache");
    let again = Nginx::start(&scratch)?;
    let begun = Instant::now();
    wait_until(Duration::from_secs(5), "a read of what was not here", || {
        read(far).is_ok_and(|read| read.good())
    })?;
    println!("read again {:?} after the server listened", begun.elapsed());
    let wanted = image::peek(&path, u64::from(far) * 2048, 2048)?;
    ensure!(read_block(&lun, far.into())?[..] == wanted[..], "it is another block");
    drop(again);
    within(Duration::from_secs(5), "the end", || rig.stop())
}

fn killed(board: &Board, backend: Backend) -> Result<()> {
    let scratch = board.scratch()?;
    let nginx = Nginx::start(&scratch)?;
    let path = nginx.image("x.iso", 34, 24)?;
    let sums = tool::run("sh", ["-c", &format!("cd {} && sha256sum x.iso", nginx.dir.display())])?;
    fs::write(nginx.dir.join("SHA256SUMS"), sums)?;
    let mut rig = start(board, backend, &scratch, "rate_limit_kib = 1024")?;
    let lun = rig.lun(0)?;
    scsi::drain_attentions(&lun)?;
    let url = "http://127.0.0.1:8080/x.iso";
    rig.daemon()?.cli(&["insert", "cd", url])?;
    let record = || {
        let files = fs::read_dir(scratch.file("cache")).ok()?;
        let path = files
            .flatten()
            .map(|file| file.path())
            .find(|path| path.extension().is_some_and(|e| e == "record"))?;
        Some(File::open(path).ok()?.metadata().ok()?.len())
    };
    wait_until(PATIENCE, "a record is stored", || record().is_some_and(|len| len > 0))?;
    rig.daemon()?.kill()?;
    drop(rig);
    let mut rig = start(board, backend, &scratch, "")?;
    let lun = rig.lun(0)?;
    scsi::drain_attentions(&lun)?;
    rig.daemon()?.cli(&["insert", "cd", url, "--sha256sums"])?;
    let here = rig_image(&rig).and_then(|image| image["fetch"]["here"].as_u64()).context("no fetch")?;
    ensure!(here > MIB, "it went on from {here} bytes");
    ensure!(lun.sha(Caching::Buffered)? == image::sha_of_file(&path)?, "the host read something else");
    let complete = || rig_image(&rig).is_some_and(|image| image["fetch"]["complete"] == true);
    wait_until(PATIENCE, "the checksum is right", complete)?;
    rig.stop()
}

fn packed(board: &Board, backend: Backend) -> Result<()> {
    let scratch = board.scratch()?;
    let nginx = Nginx::start(&scratch)?;
    let path = nginx.image("x.img", 35, 4)?;
    let wanted = image::sha_of_file(&path)?;
    let make = "xz -0 -k x.img && qemu-img convert -f raw -O qcow2 x.img x.qcow2 && rm x.img";
    tool::run("sh", ["-c", &format!("cd {} && {make}", nginx.dir.display())])?;
    let section = format!("[url]\ncache = {:?}\n", scratch.file("cache"));
    let setup = Setup::of([Drive::optical()]).configured(section).kept();
    let mut rig = Rig::start(board, backend, &setup)?;
    let lun = rig.lun(0)?;
    scsi::drain_attentions(&lun)?;
    let read = |rig: &mut Rig, url: &str| -> Result<()> {
        rig.daemon()?.cli(&["insert", "cd", url])?;
        let theirs = lun.sha(Caching::Buffered)?;
        ensure!(theirs == wanted, "the host read {theirs:?} of {url}, the image is {wanted:?}");
        lun.settle()?;
        rig.daemon()?.cli(&["eject", "cd"]).map(drop)
    };
    let (xz, qcow2) = ("http://127.0.0.1:8080/x.img.xz", "http://127.0.0.1:8080/x.qcow2");
    read(&mut rig, xz)?;
    read(&mut rig, qcow2)?;
    nginx.stop()?;
    // Both are here.
    read(&mut rig, xz)?;
    read(&mut rig, qcow2)?;
    // What was expanded is a file, which the next daemon takes over.
    rig.daemon()?.cli(&["insert", "cd", xz])?;
    let daemon = rig.daemon()?;
    daemon.kill()?;
    let again = daemon.start_again()?;
    *daemon = again;
    let log = wait_for(PATIENCE, "the next daemon serves", || {
        Some(daemon.log()).filter(|log| log.contains(" ready "))
    })?;
    ensure!(log.contains("taken over from the last process"), "not taken over:\n{log}");
    ensure!(lun.sha(Caching::Direct)? == wanted, "the host read something else from the next daemon");
    ensure!(rig_image(&rig).is_some_and(|image| image["name"] == xz), "it has another image");
    rig.stop()
}

fn within<T>(limit: Duration, what: &str, f: impl FnOnce() -> Result<T>) -> Result<T> {
    let begun = Instant::now();
    let done = f()?;
    println!("{what}: {:?}", begun.elapsed());
    ensure!(begun.elapsed() < limit, "{what} took {:?}", begun.elapsed());
    Ok(done)
}
