//! Images behind `http://` and `https://`: a medium at once, a local file in the end.
//!
//! ```text
//!   drive thread ── map ──► Chunks (no lock) ── here ──► File{cache file}
//!                               │ missing
//!                               ▼                 wake
//!                             Plan ──► fetch threads ──► cache file ──► Chunks ──► drive
//!                                           │ 206, exactly as asked, of the same version
//!                                           ▼
//!                                        server            keeper: fdatasync, then Record; checksum; kept image
//! ```
//! [`Cache::open`] asks the server what there is (its answer has the first chunk in it) and starts the threads; it may block.
//! After that nothing here blocks the drive: bytes are in the cache file, or [`Extent::Pending`], or a fault. What is `packed` is no image
//! before it is whole.
//!
//! Invariants
//! - **Never mixed bytes.** The version (ETag, Last-Modified, length) is that of the first answer, asked for with If-Range and
//!   compared with each answer. From another version nothing is taken; what is here goes on being served.
//! - **Never claimed what is not there.** The record on disk speaks of chunks only after their fdatasync; before the first chunk
//!   is given up for another it is cleared.
//! - **No hole under a read.** See `chunks`.
//! - **No secret leaves.** What is shown has no user, password and query in it; credentials go to their origin alone.

mod address;
mod cache;
mod checksum;
mod chunks;
mod client;
mod credentials;
mod error;
mod fetch;
mod packed;
mod plan;
mod range;
mod record;
mod shared;

use std::{
    fmt,
    fs::File,
    ops::Deref,
    os::unix::fs::FileExt,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};

use self::{
    address::Address,
    cache::Entry,
    chunks::Chunks,
    client::{Bytes, Client, Found, Way},
    credentials::Credentials,
    fetch::Finish,
    packed::Packed,
    range::{Part, Version},
    record::Record,
    shared::{Outcome, Shared},
};
pub use self::{
    address::URL_BYTES_MAX,
    cache::{Cache, CacheOptions},
    checksum::{Checksum, Digest},
    client::Patience,
    error::{UrlError, UrlErrorKind},
};
use super::{Extent, FaultKind, Medium, Residence, SourceState, Waker, image::residence};
use crate::units::{BlockSize, ByteLen, ByteRange};

/// What is fetched, kept and given up as one.
pub const CHUNK: u64 = 128 * 1024;
/// Time between two reports of a download.
const REPORT_EVERY: Duration = Duration::from_millis(250);
/// How long somebody who waits for the whole image waits for a server that no longer answers.
const SERVER_BACK: Duration = Duration::from_secs(30);

/// Which image, and what to do with it.
#[derive(Clone, Debug)]
pub struct UrlOptions {
    /// As given; at most [`URL_BYTES_MAX`] bytes. A secret: it may have a password or a signature in it.
    pub url: Secret,
    /// What the whole must be.
    pub checksum: Option<Checksum>,
    /// Once it is whole it stays, as a file of its own.
    pub keep: bool,
    /// It is inserted once it is whole, and may then come from a server without ranges.
    pub download: bool,
    /// Its bytes as they are, whatever they are.
    pub raw: bool,
    /// Who we are; instead of [`CacheOptions::credentials`].
    pub credentials: Option<PathBuf>,
    /// Of the drive.
    pub block_size: BlockSize,
}

/// A text that is not shown.
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Secret(pub String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

/// Whether a text is a URL rather than a path: `SCHEME://…`, of any scheme, so that a wrong one is told and not looked for as a file.
pub fn is_url(text: &str) -> bool {
    text.split_once("://").is_some_and(|(scheme, _)| {
        !scheme.is_empty()
            && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte))
    })
}

/// Whether a URL makes sense.
///
/// # Errors
/// Why it does not.
pub fn check(url: &str) -> Result<(), &'static str> {
    match Address::parse(url) {
        Err(UrlErrorKind::Address(why)) => Err(why),
        _ => Ok(()),
    }
}

/// A URL as it may be shown: without user, password and query.
pub fn shown(url: &str) -> String {
    Address::parse(url).map_or_else(|_| "a URL".to_owned(), |address| address.to_string())
}

/// How an image behind a URL is doing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FetchState {
    /// Bytes that are here.
    pub here: u64,
    /// All are here and, where a checksum was given, right.
    pub complete: bool,
    /// Why its server is not online.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub cause: Option<String>,
    /// Where the whole image is kept.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub kept: Option<String>,
}

