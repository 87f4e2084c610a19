//! From a spec to devices.

use std::sync::Arc;

use pollux_core::Bdev;

use super::Entry;
use crate::{
    BdevError, Delay, Device, Fault, File, FileSpec, Measured, Null, Part, Passthru, Ram, Sg, SgSpec, Spec, SplitSpec,
    StatsSet,
};

/// Makes the devices of a complete spec, in the order of its names. `stats` are the counters of the first of them. What
/// depends on the base's size, or was found in a file, is fixed in the spec.
pub(super) fn build(
    spec: &mut Spec,
    base: Option<&Entry>,
    stats: &Arc<StatsSet>,
) -> Result<Vec<Arc<dyn Device>>, BdevError> {
    let one = |device: Arc<dyn Device>| Ok(vec![device]);
    match spec {
        Spec::Null(spec) => one(Arc::new(Null::new(spec))),
        Spec::Malloc(spec) => one(Arc::new(Ram::new(spec)?)),
        Spec::File(spec) => one(Arc::new(file(spec, stats)?)),
        Spec::Passthru(spec) => one(Arc::new(Passthru::new(&spec.name, &spec.base_bdev_name, below(base)?))),
        Spec::Delay(spec) => one(Arc::new(Delay::new(spec, below(base)?))),
        Spec::Fault(spec) => one(Arc::new(Fault::new(spec, below(base)?)?)),
        Spec::Split(spec) => split(spec, &below(base)?),
        Spec::Sg(spec) => one(Arc::new(sg(spec)?)),
    }
}

fn file(spec: &mut FileSpec, stats: &Arc<StatsSet>) -> Result<File, BdevError> {
    let file = File::new(spec, stats.clone())?;
    if spec.block_size.is_none() {
        spec.found_block_size = Some(file.shape().block_size);
    }
    Ok(file)
}

fn sg(spec: &mut SgSpec) -> Result<Sg, BdevError> {
    let device = Sg::new(spec)?;
    spec.identity = Some(device.identity().to_owned());
    Ok(device)
}

/// The base, counting for it what the layer above does.
fn below(base: Option<&Entry>) -> Result<Arc<dyn Bdev>, BdevError> {
    let base = base.expect("a stacked spec is built with its base");
    let missing = || BdevError::Missing { name: base.name().to_owned(), why: "it is not there itself".to_owned() };
    let device = base.device().ok_or_else(missing)?;
    Ok(Arc::new(Measured::new(device, base.stats().clone())))
}

fn split(spec: &mut SplitSpec, base: &Arc<dyn Bdev>) -> Result<Vec<Arc<dyn Device>>, BdevError> {
    let (shape, count) = (base.shape(), u64::from(spec.split_count));
    let size = match (spec.part_blocks, spec.split_size_mb) {
        (Some(blocks), _) => blocks,
        (None, 0) => shape.num_blocks / count,
        (None, mib) => mib.saturating_mul((1 << 20) / u64::from(shape.block_size)),
    };
    if size == 0 || size.checked_mul(count).is_none_or(|all| all > shape.num_blocks) {
        let has = shape.num_blocks;
        let why = format!("{count} parts of {size} blocks do not fit into {}, which has {has} blocks", spec.base_bdev);
        return Err(BdevError::invalid(if spec.split_size_mb == 0 { "split_count" } else { "split_size_mb" }, why));
    }
    spec.part_blocks = Some(size);
    let part = |nth| Arc::new(Part::new(&spec.base_bdev, base.clone(), nth * size, size)) as Arc<dyn Device>;
    Ok((0..count).map(part).collect())
}
