//! What the host was told, sector by sector: after a power cut each holds what was promised last, or what was sent since.

use std::ops::Range;

use crate::{
    model::SECTOR,
    overlaid::Layout,
    store::{Bytes, Store, sectors_of},
};

/// What a sector may hold: first what was promised, then what was sent since, in the order of the host.
struct Told {
    may_hold: Vec<Bytes>,
    /// The last that the host was told is written.
    written: usize,
}

/// All that one host knows of one disk.
pub struct Promises(Vec<Told>);

impl Promises {
    /// Of a disk that holds these bytes.
    pub fn new(bytes: &[u8]) -> Self {
        let told = |bytes| Told { may_hold: vec![bytes], written: 0 };
        Self(sectors_of(bytes).into_iter().map(told).collect())
    }

    pub fn all(&self) -> Range<usize> {
        0..self.0.len()
    }

    /// What the host believes of these sectors.
    pub fn believed(&self, sectors: Range<usize>) -> Vec<u8> {
        self.0[sectors].iter().flat_map(|told| *told.may_hold[told.written]).collect()
    }

    /// The host begins to send this.
    pub fn sent(&mut self, first: usize, bytes: &[u8]) {
        for (told, bytes) in self.0[first..].iter_mut().zip(sectors_of(bytes)) {
            told.may_hold.push(bytes);
        }
    }

    /// What was sent last got GOOD.
    pub fn written(&mut self, sectors: Range<usize>) {
        self.0[sectors].iter_mut().for_each(|told| told.written = told.may_hold.len() - 1);
    }

    /// The host was told that what is written there is durable.
    pub fn durable(&mut self, sectors: Range<usize>) {
        for told in &mut self.0[sectors] {
            told.may_hold.drain(..std::mem::take(&mut told.written));
        }
    }

    /// The host was told that another medium is in, after losses: what was written to the old one, nobody promises any more.
    pub fn other_medium(&mut self) {
        self.0.iter_mut().for_each(|told| told.written = 0);
    }

    /// Whether a power cut now would break a promise. Each sector survives or not by itself, so this looks at all combinations.
    pub fn broken_by(&self, store: &Store, layout: Option<&Layout>) -> Option<String> {
        self.0.iter().enumerate().find_map(|(sector, told)| {
            let unheard = |found: &&Bytes| !told.may_hold.iter().any(|may| may == *found);
            let found = match layout {
                None => store.may_hold(sector).find(unheard),
                Some(layout) => layout.may_hold(store, sector).find(unheard),
            }?;
            let (found, may) = (name(found), told.may_hold.iter().map(|may| name(may)).collect::<Vec<_>>());
            Some(format!("a power cut may leave sector {sector} with {found}; the host was told of {may:?}"))
        })
    }
}

/// The write that a sector's bytes name.
fn name(bytes: &[u8; SECTOR]) -> String {
    match u64::from_le_bytes(*bytes.first_chunk().unwrap()) {
        0 if bytes.iter().all(|byte| *byte == 0) => "zeroes".into(),
        write => format!("write {write}"),
    }
}
