//! Building data-in: everything that is put counts, what does not fit is dropped, so no length that an initiator
//! chooses and no number of units can write outside the buffer.

use crate::{Action, Outcome};

/// The answer under construction in the front end's scratch memory.
#[derive(Debug)]
pub(crate) struct DataIn<'a> {
    buffer: &'a mut [u8],
    /// How many bytes have been put, fitting or not.
    len: usize,
}

impl<'a> DataIn<'a> {
    pub(crate) fn new(buffer: &'a mut [u8]) -> DataIn<'a> {
        DataIn { buffer, len: 0 }
    }

    /// How long the answer is so far.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn put(&mut self, bytes: &[u8]) {
        if let Some(room) = self.buffer.get_mut(self.len..) {
            let fits = bytes.len().min(room.len());
            room[..fits].copy_from_slice(&bytes[..fits]);
        }
        self.len += bytes.len();
    }

    /// Writes over what was put before, as far as it is there.
    pub(crate) fn set(&mut self, at: usize, bytes: &[u8]) {
        for (offset, byte) in bytes.iter().enumerate() {
            if let Some(to) = self.buffer.get_mut(at + offset) {
                *to = *byte;
            }
        }
    }

    /// GOOD with what was put, cut to the allocation length.
    pub(crate) fn answer(&self, allocation_length: usize) -> Action {
        Action::Done(Outcome::data(self.len.min(self.buffer.len()).min(allocation_length)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_counts_and_is_dropped() {
        let mut buffer = [0xEE; 4];
        let mut data = DataIn::new(&mut buffer);
        data.put(&[1, 2, 3]);
        data.put(&[4, 5]);
        data.put(&[6]);
        data.set(3, &[9, 9]);
        assert_eq!(data.len(), 6);
        for (allocation_length, data_len) in [(0, 0), (3, 3), (4, 4), (100, 4)] {
            let Action::Done(outcome) = data.answer(allocation_length) else { panic!() };
            assert_eq!(outcome, Outcome::data(data_len));
        }
        assert_eq!(buffer, [1, 2, 3, 9]);
    }
}
