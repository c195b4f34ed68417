//! A URL as people type it, made into one that can be asked for: what is not allowed in a URL is percent-encoded, what must not be
//! shown (user, password, query) is kept apart.

use std::fmt;

use sha2::{Digest, Sha256};

use super::error::UrlErrorKind;

/// Longest URL, as given.
pub const URL_BYTES_MAX: usize = 16_384;

/// An `http` or `https` URL. Shown without user, password and query, which may be secrets.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Address {
    secure: bool,
    /// In lower case, as in the URL: an IPv6 address in its brackets.
    host: String,
    port: u16,
    path: String,
    query: Option<String>,
    user: Option<(String, String)>,
}

/// Scheme, host and port: whom credentials are for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Origin {
    secure: bool,
    host: String,
    port: u16,
}

impl Address {
    /// # Errors
    /// [`UrlErrorKind::Address`] with what is wrong.
    pub(super) fn parse(text: &str) -> Result<Self, UrlErrorKind> {
        let bad = |why| Err(UrlErrorKind::Address(why));
        if text.len() > URL_BYTES_MAX {
            return bad("it is longer than 16,384 bytes");
        }
        if text.chars().any(char::is_control) {
            return bad("it has control characters in it");
        }
        let Some((scheme, rest)) = text.split_once("://") else {
            return bad("it does not begin with http:// or https://");
        };
        let secure = match scheme.to_ascii_lowercase().as_str() {
            "https" => true,
            "http" => false,
            _ => return bad("it is neither http:// nor https://"),
        };
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (authority, target) = rest.split_at(end);
        let (user, host_port) = match authority.rsplit_once('@') {
            None => (None, authority),
            Some((user, host)) => {
                let (name, password) = user.split_once(':').unwrap_or((user, ""));
                (Some((decode(name), decode(password))), host)
            }
        };
        let (host, port) = split_port(host_port, secure)?;
        let target = target.split('#').next().unwrap_or_default();
        let (path, query) =
            target.split_once('?').map_or((target, None), |(path, query)| (path, Some(query)));
        let path = if path.is_empty() { "/".to_owned() } else { encode(path, PATH) };
        let query = query.map(|query| encode(query, QUERY));
        Ok(Self { secure, host, port, path, query, user })
    }

    /// Where a `Location` header leads to (RFC 9110 §10.2.2, RFC 3986 §5.2). User and password stay with their origin.
    ///
    /// # Errors
    /// As [`Address::parse`].
    pub(super) fn join(&self, location: &str) -> Result<Self, UrlErrorKind> {
        let next = self.resolve(location)?;
        let user = self.user.clone().filter(|_| next.origin() == self.origin());
        Ok(Self { user, ..next })
    }

    fn resolve(&self, location: &str) -> Result<Self, UrlErrorKind> {
        let location = location.split('#').next().unwrap_or_default();
        let scheme_end = location.find(':').filter(|end| !location[..*end].contains(['/', '?']));
        if scheme_end.is_some() {
            return Self::parse(location);
        }
        let scheme = if self.secure { "https" } else { "http" };
        if let Some(rest) = location.strip_prefix("//") {
            return Self::parse(&format!("{scheme}://{rest}"));
        }
        let (path, query) =
            location.split_once('?').map_or((location, None), |(path, query)| (path, Some(query)));
        let path = match path {
            "" => self.path.clone(),
            _ if path.starts_with('/') => encode(&without_dots(path), PATH),
            _ => {
                let folder = self.path.rsplit_once('/').map_or("", |(folder, _)| folder);
                encode(&without_dots(&format!("{folder}/{path}")), PATH)
            }
        };
        let query = query.map(|query| encode(query, QUERY));
        Ok(Self { path, query, ..self.clone() })
    }

    /// A file of that name beside this one.
    pub(super) fn beside(&self, name: &str) -> Self {
        let folder = self.path.rsplit_once('/').map_or("", |(folder, _)| folder);
        Self { path: encode(&format!("{folder}/{name}"), PATH), query: None, ..self.clone() }
    }

    /// What is asked of the server: the only form with the query in it.
    pub(super) fn request(&self) -> String {
        let query = self.query.as_ref().map(|query| format!("?{query}")).unwrap_or_default();
        format!("{}{}{query}", self.origin(), self.path)
    }

