//! What is written, against a model, by the word of qemu-img, and after power cuts at any moment.

use std::os::unix::fs::MetadataExt;

use super::{
    super::write::{Disk, Telling},
    *,
};

impl Bench {
    /// With a disk of 1 MiB in `image`, of which nothing is there yet.
    fn with_empty(seed: u64) -> Option<Self> {
        let bench = Self::new(seed);
        bench.create("cluster_size=64k", "image", None, Some(MIB)).then_some(bench)
    }

    fn try_open_rw(&self, name: &str) -> Result<Qcow2, Qcow2Error> {
        let manner = Manner { raw: false, backing: true };
        let how = (Access::ReadWrite, BlockSize::B512);
        Qcow2::open(&self.path(name), Container::Qcow2, how, manner, &self.path("run"))
    }

    fn open_rw(&self, name: &str) -> Reader<Qcow2> {
        opened(|| self.try_open_rw(name))
    }

    /// Some blocks, with bytes of their own.
    fn some_bytes(&mut self, disk: usize, most: usize) -> (usize, Vec<u8>) {
        let at = self.random.usize(..disk / 512) * 512;
        let len = (self.random.usize(1..most) * 512).min(disk - at);
        (at, std::iter::repeat_with(|| self.random.u8(..)).take(len).collect())
    }
}

#[test]
fn what_is_written_is_there_for_us_and_for_qemu_img() {
    for (seed, layout) in
        (20..).zip(["cluster_size=64k", "cluster_size=2M", "cluster_size=4k", "cluster_size=1k"])
    {
        let mut bench = Bench::new(seed);
        let raw = bench.raw("raw", 4 * MIB);
        let base = bench.text("raw");
        bench.convert(&["-c", "-o", layout], "raw", "packed");
        bench.convert(&["-o", layout], "raw", "plain");
        bench.create(layout, "over", Some((&base, "raw")), Some(5 * MIB + 512));
        bench.create(layout, "empty", None, Some(5 * MIB + 512));
        if !bench.create(&format!("{layout},preallocation=metadata"), "zeroes", None, Some(5 * MIB)) {
            return;
        }
        bench.scribble("empty", 5 * MIB + 512, 20);
        bench.io("zeroes", &["write -z 0 3M".to_owned()]);
        for name in ["packed", "plain", "over", "empty", "zeroes"] {
            bench.must_keep(name);
        }
        assert!(fs::read(bench.path("raw")).unwrap() == raw, "the backing file has changed");
    }
}

impl Bench {
    fn must_keep(&mut self, name: &str) {
        let mut model = self.open(name).all(MIB).unwrap();
        for round in 0..3 {
            let reader = self.open_rw(name);
            for n in 0..25 {
                let (at, bytes) = self.some_bytes(model.len(), 300);
                model[at..at + bytes.len()].copy_from_slice(&bytes);
                write(&reader, ByteLen::from(at).0, &bytes);
                let (at, len) = (self.random.usize(..model.len() / 2), self.random.usize(1..100_000));
                assert!(
                    reader.read(range_of(at, len)).unwrap() == model[at..at + len],
                    "{name}: {len} at {at}"
                );
                if n % 10 == round {
                    store(&reader);
                }
            }
            store(&reader);
            assert!(reader.all(100 * KIB).unwrap() == model, "{name}");
            drop(reader);
            let checked = judge::run("qemu-img", &["check", "-f", "qcow2", &self.text(name)]).unwrap();
            // The places of packed clusters that were overwritten stay counted.
            let may_leak = name == "packed" && checked.status.code() == Some(3);
            assert!(checked.status.success() || may_leak, "{name}: {checked:?}");
            self.must_agree(name);
            self.must_hold(name, &model);
        }
    }
}

#[test]
fn a_file_grows_by_what_is_written_and_no_more() {
    let bench = Bench::new(30);
    if !bench.create("cluster_size=64k", "image", None, Some(1 << 40)) {
        return;
    }
    let reader = bench.open_rw("image");
    for n in 0..64 {
        write(&reader, n * 64 * KIB, &vec![1; 64 << 10]);
    }
    store(&reader);
    let len = fs::metadata(bench.path("image")).unwrap().size();
    assert!(len < 5 * MIB, "{len} bytes");
    // What was written in order is in order.
    let extent = reader.medium.map(ByteRange::new(ByteOffset(0), ByteLen(4 * MIB)).unwrap());
    assert_eq!(extent.len(), ByteLen(4 * MIB));
}

