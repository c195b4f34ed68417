//! Answers as a person reads them.

use std::fmt::Write;

use serde::Deserialize;
use serde_json::Value;

use crate::control::ClientError;
use crate::control::protocol::DriveReport;
use crate::drive::{DriveIndex, EjectedBy, Event, HostState, ImageState};
use crate::gadget::Speed;
use crate::media::SourceState;
use crate::scsi::Kind;
use crate::storage::{AreaReport, AreaState};
use crate::units::ByteLen;

/// Reads a result as `T`.
pub(super) fn typed<T: for<'de> Deserialize<'de>>(value: &Value) -> Result<T, ClientError> {
    T::deserialize(value).map_err(|error| ClientError::Protocol(error.to_string()))
}

#[derive(Deserialize)]
struct State {
    drives: Vec<DriveReport>,
    #[serde(default)]
    areas: Vec<AreaReport>,
}

/// The table of `state`, and one of the areas where there are some.
pub(super) fn state(result: &Value) -> Result<String, ClientError> {
    let State { drives, areas } = typed(result)?;
    let mut rows =
        vec![["DRIVE", "NAME", "KIND", "MODE", "SIZE", "HOST", "FLAGS", "IMAGE"].map(str::to_owned)];
    rows.extend(drives.iter().map(row));
    let mut text = table(&rows);
    for DriveReport { drive, awaited, .. } in &drives {
        if let Some(cause) = awaited.as_ref().and_then(|awaited| awaited.cause.as_ref()) {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{}: {}", printable(&drive.name), printable(cause));
        }
    }
    if !areas.is_empty() {
        let mut rows = vec![["AREA", "STATE", "MODE", "SOURCE", "PATH"].map(str::to_owned)];
        rows.extend(areas.iter().map(area_row));
        text.push('\n');
        text.push_str(&table(&rows));
        for area in &areas {
            if let Some(cause) = &area.cause {
                let _ = writeln!(text, "{}: {}", printable(&area.name), printable(cause));
            }
        }
    }
    Ok(text)
}

fn area_row(area: &AreaReport) -> [String; 5] {
    let state = match area.state {
        AreaState::Connecting => "connecting",
        AreaState::Mounted => "mounted",
        AreaState::Failed => "failed",
    };
    let mode = if area.rw { "rw" } else { "ro" };
    let (source, path) = (printable(&area.source), printable(&area.path));
    [printable(&area.name), state.to_owned(), mode.to_owned(), source, path]
}

fn row(report: &DriveReport) -> [String; 8] {
    let drive = &report.drive;
    let host = match drive.host {
        HostState::Disconnected => "none".to_owned(),
        HostState::Connected { speed } => speed_name(speed).to_owned(),
        HostState::Suspended { speed } => format!("{}, asleep", speed_name(speed)),
    };
    let source = drive.image.as_ref().map(|image| image.source);
    let flags = [
        (drive.prevented, "prevented"),
        (report.locked, "locked"),
        (report.awaited.is_some(), "awaited"),
        (source == Some(SourceState::Offline), "offline"),
        (source == Some(SourceState::Changed), "changed"),
        (source == Some(SourceState::Failed), "failed"),
    ];
    let mut flags: Vec<_> = flags.iter().filter(|(on, _)| *on).map(|(_, name)| (*name).to_owned()).collect();
    if let Some(image) = &drive.image
        && let Some(fetch) = image.fetch.as_ref().filter(|fetch| !fetch.complete)
    {
        flags.push(format!("{}% here", percent(fetch.here, image.bytes)));
    }
    if drive.image.as_ref().is_some_and(|image| image.overlay.is_some()) {
        flags.push("overlay".to_owned());
    }
    let rw = drive.image.as_ref().map_or(drive.rw, |image| image.rw);
    let dash = || "-".to_owned();
    let awaited = report.awaited.as_ref().map(|awaited| &awaited.image);
    let name = drive.image.as_ref().map(|image| &image.name).or(awaited);
    [
        drive.drive.0.to_string(),
        drive.name.clone(),
        match drive.kind {
            Kind::Disk => "disk".to_owned(),
            Kind::Optical => "optical".to_owned(),
        },
        if rw { "rw" } else { "ro" }.to_owned(),
        drive.image.as_ref().map_or_else(dash, |image| ByteLen(image.bytes).to_string()),
        host,
        if flags.is_empty() { dash() } else { flags.join(",") },
        name.map_or_else(dash, |name| printable(name)),
    ]
}

/// Rounded down: 100 are all.
pub(super) fn percent(here: u64, total: u64) -> u64 {
    here.saturating_mul(100).checked_div(total).unwrap_or(0)
}

fn speed_name(speed: Speed) -> &'static str {
    match speed {
        Speed::Full => "full speed",
        Speed::High => "high speed",
        Speed::Super => "SuperSpeed",
    }
}

