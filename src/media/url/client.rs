//! Asks one server for parts of one file. Blocking, with an end to all of it; for threads that may wait.
//!
//! Redirects are followed here and not by the HTTP library: credentials are looked up anew for each server, https never leads to
//! http, and a circle is seen. Where a redirect led is remembered (object stores sign such addresses), and forgotten once it denies.

use std::{
    io::Read,
    ops::Range,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use ureq::{
    Agent, Body, BodyReader, Timeout,
    config::Config,
    http::{HeaderMap, Response, StatusCode, header},
    tls::{PemItem, RootCerts, TlsConfig, parse_pem},
    unversioned::{
        resolver::DefaultResolver,
        transport::{
            ConnectProxyConnector, ConnectionDetails, Connector, RustlsConnector, TcpConnector, Transport,
        },
    },
};

use super::{
    address::Address,
    credentials::Credentials,
    error::{UrlError, UrlErrorKind, from_io, from_ureq},
    range::{self, Part, Version},
};

const REDIRECTS_MAX: usize = 8;
/// A SHA256SUMS of a few thousand names.
const TEXT_BYTES_MAX: u64 = 1 << 20;

/// How long a server may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// For a connection. A server that is gone shall be known to be within a second.
    pub connect: Duration,
    /// For the head of an answer, and between any two pieces of its body.
    pub answer: Duration,
    /// For [`CHUNK`](super::CHUNK) bytes of a body, which a server that drips would exceed.
    pub chunk: Duration,
    /// Until a request that failed is made again: at first, and at most.
    pub retry: (Duration, Duration),
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            connect: Duration::from_millis(800),
            answer: Duration::from_secs(5),
            chunk: Duration::from_secs(10),
            retry: (Duration::from_millis(100), Duration::from_secs(1)),
        }
    }
}

/// How servers are reached.
#[derive(Clone, Debug, Default)]
pub(super) struct Way<'a> {
    pub(super) ca_file: Option<&'a Path>,
    pub(super) proxy: Option<&'a str>,
    pub(super) connections: usize,
    pub(super) patience: Patience,
}

/// The way to one file.
#[derive(Debug)]
pub(super) struct Client {
    agent: Agent,
    credentials: Credentials,
    address: Address,
    /// Where redirects led the last time.
    led_to: Mutex<Option<Address>>,
    patience: Patience,
}

/// The body of an answer.
pub(super) struct Bytes {
    reader: BodyReader<'static>,
    url: String,
    chunk: Duration,
}

/// An answer to the first question.
pub(super) enum Found {
    /// The server sends parts.
    Parts(Part, Bytes),
    /// It sends the whole, of so many bytes if it says so.
    Whole(Option<u64>, Bytes),
}

impl Client {
    /// # Errors
    /// [`UrlErrorKind::CaFile`], [`UrlErrorKind::Proxy`].
    pub(super) fn new(address: Address, credentials: Credentials, way: &Way<'_>) -> Result<Self, UrlError> {
        let roots = match way.ca_file {
            None => RootCerts::PlatformVerifier,
            Some(path) => authorities(path).map_err(|kind| kind.of(&address))?,
        };
        let tls = TlsConfig::builder()
            .root_certs(roots)
            .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .build();
        let proxy =
            way.proxy.map(ureq::Proxy::new).transpose().map_err(|_| UrlErrorKind::Proxy.of(&address))?;
        let Patience { answer, .. } = way.patience;
        let config = Config::builder()
            .tls_config(tls)
            .proxy(proxy)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .http_status_as_error(false)
            .user_agent(concat!("ringdrive/", env!("CARGO_PKG_VERSION")))
            .accept_encoding("identity")
            .timeout_resolve(Some(answer))
            .timeout_connect(Some(answer))
            .timeout_send_request(Some(answer))
            .timeout_recv_response(Some(answer))
            .timeout_per_read(Some(answer))
            .timeout_per_write(Some(answer))
            .max_idle_connections(way.connections + 1)
            .max_idle_connections_per_host(way.connections + 1)
            .build();
        let dial = Dial { tcp: TcpConnector::default(), limit: way.patience.connect };
        let connector =
            ().chain(ConnectProxyConnector::default()).chain(dial).chain(RustlsConnector::default());
        let agent = Agent::with_parts(config, connector, DefaultResolver::default());
        Ok(Self { agent, credentials, address, led_to: Mutex::default(), patience: way.patience })
    }

    pub(super) fn address(&self) -> &Address {
        &self.address
    }

    /// Breaks all requests off; later ones fail.
    pub(super) fn shut_down(&self) {
        self.agent.clone().shutdown();
    }

