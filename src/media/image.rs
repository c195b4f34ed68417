//! Images on this machine: regular files (on whatever file system, network ones too) and block devices.
//!
//! Invariants of an [`Image`]: it has at least one byte; its length is whole blocks, where a read-only image's last partial
//! block is filled up with zeroes and a read-write image has none; it is locked, shared for reading and exclusively for
//! writing, until the last handle of its file is gone (operations still in flight count). Its file never blocks at open,
//! is not inherited by children, and has neither O_APPEND nor O_NONBLOCK, which would bend writes and reads of the ring.
//!
//! Locks are open-file-description locks: they see other drives of this daemon, POSIX locks, and QEMU. File systems that have
//! no locks are served without.

use std::{
    fs::{self, File, Metadata, OpenOptions},
    io::{self, Seek, SeekFrom},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
    sync::Arc,
};

use nix::{
    errno::Errno,
    fcntl::{FallocateFlags, FcntlArg, OFlag, fallocate, fcntl},
    sys::{
        stat::fstat,
        statfs::{self, FsType, fstatfs},
    },
    unistd::{Whence, lseek},
};

use rustix::fs::{AtFlags, StatxFlags, makedev, statx};

use super::{
    Allocation, Extent, FaultKind, MediaError, MediaErrorKind, MediaOp, Medium, Residence, Standing, Watch,
    error::LEN_MAX,
};
use crate::{
    mounts::{self, Mount},
    ring::FileStat,
    units::{BlockSize, ByteLen, ByteOffset, ByteRange},
};

/// What an image is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Access {
    /// Reading; others may read it meanwhile.
    ReadOnly,
    /// Reading and writing; nobody else may hold it meanwhile.
    ReadWrite,
}

/// What a file was when it was looked at. Another value later means that somebody changed or replaced it; writes through
/// a drive change `modified` too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Identity {
    /// Device that holds the file (`st_dev`).
    pub device: u64,
    /// Inode.
    pub inode: u64,
    /// Length; 0 for a block device.
    pub len: ByteLen,
    /// Time of the last change of contents: seconds and nanoseconds since 1970.
    pub modified: (i64, i64),
    /// Somewhere it has a name.
    pub named: bool,
}

/// A regular file or a block device, open, locked and measured.
#[derive(Debug)]
pub struct Image {
    file: Arc<File>,
    name: PathBuf,
    access: Access,
    /// Bytes that the file has.
    stored: ByteLen,
    /// `stored`, filled up to whole blocks.
    len: ByteLen,
    identity: Identity,
    locked: bool,
    block_size: BlockSize,
    residence: Residence,
    /// Whose word to take for what the file is, after each read that cannot be looked at.
    word: Option<Word>,
    thin: bool,
}

impl Image {
    /// Opens the image at `path` for a drive with blocks of `block_size`.
    ///
    /// # Errors
    /// [`MediaError`], whose text gives the cause and the cure. Nothing stays open or locked.
    pub fn open(path: &Path, access: Access, block_size: BlockSize) -> Result<Self, MediaError> {
        Self::open_as(path, access, block_size, true)
    }

    /// The same of a file of any length, in which somebody else knows where a disk is.
    pub(super) fn open_container(path: &Path, access: Access) -> Result<Self, MediaError> {
        Self::open_as(path, access, BlockSize::B512, false)
    }

    fn open_as(
        path: &Path,
        access: Access,
        block_size: BlockSize,
        is_disk: bool,
    ) -> Result<Self, MediaError> {
        let fail = |op, kind| {
            move |source: io::Error| MediaError { kind, op, path: path.to_owned(), source: Some(source) }
        };
        let open_error = |error: io::Error| fail(MediaOp::Open, MediaErrorKind::from_open(&error))(error);
        // Looked at before it is opened, because opening some devices does something.
        let before = fs::metadata(path).map_err(open_error)?;
        let bare = |kind| MediaError { kind, op: MediaOp::Open, path: path.to_owned(), source: None };
        check_type(&before).map_err(bare)?;
        // A mode without any write bit is the owner's wish, even where root could pass over it.
        if access == Access::ReadWrite && before.is_file() && before.mode() & 0o222 == 0 {
            return Err(bare(MediaErrorKind::ReadOnlyFile));
        }
        let file = open_options(access, &before).open(path).map_err(open_error)?;
        Self::finish(file, path.to_owned(), access, block_size, is_disk)
    }

