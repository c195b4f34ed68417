//! Buffers for bytes in flight: made once when a function starts, handed out and taken back without a lock or an allocation.
//!
//! The drive loop takes a [`Buf`]; the ring and the endpoint engines own it while the kernel works on it; dropping it returns
//! it to its pool, on whatever thread that happens. The memory lives as long as the pool or any of its buffers.

use std::{
    fmt,
    fs::File,
    io,
    ops::{Deref, DerefMut},
    ptr::NonNull,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use memmap2::MmapRaw;

/// Most buffers that one pool holds: the bits of its free map.
pub const POOL_BUFFERS_MAX: usize = 64;

/// A fixed set of equal, page-aligned buffers.
#[derive(Clone)]
pub struct Pool(Arc<Shared>);

struct Shared {
    memory: MmapRaw,
    buf_len: usize,
    count: usize,
    /// Bit `i` is set while buffer `i` is free.
    free: AtomicU64,
}

/// One buffer, owned by whoever holds it. Its first bytes are what a transfer moves.
pub struct Buf {
    memory: NonNull<u8>,
    index: usize,
    pool: Pool,
}

impl Pool {
    /// Maps `count` buffers of `buf_len` bytes each. `count` is clamped to 1..=[`POOL_BUFFERS_MAX`] and `buf_len` rounded up
    /// to a multiple of 4 KiB, to which every buffer is aligned too.
    ///
    /// # Errors
    /// The error of mmap(2); [`io::ErrorKind::OutOfMemory`] where the sum is more than an address can say.
    pub fn new(count: usize, buf_len: usize) -> io::Result<Self> {
        Self::mapped(count, buf_len, |len| Ok(MmapRaw::from(memmap2::MmapMut::map_anon(len)?)))
    }

    /// As [`Pool::new`], over the bytes of `file`: what they were is what the buffers hold at first, and whoever has the file has
    /// them when this process is gone. To be used by one process at a time.
    ///
    /// # Errors
    /// As [`Pool::new`]; [`io::ErrorKind::UnexpectedEof`] where the file has fewer bytes. One that may still be cut short is for the caller
    /// to refuse: its bytes would be taken from under us.
    pub fn shared(file: &File, count: usize, buf_len: usize) -> io::Result<Self> {
        Self::mapped(count, buf_len, |len| {
            if usize::try_from(file.metadata()?.len()).is_ok_and(|has| has < len) {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            memmap2::MmapOptions::new().len(len).map_raw(file)
        })
    }

    fn mapped(
        count: usize,
        buf_len: usize,
        map: impl FnOnce(usize) -> io::Result<MmapRaw>,
    ) -> io::Result<Self> {
        let count = count.clamp(1, POOL_BUFFERS_MAX);
        let buf_len = buf_len.max(1).checked_next_multiple_of(4096).ok_or(io::ErrorKind::OutOfMemory)?;
        let memory = map(count.checked_mul(buf_len).ok_or(io::ErrorKind::OutOfMemory)?)?;
        let free = AtomicU64::new(u64::MAX >> (POOL_BUFFERS_MAX - count));
        Ok(Self(Arc::new(Shared { memory, buf_len, count, free })))
    }

    /// A free buffer, or `None` when all are in flight. Its contents are those of its last use.
    pub fn take(&self) -> Option<Buf> {
        let mut free = self.0.free.load(Ordering::Relaxed);
        while free != 0 {
            let bit = free & free.wrapping_neg();
            match self.0.free.compare_exchange_weak(free, free ^ bit, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => {
                    let index = usize::try_from(bit.trailing_zeros()).ok()?;
                    // SAFETY: `index` < `count`, because only those bits are ever set, so the result stays inside the mapping.
                    let memory = unsafe { self.0.memory.as_mut_ptr().add(index * self.0.buf_len) };
                    return NonNull::new(memory).map(|memory| Buf { memory, index, pool: self.clone() });
                }
                Err(now) => free = now,
            }
        }
        None
    }

    /// Bytes in each buffer.
    pub fn buf_len(&self) -> usize {
        self.0.buf_len
    }

    /// Buffers in the pool, free or not.
    pub fn count(&self) -> usize {
        self.0.count
    }

    /// Buffers that are free now.
    pub fn available(&self) -> usize {
        self.0.free.load(Ordering::Relaxed).count_ones().try_into().unwrap_or(usize::MAX)
    }

    /// The whole mapping, for registration with the kernel.
    pub(super) fn memory(&self) -> (*mut u8, usize) {
        (self.0.memory.as_mut_ptr(), self.0.memory.len())
    }

    /// Whether both are handles of one pool.
    pub(super) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Buf {
    /// The pool it returns to.
    pub(super) fn pool(&self) -> &Pool {
        &self.pool
    }
}

impl Deref for Buf {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: the memory is mapped while `pool` lives, initialised (anonymous pages are zero, and a file's are its bytes), and
        // ours alone: no other process uses the file of a shared pool, the bit in the free map is clear until drop, and whoever
        // gives the kernel the address owns this Buf meanwhile.
        unsafe { std::slice::from_raw_parts(self.memory.as_ptr(), self.pool.0.buf_len) }
    }
}

impl DerefMut for Buf {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and `&mut self` makes the access exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.memory.as_ptr(), self.pool.0.buf_len) }
    }
}

