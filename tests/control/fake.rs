//! A server whose drives are played by a thread, which answers what a function's thread would.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, unbounded};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use parking_lot::Mutex;
use ringdrive::bot::StallPolicy;
use ringdrive::config::{Config, Control};
use ringdrive::control::{Daemon, EventSink, FunctionHandle, Running, Server};
use ringdrive::drive::statistics::{End, Outcome, Transfer};
use ringdrive::drive::{
    DriveIndex, DriveState, DriveStatistics, EjectedBy, Event, Handle, HostState, ImageState, Inbox, Refusal,
    ReplyTo, Request, Setting, Statistics,
};
use ringdrive::gadget::Speed;
use ringdrive::media::{Medium, overlay::Overlays, url::Cache};
use ringdrive::scsi::Kind;
use ringdrive::units::BlockSize;
use serde_json::Value;

/// Time in which an answer comes, or the test has failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A server with the drives `cd` (0, optical) and `flash` (1, disk), and a directory for images.
pub(crate) struct Fake {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) events: EventSink,
    /// Gets a word for each `replug` and `shutdown`.
    pub(crate) daemon: Receiver<&'static str>,
    pub(crate) replug_fails: Arc<AtomicBool>,
    /// A replug lasts while this is held.
    pub(crate) replug_gate: Arc<Mutex<()>>,
    drives: Handle,
    pub(crate) overlays: Arc<Overlays>,
    /// What the drives' thread does from now on.
    moods: Sender<(Mood, Sender<()>)>,
    server: Option<Running>,
    thread: Option<JoinHandle<()>>,
}

pub(crate) enum Mood {
    /// The host prevents removal from all drives, or allows it.
    Prevented(bool),
    /// The host reads so many bytes from drive 0, in a command that takes so long.
    Read(u32, Duration),
    /// Requests are taken in and kept, unanswered.
    Deaf,
    /// Kept requests are dropped, as when the thread dies.
    Dead,
}

struct Board {
    said: Sender<&'static str>,
    replug_fails: Arc<AtomicBool>,
    replug_gate: Arc<Mutex<()>>,
    cache: Arc<Cache>,
    overlays: Arc<Overlays>,
}

impl Daemon for Board {
    fn replug(&self) -> Result<(), String> {
        if self.replug_fails.load(Ordering::Relaxed) {
            return Err("the gadget is somebody else's; replug it there".to_owned());
        }
        self.said.send("replug").unwrap();
        drop(self.replug_gate.lock());
        self.said.send("replugged").unwrap();
        Ok(())
    }

    fn shutdown(&self) {
        self.said.send("shutdown").unwrap();
    }

    fn cache(&self) -> Option<&Arc<Cache>> {
        Some(&self.cache)
    }

    fn overlays(&self) -> Option<&Arc<Overlays>> {
        Some(&self.overlays)
    }
}

impl Fake {
    pub(crate) fn start() -> Self {
        Self::start_for(None)
    }

    /// With a `group` in the configuration.
    pub(crate) fn start_for(group: Option<String>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let control = Control { socket: dir.path().join("control.sock"), group };
        let server = Server::bind(&control).unwrap();
        let events = server.events();
        let (handle, inbox) = Handle::pair().unwrap();
        let (moods, moods_rx) = unbounded();
        let (said, daemon) = unbounded();
        let replug_fails = Arc::new(AtomicBool::new(false));
        let replug_gate = Arc::new(Mutex::new(()));
        let text = format!("[url]\ncache = '{}'\n", dir.path().join("cache").display());
        let cache = Cache::new(Config::parse(&text, "test").unwrap().url);
        let (fails, gate) = (Arc::clone(&replug_fails), Arc::clone(&replug_gate));
        let overlays = Overlays::new(dir.path().join("cache"), dir.path().join("run"));
        let board =
            Board { said, replug_fails: fails, replug_gate: gate, cache, overlays: Arc::clone(&overlays) };
        let sink = events.clone();
        let thread = thread::spawn(move || Drives::new(sink).run(&inbox, &moods_rx));
        let function =
            FunctionHandle { handle: handle.clone(), drives: vec!["cd".to_owned(), "flash".to_owned()] };
        let server = Some(server.start(vec![function], Arc::new(board)).unwrap());
        Self {
            dir,
            events,
            daemon,
            replug_fails,
            replug_gate,
            drives: handle,
            overlays,
            moods,
            server,
            thread: Some(thread),
        }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("control.sock")
    }

    pub(crate) fn connect(&self) -> Peer {
        Peer::connect(&self.socket())
    }

    /// Makes an image of zeroes.
    pub(crate) fn image(&self, name: &str, bytes: u64) -> PathBuf {
        let path = self.dir.path().join(name);
        File::create(&path).unwrap().set_len(bytes).unwrap();
        path
    }

