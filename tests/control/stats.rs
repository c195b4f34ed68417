//! `stats`: the method, and `ringdrive stats` with its live view.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::process::{Child, ChildStdout, Stdio};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::{Winsize, openpty};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use ringdrive::control::protocol::{DriveStats, LatencyStats};
use serde_json::{Value, json};

use crate::command_line::ringdrive;
use crate::fake::{Fake, Mood, PATIENCE, request};

/// What the host did before the test, as the fake drives have it. A second passes with each question.
const REPORT: &str = "\
drive 0, cd, counted for 1 min 0 s
         READ      WRITTEN  COMMANDS
  total  198.6 kB  0 B      8
  LATENCY  MEDIAN  99 %    MAX
  read     799 µs  5.3 ms  5.3 ms
  other    8 µs    24 µs   24 µs
  COMMAND          TOTAL
  READ(10)         4
  TEST UNIT READY  2
  INQUIRY          1
  unknown, d4h     1
  2 check conditions, 0 phase errors, 1 aborted
  75 % of reads from memory, 1 waited for the storage
";

/// 2,000,000 bytes in three seconds, since all drives are asked for once, and each alone.
const READ: Mood = Mood::Read(2_000_000, Duration::from_millis(40));

fn interrupt(child: &Child, signal: Signal) {
    kill(Pid::from_raw(child.id().try_into().unwrap()), signal).unwrap();
}

fn drives(message: &str) -> Vec<DriveStats> {
    let mut object: Value = serde_json::from_str(message).unwrap();
    serde_json::from_value(object["drives"].take()).unwrap()
}

#[test]
fn a_report_is_printed_once_where_the_output_is_no_terminal() {
    for arguments in [&["stats", "cd"][..], &["stats", "0", "--once"], &["stats", "cd", "--interval=5s"]] {
        assert_eq!(Fake::start().says(arguments), REPORT, "{arguments:?}");
    }
    let all = Fake::start().says(&["stats"]);
    let (cd, flash) = all.split_once("\n\n").unwrap();
    assert_eq!(cd.lines().skip(1).collect::<Vec<_>>(), REPORT.lines().skip(1).collect::<Vec<_>>());
    assert!(flash.starts_with("drive 1, flash, "), "{flash}");
    assert!(!flash.contains("LATENCY") && !flash.contains("COMMAND  "), "nothing to tell: {flash}");
}

#[test]
fn what_a_host_decides_the_length_of_comes_for_one_drive_alone() {
    let fake = Fake::start();
    let mut peer = fake.connect();
    let all = peer.ask(&request(1, "stats", &json!({})));
    let all: Vec<DriveStats> = serde_json::from_value(all["result"]["drives"].clone()).unwrap();
    assert_eq!(all.iter().map(|drive| drive.name.as_str()).collect::<Vec<_>>(), ["cd", "flash"]);
    for drive in &all {
        assert_eq!((&drive.opcodes, &drive.latency.read.buckets_us), (&None, &None));
    }
    for named in [json!(0), json!("cd")] {
        let one = peer.ask(&request(1, "stats", &json!({"drive": named})));
        let one: Vec<DriveStats> = serde_json::from_value(one["result"]["drives"].clone()).unwrap();
        let [cd] = &one[..] else { panic!("one drive, not {one:?}") };
        assert_eq!(cd.latency.read.buckets_us.as_deref(), Some(&[(799, 3), (5375, 1)][..]));
        assert_eq!(
            cd.opcodes.iter().flatten().map(|of| of.opcode).collect::<Vec<_>>(),
            [0, 0x12, 0x28, 0xd4]
        );
        let LatencyStats { commands, p50_us, p99_us, max_us, .. } = all[0].latency.read;
        assert_eq!((commands, p50_us, p99_us, max_us), (4, 799, 5375, 5375));
        assert_eq!(cd.latency.read.commands, 4);
    }
}

