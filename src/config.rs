//! The settings of `pollux serve`: flags, the same names in a TOML file, and the defaults. Flags win over the file.
//!
//! Nothing is guessed: an unknown key, a bad core list or a mode that is not octal is an error that names it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use pollux_reactor::DataMode;
use serde::Deserialize;

/// Where the RPC socket is if nobody says otherwise.
pub const DEFAULT_RPC_SOCKET: &str = "/run/pollux/rpc.sock";

/// What a wake-up is worth if nobody says otherwise: the reads of a fast disk are waited for, those of a slow one are not.
pub const DEFAULT_SPIN_MAX_US: u64 = 100;

/// How many seconds a change of a pool waits for what the pool lies on if nobody says otherwise: longer than disks retry.
pub const DEFAULT_POOL_TIMEOUT: u64 = 60;

/// What was given, in one place (the command line or the file).
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Given {
    /// Cores, one reactor each.
    pub reactors: Option<String>,
    /// Where the state is kept.
    pub state_dir: Option<PathBuf>,
    /// The RPC socket.
    pub rpc_socket: Option<PathBuf>,
    /// The directory of the controllers' sockets.
    pub vhost_dir: Option<PathBuf>,
    /// Address of `/metrics`.
    pub metrics_listen: Option<SocketAddr>,
    /// How reactors idle.
    pub poll: Option<Poll>,
    /// How long adaptive polling looks in vain at most, in microseconds.
    pub spin_max_us: Option<u64>,
    /// Whether reads and writes of files go through a ring of their own, and which.
    pub data_ring: Option<DataRing>,
    /// Most memory for the maps of a pool, in MiB.
    pub map_memory_mib: Option<u64>,
    /// Most memory for what is remembered of a pool's long chains, in MiB.
    pub chain_memory_mib: Option<u64>,
    /// How long a change of a pool waits for what the pool lies on, in seconds.
    pub pool_timeout: Option<u64>,
    /// Start empty, save nothing.
    pub ephemeral: Option<bool>,
    /// Group of the controllers' sockets.
    pub vhost_socket_group: Option<String>,
    /// Mode of the controllers' sockets, octal.
    pub vhost_socket_mode: Option<String>,
    /// Group that may use the RPC socket.
    pub rpc_socket_group: Option<String>,
}

/// How reactors idle.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Poll {
    /// Poll while there is work, sleep when there is none.
    #[default]
    Adaptive,
    /// Never sleep.
    Always,
}

impl Poll {
    /// The name on the command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Poll::Adaptive => "adaptive",
            Poll::Always => "always",
        }
    }
}

/// Whether reads and writes of files go through an io_uring of their own on each reactor, and which.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
#[value(rename_all = "lowercase")]
pub enum DataRing {
    /// All goes through one.
    #[default]
    None,
    /// Devices with poll queues are asked for completions.
    IoPoll,
    /// A thread of the kernel submits.
    SqPoll,
}

impl DataRing {
    /// As the reactors know it.
    #[must_use]
    pub const fn mode(self) -> DataMode {
        match self {
            DataRing::None => DataMode::None,
            DataRing::IoPoll => DataMode::IoPoll,
            DataRing::SqPoll => DataMode::SqPoll,
        }
    }
}

/// What `serve` runs with.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// Cores, one reactor each, without repetition, at least one.
    pub reactors: Vec<usize>,
    /// Where the state is kept; unused if ephemeral.
    pub state_dir: PathBuf,
    /// The RPC socket.
    pub rpc_socket: PathBuf,
    /// The directory of the controllers' sockets.
    pub vhost_dir: PathBuf,
    /// Address of `/metrics`; none: no endpoint.
    pub metrics_listen: Option<SocketAddr>,
    /// How reactors idle.
    pub poll: Poll,
    /// How long adaptive polling looks in vain at most, in microseconds.
    pub spin_max_us: u64,
    /// Whether reads and writes of files go through a ring of their own, and which.
    pub data_ring: DataRing,
    /// Most bytes of memory for the maps of a pool.
    pub map_bytes: u64,
    /// Most bytes of memory for what is remembered of a pool's long chains; 0: nothing is.
    pub chain_bytes: u64,
    /// How long a change of a pool waits for what the pool lies on.
    pub pool_timeout: Duration,
    /// Start empty, save nothing.
    pub ephemeral: bool,
    /// Group id of the controllers' sockets.
    pub vhost_socket_group: Option<u32>,
    /// Mode of the controllers' sockets.
    pub vhost_socket_mode: u32,
    /// Group id that may use the RPC socket.
    pub rpc_socket_group: Option<u32>,
}

