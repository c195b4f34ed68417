//! Which chunks of an image are in its cache file, for the drive thread to ask without waiting, and how one is taken away while
//! reads are under way.
//!
//! ```text
//!   Absent ──► Here ──► Leaving ──► (hole punched) Absent
//!                ▲         │
//!                └─────────┘ somebody maps it, or a read of it is still under way
//! ```
//! **Invariant: no hole is punched under a read.** A mapped extent holds a handle of the cache file until its read is complete, so
//! the handles are what tells. There are two; the even and the odd *generation* of mappings get one each. [`Chunks::here`] takes the
//! handle, stamps the chunk with the generation, and only then looks (once more) whether the chunk is here and the generation the
//! same. [`Chunks::evict`] marks the chunk as leaving, and only then looks at stamp and handles. With a SeqCst fence between the two
//! steps on both sides, at least one sees the other. So a chunk is given up only if its stamp is
//!
//! - of an older generation than the last: when a generation begins, nobody holds its handle, so all reads of the one before the
//!   last are complete;
//! - of the last one, and nobody holds that one's handle.

use std::{
    fs::File,
    io,
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicU32, Ordering, fence},
    },
};

use super::record::chunks_of;

const ABSENT: u8 = 0;
const HERE: u8 = 1;
const LEAVING: u8 = 2;

/// The table of chunks. One thread maps; any may fetch; evictions take turns.
#[derive(Debug)]
pub(super) struct Chunks {
    states: Box<[AtomicU8]>,
    /// The generation of the last mapping.
    stamps: Box<[AtomicU32]>,
    generation: AtomicU32,
    files: [Arc<File>; 2],
}

impl Chunks {
    /// Of an image of `total` bytes in `file`, with those chunks here whose bits are set.
    pub(super) fn new(file: &File, total: u64, here: &[u8]) -> io::Result<Self> {
        let count = usize::try_from(chunks_of(total)).map_err(io::Error::other)?;
        let bit = |at: usize| here.get(at / 8).is_some_and(|byte| byte >> (at % 8) & 1 == 1);
        Ok(Self {
            states: (0..count).map(|at| AtomicU8::new(if bit(at) { HERE } else { ABSENT })).collect(),
            stamps: (0..count).map(|_| AtomicU32::new(0)).collect(),
            generation: AtomicU32::new(2),
            files: [Arc::new(file.try_clone()?), Arc::new(file.try_clone()?)],
        })
    }

    pub(super) fn count(&self) -> u64 {
        u64::try_from(self.states.len()).unwrap_or(u64::MAX)
    }

    /// The file, for whoever writes chunks that are not here.
    pub(super) fn file(&self) -> &File {
        &self.files[0]
    }

    /// How many of `chunks`, from the first one on, are here, with the handle to read them by. Neither waits nor allocates.
    pub(super) fn here(&self, chunks: &Range<u64>) -> Option<(Arc<File>, u64)> {
        // A second generation within one call is next to impossible; nothing is lost by then saying "not here".
        for _ in 0..2 {
            let generation = self.generation.load(Ordering::Relaxed);
            let file = Arc::clone(self.handle(generation));
            let run = chunks.clone().take_while(|chunk| self.is_here(*chunk));
            let count = run.inspect(|chunk| self.stamp(*chunk, generation)).fold(0, |count, _| count + 1);
            if count == 0 {
                return None;
            }
            fence(Ordering::SeqCst);
            let count = (chunks.start..chunks.start + count).take_while(|chunk| self.is_here(*chunk));
            let count = count.fold(0, |count, _| count + 1);
            if self.generation.load(Ordering::Relaxed) == generation {
                return (count > 0).then_some((file, count));
            }
        }
        None
    }

    pub(super) fn is_here(&self, chunk: u64) -> bool {
        self.state(chunk).is_some_and(|state| state.load(Ordering::SeqCst) == HERE)
    }

