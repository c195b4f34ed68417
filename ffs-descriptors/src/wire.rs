//! The structures as they stand on the wire, with their sizes held by assertions.

use zerocopy::{
    FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned,
    little_endian::{U16, U32},
};

/// Bytes that the FUNCTIONFS_ENDPOINT_DESC ioctl fills in: the kernel's endpoint descriptor, with its two audio bytes.
pub const ENDPOINT_DESC_LEN: usize = 9;

/// FunctionFS descriptor header, format 2, with the counts of three speeds (uapi functionfs.h).
#[derive(Clone, Copy, IntoBytes, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct DescriptorsHead {
    pub(crate) magic: U32,
    pub(crate) length: U32,
    pub(crate) flags: U32,
    pub(crate) full_count: U32,
    pub(crate) high_count: U32,
    pub(crate) super_count: U32,
}

/// FunctionFS strings header and its one language.
#[derive(Clone, Copy, IntoBytes, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct StringsHead {
    pub(crate) magic: U32,
    pub(crate) length: U32,
    pub(crate) string_count: U32,
    pub(crate) language_count: U32,
    pub(crate) language: U16,
}

/// Interface descriptor (USB 2.0 §9.6.5).
#[derive(Clone, Copy, IntoBytes, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct Interface {
    pub(crate) length: u8,
    pub(crate) descriptor_type: u8,
    pub(crate) number: u8,
    pub(crate) alternate: u8,
    pub(crate) endpoints: u8,
    pub(crate) class: u8,
    pub(crate) subclass: u8,
    pub(crate) protocol: u8,
    pub(crate) name: u8,
}

/// Endpoint descriptor (USB 2.0 §9.6.6).
#[derive(Clone, Copy, IntoBytes, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct Endpoint {
    pub(crate) length: u8,
    pub(crate) descriptor_type: u8,
    pub(crate) address: u8,
    pub(crate) attributes: u8,
    pub(crate) max_packet: U16,
    pub(crate) interval: u8,
}

/// SuperSpeed endpoint companion (USB 3.2 §9.6.7).
#[derive(Clone, Copy, IntoBytes, Immutable, Unaligned)]
#[repr(C)]
pub(crate) struct Companion {
    pub(crate) length: u8,
    pub(crate) descriptor_type: u8,
    pub(crate) max_burst: u8,
    pub(crate) attributes: u8,
    pub(crate) bytes_per_interval: U16,
}

/// One ep0 event: the setup packet (zero unless it is a SETUP event), the type, padding.
#[derive(Clone, Copy, FromBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub(crate) struct Event {
    pub(crate) request_type: u8,
    pub(crate) request: u8,
    pub(crate) value: U16,
    pub(crate) index: U16,
    pub(crate) length: U16,
    pub(crate) event_type: u8,
    pub(crate) pad: [u8; 3],
}

const _: () = assert!(size_of::<DescriptorsHead>() == 24);
const _: () = assert!(size_of::<StringsHead>() == 18);
const _: () = assert!(size_of::<Interface>() == 9);
const _: () = assert!(size_of::<Endpoint>() == 7);
const _: () = assert!(size_of::<Companion>() == 6);
const _: () = assert!(size_of::<Event>() == 12);
