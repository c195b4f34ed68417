//! Clients that are broken, or mean ill. None of them may disturb another.

use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::os::unix::net::UnixStream;

use ringdrive::control::{CLIENTS_MAX, REQUESTS_PER_CLIENT_MAX};
use ringdrive::drive::{DriveIndex, Event};
use serde_json::{Value, json};

use crate::fake::{Fake, Mood, Peer, request};

const LINE_BYTES_MAX: usize = 64 * 1024;

#[test]
fn lines_that_are_no_requests_are_refused_and_the_next_one_is_served() {
    let fake = Fake::start();
    let mut peer = fake.connect();
    let deep = format!("{}1{}", "[".repeat(10_000), "]".repeat(10_000));
    let deep_params = format!(
        r#"{{"jsonrpc":"2.0","id":1,"method":"state","params":{}{}}}"#,
        r#"{"a":"#.repeat(10_000),
        "}".repeat(10_000)
    );
    let long_id = format!(r#"{{"jsonrpc":"2.0","id":"{}","method":"state"}}"#, "i".repeat(129));
    for (line, kind) in [
        ("", "parse"),
        ("{", "parse"),
        ("state", "parse"),
        (r#"{"jsonrpc":"2.0","id":1,"method":"state"} x"#, "parse"),
        (r#"{"jsonrpc":"2.0","id":1e999,"method":"state"}"#, "parse"),
        (&deep, "parse"),
        (&deep_params, "parse"),
        ("1", "invalid_request"),
        ("null", "invalid_request"),
        ("[]", "invalid_request"),
        ("{}", "invalid_request"),
        (r#"{"jsonrpc":"2.0","method":"state"}"#, "invalid_request"),
        (r#"{"jsonrpc":"2.0","id":null,"method":"state"}"#, "invalid_request"),
        (r#"{"jsonrpc":"2.0","id":[1],"method":"state"}"#, "invalid_request"),
        (&long_id, "invalid_request"),
        (r#"{"id":1,"method":"state"}"#, "invalid_request"),
        (r#"{"jsonrpc":"1.0","id":1,"method":"state"}"#, "invalid_request"),
        (r#"{"jsonrpc":"2.0","id":1}"#, "invalid_request"),
        (r#"{"jsonrpc":"2.0","id":1,"method":1}"#, "invalid_request"),
        (r#"{"jsonrpc":"2.0","id":1,"method":"state","parms":{}}"#, "invalid_request"),
        (r#"{"jsonrpc":"2.0","id":1,"method":"State"}"#, "method_not_found"),
        (r#"{"jsonrpc":"2.0","id":1,"method":"state","params":[]}"#, "invalid_params"),
        (r#"{"jsonrpc":"2.0","id":1,"method":"state","params":{"drive":0}}"#, "invalid_params"),
    ] {
        assert_eq!(peer.refusal(line), kind, "{line:.80}");
        peer.check_alive();
    }
}

#[test]
fn parameters_of_the_wrong_shape_are_refused() {
    let fake = Fake::start();
    let mut peer = fake.connect();
    let drives = [json!(-1), json!(1.5), json!(true), json!(null), json!([0]), json!(1e300)];
    for drive in drives {
        assert_eq!(peer.refused("eject", &json!({"drive": drive})), "invalid_params", "{drive}");
    }
    for drive in [
        json!(2),
        json!(65_536),
        json!(u64::MAX),
        json!(""),
        json!("CD"),
        json!("0"),
        json!("x".repeat(60_000)),
    ] {
        assert_eq!(peer.refused("eject", &json!({"drive": drive})), "no_such_drive");
    }
    for (method, params) in [
        ("eject", json!({})),
        ("eject", json!({"drive": 0, "forse": true})),
        ("eject", json!({"drive": 0, "force": "yes"})),
        ("insert", json!({"drive": 0})),
        ("insert", json!({"drive": 0, "path": "a.iso"})),
        ("insert", json!({"drive": 0, "path": ""})),
        ("insert", json!({"drive": 0, "path": "/a\u{0}b"})),
        ("insert", json!({"drive": 0, "path": format!("/{}", "a".repeat(4095))})),
        ("insert", json!({"drive": 0, "path": 5})),
        ("insert", json!({"drive": 0, "path": "/a", "fd": true})),
        ("insert", json!({"drive": 0, "path": "/a", "name": "b"})),
        ("insert", json!({"drive": 0, "fd": true, "name": ""})),
        ("insert", json!({"drive": 0, "fd": true, "name": "n".repeat(256)})),
        ("insert", json!({"drive": 0, "path": "/a", "kind": "floppy"})),
        ("lock", json!({"drive": 0, "key": ""})),
        ("lock", json!({"drive": 0, "key": "k".repeat(65)})),
        ("set", json!({"drive": 0})),
        ("set", json!({"drive": 0, "rw": true, "stall": "auto"})),
        ("set", json!({"drive": 0, "stall": "sometimes"})),
        ("subscribe", json!({"events": "all"})),
        ("subscribe", json!({"events": ["all"]})),
    ] {
        assert_eq!(peer.refused(method, &params), "invalid_params", "{method} {params:.80}");
    }
}

#[test]
fn bytes_that_are_no_text_are_refused() {
    let fake = Fake::start();
    let mut peer = fake.connect();
    peer.send(b"\xff\xfe\x00\x01{\"jsonrpc\"\n");
    assert_eq!(peer.receive().unwrap()["error"]["code"], -32700);
    peer.send(b"{\"jsonrpc\":\"2.0\",\"id\":\"\xff\",\"method\":\"state\"}\n");
    assert_eq!(peer.receive().unwrap()["error"]["code"], -32700);
    peer.check_alive();
    let mut seed = fastrand::Rng::with_seed(1);
    let junk: Vec<u8> = std::iter::repeat_with(|| seed.u8(..)).take(30_000).filter(|b| *b != b'\n').collect();
    peer.send(junk);
    peer.send("\n");
    assert_eq!(peer.receive().unwrap()["error"]["code"], -32700);
    peer.check_alive();
}

#[test]
fn the_longest_line_is_served_and_a_longer_one_ends_the_connection() {
    let fake = Fake::start();
    let mut peer = fake.connect();
    let mut line = request(1, "version", &json!({}));
    line += &" ".repeat(LINE_BYTES_MAX - 1 - line.len());
    assert!(peer.ask(&line).get("result").is_some());
    line.push(' ');
    assert_eq!(peer.refusal(&line), "invalid_request");
    assert_eq!(peer.receive(), None);
}

#[test]
fn an_endless_line_is_cut_off_with_an_answer() {
    let fake = Fake::start();
    let mut peer = fake.connect();
    let ended = loop {
        if let Err(error) = peer.stream.write_all(&[b'a'; 4096]) {
            break error.kind();
        }
    };
    assert!(matches!(ended, ErrorKind::BrokenPipe | ErrorKind::ConnectionReset), "{ended}");
    let answer = peer.receive().unwrap();
    assert_eq!(answer["error"]["data"]["kind"], "invalid_request", "{answer}");
    fake.connect().check_alive();
}

#[test]
fn half_a_message_then_the_end_is_forgotten() {
    let fake = Fake::start();
    for _ in 0..3 * CLIENTS_MAX {
        fake.connect().send(r#"{"jsonrpc":"2.0","id":1,"meth"#);
    }
    fake.connect().check_alive();
}

#[test]
fn of_two_hundred_clients_those_beyond_the_limit_are_told_and_the_rest_is_served() {
    let fake = Fake::start();
    let mut peers: Vec<Peer> = (0..200).map(|_| fake.connect()).collect();
    let line = request(1, "version", &json!({}));
    // Those turned away may be gone already.
    peers.iter_mut().for_each(|peer| drop(peer.stream.write_all(format!("{line}\n").as_bytes())));
    let answers: Vec<Value> = peers.iter_mut().map(|peer| peer.receive().unwrap()).collect();
    let served = answers.iter().filter(|answer| answer.get("result").is_some()).count();
    let told = answers.iter().filter(|answer| answer["error"]["data"]["kind"] == "too_many_clients").count();
    assert_eq!((served, told), (CLIENTS_MAX, 200 - CLIENTS_MAX));
    drop(peers);
    fake.connect().check_alive();
}

#[test]
fn a_subscriber_that_never_reads_loses_events_and_learns_how_many() {
    let fake = Fake::start();
    let (mut sleeper, mut reader) = (fake.connect(), fake.connect());
    for peer in [&mut sleeper, &mut reader] {
        peer.ask(&request(1, "subscribe", &json!({"events": ["failed"]})));
    }
    let event = |drive| Event::Failed {
        drive: DriveIndex(drive),
        opcode: 0x28,
        sense: [3, 0x11, 0],
        cause: "c".repeat(1000),
    };
    let count = 4000;
    for _ in 0..count / 100 {
        (0..100).for_each(|_| fake.events.publish(event(0)));
        // In step with the server, so that it is the client's queue that overflows.
        (0..100).for_each(|_| assert_eq!(reader.receive().unwrap()["method"], "event"));
    }
    let (mut received, mut dropped) = (0, 0);
    while received + dropped < count {
        let message = sleeper.receive().unwrap();
        match message["method"].as_str() {
            Some("event") => received += 1,
            Some("lagged") => dropped += message["params"]["dropped"].as_u64().unwrap(),
            _ => panic!("{message}"),
        }
    }
    assert!(dropped > 0 && received > 0 && received + dropped == count, "{received} + {dropped}");
    sleeper.check_alive();
}

#[test]
fn a_client_that_asks_and_never_reads_is_disconnected() {
    let fake = Fake::start();
    let mut peer = fake.connect();
    let line = request(1, "nonsense", &json!({})) + "\n";
    let lines = line.repeat(100);
    while peer.stream.write_all(lines.as_bytes()).is_ok() {}
    fake.connect().check_alive();
}

#[test]
fn a_client_with_too_many_unanswered_requests_is_told_and_others_are_served() {
    let fake = Fake::start();
    let (mut peer, mut other) = (fake.connect(), fake.connect());
    fake.mood(Mood::Deaf);
    for id in 0..=REQUESTS_PER_CLIENT_MAX {
        peer.send_line(&request(id.try_into().unwrap(), "state", &json!({})));
    }
    let answer = peer.receive().unwrap();
    assert_eq!(answer["id"], REQUESTS_PER_CLIENT_MAX);
    assert_eq!(answer["error"]["data"]["kind"], "busy");
    other.check_alive();
}

#[test]
fn descriptors_that_nobody_asked_for_are_closed() {
    let fake = Fake::start();
    let path = fake.image("a.img", 4096);
    let file = File::open(&path).unwrap();
    let check_closed = || {
        // Ours is the only one in this process, which the server runs in, too.
        let open = fs::read_dir("/proc/self/fd").unwrap().flatten();
        let left = open.filter(|fd| fs::read_link(fd.path()).is_ok_and(|target| target == path)).count();
        assert_eq!(left, 1);
    };
    let mut peer = fake.connect();
    peer.send_with(&request(1, "version", &json!({})), &[&file]);
    peer.receive().unwrap();
    peer.send_with("nonsense", &[&file, &file]);
    peer.receive().unwrap();
    let many = [&file; 100];
    peer.send_with(&request(1, "state", &json!({})), &many);
    peer.receive().unwrap();
    check_closed();
    let insert = request(1, "insert", &json!({"drive": 1, "fd": true}));
    let answer = peer.ask(&insert);
    assert_eq!(
        answer["error"]["message"], "no file descriptor came with the request",
        "an old one is not a new one's"
    );
    for files in [vec![&file, &file], many.to_vec()] {
        peer.send_with(&insert, &files);
        assert_eq!(peer.receive().unwrap()["error"]["data"]["kind"], "descriptor");
    }
    peer.send_with(&request(1, "insert", &json!({"drive": 7, "fd": true})), &[&file]);
    assert_eq!(peer.receive().unwrap()["error"]["data"]["kind"], "no_such_drive");
    check_closed();
}

#[test]
fn a_descriptor_of_the_wrong_kind_is_refused() {
    let fake = Fake::start();
    let (socket, _other) = UnixStream::pair().unwrap();
    let socket = File::from(std::os::fd::OwnedFd::from(socket));
    let read_only = File::open(fake.image("a.img", 4096)).unwrap();
    let mut peer = fake.connect();
    peer.send_with(&request(1, "insert", &json!({"drive": 1, "fd": true})), &[&socket]);
    assert_eq!(peer.receive().unwrap()["error"]["data"]["kind"], "image");
    peer.send_with(&request(1, "insert", &json!({"drive": 1, "fd": true, "rw": true})), &[&read_only]);
    assert_eq!(peer.receive().unwrap()["error"]["data"]["kind"], "image");
}
