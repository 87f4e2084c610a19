//! `pollux pool` where a daemon has the pool: create, list, show, rename, grow, limit, delete. What needs no daemon is in [`super::pool`].

use clap::Subcommand;
use serde_json::{Value, json};

use super::CliError;
use super::client::{CallError, Client};
use super::job;
use super::output::{Output, cell, table, text};
use super::pool::PoolCommand;
use super::units::{parse_size, size};
use super::volume_list;

/// All that `pollux pool` does.
#[derive(Debug, Subcommand)]
pub(crate) enum PoolsCommand {
    /// Make a pool on a block device, which it then has to itself
    Create {
        /// Its name: 1 to 64 bytes without /
        name: String,
        /// The block device (pollux bdev create makes one)
        #[arg(long, value_name = "BDEV")]
        on: String,
        /// What volumes take of it at once, a power of two from 64K to 4M
        #[arg(long, value_parser = parse_size, default_value = "64K", value_name = "SIZE")]
        cluster_size: u64,
        /// How many bytes volumes may have together, in percent of the pool's [default: any number]
        #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u32).range(1..))]
        overcommit: Option<u32>,
        /// A pool that is there, damaged or not, may be lost
        #[arg(long)]
        force: bool,
    },
    /// List pools
    List,
    /// Show one pool and what is in it
    Show {
        /// The pool
        name: String,
    },
    /// Check a pool while it is used; exit code 0: clean, 4: damaged
    Scrub {
        /// The pool
        name: String,
        /// Most that is read of its metadata in a second
        #[arg(long, value_name = "MIB", value_parser = clap::value_parser!(u64).range(1..))]
        mib_per_second: Option<u64>,
    },
    /// Give a pool another name while it is used
    Rename {
        /// The pool
        name: String,
        /// Its new name
        new: String,
    },
    /// Give a pool what its block device has become larger by
    Grow {
        /// The pool
        name: String,
    },
    /// Say how fast the block device is told of what nobody needs any more
    Limit {
        /// The pool
        name: String,
        /// Whole MiB a second, as 512M or 2G; 0: no limit. What waits can be used meanwhile
        #[arg(long, value_parser = parse_rate, value_name = "SIZE")]
        discards: u64,
    },
    /// Say how much may be used before somebody is told
    Thresholds {
        /// The pool
        name: String,
        /// Percent of the pool (80%) or sizes (10G), up to four; none: nobody is told
        #[arg(value_parser = parse_threshold, value_name = "USED")]
        used: Vec<Used>,
    },
    /// Delete a pool
    Delete {
        /// The pool
        name: String,
        /// With the volumes and snapshots that are in it
        #[arg(long)]
        force: bool,
    },
    #[command(flatten)]
    Offline(PoolCommand),
}

/// How much is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Used {
    Percent(u8),
    Bytes(u64),
}

impl Used {
    const fn percent(self) -> Option<u8> {
        if let Used::Percent(percent) = self { Some(percent) } else { None }
    }

    const fn bytes(self) -> Option<u64> {
        if let Used::Bytes(bytes) = self { Some(bytes) } else { None }
    }
}

fn parse_threshold(text: &str) -> Result<Used, String> {
    match text.strip_suffix('%') {
        Some(percent) => match percent.parse() {
            Ok(percent) if (1..=100).contains(&percent) => Ok(Used::Percent(percent)),
            _ => Err("percentages are 1% to 100%".into()),
        },
        None => parse_size(text).map(Used::Bytes),
    }
}

/// MiB a second.
fn parse_rate(text: &str) -> Result<u64, String> {
    let bytes = parse_size(text)?;
    if bytes.is_multiple_of(1 << 20) { Ok(bytes >> 20) } else { Err("a rate is a whole number of MiB".into()) }
}

