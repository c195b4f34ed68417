//! Files that qemu-img has made, with qemu-img as the judge of what is in them, and files that nobody should have made.

mod hostile;
mod writing;

use std::{
    fs, io,
    os::unix::fs::{FileExt, symlink},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use tempfile::TempDir;

use super::*;
use crate::media::{
    Access, MediaErrorKind, await_last_stores,
    judge::{self, must},
    overlay::{Overlay, OverlayErrorKind, Overlays, Place},
};

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;

const IN_USE: Qcow2ErrorKind = Qcow2ErrorKind::Image(MediaErrorKind::InUse);

struct Bench {
    dir: TempDir,
    random: fastrand::Rng,
}

impl Bench {
    fn new(seed: u64) -> Self {
        Self { dir: tempfile::tempdir().unwrap(), random: fastrand::Rng::with_seed(seed) }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    /// A raw image with noise, repetition and zeroes in turn, each of some length.
    fn raw(&mut self, name: &str, len: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        while ByteLen::from(bytes.len()).0 < len {
            let run = self.random.usize(1..300_000);
            match self.random.u8(0..3) {
                0 => bytes.extend(std::iter::repeat_with(|| self.random.u8(..)).take(run)),
                1 => bytes.extend(std::iter::repeat_n(self.random.u8(..), run)),
                _ => bytes.extend(std::iter::repeat_n(0, run)),
            }
        }
        bytes.truncate(ByteLen(len).to_usize());
        fs::write(self.path(name), &bytes).unwrap();
        bytes
    }

    /// `qemu-img convert` of the raw image `from`.
    fn convert(&self, options: &[&str], from: &str, to: &str) -> bool {
        let (from, to) = (self.text(from), self.text(to));
        let all = ["convert", "-f", "raw", "-O", "qcow2"].into_iter().chain(options.iter().copied());
        must("qemu-img", &all.chain([&*from, &*to]).collect::<Vec<_>>())
    }

    fn create(&self, options: &str, name: &str, backing: Option<(&str, &str)>, len: Option<u64>) -> bool {
        let (name, len) = (self.text(name), len.map(|len| len.to_string()));
        let mut args = vec!["create", "-q", "-f", "qcow2", "-o", options];
        if let Some((backing, format)) = backing {
            args.extend(["-b", backing, "-F", format]);
        }
        args.push(&name);
        args.extend(len.as_deref());
        must("qemu-img", &args)
    }

    /// What qemu-io does to a file.
    fn io(&self, name: &str, commands: &[String]) {
        let name = self.text(name);
        let mut args = vec!["-f", "qcow2"];
        commands.iter().for_each(|command| args.extend(["-c", command]));
        args.push(&name);
        must("qemu-io", &args);
    }

    /// Some writes, of data and of zeroes, and some discards.
    fn scribble(&mut self, name: &str, len: u64, count: usize) {
        let mut commands = Vec::new();
        for _ in 0..count {
            let at = self.random.u64(0..len / 512) * 512;
            let size = (self.random.u64(1..200) * 512).min(len - at);
            commands.push(match self.random.u8(0..8) {
                0 => format!("write -z {at} {size}"),
                1 => format!("write -z -u {at} {size}"),
                2 => format!("discard {at} {size}"),
                _ => format!("write -P {} {at} {size}", self.random.u8(..)),
            });
        }
        self.io(name, &commands);
    }

    fn try_open(&self, name: &str, backing: bool) -> Result<Qcow2, Qcow2Error> {
        let path = self.path(name);
        let container = Container::at(&path).unwrap_or(Container::Qcow2);
        let manner = Manner { raw: false, backing };
        let how = (Access::ReadOnly, BlockSize::B512);
        Qcow2::open(&path, container, how, manner, &self.path("run"))
    }

    fn open(&self, name: &str) -> Reader<Qcow2> {
        opened(|| self.try_open(name, true))
    }

    fn refusal(&self, name: &str) -> Qcow2ErrorKind {
        self.try_open(name, false).unwrap_err().kind
    }

    /// What the host sees is what qemu-img does, read forwards and at random.
    fn must_agree(&mut self, name: &str) {
        let (from, to) = (self.text(name), self.text("judge"));
        if must("qemu-img", &["convert", "-f", "qcow2", "-O", "raw", &from, &to]) {
            let expected = fs::read(&to).unwrap();
            self.must_hold(name, &expected);
        }
    }

    fn must_hold(&mut self, name: &str, expected: &[u8]) {
        let reader = self.open(name);
        assert_eq!(reader.medium.stored(), ByteLen::from(expected.len()), "{name}");
        let found = reader.all(self.random.u64(1..500) * 512).unwrap();
        let differs = found.iter().zip(expected).position(|(found, expected)| found != expected);
        assert_eq!(differs, None, "{name} differs at");
        for _ in 0..50 {
            let at = self.random.usize(..expected.len());
            let len = self.random.usize(1..200_000).min(expected.len() - at);
            assert!(
                reader.read(range_of(at, len)).unwrap() == expected[at..at + len],
                "{name}: {len} at {at}"
            );
        }
        let (pages, expanded) = reader.medium.shared.chain.held();
        assert!(pages <= 4 * MIB && expanded <= 18 * MIB, "{pages} and {expanded} bytes are held");
    }

    fn overlays(&self) -> Arc<Overlays> {
        Overlays::new(self.path("cache"), self.path("run"))
    }

    /// Changes a number of a header.
    fn patch(&self, name: &str, at: u64, bytes: &[u8]) {
        File::options().write(true).open(self.path(name)).unwrap().write_all_at(bytes, at).unwrap();
    }
}

/// Tries it until nobody holds the file any more.
fn opened(open: impl Fn() -> Result<Qcow2, Qcow2Error>) -> Reader<Qcow2> {
    let until = Instant::now() + judge::PATIENCE;
    loop {
        match open() {
            Err(error) if error.kind == IN_USE && Instant::now() < until => std::thread::yield_now(),
            opened => return Reader::new(opened.unwrap()),
        }
    }
}

fn range_of(start: usize, len: usize) -> ByteRange {
    ByteRange::new(ByteOffset(ByteLen::from(start).0), ByteLen::from(len)).unwrap()
}

/// Reads as the drive does.
struct Reader<M> {
    medium: M,
    woken: crossbeam_channel::Receiver<()>,
}

impl<M: Medium> Reader<M> {
    fn new(mut medium: M) -> Self {
        let (tell, woken) = crossbeam_channel::unbounded();
        medium.set_waker(Waker::new(move || tell.send(()).unwrap_or_default()));
        Self { medium, woken }
    }

    fn read(&self, mut range: ByteRange) -> Result<Vec<u8>, FaultKind> {
        let (mut bytes, began) = (Vec::new(), Instant::now());
        while !range.is_empty() {
            let extent = self.medium.map(range);
            assert!((1..=range.len().0).contains(&extent.len().0), "{extent:?} of {range:?}");
            let mut part = vec![0; extent.len().to_usize()];
            match extent {
                Extent::File { file, offset, .. } => file.read_exact_at(&mut part, offset.0).unwrap(),
                Extent::Zero { .. } => {}
                Extent::Fault { kind, .. } => return Err(kind),
                Extent::Pending { .. } => {
                    assert!(began.elapsed() < Duration::from_secs(60), "{range:?} never comes");
                    let _ = self.woken.recv_timeout(Duration::from_secs(20));
                    continue;
                }
            }
            range = range.split_at(ByteLen::from(part.len())).1;
            bytes.extend(part);
        }
        Ok(bytes)
    }

    /// All of it, so much at once.
    fn all(&self, at_once: u64) -> Result<Vec<u8>, FaultKind> {
        let mut ahead = ByteRange::new(ByteOffset(0), self.medium.stored()).unwrap();
        let mut bytes = Vec::new();
        while !ahead.is_empty() {
            let (here, rest) = ahead.split_at(ByteLen(at_once));
            bytes.extend(self.read(here)?);
            ahead = rest;
        }
        Ok(bytes)
    }
}

#[test]
fn what_qemu_img_has_converted_reads_as_it_was() {
    let mut bench = Bench::new(1);
    let raw = bench.raw("raw", 5 * MIB + 1536);
    let mut options: Vec<Vec<&str>> = Vec::new();
    for layout in [
        "compat=0.10",
        "cluster_size=512",
        "cluster_size=4k",
        "cluster_size=64k",
        "cluster_size=2M",
        "cluster_size=16k,extended_l2=on",
        "cluster_size=128k,extended_l2=on",
        "compression_type=zstd",
        "compression_type=zstd,cluster_size=512",
        "compression_type=zstd,cluster_size=2M",
        "lazy_refcounts=on,refcount_bits=1",
        "extended_l2=on,cluster_size=64k,compression_type=zstd",
    ] {
        options.push(vec!["-o", layout]);
        options.push(vec!["-c", "-o", layout]);
    }
    for layout in ["preallocation=metadata", "preallocation=falloc", "preallocation=full,extended_l2=on"] {
        options.push(vec!["-o", layout]);
        options.push(vec!["-S", "0", "-o", layout]);
    }
    for options in options {
        let _ = fs::remove_file(bench.path("image"));
        if bench.convert(&options, "raw", "image") {
            bench.must_hold("image", &raw);
        }
    }
}

#[test]
fn what_was_written_over_other_images_reads_as_qemu_img_has_it() {
    for (seed, layout) in (0..).zip([
        "cluster_size=64k",
        "cluster_size=512",
        "cluster_size=2M",
        "cluster_size=16k,extended_l2=on",
        "cluster_size=64k,extended_l2=on",
        "compat=0.10",
    ]) {
        let mut bench = Bench::new(seed);
        bench.raw("raw", 3 * MIB + 512);
        bench.convert(&["-c"], "raw", "base");
        // Longer than what is below, and named as it stands in the folder.
        if !bench.create(layout, "middle", Some(("base", "qcow2")), Some(6 * MIB)) {
            return;
        }
        bench.scribble("middle", 6 * MIB, 30);
        bench.must_agree("middle");
        // Shorter.
        bench.create(layout, "top", Some(("middle", "qcow2")), Some(5 * MIB + 512));
        bench.scribble("top", 5 * MIB + 512, 30);
        bench.must_agree("top");
        // QEMU has no zeroes for what a file of version 2 grows by.
        if !layout.contains("0.10") {
            must("qemu-img", &["resize", "-q", &bench.text("top"), "9M"]);
            bench.scribble("top", 9 * MIB, 30);
            bench.must_agree("top");
            must("qemu-img", &["resize", "-q", "--shrink", &bench.text("top"), "2M"]);
            bench.must_agree("top");
        }
        let raw = bench.text("raw");
        bench.create(layout, "over-raw", Some((&raw, "raw")), None);
        bench.scribble("over-raw", 3 * MIB + 512, 30);
        bench.must_agree("over-raw");
    }
}

#[test]
fn a_snapshot_is_another_disk_than_the_one_that_is_read() {
    let mut bench = Bench::new(7);
    bench.raw("raw", 4 * MIB);
    if !bench.convert(&[], "raw", "image") {
        return;
    }
    let image = bench.text("image");
    must("qemu-img", &["snapshot", "-c", "before", &image]);
    bench.scribble("image", 4 * MIB, 20);
    bench.must_agree("image");
    must("qemu-img", &["snapshot", "-c", "between", &image]);
    bench.scribble("image", 4 * MIB, 20);
    must("qemu-img", &["snapshot", "-a", "before", &image]);
    bench.must_agree("image");
}

#[test]
fn a_disk_of_many_terabytes_takes_no_more_memory() {
    let mut bench = Bench::new(8);
    for (layout, len) in [("cluster_size=64k", 60 << 40), ("cluster_size=2M", 1_u64 << 60)] {
        let _ = fs::remove_file(bench.path("large"));
        if !bench.create(layout, "large", None, Some(len)) {
            return;
        }
        let places: Vec<u64> = (0..300).map(|_| bench.random.u64(0..len / 512) * 512).collect();
        bench.io("large", &places.iter().map(|at| format!("write -P 7 {at} 512")).collect::<Vec<_>>());
        let reader = bench.open("large");
        for at in places {
            let range = ByteRange::new(ByteOffset(at), ByteLen(512)).unwrap();
            assert!(reader.read(range).unwrap().iter().all(|byte| *byte == 7), "at {at}");
        }
        assert!(reader.medium.shared.chain.held().0 <= 4 * MIB);
    }
}

#[test]
fn commands_of_a_stream_find_their_tables_in_memory() {
    let mut bench = Bench::new(9);
    bench.raw("raw", 32 * MIB);
    if !bench.convert(&["-S", "0"], "raw", "image") {
        return;
    }
    let reader = bench.open("image");
    let (mut pending, mut extents) = (0, 0);
    let mut ahead = ByteRange::new(ByteOffset(0), ByteLen(32 * MIB)).unwrap();
    while !ahead.is_empty() {
        let extent = reader.medium.map(ahead.split_at(ByteLen(120 * KIB)).0);
        if matches!(extent, Extent::Pending { .. }) {
            pending += 1;
            reader.woken.recv_timeout(Duration::from_secs(20)).unwrap();
            continue;
        }
        extents += 1;
        ahead = ahead.split_at(extent.len()).1;
    }
    assert!(pending <= 2, "{pending} waits");
    // What lies together in the file is one extent.
    assert!(extents <= 300, "{extents} extents");
}

#[test]
fn many_open_one_file_at_the_same_time() {
    let mut bench = Bench::new(8);
    bench.raw("raw", 64 * KIB);
    if !bench.convert(&[], "raw", "image") {
        return;
    }
    let (bench, all) = (&bench, std::sync::Barrier::new(4));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                all.wait();
                for _ in 0..200 {
                    let begun = Instant::now();
                    bench.try_open("image", false).unwrap();
                    assert!(begun.elapsed() < Duration::from_secs(2), "they waited for each other");
                }
            });
        }
    });
}

