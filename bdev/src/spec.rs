//! How a device is made: what the RPC builds, what a state file stores, what `save_config` is written from.
//!
//! A spec is complete once the registry has made its device: what was left open in the request (UUIDs, sizes of split
//! parts, an automatic name) is then filled in, so the same spec gives the same device after a restart.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::BdevError;

/// Longest name of a device in bytes.
pub(crate) const MAX_NAME: usize = 255;

/// The kinds of devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// [`NullSpec`].
    Null,
    /// [`RamSpec`].
    Malloc,
    /// [`FileSpec`].
    File,
    /// [`PassthruSpec`].
    Passthru,
    /// [`SplitSpec`].
    Split,
    /// [`DelaySpec`].
    Delay,
    /// [`FaultSpec`].
    Fault,
    /// [`SgSpec`].
    Sg,
    /// A volume or a snapshot of a pool. No spec makes it: the pool does.
    Lvol,
    /// A pool, which owns the device that it is on. No device is of this kind.
    Pool,
    /// Volumes of pools that stand on a device outside of them, and read it. No device is of this kind.
    Clone,
}

impl Kind {
    /// The name used in messages and as the owner of a claim.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Kind::Null => "null",
            Kind::Malloc => "malloc",
            Kind::File => "file",
            Kind::Passthru => "passthru",
            Kind::Split => "split",
            Kind::Delay => "delay",
            Kind::Fault => "fault",
            Kind::Sg => "sg",
            Kind::Lvol => "lvol",
            Kind::Pool => "pool",
            Kind::Clone => "clone",
        }
    }
}

/// How a device is made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Spec {
    /// A device without a medium.
    Null(NullSpec),
    /// A disk in memory.
    Malloc(RamSpec),
    /// A regular file or block device.
    File(FileSpec),
    /// A device that hands everything on.
    Passthru(PassthruSpec),
    /// Parts of a device.
    Split(SplitSpec),
    /// A slow device.
    Delay(DelaySpec),
    /// A device that fails on demand.
    Fault(FaultSpec),
    /// A whole SCSI device of the host.
    Sg(SgSpec),
}

/// A device without a medium.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NullSpec {
    /// Its name.
    pub name: String,
    /// 512 or 4096.
    pub block_size: u32,
    /// Its size in blocks.
    pub num_blocks: u64,
    /// A power of two, at least the block size, which is the default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub physical_block_size: Option<u32>,
    /// Chosen at random if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<Uuid>,
}

/// A disk in memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RamSpec {
    /// Its name; empty: the first free one of `Malloc0`, `Malloc1`, ...
    #[serde(default)]
    pub name: String,
    /// 512 or 4096.
    pub block_size: u32,
    /// Its size in blocks.
    pub num_blocks: u64,
    /// A power of two, at least the block size, which is the default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub physical_block_size: Option<u32>,
    /// Chosen at random if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<Uuid>,
}

/// Which of SPDK's two modules for files a device appears as. They are one device here.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Flavor {
    /// `bdev_aio`.
    #[default]
    Aio,
    /// `bdev_uring`.
    Uring,
}

/// A regular file or block device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileSpec {
    /// Its name.
    pub name: String,
    /// The path.
    pub filename: String,
    /// How it appears.
    #[serde(default)]
    pub flavor: Flavor,
    /// 512 or 4096; if not given, the smallest that allows direct I/O.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub block_size: Option<u32>,
    /// The block size found when the file was opened first and none was given. Kept for good: a disk that comes back
    /// with another one has lost its partition table and file systems.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub found_block_size: Option<u32>,
    /// A power of two, at least the block size; if not given, that of the device or file system.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub physical_block_size: Option<u32>,
    /// Whether writes are refused.
    #[serde(default)]
    pub readonly: bool,
    /// SPDK's parameter of `bdev_aio_create`; kept for listings. Discards do not depend on it.
    #[serde(default)]
    pub fallocate: bool,
    /// Whether discards give space back. On unless switched off.
    #[serde(default = "yes")]
    pub discard: bool,
    /// Chosen at random if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<Uuid>,
}

fn yes() -> bool {
    true
}

impl FileSpec {
    /// The file `filename` as the device `name`, everything else by default.
    #[must_use]
    pub fn new(name: &str, filename: &str) -> Self {
        FileSpec {
            name: name.to_owned(),
            filename: filename.to_owned(),
            flavor: Flavor::Aio,
            block_size: None,
            found_block_size: None,
            physical_block_size: None,
            readonly: false,
            fallocate: false,
            discard: true,
            uuid: None,
        }
    }
}

