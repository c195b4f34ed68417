//! `ringdrive overlay`: of the overlay in a drive by the daemon; of one in a file, which is in no drive, here, without a daemon.

use std::io::{self, IsTerminal, Write};
use std::path::Path;

use serde_json::{Value, json};

use super::args::{self, Arguments, Overlay, OverlayAction};
use super::{Failure, connect, download, print, show};
use crate::drive::ImageState;
use crate::gadget::RUNTIME_DIR;
use crate::media::overlay::{OverlayState, offline};
use crate::units::ByteLen;

/// Does what a subcommand asks for.
pub(super) fn run(arguments: &Arguments, overlay: &Overlay) -> Result<(), Failure> {
    let target = overlay.target();
    if target.contains('/') {
        return in_file(arguments, &overlay.action, Path::new(target));
    }
    let (name, key, force, file) = match &overlay.action {
        OverlayAction::Status { .. } => return status(arguments, target),
        OverlayAction::Commit(change) => ("commit", &change.key.key, change.force, None),
        OverlayAction::Discard(change) => ("discard", &change.key.key, change.force, None),
        OverlayAction::Export { change, file } => {
            ("export", &change.key.key, change.force, Some(absolute(file)?))
        }
    };
    let mut params = json!({"drive": args::drive(target), "action": name, "force": force});
    if let Some(key) = key.as_ref().filter(|key| !key.is_empty()) {
        params["key"] = json!(key);
    }
    if let Some(file) = &file {
        params["file"] = json!(file);
    }
    let result = download::run(arguments, "overlay", &params)?;
    if arguments.json {
        return print(format!("{result}\n").as_bytes());
    }
    print(
        match file {
            Some(file) => format!("{} is what the host sees of {target}\n", show::printable(&file)),
            None => {
                let image: ImageState = show::typed(result.get("image").unwrap_or(&Value::Null))?;
                format!("{target}: {name} done, inserted {}\n", show::image(&image))
            }
        }
        .as_bytes(),
    )
}

fn absolute(path: &Path) -> Result<String, Failure> {
    let path = std::path::absolute(path)
        .map_err(|source| Failure::Open { path: path.display().to_string(), source })?;
    path.to_str().map(str::to_owned).ok_or_else(|| Failure::Path(path.clone()))
}

fn status(arguments: &Arguments, target: &str) -> Result<(), Failure> {
    let result = connect(arguments)?.call("state", &json!({}), None)?;
    let wanted = args::drive(target);
    let drives = result.get("drives").and_then(Value::as_array).into_iter().flatten();
    let drive = drives
        .filter(|drive| drive.get("name") == Some(&wanted) || drive.get("drive") == Some(&wanted))
        .find_map(|drive| drive.get("image"));
    let overlay = drive.and_then(|image| image.get("overlay"));
    let Some((image, overlay)) = drive.zip(overlay) else {
        return Err(Failure::NoOverlay(target.to_owned()));
    };
    if arguments.json {
        return print(format!("{overlay}\n").as_bytes());
    }
    let base = image.get("name").and_then(Value::as_str).unwrap_or_default();
    print(text(&show::typed(overlay)?, base).as_bytes())
}

fn text(overlay: &OverlayState, base: &str) -> String {
    let OverlayState { file, temporary, written } = overlay;
    let written = ByteLen(*written);
    let passing = if *temporary { ", gone when it is ejected" } else { "" };
    let (file, base) = (show::printable(file), show::printable(base));
    format!("overlay  {file}{passing}\nbase     {base}\nwritten  {written}\n")
}

fn in_file(arguments: &Arguments, action: &OverlayAction, path: &Path) -> Result<(), Failure> {
    let run = Path::new(RUNTIME_DIR);
    let shows = io::stderr().is_terminal() && !arguments.json;
    let mut shown = None;
    let mut progress = |done: u64, total: u64| {
        let now = show::percent(done, total);
        if shows && shown != Some(now) {
            shown = Some(now);
            // There is nowhere else to say that standard error cannot be written.
            let _ = write!(io::stderr(), "\r{} of {} ({now} %)    ", ByteLen(done), ByteLen(total));
        }
        true
    };
    let result = match action {
        OverlayAction::Status { .. } => {
            let (base, state) = offline::status(path, run)?;
            match arguments.json {
                true => json!(state).to_string() + "\n",
                false => text(&state, &base.to_string_lossy()),
            }
        }
        OverlayAction::Commit(_) => {
            let bytes = offline::commit(path, run, &mut progress)?;
            done(arguments, &format!("{} written to the base", ByteLen(bytes)))
        }
        OverlayAction::Discard(_) => {
            offline::discard(path, run)?;
            done(arguments, "what was written is gone")
        }
        OverlayAction::Export { file, .. } => {
            offline::export(path, file, run, &mut progress)?;
            done(arguments, &format!("{} is what a host would see", show::printable(&file.to_string_lossy())))
        }
    };
    if shown.is_some() {
        let _ = writeln!(io::stderr());
    }
    print(result.as_bytes())
}

fn done(arguments: &Arguments, text: &str) -> String {
    if arguments.json { "{}\n".to_owned() } else { format!("{text}\n") }
}
