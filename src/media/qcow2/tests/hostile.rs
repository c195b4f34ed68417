//! Files that nobody should have made, and those that are something else.

use super::*;

#[test]
fn every_refusal_says_what_is_the_matter() {
    use Qcow2ErrorKind as Kind;
    let mut bench = Bench::new(10);
    bench.raw("raw", MIB);
    if !bench.convert(&[], "raw", "image") {
        return;
    }
    let good = fs::read(bench.path("image")).unwrap();
    let patched: &[(u64, &[u8], Kind)] = &[
        (4, &[0, 0, 0, 1], Kind::Version(1)),
        (4, &[0, 0, 0, 9], Kind::Version(9)),
        (20, &[0, 0, 0, 8], Kind::Damaged("cluster size")),
        (20, &[0xff; 4], Kind::Damaged("cluster size")),
        (24, &[0x40, 0, 0, 0, 0, 0, 0, 0], Kind::TooLarge),
        (24, &[0xff; 8], Kind::TooLarge),
        (24, &[0x3f, 0xff, 0, 0, 0, 0, 0, 0], Kind::Damaged("L1 table")),
        (24, &[0; 8], Kind::Empty),
        (32, &[0, 0, 0, 2], Kind::Encrypted),
        (36, &[0xff; 4], Kind::Damaged("L1 table")),
        (36, &[0; 4], Kind::Damaged("L1 table")),
        (40, &[0, 0, 0, 0, 0, 0, 2, 0], Kind::Damaged("L1 table")),
        (40, &[0, 0, 0, 1, 0, 0, 0, 0], Kind::Truncated),
        (40, &[0x7f, 0, 0, 0, 0, 0, 0, 0], Kind::Truncated),
        (79, &[2], Kind::Corrupt),
        (79, &[4], Kind::ExternalData),
        (79, &[0x20], Kind::Features(0x20)),
        (72, &[0x80], Kind::Features(1 << 63)),
        (100, &[0, 0, 0, 12], Kind::Damaged("header's length")),
        (100, &[0, 1, 0, 8], Kind::Damaged("header's length")),
    ];
    for (at, bytes, kind) in patched {
        fs::write(bench.path("image"), &good).unwrap();
        bench.patch("image", *at, bytes);
        assert_eq!(bench.refusal("image"), *kind, "with {bytes:?} at {at}");
    }
    let l1 = u64::from_be_bytes(good[40..48].try_into().unwrap());
    for (entry, kind) in [(1 << 40, Kind::Truncated), (0x1_0200, Kind::Damaged("L1 table"))] {
        fs::write(bench.path("image"), &good).unwrap();
        bench.patch("image", l1, &u64::to_be_bytes(entry));
        assert_eq!(bench.refusal("image"), kind);
    }
    fs::write(bench.path("image"), &good[..200_000]).unwrap();
    assert_eq!(bench.refusal("image"), Kind::Truncated);
    fs::write(bench.path("image"), &good[..30]).unwrap();
    bench.refusal("image");
    fs::write(bench.path("image"), &good).unwrap();
    bench.patch("image", 79, &[9]);
    bench.patch("image", 104, &[7]);
    assert_eq!(bench.refusal("image"), Kind::Compression(7));
    fs::write(bench.path("image"), &good).unwrap();
    // Dirty: refcounts are of no interest.
    bench.patch("image", 79, &[1]);
    bench.try_open("image", false).unwrap();
}

