//! From a path or a descriptor to an image: what is in the file, and what is below it.

use std::{
    ffi::OsStr,
    fs::{self, File},
    io,
    os::{
        fd::OwnedFd,
        unix::{
            ffi::OsStrExt,
            fs::{FileExt, OpenOptionsExt},
        },
    },
    path::{Path, PathBuf},
    sync::Arc,
};

use parking_lot::Mutex;

use super::{
    super::{Access, Image, MediaErrorKind, Medium, overlay::offline},
    Qcow2, Shared,
    chain::{Chain, Layer, PLACE, Table},
    error::{Qcow2Error, Qcow2ErrorKind as Kind},
    header::{Backing, Head, LEN_MAX, MAGIC},
    worker::{self, Bell, read_at},
    write::{Disk, Telling, Writer},
};
use crate::units::{BlockSize, ByteLen};

/// Files below one; each is asked for what it holds.
const DEPTH_MAX: usize = 16;
/// Entries of an L1 table that are looked at together.
const PIECE: usize = 64 << 10;

/// A file that holds a disk, and is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Container {
    /// What [`Qcow2`] opens.
    Qcow2,
    /// What nobody opens here.
    Other(&'static str),
}

/// How somebody wants an image to be taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Manner {
    /// As the bytes that it has, whatever they are.
    pub raw: bool,
    /// With the files that it names.
    pub backing: bool,
}

impl Manner {
    /// What the file at `path` is to be taken as; `None`: as its bytes.
    pub fn container(self, path: &Path) -> Option<Container> {
        if self.raw { None } else { Container::at(path) }
    }
}

impl Container {
    /// Of the regular file at `path`; `None`: it is none, or not to be read.
    pub(super) fn at(path: &Path) -> Option<Self> {
        if !fs::metadata(path).is_ok_and(|metadata| metadata.is_file()) {
            return None;
        }
        let mut options = File::options();
        Self::of(&options.read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path).ok()?)
    }

    /// Of an open file.
    pub fn of(file: &File) -> Option<Self> {
        if !file.metadata().is_ok_and(|metadata| metadata.is_file()) {
            return None;
        }
        let mut first = [0; 68];
        let read = file.read_at(&mut first, 0).ok()?;
        match first.get(..read)? {
            first if first.starts_with(MAGIC) => Some(Self::Qcow2),
            [b'K', b'D', b'M', b'V', ..] | [b'C', b'O', b'W', b'D', ..] => Some(Self::Other("VMDK")),
            first if first.starts_with(b"# Disk DescriptorFile") => Some(Self::Other("VMDK")),
            first if first.starts_with(b"vhdxfile") => Some(Self::Other("VHDX")),
            first if first.starts_with(b"conectix") => Some(Self::Other("VHD")),
            [.., 0x7f, 0x10, 0xda, 0xbe] if read == first.len() => Some(Self::Other("VDI")),
            _ => None,
        }
    }
}

impl Qcow2 {
    /// Opens the disk in the file at `path`, which is a `container`. An overlay of ours that a killed daemon has left is put in order
    /// first, by what is in `runtime_dir`. May block.
    ///
    /// # Errors
    /// [`Qcow2Error`], whose text gives the cause and the cure. Nothing stays open or locked.
    pub fn open(
        path: &Path,
        container: Container,
        (access, block_size): (Access, BlockSize),
        manner: Manner,
        runtime_dir: &Path,
    ) -> Result<Self, Qcow2Error> {
        if let Container::Other(name) = container {
            return Err(Kind::Container(name).at(path, None));
        }
        let image = open_settled(path, access, runtime_dir)?;
        let place = Some((path.parent().unwrap_or(Path::new("/")), runtime_dir));
        Self::with(image, path, place, manner, block_size, plain)
    }

