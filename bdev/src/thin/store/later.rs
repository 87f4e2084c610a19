//! Until there are checkpoints.

use super::Store;

#[allow(missing_docs, clippy::unused_self, clippy::must_use_candidate)]
impl Store {
    pub fn is_unsettled(&self) -> bool {
        false
    }
    pub fn is_dirty(&self) -> bool {
        false
    }
    pub fn page_room(&self) -> bool {
        true
    }
    pub fn wants_checkpoint(&self) -> bool {
        false
    }
    pub fn is_checkpointing(&self) -> bool {
        false
    }
    pub fn checkpoint(&mut self) {}
}
