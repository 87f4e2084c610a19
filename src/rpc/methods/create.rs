//! The `bdev_*_create` methods, and the calls that make a bdev again (for `save_config`).

use pollux_bdev::{DelaySpec, FaultSpec, FileSpec, Flavor, NullSpec, PassthruSpec, RamSpec, SgSpec, Spec, SplitSpec};
use pollux_scsi::Allow;
use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::node::{Node, NodeError};
use crate::rpc::error::{RpcError, code, strerror};
use crate::rpc::params::Habit;
use crate::rpc::table::Answer;

/// Creates and answers with the one name.
fn named(node: &Node, spec: Spec) -> Answer {
    let names = node.create_bdev(spec).map_err(|error| error.by_errno())?;
    Ok(names.into_iter().next().map_or(Value::Null, Value::from))
}

/// The size of a device that has no other: in blocks as in SPDK, or in bytes or MiB.
fn blocks(block_size: u32, num_blocks: Option<u64>, size: Option<u64>, mib: Option<u64>) -> Result<u64, RpcError> {
    let bad = |detail: &str| Habit::Decode.error(detail);
    let bytes = match (num_blocks, size, mib) {
        (Some(blocks), None, None) => return Ok(blocks),
        (None, Some(bytes), None) => bytes,
        (None, None, Some(mib)) => mib.checked_mul(1 << 20).ok_or_else(|| bad("size_in_mib is too large"))?,
        (None, None, None) => return Err(bad("num_blocks is missing (or size in bytes, or size_in_mib)")),
        _ => return Err(bad("give one of num_blocks, size and size_in_mib")),
    };
    let block_size = u64::from(block_size);
    if block_size == 0 || bytes % block_size != 0 {
        return Err(bad(&format!("a size of {bytes} bytes is not a multiple of the block size {block_size}")));
    }
    Ok(bytes / block_size)
}

/// Refuses what would change the format of blocks: metadata and protection information.
fn no_metadata(md_size: Option<u32>, dif_type: Option<i32>) -> Result<(), RpcError> {
    if md_size.unwrap_or(0) == 0 && dif_type.unwrap_or(0) == 0 {
        return Ok(());
    }
    let error = RpcError::errno(crate::rpc::error::errno::EOPNOTSUPP, "unsupported");
    Err(error.detail("metadata and protection information are not supported: md_size and dif_type must be 0"))
}

/// Parameters of `bdev_malloc_create`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Malloc {
    #[serde(default)]
    name: String,
    block_size: u32,
    #[serde(default)]
    num_blocks: Option<u64>,
    #[serde(default)]
    size: Option<u64>,
    #[serde(default)]
    size_in_mib: Option<u64>,
    #[serde(default)]
    uuid: Option<Uuid>,
    #[serde(default)]
    physical_block_size: Option<u32>,
    #[serde(default, rename = "optimal_io_boundary")]
    _optimal_io_boundary: Option<u32>,
    #[serde(default)]
    md_size: Option<u32>,
    #[serde(default, rename = "md_interleave")]
    _md_interleave: Option<bool>,
    #[serde(default)]
    dif_type: Option<i32>,
    #[serde(default, rename = "dif_is_head_of_md")]
    _dif_is_head_of_md: Option<bool>,
    #[serde(default, rename = "dif_pi_format")]
    _dif_pi_format: Option<u32>,
    #[serde(default, rename = "numa_id")]
    _numa_id: Option<i32>,
}

pub(crate) fn malloc(node: &Node, params: &Malloc) -> Answer {
    no_metadata(params.md_size, params.dif_type)?;
    let spec = RamSpec {
        name: params.name.clone(),
        block_size: params.block_size,
        num_blocks: blocks(params.block_size, params.num_blocks, params.size, params.size_in_mib)?,
        physical_block_size: params.physical_block_size.filter(|size| *size != 0),
        uuid: given(params.uuid),
    };
    named(node, Spec::Malloc(spec))
}

