//! A blocking client: one request at a time, and events. For the command line and for tests.

use std::collections::VecDeque;
use std::io::{self, IoSlice, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::sockopt::SendTimeout;
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, connect, sendmsg, setsockopt,
    socket,
};
use nix::sys::time::{TimeVal, TimeValLike};
use serde_json::{Value, json};

use super::OUTPUT_BYTES_MAX;

/// Notifications that are kept while an answer is awaited.
const NOTIFICATIONS_MAX: usize = 1024;

/// Why there is no result.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens, or we may not talk to them.
    #[error("cannot reach ringdrived on {path}; is it running, and is {path} its socket?")]
    Unreachable {
        /// The socket.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The daemon refused.
    #[error("{message}; {cure}")]
    Refused {
        /// The closed list of `docs/control.md`.
        code: i64,
        /// Its name there.
        kind: String,
        /// Cause.
        message: String,
        /// Cure.
        cure: String,
    },
    /// No answer in time. The request may still be carried out.
    #[error("no answer within {}; try a longer --timeout", Seconds(*.0))]
    Timeout(Duration),
    /// The daemon ended the connection.
    #[error("ringdrived ended the connection; see its log")]
    Closed,
    /// What came is not what this client knows.
    #[error("ringdrived said what this client does not understand: {0}; are both of the same version?")]
    Protocol(String),
    /// The kernel refused.
    #[error("cannot talk to ringdrived; try again")]
    Io(#[from] io::Error),
}

fn time_val(timeout: Duration) -> TimeVal {
    let micros = i64::try_from(timeout.as_micros()).unwrap_or(i64::MAX);
    // Zero would mean for ever.
    TimeVal::microseconds(micros.max(1))
}

struct Seconds(Duration);

impl std::fmt::Display for Seconds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} s", self.0.as_secs_f64())
    }
}

/// A connection to a daemon.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    timeout: Duration,
    input: Vec<u8>,
    notifications: VecDeque<Value>,
    next_id: u64,
}

impl Client {
    /// Connects; every later call gets `timeout` to be answered.
    ///
    /// # Errors
    /// [`ClientError::Unreachable`].
    pub fn connect(path: &Path, timeout: Duration) -> Result<Self, ClientError> {
        let unreachable =
            |errno: Errno| ClientError::Unreachable { path: path.to_owned(), source: errno.into() };
        let socket = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)
            .map_err(unreachable)?;
        // Bounds connect(2) too, which waits while the daemon's backlog is full.
        setsockopt(&socket, SendTimeout, &time_val(timeout)).map_err(unreachable)?;
        let address = UnixAddr::new(path).map_err(unreachable)?;
        loop {
            match connect(socket.as_raw_fd(), &address) {
                Ok(()) => break,
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Err(ClientError::Timeout(timeout)),
                Err(errno) => return Err(unreachable(errno)),
            }
        }
        let stream = UnixStream::from(socket);
        Ok(Self { stream, timeout, input: Vec::new(), notifications: VecDeque::new(), next_id: 1 })
    }

    /// Calls a method and waits for its result, passing `descriptor` along if there is one.
    ///
    /// # Errors
    /// Any [`ClientError`]; [`ClientError::Refused`] is the daemon's word.
    pub fn call(
        &mut self,
        method: &str,
        params: &Value,
        descriptor: Option<BorrowedFd<'_>>,
    ) -> Result<Value, ClientError> {
        let id = self.next_id;
        self.next_id += 1;
        let deadline = Instant::now() + self.timeout;
        let request = json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params});
        // A daemon that turns us away has said why before it closed: read even where sending fails.
        let _ = self.send(format!("{request}\n").as_bytes(), descriptor);
        loop {
            let message = self.receive(Some(deadline))?.ok_or(ClientError::Timeout(self.timeout))?;
            if message.get("method").is_some() {
                if self.notifications.len() < NOTIFICATIONS_MAX {
                    self.notifications.push_back(message);
                }
                continue;
            }
            let answered = message.get("id").unwrap_or(&Value::Null);
            if *answered == json!(id) || answered.is_null() {
                return result_of(message);
            }
        }
    }

    /// The next event or `lagged`, as `{"method": …, "params": …}`; `None` when `wait` is over. `wait` of `None` is for ever.
    ///
    /// # Errors
    /// [`ClientError::Closed`] at the daemon's end, [`ClientError::Protocol`], [`ClientError::Io`].
    pub fn notification(&mut self, wait: Option<Duration>) -> Result<Option<Value>, ClientError> {
        let deadline = wait.map(|wait| Instant::now() + wait);
        if let Some(kept) = self.notifications.pop_front() {
            return Ok(Some(kept));
        }
        loop {
            match self.receive(deadline)? {
                None => return Ok(None),
                Some(message) if message.get("method").is_some() => return Ok(Some(message)),
                // An answer to a call that was given up.
                Some(_) => {}
            }
        }
    }

    /// Whether [`Client::notification`] would find one without waiting for the socket.
    pub fn has_buffered(&self) -> bool {
        !self.notifications.is_empty() || self.input.contains(&b'\n')
    }

    fn send(&mut self, mut bytes: &[u8], descriptor: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let descriptors: Vec<_> = descriptor.iter().map(|fd| fd.as_raw_fd()).collect();
        let mut control: &[_] = &[ControlMessage::ScmRights(&descriptors)];
        if descriptors.is_empty() {
            control = &[];
        }
        while !bytes.is_empty() {
            let sent = sendmsg::<()>(
                self.stream.as_raw_fd(),
                &[IoSlice::new(bytes)],
                control,
                MsgFlags::MSG_NOSIGNAL,
                None,
            );
            match sent {
                Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
                Err(Errno::EINTR) => continue,
                Err(errno) => return Err(errno.into()),
            }
            control = &[];
        }
        Ok(())
    }

    fn receive(&mut self, deadline: Option<Instant>) -> Result<Option<Value>, ClientError> {
        loop {
            if let Some(newline) = self.input.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.input.drain(..=newline).collect();
                return serde_json::from_slice(&line)
                    .map(Some)
                    .map_err(|error| ClientError::Protocol(error.to_string()));
            }
            if self.input.len() > OUTPUT_BYTES_MAX {
                return Err(ClientError::Protocol("a line without an end".to_owned()));
            }
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return Ok(None);
            }
            self.stream.set_read_timeout(left)?;
            let mut chunk = [0; 16 * 1024];
            match self.stream.read(&mut chunk) {
                Ok(0) => return Err(ClientError::Closed),
                Ok(count) => self.input.extend_from_slice(chunk.get(..count).unwrap_or_default()),
                Err(error) => match error.kind() {
                    io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock => {}
                    io::ErrorKind::ConnectionReset => return Err(ClientError::Closed),
                    _ => return Err(error.into()),
                },
            }
        }
    }
}

fn result_of(mut message: Value) -> Result<Value, ClientError> {
    if let Some(result) = message.get_mut("result") {
        return Ok(result.take());
    }
    let text = |value: Option<&Value>| value.and_then(Value::as_str).map(str::to_owned);
    let error = message.get("error");
    let data = error.and_then(|error| error.get("data"));
    let refused = error.and_then(|error| {
        Some(ClientError::Refused {
            code: error.get("code")?.as_i64()?,
            kind: text(data?.get("kind"))?,
            message: text(error.get("message"))?,
            cure: text(data?.get("cure"))?,
        })
    });
    Err(refused.unwrap_or_else(|| ClientError::Protocol(message.to_string())))
}

impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}
