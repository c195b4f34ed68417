use std::{
    ffi::OsStr,
    io::Write,
    os::{
        fd::AsFd,
        unix::{ffi::OsStrExt, fs::FileExt, fs::PermissionsExt, net::UnixListener},
    },
    sync::mpsc,
    time::Duration,
};

use nix::sys::stat::Mode;
use tempfile::TempDir;

use super::*;

fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn sparse(folder: &TempDir, name: impl AsRef<Path>, len: u64) -> PathBuf {
    let path = folder.path().join(name);
    File::create_new(&path).unwrap().set_len(len).unwrap();
    path
}

fn range(start: u64, len: u64) -> ByteRange {
    ByteRange::new(ByteOffset(start), ByteLen(len)).unwrap()
}

fn refused(path: &Path, access: Access, block_size: BlockSize) -> MediaError {
    let error = Image::open(path, access, block_size).unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("; try") || text.contains("; check") || text.contains("; eject"),
        "no cure: {text}"
    );
    assert!(text.contains(&path.file_name().unwrap().to_string_lossy().into_owned()), "no name: {text}");
    error
}

/// What a map says, in short: F(ile) offset+len, Z(ero) len, or the fault.
fn told(image: &Image, start: u64, len: u64) -> String {
    match image.map(range(start, len)) {
        Extent::File { offset, len, .. } => format!("F {}+{}", offset.0, len.0),
        Extent::Zero { len } => format!("Z {}", len.0),
        Extent::Fault { kind, len } => format!("{kind:?} {}", len.0),
        Extent::Pending { len } => format!("P {}", len.0),
    }
}