/// SPDK's configurations hold a nil UUID where none was chosen.
fn given(uuid: Option<Uuid>) -> Option<Uuid> {
    uuid.filter(|uuid| !uuid.is_nil())
}

/// Parameters of `bdev_null_create`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Null {
    name: String,
    block_size: u32,
    #[serde(default)]
    num_blocks: Option<u64>,
    #[serde(default)]
    size: Option<u64>,
    #[serde(default)]
    size_in_mib: Option<u64>,
    #[serde(default)]
    uuid: Option<Uuid>,
    #[serde(default)]
    physical_block_size: Option<u32>,
    #[serde(default)]
    md_size: Option<u32>,
    #[serde(default)]
    dif_type: Option<i32>,
    #[serde(default, rename = "dif_is_head_of_md")]
    _dif_is_head_of_md: Option<bool>,
    #[serde(default, rename = "dif_pi_format")]
    _dif_pi_format: Option<u32>,
    #[serde(default, rename = "preferred_write_granularity")]
    _preferred_write_granularity: Option<u32>,
    #[serde(default, rename = "preferred_write_alignment")]
    _preferred_write_alignment: Option<u32>,
    #[serde(default, rename = "optimal_write_size")]
    _optimal_write_size: Option<u32>,
    #[serde(default, rename = "preferred_unmap_granularity")]
    _preferred_unmap_granularity: Option<u32>,
    #[serde(default, rename = "preferred_unmap_alignment")]
    _preferred_unmap_alignment: Option<u32>,
}

pub(crate) fn null(node: &Node, params: &Null) -> Answer {
    no_metadata(params.md_size, params.dif_type)?;
    let spec = NullSpec {
        name: params.name.clone(),
        block_size: params.block_size,
        num_blocks: blocks(params.block_size, params.num_blocks, params.size, params.size_in_mib)?,
        physical_block_size: params.physical_block_size.filter(|size| *size != 0),
        uuid: given(params.uuid),
    };
    named(node, Spec::Null(spec))
}

/// Parameters of `bdev_aio_create`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Aio {
    name: String,
    filename: String,
    #[serde(default)]
    block_size: Option<u32>,
    #[serde(default)]
    physical_block_size: Option<u32>,
    #[serde(default)]
    readonly: bool,
    #[serde(default)]
    fallocate: bool,
    #[serde(default)]
    discard: Option<bool>,
    #[serde(default)]
    uuid: Option<Uuid>,
    /// The ring never blocks a reactor, so there is nothing to switch.
    #[serde(default, rename = "nowait")]
    _nowait: Option<bool>,
}

pub(crate) fn aio(node: &Node, params: &Aio) -> Answer {
    let spec = FileSpec {
        block_size: params.block_size.filter(|size| *size != 0),
        physical_block_size: params.physical_block_size.filter(|size| *size != 0),
        readonly: params.readonly,
        fallocate: params.fallocate,
        discard: params.discard.unwrap_or(true),
        uuid: given(params.uuid),
        ..FileSpec::new(&params.name, &absolute(&params.filename)?)
    };
    named(node, Spec::File(spec))
}

/// The state outlives the daemon's working directory.
fn absolute(filename: &str) -> Result<String, RpcError> {
    if filename.starts_with('/') || filename.is_empty() {
        return Ok(filename.to_owned());
    }
    let path = std::path::absolute(filename).map_err(|error| Habit::Decode.error(format!("{filename}: {error}")))?;
    path.into_os_string().into_string().map_err(|_| Habit::Decode.error("filename must be an absolute path"))
}

/// Parameters of `bdev_uring_create`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Uring {
    name: String,
    filename: String,
    #[serde(default)]
    block_size: Option<u32>,
    #[serde(default)]
    uuid: Option<Uuid>,
}

