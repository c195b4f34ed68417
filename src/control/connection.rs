//! One client: bytes and descriptors in, lines out; nothing of what they mean.
//!
//! A descriptor belongs to the line that it came with. The kernel ends a read after the bytes that carried descriptors, so when
//! no part of a line is left over, descriptors that nobody took came with a line that did not want them, and are closed.

use std::io::{self, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use serde_json::json;

use super::OUTPUT_BYTES_MAX;
use super::protocol::{self, EventSet, LINE_BYTES_MAX};

const CHUNK_BYTES: usize = 16 * 1024;
/// Descriptors that may wait. One is of use; two are enough to see that there are several; the kernel closes the rest.
const DESCRIPTORS_MAX: usize = 2;

#[derive(Debug)]
pub(super) struct Connection {
    stream: UnixStream,
    input: Vec<u8>,
    /// Bytes of `input` without a newline.
    scanned: usize,
    descriptors: Vec<OwnedFd>,
    output: Vec<u8>,
    /// Bytes of `output` that are gone.
    sent: usize,
    events: Option<EventSet>,
    lagged: u64,
    /// Requests that wait for their answer.
    pub(super) unanswered: usize,
    /// Cleared when it ends, for those who still work for it.
    pub(super) connected: Arc<AtomicBool>,
    reading: bool,
    broken: bool,
}

/// A line that was too long.
#[derive(Debug)]
pub(super) struct TooLong;

impl Connection {
    /// `stream` must not block.
    pub(super) fn new(stream: UnixStream) -> Self {
        Self {
            stream,
            input: Vec::new(),
            scanned: 0,
            descriptors: Vec::new(),
            output: Vec::new(),
            sent: 0,
            events: None,
            lagged: 0,
            unanswered: 0,
            connected: Arc::new(AtomicBool::new(true)),
            reading: true,
            broken: false,
        }
    }

    /// Takes in what has come, a chunk at most, so that no client keeps the others waiting.
    pub(super) fn receive(&mut self) {
        if !self.reading {
            return;
        }
        let mut chunk = [0; CHUNK_BYTES];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut into = [IoSliceMut::new(&mut chunk)];
        match recvmsg(&self.stream, &mut into, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Ok(message) => {
                for ancillary in control.drain() {
                    if let RecvAncillaryMessage::ScmRights(descriptors) = ancillary {
                        self.descriptors.extend(descriptors);
                        self.descriptors.truncate(DESCRIPTORS_MAX);
                    }
                }
                match chunk.get(..message.bytes) {
                    Some([]) | None => self.stop_reading(),
                    Some(bytes) => self.input.extend_from_slice(bytes),
                }
            }
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
            Err(_) => self.broken = true,
        }
    }

    /// The next whole line, without its newline.
    pub(super) fn next_line(&mut self) -> Option<Result<Vec<u8>, TooLong>> {
        if !self.reading && self.input.is_empty() {
            return None;
        }
        let unscanned = self.input.get(self.scanned..).unwrap_or_default();
        let Some(newline) = unscanned.iter().position(|byte| *byte == b'\n').map(|at| at + self.scanned)
        else {
            self.scanned = self.input.len();
            if self.input.len() < LINE_BYTES_MAX {
                if self.input.is_empty() {
                    self.descriptors.clear();
                }
                return None;
            }
            return Some(Err(TooLong));
        };
        self.scanned = 0;
        let mut line: Vec<u8> = self.input.drain(..=newline).collect();
        line.pop();
        Some(if line.len() < LINE_BYTES_MAX { Ok(line) } else { Err(TooLong) })
    }

    /// The descriptors that came with the line just read.
    pub(super) fn take_descriptors(&mut self) -> Vec<OwnedFd> {
        std::mem::take(&mut self.descriptors)
    }

    /// What the client sends from now on is not read; what is queued for it still goes out.
    pub(super) fn stop_reading(&mut self) {
        self.reading = false;
        self.input = Vec::new();
        self.scanned = 0;
        self.descriptors.clear();
    }

    /// Ends once what is queued has gone out.
    pub(super) fn close(&mut self) {
        self.stop_reading();
        self.events = None;
        self.unanswered = 0;
    }

    /// Queues an answer and sends what can be sent. A client for whom there is no room is beyond help.
    pub(super) fn send(&mut self, line: &[u8]) {
        if self.queued() + line.len() > OUTPUT_BYTES_MAX {
            self.broken = true;
            return;
        }
        self.output.extend_from_slice(line);
        self.flush();
    }

    pub(super) fn subscribe(&mut self, events: EventSet) {
        self.events = Some(events);
    }

    /// Sends an event that was asked for, or counts it as lost.
    pub(super) fn send_event(&mut self, name: &str, line: &[u8]) {
        if self.events.is_some_and(|events| events.contains(name)) {
            self.send_lagged();
            if self.lagged == 0 && self.has_room_for(line) {
                self.send(line);
            } else {
                self.lagged += 1;
            }
        }
    }

    /// Events were lost before they came here.
    pub(super) fn lose_events(&mut self, count: u64) {
        if self.events.is_some() {
            self.lagged += count;
            self.send_lagged();
        }
    }

    fn send_lagged(&mut self) {
        if self.lagged > 0 {
            let line = protocol::notification("lagged", &json!({"dropped": self.lagged}));
            if self.has_room_for(&line) {
                self.lagged = 0;
                self.send(&line);
            }
        }
    }

    fn has_room_for(&self, event: &[u8]) -> bool {
        self.queued() + event.len() <= OUTPUT_BYTES_MAX / 2
    }

    fn queued(&self) -> usize {
        self.output.len() - self.sent
    }

    /// Sends as much as the client's socket takes.
    pub(super) fn flush(&mut self) {
        while let Some(rest) = self.output.get(self.sent..).filter(|rest| !rest.is_empty()) {
            match self.stream.write(rest) {
                Ok(0) => self.broken = true,
                Ok(count) => self.sent += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => self.broken = true,
            }
            if self.broken {
                return;
            }
        }
        if self.queued() == 0 {
            // Idle clients hold no memory.
            self.output = Vec::new();
            self.sent = 0;
        } else if self.sent > OUTPUT_BYTES_MAX / 4 {
            self.output.drain(..self.sent);
            self.sent = 0;
        }
    }

    /// The socket took bytes again: the rest, and word of lost events.
    pub(super) fn resume_sending(&mut self) {
        self.flush();
        self.send_lagged();
    }

    pub(super) fn wants_read(&self) -> bool {
        self.reading && !self.broken
    }

    pub(super) fn wants_write(&self) -> bool {
        self.queued() > 0
    }

    /// The other side has closed both ways.
    pub(super) fn hung_up(&mut self) {
        self.broken = true;
    }

    /// Nothing more will come of it: no requests, no answers under way, no events to wait for.
    pub(super) fn is_over(&self) -> bool {
        self.broken || (!self.reading && self.unanswered == 0 && self.queued() == 0 && self.events.is_none())
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.connected.store(false, Ordering::Relaxed);
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}
