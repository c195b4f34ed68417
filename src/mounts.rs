//! What is mounted, as /proc/self/mountinfo tells. Reading it waits for no file server.

use std::{ffi::OsString, fs, os::unix::ffi::OsStringExt, path::PathBuf};

use nix::sys::stat::makedev;

/// A line of it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Mount {
    /// `st_dev` of its files, for most file systems.
    pub(crate) device: u64,
    /// The mount point.
    pub(crate) point: PathBuf,
    /// The file system's type.
    pub(crate) kind: String,
    /// What is mounted, in the file system's own words.
    pub(crate) source: String,
    /// Its options, likewise.
    pub(crate) options: String,
}

/// All of this process's namespace, what is on top of others last. Empty where /proc is not there.
pub(crate) fn all() -> Vec<Mount> {
    parse(&fs::read("/proc/self/mountinfo").unwrap_or_default())
}

/// From lines of proc_pid_mountinfo(5): field 3 is the device, field 5 is the mount point; after a lone `-`, the type, the source and the
/// options.
fn parse(table: &[u8]) -> Vec<Mount> {
    let text = |field: &[u8]| String::from_utf8_lossy(&unescape(field)).into_owned();
    let of_line = |line: &[u8]| {
        let mut fields = line.split(|byte| *byte == b' ');
        let (major, minor) = str::from_utf8(fields.nth(2)?).ok()?.split_once(':')?;
        let device = makedev(major.parse().ok()?, minor.parse().ok()?);
        let point = PathBuf::from(OsString::from_vec(unescape(fields.nth(1)?)));
        let mut tail = fields.skip_while(|field| *field != b"-").skip(1);
        let (kind, source) = (text(tail.next()?), text(tail.next()?));
        Some(Mount { device, point, kind, source, options: tail.next().map(text).unwrap_or_default() })
    };
    table.split(|byte| *byte == b'\n').filter_map(of_line).collect()
}

/// Undoes the table's `\ooo` for blanks and backslashes.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        let octal = |digits: &[u8]| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok();
        match tail.get(..3).filter(|_| *first == b'\\').and_then(octal) {
            Some(byte) => {
                out.push(byte);
                rest = tail.get(3..).unwrap_or_default();
            }
            None => {
                out.push(*first);
                rest = tail;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_read_with_blanks_in_their_paths() {
        let table = b"22 1 0:20 / /proc rw,nosuid shared:5 - proc proc rw\n\
            41 1 0:42 / /mnt/with\\040blank\\134 rw shared:7 master:1 - functionfs usb0 rw\n\
            43 1 0:44 / /iso rw - nfs4 nas:/srv/i\\040so rw,addr=10.0.0.5\n\n";
        let found = parse(table);
        let line = |minor, point: &str, kind: &str, source: &str, options: &str| Mount {
            device: makedev(0, minor),
            point: point.into(),
            kind: kind.into(),
            source: source.into(),
            options: options.into(),
        };
        assert_eq!(
            found,
            [
                line(20, "/proc", "proc", "proc", "rw"),
                line(42, "/mnt/with blank\\", "functionfs", "usb0", "rw"),
                line(44, "/iso", "nfs4", "nas:/srv/i so", "rw,addr=10.0.0.5"),
            ]
        );
    }

    #[test]
    fn a_broken_table_is_no_mounts() {
        for table in [&b""[..], b"\n\n", b"1 2 3", b"1 2 3 4 /x rw -", b"1 2 3 4 /x rw - functionfs"] {
            assert!(parse(table).is_empty());
        }
        assert_eq!(unescape(b"a\\04"), b"a\\04");
        assert_eq!(unescape(b"\\777"), b"\\777");
    }
}