pub(crate) fn run(
    command: &PoolsCommand,
    connect: impl FnOnce() -> Result<Client, CallError>,
    output: &Output,
) -> Result<(), CliError> {
    match command {
        PoolsCommand::Create { name, on, cluster_size, overcommit, force } => {
            let mut params = json!({"bdev_name": on, "lvs_name": name, "cluster_sz": cluster_size});
            if let Some(percent) = overcommit {
                params["overcommit"] = (*percent).into();
            }
            if *force {
                params["force"] = true.into();
            }
            let uuid = job::follow(&mut connect()?, "bdev_lvol_create_lvstore", params, "making the pool")?;
            output.show(&uuid, |_| {
                format!("created pool {name} on {on}; `pollux volume create {name}/NAME --size SIZE` makes a volume\n")
            })
        }
        PoolsCommand::List => {
            let pools = connect()?.call("bdev_lvol_get_lvstores", Value::Null)?;
            output.show(&pools, list)
        }
        PoolsCommand::Show { name } => {
            let shown = show(&mut connect()?, name)?;
            output.show(&shown, people)
        }
        PoolsCommand::Scrub { name, mib_per_second } => {
            let mut params = json!({"lvs_name": name});
            if let Some(mib) = mib_per_second {
                params["max_mib_per_second"] = (*mib).into();
            }
            let report = job::follow(&mut connect()?, "bdev_lvol_scrub_lvstore", params, "scrubbing")?;
            output.show(&report, super::pool::people)?;
            if report["verdict"] == "clean" {
                return Ok(());
            }
            let many = report["findings_total"].as_u64().unwrap_or_default();
            Err(CliError::Damaged(format!("pool {name} is damaged: {many} invariants do not hold (docs/format.md)")))
        }
        PoolsCommand::Rename { name, new } => {
            let params = json!({"old_name": name, "new_name": new});
            let done = connect()?.call("bdev_lvol_rename_lvstore", params)?;
            output.show(&done, |_| format!("pool {name} is called {new} now\n"))
        }
        PoolsCommand::Grow { name } => {
            let mut client = connect()?;
            client.call("bdev_lvol_grow_lvstore", json!({"lvs_name": name}))?;
            let pools = client.call("bdev_lvol_get_lvstores", json!({"lvs_name": name}))?;
            output
                .show(&pools[0], |pool| format!("pool {name} has {}\n", size(pool["size_bytes"].as_u64().unwrap_or(0))))
        }
        PoolsCommand::Limit { name, discards } => {
            let params = json!({"lvs_name": name, "discard_mbytes_per_sec": discards});
            let done = connect()?.call("bdev_lvol_set_limits", params)?;
            output.show(&done, |_| format!("the base of pool {name} is told of discards {}\n", rate(*discards)))
        }
        PoolsCommand::Thresholds { name, used } => {
            let percent: Vec<u8> = used.iter().filter_map(|used| used.percent()).collect();
            let bytes: Vec<u64> = used.iter().filter_map(|used| used.bytes()).collect();
            let params = json!({"lvs_name": name, "used_percent": percent, "used_bytes": bytes});
            let done = connect()?.call("bdev_lvol_set_thresholds", params)?;
            output.show(&done, |_| format!("thresholds of pool {name} set\n"))
        }
        PoolsCommand::Delete { name, force } => {
            let mut client = connect()?;
            if !force {
                refuse_filled(name, &client.call("bdev_lvol_get_lvols", json!({"lvs_name": name}))?)?;
            }
            let done = client.call("bdev_lvol_delete_lvstore", json!({"lvs_name": name}))?;
            output.show(&done, |_| format!("deleted pool {name}\n"))
        }
        PoolsCommand::Offline(command) => super::pool::run(command, output),
    }
}

