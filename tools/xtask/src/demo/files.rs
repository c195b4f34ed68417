//! What the host writes to the flash disk, and what we must find in its image.

use std::fmt::Write as _;
use std::io::{self, Read};

use sha2::{Digest, Sha256};

/// A file of the demo; its content follows from its name and size.
pub(crate) struct File {
    /// Path below the root of the disk.
    pub(crate) path: &'static str,
    pub(crate) size: usize,
}

/// Names that short 8.3 entries cannot hold, sizes around a cluster's, and enough to measure.
pub(crate) const FILES: [File; 6] = [
    File { path: "README.TXT", size: 1_000 },
    File { path: "empty", size: 0 },
    File { path: "a name with spaces.bin", size: 65_537 },
    File { path: "größe – 漢字 – дом.txt", size: 4_096 },
    File { path: "folder with spaces/deep.bin", size: 5_000_000 },
    File { path: "large.bin", size: 24 * 1024 * 1024 },
];

impl File {
    /// The bytes, which differ in every block, so that a block in a wrong place shows.
    pub(crate) fn content(&self) -> Vec<u8> {
        let mut state = self.path.bytes().fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        let words = std::iter::repeat_with(|| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            state.rotate_left(29).to_le_bytes()
        });
        words.flatten().take(self.size).collect()
    }
}

/// The SHA-256 of all that `from` gives, in hexadecimal, and its length.
pub(crate) fn sha256(mut from: impl Read) -> io::Result<(String, u64)> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    let mut length = 0;
    loop {
        let read = from.read(&mut buffer)?;
        let Some(piece @ [_, ..]) = buffer.get(..read) else { break };
        hash.update(piece);
        length += read as u64;
    }
    let mut text = String::new();
    for byte in hash.finalize() {
        let _ = write!(text, "{byte:02x}");
    }
    Ok((text, length))
}

#[cfg(test)]
mod tests {
    use super::{FILES, sha256};

    #[test]
    fn no_two_blocks_of_the_files_are_alike() {
        let mut seen = std::collections::HashSet::new();
        for file in &FILES {
            assert!(
                file.content().chunks_exact(512).all(|block| seen.insert(block.to_vec())),
                "{}",
                file.path
            );
        }
    }

    #[test]
    fn the_hash_is_that_of_fips_180() {
        let (hash, length) = sha256(&b"abc"[..]).unwrap();
        assert_eq!(hash, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_eq!(length, 3);
    }
}
