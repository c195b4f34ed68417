use super::*;

const FINGERPRINT: u64 = 0x0123_4567_89ab_cdef;

fn drive() -> KeptDrive {
    let identity =
        Identity { device: 8, inode: 77, len: ByteLen(4096), modified: (1_700_000_000, 5), named: true };
    let image = KeptImage {
        name: "/srv/ö.iso".into(),
        writable: true,
        identity: Some(identity),
        lost: true,
        first_read: true,
    };
    KeptDrive { kind: Kind::Disk, rw: true, number: 3, image: Some(image), unit: KeptUnit::default() }
}

fn left(work: impl FnOnce(&mut Handover)) -> File {
    let (mut handover, file) = Handover::create().unwrap();
    handover.begin(FINGERPRINT, 1);
    handover.keep_drive(0, &drive());
    work(&mut handover);
    file
}

fn unfinished(work: impl FnOnce(&mut Handover)) -> Unfinished {
    Handover::open(&left(work), FINGERPRINT).unwrap().0.unfinished()
}

#[test]
fn a_drive_is_found_as_it_was_left_and_a_long_name_is_cut() {
    let (_, drives) = Handover::open(&left(|_| {}), FINGERPRINT).unwrap();
    assert_eq!(drives, [drive()]);
    let mut long = drive();
    long.image.as_mut().unwrap().name = "ö".repeat(300);
    let (_, drives) = Handover::open(&left(|left| left.keep_drive(0, &long)), FINGERPRINT).unwrap();
    assert_eq!(drives[0].image.as_ref().unwrap().name, "ö".repeat(212));
}

#[test]
fn each_step_of_a_command_leaves_what_is_to_be_done() {
    let last = Last::new([7; CSW_LEN], Expected::In(512), 0x28, 0);
    let mut cbw = [0; CBW_LEN];
    cbw[..4].copy_from_slice(b"USBC");
    let post = move |left: &mut Handover, arrives: bool| {
        let mut buf = left.cbw_buf().unwrap();
        if arrives {
            buf[..CBW_LEN].copy_from_slice(&cbw);
        }
    };
    assert_eq!(unfinished(|_| {}), Unfinished::Nothing);
    assert_eq!(unfinished(|left| post(left, false)), Unfinished::Nothing);
    assert_eq!(unfinished(|left| post(left, true)), Unfinished::Unbegun(cbw));
    let moving = |left: &mut Handover| {
        post(left, true);
        left.moving();
    };
    assert_eq!(unfinished(moving), Unfinished::Begun(cbw));
    let answered = |left: &mut Handover| {
        moving(left);
        left.answered(last, Behind::Nothing);
    };
    assert_eq!(unfinished(answered), Unfinished::Answered(last));
    let posted = |left: &mut Handover, arrives| {
        answered(left);
        post(left, arrives);
    };
    assert_eq!(unfinished(|left| posted(left, false)), Unfinished::Answered(last));
    assert_eq!(unfinished(|left| posted(left, true)), Unfinished::Unbegun(cbw));
    let taken = |left: &mut Handover| {
        posted(left, false);
        left.taken();
    };
    assert_eq!(unfinished(taken), Unfinished::Nothing);
    let too_early = |left: &mut Handover| {
        moving(left);
        left.taken();
    };
    assert_eq!(unfinished(too_early), Unfinished::Begun(cbw));
    let broken = |left: &mut Handover| {
        posted(left, true);
        left.broken();
    };
    assert_eq!(unfinished(broken), Unfinished::Broken);
    let reset = |left: &mut Handover| {
        posted(left, true);
        left.reset();
    };
    assert_eq!(unfinished(reset), Unfinished::Nothing);
    let again = |left: &mut Handover| {
        reset(left);
        post(left, true);
    };
    assert_eq!(unfinished(again), Unfinished::Unbegun(cbw));
}

#[test]
fn a_cbw_behind_left_overs_outlives_who_begins_it() {
    let last = Last::new([7; CSW_LEN], Expected::Out(512), 0x2a, 0);
    let mut cbw = [0; CBW_LEN];
    cbw[..4].copy_from_slice(b"USBC");
    let answered = |left: &mut Handover| {
        left.moving();
        left.answered(last, Behind::LeftOvers);
    };
    let drained = |left: &mut Handover| {
        answered(left);
        left.cbw_buf().unwrap()[1024..1024 + CBW_LEN].copy_from_slice(&cbw);
    };
    assert_eq!(unfinished(drained), Unfinished::Unbegun(cbw));
    let died_of_it = |left: &mut Handover| {
        drained(left);
        assert_eq!(left.unfinished(), Unfinished::Unbegun(cbw));
        left.moving();
        left.drained();
    };
    assert_eq!(unfinished(died_of_it), Unfinished::Begun(cbw));
    let drains = |left: &mut Handover| {
        answered(left);
        left.cbw_buf().unwrap()[..2048].fill(7);
    };
    assert_eq!(unfinished(drains), Unfinished::Answered(last));
}

#[test]
fn another_version_another_configuration_and_half_a_change_are_refused() {
    let open = |file: &File| Handover::open(file, FINGERPRINT).map(drop);
    assert!(matches!(open(&left(|left| left.record().version += 1)), Err(HandoverError::Version)));
    assert!(matches!(open(&left(|left| left.record().len -= 1)), Err(HandoverError::Version)));
    assert!(matches!(open(&left(|left| left.record().magic[0] = 0)), Err(HandoverError::Version)));
    assert!(matches!(Handover::open(&left(|_| {}), 1).map(drop), Err(HandoverError::Configuration)));
    assert!(matches!(open(&left(|left| left.record().drives[0].whole = 0)), Err(HandoverError::Torn)));
    assert!(matches!(open(&left(|left| left.record().drives[0].kind = 9)), Err(HandoverError::Torn)));
    // A file that could be cut short under us.
    assert!(matches!(open(&tempfile::tempfile().unwrap()), Err(HandoverError::Memory(_))));
}