/// What is wrong with the settings.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration file {path}: {source}", path = .path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The file is not what it should be.
    #[error("the configuration file {path} is not good: {detail}", path = .path.display())]
    Bad {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        detail: String,
    },
    /// A core list that makes no sense.
    #[error("--reactors {given}: {detail} (for example 0,1 or 2-5 or 0x3)")]
    Reactors {
        /// What was given.
        given: String,
        /// What is wrong.
        detail: String,
    },
    /// A mode that is none.
    #[error("--vhost-socket-mode {0}: give octal digits up to 0777, for example 0660")]
    Mode(String),
    /// Longer than adaptive polling makes sense.
    #[error("--spin-max-us {0}: give at most {SPIN_MAX_US}, or --poll always if reactors are never to sleep")]
    SpinMax(u64),
    /// More or less memory than makes sense.
    #[error("{flag} {given}: give {least} to {MOST_MIB}, in MiB, for each pool")]
    Memory {
        /// Which flag.
        flag: &'static str,
        /// What was given.
        given: u64,
        /// The least that makes sense.
        least: u64,
    },
    /// No time, or one that nobody waits.
    #[error("--pool-timeout {0}: give 1 to {POOL_TIMEOUT} seconds")]
    PoolTimeout(u64),
    /// No such group.
    #[error("{flag} {name}: there is no such group; give its name or its number")]
    Group {
        /// Which flag.
        flag: &'static str,
        /// What was given.
        name: String,
    },
}

impl Given {
    /// Reads a file.
    ///
    /// # Errors
    /// [`ConfigError::Unreadable`], [`ConfigError::Bad`].
    pub fn from_file(path: &Path) -> Result<Given, ConfigError> {
        let text =
            std::fs::read_to_string(path).map_err(|source| ConfigError::Unreadable { path: path.into(), source })?;
        toml::from_str(&text)
            .map_err(|error| ConfigError::Bad { path: path.into(), detail: error.to_string().trim_end().to_owned() })
    }

    /// What is given here, and where nothing is, what `below` gives.
    #[must_use]
    pub fn over(self, below: Given) -> Given {
        Given {
            reactors: self.reactors.or(below.reactors),
            state_dir: self.state_dir.or(below.state_dir),
            rpc_socket: self.rpc_socket.or(below.rpc_socket),
            vhost_dir: self.vhost_dir.or(below.vhost_dir),
            metrics_listen: self.metrics_listen.or(below.metrics_listen),
            poll: self.poll.or(below.poll),
            spin_max_us: self.spin_max_us.or(below.spin_max_us),
            data_ring: self.data_ring.or(below.data_ring),
            map_memory_mib: self.map_memory_mib.or(below.map_memory_mib),
            chain_memory_mib: self.chain_memory_mib.or(below.chain_memory_mib),
            pool_timeout: self.pool_timeout.or(below.pool_timeout),
            ephemeral: self.ephemeral.or(below.ephemeral),
            vhost_socket_group: self.vhost_socket_group.or(below.vhost_socket_group),
            vhost_socket_mode: self.vhost_socket_mode.or(below.vhost_socket_mode),
            rpc_socket_group: self.rpc_socket_group.or(below.rpc_socket_group),
        }
    }