#[test]
fn what_may_not_be_written_to_is_told_why() {
    let mut bench = Bench::new(31);
    bench.raw("raw", MIB);
    for (options, cause) in [
        (&["-o", "compat=0.10"][..], "version 2"),
        (&["-o", "extended_l2=on"], "extended L2"),
        (&["-o", "refcount_bits=1"], "not of 16 bits"),
        (&["-o", "cluster_size=512"], ""),
    ] {
        if !bench.convert(options, "raw", "image") {
            return;
        }
        match bench.try_open_rw("image") {
            Ok(_) => assert_eq!(cause, ""),
            Err(error) => {
                assert!(error.to_string().contains(cause) && error.to_string().contains("--overlay"))
            }
        }
    }
    bench.convert(&[], "raw", "image");
    must("qemu-img", &["snapshot", "-c", "a", &bench.text("image")]);
    let error = bench.try_open_rw("image").unwrap_err();
    assert_eq!(error.kind, Qcow2ErrorKind::NotWritable("it has snapshots"));
    let _ = fs::remove_file(bench.path("image"));
    bench.create("cluster_size=512", "image", None, Some(GIB));
    let error = bench.try_open_rw("image").unwrap_err();
    assert!(error.to_string().contains("no room"), "{error}");
    bench.convert(&[], "raw", "image");
    let _held = bench.open("image");
    let error = bench.try_open_rw("image").unwrap_err();
    assert_eq!(error.kind, IN_USE);
}

#[test]
fn what_is_written_behind_the_end_of_a_file_that_ends_inside_its_last_cluster_is_there() {
    let bench = Bench::new(34);
    for write_of_qemu in ["write -P 7 0 64k", "write -z 0 64k"] {
        let _ = fs::remove_file(bench.path("image"));
        if !bench.create("cluster_size=64k,preallocation=metadata", "image", None, Some(64 * KIB)) {
            return;
        }
        bench.io("image", &[write_of_qemu.to_owned()]);
        let file = File::options().write(true).open(bench.path("image")).unwrap();
        let end = file.metadata().unwrap().len().next_multiple_of(64 * KIB);
        file.set_len(end - 60 * KIB).unwrap();
        let mut model = bench.open("image").all(MIB).unwrap();
        let reader = bench.open_rw("image");
        write(&reader, 32 * KIB, &[9; 4096]);
        model[32 << 10..36 << 10].fill(9);
        assert!(reader.all(MIB).unwrap() == model, "{write_of_qemu}");
        store(&reader);
        drop(reader);
        assert!(bench.open("image").all(MIB).unwrap() == model, "{write_of_qemu}");
    }
}

#[test]
fn a_write_to_a_place_whose_table_cannot_be_read_fails() {
    let Some(bench) = Bench::with_empty(35) else { return };
    let reader = bench.open_rw("image");
    // As the worker does; no table is in memory yet.
    reader.medium.shared.bell.done(Some((Need::Place { cluster: 3 }, FaultKind::Io)));
    let extent = reader.medium.map_write(range_of(192 << 10, 4096));
    assert!(matches!(extent, Extent::Fault { kind: FaultKind::Io, .. }), "{extent:?}");
}

#[test]
fn after_a_store_has_failed_nothing_gets_a_place_any_more() {
    let Some(bench) = Bench::with_empty(36) else { return };
    let (disk, reader) = bench.open_bad("image");
    write(&reader, 0, &[1; 512]);
    disk.fail(Op::Sync, libc::EIO);
    assert_eq!(try_store(&reader).unwrap_err().raw_os_error(), Some(libc::EIO));
    disk.heal();
    assert_eq!(fault_of_write(&reader, 64 << 10), FaultKind::Io);
    // To places that are there it goes on.
    write(&reader, 1024, &[2; 512]);
    assert_eq!(try_store(&reader).unwrap_err().raw_os_error(), Some(libc::EIO));
}

#[test]
fn without_room_the_write_that_needs_a_place_fails_and_a_store_is_tried_again() {
    let mut bench = Bench::new(37);
    if !bench.create("cluster_size=1k", "image", None, Some(MIB)) {
        return;
    }
    let (disk, reader) = bench.open_bad("image");
    let mut model = vec![0; 1 << 20];
    for at in [0, 512 << 10] {
        // Each needs an L2 table; the rest of their clusters may be holes.
        disk.fail(Op::Put, libc::ENOSPC);
        for _ in 0..3 {
            assert_eq!(fault_of_write(&reader, at), FaultKind::NoSpace);
        }
        disk.heal();
        write(&reader, ByteLen::from(at).0, &[1; 512]);
        model[at..at + 512].fill(1);
        disk.fail(Op::Put, libc::ENOSPC);
        assert_eq!(try_store(&reader).unwrap_err().raw_os_error(), Some(libc::ENOSPC));
        assert!(!reader.medium.own_store().unwrap().has_lost());
        disk.heal();
        store(&reader);
    }
    drop(disk);
    drop(reader);
    // No place is counted and not used.
    must("qemu-img", &["check", "-q", "-f", "qcow2", &bench.text("image")]);
    bench.must_hold("image", &model);
}

