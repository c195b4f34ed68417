//! What the document's examples do not show of each method.

use std::fs::File;
use std::io::IoSlice;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use ringdrive::control::protocol::ErrorKind;
use ringdrive::drive::{DriveIndex, Event};
use serde_json::{Value, json};

use crate::fake::{Fake, Mood, PATIENCE, Peer, request};

impl Peer {
    #[track_caller]
    fn call(&mut self, method: &str, params: &Value) -> Value {
        let answer = self.ask(&request(7, method, params));
        assert_eq!(answer["id"], 7, "{answer}");
        answer.get("result").unwrap_or_else(|| panic!("{method} {params} was refused: {answer}")).clone()
    }

    #[track_caller]
    pub(crate) fn refused(&mut self, method: &str, params: &Value) -> String {
        self.refusal(&request(7, method, params))
    }

    pub(crate) fn send_with(&mut self, line: &str, files: &[&File]) {
        let fds: Vec<_> = files.iter().map(|file| file.as_raw_fd()).collect();
        let line = format!("{line}\n");
        let control = [ControlMessage::ScmRights(&fds)];
        let bytes = [IoSlice::new(line.as_bytes())];
        let sent = sendmsg::<()>(self.stream.as_raw_fd(), &bytes, &control, MsgFlags::empty(), None).unwrap();
        assert_eq!(sent, line.len());
    }
}

#[test]
fn an_image_is_inserted_by_a_descriptor_that_the_client_opened() {
    let fake = Fake::start();
    let path = fake.image("secret.img", 4096);
    let file = File::options().read(true).write(true).open(&path).unwrap();
    // The daemon could not find it by name.
    std::fs::remove_file(&path).unwrap();
    let mut peer = fake.connect();
    let params = json!({"drive": "flash", "fd": true, "name": "secret", "rw": true});
    peer.send_with(&request(1, "insert", &params), &[&file]);
    let answer = peer.receive().unwrap();
    assert_eq!(
        answer["result"],
        json!({"drive": 1, "image": {"name": "secret", "bytes": 4096, "rw": true, "first_read": false, "source": "online"}}),
        "{answer}"
    );
}

#[test]
fn a_descriptor_in_front_of_a_long_line_waits_for_its_end() {
    let fake = Fake::start();
    let file = File::open(fake.image("a.iso", 4096)).unwrap();
    let mut peer = fake.connect();
    let name = "n".repeat(255);
    let params = json!({"drive": "cd", "fd": true, "name": name});
    let line = format!("{}{}", " ".repeat(40_000), request(1, "insert", &params));
    let (start, end) = line.split_at(20_000);
    let sent = sendmsg::<()>(
        peer.stream.as_raw_fd(),
        &[IoSlice::new(start.as_bytes())],
        &[ControlMessage::ScmRights(&[file.as_raw_fd()])],
        MsgFlags::empty(),
        None,
    );
    assert_eq!(sent.unwrap(), 20_000);
    peer.send_line(end);
    let answer = peer.receive().unwrap();
    assert_eq!(answer["result"]["image"]["name"], name, "{answer}");
}

#[test]
fn insert_uses_the_drives_own_setting_unless_told_otherwise() {
    let fake = Fake::start();
    let path = fake.image("a.img", 4096);
    let mut peer = fake.connect();
    let mut inserted_rw = |more: Value| {
        let mut params = json!({"drive": 1, "path": path});
        params.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let rw = peer.call("insert", &params)["image"]["rw"].clone();
        peer.call("eject", &json!({"drive": 1}));
        peer.call("set", &json!({"drive": 1, "rw": true}));
        rw
    };
    assert_eq!(inserted_rw(json!({})), false);
    assert_eq!(inserted_rw(json!({})), true, "after set");
    assert_eq!(inserted_rw(json!({"rw": false})), false);
}

