//! Images behind URLs in which the host's image only is: compressed ones, and disks in qcow2 files.
//!
//! ```text
//!   Cache::open ──► its first bytes ──► an image ──────────────────────────────────────► streamed
//!                          ├──► compressed ──► expanded before ───────────────────────► the expanded file
//!                          │                └──► all of it fetched ──► expanded ──────► the expanded file
//!                          └──► a qcow2 file ──► all of it fetched ──► Qcow2, over the cache file
//! ```
//! Invariants: what is expanded is of one version of the file on its server, and, where a checksum was asked for, of the file that has
//! it. A cache file with a disk in it is held as long as that disk is in use.

use std::{
    fs::File,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use sha2::{Digest as _, Sha256};

use super::{
    Cache, Digest, REPORT_EVERY, Report, Reporter, UrlError, UrlErrorKind, UrlImage, UrlOptions,
    range::Version,
};
use crate::media::{
    Access, Image, Medium,
    compressed::{ExpandErrorKind, Expander, Format, OpenError},
    qcow2::{Container, Qcow2, Qcow2ErrorKind},
};

/// What an image behind a URL is packed in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Packed {
    Compressed(Format),
    Disk(Container),
}

impl Packed {
    /// By the first bytes of a file, which are there.
    pub(super) fn of(file: &File) -> Option<Self> {
        let format = Format::of(file).ok().flatten().map(Self::Compressed);
        format.or_else(|| Container::of(file).map(Self::Disk))
    }
}

impl Cache {
    /// Opens an image. May block: for a server that is gone [`Patience::connect`](super::Patience::connect), for one that is slow a few times
    /// [`Patience::answer`](super::Patience::answer); for a download, a compressed image or a qcow2 file as long as it takes to have all of it, or until
    /// `wanted` says no.
    ///
    /// # Errors
    /// [`UrlError`]: what is wrong with the URL, the server, the cache, or what has come.
    pub fn open(
        self: &Arc<Self>,
        options: &UrlOptions,
        report: &Reporter,
        wanted: &dyn Fn() -> bool,
    ) -> Result<Box<dyn Medium>, UrlError> {
        let image = self.insert(options, report, wanted)?;
        match image.packed {
            None => Ok(Box::new(image)),
            Some(Packed::Compressed(format)) => {
                let expanded = image.expanded(format, options, self.expander(), report, wanted)?;
                Ok(Box::new(expanded))
            }
            Some(Packed::Disk(container)) => image.disk(container, report, wanted),
        }
    }
}

impl UrlImage {
    fn expanded(
        self,
        format: Format,
        options: &UrlOptions,
        expander: &Expander,
        report: &Reporter,
        wanted: &dyn Fn() -> bool,
    ) -> Result<Image, UrlError> {
        let (name, key) = (Path::new(&self.name), self.version()?);
        let fail = |error| match error {
            OpenError::Expand(error) => self.error(UrlErrorKind::Expand(error.kind), error.source),
            OpenError::Image(error) => self.error(UrlErrorKind::Image(error.kind), error.source),
        };
        if options.keep || options.checksum.is_some() {
            self.fetched(report, wanted)?;
        }
        if let Some(image) = expander.find(&key, name, self.block_size).map_err(fail)? {
            return Ok(image);
        }
        self.fetched(report, wanted)?;
        let mut report_at = Instant::now();
        let mut progress = |here, total| {
            if report_at <= Instant::now() {
                report(Report::Progress { here, total: Some(total) });
                report_at = Instant::now() + REPORT_EVERY;
            }
            wanted()
        };
        expander.expand(&key, name, self.file()?, format, self.block_size, &mut progress).map_err(fail)
    }

    fn disk(
        self,
        container: Container,
        report: &Reporter,
        wanted: &dyn Fn() -> bool,
    ) -> Result<Box<dyn Medium>, UrlError> {
        if let Container::Qcow2 = container {
            self.fetched(report, wanted)?;
        }
        let (file, how) = (self.file()?, (Access::ReadOnly, self.block_size));
        let name = PathBuf::from(&self.name);
        match Qcow2::from_fd(file.into(), name, container, how) {
            Ok(disk) => Ok(Box::new(disk.holding(self))),
            Err(error) => Err(self.error(UrlErrorKind::Qcow2(error.kind), error.source)),
        }
    }

    /// Waits for all of it.
    fn fetched(&self, report: &Reporter, wanted: &dyn Fn() -> bool) -> Result<(), UrlError> {
        match self.shared.entry.holds(self.shared.part.total) {
            true => self.until_whole(report, wanted),
            false => Err(self.error(UrlErrorKind::TooLargeToUnpack, None)),
        }
    }

    /// Its cache file.
    fn file(&self) -> Result<File, UrlError> {
        let entry = &self.shared.entry;
        entry.file().try_clone().map_err(|error| entry.error(error))
    }

    /// A name for what is here: of the URL, of the version that its server told, and of the digest that it must have; where no version was
    /// told, of this one download.
    fn version(&self) -> Result<String, UrlError> {
        let entry = &self.shared.entry;
        let Version { etag, modified } = &self.shared.part.version;
        let mut hash = Sha256::new();
        hash.update(entry.key());
        hash.update(self.shared.part.total.to_le_bytes());
        for text in [etag, modified] {
            let text = text.as_deref().unwrap_or_default();
            hash.update(text.len().to_le_bytes());
            hash.update(text);
        }
        hash.update(self.digest.as_ref().map(Digest::to_string).unwrap_or_default());
        if !self.shared.part.version.is_named() {
            let metadata = entry.file().metadata().map_err(|error| entry.error(error))?;
            for number in [metadata.mtime(), metadata.mtime_nsec()] {
                hash.update(number.to_le_bytes());
            }
        }
        Ok(hash.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect())
    }

    fn error(&self, kind: UrlErrorKind, source: Option<std::io::Error>) -> UrlError {
        use {ExpandErrorKind as Expanding, Qcow2ErrorKind as Opening, UrlErrorKind as Kind};
        if let Kind::Expand(Expanding::Corrupt | Expanding::Truncated)
        | Kind::Qcow2(Opening::Damaged(_) | Opening::Truncated) = kind
        {
            // The next time it is fetched anew.
            self.shared.entry.discard();
        }
        UrlError { source: source.map(Into::into), ..kind.of(&self.name) }
    }
}
