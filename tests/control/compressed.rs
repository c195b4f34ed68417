//! Compressed images over the control socket and by the command line.

use std::fs::{self, File};
use std::io::Read;
use std::process::Command;

use nix::pty::openpty;
use serde_json::json;

use crate::command_line::ringdrive;
use crate::fake::Fake;

#[test]
fn a_compressed_image_is_inserted_as_what_is_in_it_or_refused_with_the_cause() {
    let fake = Fake::start();
    let path = fake.image("disk.img", 1 << 20);
    // By its magic, whatever its name.
    let compressed = match Command::new("gzip").arg("-c").arg(&path).output() {
        Ok(output) if output.status.success() => output.stdout,
        other => return eprintln!("skipped: no gzip: {other:?}"),
    };
    let image = fake.dir.path().join("image");
    fs::write(&image, &compressed).unwrap();
    let mut peer = fake.connect();
    let set = json!({"drive": "flash", "rw": true});
    peer.ask(&crate::fake::request(1, "set", &set));
    let said = fake.says(&["insert", "flash", "image"]);
    assert!(said.contains("1.0 MB, read-only") && said.contains("/image"), "{said}");
    fake.says(&["eject", "flash"]);
    fake.fails(&["insert", "flash", "image", "--rw"], 1, "cannot be written to");
    fake.fails(&["insert", "flash", "image", "--overlay", "tmp"], 1, "nor have an overlay");
    fs::write(&image, &compressed[..compressed.len() / 2]).unwrap();
    fake.fails(&["insert", "cd", "image"], 1, "ends before it should");
}

#[test]
fn a_terminal_shows_how_far_it_is() {
    let fake = Fake::start();
    let path = fake.image("disk.img", 48 << 20);
    match Command::new("gzip").arg("-1").arg(&path).status() {
        Ok(status) if status.success() => {}
        other => return eprintln!("skipped: no gzip: {other:?}"),
    }
    let pty = openpty(None, None).unwrap();
    let insert = |stderr| {
        let mut command = ringdrive(&fake.socket());
        command.args(["insert", "flash"]).arg(path.with_extension("img.gz")).stderr(stderr).output()
    };
    assert!(insert(pty.slave).unwrap().status.success());
    let mut shown = Vec::new();
    // Ends with an error: there is nobody at the other side.
    let _ = File::from(pty.master).read_to_end(&mut shown);
    let shown = String::from_utf8_lossy(&shown);
    assert!(shown.starts_with('\r') && shown.contains(" %)"), "{shown:?}");
}
