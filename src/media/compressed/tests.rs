//! Against what the usual programs make; one that is not installed is skipped, and said so.

use tempfile::TempDir;

use super::*;
use crate::{
    media::{Extent, Medium, Standing, judge::compressed},
    units::{ByteLen, ByteOffset, ByteRange},
};

const FORMATS: [(Format, &str, &[&str]); 4] = [
    (Format::Gzip, "gzip", &["-c"]),
    (Format::Bzip2, "bzip2", &["-c"]),
    (Format::Xz, "xz", &["-c", "--block-size=1MiB", "-T2"]),
    (Format::Zstd, "zstd", &["-c", "-q"]),
];

struct Bench {
    dir: TempDir,
}

impl Bench {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn expander(&self, limit: u64) -> Arc<Expander> {
        Expander::new(self.path("cache"), limit)
    }

    fn files(&self) -> usize {
        fs::read_dir(self.path("cache")).map_or(0, Iterator::count)
    }
}

/// Something of all: noise, text, zeroes.
fn plain() -> Vec<u8> {
    let mut bytes = vec![0; 5 << 20];
    fastrand::Rng::with_seed(1).fill(&mut bytes[..1 << 20]);
    bytes[3 << 20..4 << 20].fill(b'a');
    let len = bytes.len();
    bytes[len - 512..].fill(9);
    bytes
}

fn open(bench: &Bench, limit: u64, bytes: &[u8]) -> Result<Image, OpenError> {
    let path = bench.path("image");
    fs::write(&path, bytes).unwrap();
    bench.expander(limit).open(&path, Access::ReadOnly, BlockSize::B512, &mut |_, _| true)
}

fn kind(result: Result<Image, OpenError>) -> ExpandErrorKind {
    match result {
        Err(OpenError::Expand(error)) => error.kind,
        other => panic!("{other:?}"),
    }
}

fn all_of(image: &Image) -> Vec<u8> {
    let mut bytes = vec![0; image.len().to_usize()];
    let range = ByteRange::new(ByteOffset(0), image.len()).unwrap();
    let Extent::File { file, offset, len } = image.map(range) else { panic!("not in a file") };
    file.read_exact_at(&mut bytes[..len.to_usize()], offset.0).unwrap();
    bytes
}

#[test]
fn what_the_usual_programs_compress_is_expanded_once_and_served_by_its_own_name() {
    let plain = plain();
    for (format, program, args) in FORMATS {
        let bench = Bench::new();
        let Some(bytes) = compressed(program, args, &plain) else { continue };
        let path = bench.path("image");
        fs::write(&path, &bytes).unwrap();
        assert_eq!(Format::of(&File::open(&path).unwrap()).unwrap(), Some(format));
        let expander = bench.expander(64 << 20);
        let mut steps = Vec::new();
        let image = expander.open(&path, Access::ReadOnly, BlockSize::B512, &mut |done, total| {
            steps.push((done, total));
            true
        });
        let image = image.unwrap();
        assert!(all_of(&image) == plain, "{program}");
        assert_eq!(image.name(), path.to_str().unwrap());
        let len = u64::try_from(bytes.len()).unwrap();
        assert_eq!(steps.last(), Some(&(len, len)));
        let again =
            expander.open(&path, Access::ReadOnly, BlockSize::B512, &mut |_, _| panic!("expanded again"));
        assert!(all_of(&again.unwrap()) == plain);
        assert_eq!(image.look(), Ok(Standing::Same), "the first drive takes it for changed");
        assert_eq!(bench.files(), 1);
        let write = expander.open(&path, Access::ReadWrite, BlockSize::B512, &mut |_, _| true);
        assert_eq!(kind(write), ExpandErrorKind::ReadOnly);
    }
}

#[test]
fn what_a_death_has_left_makes_room() {
    let bench = Bench::new();
    let Some(bytes) = compressed("gzip", &["-c"], &plain()) else { return };
    fs::create_dir(bench.path("cache")).unwrap();
    fs::write(bench.path("cache/0123.part"), [1; 4096]).unwrap();
    let held = File::create(bench.path("cache/4567.part")).unwrap();
    lock(&held, Access::ReadWrite).unwrap();
    let image = open(&bench, 64 << 20, &bytes).unwrap();
    assert_eq!(bench.files(), 2, "the image, and what somebody is at work on");
    let expander = bench.expander(64 << 20);
    assert!(!expander.remove_one(), "all is in use");
    drop(image);
    assert!(expander.remove_one());
    assert!(!expander.remove_one());
}

