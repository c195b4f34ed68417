//! A web server of the worst kind.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use parking_lot::Mutex;
use sha2::{Digest, Sha256};

/// Bytes that carry their place and their version.
pub(super) const BLOCK: u64 = 512;

/// How it answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Mood {
    Good,
    /// Sends the whole whatever is asked.
    NoRanges,
    /// As `NoRanges`, and does not say how much.
    NoLength,
    /// No ETag and no date.
    NoVersion,
    /// Claims in its head to send so many bytes later.
    Lying(u64),
    /// Says that it sends what was asked, but of another version, and ignores If-Range.
    IgnoresIfRange,
    /// Sends the whole, but for the last byte.
    NoEnd,
    /// Breaks off after so many bytes of a body.
    Truncating(u64),
    Status(u16),
    /// A byte of the head, or of the body, from time to time.
    DripHead,
    DripBody,
    /// Takes the request and says nothing.
    Silent,
    Redirect(String),
    /// Each answer leads to another address.
    RedirectOn,
    /// Sends no HTTP.
    Babble,
}

pub(super) struct Server {
    pub(super) address: SocketAddr,
    secure: bool,
    inner: Arc<Inner>,
}

struct Inner {
    mood: Mutex<Mood>,
    version: AtomicU64,
    len: u64,
    /// What it has in every version; `None`: `content`.
    body: Mutex<Option<Vec<u8>>>,
    seen: Mutex<Vec<Seen>>,
    sent: AtomicU64,
    stop: AtomicBool,
    tls: Option<Arc<rustls::ServerConfig>>,
    /// Of the first version; computed beforehand, as it takes a while.
    sums: String,
    open: Mutex<Vec<TcpStream>>,
}

/// A request.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) target: String,
    pub(super) authorization: Option<String>,
    pub(super) range: Option<(u64, u64)>,
    if_range: Option<String>,
}

impl Server {
    pub(super) fn start(len: u64) -> Self {
        Self::start_at("127.0.0.1:0".parse().unwrap(), len, None)
    }

    /// With these bytes.
    pub(super) fn of(bytes: Vec<u8>) -> Self {
        let len = u64::try_from(bytes.len()).unwrap();
        Self::start_with("127.0.0.1:0".parse().unwrap(), len, None, Some(bytes))
    }

    pub(super) fn start_at(at: SocketAddr, len: u64, tls: Option<Arc<rustls::ServerConfig>>) -> Self {
        Self::start_with(at, len, tls, None)
    }

    fn start_with(
        at: SocketAddr,
        len: u64,
        tls: Option<Arc<rustls::ServerConfig>>,
        body: Option<Vec<u8>>,
    ) -> Self {
        let listener = TcpListener::bind(at).unwrap();
        let address = listener.local_addr().unwrap();
        let secure = tls.is_some();
        let inner = Arc::new(Inner {
            mood: Mutex::new(Mood::Good),
            version: AtomicU64::new(1),
            len,
            body: Mutex::new(body),
            seen: Mutex::default(),
            sent: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            tls,
            sums: sha256(len.min(super::LEN), 1),
            open: Mutex::default(),
        });
        let server = Arc::clone(&inner);
        thread::spawn(move || {
            for stream in listener.incoming() {
                if server.stop.load(Ordering::SeqCst) {
                    return;
                }
                let (stream, server) = (stream.unwrap(), Arc::clone(&server));
                server.open.lock().push(stream.try_clone().unwrap());
                thread::spawn(move || server.serve(stream));
            }
        });
        Self { address, secure, inner }
    }

    pub(super) fn url(&self, target: &str) -> String {
        let scheme = if self.secure { "https" } else { "http" };
        format!("{scheme}://{}{target}", self.address)
    }

    pub(super) fn be(&self, mood: Mood) {
        *self.inner.mood.lock() = mood;
    }

    /// Has other bytes, as many, and says nothing of it.
    pub(super) fn become_of(&self, bytes: Vec<u8>) {
        assert_eq!(u64::try_from(bytes.len()).unwrap(), self.inner.len);
        *self.inner.body.lock() = Some(bytes);
    }