    /// Changes what the drives do, after every earlier request and before any later one.
    pub(crate) fn mood(&self, mood: Mood) {
        let (tx, done) = crossbeam_channel::bounded(1);
        self.moods.send((mood, tx)).unwrap();
        self.drives.send(Request::State { reply: ReplyTo::new(|_| ()) });
        done.recv_timeout(PATIENCE).unwrap();
    }

    /// Ends the server alone.
    pub(crate) fn stop_server(&mut self) {
        self.server.take().unwrap().stop();
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        drop(self.server.take());
        let reply = ReplyTo::new(|_| ());
        self.drives.send(Request::Stop { reply });
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(ended.is_ok() || thread::panicking(), "the drives' thread panicked");
        }
    }
}

struct Drives {
    states: Vec<DriveState>,
    images: Vec<Option<Box<dyn Medium>>>,
    counted: Vec<Statistics>,
    /// A second passes whenever somebody asks for the statistics.
    uptime: Duration,
    events: EventSink,
    deaf: bool,
    dead: bool,
    kept: Vec<Request>,
}

impl Drives {
    fn new(events: EventSink) -> Self {
        let state = |lun: u8, name: &str, kind| DriveState {
            drive: DriveIndex(lun.into()),
            name: name.to_owned(),
            function: "usb0".to_owned(),
            lun,
            kind,
            block_size: if kind == Kind::Disk { BlockSize::B512 } else { BlockSize::B2048 },
            image: None,
            rw: false,
            prevented: false,
            stall: StallPolicy::Auto,
            host: HostState::Connected { speed: Speed::High },
        };
        let states = vec![state(0, "cd", Kind::Optical), state(1, "flash", Kind::Disk)];
        let counted = vec![counted(), Statistics::new()];
        let uptime = Duration::from_secs(59);
        let images = vec![None, None];
        Self { states, images, counted, uptime, events, deaf: false, dead: false, kept: Vec::new() }
    }

    fn run(mut self, inbox: &Inbox, moods: &Receiver<(Mood, Sender<()>)>) {
        loop {
            let mut fds = [PollFd::new(inbox.wake().as_fd(), PollFlags::POLLIN)];
            poll(&mut fds, PollTimeout::NONE).unwrap();
            inbox.wake().read().unwrap();
            while let Some(request) = inbox.take() {
                match request {
                    Request::Stop { reply } => return reply.send(Ok(())),
                    request if self.dead => drop(request),
                    request if self.deaf => self.kept.push(request),
                    request => self.answer(request),
                }
            }
            // After every request that was sent before the mood.
            for (mood, done) in moods.try_iter() {
                match mood {
                    Mood::Prevented(prevented) => {
                        self.states.iter_mut().for_each(|state| state.prevented = prevented);
                    }
                    Mood::Read(bytes, took) => self.counted[0].count(read(bytes, Some(true), took)),
                    Mood::Deaf => self.deaf = true,
                    // What is still on its way dies with it.
                    Mood::Dead => {
                        self.dead = true;
                        self.kept.clear();
                    }
                }
                done.send(()).unwrap();
            }
        }
    }

    fn answer(&mut self, request: Request) {
        match request {
            Request::State { reply } => reply.send(self.state()),
            Request::Stats { lun, reply } => reply.send(self.statistics(lun)),
            Request::Insert { lun, image, reply } => reply.send(self.insert(lun, image)),
            Request::Eject { lun, force, reply } | Request::Discard { lun, force, reply } => {
                reply.send(self.eject(lun, force));
            }
            Request::Set { lun, setting, reply } => reply.send(self.set(lun, setting)),
            Request::Leave { .. } | Request::Stop { .. } => unreachable!("handled by the loop"),
        }
    }

    /// As it is now: what is fetched goes on meanwhile.
    fn state(&mut self) -> Vec<DriveState> {
        for (state, image) in self.states.iter_mut().zip(&self.images) {
            state.image = image.as_deref().map(image_state);
        }
        self.states.clone()
    }

    fn statistics(&mut self, lun: Option<u8>) -> Vec<DriveStatistics> {
        self.uptime += Duration::from_secs(1);
        let drives = self.states.iter().zip(&self.counted);
        let asked = drives.filter(|(state, _)| lun.is_none_or(|lun| lun == state.lun));
        let told = asked.map(|(state, statistics)| DriveStatistics {
            drive: state.drive,
            name: state.name.clone(),
            kind: state.kind,
            uptime: self.uptime,
            statistics: statistics.clone(),
        });
        told.collect()
    }

    fn insert(&mut self, lun: u8, image: Box<dyn Medium>) -> Result<ImageState, Refusal> {
        let state = &mut self.states[usize::from(lun)];
        if let Some(held) = &state.image {
            return Err(Refusal::Occupied(held.name.clone()));
        }
        let held = self.images[usize::from(lun)].insert(image);
        let image = image_state(&**held);
        state.image = Some(image.clone());
        self.events.publish(Event::Inserted { drive: state.drive, image: image.clone() });
        Ok(image)
    }