#[test]
fn backing_files_are_read_only_where_somebody_said_so() {
    use Qcow2ErrorKind as Kind;
    let mut bench = Bench::new(11);
    bench.raw("raw", MIB);
    if !bench.create("cluster_size=64k", "top", Some(("raw", "raw")), None) {
        return;
    }
    assert_eq!(bench.refusal("top"), Kind::Backing("raw".into()));
    let kind = |bench: &Bench, name| bench.try_open(name, true).unwrap_err().kind;
    let top = bench.text("top");
    let rebase = |name: &str, format: &[&str]| {
        let args = ["rebase", "-u", "-f", "qcow2", "-b", name].into_iter().chain(format.iter().copied());
        must("qemu-img", &args.chain([&*top]).collect::<Vec<_>>());
    };
    rebase("top", &["-F", "qcow2"]);
    assert_eq!(kind(&bench, "top"), Kind::Circle);
    rebase("link", &["-F", "qcow2"]);
    symlink("top", bench.path("link")).unwrap();
    assert_eq!(kind(&bench, "top"), Kind::Circle);
    rebase("gone", &["-F", "raw"]);
    assert_eq!(kind(&bench, "top"), Kind::Image(MediaErrorKind::Missing));
    rebase("/dev/null", &["-F", "raw"]);
    assert_eq!(kind(&bench, "top"), Kind::NotAFile);
    rebase("nbd://server/disk", &["-F", "raw"]);
    assert_eq!(kind(&bench, "top"), Kind::NotAPath("nbd://server/disk".into()));
    rebase("raw", &["-F", "vmdk"]);
    assert_eq!(kind(&bench, "top"), Kind::NoFormat("raw".into()));
    rebase("raw", &["-F", "qcow2"]);
    assert_eq!(kind(&bench, "top"), Kind::Damaged("header"));
    rebase("file:raw", &["-F", "raw"]);
    bench.must_hold("top", &fs::read(bench.path("raw")).unwrap());
    let names: Vec<String> = (0..20).map(|n| n.to_string()).collect();
    bench.create("cluster_size=64k", "0", None, Some(MIB));
    for pair in names.windows(2) {
        bench.create("cluster_size=64k", &pair[1], Some((&pair[0], "qcow2")), None);
    }
    bench.open("16");
    assert_eq!(kind(&bench, "19"), Kind::Depth(16));
    let fd = File::open(bench.path("top")).unwrap();
    let how = (Access::ReadOnly, BlockSize::B512);
    let refused = Qcow2::from_fd(fd.into(), "top".into(), Container::Qcow2, how);
    assert_eq!(refused.unwrap_err().kind, Kind::NoFolder);
    let fd = File::open(bench.path("0")).unwrap();
    Qcow2::from_fd(fd.into(), "0".into(), Container::Qcow2, how).unwrap();
}

