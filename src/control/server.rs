//! The server's thread: accepts, reads, writes, and never waits for anything but poll(2).

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::getsockopt;
use nix::sys::socket::sockopt::PeerCredentials;
use nix::unistd::{Gid, Uid, geteuid};
use serde_json::{Value, json};

use super::connection::{Connection, TooLong};
use super::failure::{ErrorKind, Failure};
use super::inbox::{ClientId, EventSink, Inbox, Message, Pending, Reply};
use super::peer::{Permission, groups_of};
use super::protocol::{self, Awaited, Call, LINE_BYTES_MAX, event_name};
use super::service::Service;
use super::socket::{Listener, SocketError, find_group};
use super::{CLIENTS_MAX, REQUESTS_PER_CLIENT_MAX, stats};
use crate::config;
use crate::drive::{DriveIndex, Handle};
use crate::media::compressed::Expander;
use crate::media::overlay::Overlays;
use crate::media::url::Cache;
use crate::storage::AreaReport;

/// Connections accepted before clients have their turn again.
const ACCEPTS_PER_TURN: usize = 16;
/// How long nobody is accepted after the process ran out of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// What the socket can ask of the daemon as a whole.
pub trait Daemon: Send + Sync {
    /// Unplugs the gadget from the host and plugs it in again. Called on a thread of its own; may block.
    ///
    /// # Errors
    /// A message of the form "cause; cure", as where the gadget is somebody else's.
    fn replug(&self) -> Result<(), String>;
    /// Starts the end of the daemon. Called on the server's thread, after the client has its answer; must not block, and above
    /// all not wait for [`Running::stop`].
    fn shutdown(&self);
    /// Where images behind URLs are fetched to; `None`: they are refused.
    fn cache(&self) -> Option<&Arc<Cache>> {
        None
    }
    /// Who expands compressed images; `None`: they are served as they are.
    fn expander(&self) -> Option<&Arc<Expander>> {
        self.cache().map(|cache| cache.expander())
    }
    /// Who makes overlays; `None`: they are refused.
    fn overlays(&self) -> Option<&Arc<Overlays>> {
        None
    }
    /// The storage areas. Called on the server's thread; must not block.
    fn areas(&self) -> Vec<AreaReport> {
        Vec::new()
    }
    /// The drives that wait for their image. Called on the server's thread; must not block.
    fn awaited(&self) -> Vec<(DriveIndex, Awaited)> {
        Vec::new()
    }
}

/// A function that runs, for [`Server::start`].
#[derive(Clone, Debug)]
pub struct FunctionHandle {
    /// The way to its thread.
    pub handle: Handle,
    /// The names of its drives, in the order of their LUNs.
    pub drives: Vec<String>,
}

/// A control socket that listens; clients that connect wait for [`Server::start`].
#[derive(Debug)]
pub struct Server {
    listener: Listener,
    permission: Permission,
    inbox: Arc<Inbox>,
}

/// A server whose thread runs. Dropped, it stops as by [`Running::stop`].
#[derive(Debug)]
pub struct Running {
    inbox: Arc<Inbox>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Makes the socket, and its directory where it lacks. A stale socket is replaced.
    ///
    /// # Errors
    /// [`SocketError`]: another daemon listens there, the group does not exist, or the kernel refuses.
    pub fn bind(control: &config::Control) -> Result<Self, SocketError> {
        let group = control.group.as_deref().map(find_group).transpose()?;
        let listener = Listener::bind(&control.socket, group)?;
        let inbox = Inbox::new().map_err(|source| SocketError::Io {
            step: "make an eventfd for",
            path: control.socket.clone(),
            source,
        })?;
        Ok(Self { listener, permission: Permission { own: geteuid(), group }, inbox: Arc::new(inbox) })
    }

    /// Where the functions' events go.
    pub fn events(&self) -> EventSink {
        EventSink(Arc::clone(&self.inbox))
    }

    /// The socket.
    pub fn path(&self) -> &Path {
        self.listener.path()
    }

    /// Serves `functions`, whose drives are numbered in this order.
    ///
    /// # Errors
    /// That of starting a thread.
    pub fn start(self, functions: Vec<FunctionHandle>, daemon: Arc<dyn Daemon>) -> io::Result<Running> {
        let Self { listener, permission, inbox } = self;
        let running = Arc::clone(&inbox);
        let service = Service::new(functions, daemon);
        let thread = thread::Builder::new().name("control".to_owned()).spawn(move || {
            Loop {
                listener,
                permission,
                inbox,
                service,
                clients: BTreeMap::new(),
                next_client: 0,
                accept_after: None,
            }
            .run();
        })?;
        Ok(Running { inbox: running, thread: Some(thread) })
    }
}

