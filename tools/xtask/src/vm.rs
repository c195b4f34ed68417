//! The virtual board: Debian's kernel in QEMU under virtme-ng, with a USB device port (dummy_hcd) wired to its own host.
//!
//! One run is one machine and one directory `board/run-PID-…`, so runs do not meet. The directory holds the script the
//! board executes, a QEMU wrapper, the console's text, and the command's exit status when it has ended.
//!
//! Output: virtme-ng's standard output is the command's. Its standard error is the command's from [`UP`] on; what came
//! before is virtme-ng's own and only shown when the board did not come up.
//!
//! Life: QEMU's wrapper holds a pipe whose other end is ours, and kills QEMU when it closes. So the board ends with this
//! process however that ends, without a signal handler.

use std::env;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;

use crate::quote::{shell_word, shell_words};
use crate::setup::{self, Board};
use crate::{console, project};

/// What the board's script writes to standard error when the command is about to start.
const UP: &[u8] = b"\x01the virtual board is up\n";

/// What the tests and the demo use; `dummy_hcd` is loaded apart, because it takes the speed.
const MODULES: &str = "libcomposite udc-core usb_f_fs usb_f_mass_storage usb_f_hid usbhid usb-storage uas sd_mod sr_mod \
                       sg vfat ext4 nls_cp437 nls_iso8859-1 nls_ascii isofs udf loop";

/// How fast the board's USB link is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Speed {
    /// USB 2.0, 480 Mbit/s
    High,
    /// USB 3.0, 5 Gbit/s
    Super,
}

impl Speed {
    /// As on the command line and in `RINGDRIVE_SPEED`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::High => "high",
            Self::Super => "super",
        }
    }
}

/// Which dummy_hcd carries the link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Link {
    /// Debian's own module: right in function, eight times too fast
    Stock,
    /// The same, rebuilt to carry no more than a cable does; for measurements
    Real,
}

/// The board's flags and its command.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// Speed of the USB link
    #[arg(long, value_enum, default_value_t = Speed::High)]
    pub(crate) speed: Speed,
    /// Count instructions as time, on one CPU, so that measurements repeat
    #[arg(long, conflicts_with = "cpus")]
    pub(crate) icount: bool,
    /// Which dummy_hcd carries the link
    #[arg(long, value_enum, default_value_t = Link::Stock)]
    pub(crate) link: Link,
    /// The board's memory
    #[arg(long, value_name = "SIZE", default_value = "1G")]
    pub(crate) mem: String,
    /// The board's CPUs; more than one boots much slower where this machine is busy
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=64))]
    pub(crate) cpus: u8,
    /// Add to the kernel's command line
    #[arg(long, value_name = "PARAMETER")]
    pub(crate) append: Vec<String>,
    /// Give up when the board has not come up after so many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 240)]
    pub(crate) boot_timeout: u64,
    /// Give up when the command has not ended after so many seconds; 0 waits for ever
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    pub(crate) timeout: u64,
    /// Virtio-serial ports of these names, each behind a Unix socket of this machine
    #[arg(skip)]
    pub(crate) ports: Vec<(String, PathBuf)>,
    /// What to run, and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    pub(crate) command: Vec<OsString>,
}

impl Args {
    /// `command` with the defaults of the command line.
    pub(crate) fn new(speed: Speed, command: Vec<OsString>) -> Self {
        let (mem, link) = ("1G".to_owned(), Link::Stock);
        let (append, ports) = (Vec::new(), Vec::new());
        Self {
            speed,
            icount: false,
            link,
            mem,
            cpus: 1,
            append,
            boot_timeout: 240,
            timeout: 0,
            ports,
            command,
        }
    }
}

/// `cargo xtask vm`.
///
/// # Errors
/// The board could not be set up, did not come up, or died; not the command's own failure.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    run_with(args, to_stdout).map(ExitCode::from)
}

/// Passes a piece of output on at once, so that an unfinished line shows.
pub(crate) fn to_stdout(piece: &[u8]) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(piece)?;
    stdout.flush()
}

/// Runs the command and hands each piece of its standard output to `out`; its standard error is ours.
///
/// Gives the exit status as a shell does: 128 and the signal's number for a command that a signal ended.
pub(crate) fn run_with(args: &Args, mut out: impl FnMut(&[u8]) -> io::Result<()> + Send) -> Result<u8> {
    let board = setup::board(args.link)?;
    let run = Run::prepare(args, &board)?;
    let mut vng = run.start(args, &board)?;
    let lifeline = vng.stdin.take();
    let stdout = vng.stdout.take().context("virtme-ng has no standard output")?;
    let stderr = vng.stderr.take().context("virtme-ng has no standard error")?;
    let (events, happened) = mpsc::channel();
    let ended = thread::scope(|scope| {
        scope.spawn(|| copy(stdout, &mut out));
        let noise = scope.spawn(move || copy_from_up(stderr, &events));
        let ended = watch(args, &happened);
        // Closing the lifeline ends a board that hangs; one that has ended does not mind.
        drop(lifeline);
        (ended, noise.join().unwrap_or_default())
    });
    vng.wait().context("cannot wait for virtme-ng")?;
    run.verdict(args, &ended.0, &ended.1)
}

