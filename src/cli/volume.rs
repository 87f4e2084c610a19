//! `pollux volume`: volumes, snapshots and clones in thin pools. A volume is named POOL/NAME, or by its UUID.

use std::path::PathBuf;

use clap::Subcommand;
use serde_json::{Value, json};

use super::CliError;
use super::client::{CallError, Client};
use super::job;
use super::output::Output;
use super::transfer;
use super::units::{parse_size, size};
use super::volume_list;

#[derive(Debug, Subcommand)]
pub(crate) enum VolumeCommand {
    /// Make a volume that reads as zeroes
    Create {
        /// POOL/NAME
        volume: InPool,
        /// Its size, for example 10G; it is rounded up to whole clusters of the pool
        #[arg(long, value_parser = parse_size)]
        size: u64,
        /// Keep all of its space for it, instead of taking what is written
        #[arg(long)]
        thick: bool,
    },
    /// List volumes with their snapshots and clones
    List {
        /// Only those of this pool
        pool: Option<String>,
    },
    /// Make snapshots while the volumes are used, all of them at the same instant
    #[command(
        override_usage = "pollux volume snapshot POOL/VOLUME NAME\n       pollux volume snapshot POOL/VOLUME=NAME..."
    )]
    Snapshot {
        /// A volume and the name of its snapshot, or several, each as POOL/VOLUME=NAME
        #[arg(required = true, value_name = "WHAT")]
        what: Vec<String>,
    },
    /// Make a writable volume that begins as a snapshot is, or as any bdev, which nobody writes from then on
    #[command(
        override_usage = "pollux volume clone POOL/SNAPSHOT NAME\n       pollux volume clone --bdev BDEV POOL/NAME"
    )]
    Clone {
        /// A snapshot and the name of the new volume in the same pool; of a bdev only POOL/NAME of the new volume
        #[arg(required = true, value_name = "WHAT", num_args = 1..=2)]
        what: Vec<String>,
        /// Name or UUID of a bdev to begin as
        #[arg(long)]
        bdev: Option<String>,
    },
    /// Give a volume another size while it is used
    Resize {
        /// POOL/NAME
        volume: String,
        /// The new size, for example 20G; it is rounded up to whole clusters of the pool
        #[arg(value_parser = parse_size)]
        size: u64,
        /// What lies behind the new end may be lost
        #[arg(long)]
        shrink: bool,
    },
    /// Give a volume or a snapshot another name
    Rename {
        /// POOL/NAME
        volume: String,
        /// The new name, in the same pool
        name: String,
    },
    /// Make a volume what one of its snapshots is; what was written since is lost
    Rollback {
        /// POOL/NAME
        volume: String,
        /// The snapshot; the others stay
        snapshot: String,
        /// Even if a virtual machine is connected, which then sees other data
        #[arg(long)]
        force: bool,
    },
    /// Copy all that a volume has from snapshots into it, while it is used; it is thick then and stands on nothing
    Inflate {
        /// POOL/NAME
        volume: String,
    },
    /// Copy what a volume has from its parent into it, while it is used; it stands on what that stands on then
    Decouple {
        /// POOL/NAME
        volume: String,
    },
    /// Put a thin volume on another snapshot: it has from that what it has not itself
    #[command(
        override_usage = "pollux volume set-parent POOL/NAME SNAPSHOT\n       pollux volume set-parent POOL/NAME --bdev BDEV"
    )]
    SetParent {
        /// POOL/NAME
        volume: String,
        /// The snapshot, of the same size
        #[arg(required_unless_present = "bdev", conflicts_with = "bdev")]
        snapshot: Option<String>,
        /// Name or UUID of a bdev to stand on instead, as far as both go; nobody writes it from then on
        #[arg(long)]
        bdev: Option<String>,
        /// Even if a virtual machine is connected, which then sees other data
        #[arg(long)]
        force: bool,
    },
    /// Make a volume a snapshot, under the same name and for good: it can be cloned and not be written any more
    SetReadOnly {
        /// POOL/NAME
        volume: String,
    },
    /// Say how much of its quota a volume may use before somebody is told
    Threshold {
        /// POOL/NAME
        volume: String,
        /// Percent of the quota (`pollux volume limit` sets one); 0: nobody is told
        #[arg(value_parser = clap::value_parser!(u8).range(0..=100))]
        percent: u8,
    },
    /// Say how much space a volume may take, and how much is kept for it
    Limit {
        /// POOL/NAME
        volume: String,
        /// Most bytes that it may own, without what its snapshots have; 0: no limit
        #[arg(long, value_parser = parse_size, value_name = "SIZE", required_unless_present = "reserve")]
        quota: Option<u64>,
        /// Bytes that are kept for it; 0: none
        #[arg(long, value_parser = parse_size, value_name = "SIZE")]
        reserve: Option<u64>,
    },
    /// Write a volume or snapshot, without its holes, to a file or a pipe; a volume as it is at this moment
    Export {
        /// POOL/NAME
        volume: String,
        /// The file; - writes to standard output
        file: PathBuf,
        /// Only what has changed since this snapshot of it
        #[arg(long, value_name = "SNAPSHOT")]
        from_snapshot: Option<String>,
        /// Over a file that is there
        #[arg(long)]
        force: bool,
    },
    /// Make a volume of what was exported; of a difference, on top of the snapshot that it says
    Import {
        /// The file; - reads from standard input
        file: PathBuf,
        /// POOL/NAME of the new volume
        volume: InPool,
        /// Make it a snapshot, onto which later differences can be imported
        #[arg(long)]
        read_only: bool,
    },
    /// Delete a volume or a snapshot
    Delete {
        /// POOL/NAME
        volume: String,
        /// Detach it from the controllers it is attached to first
        #[arg(long)]
        force: bool,
    },
}

