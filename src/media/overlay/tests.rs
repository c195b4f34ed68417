//! Overlays on real files, with qemu-img as the judge of them.

use std::{
    fs,
    os::unix::fs::FileExt,
    time::{Duration, Instant},
};

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::media::{
    Access, Image,
    judge::{self, must},
};

struct Bench {
    dir: TempDir,
    overlays: Arc<Overlays>,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let overlays = Overlays::new(dir.path().join("cache"), dir.path().join("run"));
        Self { dir, overlays }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    /// A base of `len` bytes, of which the first and last megabyte hold something.
    fn base(&self, len: u64) -> File {
        let options =
            File::options().read(true).write(true).create(true).truncate(true).open(self.path("base"));
        let file = options.unwrap();
        file.set_len(len).unwrap();
        let part = len.min(1 << 20);
        let bytes: Vec<u8> = (0..part).map(|n| u8::try_from(n % 251).unwrap() | 1).collect();
        file.write_all_at(&bytes, 0).unwrap();
        file.write_all_at(&bytes, len - part).unwrap();
        file
    }

    fn try_open(&self) -> Result<Overlay, OverlayError> {
        let base = Image::open(&self.path("base"), Access::ReadOnly, BlockSize::B512).unwrap();
        let place = Place::File(self.path("overlay"));
        self.overlays.open(Box::new(base), &self.path("base"), &place)
    }

    fn open(&self) -> Overlay {
        self.try_open().unwrap()
    }

    fn check(&self) {
        must("qemu-img", &["check", &self.text("overlay")]);
    }
}

fn range(start: u64, len: u64) -> ByteRange {
    ByteRange::new(ByteOffset(start), ByteLen(len)).unwrap()
}

/// Writes as the drive and the ring do.
fn write(overlay: &Overlay, at: u64, bytes: &[u8]) {
    let mut range = range(at, ByteLen::from(bytes.len()).0);
    let until = Instant::now() + Duration::from_secs(10);
    loop {
        match overlay.map_write(range) {
            Extent::File { file, offset, len } => {
                assert_eq!(len, range.len());
                let rest = bytes.len() - len.to_usize();
                file.write_all_at(&bytes[rest..], offset.0).unwrap();
                let here = overlay.written(range).unwrap();
                assert_eq!(here, range.len());
                range = range.split_at(here).1;
                if range.is_empty() {
                    return;
                }
            }
            Extent::Pending { .. } if Instant::now() < until => std::thread::yield_now(),
            other => panic!("{other:?}"),
        }
    }
}

fn read(overlay: &Overlay, at: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    overlay.shared.read(range(at, ByteLen::from(len).0), &mut bytes).unwrap();
    bytes
}

#[test]
fn qemu_finds_nothing_wrong_whatever_the_size_and_reads_what_was_written() {
    for len in [512, 1 << 20, 2_362_232_012 / 512 * 512, 8_500_000_256 / 512 * 512, 3 << 40] {
        let bench = Bench::new();
        bench.base(len);
        let overlay = bench.open();
        bench.check_when_free(overlay);
        let overlay = bench.open();
        assert_eq!((overlay.len(), overlay.writable()), (ByteLen(len), true));
        write(&overlay, 0, &[0xa5; 512]);
        write(&overlay, len - 512, &[0x5a; 512]);
        assert_eq!(read(&overlay, len - 512, 512), [0x5a; 512]);
        overlay.shared.make_durable(&*overlay.shared.file).unwrap();
        bench.check_when_free(overlay);
        let (last, overlay) = ((len - 512).to_string(), bench.text("overlay"));
        if len > 4 << 20 {
            must("qemu-io", &["-r", "-f", "qcow2", "-c", "read -P 0xa5 0 512", &overlay]);
            must("qemu-io", &["-r", "-f", "qcow2", "-c", "read -P 0 1M 512", &overlay]);
        }
        must("qemu-io", &["-r", "-f", "qcow2", "-c", &format!("read -P 0x5a {last} 512"), &overlay]);
    }
}

impl Bench {
    fn check_when_free(&self, overlay: Overlay) {
        drop(overlay);
        self.check();
    }
}

