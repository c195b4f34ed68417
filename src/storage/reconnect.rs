//! Connections to file servers that were gone, made anew as soon as they are back.
//!
//! The kernel's NFS and CIFS clients keep a connection through an outage, and TCP sends on it ever more rarely: after 20 seconds of
//! silence it may wait for as long again before it notices that the server has returned. So, while a source is offline, each server
//! with such a connection is knocked at from here; when it opens, its stuck connections are closed, and the client makes new ones
//! at once. What it had asked, it asks again, as after any lost connection.
//!
//! `ringdrived` wakes the thread with each source that goes offline; it sleeps again when nothing is stuck. Only connections to
//! servers of mounts are touched, and of those only such on which something is unanswered.

use std::{
    io,
    net::{SocketAddr, TcpStream},
    thread,
    time::Duration,
};

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};

use super::sockets::{Diagnosis, Stuck};
use crate::mounts::{self, Mount};

/// Between two knocks.
const KNOCK_EVERY: Duration = Duration::from_millis(500);
/// How long a server may take to open.
const OPEN_LIMIT: Duration = Duration::from_millis(800);
/// Knocks without a stuck connection until the thread sleeps: a connection only just lost is not stuck yet.
const IDLE_KNOCKS: u32 = 20;
const NFS_PORT: u16 = 2049;
const CIFS_PORT: u16 = 445;

/// The thread; it ends when this is dropped.
#[derive(Debug)]
pub struct Reconnect {
    wake: Sender<()>,
}

impl Reconnect {
    /// Starts it, asleep.
    ///
    /// # Errors
    /// There is no thread to be had.
    pub fn start() -> io::Result<Self> {
        let (wake, woken) = bounded(1);
        thread::Builder::new().name("reconnect".into()).spawn(move || run(&woken))?;
        Ok(Self { wake })
    }

    /// Some source has gone offline. Does not block.
    pub fn wake(&self) {
        match self.wake.try_send(()) {
            // Woken already; or the thread has given up, and has said so.
            Ok(()) | Err(TrySendError::Full(()) | TrySendError::Disconnected(())) => {}
        }
    }
}

fn run(woken: &Receiver<()>) {
    while woken.recv().is_ok() {
        if let Err(error) = knock_while_stuck() {
            // Kernels without CONFIG_INET_DIAG_DESTROY, or a daemon without CAP_NET_ADMIN.
            tracing::info!(%error, "connections to file servers are left to the kernel to make anew, which may take longer");
            return;
        }
    }
}

fn knock_while_stuck() -> io::Result<()> {
    let diagnosis = Diagnosis::new()?;
    let mut idle = 0;
    while idle < IDLE_KNOCKS {
        let servers: Vec<SocketAddr> = mounts::all().iter().filter_map(server).collect();
        let stuck: Vec<Stuck> =
            diagnosis.stuck()?.into_iter().filter(|stuck| servers.contains(&stuck.peer())).collect();
        idle = if stuck.is_empty() { idle + 1 } else { 0 };
        let mut peers: Vec<SocketAddr> = stuck.iter().map(Stuck::peer).collect();
        peers.sort();
        peers.dedup();
        for peer in peers {
            if TcpStream::connect_timeout(&peer, OPEN_LIMIT).is_ok() {
                tracing::info!(server = %peer, "the server is back; its connections are made anew");
                stuck
                    .iter()
                    .filter(|stuck| stuck.peer() == peer)
                    .try_for_each(|stuck| diagnosis.close(stuck))?;
            }
        }
        thread::sleep(KNOCK_EVERY);
    }
    Ok(())
}

/// The server of a mount, by the options that the kernel shows.
fn server(mount: &Mount) -> Option<SocketAddr> {
    let default = match mount.kind.as_str() {
        "nfs" | "nfs4" => NFS_PORT,
        "cifs" | "smb3" => CIFS_PORT,
        _ => return None,
    };
    let option = |name: &str| mount.options.split(',').find_map(|option| option.strip_prefix(name));
    let port = option("port=").and_then(|port| port.parse().ok()).filter(|port| *port != 0);
    Some(SocketAddr::new(option("addr=")?.parse().ok()?, port.unwrap_or(default)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lines as Linux 6.12 shows such mounts.
    #[test]
    fn servers_are_found_in_what_the_kernel_shows() {
        let of = |kind: &str, options: &str| {
            let (device, point) = (1, "/mnt".into());
            let mount =
                Mount { device, point, kind: kind.into(), source: String::new(), options: options.into() };
            server(&mount).map(|server| server.to_string())
        };
        let v3 = "ro,vers=3,rsize=1048576,hard,proto=tcp,mountaddr=10.0.0.9,mountport=20048,addr=10.0.0.5";
        assert_eq!(of("nfs", v3).as_deref(), Some("10.0.0.5:2049"));
        let v4 = "rw,vers=4.2,hard,proto=tcp6,port=12049,clientaddr=::1,addr=fd00::5";
        assert_eq!(of("nfs4", v4).as_deref(), Some("[fd00::5]:12049"));
        let cifs = "ro,vers=3.1.1,cache=strict,username=alice,addr=10.0.0.5,soft,echo_interval=10";
        assert_eq!(of("cifs", cifs).as_deref(), Some("10.0.0.5:445"));
        assert_eq!(of("ext4", "rw,addr=10.0.0.5"), None);
        assert_eq!(of("nfs", "ro,vers=3"), None);
    }
}
