//! `ringdrived` under test: its configuration, its process, and its command line `ringdrive`.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::board::Board;
use crate::rig::{Backend, Drive, Function, Kind, Setup, Stall};
use crate::socket::{answer, connect};
use crate::store::Store;
use crate::tool::{self, Said};
use crate::wait::{wait_for, wait_until};

/// From the start of the process to an answer on its socket.
const START: Duration = Duration::from_secs(20);

/// From the word to the end of the process.
const END: Duration = Duration::from_secs(20);

/// The name of the gadget that the daemon composes in tests.
pub const GADGET: &str = "ringtest";

/// Whose gadget it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The daemon composes and binds it.
    Own,
    /// The test does; the daemon serves its `ffs.*` functions.
    Guest,
}

/// A configuration file for `setup`.
#[must_use]
pub fn config(
    board: &Board,
    backend: Backend,
    mode: Mode,
    setup: &Setup,
    serial: &str,
    socket: &Path,
) -> String {
    let mut text = String::new();
    let mode_name = if mode == Mode::Own { "own" } else { "guest" };
    let _ = write!(
        text,
        "[control]\nsocket = {}\n\n[gadget]\nmode = \"{mode_name}\"\n",
        quoted(&socket.display().to_string())
    );
    if mode == Mode::Own {
        let _ = write!(
            text,
            "name = \"{GADGET}\"\nudc = \"{}\"\nserial = \"{serial}\"\nmax_speed = \"{}\"\n",
            board.udc,
            board.speed.name()
        );
    }
    let _ = write!(text, "\n{}", setup.sections);
    for function in &setup.functions {
        function_config(&mut text, function, backend);
    }
    text
}

fn function_config(text: &mut String, function: &Function, backend: Backend) {
    let stall = if function.stall == Stall::Auto { "auto" } else { "never" };
    let engine = backend.name();
    let _ = write!(
        text,
        "\n[[function]]\nname = \"{}\"\nengine = \"{engine}\"\nstall = \"{stall}\"\n",
        function.name
    );
    for drive in &function.drives {
        let Drive { name, kind, rw, block_size, deadline_ms, vendor, product, .. } = drive;
        let _ = write!(
            text,
            "\n[[function.drive]]\nname = \"{name}\"\nkind = \"{}\"\nrw = {rw}\ndeadline_ms = {deadline_ms}\nvendor = \"{vendor}\"\n\
             product = \"{product}\"\n",
            kind.name()
        );
        if *kind == Kind::Disk {
            let _ = writeln!(text, "block_size = {block_size}");
        }
        if let Some(image) = &drive.image {
            let _ = writeln!(text, "image = {}", quoted(&image.display().to_string()));
        }
    }
}

/// As a TOML basic string; `Debug` of ASCII text is one.
fn quoted(text: &str) -> String {
    format!("{text:?}")
}

/// A running daemon. Dropped, it is told to end, and killed if it does not.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    config: PathBuf,
    log: PathBuf,
    socket: PathBuf,
    store: Option<Arc<Store>>,
}

impl Daemon {
    /// Starts a daemon with a gadget of its own, and waits until it answers.
    ///
    /// # Errors
    /// It did not; the message has its log.
    pub fn serve(board: &Board, backend: Backend, setup: &Setup, serial: &str, stem: &Path) -> Result<Self> {
        Self::serve_keeping(board, backend, setup, serial, stem, None)
    }

    /// The same with a store that keeps its descriptors for the next one.
    ///
    /// # Errors
    /// As [`Daemon::serve`].
    pub fn serve_keeping(
        board: &Board,
        backend: Backend,
        setup: &Setup,
        serial: &str,
        stem: &Path,
        store: Option<Arc<Store>>,
    ) -> Result<Self> {
        let socket = stem.with_extension("sock");
        let text = config(board, backend, Mode::Own, setup, serial, &socket);
        Self::start_keeping(&text, stem, store)
    }

    /// Starts a daemon with this configuration, whose socket must be `stem` with `.sock`.
    ///
    /// # Errors
    /// It did not answer; the message has its log.
    pub fn start(config: &str, stem: &Path) -> Result<Self> {
        Self::start_keeping(config, stem, None)
    }

    /// The same with a store that keeps its descriptors for the next one.
    ///
    /// # Errors
    /// As [`Daemon::start`].
    pub fn start_keeping(config: &str, stem: &Path, store: Option<Arc<Store>>) -> Result<Self> {
        let path = stem.with_extension("toml");
        fs::write(&path, config)?;
        let mut daemon = Self::spawn_keeping(&path, stem, store)?;
        let answer = wait_for(START, "ringdrived answers", || match daemon.child.try_wait() {
            Ok(Some(status)) => Some(Err(status)),
            _ => UnixStream::connect(&daemon.socket).is_ok().then_some(Ok(())),
        });
        match answer {
            Ok(Ok(())) => Ok(daemon),
            Ok(Err(status)) => bail!("ringdrived ended with {status}:\n{}", daemon.log()),
            Err(error) => Err(error.context(daemon.log())),
        }
    }