/// How a run ended, before its files are looked at.
enum Ended {
    /// virtme-ng closed its outputs.
    ByItself,
    NotUpInTime,
    NotDoneInTime,
}

/// Sent once, when the board is up; the sender goes away when virtme-ng closes its outputs.
struct Up;

fn watch(args: &Args, happened: &mpsc::Receiver<Up>) -> Ended {
    match happened.recv_timeout(Duration::from_secs(args.boot_timeout)) {
        Err(RecvTimeoutError::Timeout) => return Ended::NotUpInTime,
        Err(RecvTimeoutError::Disconnected) => return Ended::ByItself,
        Ok(Up) => {}
    }
    let forever = Duration::from_secs(u64::from(u32::MAX));
    let limit = if args.timeout == 0 { forever } else { Duration::from_secs(args.timeout) };
    match happened.recv_timeout(limit) {
        Err(RecvTimeoutError::Timeout) => Ended::NotDoneInTime,
        _ => Ended::ByItself,
    }
}

fn copy(mut from: impl Read, to: &mut impl FnMut(&[u8]) -> io::Result<()>) {
    let mut buffer = [0; 16 * 1024];
    // A reader that went away must not stop the board: go on and drop the rest.
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        let _ = to(buffer.get(..read).unwrap_or_default());
    }
}

/// Passes on what follows [`UP`]; gives what came before.
fn copy_from_up(from: impl Read, events: &mpsc::Sender<Up>) -> String {
    let mut from = BufReader::new(from);
    let mut noise = Vec::new();
    while let Ok(1..) = from.read_until(b'\n', &mut noise) {
        if let Some(before) = noise.len().checked_sub(UP.len())
            && noise.ends_with(UP)
        {
            noise.truncate(before);
            let _ = events.send(Up);
            copy(from, &mut |bytes| io::stderr().write_all(bytes));
            break;
        }
    }
    String::from_utf8_lossy(&noise).into_owned()
}

/// The files of one run; gone when it ends.
struct Run {
    dir: tempfile::TempDir,
    started: Instant,
}