impl Drop for Buf {
    fn drop(&mut self) {
        self.pool.0.free.fetch_or(1 << self.index, Ordering::Release);
    }
}

// SAFETY: a Buf is the only owner of its bytes, and the pool it returns to is Sync; nothing in it is tied to a thread.
unsafe impl Send for Buf {}

impl fmt::Debug for Buf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buf#{}[{}]", self.index, self.pool.0.buf_len)
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pool({}/{} free, {} B each)", self.available(), self.count(), self.buf_len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_hands_out_each_buffer_once_and_takes_it_back() {
        let pool = Pool::new(3, 4096).unwrap();
        let mut all: Vec<Buf> = std::iter::from_fn(|| pool.take()).collect();
        assert_eq!((all.len(), pool.available()), (3, 0));
        for (n, buf) in (1u8..).zip(&mut all) {
            buf.fill(n);
        }
        assert!(all.iter().zip(1u8..).all(|(buf, n)| buf.iter().all(|b| *b == n)));
        drop(all.pop());
        assert_eq!(pool.available(), 1);
    }

    #[test]
    fn a_full_pool_of_64_works_and_buffers_outlive_their_pool() {
        let pool = Pool::new(64, 1).unwrap();
        let buf = std::thread::spawn(move || {
            let mut all: Vec<Buf> = std::iter::from_fn(|| pool.take()).collect();
            assert_eq!(all.len(), 64);
            all.pop()
        });
        assert_eq!(buf.join().unwrap().unwrap().len(), 4096);
    }

    #[test]
    fn a_shared_pool_finds_what_the_one_before_it_left_and_no_short_file() {
        let file = tempfile::tempfile().unwrap();
        assert_eq!(Pool::shared(&file, 2, 4096).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        file.set_len(8192).unwrap();
        let pool = Pool::shared(&file, 2, 4096).unwrap();
        let (_first, mut second) = (pool.take().unwrap(), pool.take().unwrap());
        second[..4].copy_from_slice(b"kept");
        let again = Pool::shared(&file, 2, 4096).unwrap();
        assert_eq!((again.take().unwrap()[0], &again.take().unwrap()[..4]), (0, &b"kept"[..]));
    }

    #[test]
    fn odd_sizes_are_clamped_and_impossible_ones_refused() {
        for (count, buf_len, made) in [(0, 0, (1, 4096)), (65, 1, (64, 4096)), (2, 4097, (2, 8192))] {
            let pool = Pool::new(count, buf_len).unwrap();
            assert_eq!((pool.count(), pool.buf_len()), made);
            let all: Vec<Buf> = std::iter::from_fn(|| pool.take()).collect();
            assert!(all.len() == made.0 && all.iter().all(|buf| buf.len() == made.1));
            assert!(all.iter().all(|buf| buf.as_ptr().addr().is_multiple_of(4096)));
        }
        for (count, buf_len) in [(1, usize::MAX), (2, usize::MAX / 2 + 1), (64, usize::MAX / 32)] {
            assert!(Pool::new(count, buf_len).is_err(), "{count} × {buf_len}");
        }
    }

    #[test]
    fn a_pool_knows_its_own_buffers_and_handles() {
        let (one, other) = (Pool::new(1, 1).unwrap(), Pool::new(1, 1).unwrap());
        let buf = one.clone().take().unwrap();
        assert!(buf.pool().is(&one) && !buf.pool().is(&other));
        let (start, len) = one.memory();
        assert_eq!((start.cast_const(), len), (buf.as_ptr(), 4096));
    }

    #[test]
    fn threads_that_fight_for_buffers_never_hold_the_same_one() {
        let pool = Pool::new(3, 4096).unwrap();
        std::thread::scope(|scope| {
            for me in 1..=4u8 {
                let pool = &pool;
                scope.spawn(move || {
                    for _ in 0..2000 {
                        if let Some(mut buf) = pool.take() {
                            buf[..64].fill(me);
                            std::thread::yield_now();
                            assert!(buf[..64].iter().all(|byte| *byte == me), "two threads held one buffer");
                        }
                    }
                });
            }
        });
        assert_eq!(pool.available(), 3);
    }
}
