//! Disks in qcow2 files over the control socket and by the command line.

use std::fs;
use std::process::Command;

use serde_json::json;

use crate::fake::{Fake, request};

/// Whether qemu-img has done it.
fn qemu_img(fake: &Fake, args: &[&str]) -> bool {
    match Command::new("qemu-img").args(args).current_dir(fake.dir.path()).output() {
        Ok(ran) => {
            assert!(ran.status.success(), "{args:?}: {}", String::from_utf8_lossy(&ran.stderr));
            true
        }
        Err(error) => {
            eprintln!("skipped: no qemu-img: {error}");
            false
        }
    }
}

#[test]
fn the_disk_in_a_qcow2_file_is_inserted_with_what_is_below_it_if_that_is_allowed() {
    let fake = Fake::start();
    fake.image("disk.img", 3 << 20);
    // By its magic, whatever its name.
    if !qemu_img(&fake, &["convert", "-f", "raw", "-O", "qcow2", "disk.img", "image"]) {
        return;
    }
    let mut peer = fake.connect();
    peer.ask(&request(1, "set", &json!({"drive": "flash", "rw": true})));
    let rw = |options: &[&str]| {
        let said = fake.says(&[&["--json", "insert", "flash", "image"], options].concat());
        assert!(said.contains("\"bytes\":3145728"), "{said}");
        fake.says(&["eject", "flash"]);
        said.contains("\"rw\":true")
    };
    assert!(rw(&[]) && rw(&["--rw"]) && rw(&["--send-fd", "--rw"]));
    assert!(!rw(&["--ro"]) && !rw(&["--send-fd"]));
    qemu_img(&fake, &["convert", "-f", "raw", "-O", "qcow2", "-o", "extended_l2=on", "disk.img", "image"]);
    assert!(!rw(&[]), "what cannot be written to is read");
    fake.fails(&["insert", "flash", "image", "--rw"], 1, "--overlay");
    let len = fs::metadata(fake.dir.path().join("image")).unwrap().len();
    let said = fake.says(&["--json", "insert", "flash", "image", "--raw", "--ro"]);
    assert!(said.contains(&format!("\"bytes\":{len}")), "{said}");
    fake.says(&["eject", "flash"]);

    qemu_img(&fake, &["create", "-f", "qcow2", "-b", "image", "-F", "qcow2", "top"]);
    fake.fails(&["insert", "cd", "top"], 1, "--backing");
    fake.says(&["insert", "cd", "top", "--backing"]);
    fake.says(&["eject", "cd"]);
    qemu_img(&fake, &["convert", "-f", "raw", "-O", "vmdk", "disk.img", "other"]);
    fake.fails(&["insert", "cd", "other"], 1, "VMDK");
    fake.says(&["insert", "cd", "other", "--raw"]);
    let url = json!({"drive": "flash", "url": "http://127.0.0.1/a", "backing": true});
    assert_eq!(peer.refused("insert", &url), "invalid_params");
}

#[test]
fn an_overlay_over_a_qcow2_image_is_dropped_and_copied_and_not_committed() {
    let fake = Fake::start();
    fake.image("disk.img", 1 << 20);
    let create = ["create", "-f", "qcow2", "-b", "disk.img", "-F", "raw", "golden"];
    if !qemu_img(&fake, &create) {
        return;
    }
    fake.fails(&["insert", "flash", "golden", "--overlay", "tmp"], 1, "--backing");
    for overlay in ["tmp", "overlay.qcow2"] {
        let said = fake.says(&["insert", "flash", "golden", "--overlay", overlay, "--backing"]);
        assert!(said.contains("overlay"), "{said}");
        fake.fails(&["overlay", "commit", "flash"], 1, "export");
        let copy = format!("{overlay}.copy");
        fake.says(&["overlay", "export", "flash", &copy]);
        assert_eq!(fs::metadata(fake.dir.path().join(copy)).unwrap().len(), 1 << 20);
        // Opened again as it was.
        fake.says(&["overlay", "discard", "flash"]);
        fake.fails(&["insert", "flash", "golden"], 1, "eject it first");
        fake.says(&["eject", "flash"]);
    }
    qemu_img(&fake, &["check", "overlay.qcow2"]);
    fake.fails(&["overlay", "commit", "./overlay.qcow2"], 1, "qemu-img commit");
    let said = fake.says(&["insert", "flash", "overlay.qcow2", "--backing"]);
    assert!(said.contains("1.0 MB, read-only"), "{said}");
}