    /// Takes an image that somebody else opened and passed; `name` is what to call it. The descriptor must be open for what
    /// `access` says: passing it gives no rights that it does not have.
    ///
    /// # Errors
    /// As [`Image::open`].
    pub fn from_fd(
        fd: OwnedFd,
        name: PathBuf,
        access: Access,
        block_size: BlockSize,
    ) -> Result<Self, MediaError> {
        Self::from_fd_as(fd, name, access, block_size, true)
    }

    /// The same of a file of any length, as [`Image::open_container`].
    pub(super) fn container_from_fd(fd: OwnedFd, name: PathBuf, access: Access) -> Result<Self, MediaError> {
        Self::from_fd_as(fd, name, access, BlockSize::B512, false)
    }

    fn from_fd_as(
        fd: OwnedFd,
        name: PathBuf,
        access: Access,
        block_size: BlockSize,
        is_disk: bool,
    ) -> Result<Self, MediaError> {
        let fail = |kind, source| MediaError { kind, op: MediaOp::Adopt, path: name.clone(), source };
        let passed = File::from(fd);
        let flags = fcntl(&passed, FcntlArg::F_GETFL)
            .map(OFlag::from_bits_retain)
            .map_err(|errno| fail(MediaErrorKind::Storage, Some(errno.into())))?;
        let mode = flags & OFlag::O_ACCMODE;
        if flags.contains(OFlag::O_PATH) || mode == OFlag::O_WRONLY {
            return Err(fail(MediaErrorKind::NotReadable, None));
        }
        if access == Access::ReadWrite && mode != OFlag::O_RDWR {
            return Err(fail(MediaErrorKind::ReadOnlyFile, None));
        }
        let metadata = passed.metadata().map_err(|error| fail(MediaErrorKind::Storage, Some(error)))?;
        check_type(&metadata).map_err(|kind| fail(kind, None))?;
        // Opened anew, so that flags and locks are ours and not shared with the one who passed it. A daemon without the rights
        // to do so works with what it was given.
        let ours = open_options(access, &metadata).open(format!("/proc/self/fd/{}", passed.as_raw_fd()));
        let file = match ours {
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                return Err(fail(MediaErrorKind::InUse, Some(error)));
            }
            ours => ours.unwrap_or(passed),
        };
        Self::finish(file, name, access, block_size, is_disk)
    }

    fn finish(
        file: File,
        name: PathBuf,
        access: Access,
        block_size: BlockSize,
        is_disk: bool,
    ) -> Result<Self, MediaError> {
        // Before its length is looked at, which others may change until then.
        let locked = match lock(&file, access) {
            Ok(locked) => locked,
            Err((kind, source)) => {
                return Err(MediaError { kind, op: MediaOp::Lock, path: name, source: Some(source) });
            }
        };
        let inspected = inspect(&file, if is_disk { access } else { Access::ReadOnly }, block_size);
        let (metadata, stored) = match inspected {
            Ok(inspected) => inspected,
            Err((kind, source)) => return Err(MediaError { kind, op: MediaOp::Inspect, path: name, source }),
        };
        if !locked {
            tracing::warn!(image = %name.to_string_lossy().escape_debug(), "no locks on this file system: nothing keeps other writers away");
        }
        let len = ByteLen(stored.0.next_multiple_of(u64::from(block_size.bytes())));
        let identity = Identity::of(&metadata);
        let residence = residence(&file, &metadata);
        let word = word(&file, &metadata, access, residence);
        let thin = access == Access::ReadWrite && metadata.is_file() && can_punch(&file, len);
        let file = Arc::new(file);
        Ok(Self { file, name, access, stored, len, identity, locked, block_size, residence, word, thin })
    }

    /// What it was opened for.
    pub fn access(&self) -> Access {
        self.access
    }

    /// What the file was when it was opened.
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// What the file is now.
    ///
    /// # Errors
    /// The error of fstat(2).
    pub fn identity_now(&self) -> io::Result<Identity> {
        Ok(Identity::of(&self.file.metadata()?))
    }

    /// Its file, from which bytes are read where they are.
    pub(super) fn file(&self) -> &Arc<File> {
        &self.file
    }

    /// Whether the file system let us lock it.
    pub fn is_locked(&self) -> bool {
        self.locked
    }
}

