//! The host: fio, one request at a time, past the host's cache.
//!
//! On the board, host and device share a CPU, and one tick of the link wakes both sides. Which of them then runs first is
//! chance that lasts: the scheduler keeps to its choice for thousands of commands, and the serving thread needs 7 % more or
//! less. A real host has a processor of its own. So here the host's threads have real-time priority and always come first.

use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::process::{self, Command, Stdio};

use anyhow::{Context, Result, ensure};
use nix::fcntl::OFlag;
use nix::unistd::Pid;
use serde_json::Value;
use xshell::{Shell, cmd};

use super::meter::{Reading, Server, Used};
use super::plan::{Test, float};

/// Real-time priorities: who measures, before who transfers, before who asks.
const METER: &str = "30";
const TRANSPORT: &str = "20";
const REQUESTS: &str = "10";

/// What fio says when it is about to start, and when it is done: its own start and end cost more than some tests.
const BEGIN: &str = "bench-begin";
const END: &str = "bench-end";

/// Lets this process take its readings at once, whatever else wants to run.
pub(super) fn meter_first(shell: &Shell) -> Result<()> {
    let itself = process::id().to_string();
    Ok(cmd!(shell, "chrt --reset-on-fork --fifo --pid {METER} {itself}").quiet().run()?)
}

/// Lets a thread of the host's come before the device.
pub(super) fn host_first(shell: &Shell, thread: Pid) -> Result<()> {
    let thread = thread.to_string();
    Ok(cmd!(shell, "chrt --fifo --pid {TRANSPORT} {thread}").quiet().run()?)
}

/// What a run came to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Outcome {
    /// Megabytes per second.
    pub(super) mb_s: f64,
    /// Between fio's start and end of the test.
    pub(super) used: Used,
}

/// Moves `amount` bytes.
pub(super) fn run(disk: &Path, server: Server, test: Test, amount: u64) -> Result<Outcome> {
    let context = || format!("fio, {}", test.name());
    let mut fio = Command::new("chrt");
    fio.args(["--fifo", REQUESTS, "fio", "--name=bench", "--ioengine=psync", "--direct=1", "--thread"]);
    fio.args(["--randrepeat=1", "--disk_util=0", "--output-format=json"]);
    fio.arg(format!("--filename={}", disk.display())).arg(format!("--rw={}", test.pattern.fio()));
    fio.arg(format!("--bs={}", test.block)).arg(format!("--size={}", test.span()));
    fio.arg(format!("--io_size={amount}"));
    // fio appends a redirection to a file, which the comment sign takes away.
    fio.arg(format!("--exec_prerun=echo {BEGIN} #")).arg(format!("--exec_postrun=echo {END} #"));
    fio.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut fio = fio.spawn().with_context(context)?;
    let mut from = BufReader::new(fio.stdout.take().context("fio has no standard output")?);
    let before = reading_at(BEGIN, &mut from, server).with_context(context)?;
    let after = reading_at(END, &mut from, server).with_context(context)?;
    let mut printed = String::new();
    from.read_to_string(&mut printed)?;
    fio.wait()?;
    let direction = if test.pattern.is_write() { "write" } else { "read" };
    let mb_s =
        speed(&printed, direction, amount).with_context(|| format!("{} printed:\n{printed}", context()))?;
    Ok(Outcome { mb_s, used: after.since(before) })
}

/// Reads 4 KiB at `offset` past the host's cache, without fio, which must start first.
pub(super) fn read_block(disk: &Path, offset: u64) -> Result<()> {
    /// What O_DIRECT wants.
    #[repr(align(4096))]
    struct Aligned([u8; 4096]);
    let mut block = Aligned([0; 4096]);
    let file = OpenOptions::new().read(true).custom_flags(OFlag::O_DIRECT.bits()).open(disk)?;
    file.read_exact_at(&mut block.0, offset)
        .with_context(|| format!("reading {} at {offset}", disk.display()))
}

/// Waits for `mark`; the reading is the first thing after it.
fn reading_at(mark: &str, from: &mut impl BufRead, server: Server) -> Result<Reading> {
    let mut line = String::new();
    while line.trim() != mark {
        line.clear();
        ensure!(from.read_line(&mut line)? > 0, "it ended before `{mark}`");
    }
    Reading::take(server)
}

fn speed(printed: &str, direction: &str, amount: u64) -> Result<f64> {
    // Notes may come before the report.
    let from = printed.find('{').context("no report")?;
    let report: Value = serde_json::from_str(printed.get(from..).unwrap_or_default())?;
    let job = report.pointer("/jobs/0").context("no job")?;
    ensure!(job.get("error").and_then(Value::as_i64) == Some(0), "an I/O error");
    let number = |name: &str| {
        job.get(direction).and_then(|side| side.get(name)?.as_u64()).with_context(|| format!("no {name}"))
    };
    let (bytes, milliseconds) = (number("io_bytes")?, number("runtime")?);
    ensure!(bytes == amount, "{bytes} bytes moved, not {amount}");
    ensure!(milliseconds > 0, "no time passed");
    Ok(float(bytes) / float(milliseconds) / 1e3)
}

#[cfg(test)]
mod tests {
    use super::speed;

    #[test]
    fn only_a_report_without_error_and_with_every_byte_counts() {
        let report = |error, bytes| {
            format!(
                r#"note: something
                {{"jobs": [{{"error": {error}, "read": {{"io_bytes": {bytes}, "runtime": 500}}}}]}}"#
            )
        };
        let found = speed(&report(0, 4_000_000), "read", 4_000_000).unwrap();
        assert!((found - 8.0).abs() < 1e-9);
        assert!(speed(&report(5, 4_000_000), "read", 4_000_000).is_err());
        assert!(speed(&report(0, 3_999_999), "read", 4_000_000).is_err());
        assert!(speed(&report(0, 4_000_000), "write", 4_000_000).is_err());
        assert!(speed("nothing", "read", 1).is_err());
    }
}