/// A device that hands everything on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PassthruSpec {
    /// Its name.
    pub name: String,
    /// The device below.
    pub base_bdev_name: String,
    /// Derived from the base's UUID and the name if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<Uuid>,
}

/// Parts of a device, called `<base>p0`, `<base>p1`, ...
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SplitSpec {
    /// The device below.
    pub base_bdev: String,
    /// How many parts.
    pub split_count: u32,
    /// The size of each in MiB; 0: as big as possible.
    #[serde(default)]
    pub split_size_mb: u64,
    /// The size of each in blocks, fixed when the split is made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub part_blocks: Option<u64>,
    /// The UUIDs of the parts; derived from the base's UUID and the names if not given.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub uuids: Vec<Uuid>,
}

/// A slow device. Latencies in microseconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DelaySpec {
    /// Its name.
    pub name: String,
    /// The device below.
    pub base_bdev_name: String,
    /// Of 99 in 100 reads.
    pub avg_read_latency: u64,
    /// Of one in 100 reads.
    pub p99_read_latency: u64,
    /// Of 99 in 100 writes.
    pub avg_write_latency: u64,
    /// Of one in 100 writes.
    pub p99_write_latency: u64,
    /// Derived from the base's UUID and the name if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<Uuid>,
}

/// A device that fails on demand.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FaultSpec {
    /// The device below.
    pub base_name: String,
    /// Its name; if not given, `EE_` and the base's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Whether acknowledged writes stay in a volatile cache until they are flushed.
    #[serde(default)]
    pub volatile_cache: bool,
    /// Size of that cache in MiB.
    #[serde(default = "cache_mib")]
    pub cache_mib: u32,
    /// A file that takes a record of what reaches the base, in order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub record: Option<String>,
    /// Derived from the base's UUID and the name if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<Uuid>,
}

fn cache_mib() -> u32 {
    256
}

impl FaultSpec {
    /// A plain one on `base_name`.
    #[must_use]
    pub fn new(base_name: &str) -> Self {
        let base_name = base_name.to_owned();
        FaultSpec { base_name, name: None, volatile_cache: false, cache_mib: cache_mib(), record: None, uuid: None }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> String {
        self.name.clone().unwrap_or_else(|| format!("EE_{}", self.base_name))
    }
}

/// A whole SCSI device of the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SgSpec {
    /// Its name.
    pub name: String,
    /// The path of its SCSI generic device, `/dev/sg*`.
    pub path: String,
    /// Names of what its guest may do beyond what every guest may; front ends know them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allow: Vec<String>,
    /// What the device called itself when it was opened first. Another one is not opened: the numbers of SCSI generic
    /// devices change.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identity: Option<String>,
    /// Chosen at random if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uuid: Option<Uuid>,
}

impl Spec {
    /// What kind of device it makes.
    #[must_use]
    pub const fn kind(&self) -> Kind {
        match self {
            Spec::Null(_) => Kind::Null,
            Spec::Malloc(_) => Kind::Malloc,
            Spec::File(_) => Kind::File,
            Spec::Passthru(_) => Kind::Passthru,
            Spec::Split(_) => Kind::Split,
            Spec::Delay(_) => Kind::Delay,
            Spec::Fault(_) => Kind::Fault,
            Spec::Sg(_) => Kind::Sg,
        }
    }