/// A name in a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct InPool {
    pool: String,
    name: String,
}

impl std::str::FromStr for InPool {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once('/') {
            Some((pool, name)) if !pool.is_empty() && !name.is_empty() && !name.contains('/') => {
                Ok(InPool { pool: pool.into(), name: name.into() })
            }
            _ => Err("write POOL/NAME; `pollux pool list` shows the pools".into()),
        }
    }
}

pub(crate) fn run(
    command: &VolumeCommand,
    connect: impl FnOnce() -> Result<Client, CallError>,
    output: &Output,
) -> Result<(), CliError> {
    if let VolumeCommand::List { pool } = command {
        let params = pool.as_ref().map_or(Value::Null, |pool| json!({"lvs_name": pool}));
        let volumes = connect()?.call("bdev_lvol_get_lvols", params)?;
        return output.show(&volumes, volume_list::people);
    }
    match command {
        VolumeCommand::Export { volume, file, from_snapshot, force } => {
            let since = from_snapshot.as_ref().map(|snapshot| beside(snapshot, volume));
            return transfer::export(&mut connect()?, volume, since.as_deref(), file, *force, output);
        }
        VolumeCommand::Import { file, volume: InPool { pool, name }, read_only } => {
            return transfer::import(&mut connect()?, file, (pool, name), *read_only, output);
        }
        _ => {}
    }
    let (method, params) = request(command)?;
    let answer = match command {
        VolumeCommand::Inflate { .. } => job::follow(&mut connect()?, method, params, "inflating")?,
        VolumeCommand::Decouple { .. } => job::follow(&mut connect()?, method, params, "decoupling")?,
        _ => connect()?.call(method, params)?,
    };
    output.show(&answer, |_| done(command))
}