#[test]
fn several_streams_in_one_file_are_one_image() {
    let plain = plain();
    let (front, back) = plain.split_at(1 << 20);
    for (_, program, args) in FORMATS {
        let bench = Bench::new();
        let parts = [front, back].map(|part| compressed(program, args, part));
        let [Some(front), Some(back)] = parts else { continue };
        // RFC 8878 §3.1.2: a frame to be skipped, such as the table of a seekable archive.
        let skipped: &[u8] =
            if program == "zstd" { &[0x5e, 0x2a, 0x4d, 0x18, 2, 0, 0, 0, 1, 2] } else { &[] };
        let image = open(&bench, 64 << 20, &[&front, skipped, &back].concat());
        assert!(all_of(&image.unwrap()) == plain, "{program}");
    }
}

#[test]
fn truncated_and_damaged_files_are_refused_and_leave_nothing() {
    let plain = plain();
    for (_, program, args) in FORMATS {
        let bench = Bench::new();
        let args = [args, if program == "zstd" { &["--check"] } else { &[] }].concat();
        let Some(bytes) = compressed(program, &args, &plain) else { continue };
        for cut in [bytes.len() - 1, bytes.len() / 2, 12] {
            let refused = kind(open(&bench, 64 << 20, &bytes[..cut]));
            assert_eq!(refused, ExpandErrorKind::Truncated, "{program}, cut at {cut}");
        }
        for at in [bytes.len() / 3, bytes.len() - 30] {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x10;
            let refused = kind(open(&bench, 64 << 20, &damaged));
            let known = [ExpandErrorKind::Corrupt, ExpandErrorKind::Truncated];
            assert!(known.contains(&refused), "{program}, damaged at {at}: {refused:?}");
        }
        assert_eq!(bench.files(), 0, "{program}");
    }
}

#[test]
fn bombs_meet_the_limit_and_greedy_windows_are_refused() {
    for (_, program, args) in FORMATS {
        let bench = Bench::new();
        let Some(bytes) = compressed(program, args, &vec![0; 8 << 20]) else { continue };
        assert!(bytes.len() < 16 << 10, "{program}");
        assert_eq!(kind(open(&bench, 4 << 20, &bytes)), ExpandErrorKind::TooLarge(4), "{program}");
        assert_eq!(bench.files(), 0, "{program}");
    }
    for (program, args) in
        [("xz", &["-c", "-T1", "--lzma2=preset=0,dict=192MiB"][..]), ("zstd", &["-c", "-q", "--long=29"])]
    {
        let bench = Bench::new();
        if let Some(bytes) = compressed(program, args, &vec![1; 1 << 20]) {
            let refused = kind(open(&bench, 64 << 20, &bytes));
            assert_eq!(refused, ExpandErrorKind::TooMuchMemory, "{program}");
        }
    }
}

#[test]
fn unused_ones_make_room_and_those_in_drives_stay() {
    let bench = Bench::new();
    let mut noise = vec![0; 3 << 20];
    let mut images = Vec::new();
    for seed in 0..3 {
        fastrand::Rng::with_seed(seed).fill(&mut noise);
        let Some(bytes) = compressed("gzip", &["-c"], &noise) else { return };
        let path = bench.path(&format!("image-{seed}"));
        fs::write(&path, bytes).unwrap();
        let image = bench.expander(8 << 20).open(&path, Access::ReadOnly, BlockSize::B512, &mut |_, _| true);
        let image = image.unwrap();
        if seed == 0 {
            images.push(image);
        }
    }
    assert_eq!(bench.files(), 2, "the one in use, and the last");
    assert_eq!(images[0].identity_now().unwrap().len, ByteLen(3 << 20));
    let stopped = bench.expander(8 << 20);
    let path = bench.path("image-1");
    let refused = stopped.open(&path, Access::ReadOnly, BlockSize::B512, &mut |_, _| false);
    assert_eq!(kind(refused), ExpandErrorKind::Cancelled);
}

#[test]
fn what_is_not_compressed_is_a_plain_image() {
    let bench = Bench::new();
    let mut iso = vec![0; 1 << 20];
    iso[..3].copy_from_slice(b"BZh");
    let image = open(&bench, 1 << 20, &iso).unwrap();
    assert!(all_of(&image) == iso);
    assert_eq!(bench.files(), 0);
    let missing =
        bench.expander(1).open(&bench.path("none"), Access::ReadOnly, BlockSize::B512, &mut |_, _| true);
    assert!(matches!(missing, Err(OpenError::Image(_))));
}