    pub(super) fn origin(&self) -> Origin {
        Origin { secure: self.secure, host: self.host.clone(), port: self.port }
    }

    pub(super) fn is_secure(&self) -> bool {
        self.secure
    }

    /// User and password out of the URL itself.
    pub(super) fn user(&self) -> Option<(&str, &str)> {
        self.user.as_ref().map(|(user, password)| (user.as_str(), password.as_str()))
    }

    /// The last part of the path, decoded, as a file name; `image` where there is none that may be one.
    pub(super) fn file_name(&self) -> String {
        let last = self.path.rsplit('/').next().unwrap_or_default();
        let name: String =
            decode(last).chars().map(|c| if c == '/' || c.is_control() { '_' } else { c }).collect();
        match name.as_str() {
            "" | "." | ".." => "image".to_owned(),
            name if name.len() > 200 || name.starts_with('.') => "image".to_owned(),
            _ => name,
        }
    }

    /// What a cache knows it by: user and password make no other image, a query does.
    pub(super) fn key(&self) -> [u8; 32] {
        Sha256::digest(self.request()).into()
    }
}

impl Origin {
    /// `https://host` or `http://host:port`.
    ///
    /// # Errors
    /// As [`Address::parse`].
    pub(super) fn parse(text: &str) -> Result<Self, UrlErrorKind> {
        Address::parse(text).map(|address| address.origin())
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.secure { "https" } else { "http" };
        write!(f, "{scheme}://{}", self.host)?;
        if self.port == default_port(self.secure) { Ok(()) } else { write!(f, ":{}", self.port) }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let query = if self.query.is_some() { "?…" } else { "" };
        write!(f, "{}{}{query}", self.origin(), self.path)
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

fn default_port(secure: bool) -> u16 {
    if secure { 443 } else { 80 }
}

fn split_port(text: &str, secure: bool) -> Result<(String, u16), UrlErrorKind> {
    let bad = |why| Err(UrlErrorKind::Address(why));
    let (host, port) = match text.rfind(':').filter(|at| !text[*at..].contains(']')) {
        Some(at) => (&text[..at], &text[at + 1..]),
        None => (text, ""),
    };
    let inside = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let known = match inside {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => {
            !host.is_empty()
                && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte))
        }
    };
    match (known, port) {
        _ if host.len() > 253 => bad("its host name is longer than 253 bytes"),
        (false, _) if host.is_ascii() => bad("there is no host name in it that a server may have"),
        (false, _) => {
            bad("its host name has letters that are not ASCII; write it as the server's xn--… name")
        }
        (true, "") => Ok((host.to_ascii_lowercase(), default_port(secure))),
        (true, port) => match port.parse::<u16>() {
            Ok(number @ 1..) if port.bytes().all(|byte| byte.is_ascii_digit()) => {
                Ok((host.to_ascii_lowercase(), number))
            }
            _ => bad("its port is no number from 1 to 65535"),
        },
    }
}

/// What may stand in a path and in a query, beside letters and digits (RFC 3986 §3.3, §3.4).
const PATH: &[u8] = b"-._~!$&'()*+,;=:@/";
const QUERY: &[u8] = b"-._~!$&'()*+,;=:@/?";