#[test]
fn what_a_killed_daemon_had_written_is_there_and_the_file_is_sound() {
    let bench = Bench::new();
    bench.base(1 << 20);
    let overlay = bench.open();
    write(&overlay, 4096, &[7; 8192]);
    // Without a store: a daemon that is killed stores nothing either.
    drop(overlay);
    bench.check();
    let overlay = bench.open();
    assert_eq!(read(&overlay, 4096, 8192), [7; 8192]);
    drop(overlay);
    must("qemu-io", &["-r", "-f", "qcow2", "-c", "read -P 7 4k 8k", &bench.text("overlay")]);
    assert_eq!(fs::read_dir(bench.path("run")).unwrap().count(), 0, "nothing is to be noted of it any more");
}

#[test]
fn a_base_that_changed_and_files_of_others_are_refused() {
    let bench = Bench::new();
    bench.base(1 << 20);
    let overlay = bench.open();
    let used = bench.try_open().unwrap_err();
    assert_eq!(used.kind, OverlayErrorKind::InUse);
    write(&overlay, 0, &[1; 512]);
    drop(overlay);
    let file = bench.base(1 << 20);
    file.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
    assert_eq!(bench.try_open().unwrap_err().kind, OverlayErrorKind::BaseChanged);
    offline::discard(&bench.path("overlay"), &bench.path("run")).unwrap();
    assert_eq!(read(&bench.open(), 0, 1), [1], "byte 0 of the base is 1");
    assert_eq!(bench.open().shared.store.bytes_here(), ByteLen(0));

    fs::rename(bench.path("base"), bench.path("other")).unwrap();
    bench.base(1 << 20);
    fs::rename(bench.path("base"), bench.path("third")).unwrap();
    let third = Image::open(&bench.path("third"), Access::ReadOnly, BlockSize::B512).unwrap();
    let place = Place::File(bench.path("overlay"));
    let other = bench.overlays.open(Box::new(third), &bench.path("third"), &place).unwrap_err();
    assert!(matches!(other.kind, OverlayErrorKind::OtherBase(_)), "{other}");

    fs::rename(bench.path("third"), bench.path("base")).unwrap();
    fs::write(bench.path("overlay"), b"not a disk").unwrap();
    assert_eq!(bench.try_open().unwrap_err().kind, OverlayErrorKind::Foreign(Foreign::NoQcow2));
    assert_eq!(fs::read(bench.path("overlay")).unwrap(), b"not a disk");
    let (base, overlay) = (bench.text("base"), bench.text("overlay"));
    if judge::run("qemu-img", &["create", "-q", "-f", "qcow2", "-b", &base, "-F", "raw", &overlay]).is_some()
    {
        assert_eq!(bench.try_open().unwrap_err().kind, OverlayErrorKind::Foreign(Foreign::Layout));
    }
}

#[test]
fn a_commit_makes_the_base_what_the_host_saw_and_one_broken_off_is_finished() {
    let bench = Bench::new();
    bench.base(3 << 20);
    let overlay = bench.open();
    write(&overlay, 1 << 20, &[9; 1 << 20]);
    write(&overlay, (3 << 20) - 512, &[8; 512]);
    let seen = read(&overlay, 0, 3 << 20);
    drop(overlay);
    let (path, run) = (bench.path("overlay"), bench.path("run"));
    let stopped = offline::commit(&path, &run, &mut |done, _| done == 0).unwrap_err();
    assert_eq!(stopped.kind, OverlayErrorKind::Cancelled);
    assert_eq!(bench.try_open().unwrap_err().kind, OverlayErrorKind::Committing);
    bench.check();
    offline::export(&path, &bench.path("copy"), &run, &mut |_, _| true).unwrap();
    assert!(fs::read(bench.path("copy")).unwrap() == seen, "an export of a half commit is what the host saw");
    let mut steps = Vec::new();
    let done = offline::commit(&path, &run, &mut |done, total| {
        steps.push((done, total));
        true
    });
    assert_eq!(done.unwrap(), (1 << 20) + 512);
    assert_eq!(steps.last(), Some(&((1 << 20) + 512, (1 << 20) + 512)));
    assert!(fs::read(bench.path("base")).unwrap() == seen);
    assert_eq!(bench.open().shared.store.bytes_here(), ByteLen(0));
    bench.check();
}

