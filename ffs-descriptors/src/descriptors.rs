//! The two blocks that a daemon writes to ep0 before anything else: descriptors, then strings.

use zerocopy::{IntoBytes, little_endian::U16, little_endian::U32};

use crate::{
    Speed,
    wire::{Companion, DescriptorsHead, Endpoint, Interface, StringsHead},
};

const DESCRIPTORS_MAGIC_V2: u32 = 3;
const STRINGS_MAGIC: u32 = 2;
const HAS_FULL_SPEED: u32 = 1;
const HAS_HIGH_SPEED: u32 = 2;
const HAS_SUPER_SPEED: u32 = 4;
const LANGUAGE_EN_US: u16 = 0x0409;

const INTERFACE: u8 = 4;
const ENDPOINT: u8 = 5;
const COMPANION: u8 = 0x30;
const ADDRESS_IN: u8 = 0x81;
const ADDRESS_OUT: u8 = 0x02;
const BULK: u8 = 2;

const MASS_STORAGE: u8 = 0x08;
const SCSI_TRANSPARENT: u8 = 0x06;
const BULK_ONLY: u8 = 0x50;

/// bMaxBurst of the SuperSpeed companions: 0 to 15, one packet to sixteen in a burst (USB 3.2 §9.6.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MaxBurst(u8);

impl MaxBurst {
    /// Sixteen packets: what a controller that can do less brings down by itself.
    pub const MOST: Self = Self(15);

    /// `None` above 15.
    pub const fn new(burst: u8) -> Option<Self> {
        if burst <= 15 { Some(Self(burst)) } else { None }
    }
}

/// What the interface is called in its string descriptor: at most 126 UTF-16 units, none of them NUL (USB 2.0 §9.6.7).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InterfaceName(String);

/// Why a text cannot be the name of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InterfaceNameError {
    /// It has more UTF-16 units than a string descriptor holds.
    #[error("the interface name has {0} UTF-16 units; shorten it to 126")]
    TooLong(usize),
    /// NUL ends a string in the FunctionFS block.
    #[error("the interface name contains a NUL character; take it out")]
    Nul,
}

impl InterfaceName {
    /// Checks `name`.
    ///
    /// # Errors
    /// Too long, or a NUL in it.
    pub fn new(name: impl Into<String>) -> Result<Self, InterfaceNameError> {
        let name = name.into();
        let units = name.encode_utf16().count();
        if units > 126 {
            return Err(InterfaceNameError::TooLong(units));
        }
        if name.contains('\0') {
            return Err(InterfaceNameError::Nul);
        }
        Ok(Self(name))
    }
}

/// The descriptors block: header of format 2, then interface and endpoints at full, high and super speed. No other flag is
/// set; in particular not EVENTFD, which would signal once for every endpoint request (kernel.md §1.1).
pub fn descriptors(burst: MaxBurst) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(128);
    let head = |length| DescriptorsHead {
        magic: U32::new(DESCRIPTORS_MAGIC_V2),
        length: U32::new(length),
        flags: U32::new(HAS_FULL_SPEED | HAS_HIGH_SPEED | HAS_SUPER_SPEED),
        full_count: U32::new(3),
        high_count: U32::new(3),
        super_count: U32::new(5),
    };
    bytes.extend_from_slice(head(0).as_bytes());
    for speed in [Speed::Full, Speed::High, Speed::Super] {
        bytes.extend_from_slice(interface().as_bytes());
        for address in [ADDRESS_IN, ADDRESS_OUT] {
            bytes.extend_from_slice(endpoint(address, speed).as_bytes());
            if speed == Speed::Super {
                bytes.extend_from_slice(companion(burst).as_bytes());
            }
        }
    }
    with_head(bytes, |length| head(length).as_bytes().to_vec())
}

/// The strings block: the interface's name, in US English.
pub fn strings(name: &InterfaceName) -> Vec<u8> {
    let head = |length| StringsHead {
        magic: U32::new(STRINGS_MAGIC),
        length: U32::new(length),
        string_count: U32::new(1),
        language_count: U32::new(1),
        language: U16::new(LANGUAGE_EN_US),
    };
    let mut bytes = head(0).as_bytes().to_vec();
    bytes.extend_from_slice(name.0.as_bytes());
    bytes.push(0);
    with_head(bytes, |length| head(length).as_bytes().to_vec())
}

