//! The control socket, spoken to line by line without a program between.

use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

/// A connection on which nothing takes longer than `limit`.
///
/// # Errors
/// Nobody listens there.
pub fn connect(socket: &Path, limit: Duration) -> Result<UnixStream> {
    let stream = UnixStream::connect(socket).context("cannot connect to the control socket")?;
    stream.set_read_timeout(Some(limit))?;
    stream.set_write_timeout(Some(limit))?;
    Ok(stream)
}

/// The next line of one who has asked for one at a time.
///
/// # Errors
/// There is none in time.
pub fn answer(stream: &UnixStream) -> Result<String> {
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).context("no answer")?;
    Ok(line)
}