/// Leaves what is encoded already; a percent sign that encodes nothing is one itself.
fn encode(text: &str, allowed: &[u8]) -> String {
    let bytes = text.as_bytes();
    let mut encoded = String::with_capacity(text.len());
    for (at, byte) in bytes.iter().enumerate() {
        let escape = *byte == b'%'
            && bytes.get(at + 1..at + 3).is_some_and(|hex| hex.iter().all(u8::is_ascii_hexdigit));
        if escape || byte.is_ascii_alphanumeric() || allowed.contains(byte) {
            encoded.push(char::from(*byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((byte, after)) = rest.split_first() {
        let hex = after.get(..2).filter(|hex| *byte == b'%' && hex.iter().all(u8::is_ascii_hexdigit));
        let value = hex
            .and_then(|hex| std::str::from_utf8(hex).ok())
            .and_then(|hex| u8::from_str_radix(hex, 16).ok());
        bytes.push(value.unwrap_or(*byte));
        rest = if value.is_some() { &after[2..] } else { after };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn without_dots(path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/').skip(1) {
        match part {
            "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    let open = path.ends_with("/.") || path.ends_with("/..");
    format!("/{}{}", parts.join("/"), if open && !parts.is_empty() { "/" } else { "" })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(text: &str) -> String {
        Address::parse(text).unwrap().request()
    }

    #[test]
    fn names_with_spaces_percent_signs_and_unicode_are_asked_for_as_the_server_has_them() {
        assert_eq!(request("http://h/a b.iso"), "http://h/a%20b.iso");
        assert_eq!(request("http://h/a%20b.iso"), "http://h/a%20b.iso");
        assert_eq!(request("http://h/100%.iso"), "http://h/100%25.iso");
        assert_eq!(request("http://h/Ü.iso?q=ä#frag"), "http://h/%C3%9C.iso?q=%C3%A4");
        assert_eq!(request("HTTPS://User:p%40ss@Host.Example:8443"), "https://host.example:8443/");
        assert_eq!(request("http://[::1]:8080/x"), "http://[::1]:8080/x");
        assert_eq!(request("https://h:443/x"), "https://h/x");
        assert_eq!(Address::parse("http://h/%C3%9C%20x.iso").unwrap().file_name(), "Ü x.iso");
        assert_eq!(Address::parse("http://h/..%2F..%2Fetc").unwrap().file_name(), "image");
        assert_eq!(Address::parse("http://h/a%2Fb").unwrap().file_name(), "a_b");
    }

    #[test]
    fn secrets_are_not_shown() {
        let address = Address::parse("https://me:secret@h/x.iso?X-Amz-Signature=secret").unwrap();
        for shown in [format!("{address}"), format!("{address:?}")] {
            assert_eq!(shown, "https://h/x.iso?…");
        }
        assert_eq!(address.user(), Some(("me", "secret")));
        assert!(!address.request().contains('@'));
    }

    #[test]
    fn what_is_no_url_of_ours_is_refused() {
        let long = format!("http://h/{}", "x".repeat(URL_BYTES_MAX));
        for bad in [
            "",
            "h/x",
            "file:///etc/passwd",
            "ftp://h/x",
            "http:///x",
            "http://h:0/",
            "http://h:99999/",
            "http://h:+1/",
            "http://a b/",
            "http://ü.de/",
            "http://[::g]/",
            "http://h/\r\nX: y",
            &long,
        ] {
            assert!(Address::parse(bad).is_err(), "{bad}");
        }
        let query = format!("http://h/x?{}", "q".repeat(4_000));
        assert!(request(&query).len() > 4_000);
    }

    /// The examples of RFC 3986 §5.4 that can be a server's answer.
    #[test]
    fn a_location_is_resolved_as_the_standard_says() {
        let base = Address::parse("http://a/b/c/d;p?q").unwrap();
        for (location, wanted) in [
            ("g", "http://a/b/c/g"),
            ("./g", "http://a/b/c/g"),
            ("g/", "http://a/b/c/g/"),
            ("/g", "http://a/g"),
            ("//g", "http://g/"),
            ("?y", "http://a/b/c/d;p?y"),
            ("g?y", "http://a/b/c/g?y"),
            (";x", "http://a/b/c/;x"),
            ("", "http://a/b/c/d;p"),
            ("..", "http://a/b/"),
            ("../g", "http://a/b/g"),
            ("../../../g", "http://a/g"),
            ("https://g/h", "https://g/h"),
        ] {
            assert_eq!(base.join(location).unwrap().request(), wanted, "{location}");
        }
        let base = Address::parse("https://me:secret@a/b").unwrap();
        assert!(
            base.join("/c").unwrap().user().is_some() && base.join("https://a/c").unwrap().user().is_some()
        );
        for elsewhere in ["http://a/c", "https://a:444/c", "https://b/c", "https://you:x@b/c"] {
            assert_eq!(base.join(elsewhere).unwrap().user(), None, "{elsewhere}");
        }
        assert!(base.join("file:///etc/passwd").is_err());
        assert!(base.join("javascript:alert(1)").is_err());
    }
}