#[test]
fn other_containers_are_refused_by_their_first_bytes() {
    let mut bench = Bench::new(12);
    bench.raw("raw", 2 * MIB);
    assert_eq!(Container::at(&bench.path("raw")), None);
    for (format, options, name) in [
        ("vmdk", "subformat=monolithicSparse", "VMDK"),
        ("vmdk", "subformat=monolithicFlat", "VMDK"),
        ("vmdk", "subformat=streamOptimized", "VMDK"),
        ("vdi", "static=off", "VDI"),
        ("vhdx", "subformat=dynamic", "VHDX"),
        ("vpc", "subformat=dynamic", "VHD"),
    ] {
        let (from, to) = (bench.text("raw"), bench.text("other"));
        if must("qemu-img", &["convert", "-f", "raw", "-O", format, "-o", options, &from, &to]) {
            assert_eq!(
                Container::at(&bench.path("other")),
                Some(Container::Other(name)),
                "{format} {options}"
            );
            assert_eq!(bench.refusal("other"), Qcow2ErrorKind::Container(name));
        }
    }
    assert_eq!(Container::at(Path::new("/dev/null")), None);
    assert_eq!(Container::at(bench.dir.path()), None);
}

/// Headers and tables with some bits changed, and files cut short: errors, but no panic, no hang, and no more memory.
#[test]
fn no_file_is_too_bad_to_be_refused() {
    let mut bench = Bench::new(14);
    bench.raw("raw", 300 * KIB);
    bench.raw("below", 300 * KIB);
    let below = bench.text("below");
    let mut seeds = Vec::new();
    for options in [
        &["-o", "cluster_size=4k"][..],
        &["-c", "-o", "cluster_size=4k"],
        &["-c", "-o", "compression_type=zstd,cluster_size=16k"],
        &["-o", "extended_l2=on,cluster_size=16k"],
        &["-o", "cluster_size=16k", "-B", &below, "-F", "raw"],
    ] {
        if !bench.convert(options, "raw", "seed") {
            return;
        }
        seeds.push(fs::read(bench.path("seed")).unwrap());
    }
    let (mut opened, mut whole) = (0, 0);
    for _ in 0..3000 {
        let mut bytes = bench.random.choice(&seeds).unwrap().clone();
        mutate(&mut bench.random, &mut bytes);
        fs::write(bench.path("image"), &bytes).unwrap();
        let mut held = (0, 0);
        let measured = allocation_counter::measure(|| {
            let Ok(medium) = bench.try_open("image", true) else { return };
            opened += 1;
            let reader = Reader::new(medium);
            for _ in 0..8 {
                let at = bench.random.u64(..) % reader.medium.stored().0.max(1);
                let len = (bench.random.u64(1..200) * 512).min(reader.medium.stored().0 - at);
                if reader.read(ByteRange::new(ByteOffset(at), ByteLen(len)).unwrap()).is_ok() {
                    whole += 1;
                }
            }
            held = reader.medium.shared.chain.held();
        });
        assert!(measured.bytes_max < 8 * MIB, "{} bytes", measured.bytes_max);
        assert!(held.0 <= 4 * MIB && held.1 <= 18 * MIB, "{held:?}");
    }
    assert!(opened > 300 && whole > 300, "only {opened} could be opened, {whole} ranges read");
}

/// Something in the header, in a table, or anywhere.
fn mutate(random: &mut fastrand::Rng, bytes: &mut Vec<u8>) {
    let number = |bytes: &[u8], at: usize| {
        let bytes = bytes.get(at..at + 8).map_or([0; 8], |bytes| bytes.try_into().unwrap());
        usize::try_from(u64::from_be_bytes(bytes) & 0x00ff_ffff_ffff_fe00).unwrap_or(0)
    };
    let l1 = number(bytes, 40);
    let l2 = number(bytes, l1);
    for _ in 0..random.usize(1..4) {
        let at = match random.u8(0..4) {
            0 => random.usize(0..120),
            1 => l1 + random.usize(0..8),
            2 => l2 + random.usize(0..4096),
            _ => random.usize(..bytes.len()),
        };
        let Some(byte) = bytes.get_mut(at) else { continue };
        *byte = match random.u8(0..3) {
            0 => *byte ^ 1 << random.u8(0..8),
            1 => 0xff,
            _ => random.u8(..),
        };
    }
    if random.u8(0..10) == 0 {
        bytes.truncate(random.usize(1..bytes.len()));
    }
}
