//! The table of what is in flight: a fixed number of slots, and keys that die with their operation.
//!
//! A key is a slot and the slot's generation, which changes whenever the slot is emptied. A completion or a cancellation that
//! comes late therefore finds nothing, instead of somebody else's operation in the same slot.

/// A fixed-capacity slab.
#[derive(Debug)]
pub(super) struct Slab<T> {
    slots: Box<[Slot<T>]>,
    /// Indices of empty slots; never reallocated, because it starts with all of them.
    empty: Vec<u32>,
}

#[derive(Debug)]
struct Slot<T> {
    generation: u32,
    value: Option<T>,
}

/// Names one stay of one value in the slab: generation in the upper half, slot in the lower, as io_uring's `user_data`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key(pub(super) u64);

impl Key {
    fn new(index: u32, generation: u32) -> Self {
        Self(u64::from(generation) << 32 | u64::from(index))
    }

    /// The slot. In range for keys that a slab made; anything for other numbers.
    pub(super) fn index(self) -> usize {
        usize::try_from(self.0 & u64::from(u32::MAX)).unwrap_or(usize::MAX)
    }

    fn generation(self) -> u64 {
        self.0 >> 32
    }
}

impl<T> Slab<T> {
    pub(super) fn new(capacity: u32) -> Self {
        let slots = (0..capacity).map(|_| Slot { generation: 0, value: None }).collect();
        Self { slots, empty: (0..capacity).rev().collect() }
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.empty.len()
    }

    /// Gives the value back when there is no room.
    pub(super) fn insert(&mut self, value: T) -> Result<Key, T> {
        let Some(index) = self.empty.pop() else { return Err(value) };
        let Some(slot) = usize::try_from(index).ok().and_then(|i| self.slots.get_mut(i)) else {
            return Err(value);
        };
        slot.value = Some(value);
        Ok(Key::new(index, slot.generation))
    }

    pub(super) fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        self.slot(key)?.value.as_mut()
    }

    /// Takes the value out and lets the key die.
    pub(super) fn remove(&mut self, key: Key) -> Option<T> {
        let slot = self.slot(key)?;
        let value = slot.value.take()?;
        slot.generation = slot.generation.wrapping_add(1);
        self.empty.push(u32::try_from(key.index()).ok()?);
        Some(value)
    }

    /// Keys and values of the occupied slots.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Key, &T)> {
        (0..)
            .zip(&self.slots)
            .filter_map(|(i, slot)| Some((Key::new(i, slot.generation), slot.value.as_ref()?)))
    }

    /// Empties the slab.
    pub(super) fn drain(&mut self) -> impl Iterator<Item = T> {
        self.empty.clear();
        let capacity = u32::try_from(self.slots.len()).unwrap_or(u32::MAX);
        self.empty.extend((0..capacity).rev());
        self.slots.iter_mut().filter_map(|slot| {
            slot.generation = slot.generation.wrapping_add(1);
            slot.value.take()
        })
    }

    fn slot(&mut self, key: Key) -> Option<&mut Slot<T>> {
        self.slots.get_mut(key.index()).filter(|slot| u64::from(slot.generation) == key.generation())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    #[test]
    fn a_stale_key_does_not_find_the_next_tenant_of_its_slot() {
        let mut slab = Slab::new(1);
        let old = slab.insert("old").unwrap();
        assert_eq!(slab.remove(old), Some("old"));
        let new = slab.insert("new").unwrap();
        assert_eq!(old.index(), new.index());
        assert_eq!((slab.remove(old), slab.get_mut(old)), (None, None));
        assert_eq!(slab.remove(new), Some("new"));
    }

    #[test]
    fn a_full_slab_gives_the_value_back_and_unknown_keys_find_nothing() {
        let mut slab = Slab::new(2);
        slab.insert(1).unwrap();
        slab.insert(2).unwrap();
        assert_eq!(slab.insert(3), Err(3));
        for wild in [2, u64::MAX, u64::MAX << 32] {
            assert_eq!(slab.remove(Key(wild)), None);
        }
        assert_eq!(slab.drain().collect::<Vec<_>>(), [1, 2]);
        assert_eq!(slab.len(), 0);
        assert_eq!((slab.insert(4).is_ok(), slab.insert(5).is_ok(), slab.insert(6)), (true, true, Err(6)));
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig { failure_persistence: None, ..Default::default() })]
        #[test]
        fn it_behaves_like_a_map_under_any_order_of_calls(steps in proptest::collection::vec((0u8..3, 0usize..8), 0..200)) {
            let mut slab = Slab::new(4);
            let (mut model, mut dead, mut made) = (HashMap::new(), Vec::new(), 0u32);
            for (step, pick) in steps {
                let keys: Vec<Key> = slab.iter().map(|(key, _)| key).collect();
                match step {
                    0 => match slab.insert(made) {
                        Ok(key) => {
                            assert!(model.insert(key, made).is_none(), "a key was used twice");
                            made += 1;
                        }
                        Err(_) => assert_eq!(model.len(), 4),
                    },
                    1 if !keys.is_empty() => {
                        let key = keys[pick % keys.len()];
                        assert_eq!(slab.remove(key), model.remove(&key));
                        dead.push(key);
                    }
                    _ => assert!(dead.iter().all(|key| slab.get_mut(*key).is_none())),
                }
                assert_eq!(slab.len(), model.len());
                assert!(slab.iter().all(|(key, value)| model.get(&key) == Some(value)));
            }
        }
    }
}