#[test]
fn stats_of_no_drive_or_with_what_they_do_not_take_are_refused() {
    let fake = Fake::start();
    let mut peer = fake.connect();
    assert_eq!(peer.refused("stats", &json!({"drive": "dc"})), "no_such_drive");
    assert_eq!(peer.refused("stats", &json!({"drive": 2})), "no_such_drive");
    assert_eq!(peer.refused("stats", &json!({"drive": [0]})), "invalid_params");
    assert_eq!(peer.refused("stats", &json!({"reset": true})), "invalid_params");
    fake.fails(&["stats", "dc"], 1, "the drives are 0 \"cd\", 1 \"flash\"");
    for interval in ["0", "0.01s", "2h", "soon", "s", "-1s", "NaN", "99ms"] {
        fake.fails(&["stats", &format!("--interval={interval}")], 2, "try 1s");
    }
    fake.fails(&["stats", "--once", "--interval=1s"], 2, "cannot be used with");
}

#[test]
fn a_drive_whose_thread_is_gone_is_told_as_stopped() {
    let fake = Fake::start();
    let mut peer = fake.connect();
    fake.mood(Mood::Deaf);
    peer.send_line(&request(1, "stats", &json!({"drive": 0})));
    peer.send_line(&request(2, "stats", &json!({})));
    peer.check_alive();
    fake.mood(Mood::Dead);
    for _ in 0..2 {
        assert_eq!(peer.receive().unwrap()["error"]["data"]["kind"], "stopped");
    }
}