impl Medium for Image {
    fn name(&self) -> String {
        self.name.to_string_lossy().into_owned()
    }

    fn block_size(&self) -> BlockSize {
        self.block_size
    }

    fn stored(&self) -> ByteLen {
        self.stored
    }

    fn len(&self) -> ByteLen {
        self.len
    }

    fn map(&self, range: ByteRange) -> Extent {
        let (start, wanted) = (range.start().0, range.len().0);
        match (self.stored.0.checked_sub(start), self.len.0.checked_sub(start)) {
            _ if wanted == 0 => Extent::Zero { len: ByteLen(0) },
            (Some(stored @ 1..), _) => Extent::File {
                file: Arc::clone(&self.file),
                offset: ByteOffset(start),
                len: ByteLen(wanted.min(stored)),
            },
            (_, Some(filling @ 1..)) => Extent::Zero { len: ByteLen(wanted.min(filling)) },
            _ => Extent::Fault { kind: FaultKind::OutOfRange, len: range.len() },
        }
    }

    fn writable(&self) -> bool {
        self.access == Access::ReadWrite
    }

    fn residence(&self) -> Residence {
        self.residence
    }

    fn thin(&self) -> bool {
        self.thin
    }

    /// Asks the file system, unless it may have to ask a server.
    fn allocation(&self, at: ByteOffset) -> Allocation {
        let left = ByteLen(self.len.0.saturating_sub(at.0));
        let found = match self.residence {
            Residence::Memory | Residence::Local => allocation(&self.file, at),
            Residence::Remote => None,
        };
        let (stored, end) = found.unwrap_or((true, self.len));
        Allocation { stored, len: ByteLen(end.0.saturating_sub(at.0)).min(left) }
    }

    fn watch(&self) -> Watch<'_> {
        match (self.residence, self.word) {
            (Residence::Memory | Residence::Local, _) | (Residence::Remote, Some(Word::Kernel)) => {
                Watch::Look
            }
            (Residence::Remote, Some(Word::Server)) => Watch::Ask(&self.file),
            (Residence::Remote, None) => Watch::Seldom,
        }
    }

    fn look(&self) -> Result<Standing, FaultKind> {
        // Its own writes change a writable one; that it has become shorter its reads tell.
        if self.writable() {
            return Ok(Standing::Same);
        }
        if self.word == Some(Word::Kernel) {
            return self.compare(&heard(&self.file)?);
        }
        let stat = fstat(&*self.file).map_err(|errno| FaultKind::from_errno(errno as i32))?;
        self.compare(&Identity {
            device: stat.st_dev,
            inode: stat.st_ino,
            len: ByteLen(u64::try_from(stat.st_size).unwrap_or(0)),
            modified: (stat.st_mtime, stat.st_mtime_nsec),
            named: stat.st_nlink > 0,
        })
    }

    fn compare(&self, now: &Identity) -> Result<Standing, FaultKind> {
        let then = &self.identity;
        if then.len == ByteLen(0) {
            // A block device: its node has no length, and times of its own.
            return Ok(Standing::Same);
        }
        // One that was passed may never have had a name.
        let standing = if then.named && !now.named { Standing::Nameless } else { Standing::Same };
        match now {
            now if now.len < then.len => Err(FaultKind::Truncated),
            now if self.writable() && (now.device, now.inode) == (then.device, then.inode) => Ok(standing),
            now if Identity { named: then.named, ..*now } == *then => Ok(standing),
            _ => Err(FaultKind::Changed),
        }
    }

    fn identity(&self) -> Option<Identity> {
        Some(self.identity)
    }

    fn file_for_sync(&self) -> Option<&Arc<File>> {
        self.writable().then_some(&self.file)
    }

    fn kept(&self) -> Option<(&Arc<File>, Identity)> {
        Some((&self.file, self.identity))
    }
}