#[test]
fn what_is_not_an_image_is_refused_by_what_it_is_without_waiting() {
    let folder = folder();
    let fifo = folder.path().join("fifo");
    nix::unistd::mkfifo(&fifo, Mode::S_IRWXU).unwrap();
    let socket = folder.path().join("socket");
    let _listener = UnixListener::bind(&socket).unwrap();
    let circle = folder.path().join("circle");
    std::os::unix::fs::symlink(&circle, &circle).unwrap();
    let cases = vec![
        (folder.path().join("missing.iso"), MediaErrorKind::Missing),
        (sparse(&folder, "file", 512).join("below"), MediaErrorKind::Missing),
        (folder.path().to_owned(), MediaErrorKind::Directory),
        (fifo, MediaErrorKind::NotStorage("a FIFO")),
        (socket, MediaErrorKind::NotStorage("a socket")),
        (PathBuf::from("/dev/null"), MediaErrorKind::NotStorage("a character device")),
        (sparse(&folder, "empty", 0), MediaErrorKind::Empty),
        (PathBuf::from("/proc/self/status"), MediaErrorKind::Empty),
        (circle, MediaErrorKind::BadPath),
        (folder.path().join("x".repeat(256)), MediaErrorKind::BadPath),
        (folder.path().join("nul\0byte"), MediaErrorKind::BadPath),
    ];
    let (done, waited) = mpsc::channel();
    std::thread::spawn(move || {
        let _folder = folder;
        for (path, kind) in cases {
            for access in [Access::ReadOnly, Access::ReadWrite] {
                let refused = Image::open(&path, access, BlockSize::B512).unwrap_err();
                done.send((path.clone(), access, refused, kind)).unwrap();
            }
        }
    });
    let mut count = 0;
    loop {
        match waited.recv_timeout(Duration::from_secs(10)) {
            Ok((path, access, refused, kind)) => {
                // A file without a write bit is refused for that first.
                let wish = access == Access::ReadWrite && path.starts_with("/proc");
                let kind = if wish { MediaErrorKind::ReadOnlyFile } else { kind };
                assert_eq!(refused.kind, kind, "{refused}");
                count += 1;
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
            Err(timeout) => panic!("open hangs: {timeout}"),
        }
    }
    assert_eq!(count, 22);
}

#[test]
fn a_fifo_that_took_the_place_of_a_file_does_not_hang_the_open() {
    let folder = folder();
    let fifo = folder.path().join("fifo");
    nix::unistd::mkfifo(&fifo, Mode::S_IRWXU).unwrap();
    let looked_like = fs::metadata(sparse(&folder, "file", 512)).unwrap();
    let opened = open_options(Access::ReadOnly, &looked_like).open(&fifo).unwrap();
    let error = Image::finish(opened, fifo, Access::ReadOnly, BlockSize::B512, true).unwrap_err();
    assert_eq!((error.kind, error.op), (MediaErrorKind::NotStorage("a FIFO"), MediaOp::Inspect));
}

#[test]
fn messages_tell_the_cause_the_cure_and_the_source_once() {
    let folder = folder();
    let missing = refused(&folder.path().join("a b ü.iso"), Access::ReadOnly, BlockSize::B2048);
    let text = missing.to_string();
    assert!(text.starts_with("cannot open \"/"), "{text}");
    assert!(
        text.ends_with("/a b ü.iso\": no such file; check the path, and that the storage is mounted"),
        "{text}"
    );
    let source = std::error::Error::source(&missing).unwrap().to_string();
    assert!(source.contains("os error 2") && !text.contains("os error"), "{source}");
    let partial = refused(&sparse(&folder, "p.img", 1000), Access::ReadWrite, BlockSize::B512);
    assert!(
        partial.to_string().contains("1000 bytes") && partial.to_string().contains("truncate -s %512"),
        "{partial}"
    );
}

#[test]
fn names_of_any_bytes_open_and_print_on_one_line() {
    let folder = folder();
    let long = "ü".repeat(127) + "x";
    assert_eq!(long.len(), 255);
    for name in [
        OsStr::new("with space.iso"),
        OsStr::new("日本語 🦀.iso"),
        OsStr::new(&long),
        OsStr::from_bytes(b"\xff\xfe\n.iso"),
    ] {
        let path = sparse(&folder, name, 2048);
        let image = Image::open(&path, Access::ReadOnly, BlockSize::B2048).unwrap();
        assert_eq!(image.name(), path.to_string_lossy());
        let gone = path.with_extension("gone");
        let text = Image::open(&gone, Access::ReadOnly, BlockSize::B2048).unwrap_err().to_string();
        assert!(!text.contains('\n'), "{text:?}");
    }
    let odd = folder.path().join(OsStr::from_bytes(b"\xff.iso"));
    assert!(refused(&odd, Access::ReadOnly, BlockSize::B512).to_string().contains("\u{fffd}.iso"));
}

#[test]
fn one_sector_is_an_image() {
    let folder = folder();
    let path = sparse(&folder, "one", 512);
    let image = Image::open(&path, Access::ReadWrite, BlockSize::B512).unwrap();
    assert_eq!((image.len(), image.stored(), image.writable()), (ByteLen(512), ByteLen(512), true));
    assert_eq!(told(&image, 0, 512), "F 0+512");
    assert_eq!(told(&image, 511, 1), "F 511+1");
    assert_eq!(told(&image, 512, 1), "OutOfRange 1");
}

#[test]
fn a_partial_last_block_is_filled_with_zeroes_for_reading_and_refused_for_writing() {
    let folder = folder();
    let path = sparse(&folder, "partial", 2048 + 1);
    let image = Image::open(&path, Access::ReadOnly, BlockSize::B2048).unwrap();
    assert_eq!((image.len(), image.stored()), (ByteLen(4096), ByteLen(2049)));
    assert_eq!(told(&image, 0, 4096), "F 0+2049");
    assert_eq!(told(&image, 2049, 2047), "Z 2047");
    assert_eq!(told(&image, 4095, 100), "Z 1");
    assert_eq!(told(&image, 4096, 100), "OutOfRange 100");
    drop(image);
    let error = refused(&path, Access::ReadWrite, BlockSize::B2048);
    assert_eq!(error.kind, MediaErrorKind::PartialBlock { len: 2049, block_size: 2048 });
    assert!(
        Image::open(&sparse(&folder, "tiny", 1), Access::ReadOnly, BlockSize::B4096).unwrap().len()
            == ByteLen(4096)
    );
}

#[test]
fn large_images_map_wholly() {
    let folder = folder();
    // 2.2 GiB, a double-layer DVD, 3 TiB: beyond 31 bits, 32 bits, and 32 bits of blocks.
    for len in [2_362_232_320_u64, 8_543_666_176, 3 << 40] {
        let path = folder.path().join(len.to_string());
        let made = File::create_new(&path).unwrap();
        if let Err(error) = made.set_len(len) {
            assert_eq!(error.raw_os_error(), Some(libc::EFBIG), "{error}");
            eprintln!("skipped: this file system has no files of {len} bytes");
            continue;
        }
        made.write_all_at(b"last", len - 4).unwrap();
        let image = Image::open(&path, Access::ReadWrite, BlockSize::B512).unwrap();
        assert_eq!(image.len(), ByteLen(len));
        assert_eq!(told(&image, 0, len), format!("F 0+{len}"));
        let Extent::File { file, offset, len: last } = image.map(range(len - 4, 65536)) else { panic!() };
        let mut bytes = [0; 4];
        file.read_exact_at(&mut bytes, offset.0).unwrap();
        assert_eq!((&bytes, last), (b"last", ByteLen(4)));
        assert_eq!(told(&image, len, 1), "OutOfRange 1");
        assert_eq!(told(&image, u64::MAX - 1, 1), "OutOfRange 1");
    }
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig { failure_persistence: None, cases: 64, ..Default::default() })]
    #[test]
    fn extents_cover_any_range_piece_by_piece_without_gaps(stored in 1u64..20_000, start in 0u64..30_000, len in 0u64..30_000) {
        let folder = folder();
        let image = Image::open(&sparse(&folder, "image", stored), Access::ReadOnly, BlockSize::B2048).unwrap();
        let (mut at, end) = (start, start + len);
        for _ in 0..4 {
            if at == end {
                break;
            }
            let extent = image.map(range(at, end - at));
            let got = extent.len().0;
            assert!(got > 0 && got <= end - at, "{extent:?}");
            match extent {
                Extent::File { offset, .. } => assert!(offset.0 == at && at + got <= stored),
                Extent::Zero { .. } => assert!(at >= stored && at + got <= image.len().0),
                Extent::Fault { kind, .. } => assert!(kind == FaultKind::OutOfRange && at >= image.len().0),
                Extent::Pending { .. } => panic!("a file is here"),
            }
            at += got;
        }
        assert_eq!(at, end, "more than three pieces");
        assert!(image.map(range(start, 0)).is_empty());
    }
}