pub(crate) fn uring(node: &Node, params: &Uring) -> Answer {
    let spec = FileSpec {
        flavor: Flavor::Uring,
        block_size: params.block_size.filter(|size| *size != 0),
        uuid: given(params.uuid),
        ..FileSpec::new(&params.name, &absolute(&params.filename)?)
    };
    // SPDK has one text for everything that goes wrong here.
    named(node, Spec::File(spec)).map_err(|error| match error.reason {
        "invalid_parameters" => error,
        _ => error.recoded(code::INTERNAL_ERROR, "Unable to create URING bdev."),
    })
}

/// Parameters of `bdev_passthru_create`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Passthru {
    name: String,
    base_bdev_name: String,
    #[serde(default)]
    uuid: Option<Uuid>,
}

pub(crate) fn passthru(node: &Node, params: &Passthru) -> Answer {
    let spec = PassthruSpec {
        name: params.name.clone(),
        base_bdev_name: params.base_bdev_name.clone(),
        uuid: given(params.uuid),
    };
    named(node, Spec::Passthru(spec))
}

/// Parameters of `bdev_split_create`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Split {
    base_bdev: String,
    split_count: u32,
    #[serde(default)]
    split_size_mb: u64,
    #[serde(default)]
    part_blocks: Option<u64>,
    #[serde(default)]
    uuids: Vec<Uuid>,
}

impl Split {
    fn spec(&self) -> Spec {
        Spec::Split(SplitSpec {
            base_bdev: self.base_bdev.clone(),
            split_count: self.split_count,
            split_size_mb: self.split_size_mb,
            part_blocks: self.part_blocks,
            uuids: self.uuids.clone(),
        })
    }
}

pub(crate) fn split(node: &Node, params: &Split) -> Answer {
    let failed = |error: NodeError| {
        let (count, base) = (params.split_count, &params.base_bdev);
        let message = format!("Failed to create {count} split bdevs from '{base}': {}", strerror(error.errno));
        error.by_errno().recoded(code::INTERNAL_ERROR, message)
    };
    node.create_bdev(params.spec()).map(Value::from).map_err(failed)
}

/// Parameters of `bdev_delay_create`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Delay {
    name: String,
    base_bdev_name: String,
    avg_read_latency: u64,
    p99_read_latency: u64,
    avg_write_latency: u64,
    p99_write_latency: u64,
    #[serde(default)]
    uuid: Option<Uuid>,
}

pub(crate) fn delay(node: &Node, params: &Delay) -> Answer {
    let spec = DelaySpec {
        name: params.name.clone(),
        base_bdev_name: params.base_bdev_name.clone(),
        avg_read_latency: params.avg_read_latency,
        p99_read_latency: params.p99_read_latency,
        avg_write_latency: params.avg_write_latency,
        p99_write_latency: params.p99_write_latency,
        uuid: given(params.uuid),
    };
    named(node, Spec::Delay(spec))
}

/// Parameters of `bdev_error_create`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Error {
    base_name: String,
    #[serde(default)]
    uuid: Option<Uuid>,
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    volatile_cache: Option<bool>,
    #[serde(default)]
    cache_mib: Option<u32>,
    #[serde(default)]
    record: Option<String>,
}

pub(crate) fn error(node: &Node, params: &Error) -> Answer {
    let mut spec = FaultSpec::new(&params.base_name);
    spec.uuid = given(params.uuid);
    spec.name.clone_from(&params.name);
    spec.volatile_cache = params.volatile_cache.unwrap_or(false);
    spec.cache_mib = params.cache_mib.unwrap_or(spec.cache_mib);
    spec.record = params.record.as_deref().map(absolute).transpose()?;
    super::done(node.create_bdev(Spec::Fault(spec)).map(drop))
}

/// Parameters of `bdev_sg_create`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sg {
    name: String,
    path: String,
    #[serde(default)]
    allow: Vec<String>,
    #[serde(default)]
    identity: Option<String>,
    #[serde(default)]
    uuid: Option<Uuid>,
}

