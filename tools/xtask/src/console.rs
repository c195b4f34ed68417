//! The board's kernel console, kept in a file: what it said when a run ends badly.

use std::fs;
use std::path::Path;

const TAIL: usize = 40;

/// What the kernel says when it dies, in the order in which one looks for them.
const DEATHS: [&str; 5] = [
    "Kernel panic",
    "Oops:",
    "BUG: unable to handle",
    "general protection fault",
    "Failed to mount real root",
];

/// The first line that tells of the kernel's death.
pub(crate) fn death(console: &Path) -> Option<String> {
    let text = read(console);
    DEATHS.iter().find_map(|mark| text.lines().find(|line| line.contains(mark))).map(str::to_owned)
}

/// The last lines, indented for an error message.
pub(crate) fn tail(console: &Path) -> String {
    let text = read(console);
    let lines: Vec<&str> = text.lines().collect();
    let from = lines.len().saturating_sub(TAIL);
    if lines.is_empty() {
        return "  (the console is empty)".to_owned();
    }
    lines.iter().skip(from).map(|line| format!("  | {line}")).collect::<Vec<_>>().join("\n")
}

fn read(console: &Path) -> String {
    fs::read(console).map(|bytes| String::from_utf8_lossy(&bytes).replace('\r', "")).unwrap_or_default()
}
