//! Virtual machines for tests: QEMU with the guest that `scripts/guest` builds, an agent in it that runs commands, QMP.
//!
//! `scripts/guest run` knows QEMU's command line and becomes QEMU, so a VM is a child of the test: it is ended and
//! reaped when its [`Guest`] is dropped, and the kernel ends it if the test dies. Everything a VM leaves behind lies in a
//! folder of its own, gone with it; when something fails, the error quotes the end of its console.
//!
//! Whether guest tests run at all says `POLLUX_GUEST`: `required` (no test VM is a failure), `skip` (leave them out); if
//! it is not set, they run where the test VM is built. See [`available`].

mod agent;
mod base64;
mod parts;
mod qmp;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

pub use agent::{Agent, JobId, Output};
pub use parts::{Parts, available};
pub use qmp::Qmp;

/// How long a boot may take. Emulation on a busy machine is slow; KVM needs seconds.
const BOOT: Duration = Duration::from_secs(180);

/// Which firmware starts the machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Firmware {
    /// QEMU's BIOS.
    #[default]
    SeaBios,
    /// EDK2.
    Ovmf,
}

/// Runs a program of the host, also one of those that a plain user's `PATH` lacks.
///
/// # Errors
/// If it cannot be run, or its exit status is none of these.
pub fn tool(program: &str, args: &[&str], fine: &[i32]) -> Result<()> {
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let output = Command::new(program).args(args).env("PATH", path).output().with_context(|| program.to_owned())?;
    if !output.status.code().is_some_and(|code| fine.contains(&code)) {
        let said = [output.stdout, output.stderr].concat();
        bail!("{program} {args:?}: {}\n{}", output.status, String::from_utf8_lossy(&said));
    }
    Ok(())
}

/// How a VM is made.
#[derive(Clone, Debug)]
pub struct GuestOptions {
    /// Memory.
    pub memory_mib: u32,
    /// Sockets of vhost-user-scsi devices, and how many request queues each has.
    pub vhost: Vec<(PathBuf, u16)>,
    /// Let these devices connect again after a loss, waiting this long. See [`Parts::can_reconnect`].
    pub reconnect_ms: Option<u32>,
    /// Raw images as virtio-blk disks; their serial numbers are `drive0`, `drive1` ...
    pub drives: Vec<PathBuf>,
    /// Boot from the first vhost-user-scsi device instead of a kernel from the host.
    pub boot_from_scsi: bool,
    /// Firmware.
    pub firmware: Firmware,
    /// End when the guest reboots.
    pub no_reboot: bool,
}

impl Default for GuestOptions {
    fn default() -> Self {
        GuestOptions {
            memory_mib: 1024,
            vhost: Vec::new(),
            reconnect_ms: None,
            drives: Vec::new(),
            boot_from_scsi: false,
            firmware: Firmware::SeaBios,
            no_reboot: false,
        }
    }
}

/// A running VM.
pub struct Guest {
    dir: tempfile::TempDir,
    child: Child,
    agent: Option<Agent>,
}

const NAME: &str = "guest";

impl Guest {
    /// Starts a VM; does not wait for the system in it.
    ///
    /// # Errors
    /// If QEMU cannot be started.
    pub fn start(options: &GuestOptions) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("pollux-vm-").tempdir()?;
        let log = File::create(dir.path().join("qemu.log"))?;
        // The signal is sent when the thread that starts it ends, which is the test itself.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "--"]).arg(parts::script()).args(["run", "--name", NAME]);
        command.args(["--mem", &options.memory_mib.to_string()]);
        for (socket, queues) in &options.vhost {
            command.arg("--vhost-scsi").arg(format!("{}:{queues}", utf8(socket)?));
        }
        for drive in &options.drives {
            command.arg("--drive").arg(drive);
        }
        if let Some(ms) = options.reconnect_ms {
            command.args(["--reconnect", &ms.to_string()]);
        }
        if options.boot_from_scsi {
            command.arg("--boot-from-scsi");
        }
        if options.firmware == Firmware::Ovmf {
            command.args(["--firmware", "ovmf"]);
        }
        if options.no_reboot {
            command.arg("--no-reboot");
        }
        let child = command
            .env("POLLUX_RUN_DIR", dir.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("starting scripts/guest run")?;
        Ok(Guest { dir, child, agent: None })
    }

    /// Starts a VM and waits until commands can be run in it.
    ///
    /// # Errors
    /// If it does not come up.
    pub fn boot(options: &GuestOptions) -> Result<Self> {
        let mut guest = Self::start(options)?;
        guest.wait_up()?;
        Ok(guest)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(NAME).join(name)
    }

    /// Waits until commands can be run.
    ///
    /// # Errors
    /// If that takes too long or QEMU ends.
    pub fn wait_up(&mut self) -> Result<()> {
        let end = Instant::now() + BOOT;
        let agent = loop {
            self.check_alive()?;
            match Agent::connect(&self.path("agent.sock")) {
                Ok(agent) => break agent,
                Err(error) if Instant::now() > end => return Err(self.explain(error)),
                Err(_) => std::thread::sleep(Duration::from_millis(50)),
            }
        };
        let agent = self.agent.insert(agent);
        match agent.wait_boot(None, end.saturating_duration_since(Instant::now())) {
            Ok(()) => Ok(()),
            Err(error) => Err(self.explain(error)),
        }
    }

