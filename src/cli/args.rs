//! What `ringdrive` understands; its help, completions and man pages are made of this.

use std::path::PathBuf;
use std::time::Duration;

use clap::builder::PossibleValuesParser;
use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;
use serde_json::{Value, json};

use crate::config::SOCKET_DEFAULT;
use crate::control::protocol::EVENTS;

const EXAMPLES_AND_EXIT_CODES: &str = "\
Examples:
  See what is in the drives:
    ringdrive state
  Give the host another CD:
    ringdrive eject cd && ringdrive insert cd debian.iso
  A disk that the host may write to:
    ringdrive insert flash disk.img --rw
  A file that only you may read, not the daemon:
    ringdrive insert 0 private.iso --send-fd
  Make the empty flash drive a second CD drive:
    ringdrive set flash --kind optical
  An image behind a URL, streamed at once:
    ringdrive insert cd https://files.example/debian.iso --sha256sums
  Follow what happens, a JSON object a line:
    ringdrive events --json inserted ejected
  Watch how fast the host reads, and how long it waits:
    ringdrive stats cd
  A disk whose image stays as it is, whatever the host writes:
    ringdrive insert flash golden.img --overlay test-1.qcow2
    ringdrive overlay discard flash
  Keep others out for a while:
    export RINGDRIVE_KEY=$(ringdrive lock cd)
    ringdrive insert cd debian.iso
    ringdrive unlock cd

Exit codes:
  0  done
  1  the daemon refused, and said why
  2  wrong usage
  3  the daemon cannot be reached
  4  no answer in time; it may still be done
  5  anything else: a file cannot be opened, connection lost, output cannot be written";

const GLOBAL: &str = "Options of every command";

/// Insert images into the virtual USB drives of a running ringdrived, eject them, and watch.
#[derive(Debug, Parser)]
#[command(name = "ringdrive", version, after_long_help = EXAMPLES_AND_EXIT_CODES, max_term_width = 100)]
pub(super) struct Arguments {
    /// The daemon's control socket.
    #[arg(long, global = true, help_heading = GLOBAL, env = "RINGDRIVE_SOCKET", default_value = SOCKET_DEFAULT, value_name = "PATH")]
    pub(super) socket: PathBuf,
    /// How long to wait for an answer, in seconds.
    #[arg(long, global = true, help_heading = GLOBAL, default_value = "30", value_parser = seconds, value_name = "SECONDS")]
    pub(super) timeout: Duration,
    /// Print JSON instead of text, one object a line; errors too, on standard error.
    #[arg(long, global = true, help_heading = GLOBAL)]
    pub(super) json: bool,
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Show all drives.
    State,
    /// Show what the drives have done: throughput, commands, latencies. On a terminal a live view.
    Stats(Stats),
    /// Put an image (a file, a block device, or a URL) into an empty drive.
    Insert(Insert),
    /// Take the image out of a drive, once all that the host wrote is stored.
    Eject(Eject),
    /// Keep other clients from changing a drive; prints the key that lets you.
    Lock(Lock),
    /// Let other clients change a drive again.
    Unlock(Unlock),
    /// Change a setting of a drive.
    Set(Set),
    /// Keep, drop or copy what the host wrote to an image with an overlay.
    Overlay(Overlay),
    /// Unplug the whole gadget from the host and plug it in again, keyboard and mouse too.
    Replug,
    /// Print events as they happen, until interrupted.
    Events {
        /// Only these; all if none is named.
        #[arg(value_parser = PossibleValuesParser::new(EVENTS), value_name = "EVENT")]
        events: Vec<String>,
    },
    /// Print the versions of this program and of the daemon.
    Version,
    /// End the daemon; its gadget goes with it.
    Shutdown,
    /// Print a completion script: `ringdrive completions bash > /etc/bash_completion.d/ringdrive`.
    Completions {
        /// For which shell.
        shell: Shell,
    },
    /// Write the man pages into a directory: ringdrive's, of section 1, and ringdrived's, of section 8.
    Man {
        /// An existing directory.
        dir: PathBuf,
    },
}

#[derive(Debug, Args)]
pub(super) struct Key {
    /// The key of a locked drive.
    #[arg(long, env = "RINGDRIVE_KEY", hide_env_values = true)]
    pub(super) key: Option<String>,
}

const STATS_HELP: &str = "\
Examples:
  Watch all drives, until Ctrl-C:
    ringdrive stats
  Once, for a report:
    ringdrive stats --once
  A line of JSON every ten seconds, for a monitoring system:
    ringdrive stats --json --interval 10s

What is counted:
  READ, WRITTEN     bytes of the image, of commands that came to their end
  LATENCY           from the arrival of a command until its status is queued; up to 1/16 too high
  other             commands that moved nothing of the image, refused ones too
  check conditions  failed commands, after which the host asks why; some at each start are no trouble
  phase errors      commands whose data the host expected otherwise than the command says
  aborted           commands that a reset or a pulled plug broke off; counted nowhere else
  from memory       reads that found every byte in the board's memory

