//! The gadget room against a real kernel and a real host: descriptors, events, both engines, and what is left behind.

mod served;

use std::{
    fs,
    io::{BufRead, BufReader},
    os::unix::fs::symlink,
    process::{Child, Command, ExitCode, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use libtest_mimic::{Arguments, Failed, Trial};
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::signal::Signal,
    unistd::Pid,
};
use nusb::{
    MaybeFuture,
    transfer::{
        Buffer, Bulk, ControlIn, ControlOut, ControlType, In, Out, Recipient, TransferError as HostError,
    },
};
use ringdrive::{
    gadget::{
        BusEvent, EngineKind, Gadget, GadgetError, Placement, Speed, Udc,
        endpoints::{EndpointDone, Endpoints, Halted, Pipe, Tag, TransferError, Wake},
    },
    ring::pool::Pool,
};
use served::{Host, LAST_LUN, PATIENCE, Served, eventually};

/// Set in a child process: serve with this engine until killed.
const CHILD: &str = "RINGDRIVE_HWTEST_CHILD";

const ENGINES: [EngineKind; 2] = [EngineKind::Aio, EngineKind::Sync];

fn main() -> ExitCode {
    if let Ok(kind) = std::env::var(CHILD) {
        return serve_until_killed(if kind == "Sync" { EngineKind::Sync } else { EngineKind::Aio });
    }
    let mut args = Arguments::from_args();
    // There is one device port.
    args.test_threads = Some(1);
    let mut trials = vec![
        trial("the host sees one bulk only interface with two bulk endpoints of the right size", enumerates),
        trial("get max lun is answered and what is unknown is stalled", control_requests),
        trial(
            "a bulk only reset is acknowledged by its ticket and stalled when it is dropped",
            reset_tickets,
        ),
        trial("replug and a host reset are told as state", replug_and_reset),
        trial("teardown leaves nothing and a second daemon is refused", teardown),
        trial("as a guest we serve in a gadget of somebody else and leave it as it was", guest),
    ];
    for kind in ENGINES {
        let name = |what: &str| format!("{kind:?}: {what}").to_lowercase();
        trials.push(trial(&name("data moves both ways, with zero-length and short packets"), move || {
            moves(kind)
        }));
        trials.push(trial(&name("cancel gives back queued requests of both pipes"), move || cancels(kind)));
        trials.push(trial(&name("a halt is a stall until it is cleared"), move || halts(kind)));
        trials
            .push(trial(&name("what a killed daemon left is cleaned by the next"), move || left_over(kind)));
        trials.push(trial(&name("an unbind gives requests back as disabled"), move || disables(kind)));
    }
    libtest_mimic::run(&args, trials).exit_code()
}

fn trial(name: &str, test: impl FnOnce() -> Result<()> + Send + 'static) -> Trial {
    Trial::ignorable_test(name, move || match served::missing() {
        Some(reason) => Ok(libtest_mimic::Completion::ignored_with(reason)),
        None => test()
            .map(|()| libtest_mimic::Completion::Completed)
            .map_err(|error| Failed::from(format!("{error:?}"))),
    })
}

fn enumerates() -> Result<()> {
    let served = Served::start(EngineKind::Aio)?;
    let host = Host::find()?;
    let (speed, max_packet) = served.await_enabled()?;
    let (wanted, mbits, packet) = match std::env::var("RINGDRIVE_SPEED").as_deref() {
        Ok("super") => (Speed::Super, "5000", "0400"),
        Ok("high") => (Speed::High, "480", "0200"),
        other => bail!("RINGDRIVE_SPEED is {other:?}"),
    };
    assert_eq!((speed, max_packet), (wanted, wanted.bulk_max_packet()));
    assert_eq!(served.engine.max_packet(), usize::from(max_packet));
    assert_eq!(host.attribute("speed")?, mbits);
    let udc = served.gadget.udc().context("no controller")?;
    assert_eq!(udc.current_speed(), Some(wanted));
    let config = host.sysfs.file_name().and_then(|name| name.to_str()).context("no name")?.to_owned();
    let of_interface = |name: &str| host.attribute(&format!("{config}:1.0/{name}"));
    assert_eq!(of_interface("bInterfaceClass")?, "08");
    assert_eq!(of_interface("bInterfaceSubClass")?, "06");
    assert_eq!(of_interface("bInterfaceProtocol")?, "50");
    assert_eq!(of_interface("bNumEndpoints")?, "02");
    assert_eq!(of_interface("interface")?, "Bulk-Only");
    // Which numbers the endpoints have is the kernel's choice; the directions are ours.
    for direction in ["in", "out"] {
        let endpoint = endpoint_of(&host, &config, direction)?;
        assert_eq!(of_interface(&format!("{endpoint}/type"))?, "Bulk");
        assert_eq!(of_interface(&format!("{endpoint}/wMaxPacketSize"))?, packet);
    }
    assert_eq!(host.attribute("serial")?, "0123456789AB");
    assert_eq!(host.attribute("product")?, "endpoint tests");
    Ok(served.gadget.teardown()?)
}

fn endpoint_of(host: &Host, config: &str, direction: &str) -> Result<String> {
    for entry in fs::read_dir(host.sysfs.join(format!("{config}:1.0")))? {
        let name = entry?.file_name().into_string().unwrap_or_default();
        if name.starts_with("ep_") && host.attribute(&format!("{config}:1.0/{name}/direction"))? == direction
        {
            return Ok(name);
        }
    }
    bail!("no endpoint of direction {direction}")
}

fn class_in(request: u8, length: u16) -> ControlIn {
    let (control_type, recipient) = (ControlType::Class, Recipient::Interface);
    ControlIn { control_type, recipient, request, value: 0, index: 0, length }
}

fn class_out(request: u8, data: &[u8]) -> ControlOut<'_> {
    let (control_type, recipient) = (ControlType::Class, Recipient::Interface);
    ControlOut { control_type, recipient, request, value: 0, index: 0, data }
}

