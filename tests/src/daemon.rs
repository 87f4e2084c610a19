//! Starts the real daemon, talks to it, kills it, starts it again. What is started here is always reaped.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};
use serde_json::{Value, json};

/// How long a start, a stop or an answer may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// How the daemon is started.
#[derive(Clone, Debug)]
pub struct DaemonOptions {
    /// `--reactors`.
    pub reactors: String,
    /// `--poll`.
    pub poll: String,
    /// Further arguments.
    pub args: Vec<String>,
}

impl Default for DaemonOptions {
    fn default() -> Self {
        DaemonOptions { reactors: "0".into(), poll: "adaptive".into(), args: Vec::new() }
    }
}

/// An error that the daemon answered with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RpcError {
    /// JSON-RPC code; a negative `errno` where SPDK has one.
    pub code: i64,
    /// For people.
    pub message: String,
    /// `data.reason`.
    pub reason: Option<String>,
    /// `data.detail`.
    pub detail: Option<String>,
}

impl std::fmt::Display for RpcError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({}, reason {:?})", self.message, self.code, self.reason)
    }
}

impl std::error::Error for RpcError {}

/// A running daemon with folders of its own.
pub struct Daemon {
    dir: tempfile::TempDir,
    options: DaemonOptions,
    metrics: SocketAddr,
    child: Option<Child>,
}

/// The binary under test: `POLLUX_BIN`, or the one of this build, built if it is not there.
///
/// # Errors
/// If it cannot be built.
pub fn binary() -> Result<PathBuf> {
    static BUILT: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    if let Some(path) = std::env::var_os("POLLUX_BIN") {
        return Ok(path.into());
    }
    BUILT.get_or_init(|| find_or_build().map_err(|error| format!("{error:#}"))).clone().map_err(|error| anyhow!(error))
}

fn find_or_build() -> Result<PathBuf> {
    // target/<profile>/deps/<test>
    let test = std::env::current_exe()?;
    let profile = test.parent().and_then(Path::parent).context("a test lies in target/<profile>/deps")?;
    let path = profile.join("pollux");
    if !path.exists() {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut build = Command::new(cargo);
        build.args(["build", "-p", "pollux", "--target-dir"]).arg(profile.parent().context("target")?);
        build.current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the workspace")?);
        if profile.ends_with("release") {
            build.arg("--release");
        }
        if !build.status().context("cargo build")?.success() || !path.exists() {
            bail!("cargo build -p pollux did not make {}", path.display());
        }
    }
    Ok(path)
}

impl Daemon {
    /// Starts a daemon on one adaptive reactor and waits until it accepts RPC.
    ///
    /// # Errors
    /// If it does not start.
    pub fn start() -> Result<Self> {
        Self::start_with(DaemonOptions::default())
    }