impl Running {
    /// Ends all connections, removes the socket, and joins the thread.
    pub fn stop(self) {
        drop(self);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.inbox.stop();
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the control socket's thread has panicked");
        }
    }
}

struct Loop {
    listener: Listener,
    permission: Permission,
    inbox: Arc<Inbox>,
    clients: BTreeMap<ClientId, Connection>,
    next_client: u64,
    accept_after: Option<Instant>,
    /// Last: it may have a replug to wait for, and clients need not.
    service: Service,
}

/// What poll(2) found.
struct Ready {
    inbox: bool,
    listener: bool,
    clients: Vec<(ClientId, PollFlags)>,
}

impl Loop {
    fn run(mut self) {
        loop {
            let ready = match self.wait() {
                Ok(ready) => ready,
                Err(Errno::EINTR) => continue,
                Err(errno) => {
                    tracing::error!(%errno, "the control socket cannot be polled and ends");
                    return;
                }
            };
            if ready.inbox && self.take_inbox() {
                return;
            }
            for (client, flags) in ready.clients {
                self.serve(client, flags);
            }
            self.clients.retain(|_, connection| !connection.is_over());
            if ready.listener {
                self.accept();
            }
        }
    }

    fn wait(&mut self) -> nix::Result<Ready> {
        let now = Instant::now();
        let pause = self.accept_after.map(|after| after.saturating_duration_since(now));
        if pause.is_some_and(|pause| pause.is_zero()) {
            self.accept_after = None;
        }
        let paused = self.accept_after.is_some();
        let timeout = match pause.filter(|_| paused) {
            None => PollTimeout::NONE,
            // Rounded up, lest the last millisecond spin.
            Some(pause) => {
                PollTimeout::try_from(pause + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX)
            }
        };
        let when = |wanted, flags| if wanted { flags } else { PollFlags::empty() };
        let mut fds = vec![
            PollFd::new(self.inbox.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.listener.socket.as_fd(), when(!paused, PollFlags::POLLIN)),
        ];
        fds.extend(self.clients.values().map(|client| {
            let flags =
                when(client.wants_read(), PollFlags::POLLIN) | when(client.wants_write(), PollFlags::POLLOUT);
            PollFd::new(client.as_fd(), flags)
        }));
        poll(&mut fds, timeout)?;
        let mut flags = fds.iter().map(|fd| fd.revents().unwrap_or(PollFlags::empty()));
        let inbox = flags.next().is_some_and(|flags| !flags.is_empty());
        let listener = flags.next().is_some_and(|flags| !flags.is_empty());
        let clients = self.clients.keys().copied().zip(flags).filter(|(_, flags)| !flags.is_empty());
        Ok(Ready { inbox, listener, clients: clients.collect() })
    }

    /// Whether it is time to stop.
    fn take_inbox(&mut self) -> bool {
        let taken = self.inbox.take();
        for message in taken.messages {
            match message {
                Message::Answer { client, id, result } => self.pass_answer(client, &id, result),
                Message::Event(event) => {
                    let name = event_name(&event);
                    let line = protocol::notification("event", &json!(event));
                    self.clients.values_mut().for_each(|client| client.send_event(name, &line));
                }
            }
        }
        if taken.dropped > 0 {
            self.clients.values_mut().for_each(|client| client.lose_events(taken.dropped));
        }
        taken.stop
    }

    fn pass_answer(&mut self, client: ClientId, id: &Value, result: Result<Reply, Failure>) {
        let Some(connection) = self.clients.get_mut(&client) else { return };
        connection.unanswered = connection.unanswered.saturating_sub(1);
        let result = result.map(|reply| match reply {
            Reply::Drives(drives) => self.service.report(drives),
            Reply::Stats(drives, detail) => stats::result(&drives, detail),
            Reply::Value(value) => value,
        });
        connection.send(&protocol::answer(id, result));
    }

    fn serve(&mut self, client: ClientId, flags: PollFlags) {
        let Some(connection) = self.clients.get_mut(&client) else { return };
        if flags.contains(PollFlags::POLLOUT) {
            connection.resume_sending();
        }
        if flags.contains(PollFlags::POLLIN) {
            connection.receive();
            while let Some(line) = self.clients.get_mut(&client).and_then(Connection::next_line) {
                self.serve_line(client, line);
            }
        } else if flags.intersects(PollFlags::POLLHUP | PollFlags::POLLERR | PollFlags::POLLNVAL) {
            connection.hung_up();
        }
    }

