//! `ringdrive stats`: looks at what the drives have done, once or again and again.
//!
//! On a terminal the view is drawn over the one before: no line is left behind, and nothing has to be restored at the end, so that
//! it may end at any moment.

mod view;

use std::fmt::Write as _;
use std::io::{self, IsTerminal};
use std::os::fd::AsFd;
use std::process;
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::Deserialize;
use serde_json::{Value, json};

use super::args::{self, Arguments, Stats};
use super::{Failure, connect, print, show};
use crate::control::protocol::DriveStats;
use crate::control::{Client, ClientError};

/// Between two looks on a terminal.
const INTERVAL: Duration = Duration::from_secs(1);

pub(super) fn run(arguments: &Arguments, stats: &Stats) -> Result<(), Failure> {
    let interval = match (stats.once, arguments.json) {
        (true, _) => None,
        (false, true) => stats.interval,
        // A file of views that replace each other is of use to nobody.
        (false, false) => io::stdout().is_terminal().then(|| stats.interval.unwrap_or(INTERVAL)),
    };
    if interval.is_some() {
        end_on_signals()?;
    }
    let mut client = connect(arguments)?;
    let mut screen = Screen::default();
    let mut before: Option<Vec<DriveStats>> = None;
    loop {
        let drives = look(&mut client, stats.drive.as_deref())?;
        if arguments.json {
            print(format!("{}\n", json!({"drives": drives})).as_bytes())?;
        } else {
            let now = drives.iter().map(show::typed).collect::<Result<Vec<_>, _>>()?;
            match interval {
                None => print(view::once(&now).as_bytes())?,
                Some(_) => print(screen.draw(&view::live(&now, before.as_deref())).as_bytes())?,
            }
            before = Some(now);
        }
        match interval {
            Some(interval) if wait(&client, interval)? => {}
            _ => return Ok(()),
        }
    }
}

/// All of each drive. The daemon tells all of one at a time.
fn look(client: &mut Client, drive: Option<&str>) -> Result<Vec<Value>, ClientError> {
    #[derive(Deserialize)]
    struct Drives {
        drives: Vec<Value>,
    }
    let mut ask = |params: Value| {
        let result = client.call("stats", &params, None)?;
        show::typed::<Drives>(&result).map(|Drives { drives }| drives)
    };
    if let Some(drive) = drive {
        return ask(json!({"drive": args::drive(drive)}));
    }
    let mut all = Vec::new();
    for brief in ask(json!({}))? {
        all.append(&mut ask(json!({"drive": brief.get("drive")}))?);
    }
    Ok(all)
}

/// Waits for the next look. `false`: nobody reads us any more. The end of the daemon is for the next look to find.
fn wait(client: &Client, interval: Duration) -> Result<bool, Failure> {
    let stdout = io::stdout();
    let mut fds = [
        PollFd::new(client.as_fd(), PollFlags::POLLIN),
        // No flags: to learn that nobody reads any more, without having to write.
        PollFd::new(stdout.as_fd(), PollFlags::empty()),
    ];
    match poll(&mut fds, PollTimeout::try_from(interval).unwrap_or(PollTimeout::MAX)) {
        // Stopped and continued: it is time for a look.
        Ok(_) | Err(Errno::EINTR) => {}
        Err(errno) => return Err(Failure::Wait(errno)),
    }
    let [_, output] = fds.map(|fd| fd.any().unwrap_or(true));
    Ok(!output)
}

/// Ends the program well at SIGINT and SIGTERM, also while it waits for a daemon that does not answer.
fn end_on_signals() -> Result<(), Failure> {
    let ends = super::blocked_ends()?;
    let waiter = thread::Builder::new().name("signals".to_owned()).spawn(move || {
        if ends.wait().is_ok() {
            process::exit(0);
        }
    });
    waiter.map(drop).map_err(|error| Failure::Wait(Errno::from_raw(error.raw_os_error().unwrap_or(0))))
}

/// A terminal on which each view takes the place of the one before.
#[derive(Debug, Default)]
struct Screen {
    /// Lines of the view that is on it.
    lines: usize,
}

impl Screen {
    /// What to print for the next view: cut to the size of the terminal, since a line that wraps or scrolls cannot be gone back to.
    fn draw(&mut self, view: &str) -> String {
        let (width, height) = rustix::termios::tcgetwinsize(io::stdout())
            .ok()
            .filter(|size| size.ws_col > 0 && size.ws_row > 1)
            .map_or((80, 24), |size| (usize::from(size.ws_col), usize::from(size.ws_row)));
        self.replace(view, width, height)
    }

    fn replace(&mut self, view: &str, width: usize, height: usize) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        if self.lines > 0 {
            let _ = write!(text, "\x1b[{}A\r", self.lines);
        }
        self.lines = 0;
        for line in view.lines().take(height.saturating_sub(1)) {
            text.extend(line.chars().take(width.saturating_sub(1)));
            text.push_str("\x1b[K\n");
            self.lines += 1;
        }
        text.push_str("\x1b[J");
        text
    }
}

#[cfg(test)]
mod tests {
    use super::Screen;

    #[test]
    fn a_view_takes_the_place_of_the_one_before_and_leaves_nothing_of_it() {
        let mut screen = Screen::default();
        assert_eq!(screen.replace("a\nb\n", 80, 24), "a\x1b[K\nb\x1b[K\n\x1b[J");
        assert_eq!(screen.replace("c\n", 80, 24), "\x1b[2A\rc\x1b[K\n\x1b[J");
        assert_eq!(screen.replace("", 80, 24), "\x1b[1A\r\x1b[J");
    }

    #[test]
    fn a_view_larger_than_the_terminal_is_cut_so_that_it_neither_wraps_nor_scrolls() {
        let mut screen = Screen::default();
        assert_eq!(screen.replace("µµµµ\nb\nc\n", 3, 3), "µµ\x1b[K\nb\x1b[K\n\x1b[J");
        assert!(screen.replace("d", 3, 3).starts_with("\x1b[2A"));
    }
}
