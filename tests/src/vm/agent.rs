//! The host's side of the agent in the test VM; its protocol is described in tests/guest/README.md.
//!
//! Lines of words, each line ended by a dot of its own, so that one that was cut off is never taken for whole. Requests
//! carry an id that no other client of the VM uses; answers come in any order.

use std::collections::HashMap;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::base64;

/// What a command left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// Exit status; 128 and the signal's number if it was killed.
    pub status: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

/// Names a command that runs.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct JobId(String);

/// A connection to the agent.
pub struct Agent {
    stream: UnixStream,
    received: Vec<u8>,
    boot_id: String,
    answers: HashMap<JobId, Result<Output, String>>,
    prefix: String,
    serial: u64,
}

impl Agent {
    /// Connects to the socket, which says nothing yet about the guest.
    ///
    /// # Errors
    /// If there is no such socket.
    pub fn connect(path: &Path) -> Result<Self> {
        static CLIENTS: AtomicU64 = AtomicU64::new(0);
        let stream = UnixStream::connect(path).with_context(|| format!("connecting to {}", path.display()))?;
        let client = CLIENTS.fetch_add(1, Ordering::Relaxed);
        let prefix = format!("t{}-{client}", std::process::id());
        let (boot_id, answers) = (String::new(), HashMap::new());
        let mut agent = Agent { stream, received: Vec::new(), boot_id, answers, prefix, serial: 0 };
        // Ends what an earlier client may have left unfinished.
        agent.stream.write_all(b"\n")?;
        Ok(agent)
    }

    /// Which boot it was that answered last.
    #[must_use]
    pub fn boot_id(&self) -> &str {
        &self.boot_id
    }

    fn new_id(&mut self) -> String {
        self.serial += 1;
        format!("{}-{}", self.prefix, self.serial)
    }

    /// The next whole message as words, without its dot; `None` when the time is over.
    fn message(&mut self, end: Instant) -> Result<Option<Vec<String>>> {
        loop {
            if let Some(at) = self.received.iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = self.received.drain(..=at).collect();
                let text = String::from_utf8_lossy(&line);
                let mut words: Vec<String> = text.trim_end_matches('\n').split(' ').map(Into::into).collect();
                if words.len() >= 2 && words.pop().as_deref() == Some(".") {
                    return Ok(Some(words));
                }
                continue;
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.stream.set_read_timeout(Some(left))?;
            let mut bytes = [0; 1 << 16];
            match self.stream.read(&mut bytes) {
                Ok(0) => bail!("the VM closed the agent's connection"),
                Ok(count) => self.received.extend_from_slice(&bytes[..count]),
                Err(error) if [ErrorKind::WouldBlock, ErrorKind::TimedOut].contains(&error.kind()) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Waits until the agent of another boot than `other_than` answers.
    ///
    /// # Errors
    /// If none does in time.
    pub fn wait_boot(&mut self, other_than: Option<&str>, timeout: Duration) -> Result<()> {
        let end = Instant::now() + timeout;
        // What was sent to an agent that went away with a reboot is lost: keep asking.
        while Instant::now() < end {
            let id = self.new_id();
            self.stream.write_all(format!("PING {id} .\n").as_bytes())?;
            let patience = end.min(Instant::now() + Duration::from_secs(1));
            while let Some(words) = self.message(patience)? {
                if let [verb, id, boot] = &words[..]
                    && verb == "PONG"
                    && id.starts_with(&self.prefix)
                    && Some(boot.as_str()) != other_than
                {
                    boot.clone_into(&mut self.boot_id);
                    return Ok(());
                }
            }
        }
        bail!("the agent in the VM did not answer within {timeout:?}")
    }

    /// Starts a shell command.
    ///
    /// # Errors
    /// If the VM is gone.
    pub fn spawn(&mut self, command: &str) -> Result<JobId> {
        let id = self.new_id();
        self.stream.write_all(format!("RUN {id} cmd={} .\n", base64::encode(command.as_bytes())).as_bytes())?;
        Ok(JobId(id))
    }

    /// Waits for a command to end.
    ///
    /// # Errors
    /// If it does not in time, if the agent refused it, if the VM was rebooted meanwhile.
    pub fn wait_job(&mut self, job: &JobId, timeout: Duration) -> Result<Output> {
        let end = Instant::now() + timeout;
        loop {
            if let Some(answer) = self.answers.remove(job) {
                return answer.map_err(|reason| anyhow::anyhow!("the agent refused the command: {reason}"));
            }
            let Some(words) = self.message(end)? else { bail!("the command did not end within {timeout:?}") };
            self.take(&words)?;
        }
    }

    fn take(&mut self, words: &[String]) -> Result<()> {
        match words {
            [verb, _, boot] if verb == "READY" && *boot != self.boot_id => {
                bail!("the VM was rebooted while a command ran")
            }
            [verb, id, reason @ ..] if verb == "ERR" => {
                self.answers.insert(JobId(id.clone()), Err(reason.join(" ")));
            }
            [verb, id, status, out, err] if verb == "DONE" => {
                let text = |word: &str, key| -> Result<String> {
                    let coded = word.strip_prefix(key).with_context(|| format!("{key} in the agent's answer"))?;
                    Ok(String::from_utf8_lossy(&base64::decode(coded)?).into_owned())
                };
                let output = Output { status: status.parse()?, stdout: text(out, "out=")?, stderr: text(err, "err=")? };
                self.answers.insert(JobId(id.clone()), Ok(output));
            }
            _ => {}
        }
        Ok(())
    }

    /// Runs a shell command.
    ///
    /// # Errors
    /// As [`Agent::wait_job`].
    pub fn run(&mut self, command: &str, timeout: Duration) -> Result<Output> {
        let job = self.spawn(command)?;
        self.wait_job(&job, timeout)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::os::unix::net::UnixListener;

    use super::*;

    /// An agent that answers each command with two lines of noise, then with its own id as output.
    fn serve(listener: &UnixListener, boot: &str) {
        let (stream, _) = listener.accept().unwrap();
        let mut out = stream.try_clone().unwrap();
        for line in BufReader::new(stream).lines() {
            let line = line.unwrap();
            let words: Vec<&str> = line.split(' ').collect();
            match words[..] {
                ["PING", id, "."] => write!(out, "\nPONG other-1 x .\nPONG {id} {boot} .\n").unwrap(),
                ["RUN", id, cmd, "."] => {
                    let cut = format!("DONE {id} 7 out=");
                    let command = base64::decode(&cmd[4..]).unwrap();
                    write!(out, "\n{cut}\nDONE {id} 3 out={} err= .\n", base64::encode(&command)).unwrap();
                }
                [""] => {}
                _ => panic!("{line}"),
            }
        }
    }

    #[test]
    fn answers_are_matched_and_cut_lines_are_ignored() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent");
        let listener = UnixListener::bind(&path).unwrap();
        let server = std::thread::spawn(move || serve(&listener, "boot-a"));
        let mut agent = Agent::connect(&path).unwrap();
        agent.wait_boot(None, Duration::from_secs(5)).unwrap();
        assert_eq!(agent.boot_id(), "boot-a");
        let one = agent.spawn("one").unwrap();
        let two = agent.run("two", Duration::from_secs(5)).unwrap();
        assert_eq!((two.status, two.stdout.as_str()), (3, "two"));
        assert_eq!(agent.wait_job(&one, Duration::from_secs(5)).unwrap().stdout, "one");
        assert!(agent.wait_boot(Some("boot-a"), Duration::from_millis(100)).is_err());
        drop(agent);
        server.join().unwrap();
    }
}
