//! The daemon: puts the rooms together, brings the state back, opens the doors, and closes everything in order.
//!
//! Order of the start: what can refuse cheaply first (the state's lock, the RPC socket's place, reading the state), then
//! reactors and controllers, then the restore, and only when every controller listens does the RPC socket answer and
//! systemd hear READY. The end goes the other way round. Everything is a thread of this one process.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use pollux_bdev::Registry;
use pollux_metrics::Exporter;
use pollux_reactor::{Config as ReactorConfig, HelperPool, PollMode, RingConfig};
use pollux_vhost_scsi::{ScsiWorker, SocketOptions, Target, TargetOptions, WorkerConfig};
use pollux_vhost_user::Server as VhostServer;
use rustix::process::Resource;
use serde_json::Value;
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1};
use signal_hook::iterator::Signals;

use crate::config::{Poll, Settings};
use crate::logging::{Level, Logging};
use crate::node::document::Document;
use crate::node::{Node, Parts, Watch};
use crate::rpc::error::RpcError;
use crate::rpc::message::Request;
use crate::rpc::server::{Dispatch, Server as RpcServer};
use crate::rpc::{socket, table};
use crate::sources::NodeSource;
use crate::state::{LOCK_TIME, Store};
use crate::units::{UnitFiles, UnitSaver};

/// Where the log's level at the start comes from.
const LOG_VARIABLE: &str = "POLLUX_LOG";

/// Descriptors that the daemon would like to have: a VM with many queues needs dozens.
const FILES_WANTED: u64 = 1 << 20;

/// How long jobs that were told to end are waited for.
const JOBS_TIME: Duration = Duration::from_secs(10);

struct Methods(Arc<Node>);

impl Dispatch for Methods {
    fn call(&self, request: &Request) -> Result<Value, RpcError> {
        table::call(&self.0, request)
    }
}

/// Runs the daemon until a signal ends it.
///
/// # Errors
/// Why it cannot start, in words for an operator.
pub fn run(settings: &Settings) -> Result<()> {
    let level = std::env::var(LOG_VARIABLE).ok().and_then(|name| Level::parse(&name)).unwrap_or(Level::Notice);
    let logging = Logging::start(level);
    keep_off_reactors(settings);
    stay_near_reactors(settings);
    raise_limits();
    let (store, document) = open_state(settings)?;
    let units = store.as_ref().map(start_saver).transpose()?;
    if let Some(parent) = settings.rpc_socket.parent() {
        std::fs::create_dir_all(parent)
            .with_context(|| format!("cannot make the directory {} (--rpc-socket)", parent.display()))?;
    }
    let mode = if settings.rpc_socket_group.is_some() { 0o660 } else { 0o600 };
    let bound = socket::bind(&settings.rpc_socket, mode, settings.rpc_socket_group)?;
    std::fs::create_dir_all(&settings.vhost_dir)
        .with_context(|| format!("cannot make the directory {} (--vhost-dir)", settings.vhost_dir.display()))?;

    let workers = settings.reactors.len();
    let worker = |number| ScsiWorker::new(number, workers, worker_config(settings));
    let reactors = pollux_reactor::start(reactor_config(settings), (0..workers).map(worker).collect())?;
    let vhost = VhostServer::new().context("cannot start the vhost-user server")?;
    let sockets = SocketOptions { mode: settings.vhost_socket_mode, group: settings.vhost_socket_group };
    let helpers = Arc::new(HelperPool::start().context("cannot start the helper threads")?);
    let options = TargetOptions { vhost_dir: settings.vhost_dir.clone(), socket: sockets, helpers };
    let node = Arc::new(Node::new(Parts {
        settings: settings.clone(),
        bdevs: Arc::new(Registry::new()),
        target: Target::new(reactors.poster(), Arc::clone(&vhost), options),
        reactors: reactors.stats(),
        store,
        units,
        logging,
    }));
    let metrics = start_metrics(settings, &node)?;
    node.restore(document)?;
    // From here on a signal ends the daemon in order. Before, it just ends it: nothing has been promised to anybody.
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGQUIT, SIGHUP, SIGUSR1]).context("cannot take signals")?;
    let watch = Watch::start(Arc::clone(&node)).context("cannot start the housekeeping thread")?;
    let scheduler = node.start_scheduler().context("cannot start the scheduler's thread")?;
    let rpc = RpcServer::start(bound, settings.rpc_socket_group, Arc::new(Methods(Arc::clone(&node))))?;
    tell_systemd(&[sd_notify::NotifyState::Ready]);
    tracing::info!("pollux {} is ready, pid {}", env!("CARGO_PKG_VERSION"), std::process::id());

    wait_for_the_end(&mut signals, &node);
    tell_systemd(&[sd_notify::NotifyState::Stopping]);
    node.jobs.close();
    rpc.stop();
    if !node.jobs.wait(JOBS_TIME) {
        tracing::warn!("a job does not end: its disk does not answer; ending without it");
    }
    scheduler.stop();
    watch.stop();
    if let Some(metrics) = metrics {
        metrics.stop();
    }
    vhost.shutdown();
    node.close_pools();
    drop(node);
    reactors.stop();
    tracing::info!("pollux has ended");
    Ok(())
}