    pub(super) fn change(&self) {
        self.inner.version.fetch_add(1, Ordering::SeqCst);
    }

    /// Breaks the connections off that there are.
    pub(super) fn hang_up(&self) {
        for stream in self.inner.open.lock().drain(..) {
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
    }

    pub(super) fn seen(&self) -> Vec<Seen> {
        self.inner.seen.lock().clone()
    }

    /// Bytes of all ranges that were asked for. Clients need not have waited for all of them.
    pub(super) fn asked(&self) -> u64 {
        let seen = self.inner.seen.lock();
        seen.iter().filter_map(|seen| seen.range).map(|(first, last)| last + 1 - first).sum()
    }

    pub(super) fn sent(&self) -> u64 {
        self.inner.sent.load(Ordering::SeqCst)
    }

    /// Where it listened nobody does any more.
    pub(super) fn stop(self) -> SocketAddr {
        self.address
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.inner.stop.store(true, Ordering::SeqCst);
        // So that it notices, and closes the socket that it listens at.
        let _ = TcpStream::connect(self.address);
        while TcpStream::connect_timeout(&self.address, Duration::from_millis(100)).is_ok() {}
        self.hang_up();
    }
}

impl Inner {
    fn serve(&self, stream: TcpStream) {
        let whole = stream.try_clone().unwrap();
        let served = match &self.tls {
            None => self.speak(stream),
            Some(tls) => {
                let connection = rustls::ServerConnection::new(Arc::clone(tls)).unwrap();
                self.speak(rustls::StreamOwned::new(connection, stream))
            }
        };
        // Clients come and go.
        let _: io::Result<()> = served;
        // There are handles of it elsewhere.
        let _ = whole.shutdown(std::net::Shutdown::Both);
    }

    fn speak(&self, stream: impl Read + Write) -> io::Result<()> {
        let mut stream = BufReader::new(stream);
        while let Some(seen) = read_request(&mut stream)? {
            self.seen.lock().push(seen.clone());
            self.answer(&seen, stream.get_mut())?;
            stream.get_mut().flush()?;
        }
        Ok(())
    }