impl Run {
    fn prepare(args: &Args, board: &Board) -> Result<Self> {
        let parent = project::board_dir()?;
        remove_stale(&parent);
        let prefix = format!("run-{}-", std::process::id());
        let dir = tempfile::Builder::new()
            .prefix(&prefix)
            .tempdir_in(&parent)
            .with_context(|| format!("cannot write to {}", parent.display()))?;
        let run = Self { dir, started: Instant::now() };
        run.write_script("on-board", &run.board_script(args, board)?)?;
        run.write_script("qemu", &run.qemu_script(args)?)?;
        Ok(run)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write_script(&self, name: &str, body: &[u8]) -> Result<()> {
        let path = self.file(name);
        fs::write(&path, body).with_context(|| format!("cannot write {}", path.display()))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        Ok(())
    }

    /// What the board executes. udev's daemon would open each drive, lock its medium and read from it, and it may leave
    /// `udevadm control` without effect and without an error; its signal it never misses.
    fn board_script(&self, args: &Args, board: &Board) -> Result<Vec<u8>> {
        let here = env::current_dir().context("the current directory is gone; change to one that exists")?;
        let path = project::path_with(&project::release_dir()?)?;
        let is_super = if args.speed == Speed::Super { "Y" } else { "N" };
        let load_link = match &board.dummy_hcd {
            None => "modprobe dummy_hcd".to_owned(),
            Some(module) => {
                format!("insmod {}", String::from_utf8_lossy(&shell_word(module.as_os_str())))
            }
        };
        let mut script = format!(
            "#!/bin/sh\n\
             modprobe -a {MODULES} || exit 1\n\
             {load_link} is_high_speed=Y is_super_speed={is_super} || exit 1\n\
             mount -t configfs configfs /sys/kernel/config || exit 1\n\
             udevd=$(pidof systemd-udevd) && kill $udevd\n\
             while pidof systemd-udevd >/dev/null; do sleep 0.1; done\n\
             mkdir -p /run/scratch\n\
             export TMPDIR=/run/scratch LANG=C.UTF-8 RINGDRIVE_BOARD=virtual RINGDRIVE_SPEED={}\n",
            args.speed.name()
        )
        .into_bytes();
        for (name, value) in env::vars_os().filter(|(name, _)| is_passed_on(name)) {
            line(&mut script, &[b"export ", name.as_bytes(), b"=", &shell_word(&value)]);
        }
        line(&mut script, &[b"export PATH=", &shell_word(&path)]);
        line(&mut script, &[b"cd ", &shell_word(here.as_os_str()), b" || exit 1"]);
        line(&mut script, &[b"printf '\\001", UP.get(1..UP.len() - 1).unwrap_or_default(), b"\\n' >&2"]);
        line(&mut script, &[&shell_words(&args.command), b" </dev/null"]);
        line(&mut script, &[b"echo $? >", &shell_word(self.file("status").as_os_str())]);
        Ok(script)
    }

    /// Stands in for QEMU: ends it with our lifeline, and keeps the console that virtme-ng would throw away.
    fn qemu_script(&self, args: &Args) -> Result<Vec<u8>> {
        let console = self.file("console");
        fs::write(&console, b"")?;
        let mut kept = OsString::from("file,id=console,path=");
        kept.push(&console);
        let mut script = b"#!/bin/bash\n\
            args=()\n\
            for arg in \"$@\"; do\n"
            .to_vec();
        line(&mut script, &[b"[ \"$arg\" = file,id=console,path=/dev/null ] && arg=", &shell_word(&kept)]);
        script.extend_from_slice(
            b"args+=(\"$arg\")\n\
            done\n\
            exec 3<&0 </dev/null\n",
        );
        for (number, (name, path)) in args.ports.iter().enumerate() {
            let socket = format!("socket,id=port{number},server=on,wait=off,path={}", path.display());
            let port = format!("virtserialport,name={name},chardev=port{number}");
            let words = ["-chardev".into(), OsString::from(socket), "-device".into(), port.into()];
            line(&mut script, &[b"args+=(", &shell_words(&words), b")"]);
        }
        script.extend_from_slice(
            b"\
            (trap '' INT; cat <&3 >/dev/null; read -r name </proc/$$/comm;\n\
            [ \"$name\" = qemu-system-x86 ] && kill -KILL $$) >/dev/null 2>&1 &\n\
            exec qemu-system-x86_64 \"${args[@]}\" 3<&-\n",
        );
        Ok(script)
    }

    fn start(&self, args: &Args, board: &Board) -> Result<Child> {
        let script = String::from_utf8_lossy(&shell_word(self.file("on-board").as_os_str())).into_owned();
        let mut vng = Command::new(board.virtme_bin.join("vng"));
        vng.arg("--run").arg(board.kernel.image()).args(["--disable-kvm", "--force-9p", "--user", "root"]);
        vng.arg("--memory").arg(&args.mem).arg("--cpus").arg(args.cpus.to_string());
        vng.arg("--qemu").arg(self.file("qemu")).arg("--rwdir").arg(project::target_dir()?);
        vng.args(["--append", "loglevel=5", "--append", "oops=panic"]);
        // An emulated timer comes late on a busy machine, and the kernel would take it for a broken one.
        vng.args(["--append", "no_timer_check"]);
        for parameter in &args.append {
            vng.arg("--append").arg(parameter);
        }
        if args.icount {
            vng.arg("--qemu-opts=-icount shift=0,sleep=off -cpu max,erms=off,fsrm=off");
        }
        vng.arg("--").arg(script);
        vng.env("PATH", project::path_with(&board.virtme_bin)?);
        vng.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        vng.spawn().context("cannot start virtme-ng; remove target/virtme and run `cargo xtask setup`")
    }

    /// Turns what a run left behind into a status or an error.
    fn verdict(&self, args: &Args, ended: &Ended, noise: &str) -> Result<u8> {
        let status = fs::read_to_string(self.file("status")).ok().and_then(|text| text.trim().parse().ok());
        let console = self.file("console");
        let tail = console::tail(&console);
        let seconds = self.started.elapsed().as_secs();
        if let Some(line) = console::death(&console) {
            bail!("the board's kernel died: {}\nthe end of its console:\n{tail}", line.trim());
        }
        // QEMU's own words when Ctrl-C reached it before us.
        if status.is_none() && noise.contains("terminating on signal") {
            bail!("the board was stopped by a signal");
        }
        match (ended, status) {
            (_, Some(status)) => Ok(status),
            (Ended::NotUpInTime, None) => bail!(
                "the board had not come up after {} s; on a busy machine try --boot-timeout\n{}\n\
                 the end of its console:\n{tail}",
                args.boot_timeout,
                noise.trim()
            ),
            (Ended::NotDoneInTime, None) => bail!(
                "the command had not ended after {} s (--timeout)\nthe end of the board's console:\n{tail}",
                args.timeout
            ),
            (Ended::ByItself, None) => bail!(
                "the board ended after {seconds} s without an exit status of the command\n{}\n\
                 the end of its console:\n{tail}",
                noise.trim()
            ),
        }
    }
}

fn line(script: &mut Vec<u8>, parts: &[&[u8]]) {
    script.extend(parts.concat());
    script.push(b'\n');
}

/// The caller's variables that a command on the board sees.
fn is_passed_on(name: &OsStr) -> bool {
    let Some(name) = name.to_str() else { return false };
    let set_here = ["RINGDRIVE_BOARD", "RINGDRIVE_SPEED"].contains(&name);
    let by_prefix = ["RINGDRIVE_", "PROPTEST_", "RUST_"].iter().any(|prefix| name.starts_with(prefix));
    (by_prefix && !set_here) || ["HOME", "CARGO_TARGET_DIR"].contains(&name)
}

/// Removes the directories of runs whose process is gone: Ctrl-C leaves them.
fn remove_stale(parent: &Path) {
    let Ok(entries) = fs::read_dir(parent) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let pid =
            name.to_str().and_then(|name| name.strip_prefix("run-")?.split('-').next()?.parse::<u32>().ok());
        if pid.is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists()) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}
