//! Why the endpoint engines use Linux AIO and not io_uring: prints what the running kernel does with each, and fails on the
//! day that a kernel does better, so that `docs/decisions/0001-endpoints-by-aio.md` is looked at again.
//!
//! The requests here are raw ones on the endpoint files of a FunctionFS function that is enabled by a host which does nothing.
#![allow(unsafe_code)]

mod served;

use std::{
    fs::{self, File, OpenOptions},
    io::{BufRead, BufReader},
    os::{fd::AsRawFd, unix::fs::OpenOptionsExt},
    process::{Child, Command, ExitCode, Stdio},
    sync::{Arc, atomic::AtomicU16},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use io_uring::{IoUring, opcode, squeue, types};
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::signal::Signal,
    unistd::Pid,
};
use ringdrive::{
    gadget::{
        EngineKind,
        aio::AioEngine,
        endpoints::{EndpointDone, Endpoints, Pipe, Tag, TransferError, Wake},
    },
    ring::pool::Pool,
};
use served::{Host, PATIENCE, Served, eventually};

/// Set in a child process: queue requests this way, and wait to be killed.
const CHILD: &str = "RINGDRIVE_WHY_AIO_CHILD";

/// A killed daemon's gadget must be gone by then.
const DEATH: Duration = Duration::from_secs(2);

const RECONSIDER: &str = "reconsider the engine (docs/decisions/0001-endpoints-by-aio.md)";

/// More than one packet, so that the host's controller does not take it before the host asks (dummy_hcd does up to 64 bytes).
const LEN: usize = 2048;

fn main() -> ExitCode {
    if let Ok(how) = std::env::var(CHILD) {
        let Err(error) = queue_until_killed(&how);
        eprintln!("{error:?}");
        return ExitCode::FAILURE;
    }
    let mut args = Arguments::from_args();
    args.test_threads = Some(1);
    let trials = vec![
        trial("a queued endpoint request can be cancelled by aio and not by io_uring", cancel),
        trial("a write to an in endpoint is queued inline by aio and by a worker thread by io_uring", inline),
        trial("a killed process leaves no gadget with aio and a dead one with io_uring", death),
    ];
    libtest_mimic::run(&args, trials).exit_code()
}

fn trial(name: &str, test: impl FnOnce() -> Result<()> + Send + 'static) -> Trial {
    Trial::ignorable_test(name, move || match served::missing() {
        Some(reason) => Ok(Completion::ignored_with(reason)),
        None => test().map(|()| Completion::Completed).map_err(|error| Failed::from(format!("{error:?}"))),
    })
}

/// One line of the table that decision 0001 quotes.
fn row(question: &str, aio: &str, io_uring: &str) {
    println!("\n| {question} | {aio} | {io_uring} |");
}

/// An enabled function whose endpoint files are ours to use.
struct Bench {
    _host: Host,
    served: Served,
    input: Arc<File>,
    output: Arc<File>,
}

impl Bench {
    fn new() -> Result<Self> {
        // The engine of this one stays idle; its two threads do not touch an endpoint before they are asked.
        let (served, host) = Served::enabled(EngineKind::Sync)?;
        let open = |name| -> Result<Arc<File>> {
            let flags = libc::O_NONBLOCK | libc::O_CLOEXEC;
            let path = served::mount_dir().join(name);
            let file = OpenOptions::new().read(true).write(true).custom_flags(flags).open(&path);
            Ok(Arc::new(file.with_context(|| path.display().to_string())?))
        };
        let (input, output) = (open("ep1")?, open("ep2")?);
        Ok(Self { _host: host, served, input, output })
    }

    fn aio(&self) -> Result<AioEngine> {
        let packet = Arc::new(AtomicU16::new(512));
        Ok(AioEngine::new(self.input.try_clone()?, self.output.try_clone()?, packet)?)
    }
}

/// An io_uring whose buffers live as long as the process: the kernel may write to them until the gadget is unbound.
struct Uring {
    ring: IoUring,
}