#[test]
fn on_a_network_a_write_without_room_tells_the_stores_that_something_is_lost() {
    for (residence, is_lost) in [(Residence::Local, false), (Residence::Remote, true)] {
        let (file, bell) = (Arc::new(tempfile::tempfile().unwrap()), Arc::<Bell>::default());
        let bad = Bad::of(file);
        let disk = Telling { disk: Box::new(bad.clone()), residence, bell: Arc::clone(&bell) };
        bad.fail(Op::Put, libc::EIO);
        assert!(disk.put(&[0], 0).is_err() && !bell.has_lost(), "others are told at a sync");
        bad.fail(Op::Put, libc::EDQUOT);
        assert!(disk.put(&[0], 0).is_err());
        assert_eq!(bell.has_lost(), is_lost);
        // What fsync(2) says then no longer matters.
        assert_eq!(bell.store(|| Ok(())).is_some(), is_lost);
    }
}

#[test]
fn what_is_written_to_a_place_that_was_there_is_stored_at_its_time_too() {
    let Some(bench) = Bench::with_empty(38) else { return };
    let reader = bench.open_rw("image");
    for n in 0..2 {
        write(&reader, n * 512, &[1; 512]);
        assert!(reader.medium.shared.bell.will_store());
        store(&reader);
        assert!(!reader.medium.shared.bell.will_store());
    }
}

#[test]
fn a_file_that_others_have_made_longer_is_not_cut_off() {
    let Some(bench) = Bench::with_empty(39) else { return };
    let reader = bench.open_rw("image");
    File::options().write(true).open(bench.path("image")).unwrap().set_len(8 * MIB).unwrap();
    write(&reader, 0, &[1; 512]);
    assert_eq!(fs::metadata(bench.path("image")).unwrap().size(), 8 * MIB);
}

#[test]
fn a_file_is_made_longer_once_for_all_that_a_write_needs() {
    let Some(bench) = Bench::with_empty(40) else { return };
    let log: Arc<Mutex<Vec<Call>>> = Arc::default();
    let noted = Arc::clone(&log);
    let reader = bench.open_with("image", |file| Box::new(Logged { file: Arc::clone(file), log: noted }));
    let begun = log.lock().len();
    write(&reader, 64 * KIB, &vec![1; 512 << 10]);
    let log = log.lock();
    let grown: Vec<_> = log[begun..].iter().filter(|call| matches!(call, Call::Grow(_))).collect();
    // Of qemu-img it has a header, refcounts in two clusters, and an L1 table; there is an L2 table besides.
    assert!(matches!(*grown, [Call::Grow(len)] if *len == 13 * 64 * KIB), "{grown:?}");
}

#[test]
fn what_is_not_stored_when_an_image_leaves_its_drive_is_stored_then() {
    let Some(bench) = Bench::with_empty(41) else { return };
    let (disk, reader) = bench.open_bad("image");
    write(&reader, 0, &[7; 512]);
    let held = disk.gate.lock();
    // The drive does not wait for it; who ends the process does.
    drop(reader);
    assert!(!await_last_stores(Duration::ZERO));
    assert_eq!(bench.try_open_rw("image").unwrap_err().kind, IN_USE);
    drop(held);
    assert!(await_last_stores(Duration::from_secs(60)));
    drop(disk);
    let reader = bench.open_rw("image");
    assert_eq!(reader.read(range_of(0, 512)).unwrap(), [7; 512]);
}

const GIB: u64 = 1 << 30;