fn control_requests() -> Result<()> {
    let (_served, host) = Served::enabled(EngineKind::Aio)?;
    let ask = |request, length| host.interface.control_in(class_in(request, length), PATIENCE).wait();
    let tell = |request, data| host.interface.control_out(class_out(request, data), PATIENCE).wait();
    for _ in 0..3 {
        assert_eq!(ask(0xfe, 1)?, [LAST_LUN]);
        assert_eq!(ask(0x42, 8), Err(HostError::Stall));
        assert_eq!(tell(0x42, &[]), Err(HostError::Stall));
        assert_eq!(tell(0x42, &[1, 2, 3]), Err(HostError::Stall));
        assert_eq!(ask(0xfe, 2), Err(HostError::Stall), "BOT 1.0 §3.2: wLength is 1");
    }
    Ok(())
}

fn reset_tickets() -> Result<()> {
    let (served, host) = Served::enabled(EngineKind::Aio)?;
    for acknowledged in [true, false, true] {
        let interface = host.interface.clone();
        let asked = std::thread::spawn(move || interface.control_out(class_out(0xff, &[]), PATIENCE).wait());
        let ticket = served.event("reset", |event| match event {
            BusEvent::Reset(ticket) => Some(ticket),
            _ => None,
        })?;
        if acknowledged {
            assert!(ticket.acknowledge());
        } else {
            drop(ticket);
        }
        let answer = asked.join().map_err(|_| anyhow::anyhow!("the host's thread died"))?;
        assert_eq!(answer, if acknowledged { Ok(()) } else { Err(HostError::Stall) });
    }
    Ok(())
}

fn replug_and_reset() -> Result<()> {
    let (served, host) = Served::enabled(EngineKind::Aio)?;
    let before = host.attribute("devnum")?;
    drop(host);
    served.gadget.replug()?;
    served.event("UNBIND or DISABLE", |event| {
        matches!(event, BusEvent::Unbound | BusEvent::Disabled).then_some(())
    })?;
    let host = Host::find()?;
    served.await_enabled()?;
    ensure!(host.attribute("devnum")? != before, "the host has not seen it go");
    host.interface.release().wait()?;
    host.device.reset().wait().context("reset by the host")?;
    served.await_enabled()?;
    Ok(())
}