pub(crate) fn sg(node: &Node, params: &Sg) -> Answer {
    if let Some(unknown) = params.allow.iter().find(|name| Allow::named(name).is_none()) {
        let names: Vec<&str> = Allow::NAMES.iter().map(|(name, _)| *name).collect();
        return Err(Habit::Decode.error(format!("allow: '{unknown}' is none of {}", names.join(", "))));
    }
    let mut allow = params.allow.clone();
    allow.sort_unstable();
    allow.dedup();
    let spec = SgSpec {
        name: params.name.clone(),
        path: absolute(&params.path)?,
        allow,
        identity: params.identity.clone(),
        uuid: given(params.uuid),
    };
    named(node, Spec::Sg(spec))
}

/// The call that makes a bdev again.
pub(crate) fn replay(spec: &Spec) -> Value {
    let method = match spec {
        Spec::Null(_) => "bdev_null_create",
        Spec::Malloc(_) => "bdev_malloc_create",
        Spec::File(FileSpec { flavor: Flavor::Aio, .. }) => "bdev_aio_create",
        Spec::File(FileSpec { flavor: Flavor::Uring, .. }) => "bdev_uring_create",
        Spec::Passthru(_) => "bdev_passthru_create",
        Spec::Split(_) => "bdev_split_create",
        Spec::Delay(_) => "bdev_delay_create",
        Spec::Fault(_) => "bdev_error_create",
        Spec::Sg(_) => "bdev_sg_create",
    };
    json!({"method": method, "params": replay_params(spec)})
}