#[test]
fn a_file_marked_read_only_is_not_opened_for_writing_even_by_root() {
    let folder = folder();
    let path = sparse(&folder, "marked", 4096);
    fs::set_permissions(&path, fs::Permissions::from_mode(0o444)).unwrap();
    assert_eq!(refused(&path, Access::ReadWrite, BlockSize::B512).kind, MediaErrorKind::ReadOnlyFile);
    let image = Image::open(&path, Access::ReadOnly, BlockSize::B512).unwrap();
    assert!(!image.writable() && image.file_for_sync().is_none());
}

#[test]
fn a_running_program_is_in_use() {
    let own = std::env::current_exe().unwrap();
    assert_eq!(
        Image::open(&own, Access::ReadWrite, BlockSize::B512).unwrap_err().kind,
        MediaErrorKind::InUse
    );
}

#[test]
fn readers_share_an_image_and_a_writer_has_it_alone() {
    let folder = folder();
    let path = sparse(&folder, "shared", 4096);
    let open = |access| Image::open(&path, access, BlockSize::B512);
    let reader = open(Access::ReadOnly).unwrap();
    assert!(reader.is_locked());
    let second = open(Access::ReadOnly).unwrap();
    assert_eq!(refused(&path, Access::ReadWrite, BlockSize::B512).kind, MediaErrorKind::InUse);
    drop((reader, second));
    let writer = open(Access::ReadWrite).unwrap();
    for access in [Access::ReadOnly, Access::ReadWrite] {
        let error = refused(&path, access, BlockSize::B512);
        assert_eq!((error.kind, error.op), (MediaErrorKind::InUse, MediaOp::Lock));
    }
    // A write that is still in flight holds the file, and so the lock.
    let in_flight = Arc::clone(writer.file_for_sync().unwrap());
    drop(writer);
    assert_eq!(refused(&path, Access::ReadOnly, BlockSize::B512).kind, MediaErrorKind::InUse);
    drop(in_flight);
    open(Access::ReadWrite).unwrap();
}

#[test]
fn a_posix_lock_of_another_program_is_seen() {
    let folder = folder();
    let path = sparse(&folder, "locked", 4096);
    // The POSIX locks of a process do not hinder itself, but our open-file-description locks they do.
    let other = File::options().read(true).write(true).open(&path).unwrap();
    let write = libc::flock { l_type: 1, l_whence: 0, l_start: 100, l_len: 1, l_pid: 0 };
    fcntl(&other, FcntlArg::F_SETLK(&write)).unwrap();
    assert_eq!(refused(&path, Access::ReadOnly, BlockSize::B512).kind, MediaErrorKind::InUse);
    drop(other);
    Image::open(&path, Access::ReadOnly, BlockSize::B512).unwrap();
}

