//! qemu-img and qemu-io, by which tests have images judged.

use std::{
    process::{Command, Output},
    thread,
    time::{Duration, Instant},
};

/// Longer than anybody holds a file that a test is done with.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

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