fn replay_params(spec: &Spec) -> Value {
    let params = match spec {
        Spec::Null(NullSpec { name, block_size, num_blocks, physical_block_size, uuid })
        | Spec::Malloc(RamSpec { name, block_size, num_blocks, physical_block_size, uuid }) => json!({
            "name": name, "num_blocks": num_blocks, "block_size": block_size,
            "physical_block_size": physical_block_size, "uuid": uuid,
        }),
        Spec::File(file) if file.flavor == Flavor::Uring => json!({
            "name": file.name, "filename": file.filename, "block_size": file.block_size, "uuid": file.uuid,
        }),
        Spec::File(file) => json!({
            "name": file.name, "filename": file.filename, "block_size": file.block_size,
            "physical_block_size": file.physical_block_size, "readonly": file.readonly, "fallocate": file.fallocate,
            "discard": if file.discard { Value::Null } else { false.into() }, "uuid": file.uuid,
        }),
        Spec::Passthru(passthru) => json!({
            "name": passthru.name, "base_bdev_name": passthru.base_bdev_name, "uuid": passthru.uuid,
        }),
        Spec::Split(split) => json!({
            "base_bdev": split.base_bdev, "split_count": split.split_count, "split_size_mb": split.split_size_mb,
            "part_blocks": split.part_blocks, "uuids": split.uuids,
        }),
        Spec::Delay(delay) => json!({
            "name": delay.name, "base_bdev_name": delay.base_bdev_name, "uuid": delay.uuid,
            "avg_read_latency": delay.avg_read_latency, "p99_read_latency": delay.p99_read_latency,
            "avg_write_latency": delay.avg_write_latency, "p99_write_latency": delay.p99_write_latency,
        }),
        Spec::Fault(fault) => json!({
            "base_name": fault.base_name, "uuid": fault.uuid, "name": fault.name,
            "volatile_cache": if fault.volatile_cache { true.into() } else { Value::Null },
            "cache_mib": if fault.volatile_cache { fault.cache_mib.into() } else { Value::Null },
            "record": fault.record,
        }),
        Spec::Sg(sg) => json!({
            "name": sg.name, "path": sg.path, "identity": sg.identity, "uuid": sg.uuid,
            "allow": if sg.allow.is_empty() { Value::Null } else { json!(sg.allow) },
        }),
    };
    match params {
        Value::Object(mut members) => {
            members.retain(|_, value| !value.is_null());
            Value::Object(members)
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rpc::params::decode;
    use crate::rpc::table::find;
    use pollux_bdev::Registry;

    #[test]
    fn sizes_are_given_once() {
        assert_eq!(blocks(512, Some(7), None, None), Ok(7));
        assert_eq!(blocks(512, None, Some(1024), None), Ok(2));
        assert_eq!(blocks(4096, None, None, Some(1)), Ok(256));
        for (block_size, num_blocks, size, mib) in [
            (512, None, None, None),
            (512, Some(1), Some(512), None),
            (512, None, Some(513), None),
            (0, None, Some(512), None),
            (512, None, None, Some(u64::MAX)),
        ] {
            let error = blocks(block_size, num_blocks, size, mib).expect_err("refused");
            assert_eq!(error.reason, "invalid_parameters");
        }
    }

    #[test]
    fn what_is_replayed_is_what_the_methods_take() {
        let uuid = Some(Uuid::from_u128(7));
        let file = FileSpec { discard: false, readonly: true, uuid, ..FileSpec::new("f", "/dev/x") };
        let fault = FaultSpec { volatile_cache: true, uuid, name: Some("bad".into()), ..FaultSpec::new("f") };
        let fault = FaultSpec { record: Some("/r".into()), ..fault };
        let (name, base_bdev_name) = ("p".to_owned(), "f".to_owned());
        let delay = DelaySpec {
            name: name.clone(),
            base_bdev_name: base_bdev_name.clone(),
            avg_read_latency: 1,
            p99_read_latency: 2,
            avg_write_latency: 3,
            p99_write_latency: 4,
            uuid,
        };
        let uuids = vec![Uuid::from_u128(8), Uuid::from_u128(9)];
        let split = SplitSpec { base_bdev: "f".into(), split_count: 2, split_size_mb: 0, part_blocks: Some(4), uuids };
        let ram = RamSpec { name: name.clone(), block_size: 512, num_blocks: 8, physical_block_size: Some(4096), uuid };
        let call = |spec: &Spec| replay(spec)["params"].clone();
        assert!(decode::<Malloc>(call(&Spec::Malloc(ram)), Habit::Decode).is_ok());
        assert!(decode::<Aio>(call(&Spec::File(file.clone())), Habit::Decode).is_ok());
        let uring = Spec::File(FileSpec { flavor: Flavor::Uring, ..file });
        assert!(decode::<Uring>(call(&uring), Habit::Decode).is_ok());
        assert!(decode::<Error>(call(&Spec::Fault(fault)), Habit::Decode).is_ok());
        assert!(decode::<Delay>(call(&Spec::Delay(delay)), Habit::Decode).is_ok());
        let split = Spec::Split(split);
        assert_eq!(decode::<Split>(call(&split), Habit::Decode).expect("good").spec(), split);
        let passthru = Spec::Passthru(PassthruSpec { name, base_bdev_name, uuid });
        assert!(decode::<Passthru>(call(&passthru), Habit::Decode).is_ok());
        assert!(find(replay(&passthru)["method"].as_str().unwrap_or_default()).is_some());
    }

    #[test]
    fn parts_stay_where_they_are_when_the_base_has_grown() {
        let null = |num_blocks| {
            Spec::Null(NullSpec {
                name: "n".into(),
                block_size: 512,
                num_blocks,
                physical_block_size: None,
                uuid: None,
            })
        };
        let params = json!({"base_bdev": "n", "split_count": 2});
        let asked = decode::<Split>(params, Habit::Decode).expect("good").spec();
        let saved = Registry::new();
        saved.create(null(8)).expect("made");
        saved.create(asked).expect("made");
        let made = saved.specs().remove(1);
        let again = decode::<Split>(replay(&made)["params"].clone(), Habit::Decode).expect("good").spec();
        let loaded = Registry::new();
        loaded.create(null(16)).expect("made");
        let parts = loaded.create(again).expect("made");
        assert_eq!(loaded.specs().remove(1), made);
        assert_eq!(parts[1].device().expect("online").shape().num_blocks, 4);
    }
}
