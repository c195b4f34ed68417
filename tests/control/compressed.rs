//! Compressed images over the control socket and by the command line.

use std::fs;
use std::process::Command;

use serde_json::json;

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
