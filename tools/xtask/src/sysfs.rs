//! What sysfs tells.

use std::fs;
use std::path::Path;

/// An attribute without its newline; empty where there is none.
pub(crate) fn attribute(dir: &Path, name: &str) -> String {
    fs::read_to_string(dir.join(name)).unwrap_or_default().trim().to_owned()
}
