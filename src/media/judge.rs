//! qemu-img and qemu-io, by which tests have images judged, and the usual programs that compress them.

use std::{
    io::{Seek, Write},
    process::{Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

/// Longer than anybody holds a file that a test is done with.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

/// `bytes` as the usual program compresses them; `None` where it is not installed.
pub(super) fn compressed(program: &str, args: &[&str], bytes: &[u8]) -> Option<Vec<u8>> {
    let mut from = tempfile::tempfile().unwrap();
    from.write_all(bytes).unwrap();
    from.rewind().unwrap();
    let output = Command::new(program).args(args).stdin(from).stderr(Stdio::inherit()).output();
    let output = output.inspect_err(|error| eprintln!("skipped: {program}: {error}")).ok()?;
    assert!(output.status.success(), "{program}: {}", output.status);
    Some(output.stdout)
}

/// Whether the tool has run, which must go well; a missing one lets a test pass.
pub(super) fn must(tool: &str, args: &[&str]) -> bool {
    let Some(Output { status, stdout, stderr }) = run(tool, args) else { return false };
    let (stdout, stderr) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    assert!(status.success(), "{tool} {args:?}: {status}\n{stdout}{stderr}");
    assert!(!stdout.contains("Pattern verification failed"), "{tool} {args:?}: {stdout}");
    true
}

/// Runs one of them; `None` where it is not installed, as on machines without QEMU. A file may be locked for a moment still: by a worker
/// that ends, and by what other tests are just starting, which has all of our descriptors until it executes its program.
pub(super) fn run(tool: &str, args: &[&str]) -> Option<Output> {
    let until = Instant::now() + PATIENCE;
    loop {
        let ran = Command::new(tool).args(args).output();
        let ran = ran.inspect_err(|error| eprintln!("skipped: {tool}: {error}")).ok()?;
        let is_locked = String::from_utf8_lossy(&ran.stderr).contains("Failed to get ");
        if !is_locked || Instant::now() > until {
            return Some(ran);
        }
        thread::yield_now();
    }
}