    /// Neither here nor on its way out: to be fetched.
    pub(super) fn is_absent(&self, chunk: u64) -> bool {
        self.state(chunk).is_some_and(|state| state.load(Ordering::SeqCst) == ABSENT)
    }

    /// Its bytes are in the file.
    pub(super) fn arrived(&self, chunk: u64) {
        self.stamp(chunk, self.generation.load(Ordering::Relaxed));
        if let Some(state) = self.state(chunk) {
            state.store(HERE, Ordering::SeqCst);
        }
    }

    /// A bit for each chunk that is here.
    pub(super) fn bits(&self) -> Vec<u8> {
        let byte = |states: &[AtomicU8]| {
            let bits = states.iter().enumerate();
            bits.fold(0, |byte, (bit, state)| byte | u8::from(state.load(Ordering::SeqCst) == HERE) << bit)
        };
        self.states.chunks(8).map(byte).collect()
    }

    /// Gives up to `wanted` chunks up, those longest unmapped first, but none of `spared`; `punch` makes the holes. How many went.
    pub(super) fn evict(
        &self,
        wanted: u64,
        spared: &Range<u64>,
        mut punch: impl FnMut(u64) -> io::Result<()>,
    ) -> io::Result<u64> {
        let current = self.begin_generation();
        let mut old: Vec<(u32, u64)> = (0..self.count())
            .filter(|chunk| !spared.contains(chunk) && self.is_here(*chunk))
            .map(|chunk| (current.wrapping_sub(self.stamp_of(chunk)), chunk))
            .filter(|(age, _)| *age > 0)
            .collect();
        old.sort_unstable_by(|one, other| other.cmp(one));
        let mut gone = 0;
        for (_, chunk) in old {
            if gone == wanted {
                break;
            }
            if self.take_away(chunk, current) {
                let punched = punch(chunk);
                self.set(chunk, if punched.is_ok() { ABSENT } else { HERE });
                punched?;
                gone += 1;
            }
        }
        Ok(gone)
    }

