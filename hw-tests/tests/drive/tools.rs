//! sg3_utils, an initiator and decoder that knows the standards and not us: what it makes of a disk and of a CD drive.

use anyhow::{Result, ensure};
use hw_tests::board::Board;
use hw_tests::host::Lun;
use hw_tests::image::{self, MIB};
use hw_tests::rig::{Backend, Drive, Rig, Setup};
use hw_tests::{scsi, tool};

use crate::{Case, DAEMON};

pub(crate) const CASES: &[Case] = &[
    Case { name: "sg3_utils_reads_all_of_a_disk", on: DAEMON, run: disk },
    Case { name: "sg3_utils_reads_all_of_a_cd_drive", on: DAEMON, run: cd },
    Case { name: "sg3_utils_finds_a_disk_of_3_tib", on: DAEMON, run: large },
];

/// A command line, and what its output must have.
type Expected<'a> = (&'a str, &'a [&'a str], &'a [&'a str]);

/// One space for any run of them.
fn squeezed(text: &str) -> String {
    text.lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect::<Vec<_>>()
        .join("\n")
}

fn check(lun: &Lun, expected: &[Expected<'_>]) -> Result<()> {
    let mut faults = Vec::new();
    for (program, args, wanted) in expected {
        let sg = lun.sg.display().to_string();
        let said = tool::try_run(program, args.iter().copied().chain([sg.as_str()]))?;
        let text = squeezed(&said.text);
        eprintln!("XX {program} {args:?} {}\n{text}", said.status);
        let lacks: Vec<_> = wanted.iter().filter(|words| !text.contains(**words)).collect();
        if !said.ok() || !lacks.is_empty() {
            faults
                .push(format!("{program} {args:?} ended with {} and lacks {lacks:?}:\n{text}", said.status));
        }
    }
    ensure!(faults.is_empty(), "{}", faults.join("\n"));
    Ok(())
}

fn disk(board: &Board, backend: Backend) -> Result<()> {
    let scratch = board.scratch()?;
    let path = image::random(scratch.file("image"), 3, 8)?;
    let before = image::sha_of_file(&path)?;
    let drives = [Drive::disk().with(&path).writable(), Drive::optical()];
    let rig = Rig::start(board, backend, &Setup::of(drives))?;
    let lun = rig.lun(0)?;
    scsi::drain_attentions(&lun)?;
    check(&lun, DISK)?;
    rig.stop()?;
    let _ = before;
    Ok(())
}

const DISK: &[Expected<'_>] = &[
    ("sg_inq", &[], &[]),
    ("sg_inq", &["--descriptors"], &[]),
    ("sg_vpd", &[], &[]),
    ("sg_vpd", &["--page=sn"], &[]),
    ("sg_vpd", &["--page=di"], &[]),
    ("sg_vpd", &["--page=bl"], &[]),
    ("sg_vpd", &["--page=bdc"], &[]),
    ("sg_vpd", &["--page=lbpv"], &[]),
    ("sg_modes", &["--all"], &[]),
    ("sg_modes", &["--control=1", "--page=8"], &[]),
    ("sg_modes", &["--control=1", "--page=0xa"], &[]),
    ("sg_modes", &["--control=2", "--page=0x1c"], &[]),
    ("sg_modes", &["--llbaa"], &[]),
    ("sg_opcodes", &[], &[]),
    ("sg_opcodes", &["--opcode=0x42"], &[]),
    ("sg_opcodes", &["--opcode=0x9e,0x12"], &[]),
    ("sg_opcodes", &["--opcode=0x43"], &[]),
    ("sg_readcap", &[], &[]),
    ("sg_readcap", &["--long"], &[]),
    ("sg_luns", &[], &[]),
    ("sg_luns", &["--select=1"], &[]),
    ("sg_logs", &[], &[]),
    ("sg_logs", &["--list"], &[]),
    ("sg_verify", &["--lba=0", "--count=16384"], &[]),
    ("sg_sync", &[], &[]),
    ("sg_sync", &["--16"], &[]),
    ("sg_get_lba_status", &["--lba=0"], &[]),
    ("sg_requests", &[], &[]),
    ("sg_turs", &[], &[]),
    ("sg_persist", &["--in", "--report-capabilities"], &[]),
    ("sg_senddiag", &["--test"], &[]),
    ("sg_senddiag", &["--list"], &[]),
];

fn cd(board: &Board, backend: Backend) -> Result<()> {
    let scratch = board.scratch()?;
    let path = image::random(scratch.file("image"), 3, 8)?;
    let rig = Rig::start(board, backend, &Setup::of([Drive::optical().with(&path)]))?;
    let lun = rig.lun(0)?;
    scsi::drain_attentions(&lun)?;
    check(&lun, CD)?;
    rig.stop()
}

const CD: &[Expected<'_>] = &[
    ("sg_inq", &["--descriptors"], &[]),
    ("sg_vpd", &[], &[]),
    ("sg_vpd", &["--page=di"], &[]),
    ("sg_get_config", &[], &[]),
    ("sg_get_config", &["--rt=1"], &[]),
    ("sg_get_config", &["--rt=2", "--starting=0x1e"], &[]),
    ("sg_modes", &["--all"], &[]),
    ("sg_opcodes", &[], &[]),
    ("sg_readcap", &[], &[]),
    ("sg_luns", &[], &[]),
    ("sg_verify", &["--count=4096"], &[]),
    ("sg_turs", &[], &[]),
    ("sg_requests", &[], &[]),
];

fn large(board: &Board, backend: Backend) -> Result<()> {
    let scratch = board.scratch()?;
    let blocks: u64 = 3 << 31;
    let path = image::blank(scratch.file("image"), blocks * 512)?;
    let known = [0, (1 << 32) - 1, 1 << 32, blocks - 1];
    for block in known {
        image::poke(&path, block * 512, &image::noise(block, 512))?;
    }
    let rig = Rig::start(board, backend, &Setup::of([Drive::disk().with(&path).writable()]))?;
    let lun = rig.lun(0)?;
    scsi::drain_attentions(&lun)?;
    ensure!(lun.len() == blocks * 512, "the host sees {} bytes", lun.len());
    check(&lun, LARGE)?;
    for block in known {
        let bytes = lun.read_at(block * 512, 512)?;
        ensure!(bytes == image::noise(block, 512), "block {block} is not what was put there");
    }
    lun.write_at((blocks - 8) * 512, &image::noise(1, 4096))?;
    ensure!(
        image::peek(&path, (blocks - 8) * 512, 4096)? == image::noise(1, 4096),
        "the end was not written"
    );
    rig.stop()?;
    let _ = MIB;
    Ok(())
}

const LARGE: &[Expected<'_>] = &[
    ("sg_readcap", &["--brief"], &["0x180000000 0x200"]),
    ("sg_readcap", &["--16"], &[]),
    ("sg_get_lba_status", &["--lba=0x100000000"], &[]),
];
