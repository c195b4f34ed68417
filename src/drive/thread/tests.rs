//! That the thread is scheduled as asked for, as the kernel tells in `/proc`.

use std::{fs, os::fd::BorrowedFd};

use super::*;
use crate::{
    bot::StallPolicy,
    drive::{DriveIndex, DriveOptions, ReplyTo, Request},
    gadget::endpoints::{EndpointDone, Halted, Pipe, Refused, Tag, TransferError, Wake},
    ring::{Mover as _, OpTag, pool::Buf},
    schedule::{Cpus, RealtimePriority},
    scsi::{Identity, Kind},
    units::BlockSize,
};

/// Endpoints that no host ever enables.
struct NoHost;

impl Endpoints for NoHost {
    fn send(&mut self, buf: Buf, _: usize, _: Tag, _: Wake) -> Result<(), Refused> {
        Err(Refused { buf, error: TransferError::Disabled })
    }

    fn receive(&mut self, buf: Buf, _: usize, _: Tag) -> Result<(), Refused> {
        Err(Refused { buf, error: TransferError::Disabled })
    }

    fn cancel(&mut self, _: Pipe) {}

    fn halt(&mut self, _: Pipe) -> Halted {
        Halted::Disabled
    }

    fn clear_halt(&mut self, _: Pipe) {}

    fn max_packet(&self) -> usize {
        512
    }

    fn reap(&mut self) -> Option<EndpointDone> {
        None
    }

    fn ready_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn flush(&mut self) {}
}

fn start(name: &str, schedule: Schedule) -> Result<FunctionThread, ThreadError> {
    let identity = Identity::new("test", "disk", "1", "1").unwrap();
    let drive = DriveOptions {
        name: "flash".into(),
        kind: Kind::Disk,
        identity,
        rw: false,
        block_size: BlockSize::B512,
        deadline: Duration::from_secs(10),
    };
    let options = FunctionOptions {
        name: name.into(),
        first: DriveIndex(0),
        stall: StallPolicy::Auto,
        drives: vec![drive],
    };
    FunctionThread::start(options, schedule, NoHost, Box::new(drop), None)
}

fn stop(thread: FunctionThread) {
    thread.handle.send(Request::Stop { reply: ReplyTo::new(|_| ()) });
    thread.join.join().unwrap().unwrap();
}

/// `/proc/self/task/TID/FILE` of the thread with this name.
fn of_thread(name: &str, file: &str) -> String {
    let mut tasks = fs::read_dir("/proc/self/task").unwrap().map(|task| task.unwrap().path());
    let comm = |task: &std::path::PathBuf| fs::read_to_string(task.join("comm")).unwrap_or_default();
    let task = tasks.find(|task| comm(task).trim_end() == name).expect(name);
    fs::read_to_string(task.join(file)).unwrap()
}

fn line<'a>(status: &'a str, key: &str) -> &'a str {
    status.lines().find_map(|line| line.strip_prefix(key)).unwrap().trim()
}

/// rt_priority and policy: fields 40 and 41 of proc_pid_stat(5).
fn policy(name: &str) -> (u32, u32) {
    let stat = of_thread(name, "stat");
    let behind_name = stat.rsplit_once(')').unwrap().1;
    let field = |n: usize| behind_name.split_whitespace().nth(n - 3).unwrap().parse().unwrap();
    (field(40), field(41))
}

/// CAP_SYS_NICE (23, linux/capability.h), or a limit that is high enough.
fn may_be_real_time(priority: u64) -> bool {
    let status = fs::read_to_string("/proc/thread-self/status").unwrap();
    let capabilities = u64::from_str_radix(line(&status, "CapEff:"), 16).unwrap();
    let limits = fs::read_to_string("/proc/self/limits").unwrap();
    let limit = line(&limits, "Max realtime priority").split_whitespace().next().unwrap().to_owned();
    capabilities & (1 << 23) != 0
        || limit.parse().map_or(limit == "unlimited", |limit: u64| limit >= priority)
}

#[test]
fn the_thread_has_the_real_time_priority_asked_for_or_the_error_says_how_to_allow_it() {
    let schedule = Schedule { realtime: RealtimePriority::new(7), cpus: None };
    match start("fifo", schedule) {
        Ok(thread) => {
            let fifo = u32::try_from(libc::SCHED_FIFO).unwrap();
            assert_eq!(policy("drive-fifo"), (7, fifo));
            stop(thread);
        }
        Err(ThreadError::Schedule(error)) => {
            assert!(!may_be_real_time(7), "{error}");
            assert!(error.to_string().contains("try LimitRTPRIO=7"), "{error}");
        }
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn the_thread_runs_on_the_cpus_asked_for() {
    let status = fs::read_to_string("/proc/thread-self/status").unwrap();
    let last = line(&status, "Cpus_allowed_list:").rsplit([',', '-']).next().unwrap().to_owned();
    let schedule = Schedule { realtime: None, cpus: Cpus::new([last.parse().unwrap()]) };
    let thread = start("cpus", schedule).unwrap();
    assert_eq!(line(&of_thread("drive-cpus", "status"), "Cpus_allowed_list:"), last);
    assert_eq!(policy("drive-cpus"), (0, 0));
    stop(thread);
}

/// A sync always takes a worker of the kernel's.
#[test]
fn the_kernels_io_workers_run_where_their_thread_runs() {
    let run = || {
        let status = fs::read_to_string("/proc/thread-self/status").unwrap();
        let last = line(&status, "Cpus_allowed_list:").rsplit([',', '-']).next().unwrap().to_owned();
        Schedule { realtime: None, cpus: Cpus::new([last.parse().unwrap()]) }.apply().unwrap();
        let mut ring = Ring::<()>::new(&RingOptions::new(4, &[])).unwrap();
        assert!(ring.sync(&Arc::new(tempfile::tempfile().unwrap()), OpTag(0)));
        while ring.next().is_none() {
            ring.wait().unwrap();
        }
        let worker = format!("iou-wrk-{}", nix::unistd::gettid());
        assert_eq!(line(&of_thread(&worker, "status"), "Cpus_allowed_list:"), last);
    };
    thread::spawn(run).join().unwrap();
}

#[test]
fn without_such_a_cpu_there_is_no_thread_and_the_error_names_it() {
    let schedule = Schedule { realtime: None, cpus: Cpus::new([1023]) };
    let error = start("nowhere", schedule).unwrap_err().to_string();
    assert!(error.contains("CPU 1023"), "{error}");
}
