//! `ringdrive`, the command line: a client of the control socket. Knows the protocol and nothing of the rooms behind it but the
//! types that the protocol carries, and overlays that are in no drive.
//!
//! Completions and man pages come out of the program itself, so that they are there wherever the program is, and of its
//! version. The daemon's arguments are here for the sake of its man page.

mod args;
mod daemon;
mod download;
mod overlay;
mod show;
mod stats;

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use clap::{CommandFactory, Parser};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::control::{Client, ClientError, with_sources};
use crate::drive::ImageState;
use crate::media::compressed::Expander;
use crate::media::overlay::OverlayError;
use crate::media::url::is_url;
use args::{Arguments, Command};
pub use daemon::DaemonArgs;

/// Why the program did not do what it was asked.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("cannot open {path}; check the path, and that you may read it (with --rw: write)")]
    Open { path: String, source: io::Error },
    #[error("cannot write the man pages into {path}; try an existing directory that you may write to")]
    Man { path: String, source: io::Error },
    #[error("{0} goes with a URL; leave it away, or give http://… or https://…")]
    NoUrl(&'static str),
    #[error(transparent)]
    Overlay(#[from] OverlayError),
    #[error(
        "there is no overlay in drive {0:?}; insert its image with --overlay, or name an overlay's file with a / in it"
    )]
    NoOverlay(String),
    #[error(
        "an overlay goes with an image that is a file; of a URL: insert it with --keep first, which makes a file of it"
    )]
    UrlOverlay,
    #[error("the path {0:?} is not UTF-8, which the protocol needs; try --send-fd")]
    Path(std::path::PathBuf),
    #[error("cannot write the output; check where it goes")]
    Output(#[source] io::Error),
    #[error("cannot wait for signals and events; try again")]
    Wait(#[source] Errno),
}

impl Failure {
    /// As documented in `--help`.
    fn exit_code(&self) -> u8 {
        match self {
            Self::Client(ClientError::Refused { .. }) | Self::Overlay(_) | Self::NoOverlay(_) => 1,
            Self::Path(_) | Self::NoUrl(_) | Self::UrlOverlay => 2,
            Self::Client(ClientError::Unreachable { .. }) => 3,
            Self::Client(ClientError::Timeout(_)) => 4,
            Self::Client(ClientError::Closed | ClientError::Protocol(_) | ClientError::Io(_))
            | Self::Open { .. }
            | Self::Man { .. }
            | Self::Output(_)
            | Self::Wait(_) => 5,
        }
    }

    fn report(&self, json: bool) {
        let message = with_sources(self);
        let line = match self {
            Self::Client(ClientError::Refused { code, kind, message, cure }) if json => {
                json!({"error": {"code": code, "kind": kind, "message": message, "cure": cure}}).to_string()
            }
            _ if json => json!({"error": {"message": message}}).to_string(),
            _ => format!("ringdrive: {}", show::printable(&message)),
        };
        // There is nowhere else to say that standard error cannot be written.
        let _ = writeln!(io::stderr(), "{line}");
    }
}

/// The whole program.
pub fn run() -> ExitCode {
    let arguments = Arguments::parse();
    match execute(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        // Who closes our output has read enough.
        Err(Failure::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(failure) => {
            failure.report(arguments.json);
            ExitCode::from(failure.exit_code())
        }
    }
}

fn execute(arguments: &Arguments) -> Result<(), Failure> {
    match &arguments.command {
        Command::Completions { shell } => {
            // Into memory first: clap_complete panics where it cannot write.
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Arguments::command(), "ringdrive", &mut script);
            print(&script)
        }
        Command::Man { dir } => {
            man_pages(dir).map_err(|source| Failure::Man { path: dir.display().to_string(), source })
        }
        Command::Events { events } => follow(arguments, events),
        Command::Stats(stats) => stats::run(arguments, stats),
        Command::Overlay(overlay) => overlay::run(arguments, overlay),
        Command::Version => version(arguments),
        command => {
            let (method, params, file) = request(command)?;
            let file = file.as_ref().map(AsFd::as_fd);
            let result = match command {
                Command::Insert(insert)
                    if !insert.send_fd
                        && (insert.url.download || !insert.raw && may_be_packed(&insert.file)) =>
                {
                    download::run(arguments, "insert", &params)?
                }
                _ => connect(arguments)?.call(method, &params, file)?,
            };
            match arguments.json {
                true => print(format!("{result}\n").as_bytes()),
                false => print(answer(command, &result)?.as_bytes()),
            }
        }
    }
}

/// Whether all of an image may have to be fetched or expanded first.
fn may_be_packed(file: &Path) -> bool {
    file.to_str().is_some_and(is_url) || Expander::is_compressed(file)
}

/// `ringdrive.1` with a page for each subcommand, and `ringdrived.8`.
fn man_pages(dir: &Path) -> io::Result<()> {
    clap_mangen::generate_to(Arguments::command(), dir)?;
    let mut page = Vec::new();
    clap_mangen::Man::new(DaemonArgs::command()).section("8").render(&mut page)?;
    std::fs::write(dir.join("ringdrived.8"), page)
}

fn connect(arguments: &Arguments) -> Result<Client, ClientError> {
    Client::connect(&arguments.socket, arguments.timeout)
}

/// The call that a subcommand makes, and the file that goes with it.
fn request(command: &Command) -> Result<(&'static str, Value, Option<File>), Failure> {
    let params = |drive: &str, key: Option<&String>, more: Value| {
        let mut params = Map::from_iter([("drive".to_owned(), args::drive(drive))]);
        // An exported variable that is empty is no key.
        params.extend(key.filter(|key| !key.is_empty()).map(|key| ("key".to_owned(), json!(key))));
        if let Value::Object(more) = more {
            params.extend(more);
        }
        Value::Object(params)
    };
    Ok(match command {
        Command::Insert(insert) => {
            let (more, file) = image(insert)?;
            ("insert", params(&insert.drive, insert.key.key.as_ref(), more), file)
        }
        Command::Eject(eject) => {
            ("eject", params(&eject.drive, eject.key.key.as_ref(), json!({"force": eject.force})), None)
        }
        Command::Lock(lock) => ("lock", params(&lock.drive, lock.key.key.as_ref(), json!({})), None),
        Command::Unlock(unlock) => {
            ("unlock", params(&unlock.drive, unlock.key.key.as_ref(), json!({"force": unlock.force})), None)
        }
        Command::Set(set) => ("set", params(&set.drive, set.key.key.as_ref(), set.setting.params()), None),
        Command::Replug => ("replug", json!({}), None),
        Command::Shutdown => ("shutdown", json!({}), None),
        _ => ("state", json!({}), None),
    })
}

/// The parameters of `insert` that say which image and how.
fn image(insert: &args::Insert) -> Result<(Value, Option<File>), Failure> {
    let mut params = Map::new();
    if let Some(url) = insert.file.to_str().filter(|file| !insert.send_fd && is_url(file)) {
        return match insert.overlay {
            Some(_) => Err(Failure::UrlOverlay),
            None => Ok((url_params(insert, url)?, None)),
        };
    }
    let args::Url { sha256, sha256sums, keep, download, credentials } = &insert.url;
    let alone = [
        ("--sha256", sha256.is_some()),
        ("--sha256sums", *sha256sums),
        ("--keep", *keep),
        ("--download", *download),
        ("--credentials", credentials.is_some()),
    ];
    if let Some((option, _)) = alone.into_iter().find(|(_, given)| *given) {
        return Err(Failure::NoUrl(option));
    }
    let open_error = |source| Failure::Open { path: insert.file.display().to_string(), source };
    let path = std::path::absolute(&insert.file).map_err(open_error)?;
    if insert.rw || insert.ro || insert.send_fd {
        params.insert("rw".to_owned(), json!(insert.rw));
    }
    if let Some(kind) = &insert.kind {
        params.insert("kind".to_owned(), json!(kind));
    }
    params.extend(manner(insert));
    if let Some(overlay) = &insert.overlay {
        let tmp = Path::new("tmp");
        let path =
            if overlay == tmp { tmp.to_owned() } else { std::path::absolute(overlay).map_err(open_error)? };
        let path = path.to_str().ok_or_else(|| Failure::Path(path.clone()))?;
        params.insert("overlay".to_owned(), json!(path));
    }
    if !insert.send_fd {
        let path = path.to_str().ok_or_else(|| Failure::Path(path.clone()))?;
        params.insert("path".to_owned(), json!(path));
        return Ok((Value::Object(params), None));
    }
    let file = open(&path, insert.rw).map_err(open_error)?;
    params.insert("fd".to_owned(), json!(true));
    params.insert("name".to_owned(), json!(name(&path)));
    Ok((Value::Object(params), Some(file)))
}

/// The parameters of `insert` that say how its file is to be taken.
fn manner(insert: &args::Insert) -> impl Iterator<Item = (String, Value)> {
    let all = [("raw", insert.raw), ("backing", insert.backing)];
    all.into_iter().filter(|(_, is_set)| *is_set).map(|(key, _)| (key.to_owned(), json!(true)))
}

/// The parameters of `insert` for an image behind a URL.
fn url_params(insert: &args::Insert, url: &str) -> Result<Value, Failure> {
    let mut params = Map::from_iter([("url".to_owned(), json!(url))]);
    if insert.rw || insert.ro {
        params.insert("rw".to_owned(), json!(insert.rw));
    }
    let args::Url { sha256, sha256sums, keep, download, credentials } = &insert.url;
    let text = |key: &str, value: &Option<String>| value.as_ref().map(|value| (key.to_owned(), json!(value)));
    params.extend(text("kind", &insert.kind));
    params.extend(manner(insert));
    params.extend(text("sha256", sha256));
    if let Some(path) = credentials {
        let open_error = |source| Failure::Open { path: path.display().to_string(), source };
        let path = std::path::absolute(path).map_err(open_error)?;
        let path = path.to_str().ok_or_else(|| Failure::Path(path.clone()))?;
        params.insert("credentials".to_owned(), json!(path));
    }
    for (key, on) in [("sha256sums", sha256sums), ("keep", keep), ("download", download)] {
        if *on {
            params.insert(key.to_owned(), json!(true));
        }
    }
    Ok(Value::Object(params))
}

/// Non-blocking, so that a FIFO is the daemon's to refuse and not ours to hang on.
fn open(path: &Path, rw: bool) -> io::Result<File> {
    OpenOptions::new().read(true).write(rw).custom_flags(libc::O_NONBLOCK).open(path)
}

/// The path, or as much of its end as a name may have.
fn name(path: &Path) -> String {
    let path = path.to_string_lossy();
    let start = path.char_indices().map(|(at, _)| at).find(|at| path.len() - at <= 255);
    path.get(start.unwrap_or(0)..).unwrap_or_default().to_owned()
}

/// The answer in words.
fn answer(command: &Command, result: &Value) -> Result<String, Failure> {
    #[derive(Deserialize)]
    struct Inserted {
        drive: u16,
        image: ImageState,
    }
    #[derive(Deserialize)]
    struct Ejected {
        drive: u16,
        image: String,
    }
    #[derive(Deserialize)]
    struct Locked {
        key: String,
    }
    Ok(match command {
        Command::Insert(_) => {
            let Inserted { drive, image } = show::typed(result)?;
            format!("drive {drive}: inserted {}\n", show::image(&image))
        }
        Command::Eject(_) => {
            let Ejected { drive, image } = show::typed(result)?;
            format!("drive {drive}: ejected {}\n", show::printable(&image))
        }
        // Alone on its line, for `$(…)`.
        Command::Lock(_) => show::typed::<Locked>(result)?.key + "\n",
        Command::State => show::state(result)?,
        _ => String::new(),
    })
}

fn version(arguments: &Arguments) -> Result<(), Failure> {
    #[derive(Deserialize)]
    struct Version {
        version: String,
    }
    let client = env!("CARGO_PKG_VERSION");
    let result = connect(arguments)?.call("version", &json!({}), None)?;
    let Version { version } = show::typed(&result)?;
    match arguments.json {
        true => print(format!("{}\n", json!({"ringdrive": client, "ringdrived": version})).as_bytes()),
        false => print(format!("ringdrive {client}\nringdrived {version}\n").as_bytes()),
    }
}

/// The signals that ask us to end, which from now on wait to be taken.
fn blocked_ends() -> Result<SigSet, Failure> {
    let ends = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM]);
    ends.thread_block().map_err(Failure::Wait)?;
    Ok(ends)
}

