//! What takes as long as it takes, an insert that first downloads or a copy of an overlay, with its progress shown on a terminal.

use std::io::{self, IsTerminal, Write};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use serde_json::{Value, json};

use super::{Failure, args::Arguments, show};
use crate::control::Client;
use crate::drive::Event;
use crate::units::ByteLen;

/// Longer than any download.
const FOR_EVER: Duration = Duration::from_secs(30 * 24 * 3600);

/// A line of progress, on standard error.
#[derive(Debug, Default)]
struct Line {
    shown: bool,
    /// The answer is here: nothing more is to be shown.
    over: bool,
}

/// Calls `method`, and shows the events of progress that come meanwhile.
pub(super) fn run(arguments: &Arguments, method: &'static str, params: &Value) -> Result<Value, Failure> {
    // Whoever may not use the socket, or finds nobody there, learns it in the usual time.
    let mut watcher = Client::connect(&arguments.socket, arguments.timeout)?;
    let drives = watcher.call("state", &json!({}), None)?;
    let drive = number(&drives, params.get("drive"));
    let line = Arc::new(Mutex::new(Line::default()));
    if io::stderr().is_terminal() && !arguments.json {
        watcher.call("subscribe", &json!({"events": ["fetching", "copying", "source_offline"]}), None)?;
        let line = Arc::clone(&line);
        // Ends with the daemon, or with this process.
        std::thread::spawn(move || {
            while let Ok(Some(event)) = watcher.notification(None) {
                let mut line = line.lock();
                line.shown |= !line.over && progress(&event, drive);
            }
        });
    }
    let answer = Client::connect(&arguments.socket, FOR_EVER)?.call(method, params, None);
    let mut line = line.lock();
    line.over = true;
    if line.shown {
        // There is nowhere else to say that standard error cannot be written.
        let _ = writeln!(io::stderr());
    }
    Ok(answer?)
}

/// The number of a drive that was named by number or name.
fn number(state: &Value, drive: Option<&Value>) -> Option<u64> {
    let (drives, drive) = (state.get("drives")?.as_array()?, drive?);
    let found =
        drives.iter().find(|known| known.get("name") == Some(drive) || known.get("drive") == Some(drive));
    found?.get("drive")?.as_u64()
}

/// A line that overwrites itself, or one that stays for what the wait is for. Whether there was something to show.
fn progress(event: &Value, wanted: Option<u64>) -> bool {
    let event = event.get("params").and_then(|params| show::typed(params).ok());
    let of =
        |here, total| format!("{} of {} ({} %)", ByteLen(here), ByteLen(total), show::percent(here, total));
    let (drive, line, end) = match event {
        Some(Event::Fetching { drive, here, total: Some(total), .. }) => (drive, of(here, total), ""),
        Some(Event::Fetching { drive, here, .. }) => (drive, ByteLen(here).to_string(), ""),
        Some(Event::Copying { drive, done, total, .. }) => (drive, of(done, total), ""),
        Some(Event::SourceOffline { drive, cause, .. }) => (drive, cause, "\n"),
        _ => return false,
    };
    if wanted.is_some_and(|wanted| wanted != u64::from(drive.0)) {
        return false;
    }
    let _ = write!(io::stderr(), "\r{line:<40}{end}");
    true
}