impl Uring {
    fn new() -> Result<Self> {
        Ok(Self { ring: IoUring::new(8)? })
    }

    fn submit(&mut self, entry: squeue::Entry) -> Result<()> {
        // SAFETY: every entry of this file is for a leaked buffer, or for none, and for a file that outlives the ring.
        unsafe { self.ring.submission().push(&entry) }?;
        self.ring.submit()?;
        Ok(())
    }

    fn read(&mut self, file: &File, user: u64) -> Result<()> {
        let buffer = Box::leak(Box::new([0u8; LEN]));
        let len = u32::try_from(LEN)?;
        self.submit(
            opcode::Read::new(types::Fd(file.as_raw_fd()), buffer.as_mut_ptr(), len).build().user_data(user),
        )
    }

    fn write(&mut self, file: &File, user: u64) -> Result<()> {
        let buffer = Box::leak(Box::new([0u8; LEN]));
        let len = u32::try_from(LEN)?;
        self.submit(
            opcode::Write::new(types::Fd(file.as_raw_fd()), buffer.as_ptr(), len).build().user_data(user),
        )
    }

    /// The result of `user`, or `None` when it has not come `within` that time.
    fn result(&mut self, user: u64, within: Duration) -> Result<Option<i32>> {
        let deadline = Instant::now() + within;
        while Instant::now() < deadline {
            if let Some(entry) = self.ring.completion().find(|entry| entry.user_data() == user) {
                return Ok(Some(entry.result()));
            }
            let timeout = types::Timespec::new().nsec(20_000_000);
            let args = types::SubmitArgs::new().timespec(&timeout);
            match self.ring.submitter().submit_with_args(1, &args) {
                Err(error) if error.raw_os_error() != Some(libc::ETIME) => return Err(error.into()),
                _ => {}
            }
        }
        Ok(None)
    }
}

fn named(result: Option<i32>) -> String {
    match result {
        None => "nothing".to_owned(),
        Some(negative @ ..0) => format!("-{:?}", nix::Error::from_raw(-negative)),
        Some(moved) => moved.to_string(),
    }
}

fn next(engine: &mut AioEngine) -> Result<EndpointDone> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(done) = engine.reap() {
            return Ok(done);
        }
        let fd = engine.ready_fd().context("nothing to wait at")?;
        poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], PollTimeout::from(100u16))?;
        ensure!(Instant::now() < deadline, "a completion is lost");
    }
}

fn cancel() -> Result<()> {
    let bench = Bench::new()?;
    let pool = Pool::new(2, LEN)?;

    let mut aio = bench.aio()?;
    aio.receive(pool.take().context("no buffer")?, LEN, Tag(1)).map_err(|refused| refused.error)?;
    aio.flush();
    ensure!(aio.reap().is_none(), "the read was not queued");
    aio.cancel(Pipe::Out);
    let by_aio = next(&mut aio)?.result;
    drop(aio);

    let mut uring = Uring::new()?;
    uring.read(&bench.output, 1)?;
    ensure!(uring.result(1, Duration::from_millis(300))?.is_none(), "the read was not queued");
    uring.submit(opcode::AsyncCancel::new(1).build().user_data(2))?;
    let by_uring = uring.result(2, PATIENCE)?;
    let ended = uring.result(1, Duration::from_millis(500))?;
    row(
        "cancel of a queued OUT read",
        &format!("io_cancel: the request ends, {by_aio:?}"),
        &format!("ASYNC_CANCEL: {}; the request: {}", named(by_uring), named(ended)),
    );
    assert_eq!(by_aio, Err(TransferError::Cancelled));
    if by_uring != Some(-libc::ENOENT) || ended.is_some() {
        bail!("this kernel can cancel: {RECONSIDER}");
    }
    bench.served.gadget.unbind()?;
    assert_eq!(uring.result(1, PATIENCE)?, Some(-libc::ESHUTDOWN), "only taking the endpoint away ends it");
    Ok(())
}

