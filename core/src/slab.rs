//! A fixed table of things in flight. Nothing is allocated after `new`; the kernel (or a layer below) gets a [`Token`]
//! that is checked on the way back, so a completion can never reach a request it does not belong to.

use crate::Token;

struct Slot<T> {
    value: Option<T>,
    generation: u16,
    next_free: u32,
}

/// A slab of at most `capacity` values.
pub struct Slab<T> {
    slots: Box<[Slot<T>]>,
    free: u32,
    used: u32,
}

const NONE: u32 = u32::MAX;

impl<T> Slab<T> {
    /// A slab with room for `capacity` values.
    ///
    /// # Panics
    /// If `capacity` is not below 2^24.
    #[must_use]
    pub fn new(capacity: u32) -> Self {
        assert!(capacity < 1 << 24, "a token's index has 24 bits");
        let slots = (0..capacity)
            .map(|i| Slot { value: None, generation: 0, next_free: if i + 1 < capacity { i + 1 } else { NONE } })
            .collect();
        Slab { slots, free: if capacity == 0 { NONE } else { 0 }, used: 0 }
    }

    /// How many values it has room for.
    #[must_use]
    pub fn capacity(&self) -> u32 {
        self.slots.len() as u32
    }

    /// How many values are in it.
    #[must_use]
    pub const fn len(&self) -> u32 {
        self.used
    }

    /// Whether nothing is in it.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.used == 0
    }

    /// Puts a value in.
    ///
    /// # Errors
    /// Gives the value back if the slab is full.
    pub fn insert(&mut self, value: T) -> Result<Token, T> {
        if self.free == NONE {
            return Err(value);
        }
        let index = self.free;
        let slot = &mut self.slots[index as usize];
        debug_assert!(slot.value.is_none(), "a free slot holds nothing");
        self.free = slot.next_free;
        slot.value = Some(value);
        self.used += 1;
        Ok(Token { index, generation: slot.generation })
    }

    /// The value a token names; `None` if it was taken out since.
    #[must_use]
    pub fn get(&self, token: Token) -> Option<&T> {
        let slot = self.slots.get(token.index as usize)?;
        if slot.generation == token.generation { slot.value.as_ref() } else { None }
    }

    /// The same, to be changed.
    pub fn get_mut(&mut self, token: Token) -> Option<&mut T> {
        let slot = self.slots.get_mut(token.index as usize)?;
        if slot.generation == token.generation { slot.value.as_mut() } else { None }
    }

    /// Takes the value out that a token names; `None` if it was taken out before.
    pub fn remove(&mut self, token: Token) -> Option<T> {
        let slot = self.slots.get_mut(token.index as usize)?;
        if slot.generation != token.generation {
            return None;
        }
        let value = slot.value.take()?;
        slot.generation = slot.generation.wrapping_add(1);
        slot.next_free = self.free;
        self.free = token.index;
        self.used -= 1;
        Some(value)
    }

    /// All values with their tokens.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (Token, &mut T)> {
        self.slots.iter_mut().enumerate().filter_map(|(index, slot)| {
            let token = Token { index: index as u32, generation: slot.generation };
            slot.value.as_mut().map(|value| (token, value))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_good_once() {
        let mut slab = Slab::new(2);
        let a = slab.insert('a').unwrap();
        let b = slab.insert('b').unwrap();
        assert_eq!(slab.insert('c'), Err('c'));
        assert_eq!(slab.remove(a), Some('a'));
        assert_eq!(slab.remove(a), None);
        let c = slab.insert('c').unwrap();
        assert_eq!(c.index, a.index);
        assert!(slab.get_mut(a).is_none(), "the old token does not reach the new value");
        assert_eq!(slab.get_mut(c), Some(&mut 'c'));
        assert_eq!(slab.iter_mut().map(|(t, v)| (t, *v)).collect::<Vec<_>>(), [(c, 'c'), (b, 'b')]);
        assert_eq!((slab.len(), slab.capacity()), (2, 2));
        assert!(Slab::<u8>::new(0).insert(1).is_err());
    }
}