    fn eject(&mut self, lun: u8, force: bool) -> Result<String, Refusal> {
        let state = &mut self.states[usize::from(lun)];
        if state.prevented && !force {
            return Err(Refusal::Prevented);
        }
        let image = state.image.take().ok_or(Refusal::Empty)?.name;
        self.images[usize::from(lun)] = None;
        let by = if force { EjectedBy::Force } else { EjectedBy::Client };
        self.events.publish(Event::Ejected { drive: state.drive, image: image.clone(), by });
        Ok(image)
    }

    fn set(&mut self, lun: u8, setting: Setting) -> Result<(), Refusal> {
        let state = &mut self.states[usize::from(lun)];
        match setting {
            Setting::Kind(_) if state.image.is_some() => return Err(Refusal::Inserted("kind")),
            Setting::Kind(kind) => state.kind = kind,
            Setting::ReadWrite(_) if state.image.is_some() => return Err(Refusal::Inserted("rw")),
            Setting::ReadWrite(true) if state.kind == Kind::Optical => return Err(Refusal::Optical),
            Setting::ReadWrite(rw) => state.rw = rw,
            Setting::Stall(stall) => self.states.iter_mut().for_each(|state| state.stall = stall),
        }
        Ok(())
    }
}

fn read(bytes: u32, in_memory: Option<bool>, took: Duration) -> End {
    let transfer = Transfer::Read { bytes, in_memory };
    End::Completed { opcode: 0x28, outcome: Outcome::Passed, transfer, took }
}

/// What the host of drive 0 has done before the test begins.
fn counted() -> Statistics {
    let mut statistics = Statistics::new();
    let us = Duration::from_micros;
    let asked = |opcode, outcome, took_us| End::Completed {
        opcode,
        outcome,
        transfer: Transfer::None,
        took: us(took_us),
    };
    statistics.count(asked(0x12, Outcome::Passed, 24));
    statistics.count(asked(0x00, Outcome::Failed, 9));
    statistics.count(asked(0x00, Outcome::Passed, 7));
    statistics.count(asked(0xd4, Outcome::Failed, 8));
    statistics.count(read(2048, Some(false), us(5200)));
    (0..3).for_each(|_| statistics.count(read(65_536, Some(true), us(790))));
    statistics.count(End::Aborted);
    statistics
}

/// What the drive reports of an image that it was given.
fn image_state(image: &dyn Medium) -> ImageState {
    ImageState {
        name: image.name(),
        bytes: image.stored().0,
        rw: image.writable(),
        first_read: false,
        source: image.source_state(),
        fetch: image.fetch_state(),
        overlay: image.overlay_state(),
    }
}

/// A client of plain bytes, to say what no decent client would.
pub(crate) struct Peer {
    pub(crate) stream: UnixStream,
    reader: BufReader<UnixStream>,
}

impl Peer {
    pub(crate) fn connect(path: &Path) -> Self {
        let stream = UnixStream::connect(path).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        let reader = BufReader::new(stream.try_clone().unwrap());
        Self { stream, reader }
    }

    pub(crate) fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).unwrap();
    }

    pub(crate) fn send_line(&mut self, line: &str) {
        self.send(format!("{line}\n"));
    }

    /// The next message; `None` at the end of the connection.
    pub(crate) fn receive(&mut self) -> Option<Value> {
        let mut line = String::new();
        match self.reader.read_line(&mut line) {
            Ok(0) => None,
            Ok(_) => Some(serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"))),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => None,
            Err(error) => panic!("no answer: {error}"),
        }
    }

    /// Sends a line and gets the next message.
    #[track_caller]
    pub(crate) fn ask(&mut self, line: &str) -> Value {
        self.send_line(line);
        self.receive().expect("an answer, not the end of the connection")
    }

    /// Asks and gets `error.data.kind`.
    #[track_caller]
    pub(crate) fn refusal(&mut self, line: &str) -> String {
        let answer = self.ask(line);
        answer["error"]["data"]["kind"].as_str().unwrap_or_else(|| panic!("not refused: {answer}")).to_owned()
    }

    /// That the server still serves this client.
    #[track_caller]
    pub(crate) fn check_alive(&mut self) {
        let answer = self.ask(r#"{"jsonrpc":"2.0","id":"alive","method":"version"}"#);
        assert_eq!(answer["id"], "alive", "{answer}");
    }
}

impl Drop for Peer {
    /// A program that another test is just starting may hold a copy of the socket: closing ours would not end the connection.
    fn drop(&mut self) {
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
    }
}

/// One request as a line.
pub(crate) fn request(id: u64, method: &str, params: &Value) -> String {
    serde_json::json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params}).to_string()
}
