//! Disks in qcow2 files, with those that are below them, to be read.
//!
//! ```text
//!   map ──► Chain::find ──► here: File{some file of the chain, place}, Zero
//!                └──► its table is not in memory, or it is packed ──► Pending ──► worker brings it, wakes the drive
//! ```
//! Opened by `control` and at the start, from threads that may block. [`Qcow2::map`] answers from memory; the worker is the only one that
//! reads tables, a page at a time, and that expands clusters. Tables and what is expanded have a bounded place in memory (`chain`),
//! whatever the file says. The files are open read-only, and locked against those who would write to them.

mod chain;
mod error;
mod header;
mod open;
mod worker;

use std::{fs::File, sync::Arc, thread::JoinHandle};

use self::{
    chain::{Chain, Found, Layer},
    worker::Bell,
};
pub use self::{
    error::{Qcow2Error, Qcow2ErrorKind},
    open::{Container, Manner},
};
use super::{Extent, FaultKind, Identity, Image, Medium, Residence, Standing, Waker, Watch};
use crate::units::{BlockSize, ByteLen, ByteOffset, ByteRange};

/// The disk in a qcow2 file. Dropped, it lets its files go at once, unless its worker is at work, which then does.
#[derive(Debug)]
pub struct Qcow2 {
    shared: Arc<Shared>,
    worker: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    chain: Chain,
    /// Of the disk, and filled up to whole blocks.
    stored: ByteLen,
    len: ByteLen,
    block_size: BlockSize,
    bell: Bell,
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
                    Found::Missing(need) => match self.bell.want(range, need) {
                        Ok(()) => Extent::Pending { len: range.len() },
                        Err(kind) => Extent::Fault { kind, len: range.len() },
                    },
                }
            }
        }
    }

    fn images(&self) -> impl Iterator<Item = &Image> {
        self.chain.layers.iter().map(Layer::image)
    }
}

impl Qcow2 {
    fn top(&self) -> Option<&Image> {
        self.shared.images().next()
    }
}

impl Medium for Qcow2 {
    fn name(&self) -> String {
        self.top().map(Image::name).unwrap_or_default()
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

    fn writable(&self) -> bool {
        false
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
        None
    }
}

impl Drop for Qcow2 {
    fn drop(&mut self) {
        // A worker at work may wait for storage; this is the drive's thread.
        if self.shared.bell.close()
            && let Some(worker) = self.worker.take()
            && worker.join().is_err()
        {
            tracing::error!("the worker of a qcow2 image has panicked");
        }
    }
}

#[cfg(test)]
mod tests;
