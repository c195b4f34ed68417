//! The bits against a model, and the order against power cuts.

use std::{cell::RefCell, collections::BTreeMap};

use proptest::prelude::*;

use super::{super::layout::Mark, *};

const LEN: u64 = 3 * 16 * 1024 + 512;

fn head(len: u64) -> Head {
    let mark = Mark { base_len: ByteLen(len), base_modified: (1, 2), id: [3; 16], committing: false };
    Head { geometry: Geometry::new(ByteLen(len)).unwrap(), base: b"/base".to_vec(), over_qcow2: false, mark }
}

fn range(start: u64, len: u64) -> ByteRange {
    ByteRange::new(ByteOffset(start), ByteLen(len)).unwrap()
}

fn set(store: &Store, start: u64, len: u64) -> u64 {
    store.set(range(start, len), |_| Ok::<_, ()>(())).unwrap().0
}

/// A file that notes what was done to it.
#[derive(Default)]
struct Logged(RefCell<Vec<Call>>);

#[derive(Clone, Debug)]
enum Call {
    Write(u64, Vec<u8>),
    Sync,
}

impl BlockFile for Logged {
    fn get(&self, to: &mut [u8], at: u64) -> io::Result<()> {
        let all = self.0.borrow();
        Disk::of(all.iter().filter_map(|call| match call {
            Call::Write(at, bytes) => Some((*at, bytes.as_slice())),
            Call::Sync => None,
        }))
        .get(to, at)
    }

    fn put(&self, bytes: &[u8], at: u64) -> io::Result<()> {
        self.0.borrow_mut().push(Call::Write(at, bytes.to_vec()));
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.0.borrow_mut().push(Call::Sync);
        Ok(())
    }
}

/// A disk of sectors; what was never written reads as zeroes.
#[derive(Clone, Default)]
struct Disk(BTreeMap<u64, [u8; 512]>);

impl Disk {
    fn of<'a>(writes: impl Iterator<Item = (u64, &'a [u8])>) -> Self {
        let mut disk = Self::default();
        writes.for_each(|(at, bytes)| disk.write(at, bytes));
        disk
    }

    fn write(&mut self, at: u64, bytes: &[u8]) {
        for (n, byte) in (at..).zip(bytes) {
            self.0.entry(n / 512).or_insert([0; 512])[usize::try_from(n % 512).unwrap()] = *byte;
        }
    }
}

impl BlockFile for Disk {
    fn get(&self, to: &mut [u8], at: u64) -> io::Result<()> {
        for (n, byte) in (at..).zip(to) {
            *byte = self.0.get(&(n / 512)).map_or(0, |sector| sector[usize::try_from(n % 512).unwrap()]);
        }
        Ok(())
    }