    /// Checks everything and fills in the defaults.
    ///
    /// # Errors
    /// [`ConfigError`] naming the flag.
    pub fn settle(self) -> Result<Settings, ConfigError> {
        let cores = self.reactors.unwrap_or_else(|| "0".into());
        let reactors = pollux_reactor::parse_cores(&cores)
            .map_err(|error| ConfigError::Reactors { given: cores, detail: error.to_string() })?;
        Ok(Settings {
            reactors,
            state_dir: self.state_dir.unwrap_or_else(|| "/var/lib/pollux".into()),
            rpc_socket: self.rpc_socket.unwrap_or_else(|| DEFAULT_RPC_SOCKET.into()),
            vhost_dir: self.vhost_dir.unwrap_or_else(|| "/run/pollux/vhost".into()),
            metrics_listen: self.metrics_listen,
            poll: self.poll.unwrap_or_default(),
            spin_max_us: spin_max(self.spin_max_us.unwrap_or(DEFAULT_SPIN_MAX_US))?,
            data_ring: self.data_ring.unwrap_or_default(),
            map_bytes: memory("--map-memory-mib", self.map_memory_mib.unwrap_or(DEFAULT_MAP_MIB), 1)?,
            chain_bytes: memory("--chain-memory-mib", self.chain_memory_mib.unwrap_or(DEFAULT_CHAIN_MIB), 0)?,
            pool_timeout: pool_timeout(self.pool_timeout.unwrap_or(DEFAULT_POOL_TIMEOUT))?,
            ephemeral: self.ephemeral.unwrap_or_default(),
            vhost_socket_group: group("--vhost-socket-group", self.vhost_socket_group)?,
            vhost_socket_mode: mode(self.vhost_socket_mode.as_deref().unwrap_or("0660"))?,
            rpc_socket_group: group("--rpc-socket-group", self.rpc_socket_group)?,
        })
    }
}

/// Memory for the maps of a pool if nobody says otherwise: those of some 13 TiB with clusters of 64 KiB.
const DEFAULT_MAP_MIB: u64 = 2048;
/// Memory for what is remembered of long chains if nobody says otherwise: 64 GiB with clusters of 64 KiB.
const DEFAULT_CHAIN_MIB: u64 = 64;
const MOST_MIB: u64 = 1 << 20;

fn memory(flag: &'static str, given: u64, least: u64) -> Result<u64, ConfigError> {
    if (least..=MOST_MIB).contains(&given) { Ok(given << 20) } else { Err(ConfigError::Memory { flag, given, least }) }
}

const SPIN_MAX_US: u64 = pollux_core::SPIN_MAX_NS / 1000;

fn spin_max(us: u64) -> Result<u64, ConfigError> {
    if us <= SPIN_MAX_US { Ok(us) } else { Err(ConfigError::SpinMax(us)) }
}

const POOL_TIMEOUT: u64 = 3600;

fn pool_timeout(seconds: u64) -> Result<Duration, ConfigError> {
    let good = (1..=POOL_TIMEOUT).contains(&seconds);
    if good { Ok(Duration::from_secs(seconds)) } else { Err(ConfigError::PoolTimeout(seconds)) }
}

fn mode(text: &str) -> Result<u32, ConfigError> {
    let good = !text.is_empty() && text.len() <= 5 && text.bytes().all(|byte| (b'0'..=b'7').contains(&byte));
    match u32::from_str_radix(text, 8) {
        Ok(mode) if good && mode <= 0o777 => Ok(mode),
        _ => Err(ConfigError::Mode(text.into())),
    }
}

fn group(flag: &'static str, name: Option<String>) -> Result<Option<u32>, ConfigError> {
    let Some(name) = name else { return Ok(None) };
    if let Ok(gid) = name.parse() {
        return Ok(Some(gid));
    }
    let groups = std::fs::read_to_string("/etc/group").unwrap_or_default();
    match group_id(&groups, &name) {
        Some(gid) => Ok(Some(gid)),
        None => Err(ConfigError::Group { flag, name }),
    }
}