#[test]
fn no_host_writes_to_the_tables_of_a_file() {
    let mut bench = Bench::new(32);
    bench.raw("raw", MIB);
    if !bench.convert(&["-S", "0"], "raw", "image") {
        return;
    }
    let good = fs::read(bench.path("image")).unwrap();
    let number = |at: u64| {
        let at = usize::try_from(at).unwrap();
        u64::from_be_bytes(good[at..at + 8].try_into().unwrap()) & 0x00ff_ffff_ffff_fe00
    };
    let (l1, refcounts) = (number(40), number(48));
    let l2 = number(l1);
    let copied = 1_u64 << 63;
    for bad in [0x200, l1, l2, refcounts, number(refcounts), 1 << 40] {
        for flag in [copied, copied | 1, 0] {
            fs::write(bench.path("image"), &good).unwrap();
            bench.patch("image", l2, &(bad | flag).to_be_bytes());
            let before = fs::read(bench.path("image")).unwrap();
            let reader = bench.open_rw("image");
            assert_eq!(fault_of_write(&reader, 0), FaultKind::Damaged, "{bad:#x}");
            store(&reader);
            assert!(fs::read(bench.path("image")).unwrap() == before, "{bad:#x}");
        }
    }
}

/// Why nothing can be written there.
fn fault_of_write(reader: &Reader<Qcow2>, at: usize) -> FaultKind {
    let until = Instant::now() + Duration::from_secs(60);
    loop {
        match reader.medium.map_write(range_of(at, 4096)) {
            Extent::Pending { .. } if Instant::now() < until => {
                let _ = reader.woken.recv_timeout(Duration::from_secs(20));
            }
            Extent::Fault { kind, .. } => return kind,
            other => panic!("{other:?}"),
        }
    }
}

/// A file of which an operation fails, while somebody wants that.
#[derive(Clone, Debug)]
struct Bad {
    file: Arc<File>,
    failing: Arc<Mutex<Option<(Op, i32)>>>,
    /// Who holds it holds up what is done to it.
    gate: Arc<Mutex<()>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Op {
    Put,
    Sync,
}

impl Bad {
    fn of(file: Arc<File>) -> Self {
        Self { file, failing: Arc::default(), gate: Arc::default() }
    }

    fn fail(&self, op: Op, errno: i32) {
        *self.failing.lock() = Some((op, errno));
    }

    fn heal(&self) {
        *self.failing.lock() = None;
    }

    fn look(&self, op: Op) -> io::Result<()> {
        drop(self.gate.lock());
        let failing = self.failing.lock().filter(|(failing, _)| *failing == op);
        failing.map_or(Ok(()), |(_, errno)| Err(io::Error::from_raw_os_error(errno)))
    }
}

impl Disk for Bad {
    fn get(&self, to: &mut [u8], at: u64) -> io::Result<usize> {
        self.file.get(to, at)
    }

    fn put(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        self.look(Op::Put).and_then(|()| self.file.put(bytes, at))
    }

    fn grow(&self, len: u64) -> io::Result<()> {
        self.file.grow(len)
    }

    fn sync(&self) -> io::Result<()> {
        self.look(Op::Sync)
    }
}

impl Bench {
    fn open_with(&self, name: &str, disk: impl FnOnce(&Arc<File>) -> Box<dyn Disk>) -> Reader<Qcow2> {
        let path = self.path(name);
        let image = Image::open_container(&path, Access::ReadWrite).unwrap();
        let (run, manner) = (self.path("run"), Manner { raw: false, backing: true });
        let place = Some((self.dir.path(), &*run));
        Reader::new(Qcow2::with(image, &path, place, manner, BlockSize::B512, disk).unwrap())
    }

    fn open_bad(&self, name: &str) -> (Bad, Reader<Qcow2>) {
        let mut bad = None;
        let reader = self.open_with(name, |file| {
            let disk = Bad::of(Arc::clone(file));
            Box::new(bad.insert(disk).clone())
        });
        (bad.unwrap(), reader)
    }
}

/// A file that notes what is done to it.
#[derive(Clone, Debug)]
struct Logged {
    file: Arc<File>,
    log: Arc<Mutex<Vec<Call>>>,
}

#[derive(Clone, Debug)]
enum Call {
    Write(u64, Vec<u8>),
    Grow(u64),
    Sync,
}

impl Disk for Logged {
    fn get(&self, to: &mut [u8], at: u64) -> io::Result<usize> {
        self.file.get(to, at)
    }

    fn put(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        self.log.lock().push(Call::Write(at, bytes.to_vec()));
        self.file.put(bytes, at)
    }

    fn grow(&self, len: u64) -> io::Result<()> {
        self.log.lock().push(Call::Grow(len));
        self.file.grow(len)
    }