    fn put(&self, _: &[u8], _: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_torn_subcluster_is_told_and_not_taken_for_here() {
    // 64 GiB have subclusters of 1 KiB.
    let store = Store::new(*head(64 << 30).geometry_of());
    assert_eq!(store.torn(range(512, 2048)), [Some(0), Some(2)]);
    assert_eq!(store.torn(range(512, 512)), [Some(0), None]);
    assert_eq!(store.torn(range(1024, 1024)), [None, None]);
    assert_eq!(set(&store, 1024, 1536), 1024, "half a subcluster more is not here");
    assert_eq!(set(&store, 2048, 512), 0);
    assert_eq!(set(&store, 2048, 1024), 1024);
    assert_eq!(store.torn(range(1536, 1024)), [None, None]);
    assert_eq!(set(&store, 1536, 1024), 1024);
    assert_eq!(store.run(range(1024, 4096)), (true, ByteLen(2048)));
}

#[test]
fn the_end_of_the_disk_ends_its_last_subcluster() {
    let len = (64 << 30) + 512;
    let store = Store::new(*head(len).geometry_of());
    assert_eq!(store.torn(range(64 << 30, 512)), [None, None]);
    assert_eq!(set(&store, 64 << 30, 512), 512);
    assert_eq!(store.run(range(64 << 30, 512)), (true, ByteLen(512)));
    assert_eq!(store.runs().collect::<Vec<_>>(), [range(64 << 30, 512)]);
}

impl Head {
    fn geometry_of(&self) -> &Geometry {
        &self.geometry
    }
}

proptest! {
    #[test]
    fn runs_are_those_of_a_model(writes in prop::collection::vec((0..LEN / 512, 1..70_u64), 0..20)) {
        let store = Store::new(*head(LEN).geometry_of());
        let mut model = vec![false; usize::try_from(LEN / 512).unwrap()];
        for (start, count) in writes {
            let count = count.min(LEN / 512 - start);
            prop_assert_eq!(set(&store, start * 512, count * 512), count * 512);
            for block in start..start + count {
                model[usize::try_from(block).unwrap()] = true;
            }
        }
        let mut at = 0;
        while at < LEN {
            let (here, ByteLen(len)) = store.run(range(at, LEN - at));
            let found = &model[usize::try_from(at / 512).unwrap()..usize::try_from((at + len) / 512).unwrap()];
            prop_assert!(!found.is_empty() && found.iter().all(|block| *block == here));
            at += len;
            let next = model.get(usize::try_from(at / 512).unwrap());
            prop_assert!(next.is_none_or(|next| *next != here), "a run ended too early");
        }
        let count = model.iter().filter(|block| **block).count();
        prop_assert_eq!(store.bytes_here(), ByteLen::from(count * 512));
    }

    /// Each block is filled with the number of the write that wrote it; 0 is the base's.
    #[test]
    fn a_power_cut_leaves_each_block_old_or_new_and_what_was_stored(
        steps in prop::collection::vec(prop::option::weighted(0.8, (0..LEN / 512, 1..40_u64)), 1..12),
        cuts in prop::collection::vec(any::<(prop::sample::Index, u64)>(), 40),
    ) {
        let head = head(LEN);
        let file = Logged::default();
        format(&file, &head).unwrap();
        file.sync().unwrap();
        let born = file.0.borrow().len();
        let store = Store::new(head.geometry);
        let blocks = usize::try_from(LEN / 512).unwrap();
        // By the length of the log: what each block held, and what was promised.
        let mut history = vec![(born, vec![0_u8; blocks], false)];
        for (step, number) in steps.iter().zip(1_u8..) {
            let mut now = history.last().unwrap().1.clone();
            match step {
                Some((start, count)) => {
                    let count = (*count).min(LEN / 512 - start);
                    let bytes = vec![number; usize::try_from(count * 512).unwrap()];
                    file.put(&bytes, head.geometry.data(ByteOffset(start * 512)).0).unwrap();
                    set(&store, start * 512, count * 512);
                    for block in *start..start + count {
                        now[usize::try_from(block).unwrap()] = number;
                    }
                }
                None => store.store(&file).unwrap(),
            }
            history.push((file.0.borrow().len(), now, step.is_none()));
        }
        let log = file.0.borrow().clone();
        for (cut, mut luck) in cuts {
            let cut = born + cut.index(log.len() - born + 1);
            let synced = log[..cut].iter().rposition(|call| matches!(call, Call::Sync)).unwrap();
            let mut disk = Disk::default();
            for (n, call) in log[..cut].iter().enumerate() {
                let Call::Write(at, bytes) = call else { continue };
                // What no sync has followed may be there or not, sector by sector.
                for (at, sector) in (*at..).step_by(512).zip(bytes.chunks(512)) {
                    luck = luck.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    if n < synced || luck >> 63 == 1 {
                        disk.write(at, sector);
                    }
                }
            }
            let after = Store::load(&disk, head.geometry).map_err(|_| TestCaseError::fail("no overlay any more"))?;
            let promised = history.iter().rposition(|(len, _, stored)| *stored && *len <= cut).unwrap_or(0);
            // The write under way may have landed in part.
            let ended = history.iter().filter(|(len, ..)| *len <= cut).count();
            let last = ended.min(history.len() - 1);
            for block in 0..blocks {
                let at = ByteLen::from(block * 512).0;
                let mut sector = [0; 512];
                if after.run(range(at, 512)).0 {
                    disk.get(&mut sector, head.geometry.data(ByteOffset(at)).0).unwrap();
                }
                prop_assert!(sector.iter().all(|byte| *byte == sector[0]));
                let may = history[promised..=last].iter().any(|(_, held, _)| held[block] == sector[0]);
                prop_assert!(may, "block {block} holds {} after a cut at {cut}", sector[0]);
            }
        }
    }
}
