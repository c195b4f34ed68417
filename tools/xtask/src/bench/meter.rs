//! CPU time: of the threads that serve, and of the whole board. All in nanoseconds.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::time::{ClockId, clock_getcpuclockid, clock_gettime};
use nix::unistd::Pid;

/// Who serves the drive.
#[derive(Clone, Copy, Debug)]
pub(super) enum Server {
    /// A kernel thread.
    Thread(Pid),
    /// A process with all its threads, workers of io_uring and threads that have ended included.
    Process(Pid),
}

/// One reading.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reading {
    serving: u64,
    now: u64,
    idle: u64,
}

/// What was used between two readings.
#[derive(Clone, Copy, Debug)]
pub(super) struct Used {
    /// CPU time of the serving threads.
    pub(super) serving: u64,
    /// Everything that is not idle.
    pub(super) board: u64,
}

impl Reading {
    pub(super) fn take(server: Server) -> Result<Self> {
        let serving = match server {
            Server::Thread(pid) => schedstat(pid)?,
            Server::Process(pid) => nanoseconds(clock_getcpuclockid(pid)?)?,
        };
        Ok(Self { serving, now: nanoseconds(ClockId::CLOCK_MONOTONIC)?, idle: idle()? })
    }

    pub(super) fn since(self, earlier: Self) -> Used {
        let board = (self.now - earlier.now).saturating_sub(self.idle - earlier.idle);
        Used { serving: self.serving - earlier.serving, board }
    }
}

/// The first number of schedstat: time on a CPU. What is on the CPU right now is us, not the thread.
fn schedstat(pid: Pid) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/schedstat")).context("the serving thread is gone")?;
    let first = text.split_whitespace().next().context("an empty schedstat")?;
    Ok(first.parse()?)
}

fn nanoseconds(clock: ClockId) -> Result<u64> {
    let time = Duration::from(clock_gettime(clock)?);
    Ok(u64::try_from(time.as_nanos())?)
}

/// What the CPU has slept, interrupts taken off. `/proc/stat` has the same in hundredths of a second.
///
/// Sleep while some task waits in an io_uring counts as waiting for I/O; it is sleep all the same.
fn idle() -> Result<u64> {
    let text = fs::read_to_string("/proc/timer_list").context("the board's idle time is root's to read")?;
    let times = |name: &str| -> Result<Vec<u64>> {
        let lines = text.lines().filter_map(|line| line.trim().strip_prefix(name));
        lines
            .map(|rest| {
                let number = rest.trim_start_matches([' ', ':']).split(' ').next().unwrap_or_default();
                number.parse().with_context(|| format!("no number behind {name}"))
            })
            .collect()
    };
    let (idle, waiting) = (times(".idle_sleeptime")?, times(".iowait_sleeptime")?);
    ensure!(idle.len() == 1 && waiting.len() == 1, "measurements are made with one CPU, not {}", idle.len());
    Ok(idle.iter().chain(&waiting).sum())
}

/// The kernel's threads of this name.
pub(super) fn threads(name: &str) -> Result<Vec<Pid>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        if fs::read_to_string(entry.path().join("comm")).is_ok_and(|comm| comm.trim() == name) {
            found.push(Pid::from_raw(pid));
        }
    }
    Ok(found)
}

/// The most memory that a process has had resident, in KiB.
pub(super) fn peak_memory(pid: Pid) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}