#[test]
fn a_passed_descriptor_gives_no_more_than_it_has() {
    let folder = folder();
    let path = sparse(&folder, "passed", 4096);
    let pass = |options: &OpenOptions, access| {
        Image::from_fd(options.open(&path).unwrap().into(), "from a client".into(), access, BlockSize::B512)
    };
    let (mut read, mut write, mut both) = (OpenOptions::new(), OpenOptions::new(), OpenOptions::new());
    read.read(true);
    write.write(true);
    both.read(true).write(true);
    assert_eq!(pass(&read, Access::ReadWrite).unwrap_err().kind, MediaErrorKind::ReadOnlyFile);
    assert_eq!(pass(&write, Access::ReadOnly).unwrap_err().kind, MediaErrorKind::NotReadable);
    assert_eq!(pass(&write, Access::ReadWrite).unwrap_err().kind, MediaErrorKind::NotReadable);
    let only_a_name = pass(read.clone().custom_flags(libc::O_PATH), Access::ReadOnly).unwrap_err();
    assert_eq!(only_a_name.kind, MediaErrorKind::NotReadable);
    assert!(only_a_name.to_string().starts_with("cannot take \"from a client\": "), "{only_a_name}");
    assert!(!pass(&both, Access::ReadOnly).unwrap().writable());
    assert!(pass(&both, Access::ReadWrite).unwrap().writable());
    let (fifo, _writer) = io::pipe().unwrap();
    let error = Image::from_fd(fifo.into(), "pipe".into(), Access::ReadOnly, BlockSize::B512).unwrap_err();
    assert_eq!(error.kind, MediaErrorKind::NotStorage("a FIFO"));
}

#[test]
fn one_descriptor_passed_twice_does_not_make_two_writers() {
    let folder = folder();
    let path = sparse(&folder, "passed", 4096);
    let passed = File::options().read(true).write(true).open(&path).unwrap();
    let take = || {
        let fd = passed.as_fd().try_clone_to_owned().unwrap();
        Image::from_fd(fd, "twice".into(), Access::ReadWrite, BlockSize::B512)
    };
    let _first = take().unwrap();
    assert_eq!(take().unwrap_err().kind, MediaErrorKind::InUse);
}

#[test]
fn flags_of_a_passed_descriptor_do_not_bend_writes_and_a_deleted_file_serves() {
    let folder = folder();
    let path = sparse(&folder, "appended", 4096);
    let passed = File::options().read(true).append(true).custom_flags(libc::O_NONBLOCK).open(&path).unwrap();
    fs::remove_file(&path).unwrap();
    let image = Image::from_fd(passed.into(), "deleted".into(), Access::ReadWrite, BlockSize::B512).unwrap();
    let file = image.file_for_sync().unwrap();
    let flags = OFlag::from_bits_retain(fcntl(file, FcntlArg::F_GETFL).unwrap());
    assert!(!flags.intersects(OFlag::O_APPEND | OFlag::O_NONBLOCK), "{flags:?}");
    file.write_all_at(b"x", 0).unwrap();
    assert_eq!(image.identity_now().unwrap().len, ByteLen(4096), "the write was appended");
}

#[test]
fn files_are_not_inherited_by_children() {
    let folder = folder();
    let image = Image::open(&sparse(&folder, "image", 512), Access::ReadOnly, BlockSize::B512).unwrap();
    assert_eq!(fcntl(&image.file, FcntlArg::F_GETFD).unwrap(), libc::FD_CLOEXEC);
}

#[test]
fn an_image_truncated_under_us_maps_as_before_and_its_identity_tells() {
    let folder = folder();
    let path = sparse(&folder, "shrinks", 8192);
    let image = Image::open(&path, Access::ReadOnly, BlockSize::B512).unwrap();
    assert_eq!(image.identity_now().unwrap(), image.identity());
    File::options().write(true).open(&path).unwrap().set_len(4096).unwrap();
    assert_eq!(told(&image, 0, 8192), "F 0+8192");
    let Extent::File { file, offset, .. } = image.map(range(4096, 4096)) else { panic!() };
    assert_eq!(file.read_at(&mut [0; 4096], offset.0).unwrap(), 0);
    let now = image.identity_now().unwrap();
    assert_eq!(now.len, ByteLen(4096));
    assert_ne!(now, image.identity());
    assert_eq!((now.device, now.inode), (image.identity().device, image.identity().inode));
}

