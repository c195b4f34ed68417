//! What takes as long as it takes, an insert that first downloads or a copy of an overlay, with its progress shown on a terminal.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{Failure, args::Arguments, show};
use crate::control::{Client, ClientError};
use crate::drive::Event;
use crate::units::ByteLen;

/// Longer than any download.
const FOR_EVER: Duration = Duration::from_secs(30 * 24 * 3600);
/// How often the connection is looked at for the answer.
const LOOK: Duration = Duration::from_millis(200);

/// Calls `method`, and shows the events of progress that come meanwhile.
pub(super) fn run(arguments: &Arguments, method: &'static str, params: &Value) -> Result<Value, Failure> {
    // Whoever may not use the socket, or finds nobody there, learns it in the usual time.
    let mut watcher = Client::connect(&arguments.socket, arguments.timeout)?;
    let drives = watcher.call("state", &json!({}), None)?;
    let drive = number(&drives, params.get("drive"));
    watcher.call("subscribe", &json!({"events": ["fetching", "copying"]}), None)?;
    let mut caller = Client::connect(&arguments.socket, FOR_EVER)?;
    let params = params.clone();
    let calling = std::thread::spawn(move || caller.call(method, &params, None));
    let shows = io::stderr().is_terminal() && !arguments.json;
    let mut shown = false;
    while !calling.is_finished() {
        let began = Instant::now();
        match watcher.notification(Some(LOOK)) {
            Ok(Some(event)) if shows => shown |= progress(&event, drive),
            // Nothing to see; the other connection decides.
            Ok(_) => {}
            Err(_) => std::thread::sleep(LOOK.saturating_sub(began.elapsed())),
        }
    }
    if shown {
        // There is nowhere else to say that standard error cannot be written.
        let _ = writeln!(io::stderr());
    }
    let panicked = |_| ClientError::Protocol("the thread that waits for the answer has panicked".to_owned());
    Ok(calling.join().map_err(panicked)??)
}

/// The number of a drive that was named by number or name.
fn number(state: &Value, drive: Option<&Value>) -> Option<u64> {
    let (drives, drive) = (state.get("drives")?.as_array()?, drive?);
    let found =
        drives.iter().find(|known| known.get("name") == Some(drive) || known.get("drive") == Some(drive));
    found?.get("drive")?.as_u64()
}

/// A line that overwrites itself. Whether there was something to show.
fn progress(event: &Value, wanted: Option<u64>) -> bool {
    let event = event.get("params").and_then(|params| show::typed(params).ok());
    let (drive, here, total) = match event {
        Some(Event::Fetching { drive, here, total, .. }) => (drive, here, total),
        Some(Event::Copying { drive, done, total, .. }) => (drive, done, Some(total)),
        _ => return false,
    };
    if wanted.is_some_and(|wanted| wanted != u64::from(drive.0)) {
        return false;
    }
    let line = match total {
        Some(total) => format!("{} of {} ({} %)", ByteLen(here), ByteLen(total), show::percent(here, total)),
        None => ByteLen(here).to_string(),
    };
    let _ = write!(io::stderr(), "\r{line:<40}");
    true
}