    fn sync(&self) -> io::Result<()> {
        self.log.lock().push(Call::Sync);
        Ok(())
    }
}

/// What a disk may hold after `log` was cut off: what was synced, and of the rest some sectors.
fn after_cut(born: &[u8], log: &[Call], luck: &mut fastrand::Rng) -> Vec<u8> {
    let synced = log.iter().rposition(|call| matches!(call, Call::Sync)).unwrap_or(0);
    let mut disk = born.to_vec();
    let grow = |disk: &mut Vec<u8>, len: u64| {
        let len = usize::try_from(len).unwrap();
        disk.resize(disk.len().max(len), 0);
    };
    for (n, call) in log.iter().enumerate() {
        match call {
            Call::Grow(len) if n < synced || luck.bool() => grow(&mut disk, *len),
            Call::Write(at, bytes) => {
                for (at, sector) in (*at..).step_by(512).zip(bytes.chunks(512)) {
                    if n < synced || luck.bool() {
                        grow(&mut disk, at + ByteLen::from(sector.len()).0);
                        let at = usize::try_from(at).unwrap();
                        disk[at..at + sector.len()].copy_from_slice(sector);
                    }
                }
            }
            Call::Grow(_) | Call::Sync => {}
        }
    }
    disk
}

/// Each block is filled with the number of the write that wrote it.
#[test]
fn a_power_cut_leaves_a_sound_file_with_each_block_old_or_new_and_what_was_stored() {
    let mut bench = Bench::new(33);
    bench.raw("raw", 200 * KIB);
    let base = bench.text("raw");
    // With blocks of refcounts that are full after 128 clusters, and L2 tables after 128 KiB.
    for (layout, over) in [("cluster_size=1k", true), ("cluster_size=1k", false), ("cluster_size=16k", true)]
    {
        let _ = fs::remove_file(bench.path("image"));
        let backing = over.then_some((&*base, "raw"));
        if !bench.create(layout, "image", backing, Some(300 * KIB)) {
            return;
        }
        let born = fs::read(bench.path("image")).unwrap();
        let log: Arc<Mutex<Vec<Call>>> = Arc::default();
        let noted = Arc::clone(&log);
        let reader = bench.open_with("image", |file| Box::new(Logged { file: Arc::clone(file), log: noted }));
        let mut now = reader.all(MIB).unwrap();
        let mut history = vec![(0, now.clone(), true)];
        for number in 1..60_u8 {
            let stored = number % 6 == 0;
            if stored {
                store(&reader);
            } else {
                let (at, mut bytes) = bench.some_bytes(now.len(), 40);
                bytes.fill(number);
                now[at..at + bytes.len()].copy_from_slice(&bytes);
                write_noted(&reader, ByteLen::from(at).0, &bytes, &log);
            }
            history.push((log.lock().len(), now.clone(), stored));
        }
        drop(reader);
        let log = log.lock().clone();
        for _ in 0..80 {
            let cut = bench.random.usize(..=log.len());
            let disk = after_cut(&born, &log[..cut], &mut bench.random);
            fs::write(bench.path("cut"), disk).unwrap();
            let checked = judge::run("qemu-img", &["check", "-f", "qcow2", &bench.text("cut")]).unwrap();
            // 3: clusters that are counted and not used.
            assert!(matches!(checked.status.code(), Some(0 | 3)), "cut at {cut}: {checked:?}");
            let found = bench.open("cut").all(MIB).unwrap();
            let promised = history.iter().rposition(|(len, _, stored)| *stored && *len <= cut).unwrap();
            // The write under way may have landed in part.
            let ended = history.iter().filter(|(len, ..)| *len <= cut).count();
            let may = &history[promised..=ended.min(history.len() - 1)];
            for (n, block) in found.chunks(512).enumerate() {
                let at = n * 512;
                let is_one = may.iter().any(|(_, held, _)| held[at..at + block.len()] == *block);
                assert!(is_one, "block {n} after a cut at {cut} of {}", log.len());
            }
        }
    }
}

/// As [`write`], noted as what the ring does.
fn write_noted(reader: &Reader<Qcow2>, at: u64, bytes: &[u8], log: &Mutex<Vec<Call>>) {
    let mut range = ByteRange::new(ByteOffset(at), ByteLen::from(bytes.len())).unwrap();
    let mut bytes = bytes;
    while !range.is_empty() {
        match reader.medium.map_write(range) {
            Extent::File { file, offset, len } => {
                let (here, rest) = bytes.split_at(len.to_usize());
                log.lock().push(Call::Write(offset.0, here.to_vec()));
                file.write_all_at(here, offset.0).unwrap();
                (range, bytes) = (range.split_at(len).1, rest);
            }
            Extent::Pending { .. } => drop(reader.woken.recv_timeout(Duration::from_secs(20))),
            other => panic!("{other:?}"),
        }
    }
}
