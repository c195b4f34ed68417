//! The host's transfers as `usbmon` sees them: what was asked of a device, how it ended, and how long it took.
//!
//! The kernel keeps the newest events in a ring of 300 KiB until they are read, which an enumeration does not fill.

use std::collections::HashMap;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::tool;

/// What `usbmon` puts before the data of each event (`struct mon_bin_hdr` without its last fields).
const HEAD: usize = 48;

/// Bytes of a Command Block Wrapper, and where in it the command starts.
const CBW: usize = 31;
const CBW_CDB: usize = 15;

/// CLEAR_FEATURE(ENDPOINT_HALT), but for the endpoint's number.
const CLEAR_HALT: [u8; 4] = [0x02, 0x01, 0x00, 0x00];

/// Linux's number for a transfer that the device answered with STALL.
const STALLED: i32 = -libc::EPIPE;

/// An open tap on all buses.
#[derive(Debug)]
pub struct Usbmon(File);

/// What was seen of one device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Opcodes of the SCSI commands, as they came.
    pub commands: Vec<u8>,
    /// Control transfers that the host started.
    pub control: u32,
    /// Bulk transfers that the host started.
    pub bulk: u32,
    /// Transfers on bulk endpoints that ended with STALL.
    pub stalls: u32,
    /// CLEAR_FEATURE(ENDPOINT_HALT) sent by the host.
    pub cleared: u32,
    /// The longest that one bulk transfer took.
    pub longest: Duration,
}

/// The opcodes in hexadecimal, as people know them.
impl fmt::Display for Traffic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { commands, control, bulk, stalls, cleared, longest } = self;
        write!(f, "{control} control and {bulk} bulk transfers, {stalls} stalls, {cleared} halts cleared, ")?;
        write!(f, "longest {longest:?}, commands {commands:02x?}")
    }
}

impl Usbmon {
    /// Begins to listen.
    ///
    /// # Errors
    /// The kernel has no `usbmon`.
    pub fn start() -> Result<Self> {
        tool::run("modprobe", ["usbmon"])?;
        let tap = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open("/dev/usbmon0");
        tap.map(Self).context("the host has no /dev/usbmon0")
    }

    /// What has been seen of the device with this number until now.
    ///
    /// # Errors
    /// `usbmon` does not give whole events.
    pub fn traffic(mut self, device: u32) -> Result<Traffic> {
        let mut events = Vec::new();
        let mut buffer = vec![0; 64 * 1024];
        loop {
            match self.0.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => events.push(Event::parse(buffer.get(..read).unwrap_or_default())?),
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error).context("cannot read from usbmon"),
            }
        }
        Ok(count(events.iter().filter(|event| u32::from(event.device) == device)))
    }
}

/// A transfer's start or end.
#[derive(Clone, Copy, Debug)]
struct Event {
    /// Of the CBW that it carries.
    opcode: Option<u8>,
    /// Of the transfer, from start to end.
    id: u64,
    starts: bool,
    bulk: bool,
    device: u8,
    at: Duration,
    status: i32,
    setup: [u8; 8],
}

impl Event {
    fn parse(bytes: &[u8]) -> Result<Self> {
        let Some(head) = bytes.first_chunk::<HEAD>() else {
            bail!("an event of {} bytes", bytes.len());
        };
        let seconds = u64::from_ne_bytes(field(head, 16)?);
        let micros = u32::from_ne_bytes(field(head, 24)?);
        let [kind, transfer, _, device] = field(head, 8)?;
        let cbw = bytes.get(HEAD..HEAD + CBW).filter(|data| data.starts_with(b"USBC"));
        Ok(Self {
            opcode: cbw.and_then(|cbw| cbw.get(CBW_CDB)).copied(),
            id: u64::from_ne_bytes(field(head, 0)?),
            starts: kind == b'S',
            bulk: transfer == 3,
            device,
            at: Duration::from_secs(seconds) + Duration::from_micros(micros.into()),
            status: i32::from_ne_bytes(field(head, 28)?),
            setup: field(head, 40)?,
        })
    }
}

fn field<const N: usize>(head: &[u8; HEAD], at: usize) -> Result<[u8; N]> {
    head.get(at..at + N).and_then(|bytes| bytes.try_into().ok()).context("a field outside of the head")
}

fn count<'a>(events: impl Iterator<Item = &'a Event>) -> Traffic {
    let mut traffic = Traffic::default();
    let mut started = HashMap::new();
    for event in events {
        match (event.starts, event.bulk) {
            (true, true) => {
                traffic.bulk += 1;
                traffic.commands.extend(event.opcode);
                started.insert(event.id, event.at);
            }
            (true, false) => {
                traffic.control += 1;
                traffic.cleared += u32::from(event.setup.starts_with(&CLEAR_HALT));
            }
            (false, true) => {
                traffic.stalls += u32::from(event.status == STALLED);
                if let Some(start) = started.remove(&event.id) {
                    traffic.longest = traffic.longest.max(event.at.saturating_sub(start));
                }
            }
            (false, false) => {}
        }
    }
    traffic
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{Event, HEAD, Traffic, count};

    /// Laid out by hand after the kernel's Documentation/usb/usbmon.rst.
    fn event(id: u8, kind: u8, transfer: u8, micros: u32, status: i32, setup: [u8; 8]) -> Vec<u8> {
        let mut bytes = vec![0; HEAD];
        bytes[0] = id;
        bytes[8..12].copy_from_slice(&[kind, transfer, 0x81, 7]);
        bytes[16] = 5;
        bytes[24..28].copy_from_slice(&micros.to_ne_bytes());
        bytes[28..32].copy_from_slice(&status.to_ne_bytes());
        bytes[40..48].copy_from_slice(&setup);
        bytes
    }

    #[test]
    fn traffic_is_counted_by_kind_and_the_longest_transfer_found() {
        let clear = [0x02, 0x01, 0, 0, 0x81, 0, 0, 0];
        let other = [0xa1, 0xfe, 0, 0, 0, 0, 1, 0];
        let none = [0; 8];
        let mut inquiry = event(4, b'S', 3, 345, -115, none);
        inquiry.extend(b"USBC\x01\0\0\0\x24\0\0\0\x80\0\x06\x12\0\0\0\x24\0\0\0\0\0\0\0\0\0\0\0");
        let bytes = [
            event(1, b'S', 2, 0, -115, other),
            event(1, b'C', 2, 10, 0, none),
            event(2, b'S', 3, 20, -115, none),
            event(2, b'C', 3, 320, -32, none),
            event(3, b'S', 2, 330, -115, clear),
            event(3, b'C', 2, 340, -32, none),
            inquiry,
            event(2, b'S', 3, 350, -115, none),
            event(2, b'C', 3, 400, 0, none),
        ];
        let events: Vec<Event> = bytes.iter().map(|bytes| Event::parse(bytes).unwrap()).collect();
        assert!(events.iter().all(|event| event.device == 7));
        let expected = Traffic {
            commands: vec![0x12],
            control: 2,
            bulk: 3,
            stalls: 1,
            cleared: 1,
            longest: Duration::from_micros(300),
        };
        assert_eq!(count(events.iter()), expected);
        assert!(Event::parse(&[0; HEAD - 1]).is_err());
    }
}