    /// SPDK's name for the kind of device.
    #[must_use]
    pub const fn product_name(&self) -> &'static str {
        match self {
            Spec::Null(_) => "Null disk",
            Spec::Malloc(_) => "Malloc disk",
            Spec::File(FileSpec { flavor: Flavor::Aio, .. }) => "AIO disk",
            Spec::File(FileSpec { flavor: Flavor::Uring, .. }) => "URING bdev",
            Spec::Passthru(_) => "passthru",
            Spec::Split(_) => "Split Disk",
            Spec::Delay(_) => "delay",
            Spec::Fault(_) => "Error Injection Disk",
            Spec::Sg(_) => "SCSI generic device",
        }
    }

    /// The names of the devices it makes: one, or several for a split.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        match self {
            Spec::Null(spec) => vec![spec.name.clone()],
            Spec::Malloc(spec) => vec![spec.name.clone()],
            Spec::File(spec) => vec![spec.name.clone()],
            Spec::Passthru(spec) => vec![spec.name.clone()],
            Spec::Delay(spec) => vec![spec.name.clone()],
            Spec::Fault(spec) => vec![spec.name()],
            Spec::Sg(spec) => vec![spec.name.clone()],
            Spec::Split(spec) => (0..spec.split_count).map(|i| format!("{}p{i}", spec.base_bdev)).collect(),
        }
    }

    /// The device it stands on.
    #[must_use]
    pub fn base(&self) -> Option<&str> {
        match self {
            Spec::Null(_) | Spec::Malloc(_) | Spec::File(_) | Spec::Sg(_) => None,
            Spec::Passthru(spec) => Some(&spec.base_bdev_name),
            Spec::Split(spec) => Some(&spec.base_bdev),
            Spec::Delay(spec) => Some(&spec.base_bdev_name),
            Spec::Fault(spec) => Some(&spec.base_name),
        }
    }

    /// Calls the device it stands on by another of its names. Does nothing to a spec that stands on none.
    pub(crate) fn set_base(&mut self, name: &str) {
        match self {
            Spec::Null(_) | Spec::Malloc(_) | Spec::File(_) | Spec::Sg(_) => {}
            Spec::Passthru(spec) => name.clone_into(&mut spec.base_bdev_name),
            Spec::Split(spec) => name.clone_into(&mut spec.base_bdev),
            Spec::Delay(spec) => name.clone_into(&mut spec.base_bdev_name),
            Spec::Fault(spec) => name.clone_into(&mut spec.base_name),
        }
    }

    /// The UUIDs of the devices it makes, in the order of [`Spec::names`]; empty as long as they are open.
    #[must_use]
    pub fn uuids(&self) -> Vec<Uuid> {
        match self {
            Spec::Split(spec) => spec.uuids.clone(),
            Spec::Null(NullSpec { uuid, .. })
            | Spec::Malloc(RamSpec { uuid, .. })
            | Spec::File(FileSpec { uuid, .. })
            | Spec::Passthru(PassthruSpec { uuid, .. })
            | Spec::Delay(DelaySpec { uuid, .. })
            | Spec::Fault(FaultSpec { uuid, .. })
            | Spec::Sg(SgSpec { uuid, .. }) => uuid.iter().copied().collect(),
        }
    }

    /// Fills in UUIDs that are open: derived from the base's where there is one, so that the same orders given again
    /// to an empty daemon make the same disks; else random.
    pub(crate) fn fill_uuids(&mut self, base: Option<Uuid>) {
        let names = self.names();
        let make = |name: &str| base.map_or_else(Uuid::new_v4, |base| Uuid::new_v5(&base, name.as_bytes()));
        match self {
            Spec::Split(spec) => {
                let from = spec.uuids.len().min(names.len());
                spec.uuids.extend(names[from..].iter().map(|name| make(name)));
            }
            Spec::Null(NullSpec { uuid, .. })
            | Spec::Malloc(RamSpec { uuid, .. })
            | Spec::File(FileSpec { uuid, .. })
            | Spec::Passthru(PassthruSpec { uuid, .. })
            | Spec::Delay(DelaySpec { uuid, .. })
            | Spec::Fault(FaultSpec { uuid, .. })
            | Spec::Sg(SgSpec { uuid, .. }) => {
                uuid.get_or_insert_with(|| make(&names[0]));
            }
        }
    }

    /// Whether `self`, a request, asks for what `made`, a complete spec, has made.
    #[must_use]
    pub fn asks_for(&self, made: &Spec) -> bool {
        let mut completed = self.clone();
        match (&mut completed, made) {
            (Spec::Split(mine), Spec::Split(theirs)) => {
                if mine.uuids.is_empty() {
                    mine.uuids.clone_from(&theirs.uuids);
                }
                mine.part_blocks = mine.part_blocks.or(theirs.part_blocks);
            }
            _ => {
                if let (Spec::File(mine), Spec::File(theirs)) = (&mut completed, made) {
                    mine.found_block_size = theirs.found_block_size;
                }
                if let (Spec::Sg(mine), Spec::Sg(theirs)) = (&mut completed, made) {
                    mine.identity = mine.identity.take().or_else(|| theirs.identity.clone());
                }
                if let ([], Some(theirs)) = (&self.uuids()[..], made.uuids().first()) {
                    completed.set_uuid(*theirs);
                }
            }
        }
        completed == *made
    }

    fn set_uuid(&mut self, to: Uuid) {
        match self {
            Spec::Split(_) => {}
            Spec::Null(NullSpec { uuid, .. })
            | Spec::Malloc(RamSpec { uuid, .. })
            | Spec::File(FileSpec { uuid, .. })
            | Spec::Passthru(PassthruSpec { uuid, .. })
            | Spec::Delay(DelaySpec { uuid, .. })
            | Spec::Fault(FaultSpec { uuid, .. })
            | Spec::Sg(SgSpec { uuid, .. }) => *uuid = Some(to),
        }
    }

    /// Checks that it names devices, and not too many to list.
    pub(crate) fn validate_count(&self) -> Result<(), BdevError> {
        match self {
            Spec::Split(spec) if !(1..=4096).contains(&spec.split_count) => {
                Err(BdevError::invalid("split_count", "must be 1 to 4096"))
            }
            _ => Ok(()),
        }
    }

    /// Checks what can be checked without opening anything.
    ///
    /// # Errors
    /// [`BdevError::Invalid`] with the first parameter that is no good.
    pub fn validate(&self) -> Result<(), BdevError> {
        match self {
            Spec::Null(spec) => check_blocks(spec.block_size, spec.num_blocks, spec.physical_block_size)?,
            Spec::Malloc(spec) => check_blocks(spec.block_size, spec.num_blocks, spec.physical_block_size)?,
            Spec::File(spec) => check_file(spec)?,
            Spec::Split(spec) => {
                self.validate_count()?;
                if !spec.uuids.is_empty() && spec.uuids.len() != spec.split_count as usize {
                    return Err(BdevError::invalid("uuids", "must be as many as parts"));
                }
            }
            Spec::Fault(spec) if spec.volatile_cache && spec.cache_mib == 0 => {
                return Err(BdevError::invalid("cache_mib", "must be at least 1"));
            }
            Spec::Fault(FaultSpec { record: Some(path), .. }) if path.is_empty() || path.contains('\0') => {
                return Err(BdevError::invalid("record", "must be the path of a file"));
            }
            Spec::Sg(spec) if spec.path.is_empty() || spec.path.contains('\0') => {
                return Err(BdevError::invalid("path", "must be the path of a SCSI generic device (/dev/sg*)"));
            }
            Spec::Passthru(_) | Spec::Delay(_) | Spec::Fault(_) | Spec::Sg(_) => {}
        }
        self.names().iter().try_for_each(|name| check_name(name))
    }
}

