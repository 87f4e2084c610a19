//! `pollux bdev`: list, create, delete.

use std::path::{Path, PathBuf};

use clap::Subcommand;
use serde_json::{Map, Value, json};

use super::CliError;
use super::client::{CallError, Client};
use super::output::{Output, cell, table, text};
use super::units::{parse_size, size};

#[derive(Debug, Subcommand)]
pub(crate) enum BdevCommand {
    /// List block devices
    List {
        /// Only this one (a name, an alias or a UUID)
        name: Option<String>,
    },
    /// Create a block device
    #[command(subcommand)]
    Create(Create),
    /// Delete a block device
    Delete {
        /// Its name, an alias or its UUID
        name: String,
        /// Detach it from the controllers it is attached to first
        #[arg(long)]
        force: bool,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum Create {
    /// In memory: contents are lost when the daemon ends
    #[command(visible_alias = "ram")]
    Malloc(Sized),
    /// Stores nothing; reads bring nothing
    Null(Sized),
    /// A file or block device of this machine
    #[command(visible_aliases = ["aio", "uring"])]
    File {
        /// Name of the new device
        name: String,
        /// The file or device
        path: PathBuf,
        /// Block size in bytes [default: what the file or device has]
        #[arg(long)]
        block_size: Option<u32>,
        /// Refuse writes
        #[arg(long)]
        read_only: bool,
        /// Its UUID [default: random]
        #[arg(long)]
        uuid: Option<String>,
    },
    /// A whole SCSI device of this machine (disk, tape, changer, optical drive) for one VM, which sends it its commands
    Sg {
        /// Name of the new device
        name: String,
        /// Its SCSI generic device, /dev/sg*
        path: PathBuf,
        /// What the VM may do beyond using the medium: reservations, format, firmware, ata, security, settings, other
        #[arg(long, value_delimiter = ',')]
        allow: Vec<String>,
        /// Its UUID [default: random]
        #[arg(long)]
        uuid: Option<String>,
    },
    /// Hands everything on to its base
    Passthru {
        /// Name of the new device
        name: String,
        /// The device below
        base: String,
    },
    /// Equal parts of a device, named BASEp0, BASEp1 and so on
    Split {
        /// The device to split
        base: String,
        /// How many parts
        count: u32,
        /// Size of a part, for example 1G [default: equal parts]
        #[arg(long, value_parser = parse_size)]
        size: Option<u64>,
    },
    /// Slows its base down
    Delay {
        /// Name of the new device
        name: String,
        /// The device below
        base: String,
        /// Added to each read, microseconds
        #[arg(long, default_value_t = 0)]
        read_us: u64,
        /// Added to one read in a hundred [default: the same]
        #[arg(long)]
        read_p99_us: Option<u64>,
        /// Added to each write, microseconds
        #[arg(long, default_value_t = 0)]
        write_us: u64,
        /// Added to one write in a hundred [default: the same]
        #[arg(long)]
        write_p99_us: Option<u64>,
    },
    /// Fails on demand, for drills; named EE_BASE
    #[command(visible_alias = "fault")]
    Error {
        /// The device below
        base: String,
        /// Keep acknowledged writes in memory until they are flushed (`bdev_error_power_cut` loses the rest)
        #[arg(long)]
        volatile_cache: bool,
        /// Append all that reaches the base to this file, in order: what a power cut leaves can be told from it
        #[arg(long)]
        record: Option<PathBuf>,
    },
}

#[derive(clap::Args, Debug)]
pub(crate) struct Sized {
    /// Name of the new device
    name: String,
    /// Its size, for example 512M or 10G
    #[arg(long, value_parser = parse_size)]
    size: u64,
    /// Block size in bytes
    #[arg(long, default_value_t = 512)]
    block_size: u32,
    /// Its UUID [default: random]
    #[arg(long)]
    uuid: Option<String>,
}

pub(crate) fn run(
    command: &BdevCommand,
    connect: impl FnOnce() -> Result<Client, CallError>,
    output: &Output,
) -> Result<(), CliError> {
    match command {
        BdevCommand::List { name } => {
            let params = name.as_ref().map_or(Value::Null, |name| json!({"name": name}));
            let bdevs = connect()?.call("bdev_get_bdevs", params)?;
            output.show(&bdevs, list)
        }
        BdevCommand::Create(create) => {
            let (method, params) = request(create)?;
            let names = connect()?.call(method, Value::Object(params))?;
            output.show(&names, |names| created(create, names))
        }
        BdevCommand::Delete { name, force } => {
            let mut params = json!({"name": name});
            if *force {
                params["force"] = true.into();
            }
            let done = connect()?.call("bdev_delete", params)?;
            output.show(&done, |_| format!("deleted {name}\n"))
        }
    }
}

/// The method and parameters that make what was asked for.
fn request(create: &Create) -> Result<(&'static str, Map<String, Value>), CliError> {
    let (method, params) = match create {
        Create::Malloc(sized) => ("bdev_malloc_create", sized_params(sized)),
        Create::Null(sized) => ("bdev_null_create", sized_params(sized)),
        Create::File { name, path, block_size, read_only, uuid } => {
            let mut params = json!({"name": name, "filename": absolute(path)?});
            if *read_only {
                params["readonly"] = true.into();
            }
            put(&mut params, "block_size", block_size.map(Value::from));
            put(&mut params, "uuid", uuid.clone().map(Value::from));
            ("bdev_aio_create", params)
        }
        Create::Sg { name, path, allow, uuid } => {
            let mut params = json!({"name": name, "path": absolute(path)?});
            if !allow.is_empty() {
                params["allow"] = json!(allow);
            }
            put(&mut params, "uuid", uuid.clone().map(Value::from));
            ("bdev_sg_create", params)
        }
        Create::Passthru { name, base } => ("bdev_passthru_create", json!({"name": name, "base_bdev_name": base})),
        Create::Split { base, count, size } => {
            let mut params = json!({"base_bdev": base, "split_count": count});
            if let Some(size) = size {
                if *size == 0 || size % (1 << 20) != 0 {
                    return Err(CliError::Usage("the size of a part must be a multiple of 1M".into()));
                }
                params["split_size_mb"] = (size >> 20).into();
            }
            ("bdev_split_create", params)
        }
        Create::Delay { name, base, read_us, read_p99_us, write_us, write_p99_us } => (
            "bdev_delay_create",
            json!({
                "name": name,
                "base_bdev_name": base,
                "avg_read_latency": read_us,
                "p99_read_latency": read_p99_us.unwrap_or(*read_us),
                "avg_write_latency": write_us,
                "p99_write_latency": write_p99_us.unwrap_or(*write_us),
            }),
        ),
        Create::Error { base, volatile_cache, record } => {
            let mut params = json!({"base_name": base, "volatile_cache": volatile_cache});
            put(&mut params, "record", record.as_deref().map(absolute).transpose()?.map(Value::from));
            ("bdev_error_create", params)
        }
    };
    match params {
        Value::Object(params) => Ok((method, params)),
        _ => Err(CliError::Failed("no parameters".into())),
    }
}

/// The daemon has another working directory.
fn absolute(path: &Path) -> Result<String, CliError> {
    let path = std::path::absolute(path).map_err(|error| CliError::Failed(format!("{}: {error}", path.display())))?;
    let not_utf8 = |path: PathBuf| CliError::Usage(format!("{} is not UTF-8, which JSON needs", path.display()));
    path.into_os_string().into_string().map_err(|path| not_utf8(path.into()))
}

fn sized_params(sized: &Sized) -> Value {
    let mut params = json!({"name": sized.name, "size": sized.size, "block_size": sized.block_size});
    put(&mut params, "uuid", sized.uuid.clone().map(Value::from));
    params
}

fn put(params: &mut Value, name: &str, value: Option<Value>) {
    if let Some(value) = value {
        params[name] = value;
    }
}

fn created(create: &Create, answer: &Value) -> String {
    match (create, answer) {
        (Create::Error { base, .. }, _) => format!("created EE_{base}\n"),
        (_, Value::Array(names)) => {
            format!("created {}\n", names.iter().map(cell).collect::<Vec<_>>().join(" "))
        }
        (_, name) => format!("created {}\n", cell(name)),
    }
}

fn list(bdevs: &Value) -> String {
    let bdevs = bdevs.as_array().map(Vec::as_slice).unwrap_or_default();
    if bdevs.is_empty() {
        return "no block devices; `pollux bdev create` makes one\n".into();
    }
    let mut rows = table(&["NAME", "KIND", "SIZE", "BLOCK", "STATE", "USED BY", "UUID"]);
    for bdev in bdevs {
        let blocks = bdev["num_blocks"].as_u64().unwrap_or_default();
        let block = bdev["block_size"].as_u64().unwrap_or_default();
        rows.add_row([
            cell(&bdev["name"]),
            cell(&bdev["product_name"]),
            if block == 0 || blocks == 0 { "-".into() } else { size(blocks.saturating_mul(block)) },
            block.to_string(),
            cell(&bdev["state"]),
            users(bdev),
            cell(&bdev["uuid"]),
        ]);
    }
    text(&rows)
}

/// Who uses a device: the one stacked on it, or the controllers it is attached to.
fn users(bdev: &Value) -> String {
    let mut users: Vec<String> = Vec::new();
    if let Some(by) = bdev["claimed_by"].as_str() {
        users.push(by.to_owned());
    }
    users.extend(bdev["attached_to"].as_array().into_iter().flatten().map(|at| cell(&at["ctrlr"])));
    if users.is_empty() { "-".into() } else { users.join(",") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_those_of_the_dialect() {
        let sized = Sized { name: "m".into(), size: 1 << 20, block_size: 512, uuid: None };
        let (method, params) = request(&Create::Malloc(sized)).expect("good");
        assert_eq!(method, "bdev_malloc_create");
        assert_eq!(Value::Object(params), json!({"name": "m", "size": 1 << 20, "block_size": 512}));
        let split = Create::Split { base: "m".into(), count: 2, size: Some(3 << 20) };
        assert_eq!(request(&split).expect("good").1["split_size_mb"], 3);
        let split = Create::Split { base: "m".into(), count: 2, size: Some(7) };
        assert!(matches!(request(&split), Err(CliError::Usage(_))));
        let delay = Create::Delay {
            name: "d".into(),
            base: "m".into(),
            read_us: 5,
            read_p99_us: None,
            write_us: 6,
            write_p99_us: Some(9),
        };
        let params = request(&delay).expect("good").1;
        assert_eq!((&params["p99_read_latency"], &params["p99_write_latency"]), (&json!(5), &json!(9)));
    }

    #[test]
    fn listings_survive_any_answer() {
        assert!(list(&json!([])).contains("bdev create"));
        for odd in [json!(null), json!([{}]), json!([7]), json!([{"num_blocks": u64::MAX, "block_size": 4096}])] {
            assert!(!list(&odd).is_empty());
        }
        let text = list(&json!([{"name": "m0", "product_name": "Malloc disk", "block_size": 512, "num_blocks": 2048,
            "state": "online", "uuid": "u", "claimed_by": null, "attached_to": [{"ctrlr": "vm1"}, {"ctrlr": "vm2"}]}]));
        assert!(text.contains("1 MiB") && text.contains("vm1,vm2"), "{text}");
    }
}
