//! FunctionFS bytes for one USB Bulk-Only mass storage function: descriptors, strings, and the events of ep0.
//!
//! A daemon writes [`descriptors()`] and then [`strings`] to ep0, after which the endpoint files [`EP_IN`] and [`EP_OUT`]
//! appear, and reads [`Event`]s from ep0. Nothing here does I/O: bytes in, bytes out.
//!
//! Invariants: all integers on the wire are little-endian; the interface is 08/06/50 (mass storage, SCSI transparent,
//! Bulk-Only; BOT 1.0 §4.3) with one bulk IN and one bulk OUT endpoint at each of three speeds.
#![forbid(unsafe_code)]
#![deny(clippy::as_conversions, clippy::indexing_slicing)]

mod descriptors;
mod event;
mod wire;

pub use descriptors::{InterfaceName, InterfaceNameError, MaxBurst, descriptors, strings};
pub use event::{ClassRequest, EVENT_LEN, Event, EventError, SetupRequest, events};
pub use wire::ENDPOINT_DESC_LEN;

/// The file of the bulk IN endpoint in the mounted directory: the first endpoint in [`descriptors()`].
pub const EP_IN: &str = "ep1";

/// The file of the bulk OUT endpoint: the second endpoint in [`descriptors()`].
pub const EP_OUT: &str = "ep2";

/// A bus speed that the descriptors are written for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Speed {
    /// 12 Mbit/s.
    Full,
    /// 480 Mbit/s.
    High,
    /// 5 Gbit/s and above.
    Super,
}

impl Speed {
    /// The only wMaxPacketSize a bulk endpoint may have at this speed; at full speed the largest (USB 2.0 §5.8.3, USB 3.2 §8.12.1).
    pub const fn bulk_max_packet(self) -> u16 {
        match self {
            Self::Full => 64,
            Self::High => 512,
            Self::Super => 1024,
        }
    }
}
