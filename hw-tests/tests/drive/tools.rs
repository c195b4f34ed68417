//! sg3_utils, an initiator and decoder that knows the standards and not us: what it makes of a disk and of a CD drive.

use anyhow::{Result, ensure};
use hw_tests::board::Board;
use hw_tests::host::Lun;
use hw_tests::image;
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
    // sg_logs prints nothing of a list of pages that has but itself in it.
    let pages = scsi::data_in(&lun, &[0x4d, 0, 0, 0, 0, 0, 0, 0, 255, 0], 255)?;
    ensure!(pages == [0, 0, 0, 1, 0], "LOG SENSE told of the pages {pages:02x?}");
    ensure!(image::sha_of_file(&path)? == before, "a command that only looks has changed the image");
    rig.stop()
}

const DISK: &[Expected<'_>] = &[
    (
        "sg_inq",
        &["--descriptors"],
        &[
            "PQual=0 PDT=0 RMB=1 LU_CONG=0 hot_pluggable=0 version=0x06 [SPC-4]",
            "Resp_data_format=2",
            "length=96 (0x60) Peripheral device type: disk",
            "Vendor identification: RINGTEST\nProduct identification: Test disk\nProduct revision level: 0100",
            "SAM-5 (no version claimed)\nSPC-4 (no version claimed)\nSBC-3 (no version claimed)\n\
             USB Mass Storage Class Bulk-Only Transport, Revision 1.0",
        ],
    ),
    ("sg_inq", &["--page=sn"], &["Unit serial number: RINGTEST"]),
    ("sg_vpd", &[], &["[sv]", "[sn]", "[di]", "[bl]", "[bdc]", "[lbpv]"]),
    (
        "sg_inq",
        &["--page=di"],
        &[
            "designator_type: NAA, code_set: Binary\nassociated with the Addressed logical unit\n\
             NAA 3, Locally assigned:\n[0x3",
            "designator_type: T10 vendor identification, code_set: ASCII\n\
             associated with the Addressed logical unit\nvendor id: RINGTEST\n\
             vendor specific: Test disk RINGTEST",
            "designator_type: SCSI name string, code_set: UTF-8\n\
             associated with the Addressed logical unit\nSCSI name string:\nnaa.3",
        ],
    ),
    (
        "sg_vpd",
        &["--page=bl"],
        &[
            "(WSNZ): 1",
            "Maximum compare and write length: 8 blocks",
            "Maximum transfer length: 65535 blocks",
            "Maximum unmap LBA count: 1048576",
            "Maximum unmap block descriptor count: 255",
            "Optimal unmap granularity: 8 blocks",
            "Maximum write same length: 0xffff blocks",
        ],
    ),
    ("sg_inq", &["--page=bl"], &["Maximum unmap LBA count: 1048576"]),
    ("sg_inq", &["--page=bdc"], &["Non-rotating medium"]),
    ("sg_inq", &["--page=lbpv"], &["00 b2 00 04 00 e4 02 00"]),
    (
        "sg_vpd",
        &["--page=lbpv"],
        &[
            "(LBPU): 1",
            "(LBPWS): 1",
            "(LBPWS10): 1",
            "(LBPRZ): 1",
            "(ANC_SUP): 0",
            "Provisioning type: 2 (thin provisioned)",
        ],
    ),
    (
        "sg_modes",
        &["--all"],
        &[
            "medium type=0x00, WP=0, DpoFua=1, longlba=0",
            "00 00 00 40 00 00 00 02 00",
            "Read-Write error recovery, page_control: current\n00 01 0a",
            "Caching, page_control: current\n00 08 12 04",
            "Control, page_control: current\n00 0a 0a 00",
            "Informational exceptions control, page_control: current\n00 1c 0a 08",
        ],
    ),
    ("sg_modes", &["--control=1", "--page=8"], &["changeable\n00 08 12 04 00"]),
    ("sg_modes", &["--control=1", "--page=0xa"], &["changeable\n00 0a 0a 04 00 08"]),
    ("sg_modes", &["--control=2", "--page=0x1c"], &["default\n00 1c 0a 08"]),
    ("sg_modes", &["--llbaa"], &["longlba=1", "00 00 00 00 00 00 00 40 00 00 00 00 00 00 00 02 00"]),
    (
        "sg_opcodes",
        &[],
        &[
            "28 10 0,0 Read(10)",
            "42 10 0,0 Unmap",
            "9e 12 16 0,0 Get LBA status(16)",
            "89 16 0,0 Compare and write",
        ],
    ),
    (
        "sg_opcodes",
        &["--opcode=0x42"],
        &["Command is supported [conforming", "42 01 00 00 00 00 00 ff ff 00"],
    ),
    ("sg_opcodes", &["--opcode=0x43"], &["Command is NOT supported"]),
    (
        "sg_readcap",
        &["--long"],
        &[
            "prot_en=0",
            "lbpme=1, lbprz=1",
            "Last LBA=16383 (0x3fff), Number of logical blocks=16384\nLogical block length=512 bytes",
        ],
    ),
    ("sg_readcap", &["--brief"], &["0x4000 0x200"]),
    ("sg_luns", &[], &["Lun list length = 16", "0000000000000000\n0001000000000000"]),
    ("sg_luns", &["--select=1"], &["Lun list length = 0"]),
    ("sg_logs", &["--list"], &["Test disk"]),
    ("sg_verify", &["--lba=0", "--count=16384"], &[]),
    ("sg_sync", &[], &[]),
    ("sg_sync", &["--16", "--lba=16", "--count=16"], &[]),
    ("sg_get_lba_status", &["--lba=0"], &["LBA: 0x0000000000000000 blocks: 16384 mapped"]),
    ("sg_requests", &[], &["Sense key: No Sense"]),
    ("sg_turs", &[], &[]),
    ("sg_persist", &["--in", "--report-capabilities"], &["(CRH): 1", "(PTPL_C): 0", "Write Exclusive: 1"]),
    ("sg_senddiag", &["--test"], &["Default self-test returned GOOD status"]),
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
    (
        "sg_inq",
        &["--descriptors"],
        &[
            "PDT=5 RMB=1",
            "Product identification: Test CD",
            "MMC-6 (no version claimed)\nUSB Mass Storage Class Bulk-Only Transport, Revision 1.0",
        ],
    ),
    ("sg_vpd", &[], &["[sv]", "[sn]", "[di]"]),
    ("sg_inq", &["--page=di"], &["vendor specific: Test CD RINGTEST"]),
    (
        "sg_get_config",
        &[],
        &[
            "Current profile: CD-ROM",
            "profile: BD-ROM , currentP=0\nprofile: DVD-ROM , currentP=0\nprofile: CD-ROM , currentP=1",
            "Physical interface standard: USB",
            "Loading mechanism: Tray type\nLoad=1, Eject=1, Prevent jumper=0, Lock=1",
            "Random readable feature\nversion=0, persist=0, current=1 [0x10]\nLogical block size=0x800",
            "Multi-read feature\nversion=0, persist=0, current=1 [0x1d]",
            "CD read feature\nversion=2, persist=0, current=1 [0x1e]",
            "DVD read feature\nversion=1, persist=0, current=0 [0x1f]",
            "BD read feature\nversion=0, persist=0, current=0 [0x40]",
            "Power management feature\nversion=0, persist=1, current=1 [0x100]",
            "Real time streaming feature",
            "Drive serial number: RINGTEST",
        ],
    ),
    ("sg_get_config", &["--rt=1"], &["CD read feature"]),
    ("sg_get_config", &["--rt=2", "--starting=0x1e"], &["Features:\nCD read feature\nversion=2"]),
    (
        "sg_modes",
        &["--all"],
        &[
            "Block descriptor length=0",
            "Read-Write error recovery, page_control: current\n00 01 0a",
            "CD device parameters (obsolete), page_control: current\n00 0d 06",
            "CD audio, page_control: current\n00 0e 0e",
            "Power condition (mmc), page_control: current\n00 1a 0a",
            "Timeout and protect, page_control: current\n00 1d 0a",
            "MM capabilities and mechanical status (obsolete), page_control: current\n00 2a",
        ],
    ),
    ("sg_opcodes", &[], &["43 10 0,0 Read TOC/PMA/ATIP", "46 10 0,0 Get configuration", "be 12 0,0 Read CD"]),
    (
        "sg_readcap",
        &[],
        &["Last LBA=4095 (0xfff), Number of logical blocks=4096\nLogical block length=2048 bytes"],
    ),
    ("sg_luns", &[], &["Lun list length = 8", "0000000000000000"]),
    ("sg_verify", &["--count=4096"], &[]),
    ("sg_turs", &[], &[]),
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
    for block in known {
        let bytes = lun.read_at(block * 512, 512)?;
        ensure!(bytes == image::noise(block, 512), "block {block} is not what was put there");
    }
    lun.write_at((blocks - 8) * 512, &image::noise(1, 4096))?;
    ensure!(
        image::peek(&path, (blocks - 8) * 512, 4096)? == image::noise(1, 4096),
        "the end was not written"
    );
    check(&lun, LARGE)?;
    let unmapped = image::peek(&path, 512 << 32, 512)?;
    ensure!(unmapped.iter().all(|byte| *byte == 0), "the block behind 2 TiB was not unmapped");
    ensure!(image::peek(&path, 0, 512)? == image::noise(0, 512), "another block was unmapped");
    rig.stop()
}

const LARGE: &[Expected<'_>] = &[
    ("sg_readcap", &["--brief"], &["device capacity too large", "0x180000000 0x200"]),
    ("sg_readcap", &["--16"], &["Last LBA=6442450943 (0x17fffffff), Number of logical blocks=6442450944"]),
    ("sg_get_lba_status", &["--lba=0x100000000"], &["LBA: 0x0000000100000000 blocks: 8 mapped"]),
    ("sg_verify", &["--16", "--lba=0x17fffffff", "--count=1"], &[]),
    ("sg_unmap", &["--lba=0x100000000", "--num=8", "--force"], &[]),
];
