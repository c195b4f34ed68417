//! What Linux' CD-ROM layer makes of a drive: the ioctls of `<linux/cdrom.h>`.

#![allow(unsafe_code)]

use std::fs::File;
use std::os::fd::AsRawFd;

use anyhow::{Context, Result};

/// `DVD_READ_STRUCT`.
const DVD_READ_STRUCT: nix::libc::c_ulong = 0x5390;
/// `CDROMMULTISESSION`.
const CDROM_MULTISESSION: nix::libc::c_ulong = 0x5310;
/// `CDROM_LBA`.
const CDROM_LBA: u8 = 1;

/// `dvd_struct`: a union whose largest member is a tag, a length and 2048 bytes.
#[repr(C, align(4))]
struct DvdStruct([u8; 2056]);

/// `struct cdrom_multisession`.
#[repr(C, align(4))]
struct Multisession([u8; 8]);

/// The calls themselves; nix's macros make them public.
mod calls {
    #![allow(missing_docs, unreachable_pub)]

    nix::ioctl_readwrite_bad!(dvd_read_struct, super::DVD_READ_STRUCT, super::DvdStruct);
    nix::ioctl_readwrite_bad!(cdrom_multisession, super::CDROM_MULTISESSION, super::Multisession);
}

/// The layer of a DVD, as the kernel read it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DvdLayer {
    /// 0 for DVD-ROM.
    pub book_type: u8,
    /// One less than there are.
    pub layers: u8,
    /// Opposite track path.
    pub opposite: bool,
    /// First sector of the data area.
    pub start: u32,
    /// Last sector of the data area.
    pub end: u32,
    /// Last sector of layer 0; 0 with one layer.
    pub end_of_layer_0: u32,
}

/// The physical format of a DVD, layer 0.
///
/// # Errors
/// The drive refused, or holds no DVD.
pub fn dvd_layer(drive: &File) -> Result<DvdLayer> {
    // Type 0 (physical), layer 0.
    let mut answer = DvdStruct([0; 2056]);
    // SAFETY: the kernel reads and writes a `dvd_struct`, which this has the size and the alignment of.
    unsafe { calls::dvd_read_struct(drive.as_raw_fd(), &raw mut answer) }.context("DVD_READ_STRUCT")?;
    let DvdStruct(bytes) = answer;
    let word = |at: usize| {
        bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |bytes| u32::from_ne_bytes(*bytes))
    };
    // `struct dvd_layer` begins behind type and number; its bit fields fill five bytes.
    Ok(DvdLayer {
        book_type: bytes[4] >> 4,
        layers: bytes[6] >> 5 & 0x03,
        opposite: bytes[6] & 0x10 != 0,
        start: word(12),
        end: word(16),
        end_of_layer_0: word(20),
    })
}

/// First block of the last session, and whether the disc has more than one.
///
/// # Errors
/// The drive refused.
pub fn last_session(drive: &File) -> Result<(u32, bool)> {
    let mut answer = Multisession([0, 0, 0, 0, 0, CDROM_LBA, 0, 0]);
    // SAFETY: the kernel reads and writes a `struct cdrom_multisession`, which this has the size and the alignment of.
    unsafe { calls::cdrom_multisession(drive.as_raw_fd(), &raw mut answer) }.context("CDROMMULTISESSION")?;
    let Multisession([a, b, c, d, more, ..]) = answer;
    Ok((u32::from_ne_bytes([a, b, c, d]), more != 0))
}