    /// The same of a descriptor that somebody passed.
    ///
    /// # Errors
    /// As [`Qcow2::open`].
    pub fn from_fd(
        fd: OwnedFd,
        name: PathBuf,
        container: Container,
        (access, block_size): (Access, BlockSize),
    ) -> Result<Self, Qcow2Error> {
        if let Container::Other(kind) = container {
            return Err(Kind::Container(kind).at(&name, None));
        }
        let image = Image::container_from_fd(fd, name.clone(), access)?;
        Self::with(image, &name, None, Manner { raw: false, backing: true }, block_size, plain)
    }

    pub(super) fn with(
        image: Image,
        path: &Path,
        place: Option<(&Path, &Path)>,
        manner: Manner,
        block_size: BlockSize,
        disk: impl FnOnce(&Arc<File>) -> Box<dyn Disk>,
    ) -> Result<Self, Qcow2Error> {
        let chain = Chain::new(layers(image, path, place, manner)?);
        let Some(Layer::Qcow2(table)) = chain.layers.first() else {
            return Err(Kind::Damaged("header").at(path, None));
        };
        let (stored, block_bytes) = (ByteLen(table.head.size), block_size.bytes());
        let len = ByteLen(stored.0.next_multiple_of(u64::from(block_bytes)));
        let bell: Arc<Bell> = Arc::default();
        let writer = match table.image.access() {
            Access::ReadOnly => None,
            Access::ReadWrite if stored != len => {
                let kind = MediaErrorKind::PartialBlock { len: stored.0, block_size: block_bytes };
                return Err(Kind::Image(kind).at(path, None));
            }
            Access::ReadWrite => {
                let (disk, residence) = (disk(table.image.file()), table.image.residence());
                let disk = Telling { disk, residence, bell: Arc::clone(&bell) };
                Some(Mutex::new(writer(table, &chain, path, Box::new(disk))?))
            }
        };
        let shared = Arc::new(Shared { chain, stored, len, block_size, bell, writer });
        let worker = worker::start(&shared).map_err(|error| image_error(path, error))?;
        Ok(Self { shared, worker: Some(worker), held: None })
    }
}

fn plain(file: &Arc<File>) -> Box<dyn Disk> {
    Box::new(Arc::clone(file))
}

fn writer(table: &Table, chain: &Chain, path: &Path, disk: Box<dyn Disk>) -> Result<Writer, Qcow2Error> {
    let mut tables = Vec::new();
    check_l1(&table.image, &table.head, path, |l2| tables.push(l2))?;
    match Writer::new(disk, &table.head, (table.image.stored().0, tables), chain) {
        Ok(Ok(writer)) => Ok(writer),
        Ok(Err(obstacle)) => Err(Kind::NotWritable(obstacle).at(path, None)),
        Err(error) => Err(image_error(path, error)),
    }
}

fn image_error(path: &Path, error: io::Error) -> Qcow2Error {
    Kind::Image(MediaErrorKind::Storage).at(path, Some(error))
}

/// An image, and all below it.
fn layers(
    mut image: Image,
    path: &Path,
    place: Option<(&Path, &Path)>,
    manner: Manner,
) -> Result<Vec<Layer>, Qcow2Error> {
    let (mut layers, mut path) = (Vec::new(), path.to_owned());
    let mut folder = place.map(|(folder, _)| folder.to_owned());
    loop {
        let head = head(&image, &path)?;
        let backing = head.backing.clone();
        layers.push(Layer::Qcow2(Table { end: image.stored().0.into(), image, head }));
        let Some(backing) = backing else { return Ok(layers) };
        let shown = String::from_utf8_lossy(&backing.name).into_owned();
        if !manner.backing {
            return Err(Kind::Backing(shown).at(&path, None));
        }
        if layers.len() > DEPTH_MAX {
            return Err(Kind::Depth(DEPTH_MAX).at(&path, None));
        }
        let Some((dir, (_, runtime_dir))) = folder.zip(place) else {
            return Err(Kind::NoFolder.at(&path, None));
        };
        let is_raw = is_raw(&backing).ok_or_else(|| Kind::NoFormat(shown.clone()).at(&path, None))?;
        let below = below(&dir, &backing.name).ok_or_else(|| Kind::NotAPath(shown).at(&path, None))?;
        // What is missing is told of by the image.
        if fs::metadata(&below).is_ok_and(|metadata| !metadata.is_file()) {
            return Err(Kind::NotAFile.at(&below, None));
        }
        if is_raw {
            layers.push(Layer::Raw(Image::open(&below, Access::ReadOnly, BlockSize::B512)?));
            return Ok(layers);
        }
        image = open_settled(&below, Access::ReadOnly, runtime_dir)?;
        let identity = image.identity();
        let is_same = |layer: &Layer| {
            let above = layer.image().identity();
            (above.device, above.inode) == (identity.device, identity.inode)
        };
        if layers.iter().any(is_same) {
            return Err(Kind::Circle.at(&below, None));
        }
        path = below;
        folder = path.parent().map(Path::to_owned);
    }
}