fn overlay(bench: &Bench, base: &str, place: &str) -> Overlay {
    let opened = bench.try_open(base, true).unwrap();
    let place = Place::File(bench.path(place));
    bench.overlays().open(Box::new(opened), &bench.path(base), &place).unwrap()
}

/// As the drive does, and in whole blocks.
fn write<M: Medium>(reader: &Reader<M>, at: u64, mut bytes: &[u8]) {
    let mut range = ByteRange::new(ByteOffset(at), ByteLen::from(bytes.len())).unwrap();
    while !range.is_empty() {
        match reader.medium.map_write(range) {
            Extent::File { file, offset, len } => {
                let (here, rest) = bytes.split_at(len.to_usize());
                file.write_all_at(here, offset.0).unwrap();
                assert_eq!(reader.medium.written(range.split_at(len).0), Ok(len));
                (range, bytes) = (range.split_at(len).1, rest);
            }
            Extent::Pending { .. } => drop(reader.woken.recv_timeout(Duration::from_secs(20))),
            other => panic!("{other:?}"),
        }
    }
}

/// As the drive does for SYNCHRONIZE CACHE.
fn store<M: Medium>(reader: &Reader<M>) {
    try_store(reader).unwrap();
}

fn try_store<M: Medium>(reader: &Reader<M>) -> io::Result<()> {
    let store = reader.medium.own_store().unwrap();
    store.begin(7);
    loop {
        match store.next() {
            Some((7, result)) => return result,
            Some(_) => panic!("a ticket that nobody has"),
            None => drop(reader.woken.recv_timeout(Duration::from_secs(20))),
        }
    }
}

