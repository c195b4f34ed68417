//! The control socket: how people and programs talk to a running daemon.
//!
//! `ringdrived` calls [`Server::bind`] early (a second daemon learns here that there is a first), hands [`Server::events`] to
//! whoever has something to tell, and calls [`Server::start`] when its functions run. `ringdrive` and others use [`Client`].
//! `docs/control.md` is the protocol; a test keeps it and [`protocol`] the same.
//!
//! One thread serves all clients from one poll(2) loop and never blocks: requests go to the functions' threads through
//! [`crate::drive::Handle`] and come back through an inbox with an eventfd; images are opened on short-lived threads,
//! because a file server may hang. Everything is bounded, so that no client can disturb another, or a drive:
//!
//! | what | bound | beyond it |
//! |---|---|---|
//! | clients | [`CLIENTS_MAX`] | one error line, closed |
//! | a line | [`protocol::LINE_BYTES_MAX`] | one error line, closed |
//! | unanswered requests of a client | [`REQUESTS_PER_CLIENT_MAX`] | refused as `busy` |
//! | inserts that are opening their image | [`OPENING_MAX`] | refused as `busy` |
//! | replugs | 1 | refused as `busy` |
//! | bytes that a client has not read | [`OUTPUT_BYTES_MAX`] | events are dropped and counted, then closed |
//! | events that the server has not read | [`EVENTS_MAX`] | dropped and counted |

mod client;
mod connection;
mod failure;
mod inbox;
mod insert;
mod overlay;
mod peer;
pub mod protocol;
mod server;
mod service;
mod socket;
mod source;
mod stats;

pub use client::{Client, ClientError};
pub use failure::with_sources;
pub use inbox::EventSink;
pub use server::{Daemon, FunctionHandle, Running, Server};
pub use socket::SocketError;

/// Clients at a time.
pub const CLIENTS_MAX: usize = 64;
/// Requests of one client that wait for their answer.
pub const REQUESTS_PER_CLIENT_MAX: usize = 16;
/// Inserts, of all clients, that wait for their image to be opened.
pub const OPENING_MAX: usize = 8;
/// Bytes that wait for one client to read them. Events may take half of it, so that answers find room.
pub const OUTPUT_BYTES_MAX: usize = 1 << 20;
/// Events that wait for the server's thread.
pub const EVENTS_MAX: usize = 1024;