#[test]
fn a_refused_image_stays_neither_open_nor_locked() {
    let folder = folder();
    let path = sparse(&folder, "partial", 1000);
    refused(&path, Access::ReadWrite, BlockSize::B512);
    let mut file = File::options().append(true).open(&path).unwrap();
    file.write_all(&[0; 24]).unwrap();
    Image::open(&path, Access::ReadWrite, BlockSize::B512).unwrap();
}

#[test]
fn a_block_device_has_its_own_length_and_no_second_writer() {
    let folder = folder();
    let path = sparse(&folder, "backing", 1 << 20);
    let made = std::process::Command::new("losetup").args(["--find", "--show"]).arg(&path).output();
    let device = match made {
        Ok(output) if output.status.success() => {
            PathBuf::from(String::from_utf8(output.stdout).unwrap().trim())
        }
        other => return eprintln!("skipped: no loop device ({other:?})"),
    };
    let result = std::panic::catch_unwind(|| {
        let image = Image::open(&device, Access::ReadWrite, BlockSize::B4096).unwrap();
        assert_eq!((image.len(), told(&image, 0, 1 << 30)), (ByteLen(1 << 20), "F 0+1048576".to_owned()));
        assert_eq!(refused(&device, Access::ReadWrite, BlockSize::B512).kind, MediaErrorKind::InUse);
        drop(image);
        Image::open(&device, Access::ReadOnly, BlockSize::B512).unwrap();
        let passed = File::options().read(true).write(true).open(&device).unwrap();
        Image::from_fd(passed.into(), "loop".into(), Access::ReadWrite, BlockSize::B512).unwrap();
    });
    std::process::Command::new("losetup").arg("--detach").arg(&device).status().unwrap();
    result.unwrap();
}

/// An image in memory, which every kernel can punch holes into, with `data` from byte 8192 on.
fn in_memory(len: u64, data: &[u8], access: Access) -> Image {
    let file =
        File::from(nix::sys::memfd::memfd_create("image", nix::sys::memfd::MFdFlags::MFD_CLOEXEC).unwrap());
    file.set_len(len).unwrap();
    file.write_all_at(data, 8192).unwrap();
    Image::from_fd(file.into(), PathBuf::from("image"), access, BlockSize::B512).unwrap()
}

#[test]
fn a_writable_image_that_can_have_holes_is_thin_and_the_question_changes_nothing() {
    let image = in_memory(1 << 20, &[7; 4096], Access::ReadWrite);
    assert!(image.thin());
    assert_eq!(image.identity_now().unwrap().len, ByteLen(1 << 20));
    assert!(!in_memory(1 << 20, &[7; 4096], Access::ReadOnly).thin());
}

#[test]
fn holes_and_data_are_told_apart_and_end_where_the_other_begins() {
    let image = in_memory(1 << 20, &[7; 4096], Access::ReadWrite);
    let told = |at| {
        let Allocation { stored, len } = image.allocation(ByteOffset(at));
        (stored, len.0)
    };
    assert_eq!((told(0), told(512)), ((false, 8192), (false, 7680)));
    assert_eq!((told(8192), told(8704)), ((true, 4096), (true, 3584)));
    assert_eq!(told(12288), (false, (1 << 20) - 12288));
    assert_eq!(told((1 << 20) - 512), (false, 512));
}

#[test]
fn a_file_that_was_replaced_is_still_the_image_and_is_told_from_one_that_was_changed() {
    let folder = folder();
    let path = sparse(&folder, "replaced", 8192);
    let image = Image::open(&path, Access::ReadOnly, BlockSize::B512).unwrap();
    assert_eq!(image.compare(&image.identity_now().unwrap()), Ok(Standing::Same));
    std::fs::rename(sparse(&folder, "other", 8192), &path).unwrap();
    assert_eq!(image.compare(&image.identity_now().unwrap()), Ok(Standing::Nameless));
    let changed = Identity { modified: (1, 0), ..image.identity_now().unwrap() };
    assert_eq!(image.compare(&changed), Err(FaultKind::Changed));
    // One that never had a name has none to lose.
    let unnamed = in_memory(1 << 20, &[7; 4096], Access::ReadOnly);
    assert_eq!(unnamed.look(), Ok(Standing::Same));
}