    fn answer(&self, seen: &Seen, to: &mut impl Write) -> io::Result<()> {
        let mood = self.mood.lock().clone();
        let version = self.version.load(Ordering::SeqCst);
        if seen.target.ends_with("/SHA256SUMS") {
            let text = format!("{}  a b.iso\n", self.sums);
            return write!(to, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{text}", text.len());
        }
        let etag = format!("\"v{version}\"");
        let current = seen.if_range.as_ref().is_none_or(|wanted| *wanted == etag);
        let whole = matches!(mood, Mood::NoRanges | Mood::NoLength | Mood::NoEnd)
            || (!current && mood != Mood::IgnoresIfRange)
            || seen.range.is_none();
        let (first, last) = seen.range.filter(|_| !whole).unwrap_or((0, self.len - 1));
        let last = last.min(self.len - 1);
        if let Some(done) = self.without_file(&mood, to) {
            return done;
        }
        let mut head = match whole {
            true => "HTTP/1.1 200 OK\r\n".to_owned(),
            false => {
                let lie = if let Mood::Lying(bytes) = mood { bytes } else { 0 };
                let range = format!("{}-{}/{}", first + lie, last + lie, self.len);
                format!("HTTP/1.1 206 Partial Content\r\nContent-Range: bytes {range}\r\n")
            }
        };
        match mood {
            Mood::NoLength => head += "Connection: close\r\n",
            _ => head += &format!("Content-Length: {}\r\n", last + 1 - first),
        }
        if mood != Mood::NoVersion {
            head += &format!("ETag: {etag}\r\n");
        }
        head += "\r\n";
        if mood == Mood::DripHead {
            return self.drip(head.as_bytes(), to);
        }
        to.write_all(head.as_bytes())?;
        let end = match mood {
            Mood::Truncating(bytes) => (first + bytes).min(last + 1),
            Mood::NoEnd => last,
            _ => last + 1,
        };
        if mood == Mood::DripBody {
            return self.drip(&self.content(first, end, version), to);
        }
        let mut at = first;
        while at < end {
            let next = (at + 65_536).min(end);
            to.write_all(&self.content(at, next, version))?;
            self.sent.fetch_add(next - at, Ordering::SeqCst);
            at = next;
        }
        match mood == Mood::NoLength || end <= last {
            true => Err(io::ErrorKind::BrokenPipe.into()),
            false => Ok(()),
        }
    }

    fn content(&self, start: u64, end: u64, version: u64) -> Vec<u8> {
        let place = |at: u64| usize::try_from(at).unwrap();
        let own = self.body.lock().as_ref().map(|body| body[place(start)..place(end)].to_vec());
        own.unwrap_or_else(|| content(start, end, version))
    }

    /// Answers that have nothing of the file in them.
    fn without_file(&self, mood: &Mood, to: &mut impl Write) -> Option<io::Result<()>> {
        let empty = "Content-Length: 0\r\n\r\n";
        Some(match mood {
            Mood::Status(status) => write!(to, "HTTP/1.1 {status} Because\r\n{empty}"),
            Mood::Redirect(location) => write!(to, "HTTP/1.1 302 Found\r\nLocation: {location}\r\n{empty}"),
            Mood::RedirectOn => {
                let at = self.seen.lock().len();
                write!(to, "HTTP/1.1 302 Found\r\nLocation: /{at}\r\n{empty}")
            }
            Mood::Silent => {
                self.until_stopped();
                Err(io::ErrorKind::BrokenPipe.into())
            }
            Mood::Babble => write!(to, "220 ftp.example ready\r\n\r\n"),
            _ => return None,
        })
    }

    fn drip(&self, bytes: &[u8], to: &mut impl Write) -> io::Result<()> {
        for byte in bytes {
            to.write_all(&[*byte])?;
            to.flush()?;
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    fn until_stopped(&self) {
        while !self.stop.load(Ordering::SeqCst) {
            thread::sleep(Duration::from_millis(5));
        }
    }
}

fn read_request(stream: &mut impl BufRead) -> io::Result<Option<Seen>> {
    let mut line = String::new();
    if stream.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let target = line.split(' ').nth(1).unwrap_or_default().to_owned();
    let mut seen = Seen { target, authorization: None, range: None, if_range: None };
    loop {
        let mut line = String::new();
        stream.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(": ") else { return Ok(Some(seen)) };
        match name.to_ascii_lowercase().as_str() {
            "authorization" => seen.authorization = Some(value.to_owned()),
            "if-range" => seen.if_range = Some(value.to_owned()),
            "range" => {
                let (first, last) = value.strip_prefix("bytes=").unwrap().split_once('-').unwrap();
                seen.range = Some((first.parse().unwrap(), last.parse().unwrap()));
            }
            _ => {}
        }
    }
}

/// The bytes of a version of the file: each block has its number, the version, and noise of both.
pub(super) fn content(start: u64, end: u64, version: u64) -> Vec<u8> {
    let blocks = start / BLOCK..end.div_ceil(BLOCK);
    let mut bytes = Vec::new();
    for block in blocks.clone() {
        bytes.extend(block.to_le_bytes());
        bytes.extend(version.to_le_bytes());
        let mut noise = fastrand::Rng::with_seed(block ^ version << 40);
        bytes.extend((16..BLOCK).map(|_| noise.u8(..)));
    }
    let skipped = usize::try_from(start - blocks.start * BLOCK).unwrap();
    bytes.drain(..skipped);
    bytes.truncate(usize::try_from(end - start).unwrap());
    bytes
}

pub(super) fn sha256(len: u64, version: u64) -> String {
    let mut hasher = Sha256::new();
    for at in (0..len).step_by(65_536) {
        hasher.update(content(at, (at + 65_536).min(len), version));
    }
    hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}