fn check_file(spec: &FileSpec) -> Result<(), BdevError> {
    if spec.filename.is_empty() || spec.filename.contains('\0') {
        return Err(BdevError::invalid("filename", "must be the path of a file or block device"));
    }
    if let Some(size) = spec.block_size {
        check_block_size(size)?;
    }
    check_physical(spec.block_size.unwrap_or(512), spec.physical_block_size)
}

pub(crate) fn check_blocks(block_size: u32, num_blocks: u64, physical: Option<u32>) -> Result<(), BdevError> {
    check_block_size(block_size)?;
    let bytes = num_blocks.checked_mul(u64::from(block_size));
    if !bytes.is_some_and(|bytes| bytes > 0 && i64::try_from(bytes).is_ok()) {
        return Err(BdevError::invalid("num_blocks", "must be at least 1, and less than 2^63 bytes in all"));
    }
    check_physical(block_size, physical)
}

pub(crate) fn check_block_size(size: u32) -> Result<(), BdevError> {
    match size {
        512 | 4096 => Ok(()),
        other => Err(BdevError::invalid("block_size", format!("must be 512 or 4096, not {other}"))),
    }
}

fn check_physical(block_size: u32, physical: Option<u32>) -> Result<(), BdevError> {
    match physical {
        Some(size) if !size.is_power_of_two() || size < block_size || size > 1 << 20 => Err(BdevError::invalid(
            "physical_block_size",
            format!("must be a power of two from the block size {block_size} to 1048576, not {size}"),
        )),
        _ => Ok(()),
    }
}

