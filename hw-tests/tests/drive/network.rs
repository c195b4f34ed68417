//! Images on file servers: kernel nfsd and Samba, mounted as plain directories.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use hw_tests::board::Board;
use hw_tests::host::Caching;
use hw_tests::image;
use hw_tests::nfs::{Server, Version};
use hw_tests::rig::{Backend, Drive, Rig, Setup};
use hw_tests::samba::Samba;
use hw_tests::scsi;

use crate::{Case, DAEMON};

pub(crate) const CASES: &[Case] = &[
    Case { name: "a_cd_over_nfs_3_and_4_is_read_whole", on: DAEMON, run: nfs },
    Case { name: "a_cd_over_cifs_is_read_whole", on: DAEMON, run: cifs },
];

const MIB: u64 = 24;

/// As long as a name may be, with all that is awkward in it.
fn awkward_name() -> String {
    let mut name = "Ünïcødé 光盘 100% %41 'x' & y ".to_owned();
    name.push_str(&"_".repeat(251 - name.len()));
    name + ".iso"
}

fn nfs(board: &Board, backend: Backend) -> Result<()> {
    let mut server = Server::start()?;
    let name = awkward_name();
    image::random(server.file(&name), 41, MIB)?;
    let wanted = image::sha_of_file(&server.file(&name))?;
    for (mount, version) in [("v3", Version::V3), ("v42", Version::V42)] {
        let dir = server.mount(mount, version, "hard")?;
        read_whole(board, backend, &dir.join(&name), wanted).with_context(|| format!("NFS {version:?}"))?;
    }
    Ok(())
}

fn cifs(board: &Board, backend: Backend) -> Result<()> {
    let scratch = board.scratch()?;
    let mut server = Samba::start(&scratch)?;
    let name = awkward_name();
    let wanted = image::sha_of_file(&image::random(server.file(&name), 42, MIB)?)?;
    let dir = server.mount("whole", "hard")?;
    read_whole(board, backend, &dir.join(&name), wanted)
}

/// Inserted, read twice, shown and ejected: in the file's own directory, and in one deep below.
fn read_whole(board: &Board, backend: Backend, path: &Path, wanted: image::Sha) -> Result<()> {
    let mut rig = Rig::start(board, backend, &Setup::of([Drive::optical()]))?;
    let lun = rig.lun(0)?;
    scsi::drain_attentions(&lun)?;
    for path in [path.to_owned(), deep_below(path)?] {
        rig.insert(0, &path)?;
        scsi::drain_attentions(&lun)?;
        fs::write("/proc/sys/vm/drop_caches", "3")?;
        for caching in [Caching::Direct, Caching::Buffered] {
            let theirs = lun.sha(caching)?;
            ensure!(theirs == wanted, "{caching:?}: the host read {theirs:?}, the image is {wanted:?}");
        }
        let state = rig.state()?;
        let image = &state["drives"][0]["image"];
        ensure!(image["name"] == path.display().to_string(), "shown as {image}");
        ensure!(image["source"] == "online", "shown as {image}");
        lun.settle()?;
        let said = rig.daemon()?.cli(&["eject", "cd"])?;
        ensure!(said.contains(&*path.file_name().unwrap_or_default().to_string_lossy()), "ejected: {said}");
    }
    rig.stop()
}

/// Another name of the file, ten directories of 90 bytes down.
fn deep_below(path: &Path) -> Result<PathBuf> {
    let mut dir = path.parent().context("a file at the root")?.to_owned();
    dir.extend((0..10).map(|depth| format!("{depth} {}", "ö".repeat(44))));
    fs::create_dir_all(&dir)?;
    let deep = dir.join(path.file_name().context("no name")?);
    if !deep.exists() {
        fs::hard_link(path, &deep)?;
    }
    Ok(deep)
}
