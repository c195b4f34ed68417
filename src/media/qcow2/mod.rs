//! Disks in qcow2 files, with those that are below them.
//!
//! ```text
//!   map        ──► Chain::find ──► here: File{some file of the chain, place}, Zero
//!                       └──► its table is not in memory, or it is packed ──► Pending ──► worker brings it, wakes the drive
//!   map_write  ──► Chain::place ──► here: File{the first file, place} ──► the ring writes
//!                       └──► nowhere yet ──► Pending ──► worker finds a place, copies what is there already, wakes the drive
//!   sync       Store::begin ──► worker: refcounts, sync, L1 and L2 entries, sync ──► wakes the drive ──► Store::next
//! ```
//! Opened by `control` and at the start, from threads that may block. [`Qcow2::map`] and its like answer from memory; the worker is the
//! only one that reads and writes tables, and that expands clusters. Tables and what is expanded have a bounded place in memory (`chain`),
//! whatever the file says. Only the first file is ever written to, in an order that no cut makes unsound (`write`).

mod chain;
mod error;
mod header;
mod open;
mod worker;
mod write;

use std::{fs::File, sync::Arc, thread::JoinHandle};

use parking_lot::Mutex;

use self::{
    chain::{Chain, Found, Layer, Need, Slot},
    worker::{Bell, Want},
    write::Writer,
};
pub use self::{
    error::{Qcow2Error, Qcow2ErrorKind},
    open::{Container, Manner},
};
use super::{Extent, FaultKind, Identity, Image, Medium, Residence, Standing, Store, Waker, Watch};
use crate::units::{BlockSize, ByteLen, ByteOffset, ByteRange};

/// The disk in a qcow2 file. Dropped, it lets its files go at once, unless its worker is at work or something is not stored yet: then its
/// worker does when that is done.
#[derive(Debug)]
pub struct Qcow2 {
    shared: Arc<Shared>,
    worker: Option<JoinHandle<()>>,
    /// Whose file it is in; it keeps that as it is.
    held: Option<Box<dyn Medium + Sync>>,
}

#[derive(Debug)]
struct Shared {
    chain: Chain,
    /// Of the disk, and filled up to whole blocks.
    stored: ByteLen,
    len: ByteLen,
    block_size: BlockSize,
    bell: Arc<Bell>,
    /// Of one that may be written to.
    writer: Option<Mutex<Writer>>,
}

impl Shared {
    /// Bytes of the disk from `at` on.
    fn left(&self, at: ByteOffset) -> ByteLen {
        ByteLen(self.stored.0.saturating_sub(at.0))
    }

    fn map(&self, range: ByteRange) -> Extent {
        let len = range.len();
        let (stored, all) = (self.left(range.start()), ByteLen(self.len.0.saturating_sub(range.start().0)));
        if range.is_empty() {
            return Extent::Zero { len };
        }
        match (stored, all) {
            (_, ByteLen(0)) => Extent::Fault { kind: FaultKind::OutOfRange, len },
            // What fills up the last block.
            (ByteLen(0), _) => Extent::Zero { len: len.min(all) },
            _ => {
                let range = range.split_at(stored).0;
                match self.chain.find(range).0 {
                    Found::Here(extent) => extent,
                    Found::Missing(need) => match worker::want(&self.bell, Want::Bytes(range), need) {
                        Ok(()) => Extent::Pending { len: range.len() },
                        Err(kind) => Extent::Fault { kind, len: range.len() },
                    },
                }
            }
        }
    }