    /// Starts a process and waits for nothing.
    ///
    /// # Errors
    /// There is no `ringdrived` on PATH.
    pub fn spawn(config: &Path, stem: &Path) -> Result<Self> {
        Self::spawn_keeping(config, stem, None)
    }

    fn spawn_keeping(config: &Path, stem: &Path, store: Option<Arc<Store>>) -> Result<Self> {
        let log = stem.with_extension("log");
        let (out, err) = (File::create(stem.with_extension("out"))?, File::create(&log)?);
        let configure = |command: &mut Command| {
            let level = std::env::var("RUST_LOG").unwrap_or_else(|_| "info".into());
            command.arg("--config").arg(config).env("RUST_LOG", level);
            command.stdin(Stdio::null()).stdout(out).stderr(err);
        };
        let child = match &store {
            Some(store) => store.spawn(configure),
            None => {
                let mut command = Command::new("ringdrived");
                configure(&mut command);
                command.spawn().map_err(anyhow::Error::from)
            }
        };
        let child = child.context("no ringdrived on PATH; build it with `cargo build --release`")?;
        Ok(Self { child, config: config.to_owned(), log, socket: stem.with_extension("sock"), store })
    }

    /// Starts another daemon with the same configuration.
    ///
    /// # Errors
    /// It did not answer; the message has its log.
    pub fn start_again(&self) -> Result<Self> {
        let (text, stem) = (fs::read_to_string(&self.config)?, self.config.with_extension(""));
        Self::start_keeping(&text, &stem, self.store.clone())
    }

    /// The same with a changed configuration.
    ///
    /// # Errors
    /// As [`Daemon::start_again`].
    pub fn start_again_with(&self, change: impl FnOnce(String) -> String) -> Result<Self> {
        let (text, stem) = (change(fs::read_to_string(&self.config)?), self.config.with_extension(""));
        Self::start_keeping(&text, &stem, self.store.clone())
    }

    /// Has this program started as the next daemon, and not the one of the first start.
    ///
    /// # Errors
    /// There is no store, or no such program.
    pub fn upgrade_to(&self, program: &Path) -> Result<()> {
        self.store.as_ref().context("nothing is kept for another build")?.install(program)
    }