fn check_name(name: &str) -> Result<(), BdevError> {
    let why = if name.is_empty() {
        "must not be empty"
    } else if name.len() > MAX_NAME {
        "must have at most 255 bytes"
    } else if name.contains('/') {
        "must not contain '/'"
    } else if name.chars().any(char::is_control) {
        "must not contain control characters"
    } else {
        return Ok(());
    };
    Err(BdevError::invalid("name", why))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn examples() -> Vec<Spec> {
        let uuid = Some(Uuid::from_u128(7));
        let file = FileSpec { block_size: Some(512), uuid, ..FileSpec::new("f", "/dev/sdx") };
        let delay = DelaySpec {
            name: "d".into(),
            base_bdev_name: "f".into(),
            avg_read_latency: 1,
            p99_read_latency: 2,
            avg_write_latency: 3,
            p99_write_latency: 4,
            uuid: None,
        };
        vec![
            Spec::Null(NullSpec { name: "n".into(), block_size: 512, num_blocks: 8, physical_block_size: None, uuid }),
            Spec::Malloc(RamSpec {
                name: "m".into(),
                block_size: 4096,
                num_blocks: 8,
                physical_block_size: Some(8192),
                uuid: None,
            }),
            Spec::File(file),
            Spec::Passthru(PassthruSpec { name: "p".into(), base_bdev_name: "f".into(), uuid: None }),
            Spec::Split(SplitSpec {
                base_bdev: "f".into(),
                split_count: 2,
                split_size_mb: 0,
                part_blocks: Some(4),
                uuids: vec![Uuid::from_u128(1), Uuid::from_u128(2)],
            }),
            Spec::Delay(delay),
            Spec::Fault(FaultSpec { volatile_cache: true, ..FaultSpec::new("f") }),
            Spec::Sg(SgSpec {
                name: "t".into(),
                path: "/dev/sg7".into(),
                allow: vec!["format".into()],
                identity: Some("naa.5".into()),
                uuid: None,
            }),
        ]
    }

    #[test]
    fn every_spec_comes_back_from_json_as_it_was() {
        for spec in examples() {
            spec.validate().unwrap();
            let text = serde_json::to_string(&spec).unwrap();
            assert_eq!(serde_json::from_str::<Spec>(&text).unwrap(), spec, "{text}");
            let mut with_more: serde_json::Value = serde_json::from_str(&text).unwrap();
            with_more["nonsense"] = json!(1);
            let error = serde_json::from_value::<Spec>(with_more).unwrap_err().to_string();
            assert!(error.contains("nonsense"), "{error}");
        }
        let fields = json!({"type": "file", "name": "f", "filename": "/x"});
        assert_eq!(serde_json::from_value::<Spec>(fields).unwrap(), Spec::File(FileSpec::new("f", "/x")));
    }

    #[test]
    fn a_request_is_the_same_as_what_it_made() {
        for request in examples() {
            let mut made = request.clone();
            made.fill_uuids(Some(Uuid::from_u128(9)));
            assert_eq!(made.uuids().len(), made.names().len());
            assert!(request.asks_for(&made), "{request:?}");
        }
        let (Spec::Malloc(mut other), made) = (examples().remove(1), examples().remove(1)) else { unreachable!() };
        other.num_blocks += 1;
        assert!(!Spec::Malloc(other.clone()).asks_for(&made));
        other.num_blocks -= 1;
        other.uuid = Some(Uuid::from_u128(3));
        assert!(!Spec::Malloc(other).asks_for(&made));
    }

    #[test]
    fn stacked_devices_get_the_same_uuid_each_time() {
        let made = |base| {
            let mut spec = examples().remove(3);
            spec.fill_uuids(Some(Uuid::from_u128(base)));
            spec.uuids()
        };
        assert_eq!(made(1), made(1));
        assert_ne!(made(1), made(2));
    }

    #[test]
    fn bad_parameters_are_named() {
        let field = |spec: Spec| match spec.validate() {
            Err(BdevError::Invalid { field, .. }) => field,
            other => panic!("{other:?}"),
        };
        let null = |name: &str, block_size, num_blocks, physical_block_size| {
            Spec::Null(NullSpec { name: name.into(), block_size, num_blocks, physical_block_size, uuid: None })
        };
        assert_eq!(field(null("a", 520, 1, None)), "block_size");
        assert_eq!(field(null("a", 512, 0, None)), "num_blocks");
        assert_eq!(field(null("a", 4096, u64::MAX / 2, None)), "num_blocks");
        assert_eq!(field(null("a", 4096, 1, Some(512))), "physical_block_size");
        assert_eq!(field(null("a", 512, 1, Some(3000))), "physical_block_size");
        for name in ["", "a/b", "a\nb", &"x".repeat(256)] {
            assert_eq!(field(null(name, 512, 1, None)), "name");
        }
        assert_eq!(field(Spec::File(FileSpec::new("f", ""))), "filename");
        let split = |split_count, uuids| {
            Spec::Split(SplitSpec { base_bdev: "b".into(), split_count, split_size_mb: 0, part_blocks: None, uuids })
        };
        assert_eq!(field(split(0, vec![])), "split_count");
        assert_eq!(field(split(2, vec![Uuid::nil()])), "uuids");
    }
}