impl From<FileStat> for Identity {
    fn from(stat: FileStat) -> Self {
        let FileStat { device, inode, len, modified, named } = stat;
        Self { device, inode, len, modified, named }
    }
}

impl Identity {
    fn of(metadata: &Metadata) -> Self {
        Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            len: ByteLen(metadata.len()),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            named: metadata.nlink() > 0,
        }
    }
}

type Inspection<T> = Result<T, (MediaErrorKind, Option<io::Error>)>;

fn check_type(metadata: &Metadata) -> Result<(), MediaErrorKind> {
    let kind = metadata.file_type();
    if kind.is_file() || kind.is_block_device() {
        return Ok(());
    }
    Err(if kind.is_dir() {
        MediaErrorKind::Directory
    } else if kind.is_fifo() {
        MediaErrorKind::NotStorage("a FIFO")
    } else if kind.is_socket() {
        MediaErrorKind::NotStorage("a socket")
    } else if kind.is_char_device() {
        MediaErrorKind::NotStorage("a character device")
    } else {
        MediaErrorKind::NotStorage("not a file")
    })
}

/// O_NONBLOCK, because the path may have become a FIFO since it was looked at; O_EXCL on a block device keeps us off those that
/// are mounted or part of another device.
fn open_options(access: Access, metadata: &Metadata) -> OpenOptions {
    let writable = access == Access::ReadWrite;
    let exclusive = writable && metadata.file_type().is_block_device();
    let mut options = OpenOptions::new();
    options
        .read(true)
        .write(writable)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY | if exclusive { libc::O_EXCL } else { 0 });
    options
}

/// Says what the open file is and how many bytes it has, and clears its flags: with O_NONBLOCK io_uring would answer EAGAIN
/// where it should wait, and O_APPEND would send each write to the end.
fn inspect(file: &File, access: Access, block_size: BlockSize) -> Inspection<(Metadata, ByteLen)> {
    let storage = |error: io::Error| (MediaErrorKind::Storage, Some(error));
    let metadata = file.metadata().map_err(storage)?;
    check_type(&metadata).map_err(|kind| (kind, None))?;
    fcntl(file, FcntlArg::F_SETFL(OFlag::empty())).map_err(|errno| storage(errno.into()))?;
    let device = metadata.file_type().is_block_device();
    let mut file = file;
    let len = if device { file.seek(SeekFrom::End(0)).map_err(storage)? } else { metadata.len() };
    let block_bytes = block_size.bytes();
    match len {
        0 if device => Err((MediaErrorKind::NoDevice, None)),
        0 => Err((MediaErrorKind::Empty, None)),
        _ if len > LEN_MAX.0 - u64::from(block_bytes) => Err((MediaErrorKind::TooLarge, None)),
        _ if access == Access::ReadWrite && !len.is_multiple_of(u64::from(block_bytes)) => {
            Err((MediaErrorKind::PartialBlock { len, block_size: block_bytes }, None))
        }
        _ => Ok((metadata, ByteLen(len))),
    }
}

/// Where the file is, as far as its file system tells. Those that we do not know count as remote.
pub(super) fn residence(file: &File, metadata: &Metadata) -> Residence {
    const EXFAT: FsType = FsType(0x2011_BAB0);
    const LOCAL: [FsType; 8] = [
        statfs::EXT4_SUPER_MAGIC,
        statfs::XFS_SUPER_MAGIC,
        statfs::BTRFS_SUPER_MAGIC,
        statfs::F2FS_SUPER_MAGIC,
        statfs::MSDOS_SUPER_MAGIC,
        statfs::ISOFS_SUPER_MAGIC,
        statfs::UDF_SUPER_MAGIC,
        EXFAT,
    ];
    match fstatfs(file).map(|stat| stat.filesystem_type()) {
        Ok(statfs::TMPFS_MAGIC) if metadata.is_file() => Residence::Memory,
        Ok(kind) if metadata.is_file() && LOCAL.contains(&kind) => Residence::Local,
        _ => Residence::Remote,
    }
}

