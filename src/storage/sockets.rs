//! TCP sockets of this machine that wait in vain, through the kernel's sock_diag(7), and their end.
//!
//! Called by `reconnect`. A dump asks for all sockets in two states; one is closed by the same identity that the dump gave, so that it
//! is never another that has come to its place.

use std::{
    io::{self, ErrorKind},
    net::{IpAddr, SocketAddr},
    os::fd::{AsRawFd, OwnedFd},
};

use nix::{
    errno::Errno,
    sys::{
        socket::{
            AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, setsockopt, socket,
            sockopt::ReceiveTimeout,
        },
        time::{TimeVal, TimeValLike},
    },
};
use zerocopy::{
    FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout,
    byteorder::network_endian::{U16, U32},
};

/// linux/sock_diag.h.
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
/// linux/netlink.h.
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_DUMP: u16 = 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// A set of states: bits 1 and 2 (net/tcp_states.h).
const ESTABLISHED_AND_SYN_SENT: u32 = 1 << 1 | 1 << 2;
const SYN_SENT: u8 = 2;
/// `idiag_timer` of one that retransmits (net/ipv4/inet_diag.c).
const RETRANSMITS: u8 = 1;
/// Retransmissions in vain after which a socket is stuck: about a second.
const IN_VAIN: u8 = 2;
/// A whole piece of a dump fits.
const PIECE: usize = 32 * 1024;
/// The kernel answers at once.
const ANSWER_S: i64 = 5;

/// struct nlmsghdr, in this machine's order of bytes.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct Header {
    len: u32,
    kind: u16,
    flags: u16,
    seq: u32,
    port: u32,
}
const _: () = assert!(size_of::<Header>() == 16);

/// struct inet_diag_sockid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct Id {
    local_port: U16,
    peer_port: U16,
    local: [U32; 4],
    peer: [U32; 4],
    interface: u32,
    cookie: [u32; 2],
}
const _: () = assert!(size_of::<Id>() == 48);

/// struct inet_diag_req_v2.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct Request {
    header: Header,
    family: u8,
    protocol: u8,
    extensions: u8,
    pad: u8,
    states: u32,
    id: Id,
}
const _: () = assert!(size_of::<Request>() == 16 + 56);

/// The head of struct inet_diag_msg.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
struct Found {
    family: u8,
    state: u8,
    timer: u8,
    retransmitted: u8,
    id: Id,
}

/// A socket on which nothing comes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stuck {
    family: u8,
    id: Id,
}

/// The kernel's end.
#[derive(Debug)]
pub(super) struct Diagnosis(OwnedFd);

impl Diagnosis {
    /// # Errors
    /// A kernel without sock_diag.
    pub(super) fn new() -> io::Result<Self> {
        let protocol = SockProtocol::NetlinkSockDiag;
        let socket = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
        setsockopt(&socket, ReceiveTimeout, &TimeVal::seconds(ANSWER_S))?;
        Ok(Self(socket))
    }

    /// All TCP sockets that are stuck.
    ///
    /// # Errors
    /// A kernel without inet_diag, or what it says makes no sense.
    pub(super) fn stuck(&self) -> io::Result<Vec<Stuck>> {
        let mut stuck = Vec::new();
        for family in [libc::AF_INET, libc::AF_INET6] {
            let family = u8::try_from(family).map_err(io::Error::other)?;
            let any = Id::new_zeroed();
            self.send(SOCK_DIAG_BY_FAMILY, NLM_F_DUMP, family, any)?;
            self.receive(|found| stuck.extend(found.stuck()))?;
        }
        Ok(stuck)
    }

    /// Ends a connection: whoever uses it gets ECONNABORTED. One that has ended meanwhile is as good.
    ///
    /// # Errors
    /// No right to (CAP_NET_ADMIN), or a kernel that does not do it.
    pub(super) fn close(&self, stuck: &Stuck) -> io::Result<()> {
        self.send(SOCK_DESTROY, NLM_F_ACK, stuck.family, stuck.id)?;
        match self.receive(|_| ()) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
            closed => closed,
        }
    }

    fn send(&self, kind: u16, flags: u16, family: u8, id: Id) -> io::Result<()> {
        let len = u32::try_from(size_of::<Request>()).map_err(io::Error::other)?;
        let header = Header { len, kind, flags: NLM_F_REQUEST | flags, seq: 1, port: 0 };
        let protocol = u8::try_from(libc::IPPROTO_TCP).map_err(io::Error::other)?;
        let states = ESTABLISHED_AND_SYN_SENT;
        let request = Request { header, family, protocol, extensions: 0, pad: 0, states, id };
        send(self.0.as_raw_fd(), request.as_bytes(), MsgFlags::empty())?;
        Ok(())
    }

    /// All of an answer.
    fn receive(&self, mut each: impl FnMut(&Found)) -> io::Result<()> {
        let mut buffer = vec![0; PIECE];
        loop {
            let len = recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
            let mut rest = buffer.get(..len).unwrap_or_default();
            if rest.is_empty() {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            while let Ok((header, body)) = Header::read_from_prefix(rest) {
                match header.kind {
                    NLMSG_DONE => return Ok(()),
                    NLMSG_ERROR => {
                        let (error, _) = i32::read_from_prefix(body).unwrap_or_default();
                        return if error == 0 { Ok(()) } else { Err(Errno::from_raw(-error).into()) };
                    }
                    _ => {
                        if let Ok((found, _)) = Found::read_from_prefix(body) {
                            each(&found);
                        }
                    }
                }
                let next = usize::try_from(header.len.max(16)).map_err(io::Error::other)?;
                rest = rest.get(next.next_multiple_of(4)..).unwrap_or_default();
            }
        }
    }
}

impl Found {
    fn stuck(&self) -> Option<Stuck> {
        let in_vain = self.timer == RETRANSMITS && self.retransmitted >= IN_VAIN;
        (in_vain || self.state == SYN_SENT && self.retransmitted > 0)
            .then_some(Stuck { family: self.family, id: self.id })
    }
}

impl Stuck {
    /// Whom it waits for.
    pub(super) fn peer(&self) -> SocketAddr {
        let [first, ..] = self.id.peer;
        let address = if i32::from(self.family) == libc::AF_INET {
            IpAddr::from(first.get().to_be_bytes())
        } else {
            let mut bytes = [0; 16];
            bytes.copy_from_slice(self.id.peer.as_bytes());
            IpAddr::from(bytes)
        };
        SocketAddr::new(address, self.id.peer_port.get())
    }
}