    /// Asks for the start of the file, to learn what it is.
    ///
    /// # Errors
    /// Any that a server can cause.
    pub(super) fn find(&self, asked: &Range<u64>, known: Option<&Part>) -> Result<Found, UrlError> {
        let response = self.get(&self.address, Some((asked, known)))?;
        let error = |kind: UrlErrorKind| kind.of(&self.address);
        let headers = response.headers();
        match response.status() {
            StatusCode::PARTIAL_CONTENT => {
                let part = range::check(headers, asked, known).map_err(error)?;
                Ok(Found::Parts(part, self.bytes(response)))
            }
            StatusCode::OK => {
                if known.is_some_and(|known| known.version.is_left_by(&Version::of(headers))) {
                    return Err(error(UrlErrorKind::Changed));
                }
                if headers.get(header::CONTENT_ENCODING).is_some_and(|value| value != "identity") {
                    return Err(error(UrlErrorKind::WrongRange));
                }
                let total =
                    headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
                Ok(Found::Whole(total, self.bytes(response)))
            }
            // RFC 9110 §15.5.17: of an empty file no range can be had.
            StatusCode::RANGE_NOT_SATISFIABLE => Err(error(UrlErrorKind::Empty)),
            status => Err(error(UrlErrorKind::from_status(status.as_u16()))),
        }
    }

    /// Asks for a part of the file that is known.
    ///
    /// # Errors
    /// Any that a server can cause. [`UrlErrorKind::Changed`] and [`UrlErrorKind::WrongRange`] where what comes is not to be believed.
    pub(super) fn part(&self, asked: &Range<u64>, known: &Part) -> Result<Bytes, UrlError> {
        match self.find(asked, Some(known)) {
            Ok(Found::Parts(_, bytes)) => Ok(bytes),
            Ok(Found::Whole(..)) => Err(UrlErrorKind::NoRanges.of(&self.address)),
            // A part of what is known to be there.
            Err(UrlError { kind: UrlErrorKind::Empty, .. }) => Err(UrlErrorKind::Changed.of(&self.address)),
            Err(error) => Err(error),
        }
    }

    /// The whole file, in one answer.
    ///
    /// # Errors
    /// Any that a server can cause.
    pub(super) fn whole(&self) -> Result<(Option<u64>, Bytes), UrlError> {
        let response = self.get(&self.address, None)?;
        let total = response.headers().get(header::CONTENT_LENGTH);
        let total = total.and_then(|value| value.to_str().ok()?.parse().ok());
        match response.status() {
            StatusCode::OK => Ok((total, self.bytes(response))),
            status => Err(UrlErrorKind::from_status(status.as_u16()).of(&self.address)),
        }
    }

    /// A short text beside the file.
    ///
    /// # Errors
    /// Any that a server can cause.
    pub(super) fn text_beside(&self, name: &str) -> Result<String, UrlError> {
        let address = self.address.beside(name);
        let response = self.get(&address, None)?;
        if response.status() != StatusCode::OK {
            return Err(UrlErrorKind::from_status(response.status().as_u16()).of(&address));
        }
        let mut bytes = self.bytes(response);
        let mut text = Vec::new();
        let until = Instant::now() + self.patience.chunk;
        let mut piece = [0; 4096];
        loop {
            match bytes.read_some(&mut piece, until)? {
                0 => break,
                read => text.extend_from_slice(&piece[..read]),
            }
            if u64::try_from(text.len()).is_ok_and(|len| len > TEXT_BYTES_MAX) {
                break;
            }
        }
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    fn bytes(&self, response: Response<Body>) -> Bytes {
        // Their number is checked by whoever reads them.
        let reader = response.into_body().into_with_config().limit(u64::MAX).reader();
        Bytes { reader, url: self.address.to_string(), chunk: self.patience.chunk }
    }

    /// The answer at the end of all redirects.
    fn get(
        &self,
        address: &Address,
        range: Option<(&Range<u64>, Option<&Part>)>,
    ) -> Result<Response<Body>, UrlError> {
        let remembered = self.led_to.lock().clone().filter(|_| *address == self.address);
        if let Some(there) = remembered {
            let response = self.ask(&there, range)?;
            if !response.status().is_redirection() && !response.status().is_client_error() {
                return Ok(response);
            }
            *self.led_to.lock() = None;
        }
        let mut visited = vec![address.clone()];
        let mut here = address.clone();
        loop {
            let response = self.ask(&here, range)?;
            if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
                if visited.len() > 1 && *address == self.address && response.status().is_success() {
                    *self.led_to.lock() = Some(here);
                }
                return Ok(response);
            }
            let next = location(response.headers())
                .and_then(|location| here.join(location).ok())
                .filter(|next| next.is_secure() || !here.is_secure())
                .ok_or_else(|| UrlErrorKind::RedirectRefused.of(address))?;
            if visited.len() > REDIRECTS_MAX || visited.contains(&next) {
                return Err(UrlErrorKind::RedirectLoop.of(address));
            }
            visited.push(next.clone());
            here = next;
        }
    }