/// Who says that somebody else changes a read-only file elsewhere. NFS before version 4 says with the bytes of each read what the
/// file is, so that the kernel has heard of it by then; others have to be asked. Of block devices nobody knows.
fn word(file: &File, metadata: &Metadata, access: Access, residence: Residence) -> Option<Word> {
    if access == Access::ReadWrite || !metadata.is_file() || residence != Residence::Remote {
        return None;
    }
    let is_nfs = fstatfs(file).is_ok_and(|stat| stat.filesystem_type() == statfs::NFS_SUPER_MAGIC);
    let tells = |mount: &Mount| mount.device == metadata.dev() && mount.kind == "nfs";
    let heard = is_nfs && mounts::all().iter().any(tells);
    Some(if heard { Word::Kernel } else { Word::Server })
}

/// Whose word to take for what a file on a server is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Word {
    Kernel,
    Server,
}

/// What the kernel has heard of a file so far. Never waits for a server.
fn heard(file: &File) -> Result<Identity, FaultKind> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let wanted = StatxFlags::INO | StatxFlags::SIZE | StatxFlags::MTIME | StatxFlags::NLINK;
    let found =
        statx(file, c"", flags, wanted).map_err(|errno| FaultKind::from_errno(errno.raw_os_error()))?;
    Ok(Identity {
        device: makedev(found.stx_dev_major, found.stx_dev_minor),
        inode: found.stx_ino,
        len: ByteLen(found.stx_size),
        modified: (found.stx_mtime.tv_sec, found.stx_mtime.tv_nsec.into()),
        named: found.stx_nlink > 0,
    })
}

/// Tries it where it changes nothing: behind the end.
pub(super) fn can_punch(file: &File, len: ByteLen) -> bool {
    const HOLE: libc::off_t = 4096;
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    let end = libc::off_t::try_from(len.0).ok().filter(|end| end.checked_add(HOLE).is_some());
    end.is_some_and(|end| fallocate(file, flags, end, HOLE).is_ok())
}

/// Whether the byte at `at` is stored, and where the run of such bytes ends. A position in the file is no state of ours: all reads
/// and writes name their own.
pub(super) fn allocation(file: &File, at: ByteOffset) -> Option<(bool, ByteLen)> {
    let from = libc::off_t::try_from(at.0).ok()?;
    match lseek(file, from, Whence::SeekData) {
        // No data up to the end.
        Err(Errno::ENXIO) => Some((false, ByteLen(u64::MAX))),
        Ok(data) if data > from => Some((false, ByteLen(u64::try_from(data).ok()?))),
        Ok(_) => Some((true, ByteLen(u64::try_from(lseek(file, from, Whence::SeekHole).ok()?).ok()?))),
        Err(_) => None,
    }
}

/// Locks the whole file; `false`: the file system has no locks.
pub(super) fn lock(file: &File, access: Access) -> Result<bool, (MediaErrorKind, io::Error)> {
    let kind = match access {
        Access::ReadOnly => libc::F_RDLCK,
        Access::ReadWrite => libc::F_WRLCK,
    };
    let short = |constant: i32| {
        i16::try_from(constant).map_err(|_| (MediaErrorKind::Storage, io::ErrorKind::InvalidInput.into()))
    };
    let whole = libc::flock {
        l_type: short(kind)?,
        l_whence: short(libc::SEEK_SET)?,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    match fcntl(file, FcntlArg::F_OFD_SETLK(&whole)).map_err(io::Error::from) {
        Ok(_) => Ok(true),
        Err(error) => match error.raw_os_error() {
            Some(libc::EAGAIN | libc::EACCES) => Err((MediaErrorKind::InUse, error)),
            Some(libc::ENOLCK | libc::EOPNOTSUPP | libc::ENOSYS | libc::EINVAL) => Ok(false),
            _ => Err((MediaErrorKind::Storage, error)),
        },
    }
}

/// Gives the lock of [`lock`] back.
pub(super) fn unlock(file: &File) -> io::Result<()> {
    let short = |constant: i32| i16::try_from(constant).map_err(|_| io::ErrorKind::InvalidInput);
    let whole = libc::flock {
        l_type: short(libc::F_UNLCK)?,
        l_whence: short(libc::SEEK_SET)?,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    };
    fcntl(file, FcntlArg::F_OFD_SETLK(&whole)).map(drop).map_err(io::Error::from)
}

#[cfg(test)]
mod tests;