/// Something that became of an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Report {
    /// Of a download: so many bytes are here, of so many if that is known.
    Progress {
        /// Bytes here.
        here: u64,
        /// Of all.
        total: Option<u64>,
    },
    /// All is here.
    Complete {
        /// And has the checksum that it should.
        checked: bool,
        /// Where it stays.
        kept: Option<String>,
    },
    /// The server does not answer.
    Offline {
        /// Why, and what to do.
        cause: String,
    },
    /// It answers again.
    Online,
    /// The image is another one there now, so that what is missing will never come.
    Changed {
        /// Why, and what to do.
        cause: String,
    },
    /// What is missing will never come.
    Failed {
        /// Why, and what to do.
        cause: String,
    },
}

/// Where reports go: from any thread, and must not block.
#[derive(Clone)]
pub struct Reporter(Arc<dyn Fn(Report) + Send + Sync>);

impl Reporter {
    /// Reports by calling `f`.
    pub fn new(f: impl Fn(Report) + Send + Sync + 'static) -> Self {
        Self(Arc::new(f))
    }
}

impl Deref for Reporter {
    type Target = dyn Fn(Report) + Send + Sync;

    fn deref(&self) -> &Self::Target {
        &*self.0
    }
}

impl fmt::Debug for Reporter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Reporter")
    }
}

/// An image behind a URL. Read-only. Dropped, it leaves its server and its files at once, without waiting.
#[derive(Debug)]
pub struct UrlImage {
    shared: Arc<Shared>,
    name: String,
    len: ByteLen,
    block_size: BlockSize,
    residence: Residence,
    /// What the host's image is in.
    packed: Option<Packed>,
    /// What the whole must have.
    digest: Option<Digest>,
}

impl Cache {
    /// Finds an image, and begins to fetch it.
    fn insert(
        self: &Arc<Self>,
        options: &UrlOptions,
        report: &Reporter,
        wanted: &dyn Fn() -> bool,
    ) -> Result<UrlImage, UrlError> {
        let address = Address::parse(&options.url.0).map_err(|kind| kind.of(&"the URL"))?;
        let url = address.to_string();
        let file = options.credentials.as_ref().or(self.options.credentials.as_ref());
        let credentials = file.map_or_else(|| Ok(Credentials::default()), |path| Credentials::load(path));
        let way = Way {
            ca_file: self.options.ca_file.as_deref(),
            proxy: self.options.proxy.as_deref(),
            connections: self.options.connections,
            patience: self.options.patience,
        };
        let key = address.key();
        let client = Client::new(address, credentials.map_err(|kind| kind.of(&url))?, &way)?;
        let claim = self.claim(key).map_err(|kind| kind.of(&url))?;
        let (entry, known) = self.entry(claim, url)?;
        Opening { client, entry, options, report, wanted }.begin(known)
    }
}

/// An image on its way into a drive.
struct Opening<'a> {
    client: Client,
    entry: Entry,
    options: &'a UrlOptions,
    report: &'a Reporter,
    wanted: &'a dyn Fn() -> bool,
}