The counts begin when the daemon starts. Nothing resets them: `now` is the difference of two looks.";

#[derive(Debug, Args)]
#[command(after_long_help = STATS_HELP)]
pub(super) struct Stats {
    /// Number or name of the drive; all if none is named.
    pub(super) drive: Option<String>,
    /// Time between two looks, such as 1s or 500ms: of the live view (default 1s), or with --json of objects, one a line.
    #[arg(long, conflicts_with = "once", value_parser = interval, value_name = "TIME")]
    pub(super) interval: Option<Duration>,
    /// Look once and end, as always where the output is no terminal and --json has no --interval.
    #[arg(long)]
    pub(super) once: bool,
}

const INSERT_HELP: &str = "\
Examples:
  A file that the daemon may read:
    ringdrive insert cd debian.iso
  From a web server; the host can read it at once, and the rest is fetched meanwhile:
    ringdrive insert cd https://files.example/debian.iso
  The same, checked when it is whole, and kept as a file in the cache directory under kept/:
    ringdrive insert cd https://files.example/debian.iso --sha256sums --keep
  From a server without byte ranges, which must be downloaded first:
    ringdrive insert cd http://old.example/tools.iso --download
  A compressed image, or a qcow2 file, is fetched whole and unpacked before the host sees it:
    ringdrive insert flash https://files.example/raspios.img.xz
  A disk that the host may write to, while its image stays as it is:
    ringdrive insert flash golden.img --overlay test-1.qcow2
  The same, and what was written is gone with the eject:
    ringdrive insert flash golden.img --overlay tmp
  A disk in a qcow2 file, with the one below it that it names:
    ringdrive insert flash vm.qcow2 --backing
  With a password or token, from a file that only the daemon's user may read:
    ringdrive insert cd https://files.example/private.iso --credentials /etc/ringdrive/credentials

A line of that file is `https://files.example basic USER PASSWORD` or `https://files.example bearer TOKEN`.
Quote URLs: a shell takes & and ? as its own. Nothing shows their query and password again, but the list of processes and your
shell's history may. `ringdrive state` shows how much is here; docs/urls.md explains every error.";

