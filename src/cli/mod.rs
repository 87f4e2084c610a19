//! The command line. `serve` runs the daemon; `bench` drives a controller as a VM would;
//! everything else is a client of its RPC socket.
//!
//! Exit codes: 0 done; 1 refused by the daemon, or the daemon could not start; 2 wrong usage; 3 no daemon answers; 4 a
//! pool is damaged; 8 a pool cannot be checked, or is in use.

mod bdev;
mod bench;
mod client;
mod job;
mod output;
mod pool;
mod pools;
mod progress;
mod serve;
mod status;
mod transfer;
mod units;
mod vhost;
mod volume;
mod volume_list;

use std::io::{self, Read};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory, Parser, Subcommand};
use serde_json::Value;

use crate::config;
use client::{CallError, Client};
use output::Output;

/// Exit code: refused, or failed.
const FAILED: u8 = 1;
/// Exit code: wrong usage (clap's own, too).
const USAGE: u8 = 2;
/// Exit code: no daemon answers.
const UNREACHABLE: u8 = 3;
/// Exit code: a pool is damaged.
const DAMAGED: u8 = 4;
/// Exit code: a pool cannot be checked, or is in use.
const NOT_CHECKABLE: u8 = 8;

/// Pollux serves block devices to virtual machines over vhost-user.
#[derive(Debug, Parser)]
#[command(name = "pollux", version, after_help = EXIT_CODES)]
pub struct Cli {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    command: Command,
}

const EXIT_CODES: &str = "Exit codes: 0 done, 1 refused by the daemon or the daemon could not start, 2 wrong usage, 3 no daemon answers, \
     4 the pool is damaged, 8 the pool cannot be checked or is in use.";

/// What every command takes.
#[derive(Args, Debug)]
struct Common {
    /// The daemon's RPC socket [default: /run/pollux/rpc.sock]
    #[arg(long, global = true, value_name = "PATH", env = "POLLUX_RPC_SOCKET")]
    rpc_socket: Option<PathBuf>,
    /// Print JSON for scripts instead of tables for people
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the daemon
    Serve(Box<serve::ServeArgs>),
    /// Call one RPC method and print its result
    Rpc {
        /// The method, for example bdev_get_bdevs (rpc_get_methods lists all)
        method: String,
        /// Its parameters as a JSON object; - reads them from standard input
        params: Option<String>,
    },
    /// Show how the daemon is doing
    Status,
    /// Block devices
    #[command(subcommand)]
    Bdev(bdev::BdevCommand),
    /// Controllers: what virtual machines connect to
    #[command(subcommand)]
    Vhost(vhost::VhostCommand),
    /// Thin pools
    #[command(subcommand)]
    Pool(pools::PoolsCommand),
    /// Volumes, snapshots and clones in thin pools
    #[command(subcommand)]
    Volume(volume::VolumeCommand),
    /// What takes long: exports, imports, copies
    #[command(subcommand)]
    Job(job::JobCommand),
    /// Put load on a controller, as a VM would, and measure it
    Bench(Box<bench::BenchArgs>),
    /// Print a completion script
    Completions {
        /// The shell to print it for
        shell: clap_complete::Shell,
    },
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CliError {
    #[error(transparent)]
    Call(#[from] CallError),
    #[error("{0}")]
    Usage(String),
    #[error("{0}")]
    Failed(String),
    #[error("{0}")]
    Damaged(String),
    #[error("{0}")]
    NotCheckable(String),
    #[error("cannot write the output: {0}")]
    Output(#[from] io::Error),
}

impl CliError {
    fn code(&self) -> u8 {
        match self {
            CliError::Call(CallError::Unreachable { .. }) => UNREACHABLE,
            CliError::Usage(_) => USAGE,
            CliError::Damaged(_) => DAMAGED,
            CliError::NotCheckable(_) => NOT_CHECKABLE,
            _ => FAILED,
        }
    }
}

/// Runs the command line of this process.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let json = cli.common.json;
    match run(cli) {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever read the output has enough of it: `pollux bdev list | head`.
        Err(CliError::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            output::complain(&error, json);
            ExitCode::from(error.code())
        }
    }
}

fn run(cli: Cli) -> Result<(), CliError> {
    let output = Output::new(cli.common.json);
    let connect = || {
        let path = cli.common.rpc_socket.clone().unwrap_or_else(|| config::DEFAULT_RPC_SOCKET.into());
        Client::connect(&path)
    };
    match cli.command {
        Command::Serve(args) => serve::run(*args, cli.common.rpc_socket),
        Command::Rpc { method, params } => {
            let params = read_params(params.as_deref())?;
            output.json(&connect()?.call(&method, params)?)
        }
        Command::Status => status::run(&mut connect()?, &output),
        Command::Bdev(command) => bdev::run(&command, connect, &output),
        Command::Vhost(command) => vhost::run(&command, connect, &output),
        Command::Pool(command) => pools::run(&command, connect, &output),
        Command::Volume(command) => volume::run(&command, connect, &output),
        Command::Job(command) => job::run(&command, connect, &output),
        Command::Bench(args) => bench::run(*args, &output),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "pollux", &mut script);
            output.raw(&script)
        }
    }
}

