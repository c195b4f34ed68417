//! What is here of an overlay, in a file in memory: it outlives the daemon and not the kernel, just as what the daemon has written
//! to the overlay itself and nobody has synced.
//!
//! | from | what |
//! |---|---|
//! | 0 | which overlay ([`Mark::id`](super::layout::Mark)), and in which boot of the machine |
//! | 4096 | the words of [`Store`], a cluster each, little-endian |

use std::{
    fs::{self, File, OpenOptions},
    io,
    ops::Range,
    os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use super::store::Store;
use crate::units::ByteLen;

const WORDS_AT: u64 = 4096;
const WORD: u64 = 4;
/// Words that are written at once.
const AT_ONCE: usize = 1024;
const HEAD: usize = 16 + 36;

/// The file; the drive and the worker take turns.
#[derive(Debug)]
pub(super) struct Sidecar {
    file: File,
    path: PathBuf,
}

impl Sidecar {
    /// That of an overlay, which knows what is in `store`; one is made where there is none.
    pub(super) fn open(dir: &Path, overlay: &File, id: [u8; 16], store: &Store) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        let path = path(dir, overlay)?;
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let file = options.custom_flags(libc::O_NOFOLLOW).open(&path)?;
        let mut found = [0; HEAD];
        if file.read_exact_at(&mut found, 0).is_err() || found != head(id)? {
            file.set_len(0)?;
            file.write_all_at(&head(id)?, 0)?;
        }
        file.set_len(WORDS_AT + store.geometry().clusters() * WORD)?;
        Ok(Self { file, path })
    }

    /// Notes what is here of these clusters.
    pub(super) fn note(&self, store: &Store, clusters: Range<u64>) -> io::Result<()> {
        for first in clusters.clone().step_by(AT_ONCE) {
            let mut words = [0; AT_ONCE * 4];
            let count = ByteLen(clusters.end - first).to_usize().min(AT_ONCE);
            for (cluster, word) in (first..).zip(words.chunks_exact_mut(4)).take(count) {
                word.copy_from_slice(&store.word(cluster).to_le_bytes());
            }
            let known = words.get(..count * 4).unwrap_or_default();
            self.file.write_all_at(known, WORDS_AT + first * WORD)?;
        }
        Ok(())
    }

    /// Nobody needs it any more.
    pub(super) fn remove(&self) {
        // One that stays is no harm: it says what the overlay says.
        let _ = fs::remove_file(&self.path);
    }
}

/// Adds what is known of an overlay, if anything is, to `store`.
pub(super) fn merge(dir: &Path, overlay: &File, id: [u8; 16], store: &Store) -> io::Result<()> {
    let file = match File::open(path(dir, overlay)?) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        file => file?,
    };
    let mut found = [0; HEAD];
    if file.read_exact_at(&mut found, 0).is_ok() && found == head(id)? { read(&file, store) } else { Ok(()) }
}

/// Removes that of an overlay which is stored, or gone.
pub(super) fn remove(dir: &Path, overlay: &File) {
    if let Ok(path) = path(dir, overlay) {
        let _ = fs::remove_file(path);
    }
}

fn path(dir: &Path, overlay: &File) -> io::Result<PathBuf> {
    let metadata = overlay.metadata()?;
    Ok(dir.join(format!("overlay-{:x}-{:x}", metadata.dev(), metadata.ino())))
}

fn head(id: [u8; 16]) -> io::Result<[u8; HEAD]> {
    let boot = fs::read("/proc/sys/kernel/random/boot_id")?;
    let mut head = [0; HEAD];
    head.iter_mut().zip(id.iter().chain(&boot)).for_each(|(to, byte)| *to = *byte);
    Ok(head)
}

fn read(file: &File, store: &Store) -> io::Result<()> {
    let mut words = vec![0; AT_ONCE * 4];
    let all = store.geometry().clusters();
    for first in (0..all).step_by(AT_ONCE) {
        let read = file.read_at(&mut words, WORDS_AT + first * WORD)?;
        let known = words.get(..read).unwrap_or_default();
        for (cluster, word) in (first..all).zip(known.chunks_exact(4)) {
            let word = word.try_into().map(u32::from_le_bytes).unwrap_or(0);
            store.add_word(cluster, word);
        }
    }
    Ok(())
}