impl Opening<'_> {
    fn begin(self, known: Option<Record>) -> Result<UrlImage, UrlError> {
        let first = 0..CHUNK;
        match self.client.find(&first, known.as_ref().map(|known| &known.part)) {
            Ok(Found::Parts(part, bytes)) => {
                // An answer to If-Range need not say all of it again.
                let part = known.as_ref().map_or(part, |known| known.part.clone());
                self.stream(known, part, Some(bytes))
            }
            // Known, but no longer as it was: from the start.
            Err(UrlError { kind: UrlErrorKind::Changed, .. }) => match self.client.find(&first, None)? {
                Found::Parts(part, bytes) => self.stream(None, part, Some(bytes)),
                Found::Whole(total, bytes) => self.whole(total, bytes),
            },
            Ok(Found::Whole(total, bytes)) => self.whole(total, bytes),
            Err(error) if error.kind.is_passing() => match known {
                // Its first chunk says what it is.
                Some(known) if known.chunks.first().is_some_and(|byte| byte & 1 != 0) => {
                    let part = known.part.clone();
                    let image = self.stream(Some(known), part, None)?;
                    // Where all is here, nobody needs the server.
                    if image.shared.lock().here < image.shared.chunks.count() {
                        image.shared.begin_offline(&error);
                    }
                    Ok(image)
                }
                _ => Err(error),
            },
            Err(error) => Err(error),
        }
    }

    /// From a server that sends parts, of which the first is here already.
    fn stream(
        mut self,
        known: Option<Record>,
        part: Part,
        first: Option<Bytes>,
    ) -> Result<UrlImage, UrlError> {
        if part.total == 0 {
            return Err(self.error(UrlErrorKind::Empty));
        }
        if !part.version.is_named() {
            return match self.options.download {
                true => self.client.whole().and_then(|(total, bytes)| self.whole(total, bytes)),
                false => Err(self.error(UrlErrorKind::NoVersion)),
            };
        }
        self.entry.prepare(part.total, known.is_some())?;
        let holds = self.entry.holds(part.total);
        match (&self.options.checksum, holds) {
            (Some(_), false) => return Err(self.error(UrlErrorKind::TooLargeToCheck)),
            (None, false) if self.options.download || self.options.keep => {
                return Err(self.error(UrlErrorKind::TooLarge));
            }
            _ => {}
        }
        let digest = self.digest()?;
        let bits = known.map(|known| known.chunks).unwrap_or_default();
        let chunks = Chunks::new(self.entry.file(), part.total, &bits);
        let chunks = chunks.map_err(|error| self.entry.error(error))?;
        if let Some(mut bytes) = first {
            let mut buffer = vec![0; usize::try_from(CHUNK.min(part.total)).unwrap_or(0)];
            bytes.read_exact(&mut buffer)?;
            bytes.ends();
            // Of the same version as what may be here already.
            self.entry.file().write_all_at(&buffer, 0).map_err(|error| self.entry.error(error))?;
            chunks.arrived(0);
        }
        self.start(chunks, part, digest)
    }

    /// From a server that sends all or nothing: first all of it, in one answer, so that nothing can be mixed.
    fn whole(mut self, total: Option<u64>, mut bytes: Bytes) -> Result<UrlImage, UrlError> {
        if !self.options.download {
            return Err(self.error(UrlErrorKind::NoRanges));
        }
        // Without a version it cannot be gone on with.
        self.entry.prepare(total.unwrap_or(self.entry.options().limit), false)?;
        self.entry.discard();
        if total.is_some_and(|total| !self.entry.holds(total)) {
            return Err(self.error(UrlErrorKind::TooLarge));
        }
        let digest = self.digest()?;
        let mut buffer = vec![0; usize::try_from(CHUNK).unwrap_or(0)];
        let (mut at, mut report_at) = (0_u64, Instant::now());
        let mut until = bytes.deadline();
        loop {
            let read = bytes.read_some(&mut buffer, until)?;
            let Some(piece) = buffer.get(..read).filter(|piece| !piece.is_empty()) else { break };
            self.entry.file().write_all_at(piece, at).map_err(|error| self.entry.error(error))?;
            let before = at / CHUNK;
            at = at.saturating_add(u64::try_from(read).unwrap_or(u64::MAX));
            if at > self.entry.room() {
                return Err(self.error(UrlErrorKind::TooLarge));
            }
            let limiter = self.entry.limiter();
            limiter.charge(u64::try_from(read).unwrap_or(u64::MAX));
            let wait = limiter.wait(Instant::now());
            wait.into_iter().for_each(std::thread::sleep);
            if at / CHUNK > before || wait.is_some() {
                until = bytes.deadline();
            }
            if report_at <= Instant::now() {
                self.still_wanted()?;
                (self.report)(Report::Progress { here: at, total });
                report_at = Instant::now() + REPORT_EVERY;
            }
        }
        match (at, total) {
            (0, _) => return Err(self.error(UrlErrorKind::Empty)),
            (_, Some(total)) if at != total => return Err(self.error(UrlErrorKind::Truncated)),
            _ => {}
        }
        self.entry.file().set_len(at).map_err(|error| self.entry.error(error))?;
        let bits = vec![u8::MAX; usize::try_from(at.div_ceil(CHUNK * 8)).unwrap_or(0)];
        let chunks = Chunks::new(self.entry.file(), at, &bits);
        let chunks = chunks.map_err(|error| self.entry.error(error))?;
        self.start(chunks, Part { total: at, version: Version::default() }, digest)
    }

    fn start(self, chunks: Chunks, part: Part, digest: Option<Digest>) -> Result<UrlImage, UrlError> {
        let Self { client, entry, options, report, wanted } = self;
        let residence = entry.file().metadata().map(|metadata| residence(entry.file(), &metadata));
        let name = client.address().to_string();
        let block = u64::from(options.block_size.bytes());
        let packed = if options.raw { None } else { Packed::of(entry.file()) };
        if packed.is_none() && !entry.holds(part.total) {
            // What is here will leave again.
            entry.discard();
        }
        let needs_all = options.download || options.keep || digest.is_some() || packed.is_some();
        let image = UrlImage {
            name,
            len: ByteLen(part.total.next_multiple_of(block)),
            block_size: options.block_size,
            residence: residence.unwrap_or(Residence::Remote),
            packed,
            digest: digest.clone(),
            shared: Arc::new(Shared::new(client, chunks, part, entry, report.clone(), needs_all)),
        };
        let started = fetch::start(&image.shared, Finish { digest, keep: options.keep });
        started.map_err(|error| image.shared.entry.error(error))?;
        if options.download {
            image.until_whole(report, wanted)?;
        }
        Ok(image)
    }

    /// What the image must be; asks the server, if it is to say so.
    fn digest(&self) -> Result<Option<Digest>, UrlError> {
        Ok(match &self.options.checksum {
            None => None,
            Some(Checksum::Known(digest)) => Some(digest.clone()),
            Some(Checksum::Beside) => {
                let sums = match self.client.text_beside("SHA256SUMS") {
                    Err(UrlError { kind: UrlErrorKind::Missing(_), .. }) => String::new(),
                    sums => sums?,
                };
                let digest = Digest::in_sums(&sums, &self.client.address().file_name());
                Some(digest.ok_or_else(|| self.error(UrlErrorKind::NoSums))?)
            }
        })
    }

    fn still_wanted(&self) -> Result<(), UrlError> {
        if (self.wanted)() { Ok(()) } else { Err(self.error(UrlErrorKind::Cancelled)) }
    }

    fn error(&self, kind: UrlErrorKind) -> UrlError {
        kind.of(self.client.address())
    }
}