    fn ask(
        &self,
        address: &Address,
        range: Option<(&Range<u64>, Option<&Part>)>,
    ) -> Result<Response<Body>, UrlError> {
        let mut request = self.agent.get(address.request());
        // Those in the URL itself are for its own server alone: `join` leaves them away.
        if let Some(authorization) = self.credentials.authorization(address) {
            request = request.header(header::AUTHORIZATION, authorization);
        }
        if let Some((asked, known)) = range {
            let last = asked.end.saturating_sub(1);
            request = request.header(header::RANGE, format!("bytes={}-{last}", asked.start));
            if let Some(version) = known.and_then(|known| known.version.if_range()) {
                request = request.header(header::IF_RANGE, version);
            }
        }
        request.call().map_err(|error| from_ureq(error, address))
    }
}

impl Bytes {
    /// Fills `to`.
    ///
    /// # Errors
    /// [`UrlErrorKind::Truncated`], [`UrlErrorKind::TimedOut`] and their like.
    pub(super) fn read_exact(&mut self, to: &mut [u8]) -> Result<(), UrlError> {
        let until = Instant::now() + self.chunk;
        let mut read = 0;
        while read < to.len() {
            match self.read_some(&mut to[read..], until)? {
                0 => return Err(UrlErrorKind::Truncated.of(&self.url)),
                more => read += more,
            }
        }
        Ok(())
    }

    /// Reads what there is, at least a byte; 0 at the end.
    ///
    /// # Errors
    /// As [`Bytes::read_exact`].
    pub(super) fn read_some(&mut self, to: &mut [u8], until: Instant) -> Result<usize, UrlError> {
        if Instant::now() >= until {
            return Err(UrlErrorKind::TimedOut.of(&self.url));
        }
        self.reader.read(to).map_err(|error| from_io(error, &self.url))
    }

    /// Until when a chunk that is begun now has to be here.
    pub(super) fn deadline(&self) -> Instant {
        Instant::now() + self.chunk
    }

    /// Whether the body ends here, so that its connection can be used again.
    pub(super) fn ends(&mut self) -> bool {
        matches!(self.reader.read(&mut [0]), Ok(0))
    }
}

/// Header values are bytes; browsers and servers write UTF-8 where they write more than ASCII.
fn location(headers: &HeaderMap) -> Option<&str> {
    std::str::from_utf8(headers.get(header::LOCATION)?.as_bytes()).ok()
}

fn authorities(path: &Path) -> Result<RootCerts, UrlErrorKind> {
    let bad = |problem| UrlErrorKind::CaFile { path: path.display().to_string(), problem };
    let pem = std::fs::read(path)
        .map_err(|_| bad("cannot be read; check the path, and that the daemon may read it"))?;
    let mut certificates = Vec::new();
    for item in parse_pem(&pem) {
        match item {
            Ok(PemItem::Certificate(certificate)) => certificates.push(certificate),
            Ok(_) => {}
            Err(_) => return Err(bad("is damaged; get it anew, in PEM form")),
        }
    }
    if certificates.is_empty() {
        return Err(bad("has no certificate in PEM form in it; give the file that has"));
    }
    Ok(RootCerts::Specific(Arc::new(certificates)))
}

/// A TCP connection is there soon or never; TLS and proxies on top of it may take longer.
#[derive(Debug)]
struct Dial {
    tcp: TcpConnector,
    limit: Duration,
}

impl<In: Transport> Connector<In> for Dial {
    type Out = <TcpConnector as Connector<In>>::Out;

    fn connect(
        &self,
        details: &ConnectionDetails<'_>,
        chained: Option<In>,
    ) -> Result<Option<Self::Out>, ureq::Error> {
        let mut timeout = details.timeout;
        if timeout.after > self.limit.into() {
            timeout.after = self.limit.into();
            timeout.reason = Timeout::Connect;
        }
        let details = ConnectionDetails {
            uri: details.uri,
            addrs: details.addrs.clone(),
            config: details.config,
            request_level: details.request_level,
            resolver: details.resolver,
            now: (details.current_time)(),
            timeout,
            current_time: Arc::clone(&details.current_time),
            run_connector: Arc::clone(&details.run_connector),
            register_shutdown: Arc::clone(&details.register_shutdown),
        };
        self.tcp.connect(&details, chained)
    }
}
