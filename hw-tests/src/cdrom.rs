//! What Linux' CD-ROM layer makes of a drive: the ioctls of `<linux/cdrom.h>`, sent by perl, which every Debian has.

use std::path::Path;

use anyhow::{Context, Result, ensure};

use crate::tool;

/// `DVD_READ_STRUCT`, with a `dvd_struct`: a union whose largest member is a tag, a length and 2048 bytes.
const DVD_READ_STRUCT: u32 = 0x5390;
const DVD_STRUCT_LEN: usize = 2056;

/// `CDROMMULTISESSION`, with a `struct cdrom_multisession`.
const CDROM_MULTISESSION: u32 = 0x5310;
/// `CDROM_LBA`.
const CDROM_LBA: u8 = 1;

/// Opens a drive, sends one ioctl with an argument in hexadecimal, and prints what became of the argument.
const SCRIPT: &str = r#"
    my ($node, $request, $argument) = @ARGV;
    my $bytes = pack "H*", $argument;
    open my $drive, "<", $node or die "open: $!";
    defined ioctl $drive, $request, $bytes or die "ioctl: $!";
    print unpack "H*", $bytes;
"#;

fn ioctl(node: &Path, request: u32, argument: &[u8]) -> Result<Vec<u8>> {
    let hex: String = argument.iter().map(|byte| format!("{byte:02x}")).collect();
    let node = node.display().to_string();
    let said = tool::run("perl", ["-e", SCRIPT, &node, &request.to_string(), &hex])?;
    let said = said.trim();
    // Perl hands the kernel 256 bytes at least.
    ensure!(said.len() >= hex.len() && said.is_ascii(), "perl said {said:?}");
    (0..argument.len())
        .map(|at| u8::from_str_radix(&said[at * 2..at * 2 + 2], 16).context("perl printed no hexadecimal"))
        .collect()
}

fn word(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |bytes| u32::from_ne_bytes(*bytes))
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
pub fn dvd_layer(node: &Path) -> Result<DvdLayer> {
    // Type 0 (physical), layer 0.
    let bytes = ioctl(node, DVD_READ_STRUCT, &[0; DVD_STRUCT_LEN])?;
    // `struct dvd_layer` begins behind type and number; its bit fields fill five bytes.
    Ok(DvdLayer {
        book_type: bytes[4] >> 4,
        layers: bytes[6] >> 5 & 0x03,
        opposite: bytes[6] & 0x10 != 0,
        start: word(&bytes, 12),
        end: word(&bytes, 16),
        end_of_layer_0: word(&bytes, 20),
    })
}

/// First block of the last session, and whether the disc has more than one.
///
/// # Errors
/// The drive refused.
pub fn last_session(node: &Path) -> Result<(u32, bool)> {
    let bytes = ioctl(node, CDROM_MULTISESSION, &[0, 0, 0, 0, 0, CDROM_LBA, 0, 0])?;
    Ok((word(&bytes, 0), bytes[4] != 0))
}
