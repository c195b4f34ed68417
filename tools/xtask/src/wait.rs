//! Waiting for what the kernel and other programs do, where nothing tells of it: sysfs, configfs, a process's end.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// How often one looks.
const LOOK: Duration = Duration::from_millis(20);

/// Looks until `look` finds something.
///
/// # Errors
/// `look` fails, or finds nothing within `limit`.
pub(crate) fn wait_for<T>(
    what: &str,
    limit: Duration,
    mut look: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let started = Instant::now();
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        if started.elapsed() > limit {
            bail!("waited {} s in vain for {what}", limit.as_secs());
        }
        thread::sleep(LOOK);
    }
}
