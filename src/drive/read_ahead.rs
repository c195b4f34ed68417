//! Read-ahead across commands: hints to the kernel's page cache, so that a stream from a slow source finds its bytes there.
//!
//! The window doubles with each command that goes on where the last one ended, up to [`WINDOW_MAX`], and falls to nothing with one
//! that does not. The kernel's own read-ahead ends at 128 KiB for network file systems, which at 10 ms a round trip is 13 MB/s; the
//! bound here is 800 MB/s. Called by `phases` for images whose bytes were not in memory.

use crate::units::{ByteLen, ByteOffset, ByteRange};

/// The first window.
const WINDOW_MIN: u64 = 1 << 20;
/// The largest: twice latency × bandwidth of 10 ms at SuperSpeed, because it is asked for in quarters.
const WINDOW_MAX: u64 = 8 << 20;

/// One image's stream.
#[derive(Debug, Default)]
pub(super) struct ReadAhead {
    /// Where the next command of the stream would begin.
    next: u64,
    window: u64,
    /// What has been asked for ends here.
    asked_to: u64,
}

impl ReadAhead {
    /// A command reads `range`. Whether it goes on where the last one ended, and what to ask for now, behind it: a good part of a
    /// window, or nothing.
    pub(super) fn advance(&mut self, range: ByteRange) -> (bool, Option<ByteRange>) {
        let goes_on = range.start().0 == self.next;
        self.next = range.end().0;
        if !goes_on {
            self.window = 0;
            self.asked_to = 0;
            return (false, None);
        }
        (true, self.ask())
    }

    fn ask(&mut self) -> Option<ByteRange> {
        self.window = (self.window * 2).clamp(WINDOW_MIN, WINDOW_MAX);
        let from = self.asked_to.max(self.next);
        let to = self.next.checked_add(self.window)?;
        let missing = to.checked_sub(from).filter(|missing| *missing >= self.window / 4)?;
        self.asked_to = to;
        ByteRange::new(ByteOffset(from), ByteLen(missing))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(ahead: &mut ReadAhead, start: u64, len: u64) -> Option<(u64, u64)> {
        let range = ByteRange::new(ByteOffset(start), ByteLen(len)).unwrap();
        ahead.advance(range).1.map(|hint| (hint.start().0, hint.end().0))
    }

    #[test]
    fn a_stream_is_asked_for_once_and_ever_further_ahead() {
        let mut ahead = ReadAhead::default();
        let mut asked_to = 0;
        for command in 0..1000 {
            let start = command * 120 * 1024;
            if let Some((from, to)) = read(&mut ahead, start, 120 * 1024) {
                assert_eq!(
                    from,
                    asked_to.max(start + 120 * 1024),
                    "no byte is asked for twice, none is left out"
                );
                asked_to = to;
            }
            let end = start + 120 * 1024;
            assert!(asked_to > end && asked_to <= end + WINDOW_MAX);
        }
        assert!(asked_to >= 1000 * 120 * 1024 + WINDOW_MAX / 2);
    }

    #[test]
    fn random_reads_ask_for_nothing() {
        let mut ahead = ReadAhead::default();
        assert_eq!(read(&mut ahead, 8192, 4096), None);
        assert_eq!(read(&mut ahead, 0, 4096), None);
        assert_eq!(read(&mut ahead, 1 << 40, 4096), None);
        assert_eq!(read(&mut ahead, u64::MAX - 4096, 4096), None);
    }
}