/// A pool with its volumes. One that is not open has none, but says why.
fn show(client: &mut Client, name: &str) -> Result<Value, CliError> {
    let all = client.call("bdev_lvol_get_lvstores", Value::Null)?;
    let is_it = |pool: &&Value| pool["name"] == name || pool["uuid"] == name;
    let found = all.as_array().into_iter().flatten().find(is_it);
    let Some(pool) = found else {
        return Err(CliError::Failed(format!("there is no pool '{name}'; `pollux pool list` shows which there are")));
    };
    let mut pool = pool.clone();
    let open = pool.get("why").is_none();
    let volumes = if open {
        client.call("bdev_lvol_get_lvols", json!({"lvs_uuid": pool["uuid"]}))?
    } else {
        Value::Array(Vec::new())
    };
    pool["lvols"] = volumes;
    Ok(pool)
}

/// Refuses to delete what somebody may want to keep.
fn refuse_filled(name: &str, volumes: &Value) -> Result<(), CliError> {
    let volumes = volumes.as_array().map(Vec::as_slice).unwrap_or_default();
    if volumes.is_empty() {
        return Ok(());
    }
    let snapshots = volumes.iter().filter(|volume| volume["is_snapshot"] == true).count();
    Err(CliError::Failed(format!(
        "pool '{name}' has {} volumes and {snapshots} snapshots, which would be lost: delete them first (`pollux volume \
         delete`), or say --force",
        volumes.len() - snapshots
    )))
}

fn bytes(value: &Value) -> u64 {
    value.as_u64().unwrap_or_default()
}

fn list(pools: &Value) -> String {
    let pools = pools.as_array().map(Vec::as_slice).unwrap_or_default();
    if pools.is_empty() {
        return "no pools; `pollux pool create` makes one on a block device\n".into();
    }
    let mut rows = table(&["POOL", "STATE", "SIZE", "USED", "FREE", "CLUSTER", "VOLUMES", "SNAPSHOTS", "BDEV"]);
    for pool in pools {
        let open = pool.get("why").is_none();
        let sized = |bytes: u64| if open { size(bytes) } else { "-".into() };
        rows.add_row([
            cell(&pool["name"]),
            cell(&pool["state"]),
            sized(bytes(&pool["size_bytes"])),
            sized(used(pool)),
            sized(bytes(&pool["free_bytes"])),
            sized(bytes(&pool["cluster_size"])),
            cell(&pool["volumes"]),
            cell(&pool["snapshots"]),
            cell(&pool["base_bdev"]),
        ]);
    }
    let mut out = text(&rows);
    for pool in pools.iter().filter(|pool| pool.get("why").is_some()) {
        out +=
            &format!("{} on {} is not open: {}\n", cell(&pool["name"]), cell(&pool["base_bdev"]), cell(&pool["why"]));
    }
    out
}

/// What cannot be allocated, but for what comes back by itself.
fn used(pool: &Value) -> u64 {
    let not_used = bytes(&pool["free_bytes"]).saturating_add(bytes(&pool["quarantined_bytes"]));
    bytes(&pool["size_bytes"]).saturating_sub(not_used)
}

/// How fast, in MiB a second.
fn rate(mib: u64) -> String {
    if mib == 0 { "without a limit".into() } else { format!("at {} a second", size(mib.saturating_mul(1 << 20))) }
}