/// Worker threads that io_uring has made in this process.
fn workers() -> usize {
    let tasks = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let names = tasks.filter_map(|task| fs::read_to_string(task.path().join("comm")).ok());
    names.filter(|name| name.starts_with("iou-wrk-")).count()
}

fn inline() -> Result<()> {
    let bench = Bench::new()?;
    let pool = Pool::new(2, LEN)?;
    let before = workers();

    let mut aio = bench.aio()?;
    aio.send(pool.take().context("no buffer")?, LEN, Tag(1), Wake::Now).map_err(|refused| refused.error)?;
    aio.receive(pool.take().context("no buffer")?, LEN, Tag(2)).map_err(|refused| refused.error)?;
    aio.flush();
    // A thread that were to come would be made before io_submit returns.
    let by_aio = workers() - before;
    drop(aio);

    let mut uring = Uring::new()?;
    uring.read(&bench.output, 1)?;
    uring.result(1, Duration::from_millis(300))?;
    let by_read = workers() - before;
    uring.write(&bench.input, 2)?;
    uring.result(2, Duration::from_millis(300))?;
    let by_write = workers() - before - by_read;
    row(
        "worker threads for an OUT read, an IN write",
        &format!("{by_aio} for both"),
        &format!("{by_read}, {by_write}"),
    );
    assert_eq!((by_aio, by_read), (0, 0));
    bench.served.gadget.unbind()?;
    if by_write == 0 {
        bail!("this kernel queues IN writes of io_uring inline: {RECONSIDER}");
    }
    Ok(())
}

fn queue_until_killed(how: &str) -> Result<std::convert::Infallible> {
    let bench = Bench::new()?;
    let pool = Pool::new(2, LEN)?;
    let mut engine = bench.aio()?;
    let mut uring = Uring::new()?;
    match how {
        "aio" => {
            engine
                .receive(pool.take().context("no buffer")?, LEN, Tag(1))
                .map_err(|refused| refused.error)?;
            engine
                .send(pool.take().context("no buffer")?, LEN, Tag(2), Wake::Now)
                .map_err(|refused| refused.error)?;
            engine.flush();
        }
        _ => {
            uring.read(&bench.output, 1)?;
            uring.write(&bench.input, 2)?;
            ensure!(uring.result(1, Duration::from_millis(300))?.is_none(), "the read was not queued");
        }
    }
    println!("up");
    loop {
        std::thread::park();
    }
}

/// Kills a process with requests in flight. After how long its gadget was off the bus, or `None`.
fn kill_with(how: &str) -> Result<Option<Duration>> {
    let mut child: Child =
        Command::new(std::env::current_exe()?).env(CHILD, how).stdout(Stdio::piped()).spawn()?;
    let mut line = String::new();
    BufReader::new(child.stdout.take().context("no output")?).read_line(&mut line)?;
    ensure!(line.trim() == "up" && served::is_bound(), "the child is not up");
    nix::sys::signal::kill(Pid::from_raw(child.id().try_into()?), Signal::SIGKILL)?;
    let killed = Instant::now();
    let gone = eventually("unbound", DEATH, || !served::is_bound()).ok().map(|()| killed.elapsed());
    if gone.is_none() {
        fs::write(served::gadget_dir().join("UDC"), "\n").context("unbinding by hand")?;
    }
    child.wait()?;
    Ok(gone)
}

fn death() -> Result<()> {
    let told = |gone: Option<Duration>| match gone {
        Some(after) => format!("off the bus after {} ms", after.as_millis()),
        None => format!("still on the bus after {} s, served by nobody", DEATH.as_secs()),
    };
    let (by_aio, by_uring) = (kill_with("aio")?, kill_with("io_uring")?);
    row("gadget of a process killed with requests in flight", &told(by_aio), &told(by_uring));
    ensure!(by_aio.is_some(), "AIO does not die cleanly on this kernel: {RECONSIDER}");
    if by_uring.is_some() {
        bail!("on this kernel a killed io_uring lets the gadget go: {RECONSIDER}");
    }
    // Cleans up after the last child.
    drop(Served::start(EngineKind::Aio)?);
    Ok(())
}