/// What is asked of the daemon.
fn request(command: &VolumeCommand) -> Result<(&'static str, Value), CliError> {
    Ok(match command {
        VolumeCommand::Create { volume, size, thick } => {
            let params =
                json!({"lvs_name": volume.pool, "lvol_name": volume.name, "size": size, "thin_provision": !thick});
            ("bdev_lvol_create", params)
        }
        VolumeCommand::List { pool } => ("bdev_lvol_get_lvols", json!({"lvs_name": pool})),
        VolumeCommand::Export { volume, .. } => ("bdev_lvol_export", json!({"name": volume})),
        VolumeCommand::Import { volume: InPool { pool, name }, .. } => {
            ("bdev_lvol_import", json!({"lvs_name": pool, "lvol_name": name}))
        }
        VolumeCommand::Snapshot { what } => snapshots(what)?,
        VolumeCommand::Clone { what, bdev } => clone(what, bdev.as_deref())?,
        VolumeCommand::Resize { volume, size, shrink } => {
            let mut params = json!({"name": volume, "size": size});
            if *shrink {
                params["allow_shrink"] = true.into();
            }
            ("bdev_lvol_resize", params)
        }
        VolumeCommand::Rename { volume, name } => {
            ("bdev_lvol_rename", json!({"old_name": volume, "new_name": bare(name, volume)?}))
        }
        VolumeCommand::Rollback { volume, snapshot, force } => {
            let snapshot = beside(snapshot, volume);
            ("bdev_lvol_rollback", json!({"name": volume, "snapshot_name": snapshot, "force": force}))
        }
        VolumeCommand::Inflate { volume } => ("bdev_lvol_inflate", json!({"name": volume})),
        VolumeCommand::Decouple { volume } => ("bdev_lvol_decouple_parent", json!({"name": volume})),
        VolumeCommand::SetParent { volume, bdev: Some(bdev), force, .. } => {
            ("bdev_lvol_set_parent_bdev", json!({"lvol_name": volume, "parent_name": bdev, "force": force}))
        }
        VolumeCommand::SetParent { volume, snapshot, force, .. } => {
            let snapshot = snapshot.as_deref().unwrap_or_default();
            let parent = beside(snapshot, volume);
            ("bdev_lvol_set_parent", json!({"lvol_name": volume, "parent_name": parent, "force": force}))
        }
        VolumeCommand::SetReadOnly { volume } => ("bdev_lvol_set_read_only", json!({"name": volume})),
        VolumeCommand::Threshold { volume, percent } => {
            ("bdev_lvol_set_thresholds", json!({"name": volume, "quota_percent": percent}))
        }
        VolumeCommand::Limit { volume, quota, reserve } => {
            let mut params = json!({"name": volume});
            for (name, bytes) in [("quota", quota), ("reservation", reserve)] {
                if let Some(bytes) = bytes {
                    params[name] = (*bytes).into();
                }
            }
            ("bdev_lvol_set_limits", params)
        }
        VolumeCommand::Delete { volume, force } => {
            let mut params = json!({"name": volume});
            if *force {
                params["force"] = true.into();
            }
            ("bdev_lvol_delete", params)
        }
    })
}

/// A snapshot and a name, or a bdev and a name in a pool.
fn clone(what: &[String], bdev: Option<&str>) -> Result<(&'static str, Value), CliError> {
    match (what, bdev) {
        ([snapshot, name], None) => {
            Ok(("bdev_lvol_clone", json!({"snapshot_name": snapshot, "clone_name": bare(name, snapshot)?})))
        }
        ([name], Some(bdev)) => {
            let InPool { pool, name } = name.parse().map_err(CliError::Usage)?;
            Ok(("bdev_lvol_clone_bdev", json!({"bdev": bdev, "lvs_name": pool, "clone_name": name})))
        }
        _ => Err(CliError::Usage("write POOL/SNAPSHOT NAME, or --bdev BDEV POOL/NAME".into())),
    }
}

/// One volume and a name, or pairs.
fn snapshots(what: &[String]) -> Result<(&'static str, Value), CliError> {
    let pairs: Option<Vec<(&str, &str)>> = what.iter().map(|one| one.split_once('=')).collect();
    match (what, pairs) {
        (_, Some(pairs)) => {
            let mut names = Vec::new();
            for (volume, name) in &pairs {
                names.push(bare(name, volume)?);
            }
            let volumes: Vec<&str> = pairs.iter().map(|(volume, _)| *volume).collect();
            Ok(("bdev_lvol_snapshot_group", json!({"lvol_names": volumes, "snapshot_names": names})))
        }
        ([volume, name], None) if !volume.contains('=') => {
            Ok(("bdev_lvol_snapshot", json!({"lvol_name": volume, "snapshot_name": bare(name, volume)?})))
        }
        _ => Err(CliError::Usage(
            "write POOL/VOLUME NAME, or for several volumes POOL/VOLUME=NAME POOL/VOLUME=NAME".into(),
        )),
    }
}

/// A new name, which is in the same pool: POOL/ before it is not needed, and no other pool's may be there.
fn bare(name: &str, of: &str) -> Result<String, CliError> {
    let Some((pool, rest)) = name.split_once('/') else { return Ok(name.to_owned()) };
    match of.split_once('/') {
        Some((same, _)) if same == pool => Ok(rest.to_owned()),
        _ => Err(CliError::Usage(format!(
            "'{name}': it will be in the pool that '{of}' is in; give the name without a /"
        ))),
    }
}

