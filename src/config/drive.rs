//! `[[function.drive]]`.

use std::{
    ops::{Range, RangeInclusive},
    time::Duration,
};

use serde::Deserialize;
use toml::Spanned;

use super::{ConfigError, Drive, SERIAL_LEN_MAX, Source, StartImage};
use crate::{
    media::{
        overlay::Place,
        qcow2::Manner,
        url::{Secret, check, is_url},
    },
    scsi::Kind,
    units::BlockSize,
};

/// How long an operation on an image may take, unless the file says otherwise.
const DEADLINE_DEFAULT: Duration = Duration::from_secs(10);
/// Hosts give a command up after 30 s, and most storage is never slower than a second.
const DEADLINE_MS: RangeInclusive<u64> = 1_000..=25_000;

const VENDOR_DEFAULT: &str = "RINGDRIV";
const REVISION_DEFAULT: &str = "0100";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawDrive {
    name: Spanned<String>,
    kind: Kind,
    image: Option<Spanned<String>>,
    rw: Option<Spanned<bool>>,
    overlay: Option<Spanned<String>>,
    backing: Option<bool>,
    raw: Option<bool>,
    block_size: Option<Spanned<u32>>,
    deadline_ms: Option<Spanned<u64>>,
    vendor: Option<Spanned<String>>,
    product: Option<Spanned<String>>,
    revision: Option<Spanned<String>>,
    serial: Option<Spanned<String>>,
}

impl Drive {
    /// An empty one as it is where the file says nothing.
    pub(super) fn usual(name: &str, kind: Kind, serial: &str, index: usize) -> Self {
        Self {
            name: name.to_owned(),
            kind,
            image: None,
            rw: false,
            overlay: None,
            manner: Manner::default(),
            block_size: BlockSize::B512,
            deadline: DEADLINE_DEFAULT,
            vendor: VENDOR_DEFAULT.to_owned(),
            product: default_product(kind).to_owned(),
            revision: REVISION_DEFAULT.to_owned(),
            serial: default_drive_serial(serial, index),
        }
    }
}

impl RawDrive {
    /// The drive, and where its name stands.
    pub(super) fn check(
        self,
        source: &Source<'_>,
        serial: &str,
        index: usize,
    ) -> Result<(Range<usize>, Drive), ConfigError> {
        let name_span = self.name.span();
        let name = source.name(self.name, "drive's name")?;
        if name.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(source.invalid(
                name_span,
                format!("the drive's name {name:?} is a number, and numbers are drive indexes"),
                "add a letter",
            ));
        }
        let kind = self.kind;
        if let Some(rw) = &self.rw
            && *rw.get_ref()
            && kind == Kind::Optical
        {
            return Err(source.invalid(
                rw.span(),
                "an optical drive cannot be writable",
                "remove rw, or set kind = \"disk\"",
            ));
        }
        let overlay = overlay(self.overlay, kind, self.image.is_some(), source)?;
        let block_size = disk_block_size(self.block_size, kind, source)?;
        let deadline = deadline(self.deadline_ms, source)?;
        let inquiry = |value: Option<Spanned<String>>, key, len, default: &str| {
            value.map_or_else(|| Ok(default.to_owned()), |value| source.inquiry(value, key, len))
        };
        let drive = Drive {
            name,
            kind,
            image: self.image.map(|value| image(value, source)).transpose()?,
            rw: self.rw.is_some_and(Spanned::into_inner),
            overlay,
            manner: Manner { raw: self.raw.unwrap_or(false), backing: self.backing.unwrap_or(false) },
            block_size,
            deadline,
            vendor: inquiry(self.vendor, "vendor", 8, VENDOR_DEFAULT)?,
            product: inquiry(self.product, "product", 16, default_product(kind))?,
            revision: inquiry(self.revision, "revision", 4, REVISION_DEFAULT)?,
            serial: inquiry(self.serial, "serial", SERIAL_LEN_MAX, &default_drive_serial(serial, index))?,
        };
        Ok((name_span, drive))
    }
}

fn image(value: Spanned<String>, source: &Source<'_>) -> Result<StartImage, ConfigError> {
    if !is_url(value.get_ref()) {
        return source.absolute(value, "image").map(StartImage::Path);
    }
    match check(value.get_ref()) {
        Ok(()) => Ok(StartImage::Url(Secret(value.into_inner()))),
        Err(why) => Err(source.invalid(
            value.span(),
            format!("image is no URL that can be used: {why}"),
            "write http://SERVER/PATH or https://SERVER/PATH",
        )),
    }
}

fn overlay(
    value: Option<Spanned<String>>,
    kind: Kind,
    has_image: bool,
    source: &Source<'_>,
) -> Result<Option<Place>, ConfigError> {
    let Some(value) = value else { return Ok(None) };
    if kind == Kind::Optical || !has_image {
        let (cause, cure) = match has_image {
            true => ("an optical drive cannot be written to", "remove overlay, or set kind = \"disk\""),
            false => ("an overlay needs an image below it", "add image, or remove overlay"),
        };
        return Err(source.invalid(value.span(), cause, cure));
    }
    Ok(Some(match value.get_ref().as_str() {
        "tmp" => Place::Temporary,
        _ => Place::File(source.absolute(value, "overlay")?),
    }))
}

fn deadline(value: Option<Spanned<u64>>, source: &Source<'_>) -> Result<Duration, ConfigError> {
    let Some(value) = value else { return Ok(DEADLINE_DEFAULT) };
    if DEADLINE_MS.contains(value.get_ref()) {
        return Ok(Duration::from_millis(value.into_inner()));
    }
    Err(source.invalid(
        value.span(),
        format!("a deadline of {} ms is of no use", value.get_ref()),
        "use 1000 to 25000, because hosts give a command up after 30 seconds",
    ))
}

fn disk_block_size(
    value: Option<Spanned<u32>>,
    kind: Kind,
    source: &Source<'_>,
) -> Result<BlockSize, ConfigError> {
    let Some(value) = value else { return Ok(BlockSize::B512) };
    match (kind, *value.get_ref()) {
        (Kind::Disk, 512) => Ok(BlockSize::B512),
        (Kind::Disk, 4096) => Ok(BlockSize::B4096),
        (Kind::Disk, other) => Err(source.invalid(
            value.span(),
            format!("a disk has no blocks of {other} bytes"),
            "use 512 or 4096",
        )),
        (Kind::Optical, _) => Err(source.invalid(
            value.span(),
            "the blocks of an optical drive are always 2048 bytes",
            "remove block_size, or set kind = \"disk\"",
        )),
    }
}

/// The gadget's serial number may hold any character; a unit's may not.
fn default_drive_serial(gadget: &str, index: usize) -> String {
    let mut serial: String = gadget.chars().filter(char::is_ascii_graphic).take(SERIAL_LEN_MAX - 4).collect();
    serial.push_str(&format!("-{index}"));
    serial
}

fn default_product(kind: Kind) -> &'static str {
    match kind {
        Kind::Optical => "Optical Drive",
        Kind::Disk => "Flash Drive",
    }
}