fn teardown() -> Result<()> {
    let (served, host) = Served::enabled(EngineKind::Aio)?;
    let second = Gadget::create(&served::options(EngineKind::Aio), Placement::Own);
    let refusal = second.err().context("a second daemon was let in")?.to_string();
    assert!(refusal.contains(&format!("process {}", std::process::id())), "{refusal}");
    assert_eq!(
        host.interface.control_in(class_in(0xfe, 1), PATIENCE).wait()?,
        [LAST_LUN],
        "the first is disturbed"
    );
    drop(host);
    let Served { gadget, engine, ep0, .. } = served;
    gadget.teardown()?;
    assert!(!served::gadget_dir().exists() && !served::is_mounted() && !served::mount_dir().exists());
    drop((engine, ep0));
    let mut other = served::options(EngineKind::Aio);
    other.udc = Some("no-such-controller".to_owned());
    let refusal = Gadget::create(&other, Placement::Own).err().context("an unknown controller was taken")?;
    assert!(refusal.to_string().contains("this machine has: "), "{refusal}");
    assert!(!served::gadget_dir().exists());
    // What is made before the error is removed after it.
    let mut other = served::options(EngineKind::Aio);
    other.functions[0].interface_name = "\0".to_owned();
    Gadget::create(&other, Placement::Own).err().context("NUL in a name was taken")?;
    assert!(!served::gadget_dir().exists() && !served::is_mounted());
    Ok(())
}

fn serve_until_killed(kind: EngineKind) -> ExitCode {
    match Served::enabled(kind) {
        Ok((mut served, _host)) => {
            let pool = Pool::new(4, 4096).expect("memory");
            served.engine.receive(pool.take().expect("a buffer"), 512, Tag(0)).expect("queued");
            served.engine.flush();
            println!("up");
            loop {
                std::thread::park();
            }
        }
        Err(error) => {
            eprintln!("{error:?}");
            ExitCode::FAILURE
        }
    }
}

/// A process of this binary, in another role, that has said "up".
fn child(kind: EngineKind) -> Result<Child> {
    let mut child = Command::new(std::env::current_exe()?)
        .env(CHILD, format!("{kind:?}"))
        .stdout(Stdio::piped())
        .spawn()?;
    let mut line = String::new();
    BufReader::new(child.stdout.take().context("no output")?).read_line(&mut line)?;
    ensure!(line.trim() == "up", "the child is not up");
    Ok(child)
}

fn left_over(kind: EngineKind) -> Result<()> {
    let mut child = child(kind)?;
    ensure!(served::is_bound() && served::is_mounted(), "the child does not serve");
    let refusal = Served::start(EngineKind::Aio).err().context("a second daemon was let in")?;
    assert!(refusal.to_string().contains(&format!("process {}", child.id())), "{refusal}");
    nix::sys::signal::kill(Pid::from_raw(child.id().try_into()?), Signal::SIGKILL)?;
    child.wait()?;
    eventually("the gadget of a killed daemon is off the bus", Duration::from_secs(2), || {
        !served::is_bound()
    })?;
    assert!(
        served::gadget_dir().exists() && served::is_mounted(),
        "nothing was left over: the test shows nothing"
    );
    let (served, host) = Served::enabled(EngineKind::Aio)?;
    assert_eq!(host.interface.control_in(class_in(0xfe, 1), PATIENCE).wait()?, [LAST_LUN]);
    served.gadget.teardown()?;
    assert!(!served::gadget_dir().exists() && !served::is_mounted() && !served::mount_dir().exists());
    Ok(())
}

/// A gadget that somebody else composes, with a function for us in it and one of their own.
struct Composed;