    /// Where its control socket is.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// What the daemon has said so far.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Ends the daemon with SIGKILL, and waits for its end.
    ///
    /// # Errors
    /// It is not there any more.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill().context("cannot kill ringdrived")?;
        self.child.wait().map(drop).context("cannot wait for ringdrived")
    }

    /// Waits for the end of the process.
    ///
    /// # Errors
    /// It runs on.
    pub fn await_end(&mut self, limit: Duration) -> Result<ExitStatus> {
        wait_for(limit, "ringdrived ends", || self.child.try_wait().ok().flatten())
            .with_context(|| fs::read_to_string(&self.log).unwrap_or_default())
    }

    /// Runs `ringdrive` with these arguments, whatever comes of it.
    ///
    /// # Errors
    /// There is no `ringdrive` on PATH.
    pub fn try_cli(&self, args: &[&str]) -> Result<Said> {
        let socket = self.socket.display().to_string();
        tool::try_run("ringdrive", ["--socket", &socket].iter().chain(args))
    }

    /// Runs `ringdrive` with these arguments, which must succeed.
    ///
    /// # Errors
    /// It did not.
    pub fn cli(&self, args: &[&str]) -> Result<String> {
        let said = self.try_cli(args)?;
        ensure!(said.ok(), "`ringdrive {}` ended with {}: {}", args.join(" "), said.status, said.text);
        Ok(said.text)
    }

    /// Asks at the control socket, without a program between that must start first.
    ///
    /// # Errors
    /// Refused, or no answer.
    pub fn ask(&self, method: &str, params: &Value) -> Result<Value> {
        let mut stream = connect(&self.socket, END)?;
        let request = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params});
        stream.write_all(format!("{request}\n").as_bytes())?;
        let line = answer(&stream).with_context(|| format!("to {method}"))?;
        let mut answer: Value = serde_json::from_str(&line).with_context(|| format!("not JSON: {line}"))?;
        match answer.get_mut("result") {
            Some(result) => Ok(result.take()),
            None => bail!("{method} was answered with {answer}"),
        }
    }

    /// `ringdrive state --json`.
    ///
    /// # Errors
    /// No answer, or not JSON.
    pub fn state(&self) -> Result<Value> {
        let text = self.cli(&["state", "--json"])?;
        serde_json::from_str(&text).with_context(|| format!("not JSON: {text}"))
    }

    /// Inserts an image.
    ///
    /// # Errors
    /// Refused.
    pub fn insert(&self, drive: usize, image: &Path) -> Result<()> {
        self.cli(&["insert", &drive.to_string(), &image.display().to_string()]).map(drop)
    }

    /// Ejects politely.
    ///
    /// # Errors
    /// Refused.
    pub fn eject(&self, drive: usize) -> Result<()> {
        self.cli(&["eject", &drive.to_string()]).map(drop)
    }

    /// Ejects whatever the host says.
    ///
    /// # Errors
    /// Refused.
    pub fn force_eject(&self, drive: usize) -> Result<()> {
        self.cli(&["eject", &drive.to_string(), "--force"]).map(drop)
    }

    /// Subscribes to events with `ringdrive events --json`.
    ///
    /// # Errors
    /// There is no `ringdrive` on PATH.
    pub fn events(&self) -> Result<Events> {
        Events::start(&self.socket)
    }

    /// Ends the daemon with SIGTERM, and waits for a good end.
    ///
    /// # Errors
    /// The daemon did not end well; the message has its log.
    pub fn stop(mut self) -> Result<()> {
        self.terminate()?;
        self.must_end_well()
    }

    /// Waits for the end of a daemon that was told to end.
    ///
    /// # Errors
    /// The daemon did not end well; the message has its log.
    pub fn must_end_well(&mut self) -> Result<()> {
        let status = self.await_end(END)?;
        ensure!(status.success(), "ringdrived ended with {status}:\n{}", self.log());
        Ok(())
    }

    /// Ends the daemon by `ringdrive shutdown`, which leaves nothing to another, and waits for a good end.
    ///
    /// # Errors
    /// As [`Daemon::stop`].
    pub fn shut_down(mut self) -> Result<()> {
        self.cli(&["shutdown"])?;
        self.must_end_well()
    }

    /// Sends SIGTERM.
    ///
    /// # Errors
    /// It is not there any more.
    pub fn terminate(&self) -> Result<()> {
        let pid = Pid::from_raw(i32::try_from(self.child.id())?);
        kill(pid, Signal::SIGTERM).context("cannot send SIGTERM to ringdrived")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Ok(Some(_)) = self.child.try_wait() {
            return;
        }
        let _ = self.terminate();
        if self.await_end(END).is_err() {
            let _ = self.kill();
        }
        if std::thread::panicking() || std::env::var_os("RINGDRIVE_SHOW_LOG").is_some() {
            eprintln!("ringdrived said:\n{}", self.log());
        }
    }
}

/// The events of a session, as `ringdrive events --json` prints them.
#[derive(Debug)]
pub struct Events {
    child: Child,
    seen: Arc<Mutex<Vec<Value>>>,
}

impl Events {
    fn start(socket: &Path) -> Result<Self> {
        let mut child = Command::new("ringdrive")
            .arg("--socket")
            .arg(socket)
            .args(["events", "--json"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            // It complains when the daemon ends before it.
            .stderr(Stdio::null())
            .spawn()
            .context("no ringdrive on PATH; build it with `cargo build --release`")?;
        let lines = BufReader::new(child.stdout.take().context("ringdrive has no standard output")?).lines();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&seen);
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let event = serde_json::from_str(&line).unwrap_or(Value::String(line));
                if let Ok(mut seen) = sink.lock() {
                    seen.push(event);
                }
            }
        });
        Ok(Self { child, seen })
    }

    /// All events so far.
    #[must_use]
    pub fn seen(&self) -> Vec<Value> {
        self.seen.lock().map(|seen| seen.clone()).unwrap_or_default()
    }

    /// Waits for an event with this name for which `matches` holds.
    ///
    /// # Errors
    /// It did not come; the message has those that did.
    pub fn await_event(&self, name: &str, matches: impl Fn(&Value) -> bool) -> Result<Value> {
        let found = wait_for(Duration::from_secs(10), &format!("the event {name}"), || {
            let named = |event: &&Value| event.get("event").is_some_and(|value| value == name);
            self.seen().iter().filter(named).find(|event| matches(event)).cloned()
        });
        found.with_context(|| format!("events so far: {:#?}", self.seen()))
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits until the daemon's function is ready to be bound by the composer of a guest gadget.
///
/// # Errors
/// Its descriptors are not there.
pub fn await_ready(function: &Path) -> Result<()> {
    wait_until(START, "the function has its descriptors", || {
        fs::read_to_string(function.join("ready")).is_ok_and(|ready| ready.trim() == "1")
    })
}