/// What a backing file is, where its image says so as QEMU does.
fn is_raw(backing: &Backing) -> Option<bool> {
    match backing.format.as_deref()? {
        b"raw" | b"file" => Some(true),
        b"qcow2" => Some(false),
        _ => None,
    }
}

/// The path of a backing file, which QEMU takes from the folder of the image; `None` where it names something else.
fn below(folder: &Path, name: &[u8]) -> Option<PathBuf> {
    let name = name.strip_prefix(b"file:").unwrap_or(name);
    let protocol = name.iter().take_while(|byte| **byte != b'/').any(|byte| *byte == b':');
    (!protocol && !name.contains(&0)).then(|| folder.join(OsStr::from_bytes(name)))
}

/// An overlay of ours may have to be put in order first.
fn open_settled(path: &Path, access: Access, runtime_dir: &Path) -> Result<Image, Qcow2Error> {
    let settled = offline::settle(path, runtime_dir);
    settled.map_err(|error| Kind::Overlay(error.kind).at(path, error.source))?;
    Ok(Image::open_container(path, access)?)
}

/// The header, of which as much is checked as can be at once.
fn head(image: &Image, path: &Path) -> Result<Head, Qcow2Error> {
    let fail = |error| image_error(path, error);
    let mut bytes = vec![0; LEN_MAX];
    let read = read_at(image.file(), &mut bytes, 0).map_err(fail)?;
    let bytes = bytes.get(..read).unwrap_or_default();
    if !bytes.starts_with(MAGIC) {
        return Err(Kind::Damaged("header").at(path, None));
    }
    let head = Head::parse(bytes).map_err(|kind| kind.at(path, None))?;
    check_l1(image, &head, path, |_| {})?;
    Ok(head)
}

/// That there is what the L1 table speaks of: calls `see` with the places of L2 tables.
fn check_l1(image: &Image, head: &Head, path: &Path, mut see: impl FnMut(u64)) -> Result<(), Qcow2Error> {
    let fail = |error| image_error(path, error);
    let (file_len, end) = (image.stored().0, head.l1_at + head.l1_entries() * 8);
    if end > file_len {
        return Err(Kind::Truncated.at(path, None));
    }
    let mut piece = vec![0; PIECE];
    for at in (head.l1_at..end).step_by(PIECE) {
        let len = ByteLen(end - at).to_usize().min(PIECE);
        let piece = piece.get_mut(..len).unwrap_or_default();
        image.file().read_exact_at(piece, at).map_err(fail)?;
        for entry in piece.as_chunks().0 {
            let l2 = u64::from_be_bytes(*entry) & PLACE;
            if !l2.is_multiple_of(head.cluster()) {
                return Err(Kind::Damaged("L1 table").at(path, None));
            }
            if l2 >= file_len {
                return Err(Kind::Truncated.at(path, None));
            }
            if l2 != 0 {
                see(l2);
            }
        }
    }
    Ok(())
}
