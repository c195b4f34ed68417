//! The writer of response bytes. A handler writes its whole answer; [`super::Target`] cuts it to the allocation length, in one
//! place (SPC-4, allocation length).

/// Response bytes being written.
#[derive(Debug)]
pub(super) struct Response<'a> {
    buffer: &'a mut [u8],
    len: usize,
}

impl<'a> Response<'a> {
    pub(super) fn new(buffer: &'a mut [u8]) -> Self {
        Self { buffer, len: 0 }
    }

    /// Bytes written so far.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// The bytes written so far, from `at`.
    pub(super) fn since(&self, at: usize) -> &[u8] {
        self.buffer.get(at..self.len).unwrap_or_default()
    }

    /// No answer of ours reaches the end of the buffer; should one, the rest is lost rather than the process.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        let end = self.len.saturating_add(bytes.len());
        let room = self.buffer.get_mut(self.len..end);
        debug_assert!(room.is_some(), "a response of {end} bytes passes its buffer");
        if let Some(room) = room {
            room.copy_from_slice(bytes);
            self.len = end;
        }
    }

    pub(super) fn byte(&mut self, value: u8) {
        self.push(&[value]);
    }

    pub(super) fn be16(&mut self, value: u16) {
        self.push(&value.to_be_bytes());
    }

    /// The low 24 bits of `value`.
    pub(super) fn be24(&mut self, value: u32) {
        let [_, high, middle, low] = value.to_be_bytes();
        self.push(&[high, middle, low]);
    }

    pub(super) fn be32(&mut self, value: u32) {
        self.push(&value.to_be_bytes());
    }

    pub(super) fn be64(&mut self, value: u64) {
        self.push(&value.to_be_bytes());
    }

    pub(super) fn zeros(&mut self, count: usize) {
        for _ in 0..count {
            self.byte(0);
        }
    }

    /// Overwrites what was written from `at` on with zeroes.
    pub(super) fn clear_from(&mut self, at: usize) {
        if let Some(bytes) = self.buffer.get_mut(at..self.len) {
            bytes.fill(0);
        }
    }

    /// Fills in the one-byte length field at `at`: the number of bytes that follow it.
    pub(super) fn seal8(&mut self, at: usize) {
        let count = self.len.saturating_sub(at.saturating_add(1));
        self.patch(at, &[u8::try_from(count).unwrap_or(u8::MAX)]);
    }

    /// The same for a two-byte field.
    pub(super) fn seal16(&mut self, at: usize) {
        let count = self.len.saturating_sub(at.saturating_add(2));
        self.patch(at, &u16::try_from(count).unwrap_or(u16::MAX).to_be_bytes());
    }

    /// The same for a four-byte field.
    pub(super) fn seal32(&mut self, at: usize) {
        let count = self.len.saturating_sub(at.saturating_add(4));
        self.patch(at, &u32::try_from(count).unwrap_or(u32::MAX).to_be_bytes());
    }

    /// Sets the bits of `mask` in the written byte at `at`.
    pub(super) fn set_bits(&mut self, at: usize, mask: u8) {
        if let Some(byte) = self.buffer.get_mut(..self.len).and_then(|written| written.get_mut(at)) {
            *byte |= mask;
        }
    }

    /// Overwrites written bytes at `at`.
    pub(super) fn patch(&mut self, at: usize, bytes: &[u8]) {
        let end = at.saturating_add(bytes.len());
        debug_assert!(end <= self.len, "a length field is written before it is filled in");
        if let Some(room) = self.buffer.get_mut(at..end) {
            room.copy_from_slice(bytes);
        }
    }
}