/// Prints events until the daemon ends, or a signal asks us to.
fn follow(arguments: &Arguments, events: &[String]) -> Result<(), Failure> {
    let ends = blocked_ends()?;
    let signals = SignalFd::with_flags(&ends, SfdFlags::SFD_CLOEXEC).map_err(Failure::Wait)?;
    let mut client = connect(arguments)?;
    let params = if events.is_empty() { json!({}) } else { json!({"events": events}) };
    client.call("subscribe", &params, None)?;
    loop {
        while client.has_buffered() {
            if let Some(event) = client.notification(Some(Duration::ZERO))? {
                print_event(&event, arguments.json)?;
            }
        }
        let stdout = io::stdout();
        let mut fds = [
            PollFd::new(client.as_fd(), PollFlags::POLLIN),
            PollFd::new(signals.as_fd(), PollFlags::POLLIN),
            // No flags: to learn that nobody reads any more, without having to write.
            PollFd::new(stdout.as_fd(), PollFlags::empty()),
        ];
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) => {}
            Err(Errno::EINTR) => continue,
            Err(errno) => return Err(Failure::Wait(errno)),
        }
        let [socket, signal, output] = fds.map(|fd| fd.any().unwrap_or(true));
        if signal || output {
            return Ok(());
        }
        if socket && let Some(event) = client.notification(Some(arguments.timeout))? {
            print_event(&event, arguments.json)?;
        }
    }
}

fn print_event(notification: &Value, json: bool) -> Result<(), Failure> {
    if !json {
        return print(show::notification(notification)?.as_bytes());
    }
    let mut params = notification.get("params").cloned().unwrap_or_default();
    if notification.get("method") == Some(&json!("lagged")) {
        params["event"] = json!("lagged");
    }
    print(format!("{params}\n").as_bytes())
}

fn print(bytes: &[u8]) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(bytes).and_then(|()| stdout.flush()).map_err(Failure::Output)
}
