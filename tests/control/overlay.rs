//! Overlays over the control socket and by the command line: what becomes of a host's writes, and of the drive meanwhile.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use ringdrive::media::overlay::Place;
use ringdrive::media::{Access, Extent, Image, Medium};
use ringdrive::units::{BlockSize, ByteLen, ByteOffset, ByteRange};
use serde_json::{Value, json};

use crate::fake::{Fake, Mood};

const LEN: u64 = 1 << 20;
const WRITTEN: [u8; 4096] = [7; 4096];

impl Fake {
    /// An image of which a host has overwritten the second 4096 bytes, by an overlay.
    fn written(&self) -> (PathBuf, PathBuf) {
        let (base, file) = (self.image("golden.img", LEN), self.dir.path().join("overlay.qcow2"));
        let image = Image::open(&base, Access::ReadOnly, BlockSize::B512).unwrap();
        let place = Place::File(file.clone());
        let overlay = self.overlays.open(Box::new(image), &base, &place).unwrap();
        let range = ByteRange::new(ByteOffset(4096), ByteLen(4096)).unwrap();
        let Extent::File { file: to, offset, .. } = overlay.map_write(range) else { panic!("not at hand") };
        to.write_all_at(&WRITTEN, offset.0).unwrap();
        assert_eq!(overlay.written(range), Ok(ByteLen(4096)));
        (base, file)
    }

    fn image_in(&self, drive: usize) -> Value {
        let state: Value = serde_json::from_str(&self.says(&["--json", "state"])).unwrap();
        state["drives"][drive]["image"].clone()
    }
}

fn holds_what_was_written(path: &std::path::Path) -> bool {
    let bytes = fs::read(path).unwrap();
    bytes.len() == 1 << 20 && bytes[4096..8192] == WRITTEN && !bytes[8192..].contains(&7)
}

#[test]
fn what_was_written_is_shown_copied_dropped_or_kept() {
    let fake = Fake::start();
    let (base, file) = fake.written();
    let insert = ["insert", "flash", "golden.img", "--overlay", "overlay.qcow2"];
    let said = fake.says(&insert);
    assert!(said.contains("with an overlay"), "{said}");
    let overlay = json!({"file": file, "temporary": false, "written": 4096});
    assert_eq!(fake.image_in(1)["overlay"], overlay);
    assert_eq!(fake.image_in(1)["rw"], true);
    let said = fake.says(&["overlay", "status", "flash"]);
    assert!(said.contains("written  4.0 kB") && said.contains("golden.img"), "{said}");

    fake.says(&["overlay", "export", "flash", "copy.img"]);
    assert!(holds_what_was_written(&fake.dir.path().join("copy.img")));
    fake.fails(&["overlay", "export", "flash", "copy.img"], 1, "exists already");

    fake.mood(Mood::Prevented(true));
    for action in ["discard", "commit"] {
        fake.fails(&["overlay", action, "flash"], 1, "prevents");
    }
    fake.fails(&["overlay", "export", "flash", "other.img"], 1, "in use");
    fake.mood(Mood::Prevented(false));
    assert_eq!(fake.image_in(1)["overlay"], overlay, "refused, it is as it was");

    fake.says(&["overlay", "commit", "flash"]);
    assert!(holds_what_was_written(&base));
    assert_eq!(fake.image_in(1)["overlay"]["written"], 0);
    fake.says(&["eject", "flash"]);

    fs::remove_file(&file).unwrap();
    let (base, _) = fake.written();
    fake.says(&insert);
    fake.says(&["overlay", "discard", "flash"]);
    assert_eq!(fake.image_in(1)["overlay"]["written"], 0);
    assert!(fs::read(base).unwrap().iter().all(|byte| *byte == 0));
}

#[test]
fn a_file_in_no_drive_needs_no_daemon() {
    let mut fake = Fake::start();
    let (base, _) = fake.written();
    fake.stop_server();
    // What the daemon knew is where this user may not look, or not there; the file says what was stored.
    let image = Image::open(&base, Access::ReadOnly, BlockSize::B512).unwrap();
    drop(fake.overlays.open(Box::new(image), &base, &Place::File(fake.dir.path().join("overlay.qcow2"))));
    let said = fake.says(&["overlay", "status", "./overlay.qcow2"]);
    assert!(said.contains("written  4.0 kB"), "{said}");
    fake.says(&["overlay", "export", "./overlay.qcow2", "copy.img"]);
    assert!(holds_what_was_written(&fake.dir.path().join("copy.img")));
    let said = fake.says(&["overlay", "commit", "./overlay.qcow2"]);
    assert!(said.contains("4.0 kB written"), "{said}");
    assert!(holds_what_was_written(&base));
    fake.says(&["overlay", "discard", "./overlay.qcow2"]);
    fake.fails(&["overlay", "status", "./golden.img"], 1, "no qcow2 file");
}

#[test]
fn a_temporary_overlay_is_gone_with_the_eject_and_can_be_committed() {
    let fake = Fake::start();
    let base = fake.image("golden.img", LEN);
    fake.says(&["insert", "flash", "golden.img", "--overlay", "tmp"]);
    assert_eq!(fake.image_in(1)["overlay"]["temporary"], true);
    let file = fake.image_in(1)["overlay"]["file"].as_str().map(PathBuf::from).unwrap();
    assert!(File::open(&file).is_ok());
    fake.says(&["overlay", "commit", "flash"]);
    assert!(!file.exists() && base.exists());
    assert_eq!(fake.image_in(1)["overlay"]["temporary"], true);
    let file = fake.image_in(1)["overlay"]["file"].as_str().map(PathBuf::from).unwrap();
    fake.says(&["eject", "flash"]);
    assert!(!file.exists());
}

#[test]
fn what_cannot_have_an_overlay_is_told_why() {
    let fake = Fake::start();
    fake.image("golden.img", LEN);
    fake.fails(&["insert", "cd", "golden.img", "--overlay", "tmp"], 1, "optical");
    fake.fails(&["insert", "flash", "http://127.0.0.1/a", "--overlay", "tmp"], 2, "--keep");
    fake.image("other.img", LEN);
    fake.fails(&["insert", "flash", "golden.img", "--overlay", "other.img"], 1, "no qcow2 file");
    fake.fails(&["insert", "flash", "golden.img", "--overlay", "golden.img"], 1, "in use");
    fake.says(&["insert", "flash", "golden.img"]);
    fake.fails(&["overlay", "status", "flash"], 1, "no overlay");
    fake.fails(&["overlay", "discard", "flash"], 1, "no overlay");
    let mut peer = fake.connect();
    let relative = json!({"drive": "flash", "path": "/golden.img", "overlay": "a"});
    assert_eq!(peer.refused("insert", &relative), "invalid_params");
    let descriptor = json!({"drive": "flash", "fd": true, "overlay": "tmp"});
    assert_eq!(peer.refused("insert", &descriptor), "invalid_params");
}