    /// The generation that mappings get from now on: a new one, unless reads of the one before the last are still under way.
    fn begin_generation(&self) -> u32 {
        let current = self.generation.load(Ordering::Relaxed);
        let next = current.wrapping_add(1);
        fence(Ordering::SeqCst);
        if Arc::strong_count(self.handle(next)) > 1 {
            return current;
        }
        self.generation.store(next, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        next
    }

    /// Whether the chunk is now leaving, with no read of it under way.
    fn take_away(&self, chunk: u64, current: u32) -> bool {
        let Some(state) = self.state(chunk) else { return false };
        if state.compare_exchange(HERE, LEAVING, Ordering::SeqCst, Ordering::SeqCst).is_err() {
            return false;
        }
        fence(Ordering::SeqCst);
        let free = match current.wrapping_sub(self.stamp_of(chunk)) {
            0 => false,
            1 => Arc::strong_count(self.handle(current.wrapping_sub(1))) == 1,
            _ => true,
        };
        fence(Ordering::SeqCst);
        if !free {
            self.set(chunk, HERE);
        }
        free
    }

    fn handle(&self, generation: u32) -> &Arc<File> {
        &self.files[usize::from(generation % 2 == 1)]
    }

    fn state(&self, chunk: u64) -> Option<&AtomicU8> {
        self.states.get(usize::try_from(chunk).ok()?)
    }

    fn set(&self, chunk: u64, to: u8) {
        if let Some(state) = self.state(chunk) {
            state.store(to, Ordering::SeqCst);
        }
    }

    fn stamp(&self, chunk: u64, generation: u32) {
        if let Some(stamp) = usize::try_from(chunk).ok().and_then(|at| self.stamps.get(at)) {
            stamp.store(generation, Ordering::Relaxed);
        }
    }

    fn stamp_of(&self, chunk: u64) -> u32 {
        let stamp = usize::try_from(chunk).ok().and_then(|at| self.stamps.get(at));
        stamp.map_or(0, |stamp| stamp.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use std::{
        os::unix::fs::FileExt,
        sync::atomic::{AtomicBool, AtomicU64},
    };

    use super::{super::CHUNK, *};

    fn chunks(count: u64) -> Chunks {
        let file = tempfile::tempfile().unwrap();
        let all = vec![u8::MAX; usize::try_from(count.div_ceil(8)).unwrap()];
        Chunks::new(&file, count * CHUNK, &all).unwrap()
    }

    #[test]
    fn a_chunk_that_is_being_read_stays_whatever_the_generation() {
        let chunks = chunks(4);
        let (held, count) = chunks.here(&(1..3)).unwrap();
        assert_eq!(count, 2);
        for _ in 0..5 {
            chunks.evict(4, &(0..1), |_| Ok(())).unwrap();
        }
        assert!(chunks.is_here(0) && chunks.is_here(1) && chunks.is_here(2) && chunks.is_absent(3));
        drop(held);
        for _ in 0..5 {
            chunks.evict(4, &(0..1), |_| Ok(())).unwrap();
        }
        assert!(chunks.is_here(0) && chunks.is_absent(1) && chunks.is_absent(2));
        assert_eq!(chunks.bits(), [1]);
    }

    #[test]
    fn those_longest_unmapped_go_first() {
        let chunks = chunks(6);
        for chunk in [5, 0, 3, 1, 4, 2] {
            drop(chunks.here(&(chunk..chunk + 1)).unwrap());
            chunks.evict(0, &(0..0), |_| Ok(())).unwrap();
        }
        let mut order = Vec::new();
        for _ in 0..6 {
            let note = |chunk| {
                order.push(chunk);
                Ok(())
            };
            chunks.evict(1, &(0..0), note).unwrap();
        }
        assert_eq!(order, [5, 0, 3, 1, 4, 2]);
    }

    #[test]
    fn a_hole_that_cannot_be_punched_leaves_the_chunk_here() {
        let chunks = chunks(1);
        assert!(chunks.evict(1, &(0..0), |_| Err(io::ErrorKind::Other.into())).is_err());
        assert!(chunks.is_here(0));
    }

    /// A reader that dawdles between mapping and reading, and an evictor that would punch under it.
    #[test]
    fn wherever_a_mapping_and_an_eviction_meet_no_hole_is_read() {
        const COUNT: u64 = 3;
        let file = tempfile::tempfile().unwrap();
        let mark = |chunk: u64| (chunk + 1).to_le_bytes();
        let chunks = Chunks::new(&file, COUNT * CHUNK, &[]).unwrap();
        let put = |chunk: u64| {
            file.write_all_at(&mark(chunk), chunk * CHUNK).unwrap();
            chunks.arrived(chunk);
        };
        (0..COUNT).for_each(put);
        let (stop, evicted) = (AtomicBool::new(false), AtomicU64::new(0));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let punch = |chunk: u64| file.write_all_at(&[0; 8], chunk * CHUNK);
                    evicted.fetch_add(chunks.evict(1, &(0..0), punch).unwrap(), Ordering::Relaxed);
                    (0..COUNT).filter(|chunk| chunks.is_absent(*chunk)).for_each(put);
                }
            });
            let mut random = fastrand::Rng::with_seed(1);
            let mut read = 0;
            while read < 200_000 || evicted.load(Ordering::Relaxed) < 1_000 {
                let chunk = random.u64(0..COUNT);
                let Some((handle, _)) = chunks.here(&(chunk..chunk + 1)) else { continue };
                (0..random.u8(0..50)).for_each(|_| std::hint::spin_loop());
                let mut bytes = [0; 8];
                handle.read_exact_at(&mut bytes, chunk * CHUNK).unwrap();
                if bytes != mark(chunk) {
                    stop.store(true, Ordering::Relaxed);
                    panic!("chunk {chunk} after {read} reads: {bytes:?}");
                }
                read += 1;
            }
            stop.store(true, Ordering::Relaxed);
        });
    }
}