/// `ringdrive stats --json --interval`, which has printed its first line.
fn followed(fake: &Fake) -> (Child, BufReader<ChildStdout>, Vec<DriveStats>) {
    let mut command = ringdrive(&fake.socket());
    let command = command.args(["stats", "--json", "--interval", "100ms"]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut output = BufReader::new(child.stdout.take().unwrap());
    let first = next(&mut output);
    (child, output, first)
}

fn next(output: &mut impl BufRead) -> Vec<DriveStats> {
    let mut line = String::new();
    output.read_line(&mut line).unwrap();
    drives(&line)
}

#[test]
fn json_is_an_object_or_with_an_interval_an_object_a_line() {
    let fake = Fake::start();
    let once = fake.says(&["stats", "cd", "--json"]);
    assert_eq!((once.lines().count(), drives(&once)[0].bytes_read), (1, 198_656));
    let (mut child, mut output, first) = followed(&fake);
    fake.mood(READ);
    let later = loop {
        let later = next(&mut output);
        if later[0].bytes_read != first[0].bytes_read {
            break later;
        }
    };
    let between = later[0].since(&first[0]);
    assert_eq!((between.bytes_read, between.commands, between.reads_from_memory), (2_000_000, 1, 1));
    let by_opcode: Vec<_> = between.opcodes.iter().flatten().map(|of| (of.opcode, of.commands)).collect();
    assert_eq!(by_opcode, [(0x28, 1)], "only what there was in between");
    let LatencyStats { commands, p50_us, p99_us, max_us, .. } = between.latency.read;
    assert_eq!(commands, 1);
    assert!([p50_us, p99_us, max_us].iter().all(|us| (40_000..42_500).contains(us)), "{between:?}");
    assert_eq!(between.latency.other.commands, 0);
    assert_eq!(later[1].since(&first[1]).commands, 0, "the other drive was idle");
    interrupt(&child, Signal::SIGTERM);
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn it_ends_when_nobody_reads_it_any_more() {
    let fake = Fake::start();
    let (mut child, output, _) = followed(&fake);
    drop(output);
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn the_end_of_the_daemon_is_told() {
    let mut fake = Fake::start();
    let (child, mut output, _) = followed(&fake);
    fake.stop_server();
    output.read_to_string(&mut String::new()).unwrap();
    let ended = child.wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(5));
    let said: Value = serde_json::from_slice(&ended.stderr).unwrap();
    assert_eq!(said["error"]["message"], "ringdrived ended the connection; see its log");
}

/// A terminal of this many lines, on which `ringdrive stats` runs.
struct Terminal {
    child: Child,
    master: File,
    shown: String,
    /// How much of it has been looked through.
    seen: usize,
}

impl Terminal {
    fn of(fake: &Fake, lines: u16, arguments: &[&str]) -> Self {
        let size = Winsize { ws_row: lines, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };
        let pty = openpty(&size, None).unwrap();
        let mut command = ringdrive(&fake.socket());
        let command = command.arg("stats").args(arguments).stdout(pty.slave).stderr(Stdio::null());
        Self { child: command.spawn().unwrap(), master: pty.master.into(), shown: String::new(), seen: 0 }
    }

    /// Reads on until this has been shown behind what was looked for before.
    #[track_caller]
    fn await_shown(&mut self, what: &str) {
        loop {
            if let Some(at) = self.shown[self.seen..].find(what) {
                self.seen += at + what.len();
                return;
            }
            let mut fds = [PollFd::new(self.master.as_fd(), PollFlags::POLLIN)];
            let patience = PollTimeout::try_from(PATIENCE).unwrap();
            assert_eq!(poll(&mut fds, patience), Ok(1), "{what:?} was not shown:\n{}", self.shown);
            let mut bytes = [0; 4096];
            let count = self.master.read(&mut bytes).unwrap();
            // What is not ASCII may be cut in two, and is not looked for.
            self.shown += &String::from_utf8_lossy(&bytes[..count]);
        }
    }
}

#[test]
fn on_a_terminal_each_view_is_drawn_over_the_one_before_until_interrupted() {
    let fake = Fake::start();
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let mut terminal = Terminal::of(&fake, 50, &["cd", "--interval", "100ms"]);
        terminal.await_shown("\x1b[J");
        assert!(terminal.shown.starts_with("drive 0, cd, "), "nothing above is touched: {}", terminal.shown);
        assert!(terminal.shown.contains("\n  now    -"), "no rate yet: {}", terminal.shown);
        let lines = terminal.shown.matches('\n').count();
        terminal.await_shown(&format!("\x1b[{lines}A\r"));
        terminal.await_shown("\n  now    0 B/s");
        fake.mood(READ);
        // One question and so one second a look.
        terminal.await_shown("\n  now    2.0 MB/s  0 B/s    1.0/s");
        terminal.await_shown("READ(10)         1.0/s");
        terminal.await_shown("\n  now    0 B/s");
        assert!(!terminal.shown.contains("\x1b[2J"), "the terminal is somebody's: {}", terminal.shown);
        interrupt(&terminal.child, signal);
        assert_eq!(terminal.child.wait().unwrap().code(), Some(0));
    }
}

#[test]
fn a_view_does_not_scroll_a_small_terminal() {
    let fake = Fake::start();
    let mut terminal = Terminal::of(&fake, 5, &["--interval", "100ms"]);
    terminal.await_shown("\x1b[J");
    assert_eq!(terminal.shown.matches('\n').count(), 4);
    terminal.await_shown("\x1b[4A\r");
    interrupt(&terminal.child, Signal::SIGINT);
    assert_eq!(terminal.child.wait().unwrap().code(), Some(0));
}

#[test]
fn once_on_a_terminal_is_a_report() {
    let fake = Fake::start();
    let mut terminal = Terminal::of(&fake, 50, &["cd", "--once"]);
    terminal.await_shown("waited for the storage");
    assert_eq!(terminal.child.wait().unwrap().code(), Some(0));
    assert!(!terminal.shown.contains('\x1b'), "{}", terminal.shown);
}

#[test]
fn it_is_interrupted_also_while_the_daemon_does_not_answer() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    let listener = UnixListener::bind(&socket).unwrap();
    let mut child = ringdrive(&socket).args(["stats", "--json", "--interval=1s"]).spawn().unwrap();
    let (stream, _) = listener.accept().unwrap();
    BufReader::new(&stream).read_line(&mut String::new()).unwrap();
    interrupt(&child, Signal::SIGINT);
    assert_eq!(child.wait().unwrap().code(), Some(0));
}
