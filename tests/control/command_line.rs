//! `ringdrive`, the program, against the fake drives.

use std::fs::{self, Permissions};
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Group, Pid, geteuid};
use ringdrive::drive::Event;
use serde_json::{Value, json};

use crate::fake::{Fake, Mood};

pub(crate) fn ringdrive(socket: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringdrive"));
    command.env_remove("RINGDRIVE_KEY").env("RINGDRIVE_SOCKET", socket).stdin(Stdio::null());
    command
}

struct Ran {
    code: i32,
    stdout: String,
    stderr: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code().expect("no signal"),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

impl Fake {
    fn run(&self, arguments: &[&str]) -> Ran {
        ringdrive(&self.socket()).current_dir(self.dir.path()).args(arguments).output().unwrap().into()
    }

    #[track_caller]
    pub(crate) fn says(&self, arguments: &[&str]) -> String {
        let ran = self.run(arguments);
        assert_eq!((ran.code, ran.stderr.as_str()), (0, ""), "{arguments:?}: {}", ran.stdout);
        ran.stdout
    }

    #[track_caller]
    pub(crate) fn fails(&self, arguments: &[&str], code: i32, says: &str) {
        let ran = self.run(arguments);
        assert_eq!((ran.code, ran.stdout.as_str()), (code, ""), "{arguments:?}: {}", ran.stderr);
        assert!(ran.stderr.contains(says), "{arguments:?}: {}", ran.stderr);
    }
}

#[test]
fn a_day_with_two_drives() {
    let fake = Fake::start();
    let iso = fake.image("a.iso", 6_193_152);
    let iso = iso.to_str().unwrap();
    fake.image("b.img", 4096);
    assert_eq!(
        fake.says(&["insert", "cd", "a.iso"]),
        format!("drive 0: inserted {iso} (6.1 MB, read-only)\n")
    );
    fake.fails(&["insert", "0", "a.iso"], 1, "eject it first");
    let no_key = ringdrive(&fake.socket()).env("RINGDRIVE_KEY", "").args(["lock", "flash"]).output().unwrap();
    let key = Ran::from(no_key).stdout;
    let key = key.trim();
    fake.fails(&["set", "flash", "--rw", "on"], 1, "is locked");
    assert_eq!(fake.says(&["set", "flash", "--rw", "on", "--key", key]), "");
    let b = fake.dir.path().join("b.img").display().to_string();
    assert_eq!(
        fake.says(&["insert", "flash", "b.img", "--key", key]),
        format!("drive 1: inserted {b} (4.0 kB, read-write)\n")
    );
    assert_eq!(
        fake.says(&["state"]),
        format!(
            "DRIVE  NAME   KIND     MODE  SIZE    HOST        FLAGS   IMAGE\n\
             0      cd     optical  ro    6.1 MB  high speed  -       {iso}\n\
             1      flash  disk     rw    4.0 kB  high speed  locked  {b}\n"
        )
    );
    fake.mood(Mood::Prevented(true));
    fake.fails(&["eject", "cd"], 1, "the host prevents removal");
    assert_eq!(fake.says(&["eject", "cd", "--force"]), format!("drive 0: ejected {iso}\n"));
    fake.says(&["unlock", "flash", "--force"]);
    fake.says(&["replug"]);
    fake.says(&["shutdown"]);
    assert_eq!(fake.daemon.try_iter().collect::<Vec<_>>(), ["replug", "replugged", "shutdown"]);
}

#[test]
fn json_is_what_the_daemon_said() {
    let fake = Fake::start();
    let state: Value = serde_json::from_str(&fake.says(&["state", "--json"])).unwrap();
    assert_eq!((&state["drives"][0]["name"], &state["drives"][1]["lun"]), (&json!("cd"), &json!(1)));
    let version: Value = serde_json::from_str(&fake.says(&["--json", "version"])).unwrap();
    assert_eq!(version["ringdrive"], version["ringdrived"]);
    let ran = fake.run(&["--json", "eject", "cd"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (1, ""));
    let error: Value = serde_json::from_str(&ran.stderr).unwrap();
    assert_eq!((&error["error"]["kind"], &error["error"]["code"]), (&json!("empty"), &json!(6)));
}

#[test]
fn a_file_is_passed_by_descriptor_when_asked() {
    let fake = Fake::start();
    let path = fake.image("a.img", 4096);
    let said = fake.says(&["insert", "flash", "a.img", "--send-fd", "--rw", "--json"]);
    let said: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(
        said["image"],
        json!({"name": path, "bytes": 4096, "rw": true, "first_read": false, "source": "online"})
    );
    fake.fails(&["insert", "cd", "none.iso", "--send-fd"], 5, "cannot open");
    nix::unistd::mkfifo(&fake.dir.path().join("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    fake.fails(&["insert", "cd", "fifo", "--send-fd"], 1, "try a regular file");
}

#[test]
fn wrong_usage_is_2_and_says_what_is_right() {
    let fake = Fake::start();
    fake.fails(&[], 2, "Usage: ringdrive");
    fake.fails(&["isnert"], 2, "insert");
    fake.fails(&["set", "cd"], 2, "--stall");
    fake.fails(&["set", "cd", "--rw", "on", "--kind", "disk"], 2, "cannot be used with");
    fake.fails(&["insert", "cd"], 2, "<FILE|URL>");
    fake.fails(&["insert", "cd", "a", "--rw", "--ro"], 2, "cannot be used with");
    fake.fails(&["insert", "cd", "a", "--keep"], 2, "--keep goes with a URL");
    fake.fails(&["insert", "cd", "http://h/", "--sha256", "0", "--sha256sums"], 2, "cannot be used with");
    fake.fails(&["events", "lunch"], 2, "first_read");
    for timeout in ["0", "-1", "NaN", "inf", "1e99", "soon"] {
        fake.fails(&[&format!("--timeout={timeout}"), "state"], 2, "try 30");
    }
}

#[test]
fn a_daemon_that_is_not_there_is_3() {
    let dir = tempfile::tempdir().unwrap();
    let gone = dir.path().join("gone.sock");
    drop(UnixListener::bind(&gone).unwrap());
    for socket in [dir.path().join("none"), gone, dir.path().join("x".repeat(200))] {
        let ran = Ran::from(ringdrive(&socket).arg("state").output().unwrap());
        assert_eq!(ran.code, 3, "{}", ran.stderr);
        assert!(ran.stderr.contains("is it running"), "{}", ran.stderr);
    }
}

#[test]
fn another_user_is_turned_away_unless_in_the_group() {
    const NOBODY: u32 = 65_534;
    let group = Group::from_gid(NOBODY.into()).unwrap();
    let (true, Some(group)) = (geteuid().is_root(), group) else {
        eprintln!("skipped: only root can be somebody else, and group {NOBODY} must exist");
        return;
    };
    let enter = |fake: &Fake| {
        fs::set_permissions(fake.dir.path(), Permissions::from_mode(0o755)).unwrap();
        let mut command = ringdrive(&fake.socket());
        Ran::from(command.uid(NOBODY).gid(NOBODY).arg("state").output().unwrap())
    };
    let stranger = Fake::start();
    let ran = enter(&stranger);
    assert_eq!(ran.code, 3, "the file's mode keeps strangers out: {}", ran.stderr);
    fs::set_permissions(stranger.socket(), Permissions::from_mode(0o666)).unwrap();
    let ran = enter(&stranger);
    assert_eq!(ran.code, 1, "so does the daemon: {}", ran.stderr);
    assert!(ran.stderr.contains("user 65534 may not use this socket; become a member"), "{}", ran.stderr);
    let member = Fake::start_for(Some(group.name));
    let ran = enter(&member);
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""));
}

#[test]
fn a_daemon_that_does_not_answer_is_4() {
    let fake = Fake::start();
    fake.mood(Mood::Deaf);
    fake.fails(&["state", "--timeout", "0.2"], 4, "no answer within 0.2 s");
}

#[test]
fn a_daemon_that_hangs_up_or_talks_nonsense_is_5() {
    for (answer, says) in [("", "ended the connection"), ("nonsense\n", "does not understand")] {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s");
        let listener = UnixListener::bind(&socket).unwrap();
        let child = ringdrive(&socket).arg("state").stderr(Stdio::piped()).spawn().unwrap();
        let (stream, _) = listener.accept().unwrap();
        BufReader::new(&stream).read_line(&mut String::new()).unwrap();
        std::io::Write::write_all(&mut &stream, answer.as_bytes()).unwrap();
        drop(stream);
        let ran = Ran::from(child.wait_with_output().unwrap());
        assert_eq!(ran.code, 5, "{}", ran.stderr);
        assert!(ran.stderr.contains(says), "{}", ran.stderr);
    }
}

/// `ringdrive events …`, which has shown one event already.
fn following(fake: &Fake, arguments: &[&str]) -> (Child, BufReader<std::process::ChildStdout>, String) {
    let mut command = ringdrive(&fake.socket());
    let command = command.arg("events").args(arguments).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    // Published until the program has subscribed.
    let events = fake.events.clone();
    let (stop, stopped) = crossbeam_channel::bounded::<()>(0);
    let publisher = std::thread::spawn(move || {
        while stopped.recv_timeout(std::time::Duration::from_millis(5)).is_err_and(|e| e.is_timeout()) {
            events.publish(Event::Reset { function: "usb0\u{1b}[2J".to_owned() });
        }
    });
    let mut line = String::new();
    output.read_line(&mut line).unwrap();
    drop(stop);
    publisher.join().unwrap();
    (child, output, line)
}

#[test]
fn events_are_printed_until_interrupted() {
    let fake = Fake::start();
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let (mut child, mut output, line) = following(&fake, &[]);
        assert_eq!(line, "function usb0\\u{1b}[2J: the host sent a reset\n", "no name steers the terminal");
        kill(Pid::from_raw(child.id().try_into().unwrap()), signal).unwrap();
        output.read_to_string(&mut String::new()).unwrap();
        assert_eq!(child.wait().unwrap().code(), Some(0));
    }
}

#[test]
fn events_end_when_nobody_reads_them_any_more() {
    let fake = Fake::start();
    let (mut child, output, line) = following(&fake, &["reset", "--json"]);
    assert_eq!(serde_json::from_str::<Value>(&line).unwrap()["event"], "reset");
    drop(output);
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn events_end_with_the_daemon() {
    let mut fake = Fake::start();
    let (mut child, _output, _) = following(&fake, &[]);
    fake.stop_server();
    assert_eq!(child.wait().unwrap().code(), Some(5));
}

#[test]
fn output_to_a_closed_pipe_is_no_error() {
    let fake = Fake::start();
    for arguments in [&["state"][..], &["completions", "bash"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = ringdrive(&fake.socket());
        let output = command.args(arguments).stdout(writer).stderr(Stdio::piped()).output().unwrap();
        assert_eq!((output.status.code(), output.stderr.len()), (Some(0), 0), "{arguments:?}");
    }
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let output = ringdrive(&fake.socket()).arg("state").stdout(full).stderr(Stdio::piped()).output().unwrap();
    assert_eq!(output.status.code(), Some(5));
}

#[test]
fn help_completions_and_man_pages_know_every_subcommand() {
    let fake = Fake::start();
    let subcommands = [
        "state",
        "stats",
        "insert",
        "eject",
        "lock",
        "unlock",
        "set",
        "replug",
        "events",
        "version",
        "shutdown",
        "completions",
        "man",
    ];
    let help = fake.says(&["--help"]);
    let bash = fake.says(&["completions", "bash"]);
    fake.says(&["man", "."]);
    for subcommand in subcommands {
        assert!(help.contains(&format!("\n  {subcommand} ")), "{help}");
        assert!(
            bash.contains(&format!("ringdrive__subcmd__{subcommand}"))
                || bash.contains(&format!("ringdrive__{subcommand}"))
        );
        let page =
            std::fs::read_to_string(fake.dir.path().join(format!("ringdrive-{subcommand}.1"))).unwrap();
        assert!(page.contains(".TH"), "{page}");
    }
    for code in 0..=5 {
        assert!(help.contains(&format!("\n  {code}  ")), "{help}");
    }
    let page = std::fs::read_to_string(fake.dir.path().join("ringdrive.1")).unwrap();
    assert!(page.contains("Exit codes"), "{page}");
    let page = std::fs::read_to_string(fake.dir.path().join("ringdrived.8")).unwrap();
    for part in [".TH ringdrived 8", "\\-\\-config", "SIGTERM", "RUST_LOG"] {
        assert!(page.contains(part), "{part} is not in {page}");
    }
    for shell in ["zsh", "fish", "elvish", "powershell"] {
        assert!(fake.says(&["completions", shell]).contains("unlock"));
    }
    fake.fails(&["man", "/nonexistent"], 5, "existing directory");
}