    fn map_write(&self, range: ByteRange) -> Extent {
        let len = range.len();
        if range.is_empty() {
            return Extent::Zero { len };
        }
        if len > self.left(range.start()) {
            return Extent::Fault { kind: FaultKind::OutOfRange, len };
        }
        let len = match (self.chain.place(range), self.images().next()) {
            (Ok((Slot::Here(at), len)), Some(image)) => {
                return Extent::File { file: Arc::clone(image.file()), offset: ByteOffset(at), len };
            }
            (Ok((Slot::Damaged, len)), _) => return Extent::Fault { kind: FaultKind::Damaged, len },
            (Ok((_, some)), _) => some,
            (Err(_), _) => len,
        };
        // Whatever is missing of it, the worker fails at the place.
        let need = Need::Place { cluster: range.start().0 >> self.chain.cluster_bits() };
        match worker::want(&self.bell, Want::Places(range), need) {
            Ok(()) => Extent::Pending { len },
            Err(kind) => Extent::Fault { kind, len },
        }
    }

    fn name(&self) -> String {
        self.images().next().map(Image::name).unwrap_or_default()
    }

    fn images(&self) -> impl Iterator<Item = &Image> {
        self.chain.layers.iter().map(Layer::image)
    }
}

impl Qcow2 {
    /// Keeps `medium` as long as the disk is in use.
    pub(super) fn holding(mut self, medium: impl Medium + Sync + 'static) -> Self {
        self.held = Some(Box::new(medium));
        self
    }

    fn top(&self) -> Option<&Image> {
        self.shared.images().next()
    }
}

impl Medium for Qcow2 {
    fn name(&self) -> String {
        self.shared.name()
    }

    fn block_size(&self) -> BlockSize {
        self.shared.block_size
    }

    fn len(&self) -> ByteLen {
        self.shared.len
    }

    fn stored(&self) -> ByteLen {
        self.shared.stored
    }

    fn map(&self, range: ByteRange) -> Extent {
        self.shared.map(range)
    }

    fn set_waker(&mut self, waker: Waker) {
        self.shared.bell.set_waker(waker);
    }

    fn map_write(&self, range: ByteRange) -> Extent {
        self.shared.map_write(range)
    }

    fn written(&self, range: ByteRange) -> Result<ByteLen, FaultKind> {
        self.shared.bell.written();
        Ok(range.len())
    }

    fn writable(&self) -> bool {
        self.shared.writer.is_some()
    }

    fn residence(&self) -> Residence {
        self.shared.images().map(Image::residence).max().unwrap_or(Residence::Remote)
    }

    fn watch(&self) -> Watch<'_> {
        // The one that is hardest to look at.
        let mut all = self.shared.images().map(Image::watch);
        all.find(|watch| !matches!(watch, Watch::Look)).unwrap_or(Watch::Look)
    }

    fn look(&self) -> Result<Standing, FaultKind> {
        let mut standing = Standing::Same;
        for image in self.shared.images().filter(|image| matches!(image.watch(), Watch::Look)) {
            if image.look()? == Standing::Nameless {
                standing = Standing::Nameless;
            }
        }
        Ok(standing)
    }

    fn compare(&self, now: &Identity) -> Result<Standing, FaultKind> {
        let is_of = |image: &&Image| {
            let then = image.identity();
            (then.device, then.inode) == (now.device, now.inode)
        };
        let asked = self.shared.images().find(is_of).or(self.top());
        asked.map_or(Ok(Standing::Same), |image| image.compare(now))
    }

    fn identity(&self) -> Option<Identity> {
        self.top().map(Image::identity)
    }

    fn is_qcow2(&self) -> bool {
        true
    }

    fn file_for_sync(&self) -> Option<&Arc<File>> {
        self.top().filter(|_| self.writable()).map(Image::file)
    }

    fn own_store(&self) -> Option<&dyn Store> {
        self.writable().then_some(&*self.shared.bell)
    }
}

impl Drop for Qcow2 {
    fn drop(&mut self) {
        // A worker at work may wait for storage; this is the drive's thread.
        if self.shared.bell.close(self.writable())
            && let Some(worker) = self.worker.take()
            && worker.join().is_err()
        {
            tracing::error!("the worker of a qcow2 image has panicked");
        }
    }
}

#[cfg(test)]
mod tests;