    fn agent(&mut self) -> Result<&mut Agent> {
        self.agent.as_mut().context("the VM was started without waiting for its system")
    }

    /// Runs a shell command; what it printed, whatever its status.
    ///
    /// # Errors
    /// If it does not end in time, or the VM went away.
    pub fn run(&mut self, command: &str, timeout: Duration) -> Result<Output> {
        let result = self.agent()?.run(command, timeout);
        result.map_err(|error| self.explain(error).context(command.to_owned()))
    }

    /// Runs a shell command that has to succeed within two minutes; its standard output, trimmed.
    ///
    /// # Errors
    /// If it fails.
    pub fn sh(&mut self, command: &str) -> Result<String> {
        self.sh_within(command, Duration::from_secs(120))
    }

    /// Runs a shell command that has to succeed; its standard output, trimmed.
    ///
    /// # Errors
    /// If it fails.
    pub fn sh_within(&mut self, command: &str, timeout: Duration) -> Result<String> {
        let output = self.run(command, timeout)?;
        if output.status != 0 {
            let (out, err) = (output.stdout.trim(), output.stderr.trim());
            let kernel = self.run("dmesg | tail -n 15", Duration::from_secs(20)).map(|o| o.stdout).unwrap_or_default();
            bail!("in the guest: {command}\nstatus {}\n{out}\n{err}\nits kernel says:\n{kernel}", output.status);
        }
        Ok(output.stdout.trim().to_owned())
    }

    /// Starts a shell command and goes on.
    ///
    /// # Errors
    /// If the VM went away.
    pub fn spawn(&mut self, command: &str) -> Result<JobId> {
        self.agent()?.spawn(command)
    }

    /// Waits for a command.
    ///
    /// # Errors
    /// If it does not end in time, or the VM went away.
    pub fn wait_job(&mut self, job: &JobId, timeout: Duration) -> Result<Output> {
        let result = self.agent()?.wait_job(job, timeout);
        result.map_err(|error| self.explain(error))
    }

    /// Repeats a shell command until it succeeds; its standard output, trimmed.
    ///
    /// # Errors
    /// If it has not succeeded within `timeout`.
    pub fn until(&mut self, command: &str, timeout: Duration) -> Result<String> {
        let end = Instant::now() + timeout;
        loop {
            let output = self.run(command, Duration::from_secs(60))?;
            if output.status == 0 {
                return Ok(output.stdout.trim().to_owned());
            }
            if Instant::now() > end {
                bail!("in the guest, for {timeout:?} without success: {command}\n{}\n{}", output.stdout, output.stderr);
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// A hard reset of the whole machine, as by its button, and waits until the system is up again.
    ///
    /// # Errors
    /// If it does not come up.
    pub fn reset(&mut self) -> Result<()> {
        let before = self.agent()?.boot_id().to_owned();
        Qmp::connect(&self.path("qmp.sock"))?.command("system_reset")?;
        let result = self.agent()?.wait_boot(Some(&before), BOOT);
        result.map_err(|error| self.explain(error))
    }

    /// All that the guest has written to its console.
    #[must_use]
    pub fn console(&self) -> String {
        let bytes = std::fs::read(self.path("console.log")).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Waits for a line on the console that contains `text`.
    ///
    /// # Errors
    /// If none comes in time, or QEMU ends before.
    pub fn wait_console(&mut self, text: &str, timeout: Duration) -> Result<String> {
        let end = Instant::now() + timeout;
        loop {
            let ended = self.child.try_wait()?;
            // A line that is not complete yet would be quoted in part.
            let console = self.console();
            let complete = &console[..console.rfind('\n').map_or(0, |at| at + 1)];
            if let Some(line) = complete.lines().find(|line| line.contains(text)) {
                return Ok(line.trim().to_owned());
            }
            if ended.is_some() || Instant::now() > end {
                return Err(self.explain(anyhow::anyhow!("`{text}` did not appear on the console in {timeout:?}")));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Asks the guest to stop and waits until QEMU has ended.
    ///
    /// # Errors
    /// If it does not end.
    pub fn power_off(mut self) -> Result<()> {
        self.sh("poweroff")?;
        let end = Instant::now() + Duration::from_secs(60);
        while self.child.try_wait()?.is_none() {
            if Instant::now() > end {
                return Err(self.explain(anyhow::anyhow!("the VM did not power off")));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    fn check_alive(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            return Err(self.explain(anyhow::anyhow!("QEMU ended with {status}")));
        }
        Ok(())
    }

    /// Adds the end of the console and of QEMU's messages to an error.
    fn explain(&self, error: anyhow::Error) -> anyhow::Error {
        let qemu = std::fs::read(self.dir.path().join("qemu.log")).unwrap_or_default();
        let (console, qemu) = (self.console(), String::from_utf8_lossy(&qemu).into_owned());
        error.context(format!("QEMU says:\n{}\nthe console ends with:\n{}", tail(&qemu, 10), tail(&console, 25)))
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

fn utf8(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("{} is not UTF-8", path.display()))
}