    /// Starts a daemon.
    ///
    /// # Errors
    /// If it does not start.
    pub fn start_with(options: DaemonOptions) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("pollux-test-").tempdir()?;
        let metrics = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        for sub in ["state", "vhost", "disks"] {
            std::fs::create_dir(dir.path().join(sub))?;
        }
        let mut daemon = Daemon { dir, options, metrics, child: None };
        daemon.restart()?;
        Ok(daemon)
    }

    /// Starts it again with the same command line (ends it first if it runs).
    ///
    /// # Errors
    /// If it does not start.
    pub fn restart(&mut self) -> Result<()> {
        self.kill9();
        let log = File::options().create(true).append(true).open(self.log_path())?;
        let child = Command::new(binary()?)
            .arg("serve")
            .args(["--reactors", &self.options.reactors, "--poll", &self.options.poll])
            .arg("--state-dir")
            .arg(self.dir.path().join("state"))
            .arg("--rpc-socket")
            .arg(self.rpc_path())
            .arg("--vhost-dir")
            .arg(self.vhost_dir())
            .args(["--metrics-listen", &self.metrics.to_string()])
            .args(&self.options.args)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("starting the daemon")?;
        self.child = Some(child);
        let end = Instant::now() + PATIENCE;
        while UnixStream::connect(self.rpc_path()).is_err() {
            if let Some(status) = self.exited()? {
                bail!("the daemon ended with {status}:\n{}", self.log_tail());
            }
            if Instant::now() > end {
                bail!("the daemon does not accept RPC:\n{}", self.log_tail());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    fn exited(&mut self) -> Result<Option<ExitStatus>> {
        Ok(match &mut self.child {
            Some(child) => child.try_wait()?,
            None => None,
        })
    }

    /// Whether it runs.
    #[must_use]
    pub fn is_alive(&mut self) -> bool {
        self.child.is_some() && matches!(self.exited(), Ok(None))
    }

    /// Its process id.
    ///
    /// # Panics
    /// If it was killed.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("the daemon runs").id()
    }

    /// A folder for disks, gone with the daemon.
    #[must_use]
    pub fn disks_dir(&self) -> PathBuf {
        self.dir.path().join("disks")
    }

    /// `--state-dir`.
    #[must_use]
    pub fn state_dir(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    /// `--vhost-dir`.
    #[must_use]
    pub fn vhost_dir(&self) -> PathBuf {
        self.dir.path().join("vhost")
    }

    /// `--rpc-socket`.
    #[must_use]
    pub fn rpc_path(&self) -> PathBuf {
        self.dir.path().join("rpc.sock")
    }

    /// `--metrics-listen`.
    #[must_use]
    pub const fn metrics_addr(&self) -> SocketAddr {
        self.metrics
    }

    fn log_path(&self) -> PathBuf {
        self.dir.path().join("log")
    }

    /// The last lines it has logged.
    #[must_use]
    pub fn log_tail(&self) -> String {
        let bytes = std::fs::read(self.log_path()).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    /// The socket of a controller.
    #[must_use]
    pub fn socket(&self, ctrlr: &str) -> PathBuf {
        self.vhost_dir().join(ctrlr)
    }

    /// Calls a method; the answer's result.
    ///
    /// # Errors
    /// If the daemon answers with an error (then the cause is an [`RpcError`]), or not at all.
    #[allow(clippy::needless_pass_by_value, reason = "callers build the parameters in place with json!")]
    pub fn rpc(&self, method: &str, params: Value) -> Result<Value> {
        self.call(method, &params)?.map_err(|error| anyhow::Error::new(error).context(format!("{method} {params}")))
    }

    /// Calls a method that has to fail; the error.
    ///
    /// # Errors
    /// If it succeeds, or is not answered.
    #[allow(clippy::needless_pass_by_value, reason = "callers build the parameters in place with json!")]
    pub fn rpc_error(&self, method: &str, params: Value) -> Result<RpcError> {
        match self.call(method, &params)? {
            Ok(result) => bail!("{method} {params} succeeded with {result}"),
            Err(error) => Ok(error),
        }
    }

    fn call(&self, method: &str, params: &Value) -> Result<Result<Value, RpcError>> {
        let mut stream = UnixStream::connect(self.rpc_path()).context("connecting to the RPC socket")?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut request = json!({"jsonrpc": "2.0", "id": 1, "method": method});
        if !params.is_null() {
            request["params"] = params.clone();
        }
        stream.write_all(request.to_string().as_bytes())?;
        let mut answers = serde_json::Deserializer::from_reader(stream).into_iter::<Value>();
        let answer = answers.next().with_context(|| format!("{method}: closed without an answer"))??;
        if let Some(error) = answer.get("error") {
            return Ok(Err(RpcError {
                code: error["code"].as_i64().unwrap_or_default(),
                message: error["message"].as_str().unwrap_or_default().into(),
                reason: error["data"]["reason"].as_str().map(Into::into),
                detail: error["data"]["detail"].as_str().map(Into::into),
            }));
        }
        Ok(Ok(answer.get("result").cloned().with_context(|| format!("{method}: neither result nor error"))?))
    }

    /// What `/metrics` shows.
    ///
    /// # Errors
    /// If it is not served.
    pub fn metrics(&self) -> Result<String> {
        let mut stream = TcpStream::connect(self.metrics)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        let (head, body) = text.split_once("\r\n\r\n").context("an HTTP answer")?;
        if !head.starts_with("HTTP/1.1 200") {
            bail!("/metrics answered {head}");
        }
        Ok(body.to_owned())
    }

    /// The sum of all series of a metric whose labels contain all of `labels`.
    ///
    /// # Errors
    /// If metrics are not served.
    pub fn metric(&self, name: &str, labels: &[(&str, &str)]) -> Result<f64> {
        let wanted: Vec<String> = labels.iter().map(|(k, v)| format!("{k}=\"{v}\"")).collect();
        let series = |line: &&str| {
            let rest = line.strip_prefix(name)?;
            (rest.starts_with(['{', ' ']) && wanted.iter().all(|w| rest.contains(w.as_str())))
                .then(|| rest.rsplit(' ').next().and_then(|v| v.parse::<f64>().ok()))?
        };
        Ok(self.metrics()?.lines().filter_map(|line| series(&line)).sum())
    }

    /// How many descriptors it has open.
    ///
    /// # Errors
    /// If it does not run.
    pub fn open_files(&self) -> Result<usize> {
        Ok(std::fs::read_dir(format!("/proc/{}/fd", self.pid()))?.count())
    }

    /// How much CPU time it has used.
    ///
    /// # Errors
    /// If it does not run.
    pub fn cpu_time(&self) -> Result<Duration> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid()))?;
        // After the name in parentheses: state is field 3; utime and stime are fields 14 and 15.
        let (_, rest) = stat.rsplit_once(')').context("/proc/PID/stat")?;
        let fields: Vec<&str> = rest.split_whitespace().collect();
        let ticks: u64 = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
        Ok(Duration::from_millis(ticks * 1000 / rustix::param::clock_ticks_per_second()))
    }

    /// Its resident memory in bytes.
    ///
    /// # Errors
    /// If it does not run.
    pub fn resident(&self) -> Result<u64> {
        let statm = std::fs::read_to_string(format!("/proc/{}/statm", self.pid()))?;
        let pages: u64 = statm.split_whitespace().nth(1).context("statm")?.parse()?;
        Ok(pages * rustix::param::page_size() as u64)
    }

    /// Kills it without warning.
    pub fn kill9(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Asks it to end (SIGTERM) and waits.
    ///
    /// # Errors
    /// If it does not end in time.
    pub fn terminate(&mut self) -> Result<ExitStatus> {
        let mut child = self.child.take().context("the daemon runs")?;
        let pid = rustix::process::Pid::from_raw(child.id() as i32).context("a pid")?;
        rustix::process::kill_process(pid, rustix::process::Signal::TERM)?;
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = child.try_wait()? {
                return Ok(status);
            }
            if Instant::now() > end {
                self.child = Some(child);
                bail!("the daemon does not end:\n{}", self.log_tail());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the daemon's log:\n{}", self.log_tail());
        }
        self.kill9();
    }
}