#[test]
fn an_export_while_the_host_writes_is_no_file_and_one_of_a_quiet_drive_is_what_it_sees() {
    let bench = Bench::new();
    bench.base(4 << 20);
    let overlay = bench.open();
    write(&overlay, 512, &[3; 1024]);
    let held = bench.overlays.hold(&bench.path("overlay")).unwrap();
    let to = bench.path("copy");
    let written = held.export(&to, &mut |done, _| {
        if done > 1 << 20 {
            write(&overlay, 0, &[4; 512]);
        }
        true
    });
    assert_eq!(written.unwrap_err().kind, OverlayErrorKind::Written);
    assert!(!to.exists());
    held.export(&to, &mut |_, _| true).unwrap();
    assert!(fs::read(&to).unwrap() == read(&overlay, 0, 4 << 20));
    assert!(matches!(held.export(&to, &mut |_, _| true).unwrap_err().kind, OverlayErrorKind::Exists(_)));
}

#[test]
fn a_temporary_one_goes_with_the_eject_unless_it_is_kept() {
    let bench = Bench::new();
    bench.base(1 << 20);
    let open = || {
        let base = Image::open(&bench.path("base"), Access::ReadOnly, BlockSize::B512).unwrap();
        bench.overlays.open(Box::new(base), &bench.path("base"), &Place::Temporary).unwrap()
    };
    let files = || fs::read_dir(bench.path("cache")).unwrap().count();
    let overlay = open();
    write(&overlay, 0, &[1; 512]);
    assert_eq!((files(), overlay.file_for_sync().is_none()), (1, true));
    drop(overlay);
    assert_eq!(files(), 0);
    let overlay = open();
    bench.overlays.hold(&overlay.shared.path).unwrap().keep(true);
    drop(overlay);
    assert_eq!(files(), 1);
    // What is left behind goes with the next.
    let _overlay = open();
    assert_eq!(files(), 1);
}

#[test]
fn stores_end_with_their_tickets_and_make_the_file_say_what_is_here() {
    let bench = Bench::new();
    bench.base(1 << 20);
    let mut overlay = bench.open();
    let (tell, woken) = crossbeam_channel::bounded(8);
    overlay.set_waker(Waker::new(move || {
        let _ = tell.try_send(());
    }));
    write(&overlay, 0, &[1; 512]);
    assert!(overlay.shared.store.is_dirty());
    let store = overlay.own_store().unwrap();
    store.begin(41);
    let ended = std::iter::repeat_with(|| {
        woken.recv_timeout(Duration::from_secs(10)).unwrap();
        store.next()
    });
    let (ticket, result) = ended.flatten().next().unwrap();
    assert_eq!((ticket, result.is_ok()), (41, true));
    assert!(!overlay.shared.store.is_dirty());
}

/// Not whole subclusters of any size.
const DISK: u64 = 95 * 1024 + 512;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// With the subclusters of large disks most of these writes tear two of them.
    #[test]
    fn the_disk_is_a_flat_one_for_the_host_and_for_qemu(
        cluster_bits in 14..19_u32,
        writes in prop::collection::vec((0..180_u64, 1..14_u64, 1..255_u8), 1..30),
    ) {
        let bench = Bench::new();
        bench.base(DISK);
        let base = Image::open(&bench.path("base"), Access::ReadOnly, BlockSize::B512).unwrap();
        let mut head = offline::Origin::of(&base, &bench.path("base")).head(&bench.path("overlay")).unwrap();
        head.geometry = layout::Geometry::with(ByteLen(DISK), cluster_bits).unwrap();
        drop(offline::make(&bench.path("overlay"), &head).unwrap());
        drop(base);
        let mut expected = fs::read(bench.path("base")).unwrap();
        let overlay = bench.open();
        for (block, count, byte) in writes {
            let count = count.min(DISK / 512 - block);
            let (at, len) = (usize::try_from(block * 512).unwrap(), usize::try_from(count * 512).unwrap());
            write(&overlay, block * 512, &vec![byte; len]);
            expected[at..at + len].fill(byte);
        }
        prop_assert!(read(&overlay, 0, expected.len()) == expected);
        overlay.shared.make_durable(&*overlay.shared.file).unwrap();
        drop(overlay);
        bench.check();
        fs::write(bench.path("expected"), &expected).unwrap();
        let (overlay, expected) = (bench.text("overlay"), bench.text("expected"));
        must("qemu-img", &["compare", "-f", "raw", "-F", "qcow2", &expected, &overlay]);
    }
}