/// Writes the header again, now that the length of the whole is known.
fn with_head(mut bytes: Vec<u8>, head: impl Fn(u32) -> Vec<u8>) -> Vec<u8> {
    // Both blocks are a few hundred bytes at most.
    let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    for (byte, new) in bytes.iter_mut().zip(head(length)) {
        *byte = new;
    }
    bytes
}

const fn interface() -> Interface {
    Interface {
        length: 9,
        descriptor_type: INTERFACE,
        number: 0,
        alternate: 0,
        endpoints: 2,
        class: MASS_STORAGE,
        subclass: SCSI_TRANSPARENT,
        protocol: BULK_ONLY,
        name: 1,
    }
}

const fn endpoint(address: u8, speed: Speed) -> Endpoint {
    Endpoint {
        length: 7,
        descriptor_type: ENDPOINT,
        address,
        attributes: BULK,
        max_packet: U16::new(speed.bulk_max_packet()),
        interval: 0,
    }
}

const fn companion(burst: MaxBurst) -> Companion {
    Companion {
        length: 6,
        descriptor_type: COMPANION,
        max_burst: burst.0,
        attributes: 0,
        bytes_per_interval: U16::new(0),
    }
}

#[cfg(test)]
mod tests {
    use usb_gadget::{
        Class,
        function::custom::{Custom, Endpoint, EndpointDirection, Interface},
    };

    use super::*;

    /// The same function as the usb-gadget crate writes it.
    fn foreign(burst: u8, name: &str) -> (Vec<u8>, Vec<u8>) {
        let bulk = |direction| {
            let mut endpoint = Endpoint::bulk(direction);
            endpoint.interval = 0;
            endpoint.max_burst_ss = burst;
            endpoint
        };
        let (_to_host, input) = EndpointDirection::device_to_host();
        let (_from_host, output) = EndpointDirection::host_to_device();
        let interface = Interface::new(Class::new(8, 6, 0x50), name)
            .with_endpoint(bulk(input))
            .with_endpoint(bulk(output));
        Custom::builder().with_interface(interface).ffs_descriptors_and_strings().unwrap()
    }

    /// What usb-gadget does otherwise: it announces Microsoft OS descriptors and then has none of them (flag 8 and a fourth
    /// count, of 0), and it leaves wMaxPacketSize at full speed to the kernel (0).
    fn without_its_differences(mut bytes: Vec<u8>) -> Vec<u8> {
        assert_eq!(bytes[8], 1 | 2 | 4 | 8);
        bytes[8] ^= 8;
        assert_eq!(bytes.drain(24..28).collect::<Vec<u8>>(), [0; 4]);
        bytes[4] -= 4;
        for full_speed_endpoint in [33, 40] {
            assert_eq!(bytes[full_speed_endpoint..full_speed_endpoint + 2], [7, 5]);
            assert_eq!(bytes[full_speed_endpoint + 4..full_speed_endpoint + 6], [0, 0]);
            bytes[full_speed_endpoint + 4] = 64;
        }
        bytes
    }

    #[test]
    fn descriptors_are_those_of_a_foreign_encoder_byte_for_byte() {
        for burst in 0..=15 {
            let theirs = without_its_differences(foreign(burst, "any").0);
            assert_eq!(descriptors(MaxBurst::new(burst).unwrap()), theirs, "burst {burst}");
        }
    }

    #[test]
    fn strings_are_those_of_a_foreign_encoder_byte_for_byte() {
        for name in ["", "Mass Storage", "Grüße 💾", &"x".repeat(126)] {
            assert_eq!(strings(&InterfaceName::new(name).unwrap()), foreign(0, name).1, "{name}");
        }
    }

    #[test]
    fn a_burst_of_more_than_sixteen_packets_does_not_exist() {
        assert_eq!(MaxBurst::new(16), None);
        assert_eq!(MaxBurst::new(15), Some(MaxBurst::MOST));
    }

    #[test]
    fn a_name_that_usb_or_functionfs_cannot_hold_is_refused() {
        assert_eq!(InterfaceName::new("x".repeat(127)), Err(InterfaceNameError::TooLong(127)));
        assert_eq!(InterfaceName::new("💾".repeat(64)), Err(InterfaceNameError::TooLong(128)));
        assert_eq!(InterfaceName::new("a\0b"), Err(InterfaceNameError::Nul));
    }
}
