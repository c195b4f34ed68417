//! What ep0 says: events of twelve bytes, the setup packets in them, and which of those a Bulk-Only device answers.
//!
//! The kernel's queue holds four events and drops those that a later one makes meaningless, so an event is to be taken as the
//! state of now: ENABLE after ENABLE is a reset in between (kernel.md §1.1).

use zerocopy::FromBytes;

use crate::wire;

/// Bytes of one event.
pub const EVENT_LEN: usize = size_of::<wire::Event>();

/// One event of ep0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The gadget was bound to a controller.
    Bind,
    /// The gadget was unbound from its controller.
    Unbind,
    /// The host chose our configuration: endpoints work from now on.
    Enable,
    /// The host reset, disconnected or deconfigured us: endpoints are off.
    Disable,
    /// The host asks something on the control pipe and waits for our answer.
    Setup(SetupRequest),
    /// The bus is idle.
    Suspend,
    /// The bus goes on.
    Resume,
}

/// A setup packet (USB 2.0 §9.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SetupRequest {
    /// bmRequestType.
    pub request_type: u8,
    /// bRequest.
    pub request: u8,
    /// wValue.
    pub value: u16,
    /// wIndex; for an interface its number within this function.
    pub index: u16,
    /// wLength: most bytes of the data stage.
    pub length: u16,
}

/// The requests that Bulk-Only Transport defines (BOT 1.0 §3), and everything else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClassRequest {
    /// Bulk-Only Mass Storage Reset (BOT 1.0 §3.1): make ready for the next CBW, then acknowledge.
    Reset,
    /// Get Max LUN (BOT 1.0 §3.2): answer one byte, the highest LUN.
    GetMaxLun,
    /// Anything else: stall the control pipe.
    Unknown,
}

/// Bytes that are not an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EventError {
    /// The read did not end at the end of an event.
    #[error("ep0 gave {0} bytes after the last whole event; is this a FunctionFS ep0?")]
    Partial(usize),
    /// A type this version does not know.
    #[error("ep0 gave an event of unknown type {0}; the kernel is newer than this program knows")]
    Unknown(u8),
}

impl SetupRequest {
    /// Whether the data stage, if there is one, goes to the host. To stall such a request is to read from ep0, any other to
    /// write to it (kernel.md §1.2).
    pub const fn is_in(&self) -> bool {
        self.request_type & 0x80 != 0
    }

    /// Which Bulk-Only request this is. All fields must be as BOT 1.0 §3.1 and §3.2 say; the interface is always our only one.
    pub const fn class_request(&self) -> ClassRequest {
        match (self.request_type, self.request, self.value, self.length) {
            (0x21, 0xff, 0, 0) => ClassRequest::Reset,
            (0xa1, 0xfe, 0, 1) => ClassRequest::GetMaxLun,
            _ => ClassRequest::Unknown,
        }
    }
}

impl Event {
    fn decode(event: &wire::Event) -> Result<Self, EventError> {
        Ok(match event.event_type {
            0 => Self::Bind,
            1 => Self::Unbind,
            2 => Self::Enable,
            3 => Self::Disable,
            4 => Self::Setup(SetupRequest {
                request_type: event.request_type,
                request: event.request,
                value: event.value.get(),
                index: event.index.get(),
                length: event.length.get(),
            }),
            5 => Self::Suspend,
            6 => Self::Resume,
            unknown => return Err(EventError::Unknown(unknown)),
        })
    }
}

/// The events in what one read of ep0 gave, in order. A read may give several.
pub fn events(bytes: &[u8]) -> impl Iterator<Item = Result<Event, EventError>> + '_ {
    bytes.chunks(EVENT_LEN).map(|chunk| match wire::Event::ref_from_bytes(chunk) {
        Ok(event) => Event::decode(event),
        Err(_) => Err(EventError::Partial(chunk.len())),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(bytes: &[u8]) -> Vec<Result<Event, EventError>> {
        events(bytes).collect()
    }

    #[test]
    fn a_get_max_lun_as_the_kernel_hands_it_on_is_recognised() {
        // The setup packet is the one of BOT 1.0 table 3.2; the type and padding those of uapi functionfs.h.
        let bytes = [0xa1, 0xfe, 0, 0, 0, 0, 1, 0, 4, 0, 0, 0];
        let request = SetupRequest { request_type: 0xa1, request: 0xfe, value: 0, index: 0, length: 1 };
        assert_eq!(decode(&bytes), [Ok(Event::Setup(request))]);
        assert_eq!(request.class_request(), ClassRequest::GetMaxLun);
        assert!(request.is_in());
    }

    #[test]
    fn a_bulk_only_reset_as_the_kernel_hands_it_on_is_recognised() {
        // BOT 1.0 table 3.1.
        let bytes = [0x21, 0xff, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0];
        let Ok(Event::Setup(request)) = decode(&bytes)[0] else { panic!("not a SETUP") };
        assert_eq!(request.class_request(), ClassRequest::Reset);
        assert!(!request.is_in());
    }

    #[test]
    fn fields_of_a_setup_packet_are_little_endian_and_a_near_miss_is_unknown() {
        let bytes = [0xa1, 0xfe, 0x34, 0x12, 0x78, 0x56, 0xbc, 0x9a, 4, 0, 0, 0];
        let Ok(Event::Setup(request)) = decode(&bytes)[0] else { panic!("not a SETUP") };
        assert_eq!((request.value, request.index, request.length), (0x1234, 0x5678, 0x9abc));
        assert_eq!(request.class_request(), ClassRequest::Unknown);
        for near in [
            SetupRequest { request_type: 0x21, request: 0xff, value: 0, index: 0, length: 1 },
            SetupRequest { request_type: 0x21, request: 0xff, value: 1, index: 0, length: 0 },
            SetupRequest { request_type: 0xa1, request: 0xff, value: 0, index: 0, length: 0 },
            SetupRequest { request_type: 0x21, request: 0xfe, value: 0, index: 0, length: 1 },
        ] {
            assert_eq!(near.class_request(), ClassRequest::Unknown, "{near:?}");
        }
    }

    #[test]
    fn each_kind_of_event_has_the_number_of_the_kernels_header() {
        let known = [
            (0, Event::Bind),
            (1, Event::Unbind),
            (2, Event::Enable),
            (3, Event::Disable),
            (5, Event::Suspend),
            (6, Event::Resume),
        ];
        for (number, event) in known {
            assert_eq!(decode(&[0, 0, 0, 0, 0, 0, 0, 0, number, 0, 0, 0]), [Ok(event)]);
        }
        for number in 7..=u8::MAX {
            let bytes = [0, 0, 0, 0, 0, 0, 0, 0, number, 0, 0, 0];
            assert_eq!(decode(&bytes), [Err(EventError::Unknown(number))]);
        }
    }

    #[test]
    fn several_events_of_one_read_come_in_order_and_a_cut_one_is_an_error() {
        let mut bytes = vec![0; 2 * EVENT_LEN + 5];
        bytes[8] = 3;
        bytes[EVENT_LEN + 8] = 2;
        assert_eq!(decode(&bytes), [Ok(Event::Disable), Ok(Event::Enable), Err(EventError::Partial(5))]);
        assert_eq!(decode(&[]), []);
    }
}
