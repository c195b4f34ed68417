//! A web server that does not do what it says. Its one file is [`versioned`].

use std::io::{self, BufRead, BufReader, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::Result;

use crate::image::versioned;

/// Between two bytes that drip.
const DRIP: Duration = Duration::from_millis(200);
const STEP: u64 = 64 * 1024;
/// Before it breaks off.
const SENT: u64 = 4096;

/// How it answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mood {
    /// As it should, with this version of the file.
    Good(u64),
    /// As if nobody had asked for a part.
    NoRanges,
    /// What was asked for, and says that it is what follows.
    WrongRange,
    /// Breaks off in the middle of the body.
    Truncated,
    /// With status 500.
    InTrouble,
    /// A byte from time to time.
    Drip,
    /// "Look there", where it says the same.
    Circle,
}

/// The server. Dropped, nobody listens there any more.
#[derive(Debug)]
pub struct Liar {
    address: SocketAddr,
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    len: u64,
    mood: Mutex<Mood>,
    stop: AtomicBool,
}

impl Liar {
    /// Starts one whose file has `len` bytes, and which is honest.
    ///
    /// # Errors
    /// No port is free.
    pub fn start(len: u64) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let (mood, stop) = (Mutex::new(Mood::Good(1)), AtomicBool::new(false));
        let inner = Arc::new(Inner { len, mood, stop });
        let server = Arc::clone(&inner);
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if server.stop.load(Ordering::SeqCst) {
                    return;
                }
                let server = Arc::clone(&server);
                // Clients come and go.
                thread::spawn(move || drop(server.serve(&stream)));
            }
        });
        Ok(Self { address, inner })
    }

    /// Where its file is; each name is another image to a client.
    #[must_use]
    pub fn url(&self, name: &str) -> String {
        format!("http://{}/{name}", self.address)
    }

    /// From the next request on.
    pub fn be(&self, mood: Mood) {
        *self.inner.mood.lock().unwrap_or_else(PoisonError::into_inner) = mood;
    }
}

impl Drop for Liar {
    fn drop(&mut self) {
        self.inner.stop.store(true, Ordering::SeqCst);
        // So that it notices.
        let _ = TcpStream::connect(self.address);
    }
}

/// What an answer depends on.
struct Request {
    path: String,
    range: Option<(u64, u64)>,
    if_range: Option<String>,
}

impl Inner {
    fn serve(&self, stream: &TcpStream) -> io::Result<()> {
        let mut from = BufReader::new(stream);
        while let Some(request) = read_request(&mut from)? {
            if !self.answer(&request, &mut &*stream)? {
                break;
            }
        }
        stream.shutdown(Shutdown::Both)
    }

    /// Whether the connection can be used again.
    fn answer(&self, request: &Request, to: &mut impl Write) -> io::Result<bool> {
        let mood = *self.mood.lock().unwrap_or_else(PoisonError::into_inner);
        let bare = match mood {
            Mood::InTrouble => Some("500 Oh".to_owned()),
            Mood::Circle => Some(format!("302 There\r\nLocation: {}", request.path)),
            _ => None,
        };
        if let Some(bare) = bare {
            write!(to, "HTTP/1.1 {bare}\r\nContent-Length: 0\r\n\r\n")?;
            return Ok(true);
        }
        let version = match mood {
            Mood::Good(version) => version,
            _ => 1,
        };
        let etag = format!("\"v{version}\"");
        let current = request.if_range.as_ref().is_none_or(|wanted| *wanted == etag);
        let range = request.range.filter(|_| current && mood != Mood::NoRanges);
        let (first, last) = range.map_or((0, self.len - 1), |(first, last)| (first, last.min(self.len - 1)));
        let len = last + 1 - first;
        let lie = if mood == Mood::WrongRange { len } else { 0 };
        let status = match range {
            None => "200 OK".to_owned(),
            Some(_) => {
                format!("206 Part\r\nContent-Range: bytes {}-{}/{}", first + lie, last + lie, self.len)
            }
        };
        let head = format!("HTTP/1.1 {status}\r\nETag: {etag}\r\nContent-Length: {len}\r\n\r\n");
        if mood == Mood::Drip {
            return drip(head.as_bytes(), to).map(|()| false);
        }
        to.write_all(head.as_bytes())?;
        let sent = if mood == Mood::Truncated { SENT } else { len };
        for at in (first..first + sent).step_by(usize::try_from(STEP).unwrap_or(1)) {
            let part = STEP.min(first + sent - at);
            // Ranges begin and end where sectors do.
            to.write_all(&versioned(version, at, usize::try_from(part).unwrap_or(0)))?;
        }
        Ok(sent == len)
    }
}

fn drip(bytes: &[u8], to: &mut impl Write) -> io::Result<()> {
    bytes.iter().try_for_each(|byte| {
        to.write_all(&[*byte])?;
        thread::sleep(DRIP);
        Ok(())
    })
}

fn read_request(from: &mut impl BufRead) -> io::Result<Option<Request>> {
    let mut line = String::new();
    if from.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
    let mut request = Request { path, range: None, if_range: None };
    loop {
        let mut line = String::new();
        from.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(": ") else { return Ok(Some(request)) };
        match name.to_ascii_lowercase().as_str() {
            "if-range" => request.if_range = Some(value.to_owned()),
            "range" => {
                let ends = value.strip_prefix("bytes=").and_then(|ends| ends.split_once('-'));
                request.range = ends.and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
            }
            _ => {}
        }
    }
}