/// The name of a volume in the pool of another one; UUIDs are left as they are.
fn beside(name: &str, of: &str) -> String {
    match of.split_once('/') {
        Some((pool, _)) if !name.contains('/') && uuid::Uuid::try_parse(name).is_err() => format!("{pool}/{name}"),
        _ => name.to_owned(),
    }
}

fn done(command: &VolumeCommand) -> String {
    match command {
        VolumeCommand::Create { volume: InPool { pool, name }, size: bytes, thick } => {
            let kind = if *thick { "thick" } else { "thin" };
            let bytes = size(*bytes);
            format!(
                "created {kind} volume {pool}/{name} of {bytes}; `pollux vhost attach CONTROLLER {pool}/{name}` gives it to a VM\n"
            )
        }
        VolumeCommand::List { .. } | VolumeCommand::Export { .. } | VolumeCommand::Import { .. } => String::new(),
        VolumeCommand::Snapshot { what } => made(what),
        VolumeCommand::Clone { what, bdev } => {
            let of = bdev.as_ref().or(what.first()).map_or("", String::as_str);
            format!("made {}, a clone of {of}\n", what.last().map_or("", String::as_str))
        }
        VolumeCommand::Resize { volume, size: bytes, .. } => format!("{volume} has {}\n", size(*bytes)),
        VolumeCommand::Rename { volume, name } => format!("{volume} is called {name} now\n"),
        VolumeCommand::Rollback { volume, snapshot, .. } => format!("{volume} is what {snapshot} is\n"),
        VolumeCommand::Inflate { volume } => {
            format!("{volume} stands on nothing, and all of its space is kept for it\n")
        }
        VolumeCommand::Decouple { volume } => format!("{volume} does not need its parent any more\n"),
        VolumeCommand::SetParent { volume, snapshot, bdev, .. } => {
            format!("{volume} stands on {}\n", bdev.as_ref().or(snapshot.as_ref()).map_or("", String::as_str))
        }
        VolumeCommand::SetReadOnly { volume } => format!("{volume} is a snapshot now\n"),
        VolumeCommand::Threshold { volume, percent: 0 } => {
            format!("nobody is told how much of its quota {volume} uses\n")
        }
        VolumeCommand::Threshold { volume, percent } => {
            format!("{percent} % of its quota is the threshold of {volume}\n")
        }
        VolumeCommand::Limit { volume, .. } => format!("limits of {volume} set\n"),
        VolumeCommand::Delete { volume, .. } => format!("deleted {volume}; its space comes back in the background\n"),
    }
}

