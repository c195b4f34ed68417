//! Images with known bytes.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

/// One MiB.
pub const MIB: u64 = 1 << 20;

/// SHA-256.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Sha([u8; 32]);

impl std::fmt::Debug for Sha {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// SHA-256 of all that `from` gives.
///
/// # Errors
/// A read failed.
pub fn sha_of(mut from: impl Read) -> io::Result<Sha> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match from.read(&mut buffer)? {
            0 => return Ok(Sha(hash.finalize().into())),
            read => hash.update(buffer.get(..read).unwrap_or_default()),
        }
    }
}

/// SHA-256 of a file.
///
/// # Errors
/// The file could not be read.
pub fn sha_of_file(path: &Path) -> Result<Sha> {
    File::open(path).and_then(sha_of).with_context(|| format!("cannot read {}", path.display()))
}

/// Of a versioned image.
const SECTOR: usize = 512;

/// `len` bytes at `at` of a version of an image, both multiples of 512: each 512 bytes have their place and their version, and noise
/// of both.
#[must_use]
pub fn versioned(version: u64, at: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    for (number, sector) in (at / 512..).zip(bytes.chunks_exact_mut(SECTOR)) {
        fastrand::Rng::with_seed(number ^ version << 40).fill(sector);
        let head = number.to_le_bytes().into_iter().chain(version.to_le_bytes());
        sector.iter_mut().zip(head).for_each(|(byte, of_head)| *byte = of_head);
    }
    bytes
}

/// The versions that `bytes`, which were read at `at`, are of.
///
/// # Errors
/// Bytes that are of none of `versions`, or of another place.
pub fn versions_in(bytes: &[u8], at: u64, versions: &[u64]) -> Result<Vec<u64>> {
    let mut found = Vec::new();
    for (number, sector) in (0..).zip(bytes.chunks(SECTOR)) {
        let at = at + number * 512;
        let version = versions.iter().find(|&&version| versioned(version, at, SECTOR) == sector);
        let version = version.with_context(|| format!("the bytes at {at} are of no version of the image"))?;
        found.push(*version);
    }
    found.sort_unstable();
    found.dedup();
    Ok(found)
}

/// `len` bytes that are the same for the same seed and unlike for another.
#[must_use]
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    fastrand::Rng::with_seed(seed).fill(&mut bytes);
    bytes
}

/// Writes an image of `mib` MiB of noise.
///
/// # Errors
/// No room.
pub fn random(path: PathBuf, seed: u64, mib: u64) -> Result<PathBuf> {
    let mut file = File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
    for part in 0..mib {
        file.write_all(&noise(seed.wrapping_mul(1 << 32).wrapping_add(part), 1 << 20))
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(path)
}

/// Writes an image of `len` zeros, with none of them stored.
///
/// # Errors
/// The file could not be made.
pub fn blank(path: PathBuf, len: u64) -> Result<PathBuf> {
    let file = File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
    file.set_len(len).with_context(|| format!("cannot make {} {len} bytes long", path.display()))?;
    Ok(path)
}

/// Puts `bytes` at `at` of an image, past any daemon that serves it.
///
/// # Errors
/// The file could not be written.
pub fn poke(path: &Path, at: u64, bytes: &[u8]) -> Result<()> {
    let file = File::options().write(true).open(path)?;
    file.write_all_at(bytes, at).with_context(|| format!("cannot write {} at {at}", path.display()))
}

/// `len` bytes at `at` of an image, as our side has them.
///
/// # Errors
/// The file could not be read, or is shorter.
pub fn peek(path: &Path, at: u64, len: usize) -> Result<Vec<u8>> {
    let mut bytes = vec![0; len];
    let file = File::open(path)?;
    file.read_exact_at(&mut bytes, at).with_context(|| format!("cannot read {} at {at}", path.display()))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::{noise, sha_of, versioned, versions_in};

    #[test]
    fn the_hash_is_that_of_the_standard() {
        // FIPS 180-4's example of one block.
        let wanted = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(format!("{:?}", sha_of(&b"abc"[..]).unwrap()), wanted);
    }

    #[test]
    fn noise_repeats_for_a_seed_and_differs_between_seeds() {
        assert_eq!(noise(1, 4096), noise(1, 4096));
        assert_ne!(noise(1, 4096), noise(2, 4096));
    }

    #[test]
    fn a_mixture_of_versions_is_seen_and_so_is_a_wrong_place() {
        let mut bytes = versioned(1, 4096, 2048);
        assert_eq!(versions_in(&bytes, 4096, &[1, 2]).unwrap(), [1]);
        bytes[512..1024].copy_from_slice(&versioned(2, 4096, 2048)[512..1024]);
        assert_eq!(versions_in(&bytes, 4096, &[1, 2]).unwrap(), [1, 2]);
        assert!(versions_in(&bytes, 4096, &[1]).is_err());
        assert!(versions_in(&bytes, 8192, &[1, 2]).is_err());
    }
}
