//! Pools and volumes by their names.

use std::sync::Arc;

use pollux_bdev::{Entry, Kind as BdevKind};

use super::OpenPool;
use crate::node::{Node, NodeError, Reason};

/// What a pool is called by: exactly one of the two.
#[derive(Clone, Debug, Default)]
pub struct PoolName {
    /// Its UUID.
    pub uuid: Option<String>,
    /// Its name.
    pub name: Option<String>,
}

impl PoolName {
    fn is_of(&self, open: &OpenPool) -> bool {
        match (&self.uuid, &self.name) {
            (Some(uuid), _) => uuid::Uuid::try_parse(uuid).is_ok_and(|uuid| uuid == open.uuid()),
            (None, Some(name)) => open.last_info().name == *name,
            (None, None) => false,
        }
    }
}

impl Node {
    /// The pool of this name.
    ///
    /// # Errors
    /// If there is none, or if it is not said which.
    pub fn find_pool(&self, name: &PoolName) -> Result<Arc<OpenPool>, NodeError> {
        if name.uuid.is_some() == name.name.is_some() {
            return Err(NodeError::new(Reason::Invalid, "give the pool's uuid or its lvs_name, and not both"));
        }
        let found = self.pools.all().into_iter().find(|open| name.is_of(open));
        found.ok_or_else(|| {
            let asked = name.name.as_ref().or(name.uuid.as_ref()).cloned().unwrap_or_default();
            let closed = self.pools.closed();
            let closed = closed.iter().find(|(_, closed)| closed.name == asked || closed.uuid.to_string() == asked);
            match closed {
                Some((base, closed)) => NodeError::new(
                    Reason::Missing,
                    format!("pool '{asked}' on bdev '{base}' is not open: {}", closed.why),
                ),
                None => NodeError::new(Reason::NotFound, format!("there is no pool '{asked}'")),
            }
        })
    }

    /// The volume or snapshot of this name, with its pool.
    pub(super) fn find_volume(&self, name: &str) -> Result<(Arc<OpenPool>, Arc<Entry>), NodeError> {
        let found = self.bdevs.get(name).filter(|entry| entry.kind() == BdevKind::Lvol);
        let none = || NodeError::new(Reason::NotFound, format!("there is no volume or snapshot '{name}'"));
        let entry = found.ok_or_else(none)?;
        match self.pool_of(&entry) {
            Some(open) => Ok((open, entry)),
            None => Err(crate::node::bdevs::missing(&entry)),
        }
    }

    /// The pool that a volume is in, if it is open.
    #[must_use]
    pub fn pool_of(&self, entry: &Entry) -> Option<Arc<OpenPool>> {
        self.pools.all().into_iter().find(|open| open.holds(entry.uuid()))
    }
}