impl Composed {
    fn new() -> Result<Self> {
        let dir = served::gadget_dir();
        let this = Self;
        for below in
            ["", "configs/c.1", "functions/acm.theirs", &format!("functions/ffs.{}", served::FUNCTION)]
        {
            fs::create_dir(dir.join(below)).with_context(|| below.to_owned())?;
        }
        fs::write(dir.join("idVendor"), "0x1d6b")?;
        fs::write(dir.join("idProduct"), "0xfffe")?;
        for function in ["acm.theirs".to_owned(), format!("ffs.{}", served::FUNCTION)] {
            symlink(dir.join("functions").join(&function), dir.join("configs/c.1").join(&function))?;
        }
        Ok(this)
    }

    fn bind(&self) -> Result<()> {
        let udc = Udc::list().into_iter().next().context("no controller")?;
        Ok(fs::write(served::gadget_dir().join("UDC"), udc.name())?)
    }
}

impl Drop for Composed {
    fn drop(&mut self) {
        let dir = served::gadget_dir();
        let ours = format!("ffs.{}", served::FUNCTION);
        let _ = fs::write(dir.join("UDC"), "\n");
        for link in ["configs/c.1/acm.theirs", &format!("configs/c.1/{ours}")] {
            let _ = fs::remove_file(dir.join(link));
        }
        for below in ["configs/c.1", "functions/acm.theirs", &format!("functions/{ours}"), ""] {
            let _ = fs::remove_dir(dir.join(below));
        }
    }
}

fn guest() -> Result<()> {
    let options = served::options(EngineKind::Aio);
    let refusal = Gadget::create(&options, Placement::Guest).err().context("a function that is not there")?;
    assert!(matches!(refusal, GadgetError::NoFunction { .. }), "{refusal}");
    let composed = Composed::new()?;
    let refusal =
        Gadget::create(&options, Placement::Own).err().context("somebody's gadget was taken over")?;
    assert!(matches!(refusal, GadgetError::NotOurs { .. }), "{refusal}");

    let (gadget, parts) = Gadget::create(&options, Placement::Guest)?;
    let served = Served::of(gadget, parts)?;
    served.gadget.bind()?;
    assert!(!served::is_bound(), "binding is the composer's");
    composed.bind()?;
    served.await_enabled()?;
    let host = Host::find_with(|interface| interface.class() == 8)?;
    let get_max_lun = ControlIn { index: host.interface.interface_number().into(), ..class_in(0xfe, 1) };
    assert_eq!(host.interface.control_in(get_max_lun, PATIENCE).wait()?, [LAST_LUN]);
    assert!(matches!(served.gadget.replug(), Err(GadgetError::GuestReplug { .. })));
    assert!(served::is_bound());
    drop((host, served));
    // The kernel unbinds a gadget with the last file of one of its functions; the composer binds it again.
    eventually("the gadget is off the bus", PATIENCE, || !served::is_bound())?;
    assert!(!served::is_mounted());
    let (gadget, parts) = Gadget::create(&options, Placement::Guest)?;
    let served = Served::of(gadget, parts)?;
    composed.bind()?;
    served.await_enabled()?;
    drop(served);
    assert!(served::gadget_dir().join("functions/acm.theirs").exists() && !served::is_mounted());
    Ok(())
}

/// The engine under test and the host's two endpoints.
struct Pair {
    served: Served,
    pool: Pool,
    to_device: nusb::Endpoint<Bulk, Out>,
    from_device: nusb::Endpoint<Bulk, In>,
    _host: Host,
}

impl Pair {
    fn new(kind: EngineKind) -> Result<Self> {
        let (served, host) = Served::enabled(kind)?;
        let (mut input, mut output) = (0x81, 0x02);
        for endpoint in host.interface.descriptor().context("no descriptor")?.endpoints() {
            match endpoint.direction() {
                nusb::transfer::Direction::In => input = endpoint.address(),
                nusb::transfer::Direction::Out => output = endpoint.address(),
            }
        }
        let to_device = host.interface.endpoint(output)?;
        let from_device = host.interface.endpoint(input)?;
        Ok(Self { served, pool: Pool::new(32, 64 * 1024)?, to_device, from_device, _host: host })
    }