#[test]
fn inserts_that_cannot_be_are_refused_with_cause_and_cure() {
    let fake = Fake::start();
    let good = fake.image("a.iso", 4096);
    let dir = fake.dir.path().to_owned();
    let empty = fake.image("empty", 0);
    let odd = fake.image("odd", 513);
    nix::unistd::mkfifo(&dir.join("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let mut peer = fake.connect();
    for (params, kind) in [
        (json!({"drive": 0, "path": dir.join("none")}), "image"),
        (json!({"drive": 0, "path": dir}), "image"),
        (json!({"drive": 0, "path": dir.join("fifo")}), "image"),
        (json!({"drive": 0, "path": empty}), "image"),
        (json!({"drive": 0, "path": "/dev/null"}), "image"),
        (json!({"drive": 1, "path": odd, "rw": true}), "image"),
        (json!({"drive": 0, "path": good, "rw": true}), "optical"),
        (json!({"drive": 0, "path": good, "kind": "disk"}), "wrong_kind"),
        (json!({"drive": 1, "path": good, "kind": "optical"}), "wrong_kind"),
        (json!({"drive": 0, "fd": true}), "descriptor"),
        (json!({"drive": "dc", "path": good}), "no_such_drive"),
    ] {
        let answer = peer.ask(&request(1, "insert", &params));
        let error = &answer["error"];
        assert_eq!(error["data"]["kind"], kind, "{params}: {answer}");
        for text in [&error["message"], &error["data"]["cure"]] {
            let text = text.as_str().unwrap();
            assert!(text.len() > 8 && !text.contains("; "), "{params}: {answer}");
        }
    }
    peer.call("insert", &json!({"drive": 0, "path": good}));
}

#[test]
fn eject_is_refused_while_the_host_prevents_removal_and_force_is_not() {
    let fake = Fake::start();
    let path = fake.image("a.iso", 4096);
    let mut peer = fake.connect();
    peer.call("insert", &json!({"drive": "cd", "path": path}));
    fake.mood(Mood::Prevented(true));
    assert_eq!(peer.refused("eject", &json!({"drive": "cd"})), "prevented");
    peer.call("eject", &json!({"drive": "cd", "force": true}));
}

#[test]
fn a_locked_drive_is_changed_by_the_holder_of_its_key_alone() {
    let fake = Fake::start();
    let path = fake.image("a.iso", 4096);
    let (mut holder, mut other) = (fake.connect(), fake.connect());
    let key = holder.call("lock", &json!({"drive": "cd"}))["key"].clone();
    assert!(key.as_str().unwrap().len() >= 16, "{key}");
    for (method, params) in [
        ("insert", json!({"drive": 0, "path": path})),
        ("eject", json!({"drive": 0})),
        ("eject", json!({"drive": 0, "force": true})),
        ("set", json!({"drive": 0, "stall": "never"})),
        ("lock", json!({"drive": 0})),
        ("lock", json!({"drive": 0, "key": "mine"})),
        ("unlock", json!({"drive": 0})),
        ("unlock", json!({"drive": 0, "key": "guess"})),
    ] {
        assert_eq!(other.refused(method, &params), "locked", "{method} {params}");
    }
    holder.call("insert", &json!({"drive": 0, "path": path, "key": key}));
    let state = other.call("state", &json!({}));
    assert_eq!((&state["drives"][0]["locked"], &state["drives"][1]["locked"]), (&json!(true), &json!(false)));
    other.call("unlock", &json!({"drive": 0, "force": true}));
    other.call("eject", &json!({"drive": 0}));
}

#[test]
fn a_lock_outlives_its_client_and_is_taken_up_with_the_key() {
    let fake = Fake::start();
    fake.connect().call("lock", &json!({"drive": 0, "key": "k"}));
    let mut later = fake.connect();
    assert_eq!(later.refused("eject", &json!({"drive": 0})), "locked");
    later.call("lock", &json!({"drive": 0, "key": "k"}));
    later.call("unlock", &json!({"drive": 0, "key": "k"}));
}

#[test]
fn settings_that_depend_on_an_empty_drive_say_so() {
    let fake = Fake::start();
    let path = fake.image("a.img", 4096);
    let mut peer = fake.connect();
    peer.call("set", &json!({"drive": 1, "kind": "optical"}));
    assert_eq!(peer.refused("set", &json!({"drive": 1, "rw": true})), "optical");
    peer.call("insert", &json!({"drive": 1, "path": path}));
    assert_eq!(peer.refused("set", &json!({"drive": 1, "kind": "disk"})), "inserted");
    peer.call("set", &json!({"drive": 1, "stall": "never"}));
}

#[test]
fn a_replug_that_cannot_be_says_why() {
    let fake = Fake::start();
    fake.replug_fails.store(true, Ordering::Relaxed);
    let answer = fake.connect().ask(&request(1, "replug", &json!({})));
    assert_eq!(answer["error"]["code"], ErrorKind::Replug.code());
    assert_eq!(answer["error"]["message"], "the gadget is somebody else's");
    assert_eq!(answer["error"]["data"]["cure"], "replug it there");
}

#[test]
fn one_replug_at_a_time_and_the_server_ends_after_it() {
    let mut fake = Fake::start();
    let mut peer = fake.connect();
    let gate = Arc::clone(&fake.replug_gate);
    let held = gate.lock();
    peer.send_line(&request(1, "replug", &json!({})));
    assert_eq!(fake.daemon.recv_timeout(PATIENCE).unwrap(), "replug");
    assert_eq!(peer.refused("replug", &json!({})), "busy");
    let stopper = std::thread::spawn(move || {
        fake.stop_server();
        fake.daemon.try_iter().collect::<Vec<_>>()
    });
    // The connection ends, and the replug is still under way.
    assert_eq!(peer.receive(), None);
    drop(held);
    assert_eq!(stopper.join().unwrap(), ["replugged"]);
}

#[test]
fn a_subscriber_gets_what_it_chose_and_no_more() {
    let fake = Fake::start();
    let mut peer = fake.connect();
    let event = |drive| Event::FirstRead { drive: DriveIndex(drive), lba: 16 };
    fake.events.publish(event(9));
    assert_eq!(
        peer.call("subscribe", &json!({"events": ["reset", "first_read"]}))["events"],
        json!(["first_read", "reset"])
    );
    fake.events.publish(Event::Suspended { function: "usb0".to_owned() });
    fake.events.publish(event(1));
    fake.events.publish(Event::Reset { function: "usb0".to_owned() });
    assert_eq!(peer.receive().unwrap()["params"], json!({"event": "first_read", "drive": 1, "lba": 16}));
    assert_eq!(peer.receive().unwrap()["params"]["event"], "reset");
    assert_eq!(peer.refused("subscribe", &json!({"events": ["inserted", "lunch"]})), "invalid_params");
    peer.call("subscribe", &json!({"events": []}));
    fake.events.publish(event(1));
    peer.check_alive();
}

#[test]
fn requests_whose_thread_dies_are_answered() {
    let fake = Fake::start();
    let mut peer = fake.connect();
    fake.mood(Mood::Deaf);
    peer.send_line(&request(1, "eject", &json!({"drive": 0})));
    peer.send_line(&request(2, "state", &json!({})));
    // Answered by the server, which has passed the other two on by then.
    peer.check_alive();
    fake.mood(Mood::Dead);
    for id in [1, 2] {
        let answer = peer.receive().unwrap();
        assert_eq!(
            (&answer["id"], &answer["error"]["data"]["kind"]),
            (&json!(id), &json!("stopped")),
            "{answer}"
        );
    }
}

#[test]
fn a_client_that_sends_and_closes_its_side_still_gets_its_answers() {
    let fake = Fake::start();
    let mut peer = fake.connect();
    peer.send_line(&request(1, "state", &json!({})));
    peer.send_line(&request(2, "version", &json!({})));
    peer.stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut ids = [peer.receive().unwrap()["id"].clone(), peer.receive().unwrap()["id"].clone()];
    ids.sort_by_key(|id| id.as_u64());
    assert_eq!(ids, [json!(1), json!(2)]);
    assert_eq!(peer.receive(), None);
}

#[test]
fn shutdown_answers_first_and_the_socket_goes_with_the_server() {
    let mut fake = Fake::start();
    let mut peer = fake.connect();
    peer.call("shutdown", &json!({}));
    assert_eq!(fake.daemon.recv_timeout(PATIENCE).unwrap(), "shutdown");
    fake.stop_server();
    assert_eq!(peer.receive(), None);
    assert!(!fake.socket().exists());
}
