//! Waiting for a condition, with a deadline. The only place that sleeps.
//!
//! sysfs and configfs attributes change without an event to wait for, so they are looked at again every 20 ms.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Between two looks.
const STEP: Duration = Duration::from_millis(20);

/// Long enough for a host to enumerate a device on a busy machine without hardware virtualisation.
pub const ENUMERATION: Duration = Duration::from_secs(30);

/// Looks until `look` finds something, and gives it.
///
/// # Errors
/// `what` did not come within `limit`.
pub fn wait_for<T>(limit: Duration, what: &str, mut look: impl FnMut() -> Option<T>) -> Result<T> {
    let started = Instant::now();
    loop {
        if let Some(found) = look() {
            return Ok(found);
        }
        if started.elapsed() >= limit {
            bail!("{what}: not within {} ms", limit.as_millis());
        }
        thread::sleep(STEP);
    }
}

/// As [`wait_for`], for a condition that gives nothing.
///
/// # Errors
/// `condition` did not hold within `limit`.
pub fn wait_until(limit: Duration, what: &str, mut condition: impl FnMut() -> bool) -> Result<()> {
    wait_for(limit, what, || condition().then_some(()))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{wait_for, wait_until};

    #[test]
    fn a_wait_looks_again_until_there_is_something() {
        let mut looks = 0;
        let found = wait_for(Duration::from_secs(5), "the third look", || {
            looks += 1;
            (looks == 3).then_some("found")
        });
        assert_eq!(found.unwrap(), "found");
    }

    #[test]
    fn a_wait_in_vain_says_for_what() {
        let error = wait_until(Duration::ZERO, "a pig that flies", || false).unwrap_err();
        assert!(error.to_string().starts_with("a pig that flies"), "{error}");
    }
}