#[test]
fn an_overlay_over_a_qcow2_image_is_one_disk_with_it_for_us_and_for_qemu_img() {
    let mut bench = Bench::new(13);
    let mut model = bench.raw("raw", 4 * MIB);
    if !bench.convert(&["-c"], "raw", "base") {
        return;
    }
    let before = fs::read(bench.path("base")).unwrap();
    {
        let reader = Reader::new(overlay(&bench, "base", "overlay"));
        for n in 0..40_u8 {
            let at = bench.random.usize(0..8000) * 512;
            let bytes = vec![n; 512 * bench.random.usize(1..150).min((model.len() - at) / 512)];
            model[at..at + bytes.len()].copy_from_slice(&bytes);
            write(&reader, ByteLen::from(at).0, &bytes);
        }
        assert!(reader.all(100 * KIB).unwrap() == model);
        // It is in use: nobody may read it as an image.
        let refused = bench.try_open("overlay", true).unwrap_err();
        assert_eq!(refused.kind, Qcow2ErrorKind::Image(MediaErrorKind::InUse));
        store(&reader);
    }
    assert!(fs::read(bench.path("base")).unwrap() == before, "the base has changed");
    must("qemu-img", &["check", "-q", &bench.text("overlay")]);
    bench.must_agree("overlay");
    bench.must_hold("overlay", &model);
    let run = bench.path("run");
    let commit = crate::media::overlay::offline::commit(&bench.path("overlay"), &run, &mut |_, _| true);
    assert_eq!(commit.unwrap_err().kind, OverlayErrorKind::OverQcow2);
    let (from, to) = (bench.path("overlay"), bench.path("export"));
    crate::media::overlay::offline::export(&from, &to, &run, &mut |_, _| true).unwrap();
    assert!(fs::read(&to).unwrap() == model);
    drop(overlay(&bench, "base", "overlay"));
    crate::media::overlay::offline::discard(&from, &run).unwrap();
    bench.must_agree("overlay");
    // The way in which such an overlay is committed.
    let reader = Reader::new(overlay(&bench, "base", "overlay"));
    write(&reader, 0, &[9; 512]);
    store(&reader);
    drop(reader);
    must("qemu-img", &["commit", "-q", "-d", &bench.text("overlay")]);
    assert_eq!(bench.open("base").read(range_of(0, 512)).unwrap(), [9; 512]);
    let base = File::open(bench.path("base")).unwrap();
    base.set_modified(std::time::SystemTime::UNIX_EPOCH).unwrap();
    let kind = bench.try_open("overlay", true).unwrap_err().kind;
    assert_eq!(kind, Qcow2ErrorKind::Overlay(OverlayErrorKind::BaseChanged));
}