impl UrlImage {
    fn until_whole(&self, report: &Reporter, wanted: &dyn Fn() -> bool) -> Result<(), UrlError> {
        let begun = Instant::now();
        loop {
            let mut state = self.shared.lock();
            if let Some((since, kind)) = &state.offline
                && (*since < begun || since.elapsed() >= SERVER_BACK)
            {
                return Err(kind.clone().of(&self.name));
            }
            match state.outcome.clone() {
                Outcome::Complete { .. } => return Ok(()),
                Outcome::Failed(kind) => return Err(kind.of(&self.name)),
                Outcome::None if state.is_full => return Err(UrlErrorKind::NoSpace.of(&self.name)),
                Outcome::None => self.shared.wait_to_keep(&mut state, Instant::now() + REPORT_EVERY),
            }
            drop(state);
            if !wanted() {
                return Err(UrlErrorKind::Cancelled.of(&self.name));
            }
            let total = Some(self.shared.part.total);
            report(Report::Progress { here: self.shared.fetch_state().here, total });
        }
    }
}

impl Medium for UrlImage {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn block_size(&self) -> BlockSize {
        self.block_size
    }

    fn len(&self) -> ByteLen {
        self.len
    }

    fn stored(&self) -> ByteLen {
        ByteLen(self.shared.part.total)
    }

    fn map(&self, range: ByteRange) -> Extent {
        let stored = self.stored().0;
        match (stored.checked_sub(range.start().0), self.len.0.checked_sub(range.start().0)) {
            _ if range.is_empty() => Extent::Zero { len: ByteLen(0) },
            (Some(here @ 1..), _) => self.shared.map(range.split_at(ByteLen(here)).0),
            (_, Some(filling @ 1..)) => Extent::Zero { len: range.len().min(ByteLen(filling)) },
            _ => Extent::Fault { kind: FaultKind::OutOfRange, len: range.len() },
        }
    }

    fn set_waker(&mut self, waker: Waker) {
        self.shared.set_waker(waker);
    }

    fn writable(&self) -> bool {
        false
    }

    /// That of the cache file.
    fn residence(&self) -> Residence {
        self.residence
    }

    fn file_for_sync(&self) -> Option<&Arc<File>> {
        None
    }

    fn fetch_state(&self) -> Option<FetchState> {
        Some(self.shared.fetch_state())
    }

    fn source_state(&self) -> SourceState {
        self.shared.lock().source
    }
}

impl Drop for UrlImage {
    fn drop(&mut self) {
        self.shared.close();
    }
}

#[cfg(test)]
mod tests;