#[derive(Debug, Args)]
#[command(after_long_help = INSERT_HELP)]
pub(super) struct Insert {
    /// Number or name of the drive.
    pub(super) drive: String,
    /// The image: a path, or a URL with http:// or https://.
    #[arg(value_hint = clap::ValueHint::FilePath, value_name = "FILE|URL")]
    pub(super) file: PathBuf,
    /// Let the host write to it; default: the drive's setting.
    #[arg(long, conflicts_with = "ro")]
    pub(super) rw: bool,
    /// Do not let the host write to it.
    #[arg(long)]
    pub(super) ro: bool,
    /// Let the host write to this file instead of the image, or to one that is gone with the eject (tmp). A new file is made; one
    /// that is there is gone on with.
    #[arg(long, value_name = "FILE|tmp", value_hint = clap::ValueHint::FilePath, conflicts_with_all = ["ro", "send_fd"])]
    pub(super) overlay: Option<PathBuf>,
    /// Read the backing files, too, that a qcow2 image names: whoever made it chose which files of this machine those are.
    #[arg(long, conflicts_with_all = ["raw", "send_fd"])]
    pub(super) backing: bool,
    /// Show the host the bytes of the file as they are, also of one that is compressed, a qcow2 file, or the like.
    #[arg(long)]
    pub(super) raw: bool,
    /// Refuse unless the drive is of this kind.
    #[arg(long, value_parser = ["optical", "disk"])]
    pub(super) kind: Option<String>,
    /// Open the file here and pass it over the socket, for files that the daemon cannot reach. Read-only without --rw.
    #[arg(long, conflicts_with_all = ["sha256", "sha256sums", "keep", "download", "credentials"])]
    pub(super) send_fd: bool,
    #[command(flatten)]
    pub(super) url: Url,
    #[command(flatten)]
    pub(super) key: Key,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Options of a URL")]
pub(super) struct Url {
    /// What the whole image must be; otherwise it is no longer served.
    #[arg(long, value_name = "DIGEST")]
    pub(super) sha256: Option<String>,
    /// The same, from the file SHA256SUMS beside the image.
    #[arg(long, conflicts_with = "sha256")]
    pub(super) sha256sums: bool,
    /// Once it is whole, keep it as a file of its own.
    #[arg(long)]
    pub(super) keep: bool,
    /// Insert it when it is whole, and not before.
    #[arg(long)]
    pub(super) download: bool,
    /// Who to be to which server.
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    pub(super) credentials: Option<PathBuf>,
}

const OVERLAY_HELP: &str = "\
TARGET is the number or name of a drive, or, with a / in it, the file of an overlay that is in no drive. Such a file needs no
daemon, but the right to write to it and, for a commit, to its image.

Examples:
  How much the host has written:
    ringdrive overlay status flash
  Back to the golden image; the host sees another medium:
    ringdrive overlay discard flash
  The golden image is what the host made of it; the drive is empty meanwhile:
    ringdrive overlay commit flash
  A copy of what the host sees:
    ringdrive overlay export flash /srv/images/copy.img
  The same of one that was ejected:
    ringdrive overlay export ./test-1.qcow2 copy.img

An overlay is a qcow2 file over a raw image: when it is in no drive, qemu-img reads it as well. docs/overlays.md has the rest.";

#[derive(Debug, Args)]
#[command(after_long_help = OVERLAY_HELP)]
pub(super) struct Overlay {
    #[command(subcommand)]
    pub(super) action: OverlayAction,
}

#[derive(Debug, Subcommand)]
pub(super) enum OverlayAction {
    /// Show the overlay's file, its image, and how much was written.
    Status {
        /// A drive, or a file.
        target: String,
    },
    /// Write what the host wrote to the image, and begin the overlay anew. The drive is empty meanwhile.
    Commit(OverlayChange),
    /// Drop what the host wrote. The host sees another medium.
    Discard(OverlayChange),
    /// Copy what the host sees into a new file, as a raw image. Fails if the host writes meanwhile.
    Export {
        #[command(flatten)]
        change: OverlayChange,
        /// The new file.
        #[arg(value_hint = clap::ValueHint::FilePath)]
        file: PathBuf,
    },
}

#[derive(Debug, Args)]
pub(super) struct OverlayChange {
    /// A drive, or a file.
    pub(super) target: String,
    /// Even if the host has the drive in use; what it still keeps in memory is lost then.
    #[arg(long, short)]
    pub(super) force: bool,
    #[command(flatten)]
    pub(super) key: Key,
}

impl Overlay {
    pub(super) fn target(&self) -> &str {
        match &self.action {
            OverlayAction::Status { target } => target,
            OverlayAction::Commit(change)
            | OverlayAction::Discard(change)
            | OverlayAction::Export { change, .. } => &change.target,
        }
    }
}

#[derive(Debug, Args)]
pub(super) struct Eject {
    /// Number or name of the drive.
    pub(super) drive: String,
    /// Even if the host has locked it, and even if what the host wrote cannot be stored.
    #[arg(long, short)]
    pub(super) force: bool,
    #[command(flatten)]
    pub(super) key: Key,
}

#[derive(Debug, Args)]
pub(super) struct Lock {
    /// Number or name of the drive.
    pub(super) drive: String,
    #[command(flatten)]
    pub(super) key: Key,
}

#[derive(Debug, Args)]
pub(super) struct Unlock {
    /// Number or name of the drive.
    pub(super) drive: String,
    /// Without its key.
    #[arg(long, short)]
    pub(super) force: bool,
    #[command(flatten)]
    pub(super) key: Key,
}

#[derive(Debug, Args)]
pub(super) struct Set {
    /// Number or name of the drive.
    pub(super) drive: String,
    #[command(flatten)]
    pub(super) setting: Setting,
    #[command(flatten)]
    pub(super) key: Key,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
pub(super) struct Setting {
    /// Whether the next image is inserted writable; only while the drive is empty.
    #[arg(long, value_parser = ["on", "off"])]
    rw: Option<String>,
    /// What the host sees; only while the drive is empty.
    #[arg(long, value_parser = ["optical", "disk"])]
    kind: Option<String>,
    /// How short data phases end; for all drives of the same USB function.
    #[arg(long, value_parser = ["auto", "never"])]
    stall: Option<String>,
}

impl Setting {
    /// As the parameters of `set`.
    pub(super) fn params(&self) -> Value {
        match (&self.rw, &self.kind, &self.stall) {
            (Some(rw), _, _) => json!({"rw": rw == "on"}),
            (_, Some(kind), _) => json!({"kind": kind}),
            (_, _, stall) => json!({"stall": stall}),
        }
    }
}

/// A number is an index: names in the configuration are never numbers.
pub(super) fn drive(drive: &str) -> Value {
    drive.parse::<u64>().map_or_else(|_| json!(drive), |index| json!(index))
}

/// `500ms`, `1s`, or a number of seconds.
fn interval(text: &str) -> Result<Duration, String> {
    let (number, unit) = match (text.strip_suffix("ms"), text.strip_suffix('s')) {
        (Some(number), _) => (number, 0.001),
        (None, Some(number)) => (number, 1.0),
        (None, None) => (text, 1.0),
    };
    let seconds = number.parse::<f64>().map_err(|_| "not a time; try 1s or 500ms".to_owned())? * unit;
    if !(0.1..=3_600.0).contains(&seconds) {
        return Err("not within 100ms and 3600s; try 1s".to_owned());
    }
    Ok(Duration::from_secs_f64(seconds))
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "not a number of seconds; try 30".to_owned())?;
    if !(0.001..=86_400.0).contains(&seconds) {
        return Err("not within 0.001 and 86400 seconds; try 30".to_owned());
    }
    Ok(Duration::from_secs_f64(seconds))
}