    fn serve_line(&mut self, client: ClientId, line: Result<Vec<u8>, TooLong>) {
        let Some(connection) = self.clients.get_mut(&client) else { return };
        let Ok(line) = line else {
            let failure = Failure::new(
                ErrorKind::InvalidRequest,
                format!("the line is longer than {LINE_BYTES_MAX} bytes"),
                "send one request a line",
            );
            connection.send(&protocol::answer(&Value::Null, Err(failure)));
            connection.close();
            return;
        };
        let protocol::Request { id, call } = match protocol::parse(&line) {
            Ok(request) => request,
            Err((id, failure)) => return connection.send(&protocol::answer(&id, Err(failure))),
        };
        match call {
            Call::Subscribe(events) => {
                connection.subscribe(events);
                connection.send(&protocol::answer(&id, Ok(json!({"events": events.names()}))));
            }
            Call::Shutdown => {
                connection.send(&protocol::answer(&id, Ok(json!({}))));
                self.service.shutdown();
            }
            _ if connection.unanswered == REQUESTS_PER_CLIENT_MAX => {
                let failure = Failure::new(
                    ErrorKind::Busy,
                    format!("{REQUESTS_PER_CLIENT_MAX} requests of this client wait for their answer"),
                    "wait for some of them",
                );
                connection.send(&protocol::answer(&id, Err(failure)));
            }
            call => {
                connection.unanswered += 1;
                let descriptors = match &call {
                    Call::Insert(insert) if insert.wants_descriptor() => connection.take_descriptors(),
                    _ => Vec::new(),
                };
                let connected = Arc::clone(&connection.connected);
                let pending = Pending::new(Arc::clone(&self.inbox), client, id, connected);
                self.service.call(call, descriptors, pending);
            }
        }
    }

    fn accept(&mut self) {
        for _ in 0..ACCEPTS_PER_TURN {
            match self.listener.socket.accept() {
                Ok((stream, _)) => self.admit(stream),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => match error.raw_os_error().map(Errno::from_raw) {
                    Some(Errno::EINTR | Errno::ECONNABORTED) => {}
                    _ => {
                        tracing::warn!(%error, "cannot accept on the control socket; trying again in a second");
                        self.accept_after = Some(Instant::now() + ACCEPT_PAUSE);
                        return;
                    }
                },
            }
        }
    }

    /// Makes room: whoever left before somebody new came does not count, even if poll(2) has not said so yet.
    fn remove_hung_up(&mut self) {
        let mut fds: Vec<_> =
            self.clients.values().map(|client| PollFd::new(client.as_fd(), PollFlags::empty())).collect();
        if poll(&mut fds, PollTimeout::ZERO).is_err() {
            return;
        }
        let hung_up: Vec<_> = self
            .clients
            .keys()
            .copied()
            .zip(&fds)
            .filter(|(_, fd)| fd.any() == Some(true))
            .map(|(id, _)| id)
            .collect();
        for client in hung_up {
            // What it asked for before it left is done all the same; there is an end to it.
            while self.clients.get(&client).is_some_and(Connection::wants_read) {
                self.serve(client, PollFlags::POLLIN);
            }
            self.clients.remove(&client);
        }
    }

    fn admit(&mut self, stream: UnixStream) {
        let Ok(peer) = getsockopt(&stream, PeerCredentials) else { return };
        if stream.set_nonblocking(true).is_err() {
            return;
        }
        let (uid, gid) = (Uid::from_raw(peer.uid()), Gid::from_raw(peer.gid()));
        if self.clients.len() >= CLIENTS_MAX {
            self.remove_hung_up();
        }
        let refusal = if self.clients.len() >= CLIENTS_MAX {
            Some(Failure::new(
                ErrorKind::TooManyClients,
                format!("too many clients: all {CLIENTS_MAX} places are taken"),
                "end one, and try again",
            ))
        } else if !self.permission.allows(uid, gid, groups_of) {
            Some(Failure::new(
                ErrorKind::NotPermitted,
                format!("user {uid} may not use this socket"),
                "become a member of the `group` in [control] of the daemon's configuration, or be root",
            ))
        } else {
            None
        };
        if let Some(failure) = refusal {
            // A new socket has room for a line; if not, there is nobody to tell.
            let _ = (&stream).write_all(&protocol::answer(&Value::Null, Err(failure)));
            return;
        }
        self.clients.insert(ClientId(self.next_client), Connection::new(stream));
        self.next_client += 1;
    }
}