/// Takes the state directory and reads what is in it; nothing of it if ephemeral.
fn open_state(settings: &Settings) -> Result<(Option<Store>, Document)> {
    if settings.ephemeral {
        return Ok((None, Document::default()));
    }
    let store = Store::open(&settings.state_dir, LOCK_TIME)?;
    let document = store.load()?.unwrap_or_default();
    Ok((Some(store), document))
}

/// What guests make durable is kept where the state is.
fn start_saver(store: &Store) -> Result<UnitSaver> {
    UnitSaver::start(UnitFiles::open(store.dir())?)
        .context("cannot start the thread that saves what guests make durable")
}

fn reactor_config(settings: &Settings) -> ReactorConfig {
    let poll = match settings.poll {
        Poll::Adaptive => PollMode::Adaptive,
        Poll::Always => PollMode::Always,
    };
    let spin_max = Duration::from_micros(settings.spin_max_us);
    let ring = RingConfig { data_ring: settings.data_ring.mode(), ..RingConfig::default() };
    ReactorConfig { cores: settings.reactors.clone(), poll, spin_max, ring, ..ReactorConfig::default() }
}

fn worker_config(settings: &Settings) -> WorkerConfig {
    match settings.poll {
        Poll::Adaptive => WorkerConfig { spin_max_ns: Some(settings.spin_max_us * 1000), ..WorkerConfig::default() },
        Poll::Always => WorkerConfig { spin_max_ns: None, ..WorkerConfig::default() },
    }
}

fn start_metrics(settings: &Settings, node: &Arc<Node>) -> Result<Option<pollux_metrics::Server>> {
    let Some(listen) = settings.metrics_listen else { return Ok(None) };
    let exporter = Arc::new(Exporter::new());
    exporter.add(Arc::new(NodeSource::new(Arc::clone(node))));
    let server = exporter.serve(listen).with_context(|| format!("cannot listen on {listen} (--metrics-listen)"))?;
    node.set_metrics_address(server.addr());
    tracing::info!("metrics at http://{}/metrics", server.addr());
    Ok(Some(server))
}

/// Sleeps until a signal asks for the end. SIGUSR1 writes a line about the state of things.
fn wait_for_the_end(signals: &mut Signals, node: &Node) {
    for signal in signals.forever() {
        if signal != SIGUSR1 {
            tracing::info!("ending because of signal {signal}");
            return;
        }
        let (bdevs, controllers) = (node.bdevs.list().len(), node.target.controllers().len());
        tracing::info!("{bdevs} bdevs, {controllers} controllers, up {} s", node.started.elapsed().as_secs());
    }
}

fn tell_systemd(state: &[sd_notify::NotifyState]) {
    if let Err(error) = sd_notify::notify(false, state) {
        tracing::warn!("cannot tell systemd: {error}");
    }
}

/// All threads but the reactors come from this one, so they run where it may run: off the reactors' cores, if there are
/// others.
fn keep_off_reactors(settings: &Settings) {
    match pollux_reactor::keep_off(&settings.reactors) {
        Ok(cores) if cores.iter().any(|core| settings.reactors.contains(core)) => {
            tracing::warn!("there are no cores but the reactors': everything else takes time from them");
        }
        Ok(cores) => tracing::info!("everything but reactors runs on cores {}", pollux_reactor::describe_cores(&cores)),
        Err(error) => tracing::warn!("the other threads cannot be kept off the reactors' cores: {error}"),
    }
}

/// What these threads make for reactors lies on the reactors' memory node, if they have one in common.
fn stay_near_reactors(settings: &Settings) {
    match pollux_reactor::keep_memory_near(&settings.reactors) {
        Ok(Some(node)) => tracing::info!("all threads take memory from node {node}, the reactors', while there is any"),
        Ok(None) => {}
        Err(error) => tracing::warn!("memory made for reactors may lie on another node: {error}"),
    }
}

/// As many descriptors and as much locked memory as the system gives: more VMs, larger rings.
fn raise_limits() {
    for (resource, wanted) in [(Resource::Nofile, FILES_WANTED), (Resource::Memlock, u64::MAX)] {
        let mut limit = rustix::process::getrlimit(resource);
        let most = limit.maximum.unwrap_or(u64::MAX);
        if limit.current.is_none_or(|current| current >= most.min(wanted)) {
            continue;
        }
        limit.current = if most == u64::MAX && wanted == u64::MAX { None } else { Some(most.min(wanted)) };
        if let Err(error) = rustix::process::setrlimit(resource, limit) {
            tracing::warn!("cannot raise the limit {resource:?}: {error}");
        }
    }
}
