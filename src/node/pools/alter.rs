//! A pool gets another name, and what its base has grown by.

use pollux_bdev::{Entry, Kind as BdevKind};

use super::open::check_name;
use super::{OpenPool, PoolName};
use crate::node::{Node, NodeError, Reason};

impl Node {
    /// Gives a pool another name: the aliases of its volumes begin with it.
    ///
    /// # Errors
    /// [`NodeError`] says why not.
    pub fn rename_pool(&self, old: &str, new: &str) -> Result<(), NodeError> {
        let _structure = self.pools.structure();
        let _changes = self.change();
        let open = self.find_pool(&PoolName { uuid: None, name: Some(old.to_owned()) })?;
        if old == new {
            return Ok(());
        }
        check_name("new_name", new)?;
        if let Some(base) = self.base_of_pool(new) {
            let why = format!("there is a pool '{new}' already, on bdev '{base}'");
            return Err(NodeError::new(Reason::ExistsDifferent, why));
        }
        let volumes = self.volumes_of(&open);
        if let Some(taken) = open.last_info().volumes.iter().find_map(|volume| {
            let alias = format!("{new}/{}", volume.name);
            volumes.contains(&volume.uuid).then(|| self.bdevs.get(&alias)).flatten().map(|_| alias)
        }) {
            return Err(NodeError::new(Reason::ExistsDifferent, format!("there is a bdev '{taken}' already")));
        }
        open.pool.rename_pool(new)?;
        let info = open.refresh()?;
        for volume in info.volumes.iter().filter(|volume| volumes.contains(&volume.uuid)) {
            self.bdevs.set_alias(volume.uuid, &format!("{new}/{}", volume.name))?;
        }
        self.bdevs.reclaim(open.base.name(), BdevKind::Pool, vec![new.to_owned()]);
        tracing::info!("pool '{old}' is called '{new}'");
        Ok(())
    }

    /// Looks how large a pool's base is, and gives the pool what it has become larger by.
    ///
    /// # Errors
    /// [`NodeError`] says why not.
    pub fn grow_pool(&self, name: &PoolName) -> Result<(), NodeError> {
        let open = self.find_pool(name)?;
        self.look_below(open.base.name())?;
        open.refresh()?;
        self.grow_with_base(&open)
    }

    /// The same by the size that its base is known to have. By what was told of the pool last.
    pub(super) fn grow_with_base(&self, open: &OpenPool) -> Result<(), NodeError> {
        let before = open.last_info();
        let bytes = open.base.device().map_or(0, |device| device.shape().bytes());
        if before.failed || bytes < before.base_bytes + u64::from(before.cluster_size) {
            return Ok(());
        }
        open.pool.grow()?;
        let after = open.refresh()?;
        if after.base_bytes > before.base_bytes {
            let (pool, base) = (&after.name, open.base.name());
            tracing::info!(
                "pool '{pool}' takes {} bytes of bdev '{base}', before {}",
                after.base_bytes,
                before.base_bytes
            );
        }
        Ok(())
    }

    /// Has the sizes of a bdev, and of what it stands on, looked at again.
    fn look_below(&self, name: &str) -> Result<(), NodeError> {
        let mut below = Some(name.to_owned());
        while let Some(name) = below {
            below = self.bdevs.get(&name).and_then(|entry| self.base_name(&entry));
            match self.rescan_bdev(&name) {
                Err(error) if error.reason != "unsupported" => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// What a bdev stands on, by its spec.
    pub(super) fn base_name(&self, entry: &Entry) -> Option<String> {
        let specs = self.bdevs.specs();
        let spec = specs.iter().find(|spec| spec.names().iter().any(|made| made == entry.name()));
        spec.and_then(|spec| spec.base()).map(str::to_owned)
    }
}