    /// The next completion, awaited at the descriptor that the ring will watch.
    fn next(&mut self) -> Result<EndpointDone> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(done) = self.served.engine.reap() {
                return Ok(done);
            }
            let fd = self.served.engine.ready_fd().context("nothing to wait at")?;
            let mut fds = [PollFd::new(fd, PollFlags::POLLIN)];
            poll(&mut fds, PollTimeout::from(1000u16))?;
            ensure!(Instant::now() < deadline, "a completion is lost");
        }
    }

    fn send(&mut self, bytes: &[u8], tag: u32) -> Result<()> {
        let mut buf = self.pool.take().context("no buffer")?;
        buf[..bytes.len()].copy_from_slice(bytes);
        self.served.engine.send(buf, bytes.len(), Tag(tag), Wake::Now).map_err(|refused| refused.error)?;
        Ok(())
    }

    fn receive(&mut self, len: usize, tag: u32) -> Result<()> {
        let buf = self.pool.take().context("no buffer")?;
        self.served.engine.receive(buf, len, Tag(tag)).map_err(|refused| refused.error)?;
        Ok(())
    }

    fn host_reads(&mut self, len: usize) {
        self.from_device.submit(Buffer::new(len));
    }

    fn host_read(&mut self) -> Result<Result<Vec<u8>, HostError>> {
        let done = self.from_device.wait_next_complete(PATIENCE).context("the host's read hangs")?;
        Ok(done.into_result().map(Buffer::into_vec))
    }

    fn host_write(&mut self, bytes: &[u8]) -> Result<Result<(), HostError>> {
        self.to_device.submit(bytes.to_vec().into());
        let done = self.to_device.wait_next_complete(PATIENCE).context("the host's write hangs")?;
        Ok(done.status)
    }
}

fn moves(kind: EngineKind) -> Result<()> {
    let mut pair = Pair::new(kind)?;
    let mut random = fastrand::Rng::with_seed(7);
    let bytes: Vec<u8> = std::iter::repeat_with(|| random.u8(..)).take(3 * 64 * 1024).collect();
    // To the device: three whole buffers, then a short packet into a larger request.
    for tag in 0..3 {
        pair.receive(64 * 1024, tag)?;
    }
    pair.receive(4096, 3)?;
    pair.served.engine.flush();
    pair.host_write(&bytes)??;
    pair.host_write(&bytes[..31])??;
    for (tag, chunk) in (0..).zip(bytes.chunks(64 * 1024).chain([&bytes[..31]])) {
        let done = pair.next()?;
        assert_eq!((done.pipe, done.tag, done.result), (Pipe::Out, Tag(tag), Ok(chunk.len())));
        assert!(done.buf[..chunk.len()] == *chunk, "bytes differ in request {tag}");
    }
    // To the host: data, a CSW right behind it, and the next CBW's read, in one flush.
    for round in 0..20u32 {
        pair.host_reads(3 * 64 * 1024);
        pair.host_reads(1024);
        for (tag, chunk) in (0..).zip(bytes.chunks(64 * 1024)) {
            pair.send(chunk, tag)?;
        }
        pair.send(b"thirteenbytes", 3)?;
        pair.receive(1024, 4)?;
        pair.served.engine.flush();
        assert!(pair.host_read()?? == bytes, "bytes differ in round {round}");
        assert_eq!(pair.host_read()??, b"thirteenbytes");
        pair.host_write(b"cbw")??;
        let mut tags: Vec<u32> = Vec::new();
        for _ in 0..5 {
            let done = pair.next()?;
            done.result?;
            tags.push(done.tag.0);
        }
        tags.retain(|tag| *tag != 4);
        assert_eq!(tags, [0, 1, 2, 3]);
    }
    // A transfer of whole packets that is shorter than what the host asked for needs a zero-length packet to end.
    pair.host_reads(4096);
    pair.send(&bytes[..1024], 0)?;
    pair.send(&[], 1)?;
    pair.served.engine.flush();
    assert_eq!(pair.host_read()??.len(), 1024);
    assert_eq!((pair.next()?.result, pair.next()?.result), (Ok(1024), Ok(0)));
    assert_eq!(pair.pool.available(), pair.pool.count());
    Ok(())
}

