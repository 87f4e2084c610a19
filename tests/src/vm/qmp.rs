//! QEMU's machine protocol, as much as tests need: one command at a time, events thrown away.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

/// A connection to QEMU.
pub struct Qmp {
    stream: BufReader<UnixStream>,
}

impl Qmp {
    /// Connects and enters command mode.
    ///
    /// # Errors
    /// If QEMU does not answer.
    pub fn connect(path: &Path) -> Result<Self> {
        let stream = UnixStream::connect(path).with_context(|| format!("connecting to {}", path.display()))?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        let mut qmp = Qmp { stream: BufReader::new(stream) };
        let greeting = qmp.message()?;
        if greeting.get("QMP").is_none() {
            bail!("QEMU greets with {greeting}");
        }
        qmp.command("qmp_capabilities")?;
        Ok(qmp)
    }

    fn message(&mut self) -> Result<Value> {
        let mut line = String::new();
        if self.stream.read_line(&mut line).context("reading from QEMU")? == 0 {
            bail!("QEMU closed its machine protocol");
        }
        Ok(serde_json::from_str(&line)?)
    }

    /// Runs a command without arguments; its result.
    ///
    /// # Errors
    /// If QEMU refuses it.
    pub fn command(&mut self, name: &str) -> Result<Value> {
        writeln!(self.stream.get_mut(), "{}", json!({"execute": name}))?;
        loop {
            let message = self.message()?;
            if let Some(result) = message.get("return") {
                return Ok(result.clone());
            }
            if let Some(error) = message.get("error") {
                bail!("QEMU refuses {name}: {error}");
            }
        }
    }
}
