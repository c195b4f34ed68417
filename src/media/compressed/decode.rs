//! From compressed bytes to plain ones, by the format that the first bytes say. Bounded in memory, whatever the bytes say.

use std::{
    error::Error,
    fs::File,
    io::{self, BufRead, BufReader, Read},
    os::unix::fs::FileExt,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use ruzstd::decoding::{
    BlockDecodingStrategy, FrameDecoder,
    errors::{FrameDecoderError, ReadFrameHeaderError},
};

/// What a decoder may hold in memory: `xz -9` and `zstd --long=27` and less.
const MEMORY_MAX: u64 = 128 << 20;
const MEMORY_MAX_KIB: u32 = 128 << 10;
/// Compressed bytes that are read at once.
const BUFFER: usize = 128 << 10;

/// How an image is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// RFC 1952.
    Gzip,
    /// `BZh1` to `BZh9`.
    Bzip2,
    /// The .xz file format 1.2.0.
    Xz,
    /// RFC 8878.
    Zstd,
}

impl Format {
    /// By the first bytes of a file; `None`: it is no format of these.
    pub fn of(file: &File) -> io::Result<Option<Self>> {
        let mut first = [0; 10];
        let read = file.read_at(&mut first, 0)?;
        Ok(first.get(..read).and_then(Self::of_bytes))
    }

    fn of_bytes(first: &[u8]) -> Option<Self> {
        match first {
            // Deflate is the only method.
            [0x1f, 0x8b, 8, ..] => Some(Self::Gzip),
            // The magic of a block, or of an empty file.
            [b'B', b'Z', b'h', b'1'..=b'9', 0x31, 0x41, 0x59, 0x26, 0x53, 0x59]
            | [b'B', b'Z', b'h', b'1'..=b'9', 0x17, 0x72, 0x45, 0x38, 0x50, 0x90] => Some(Self::Bzip2),
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Some(Self::Xz),
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Some(Self::Zstd),
            // A frame to be skipped, with which archives for random access begin.
            [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Some(Self::Zstd),
            _ => None,
        }
    }
}

/// The plain bytes of `file`. `taken` counts the compressed ones.
pub(super) fn decode(file: File, format: Format, taken: Arc<AtomicU64>) -> Box<dyn Read> {
    let counted = BufReader::with_capacity(BUFFER, Counted { file, taken });
    match format {
        Format::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(counted)),
        Format::Bzip2 => Box::new(bzip2::bufread::MultiBzDecoder::new(counted)),
        Format::Xz => Box::new(lzma_rust2::XzReader::new_mem_limit(counted, true, MEMORY_MAX_KIB)),
        Format::Zstd => Box::new(zstd(counted, MEMORY_MAX)),
    }
}

/// The plain bytes of zstd frames whose window is at most so large.
pub(in crate::media) fn zstd(source: impl BufRead, window_max: u64) -> impl Read {
    let mut decoder = FrameDecoder::new();
    decoder.set_max_window_size(window_max);
    Zstd { source, decoder, in_frame: false }
}

struct Counted {
    file: File,
    taken: Arc<AtomicU64>,
}

impl Read for Counted {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read(to)?;
        self.taken.fetch_add(u64::try_from(read).unwrap_or(0), Ordering::Relaxed);
        Ok(read)
    }
}

/// One frame behind the other, those between that are to be skipped, and the checksum of each.
struct Zstd<R> {
    source: R,
    decoder: FrameDecoder,
    in_frame: bool,
}

impl<R: BufRead> Zstd<R> {
    /// Whether there is another frame.
    fn begin(&mut self) -> io::Result<bool> {
        while !self.source.fill_buf()?.is_empty() {
            match self.decoder.init(&mut self.source) {
                Ok(()) => return Ok(true),
                Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame {
                    length,
                    ..
                })) => {
                    let skipped = io::copy(&mut self.source.by_ref().take(length.into()), &mut io::sink())?;
                    if skipped < u64::from(length) {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                }
                Err(error) => return Err(zstd_error(&error)),
            }
        }
        Ok(false)
    }
}

impl<R: BufRead> Read for Zstd<R> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        loop {
            if !self.in_frame {
                self.in_frame = self.begin()?;
                if !self.in_frame {
                    return Ok(0);
                }
            }
            if self.decoder.can_collect() == 0 && !self.decoder.is_finished() {
                let one = BlockDecodingStrategy::UptoBlocks(1);
                self.decoder.decode_blocks(&mut self.source, one).map_err(|error| zstd_error(&error))?;
            }
            let read = self.decoder.read(to)?;
            if read > 0 {
                return Ok(read);
            }
            if self.decoder.is_finished() {
                self.in_frame = false;
                let said = self.decoder.get_checksum_from_data();
                if said.is_some() && said != self.decoder.get_calculated_checksum() {
                    return Err(io::Error::new(io::ErrorKind::InvalidData, "wrong checksum"));
                }
            }
        }
    }
}

fn zstd_error(error: &FrameDecoderError) -> io::Error {
    if matches!(error, FrameDecoderError::WindowSizeTooBig { .. }) {
        return io::ErrorKind::OutOfMemory.into();
    }
    let mut cause: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(io) = error.downcast_ref::<io::Error>() {
            return io::Error::new(io.kind(), io.to_string());
        }
        cause = error.source();
    }
    io::Error::new(io::ErrorKind::InvalidData, error.to_string())
}