/// The parameters of `pollux rpc`: checked here, so that a typing error is told as such.
fn read_params(given: Option<&str>) -> Result<Value, CliError> {
    let text = match given {
        None => return Ok(Value::Null),
        Some("-") => {
            let mut text = String::new();
            let read = io::stdin().take(1 << 20).read_to_string(&mut text);
            read.map_err(|error| CliError::Failed(format!("cannot read standard input: {error}")))?;
            text
        }
        Some(text) => text.to_owned(),
    };
    match serde_json::from_str(&text) {
        Ok(params @ (Value::Object(_) | Value::Array(_) | Value::Null)) => Ok(params),
        Ok(other) => Err(CliError::Usage(format!("the parameters must be a JSON object, not {other}"))),
        Err(error) => Err(CliError::Usage(format!(
            "the parameters are not JSON ({error}); quote them for the shell, as in '{{\"name\":\"disk0\"}}'"
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_definitions_are_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_flag_that_scripts_know_is_taken() {
        let line = "pollux serve --reactors 0,1 --state-dir /s --rpc-socket /r --vhost-dir /v --metrics-listen \
                    127.0.0.1:9 --poll always --ephemeral --config /c --vhost-socket-group g --vhost-socket-mode 0660 \
                    --rpc-socket-group h --map-memory-mib 64 --chain-memory-mib 0 \
                    --pool-timeout 30";
        assert!(Cli::try_parse_from(line.split_whitespace()).is_ok());
        for line in [
            "pollux rpc bdev_get_bdevs",
            "pollux --json --rpc-socket /r rpc bdev_get_bdevs {\"name\":\"x\"}",
            "pollux status --json",
            "pollux bdev list --rpc-socket /r",
            "pollux bdev create malloc m0 --size 64M",
            "pollux bdev create null n0 --size 1T --block-size 4096",
            "pollux bdev create file f0 /dev/sdb --read-only",
            "pollux bdev create passthru p0 m0",
            "pollux bdev create split m0 4",
            "pollux bdev create delay d0 m0 --read-us 100 --write-us 200",
            "pollux bdev create error m0",
            "pollux bdev delete m0 --force",
            "pollux vhost list",
            "pollux vhost create vm1 --cores 0,1 --initiator 5001405012345678 --delay",
            "pollux vhost attach vm1 m0 --target 0 --lun 1 --exclusive",
            "pollux vhost detach vm1 --target 0 --lun 1",
            "pollux vhost delete vm1 --force",
            "pollux bench --socket /s --json",
            "pollux bench --socket /a --socket /b --target 1 --lun 2 --rw randrw --rwmixread 50 --bs 8k --qd 1 --queues 2 \
             --queue-size 256 --time 0.5 --ramp 1 --offset 1M --size 1G --fill --verify --seed 7 --core 1 --kick always \
             --interrupt --gap 100 --hugepages off --event-idx on --indirect on --misalign 8 --timeout 5 --progress --verbose",
            "pollux bench --socket /s --core none",
            "pollux bench --socket /s --rw randwrite --once --ios 1000 --flush-every 64",
            "pollux pool create lvs --on f0 --cluster-size 1M --overcommit 200 --force",
            "pollux pool list --json",
            "pollux pool show lvs",
            "pollux pool delete lvs --force",
            "pollux pool scrub lvs --mib-per-second 16",
            "pollux pool check /srv/pool --json",
            "pollux volume create lvs/v --size 10G --thick",
            "pollux volume list lvs --json",
            "pollux volume snapshot lvs/a=sa lvs/b=sb",
            "pollux volume rollback lvs/v s --force",
            "pollux pool repair /srv/pool",
            "pollux pool repair /dev/sdb --yes",
            "pollux volume export lvs/v - --from-snapshot s",
            "pollux volume export lvs/v /backup/v --force",
            "pollux volume import - lvs/w --read-only",
            "pollux job list --json",
            "pollux job cancel 1234abcd",
            "pollux job wait 1234abcd",
            "pollux completions bash",
        ] {
            assert!(Cli::try_parse_from(line.split_whitespace()).is_ok(), "{line}");
        }
    }

    #[test]
    fn what_is_wrong_is_usage() {
        for line in [
            "pollux",
            "pollux serve --poll never",
            "pollux serve --metrics-listen here",
            "pollux bdev create malloc m0",
            "pollux bdev create malloc m0 --size 12Q",
            "pollux vhost detach vm1",
            "pollux vhost attach vm1 m0 --target 256",
            "pollux vhost attach vm1 m0 --lun 16384",
            "pollux pool",
            "pollux pool check",
            "pollux pool create lvs",
            "pollux pool create lvs --on f0 --overcommit 0",
            "pollux volume create lvs --size 1G",
            "pollux pool repair --yes",
            "pollux bench",
            "pollux bench --socket /s --rw sideways",
            "pollux bench --socket /s --bs 4q",
            "pollux bench --socket /s --time -1",
            "pollux completions tcl",
        ] {
            assert!(Cli::try_parse_from(line.split_whitespace()).is_err(), "{line}");
        }
    }

    #[test]
    fn params_are_checked_here() {
        assert_eq!(read_params(None).expect("good"), Value::Null);
        assert_eq!(read_params(Some("{\"a\":1}")).expect("good"), json!({"a": 1}));
        for bad in ["", "7", "{a:1}", "\"x\""] {
            assert_eq!(read_params(Some(bad)).expect_err("bad").code(), USAGE);
        }
    }
}