/// Finds a name in the text of /etc/group.
fn group_id(groups: &str, name: &str) -> Option<u32> {
    groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next() == Some(name)).then(|| fields.nth(1)?.parse().ok()).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn file(text: &str) -> Result<Given, ConfigError> {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("pollux.toml");
        std::fs::write(&path, text).expect("written");
        Given::from_file(&path)
    }

    #[test]
    fn every_flag_has_a_key_and_flags_win() {
        let below = file(
            r#"
            reactors = "1,2"
            state-dir = "/s"
            rpc-socket = "/r"
            vhost-dir = "/v"
            metrics-listen = "127.0.0.1:9"
            poll = "always"
            spin-max-us = 20
            data-ring = "sqpoll"
            map-memory-mib = 16
            chain-memory-mib = 0
            pool-timeout = 7
            ephemeral = true
            vhost-socket-group = "7"
            vhost-socket-mode = "0600"
            rpc-socket-group = "8"
            "#,
        )
        .expect("good");
        let flags = Given { reactors: Some("0".into()), ephemeral: Some(false), ..Given::default() };
        let settings = flags.over(below).settle().expect("good");
        assert_eq!(settings.reactors, [0]);
        assert!(!settings.ephemeral);
        assert_eq!((settings.vhost_socket_group, settings.rpc_socket_group), (Some(7), Some(8)));
        assert_eq!((settings.vhost_socket_mode, settings.poll, settings.spin_max_us), (0o600, Poll::Always, 20));
        assert_eq!(settings.vhost_dir, PathBuf::from("/v"));
        assert_eq!((settings.map_bytes, settings.chain_bytes), (16 << 20, 0));
        assert_eq!((settings.data_ring, settings.pool_timeout), (DataRing::SqPoll, Duration::from_secs(7)));
        assert_eq!(Given::default().settle().expect("good").data_ring, DataRing::None);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, named) in [
            ("reactor = \"0\"", "reactor"),
            ("poll = \"never\"", "never"),
            ("data-ring = \"both\"", "both"),
            ("metrics-listen = \"here\"", "metrics-listen"),
            ("reactors", "reactors"),
        ] {
            let error = file(text).expect_err("bad").to_string();
            assert!(error.contains(named), "{error}");
        }
        assert!(matches!(Given::from_file(Path::new("/nowhere/at/all")), Err(ConfigError::Unreadable { .. })));
        for (given, named) in [
            (Given { reactors: Some("x".into()), ..Given::default() }, "--reactors x"),
            (Given { vhost_socket_mode: Some("0999".into()), ..Given::default() }, "0999"),
            (Given { vhost_socket_mode: Some("1777".into()), ..Given::default() }, "1777"),
            (Given { vhost_socket_mode: Some("+660".into()), ..Given::default() }, "+660"),
            (Given { map_memory_mib: Some(0), ..Given::default() }, "--map-memory-mib 0"),
            (Given { chain_memory_mib: Some(1 << 40), ..Given::default() }, "--chain-memory-mib"),
            (Given { spin_max_us: Some(2000), ..Given::default() }, "--spin-max-us 2000"),
            (Given { pool_timeout: Some(0), ..Given::default() }, "--pool-timeout 0"),
            (Given { rpc_socket_group: Some("no such group".into()), ..Given::default() }, "--rpc-socket-group"),
        ] {
            let error = given.settle().expect_err("bad").to_string();
            assert!(error.contains(named), "{error}");
        }
    }

    #[test]
    fn groups_are_found_by_name() {
        let text = "root:x:0:\nkvm:x:105:qemu,libvirt\nbroken\n";
        assert_eq!(group_id(text, "kvm"), Some(105));
        assert_eq!(group_id(text, "kv"), None);
        assert_eq!(group_id(text, "broken"), None);
    }

    proptest! {
        #[test]
        fn no_file_makes_it_panic(text in "[a-z\\-=\"\\[\\]0-9,\n {}.#']{0,80}") {
            let _ = toml::from_str::<Given>(&text).map(Given::settle);
        }
    }
}
