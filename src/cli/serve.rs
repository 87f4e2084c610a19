//! `pollux serve`: flags over the configuration file over the defaults, then the daemon.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Args;

use super::CliError;
use crate::config::{DataRing, Given, Poll};
use crate::daemon;

#[derive(Args, Debug)]
pub(crate) struct ServeArgs {
    /// Cores, one reactor on each: a list as 0,1 or 2-5, with 0x a mask [default: 0]
    #[arg(long, value_name = "CORES")]
    reactors: Option<String>,
    /// Where the state is kept [default: /var/lib/pollux]
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// Where the controllers' sockets are made [default: /run/pollux/vhost]
    #[arg(long, value_name = "DIR")]
    vhost_dir: Option<PathBuf>,
    /// Serve /metrics and /healthz at this address, for example 127.0.0.1:9500 [default: not at all]
    #[arg(long, value_name = "ADDR")]
    metrics_listen: Option<SocketAddr>,
    /// Whether reactors sleep when there is nothing to do [default: adaptive]
    #[arg(long)]
    poll: Option<Poll>,
    /// How long adaptive polling looks for work in vain at most, in microseconds: what a wake-up is worth [default: 100]
    #[arg(long, value_name = "N")]
    spin_max_us: Option<u64>,
    /// A second ring on each reactor for reads and writes of files: iopoll where devices have poll queues, sqpoll with a
    /// thread of the kernel that submits [default: none]
    #[arg(long, value_name = "KIND")]
    data_ring: Option<DataRing>,
    /// Most memory for the maps of a pool, in MiB; what is not in memory is loaded when it is needed [default: 2048]
    #[arg(long, value_name = "MIB")]
    map_memory_mib: Option<u64>,
    /// Most memory that remembers where the data is behind many snapshots, for each pool, in MiB [default: 64]
    #[arg(long, value_name = "MIB")]
    chain_memory_mib: Option<u64>,
    /// How long a change of a pool waits for the pool's base, in seconds [default: 60]
    #[arg(long, value_name = "N")]
    pool_timeout: Option<u64>,
    /// Start empty and save nothing
    #[arg(long)]
    ephemeral: bool,
    /// A TOML file with the same names; flags win over it
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Group of the controllers' sockets (name or number)
    #[arg(long, value_name = "GROUP")]
    vhost_socket_group: Option<String>,
    /// Mode of the controllers' sockets, octal [default: 0660]
    #[arg(long, value_name = "MODE")]
    vhost_socket_mode: Option<String>,
    /// Group whose members may use the RPC socket (its mode is then 0660, else 0600)
    #[arg(long, value_name = "GROUP")]
    rpc_socket_group: Option<String>,
}

pub(crate) fn run(args: ServeArgs, rpc_socket: Option<PathBuf>) -> Result<(), CliError> {
    let usage = |error: crate::config::ConfigError| CliError::Usage(error.to_string());
    let file = match &args.config {
        Some(path) => Given::from_file(path).map_err(usage)?,
        None => Given::default(),
    };
    let flags = Given {
        reactors: args.reactors,
        state_dir: args.state_dir,
        rpc_socket,
        vhost_dir: args.vhost_dir,
        metrics_listen: args.metrics_listen,
        poll: args.poll,
        spin_max_us: args.spin_max_us,
        data_ring: args.data_ring,
        map_memory_mib: args.map_memory_mib,
        chain_memory_mib: args.chain_memory_mib,
        pool_timeout: args.pool_timeout,
        ephemeral: args.ephemeral.then_some(true),
        vhost_socket_group: args.vhost_socket_group,
        vhost_socket_mode: args.vhost_socket_mode,
        rpc_socket_group: args.rpc_socket_group,
    };
    let settings = flags.over(file).settle().map_err(usage)?;
    daemon::run(&settings).map_err(|error| CliError::Failed(format!("{error:#}")))
}