fn made(what: &[String]) -> String {
    let line = |volume: &str, name: &str| format!("made {name}, a snapshot of {volume}\n");
    match what {
        [volume, name] if !volume.contains('=') => line(volume, name),
        pairs => {
            pairs.iter().filter_map(|pair| pair.split_once('=')).map(|(volume, name)| line(volume, name)).collect()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(subcommand)]
        command: VolumeCommand,
    }

    fn asked(line: &str) -> Result<(&'static str, Value), String> {
        let words = std::iter::once("volume").chain(line.split_whitespace());
        let line = Line::try_parse_from(words).map_err(|error| error.to_string())?;
        let asked = request(&line.command).map_err(|error| error.to_string())?;
        assert!(!done(&line.command).is_empty(), "it says what was done");
        Ok(asked)
    }

    #[test]
    fn every_command_asks_for_what_it_says() {
        for (line, method, params) in [
            (
                "create p/v --size 10G",
                "bdev_lvol_create",
                json!({"lvs_name": "p", "lvol_name": "v", "size": 10u64 << 30, "thin_provision": true}),
            ),
            (
                "create p/v --size 1M --thick",
                "bdev_lvol_create",
                json!({"lvs_name": "p", "lvol_name": "v", "size": 1 << 20, "thin_provision": false}),
            ),
            ("snapshot p/v s", "bdev_lvol_snapshot", json!({"lvol_name": "p/v", "snapshot_name": "s"})),
            ("snapshot p/v p/s", "bdev_lvol_snapshot", json!({"lvol_name": "p/v", "snapshot_name": "s"})),
            (
                "snapshot p/a=sa p/b=sb",
                "bdev_lvol_snapshot_group",
                json!({"lvol_names": ["p/a", "p/b"], "snapshot_names": ["sa", "sb"]}),
            ),
            ("clone p/s c", "bdev_lvol_clone", json!({"snapshot_name": "p/s", "clone_name": "c"})),
            (
                "clone --bdev golden p/c",
                "bdev_lvol_clone_bdev",
                json!({"bdev": "golden", "lvs_name": "p", "clone_name": "c"}),
            ),
            (
                "set-parent p/v --bdev golden --force",
                "bdev_lvol_set_parent_bdev",
                json!({"lvol_name": "p/v", "parent_name": "golden", "force": true}),
            ),
            ("resize p/v 2G", "bdev_lvol_resize", json!({"name": "p/v", "size": 2u64 << 30})),
            (
                "resize p/v 2G --shrink",
                "bdev_lvol_resize",
                json!({"name": "p/v", "size": 2u64 << 30, "allow_shrink": true}),
            ),
            ("rename p/v w", "bdev_lvol_rename", json!({"old_name": "p/v", "new_name": "w"})),
            ("rollback p/v s", "bdev_lvol_rollback", json!({"name": "p/v", "snapshot_name": "p/s", "force": false})),
            ("inflate p/v", "bdev_lvol_inflate", json!({"name": "p/v"})),
            ("decouple p/v", "bdev_lvol_decouple_parent", json!({"name": "p/v"})),
            (
                "set-parent p/v s",
                "bdev_lvol_set_parent",
                json!({"lvol_name": "p/v", "parent_name": "p/s", "force": false}),
            ),
            (
                "limit p/v --quota 1M --reserve 0",
                "bdev_lvol_set_limits",
                json!({"name": "p/v", "quota": 1 << 20, "reservation": 0}),
            ),
            ("limit p/v --quota 0", "bdev_lvol_set_limits", json!({"name": "p/v", "quota": 0})),
            ("set-read-only p/v", "bdev_lvol_set_read_only", json!({"name": "p/v"})),
            ("threshold p/v 80", "bdev_lvol_set_thresholds", json!({"name": "p/v", "quota_percent": 80})),
            ("delete p/v --force", "bdev_lvol_delete", json!({"name": "p/v", "force": true})),
        ] {
            assert_eq!(asked(line), Ok((method, params)), "{line}");
        }
    }

    #[test]
    fn what_is_wrong_is_told_before_anybody_is_asked() {
        for (line, told) in [
            ("create v --size 1G", "POOL/NAME"),
            ("create p/v/w --size 1G", "POOL/NAME"),
            ("create p/v", "--size"),
            ("snapshot", "WHAT"),
            ("snapshot p/v", "POOL/VOLUME NAME"),
            ("snapshot p/v a b", "POOL/VOLUME=NAME"),
            ("snapshot p/a=sa p/b", "POOL/VOLUME=NAME"),
            ("clone p/s q/c", "without a /"),
            ("clone p/s", "--bdev BDEV"),
            ("clone --bdev b p/s c", "--bdev BDEV"),
            ("clone --bdev b c", "POOL/NAME"),
            ("set-parent p/v", "--bdev"),
            ("set-parent p/v s --bdev b", "--bdev"),
            ("limit p/v", "--quota"),
            ("resize p/v 1Q", "unit of size"),
            ("threshold p/v 101", "0..=100"),
        ] {
            let error = asked(line).expect_err(line);
            assert!(error.contains(told), "{line}: {error}");
        }
    }

    #[test]
    fn each_snapshot_is_told() {
        let told = |what: &[&str]| made(&what.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert_eq!(told(&["p/v", "s"]), "made s, a snapshot of p/v\n");
        assert_eq!(told(&["p/a=x", "p/b=y"]), "made x, a snapshot of p/a\nmade y, a snapshot of p/b\n");
    }

    #[test]
    fn a_snapshot_is_looked_for_beside_its_volume() {
        let uuid = "5bd1b3c2-4c1d-4f8a-9f3e-0c8a8e2f7a11";
        assert_eq!(
            (beside("s", "p/v"), beside("q/s", "p/v"), beside("s", "s")),
            ("p/s".into(), "q/s".into(), "s".into())
        );
        assert_eq!(beside(uuid, "p/v"), uuid);
    }
}