/// Columns as wide as their widest cell; the last one as it is.
pub(super) fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let mut text = String::new();
    for row in rows {
        for (column, cell) in row.iter().enumerate() {
            let width = if column + 1 == N { 0 } else { width(column) + 2 };
            // Writing to a String cannot fail.
            let _ = write!(text, "{cell:width$}");
        }
        text.push('\n');
    }
    text
}

/// An image, in a sentence.
pub(super) fn image(image: &ImageState) -> String {
    let mode = match (image.rw, &image.overlay) {
        (_, Some(overlay)) if overlay.temporary => "with a temporary overlay",
        (_, Some(_)) => "with an overlay",
        (true, None) => "read-write",
        (false, None) => "read-only",
    };
    format!("{} ({}, {mode})", printable(&image.name), ByteLen(image.bytes))
}

/// Names come from other people's files: none of them may steer the terminal.
pub(super) fn printable(text: &str) -> String {
    let mut shown = String::new();
    for c in text.chars() {
        if c.is_control() {
            shown.extend(c.escape_default());
        } else {
            shown.push(c);
        }
    }
    shown
}

fn copying(drive: DriveIndex, to: &str, done: u64, total: u64) -> String {
    let (done, total) = (ByteLen(done), ByteLen(total));
    format!("drive {}: {done} of {total} are copied to {}\n", drive.0, printable(to))
}

fn fetching(drive: DriveIndex, image: &str, here: u64, total: Option<u64>) -> String {
    let of = total.map(|total| format!(" of {}", ByteLen(total))).unwrap_or_default();
    format!("drive {}: {}{of} of {} are here\n", drive.0, ByteLen(here), printable(image))
}

/// A notification, in a line.
pub(super) fn notification(notification: &Value) -> Result<String, ClientError> {
    let params = notification.get("params").unwrap_or(&Value::Null);
    if notification.get("method").and_then(Value::as_str) == Some("lagged") {
        let dropped = params.get("dropped").and_then(Value::as_u64).unwrap_or(0);
        return Ok(format!("{dropped} events were lost, because this program did not read fast enough\n"));
    }
    Ok(match typed(params)? {
        Event::Inserted { drive, image: inserted } => {
            format!("drive {}: inserted {}\n", drive.0, image(&inserted))
        }
        Event::Ejected { drive, image, by } => {
            let by = match by {
                EjectedBy::Client => "a client",
                EjectedBy::Force => "a client, by force",
                EjectedBy::Host => "the host",
            };
            format!("drive {}: {} was ejected by {by}\n", drive.0, printable(&image))
        }
        Event::Prevented { drive, prevented: true } => {
            format!("drive {}: the host prevents removal\n", drive.0)
        }
        Event::Prevented { drive, prevented: false } => {
            format!("drive {}: the host allows removal\n", drive.0)
        }
        Event::FirstRead { drive, lba } => {
            format!("drive {}: the host reads, first at block {lba}\n", drive.0)
        }
        Event::Connected { function, speed } => {
            format!("function {}: a host is connected at {}\n", printable(&function), speed_name(speed))
        }
        Event::Disconnected { function } => {
            format!("function {}: the host is gone\n", printable(&function))
        }
        Event::Reset { function } => format!("function {}: the host sent a reset\n", printable(&function)),
        Event::Suspended { function } => format!("function {}: the bus sleeps\n", printable(&function)),
        Event::Resumed { function } => format!("function {}: the bus is awake\n", printable(&function)),
        Event::SourceOffline { drive, image, cause } => {
            format!("drive {}: {} is offline: {}\n", drive.0, printable(&image), printable(&cause))
        }
        Event::SourceOnline { drive, image } => {
            format!("drive {}: {} is online again\n", drive.0, printable(&image))
        }
        Event::SourceChanged { drive, image, cause } => {
            format!("drive {}: {} has changed: {}\n", drive.0, printable(&image), printable(&cause))
        }
        Event::SourceFailed { drive, image, cause } => {
            format!("drive {}: {} has failed for good: {}\n", drive.0, printable(&image), printable(&cause))
        }
        Event::AreaMounted { area, source, path } => {
            format!("area {}: {} is mounted on {}\n", printable(&area), printable(&source), printable(&path))
        }
        Event::AreaLost { area, cause } => {
            format!("area {} cannot be used: {}\n", printable(&area), printable(&cause))
        }
        Event::Fetching { drive, image, here, total } => fetching(drive, &image, here, total),
        Event::Copying { drive, to, done, total } => copying(drive, &to, done, total),
        Event::Fetched { drive, image, checked, kept } => {
            let checked = if checked { ", with the right checksum" } else { "" };
            let kept = kept.map(|path| format!(", kept as {}", printable(&path))).unwrap_or_default();
            format!("drive {}: all of {} is here{checked}{kept}\n", drive.0, printable(&image))
        }
        Event::Failed { drive, opcode, sense: [key, asc, ascq], cause } => format!(
            "drive {}: command {opcode:02x}h failed with sense {key:x}/{asc:02x}/{ascq:02x}: {}\n",
            drive.0,
            printable(&cause)
        ),
    })
}