fn cancels(kind: EngineKind) -> Result<()> {
    let mut pair = Pair::new(kind)?;
    for round in 0..10 {
        for tag in 0..3 {
            pair.send(&[0xaa; 2048], tag)?;
            pair.receive(1024, tag)?;
        }
        pair.served.engine.flush();
        pair.served.engine.cancel(Pipe::In);
        pair.served.engine.cancel(Pipe::Out);
        let mut seen = [0; 2];
        for _ in 0..6 {
            let done = pair.next()?;
            let side = usize::from(done.pipe == Pipe::Out);
            assert_eq!(
                (done.tag.0, done.result),
                (seen[side], Err(TransferError::Cancelled)),
                "round {round}"
            );
            seen[side] += 1;
        }
        // Nothing of it is left on the bus.
        pair.host_reads(1024);
        pair.send(b"fresh", 9)?;
        pair.receive(1024, 9)?;
        pair.served.engine.flush();
        assert_eq!(pair.host_read()??, b"fresh", "round {round}");
        pair.host_write(b"cbw")??;
        for _ in 0..2 {
            pair.next()?.result?;
        }
    }
    assert_eq!(pair.pool.available(), pair.pool.count());
    Ok(())
}

fn halts(kind: EngineKind) -> Result<()> {
    let mut pair = Pair::new(kind)?;
    for _ in 0..3 {
        assert_eq!(pair.served.engine.halt(Pipe::In), Halted::Yes);
        pair.host_reads(1024);
        assert_eq!(pair.host_read()?, Err(HostError::Stall));
        pair.from_device.clear_halt().wait()?;
        pair.host_reads(1024);
        pair.send(b"csw", 1)?;
        pair.served.engine.flush();
        assert_eq!(pair.host_read()??, b"csw");
        pair.next()?.result?;

        assert_eq!(pair.served.engine.halt(Pipe::Out), Halted::Yes);
        assert_eq!(pair.host_write(b"cbw")?, Err(HostError::Stall));
        pair.served.engine.clear_halt(Pipe::Out);
        pair.receive(1024, 2)?;
        pair.served.engine.flush();
        pair.host_write(b"cbw")??;
        assert_eq!(pair.next()?.result, Ok(3));
    }
    // With something queued, the controller refuses (dummy_hcd does for IN).
    pair.send(&[0; 4096], 3)?;
    pair.served.engine.flush();
    if kind == EngineKind::Aio {
        assert_eq!(pair.served.engine.halt(Pipe::In), Halted::Busy);
    }
    pair.served.engine.cancel(Pipe::In);
    pair.next()?;
    assert_eq!(pair.served.engine.halt(Pipe::In), Halted::Yes);
    Ok(())
}

fn disables(kind: EngineKind) -> Result<()> {
    let mut pair = Pair::new(kind)?;
    for tag in 0..2 {
        pair.receive(1024, tag)?;
        pair.send(&[1; 1024], tag)?;
    }
    pair.served.engine.flush();
    pair.served.gadget.unbind()?;
    for _ in 0..4 {
        let done = pair.next()?;
        // Behind a failure, what was not in the kernel yet is given back as cancelled.
        assert!(matches!(done.result, Err(TransferError::Disabled | TransferError::Cancelled)), "{done:?}");
    }
    assert_eq!(pair.served.engine.halt(Pipe::Out), Halted::Disabled);
    pair.receive(1024, 7)?;
    pair.served.engine.flush();
    assert_eq!(pair.next()?.result, Err(TransferError::Disabled), "a disabled endpoint must not hang us");
    Ok(())
}
