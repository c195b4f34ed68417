//! Inserting URLs, from the command line to a web server and back.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::thread;

use serde_json::{Value, json};

use crate::fake::{Fake, request};

const LEN: usize = 300_000;
/// SHA-256 of [`LEN`] bytes of 7, from sha256sum(1).
const SHA256: &str = "08f166476de183f7a1b2874d544d37912aaf8d19b92013e1aafe233ba231024a";

/// A web server that has [`LEN`] bytes of 7 for every name that does not begin with `no`.
fn web_server() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            thread::spawn(move || serve(&stream.unwrap()));
        }
    });
    address
}

/// Until the client has had enough.
fn serve(mut stream: &TcpStream) -> Option<()> {
    let mut lines = BufReader::new(stream).lines();
    loop {
        let target = lines.next()?.ok()?.split(' ').nth(1)?.to_owned();
        let mut range = None;
        for line in lines.by_ref() {
            let line = line.ok()?.to_ascii_lowercase();
            if line.is_empty() {
                break;
            }
            if let Some(value) = line.strip_prefix("range: bytes=") {
                let (first, last) = value.split_once('-')?;
                range = Some((first.parse::<usize>().ok()?, last.parse::<usize>().ok()?.min(LEN - 1)));
            }
        }
        let (first, last) = range.filter(|_| !target.contains("whole")).unwrap_or((0, LEN - 1));
        let status = match (target.starts_with("/no"), first + LEN == last + 1 && target.contains("whole")) {
            (true, _) => "404 Not Found",
            (_, true) => "200 OK",
            _ => "206 Partial Content",
        };
        let head =
            format!("HTTP/1.1 {status}\r\nETag: \"1\"\r\nContent-Range: bytes {first}-{last}/{LEN}\r\n");
        let len = last + 1 - first;
        stream.write_all(format!("{head}Content-Length: {len}\r\n\r\n").as_bytes()).ok()?;
        stream.write_all(&vec![7; len]).ok()?;
    }
}

#[test]
fn a_url_is_inserted_shown_and_ejected_and_its_secrets_are_not() {
    let (fake, address) = (Fake::start(), web_server());
    let mut peer = fake.connect();
    peer.ask(&request(1, "subscribe", &json!({})));
    let query = "s3cret".repeat(600);
    let url = format!("http://me:s3cret@{address}/a b/Ü.iso?signature={query}");
    let shown = format!("http://{address}/a%20b/%C3%9C.iso?…");
    let said = fake.says(&["insert", "cd", &url, "--sha256", SHA256, "--keep"]);
    assert_eq!(said, format!("drive 0: inserted {shown} (300.0 kB, read-only)\n"));
    let mut events = Vec::new();
    while events.last().is_none_or(|event: &Value| event["params"]["event"] != "fetched") {
        events.push(peer.receive().unwrap());
    }
    let fetched = &events.last().unwrap()["params"];
    assert_eq!((&fetched["image"], &fetched["checked"]), (&json!(shown), &json!(true)));
    assert_eq!(std::fs::read(fetched["kept"].as_str().unwrap()).unwrap(), vec![7; LEN]);
    let state = peer.ask(&request(2, "state", &json!({})));
    let image = &state["result"]["drives"][0]["image"];
    assert_eq!(
        (&image["fetch"]["here"], &image["fetch"]["complete"], &image["source"]),
        (&json!(LEN), &json!(true), &json!("online"))
    );
    for text in [format!("{events:?}"), state.to_string(), fake.says(&["state"])] {
        assert!(text.contains("%C3%9C.iso?…") && !text.contains("s3cret"), "{text}");
    }
    assert_eq!(fake.says(&["eject", "cd"]), format!("drive 0: ejected {shown}\n"));
}

#[test]
fn a_server_without_ranges_is_refused_with_the_cure_and_the_cure_works() {
    let (fake, address) = (Fake::start(), web_server());
    let url = format!("http://{address}/whole.iso?token=s3cret");
    let mut peer = fake.connect();
    let refused = peer.ask(&request(1, "insert", &json!({"drive": 0, "url": url})));
    assert_eq!(refused["error"]["code"], 18);
    let text = refused.to_string();
    assert!(text.contains("--download") && text.contains("whole.iso") && !text.contains("s3cret"), "{text}");
    let wrong = "0".repeat(64);
    let refused =
        peer.ask(&request(2, "insert", &json!({"drive": 0, "url": url, "download": true, "sha256": wrong})));
    assert!(refused["error"]["message"].as_str().unwrap().contains("checksum"), "{refused}");
    let said = fake.says(&["insert", "cd", &url, "--download", "--sha256", SHA256]);
    assert!(said.starts_with("drive 0: inserted"), "{said}");
    let state = peer.ask(&request(3, "state", &json!({})));
    assert_eq!(state["result"]["drives"][0]["image"]["fetch"]["complete"], true);
}

#[test]
fn what_makes_no_sense_with_a_url_or_without_one_is_refused() {
    let (fake, address) = (Fake::start(), web_server());
    let url = format!("http://{address}/x.iso");
    let mut peer = fake.connect();
    let mut kind = |params: Value| {
        let mut params = params;
        params["drive"] = json!("flash");
        peer.refusal(&request(1, "insert", &params))
    };
    for params in [
        json!({"url": url, "path": "/x"}),
        json!({"url": url, "fd": true}),
        json!({"url": url, "name": "x"}),
        json!({"url": url, "sha256": "12"}),
        json!({"url": url, "sha256": SHA256, "sha256sums": true}),
        json!({"url": url, "credentials": "relative"}),
        json!({"url": format!("{url}{}", "x".repeat(16_384))}),
        json!({"path": "/x", "keep": true}),
        json!({"path": "/x", "sha256": SHA256}),
    ] {
        assert_eq!(kind(params.clone()), "invalid_params", "{params}");
    }
    for params in [
        json!({"url": "file:///etc/passwd"}),
        json!({"url": "/etc/passwd"}),
        json!({"url": format!("http://{address}/none")}),
        json!({"url": url, "rw": true}),
        json!({"url": url, "sha256sums": true}),
    ] {
        assert_eq!(kind(params.clone()), "url", "{params}");
    }
    let file = fake.dir.path().join("credentials");
    std::fs::write(&file, format!("http://{address} bearer s3cret\n")).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
    assert_eq!(kind(json!({"url": url, "credentials": file})), "url");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    let said = fake.says(&["insert", "flash", &url, "--credentials", file.to_str().unwrap()]);
    assert!(said.contains("read-only"), "{said}");
}
