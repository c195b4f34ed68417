//! What an endpoint request moves: a buffer of ours, or bytes of an image where they are.

use std::io;

use super::{pool::Buf, window::Piece};

/// The bytes of an endpoint request, owned by whoever moves them.
#[derive(Debug)]
pub enum Payload {
    /// A buffer.
    Buf(Buf),
    /// A piece of an image; to the host only.
    Piece(Piece),
}

impl Payload {
    /// Bytes that it holds.
    pub fn capacity(&self) -> usize {
        match self {
            Self::Buf(buf) => buf.len(),
            Self::Piece(piece) => piece.len(),
        }
    }

    /// The buffer, if it is one.
    pub fn into_buf(self) -> Option<Buf> {
        match self {
            Self::Buf(buf) => Some(buf),
            Self::Piece(_) => None,
        }
    }

    /// Where the kernel finds the bytes.
    pub(crate) fn address(&self) -> *const u8 {
        match self {
            Self::Buf(buf) => buf.as_ptr(),
            Self::Piece(piece) => piece.address(),
        }
    }

    /// Copies the first bytes to `to`: for engines that are not the kernel.
    ///
    /// # Errors
    /// As [`Piece::read`]; `UnexpectedEof` where `to` is longer than what there is.
    pub fn read(&self, to: &mut [u8]) -> io::Result<()> {
        match self {
            Self::Buf(buf) => {
                let bytes = buf.get(..to.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
                to.copy_from_slice(bytes);
                Ok(())
            }
            Self::Piece(piece) => piece.read(to),
        }
    }
}
