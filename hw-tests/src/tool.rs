//! Programs of the host: sg3-utils, fio, dosfstools, mount. They are the foreign opinion on what we serve.

use std::ffi::OsStr;
use std::process::{Command, Output};

use anyhow::{Context, Result, bail};

/// What a program said.
#[derive(Clone, Debug)]
pub struct Said {
    /// Exit status; 128 + N for signal N.
    pub status: i32,
    /// Standard output, then standard error.
    pub text: String,
}

impl Said {
    /// Ended with status 0.
    #[must_use]
    pub fn ok(&self) -> bool {
        self.status == 0
    }
}

/// Runs a program to its end, whatever that is.
///
/// # Errors
/// The program could not be started.
pub fn try_run<A: AsRef<OsStr>>(program: &str, args: impl IntoIterator<Item = A>) -> Result<Said> {
    let output = Command::new(program)
        .args(args)
        .output()
        .with_context(|| format!("cannot start {program}; `cargo xtask setup` installs the tools"))?;
    Ok(Said { status: status(&output), text: text(&output) })
}

/// Runs a program that must succeed; gives what it said.
///
/// # Errors
/// It could not be started, or failed; the message has what it said.
pub fn run<A: AsRef<OsStr>>(program: &str, args: impl IntoIterator<Item = A>) -> Result<String> {
    let args: Vec<A> = args.into_iter().collect();
    let line: Vec<String> = args.iter().map(|arg| arg.as_ref().to_string_lossy().into_owned()).collect();
    let said = try_run(program, &args)?;
    if !said.ok() {
        bail!("`{program} {}` ended with {}:\n{}", line.join(" "), said.status, said.text);
    }
    Ok(said.text)
}

fn status(output: &Output) -> i32 {
    use std::os::unix::process::ExitStatusExt;
    output.status.code().or_else(|| output.status.signal().map(|signal| 128 + signal)).unwrap_or(-1)
}

fn text(output: &Output) -> String {
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.push_str(&String::from_utf8_lossy(&output.stderr));
    text
}