fn people(pool: &Value) -> String {
    let mut out = format!(
        "pool {} ({}) on {}: {}\n",
        cell(&pool["name"]),
        cell(&pool["uuid"]),
        cell(&pool["base_bdev"]),
        cell(&pool["state"])
    );
    if pool.get("why").is_some() {
        out += &format!(
            "  {}\n  `pollux pool check PATH` on what the base is made of says what is wrong\n",
            cell(&pool["why"])
        );
        return out;
    }
    let (of, now) = (bytes(&pool["size_bytes"]), used(pool));
    let percent = (u128::from(now) * 100).checked_div(u128::from(of)).unwrap_or_default();
    out += &format!(
        "  size {}, used {} ({percent} %), free {}, given back but not free yet {}, clusters of {}\n",
        size(of),
        size(now),
        size(bytes(&pool["free_bytes"])),
        size(bytes(&pool["quarantined_bytes"])),
        size(bytes(&pool["cluster_size"])),
    );
    if let Some(mib) = pool["discard_mbytes_per_sec"].as_u64() {
        let waiting = size(bytes(&pool["discards_waiting_bytes"]));
        out += &format!("  discards go down {}, {waiting} wait for it\n", rate(mib));
    }
    for threshold in pool["thresholds"].as_array().into_iter().flatten() {
        let reached = if threshold["reached"] == true { ", which is REACHED" } else { "" };
        out += &format!("  threshold: {} used{reached}\n", size(bytes(&threshold["used_bytes"])));
    }
    match cell(&pool["state"]).as_str() {
        "full" => {
            out += "  FULL: writes that need space wait or fail; delete snapshots, fstrim in the guests, or grow it\n";
        }
        "failed" => out += "  FAILED: its base did; reads go on, writes are refused until the base is created anew\n",
        _ => {}
    }
    out + &volume_list::people(&pool["lvols"])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool() -> Value {
        json!({"name": "lvs", "uuid": "u", "base_bdev": "f0", "state": "online", "size_bytes": 1 << 30, "free_bytes": 512 << 20,
               "quarantined_bytes": 256 << 20, "cluster_size": 65536, "volumes": 1, "snapshots": 0})
    }

    #[test]
    fn pools_are_listed_with_what_is_wrong_with_them() {
        assert!(list(&json!([])).contains("pool create"));
        let shown =
            list(&json!([pool(), {"name": "old", "state": "damaged", "why": "no superblock", "base_bdev": "f1"}]));
        assert!(shown.contains("256 MiB  512 MiB"), "{shown}");
        assert!(shown.contains("old on f1 is not open: no superblock"), "{shown}");
    }

    #[test]
    fn one_pool_is_shown_with_its_volumes() {
        let mut one = pool();
        one["lvols"] = json!([{"alias": "lvs/v", "name": "v", "size_bytes": 4096}]);
        let shown = people(&one);
        assert!(shown.contains("used 256 MiB (25 %)") && shown.contains("lvs/v"), "{shown}");
        one["state"] = "full".into();
        assert!(people(&one).contains("FULL"));
        assert!(people(&json!({"why": "w"})).contains("pool check"));
    }

    #[test]
    fn the_rate_of_discards_is_set_and_shown_in_bytes() {
        assert_eq!((parse_rate("2G"), parse_rate("0")), (Ok(2048), Ok(0)));
        assert!(["100K", "1.3M", "fast"].iter().all(|text| parse_rate(text).is_err()));
        let mut one = pool();
        assert!(!people(&one).contains("discards"), "{}", people(&one));
        one["discard_mbytes_per_sec"] = 2048.into();
        one["discards_waiting_bytes"] = (3 << 20).into();
        assert!(people(&one).contains("discards go down at 2 GiB a second, 3 MiB wait"), "{}", people(&one));
        one["discard_mbytes_per_sec"] = 0.into();
        assert!(people(&one).contains("discards go down without a limit"), "{}", people(&one));
    }

    #[test]
    fn thresholds_are_percentages_or_sizes() {
        assert_eq!((parse_threshold("80%"), parse_threshold("1M")), (Ok(Used::Percent(80)), Ok(Used::Bytes(1 << 20))));
        assert!(["0%", "101%", "x%", "1Q"].iter().all(|text| parse_threshold(text).is_err()));
        let mut one = pool();
        one["thresholds"] = json!([{"used_bytes": 1 << 20, "reached": true}]);
        assert!(people(&one).contains("threshold: 1 MiB used, which is REACHED"), "{}", people(&one));
    }

    #[test]
    fn a_pool_with_something_in_it_is_not_deleted_by_the_way() {
        assert!(refuse_filled("lvs", &json!([])).is_ok());
        let filled = json!([{"is_snapshot": true}, {"is_snapshot": false}]);
        let told = refuse_filled("lvs", &filled).expect_err("filled").to_string();
        assert!(told.contains("1 volumes and 1 snapshots") && told.contains("--force"), "{told}");
    }
}
