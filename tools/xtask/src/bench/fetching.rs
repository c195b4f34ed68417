//! Images behind a web server: how long a host waits for the first block, and what it loses while the rest is filled in.
//!
//! The server is nginx on the board itself. So server, filling and drive share one CPU, and all that the filling costs is seen; on
//! a real board the network is slower and the server elsewhere.

use std::fs::{self, File};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use xshell::{Shell, cmd};

use super::plan::{KIB, MIB, Pattern, Scale, Source, Test, float};
use super::served::{Medium, Served};
use super::{Engine, OnBoardArgs, fio};
use crate::wait::wait_for;

const DIR: &str = "/run/bench-web";
const PORT: u16 = 8080;
const LISTEN: Duration = Duration::from_secs(30);
/// What a network of a gigabit brings.
const RATE_KIB: u64 = 112 * KIB;
/// The image on the server: long enough to be still on its way when the test is over.
const REMOTE: u64 = 192 * MIB;
/// What is here when the test starts: at least what it reads.
const HERE: u64 = 40 * MIB;
const TEST: Test = Test { pattern: Pattern::Read, block: 120 * KIB };
/// Of which the second best counts, as of all local figures.
const REPEATS: usize = 5;

/// Measures; prints a line for each engine. `local` is the same from here.
pub(super) fn run(shell: &Shell, args: &OnBoardArgs, local: Medium<'_>) -> Result<()> {
    let server = Nginx::start(shell)?;
    for engine in args.engine.all() {
        let line = measure(shell, args, local, engine)
            .with_context(|| format!("an image behind a web server, {}", engine.name()))?;
        println!("{line}");
    }
    drop(server);
    Ok(fs::remove_dir_all(DIR)?)
}

fn measure(shell: &Shell, args: &OnBoardArgs, local: Medium<'_>, engine: Engine) -> Result<Value> {
    let cache = Path::new(DIR).join("cache");
    let sections = format!(
        "[url]\ncache = {cache:?}\ncache_limit_mib = {}\nrate_limit_kib = {RATE_KIB}\n\n",
        REMOTE / MIB + 1
    );
    let medium = Medium { writable: false, ..local };
    let served = Served::by_us_with(shell, &sections, &[&[medium]], args.speed, engine)?;
    let local = second(repeat(|_| speed(&served, args))?)?;
    // Not counted: has the code of fetching in memory.
    Fetched::insert(&served, 0)?.eject()?;
    let mut firsts = Vec::new();
    let mut fillings = Vec::new();
    let during = repeat(|number| {
        let fetched = Fetched::insert(&served, number + 1)?;
        firsts.push(fetched.first.as_secs_f64());
        wait_for("the first bytes", LISTEN, || Ok((fetched.here()? >= HERE).then_some(())))?;
        let (before, begun) = (fetched.here()?, Instant::now());
        let during = speed(&served, args)?;
        let (after, took) = (fetched.here()?, begun.elapsed());
        ensure!(after < REMOTE, "all was here before the test was over");
        fillings.push(float(after - before) / 1e6 / took.as_secs_f64());
        fetched.eject()?;
        Ok(during)
    })?;
    served.stop()?;
    Ok(json!({
        "fetching": true,
        "by": engine.name(),
        "first_block_ms": firsts.iter().copied().fold(0.0, f64::max) * 1e3,
        "local_mb_s": local,
        "filling_mb_s": second(during)?,
        "filled_mb_s": fillings.iter().copied().fold(f64::INFINITY, f64::min),
    }))
}

/// As often as a test counts.
pub(super) fn repeat(mut run: impl FnMut(usize) -> Result<f64>) -> Result<Vec<f64>> {
    (0..REPEATS).map(&mut run).collect()
}

/// The second best of several speeds.
pub(super) fn second(mut speeds: Vec<f64>) -> Result<f64> {
    speeds.sort_by(|a, b| b.total_cmp(a));
    speeds.get(1).copied().context("no repeats")
}

/// What one test comes to.
pub(super) fn speed(served: &Served, args: &OnBoardArgs) -> Result<f64> {
    let amount = TEST.amount(Source::Tmpfs, args.speed, Scale::Full).min(HERE / TEST.block * TEST.block);
    Ok(fio::run(served.disk()?, served.server()?, TEST, amount)?.mb_s)
}

/// An image in the drive.
struct Fetched<'a> {
    served: &'a Served,
    /// From the request of the client to the host's first block.
    first: Duration,
}

impl<'a> Fetched<'a> {
    /// Takes out what is in the drive, and inserts the server's image under a name that the cache does not know.
    fn insert(served: &'a Served, number: usize) -> Result<Self> {
        let drive = json!({ "drive": 0, "force": true });
        let held = served.ask("state", &json!({}))?;
        if !held["drives"][0]["image"].is_null() {
            served.ask("eject", &drive)?;
        }
        let url = format!("http://127.0.0.1:{PORT}/image?{number}");
        let begun = Instant::now();
        served.ask("insert", &json!({ "drive": 0, "url": url }))?;
        fio::read_block(served.disk()?, 0)?;
        Ok(Self { served, first: begun.elapsed() })
    }

    fn here(&self) -> Result<u64> {
        let state = self.served.ask("state", &json!({}))?;
        state["drives"][0]["image"]["fetch"]["here"]
            .as_u64()
            .with_context(|| format!("nothing is fetched: {state}"))
    }

    fn eject(self) -> Result<()> {
        self.served.ask("eject", &json!({ "drive": 0, "force": true })).map(drop)
    }
}

/// A web server with one image, ended when dropped.
struct Nginx(Child);

impl Nginx {
    fn start(shell: &Shell) -> Result<Self> {
        cmd!(shell, "ip link set lo up").quiet().run()?;
        let dir = PathBuf::from(DIR);
        fs::create_dir_all(dir.join("cache"))?;
        // A hole is sent as fast as bytes are, and takes no memory.
        File::create(dir.join("image"))?.set_len(REMOTE)?;
        let at = |name: &str| dir.join(name).display().to_string();
        let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|what| format!("{what}_temp_path {};", at(what)))
            .concat();
        let config = format!(
            "daemon off; master_process off; pid {}; error_log {};\nevents {{}}\n\
             http {{ access_log off; {temporary} server {{ listen 127.0.0.1:{PORT}; root {DIR}; }} }}\n",
            at("pid"),
            at("error.log"),
        );
        fs::write(dir.join("nginx.conf"), config)?;
        let child = Command::new("nginx")
            .args(["-c", &at("nginx.conf"), "-e", &at("error.log")])
            .stdin(Stdio::null())
            .spawn()
            .context("no nginx on PATH; `cargo xtask setup` installs it")?;
        let nginx = Self(child);
        wait_for("nginx to listen", LISTEN, || Ok(TcpStream::connect(("127.0.0.1", PORT)).ok()))?;
        Ok(nginx)
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A sentence for each engine, from what the board printed.
pub(super) fn sentences(lines: &[Value], link: &str) -> Vec<String> {
    let sentence = |line: &Value| {
        let number = |name: &str| line.get(name)?.as_f64();
        let (local, filling) = (number("local_mb_s")?, number("filling_mb_s")?);
        Some(format!(
            "Over HTTP, {link}, {}: first block {:.1} ms after the request to insert; while the rest is filled in at {:.0} MB/s, \
             reads of 120 KiB at {filling:.1} MB/s, {:.2} of the local {local:.1} MB/s.",
            line["by"].as_str()?,
            number("first_block_ms")?,
            number("filled_mb_s")?,
            filling / local,
        ))
    };
    lines.iter().filter(|line| line["fetching"] == true).filter_map(sentence).collect()
}
