//! The client's half of the RPC: one connection, one request at a time.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

/// How long to wait for an answer. Long: a forced delete waits for what a guest has in flight.
const ANSWER_TIME: Duration = Duration::from_secs(120);
/// The longest answer that is taken.
const ANSWER_MAX: u64 = 1 << 30;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    /// No daemon.
    #[error("{hint} ({path}: {source})", path = .path.display())]
    Unreachable { path: PathBuf, hint: &'static str, source: io::Error },
    /// The daemon said no.
    #[error("{method}: {}", describe(.error))]
    Refused { method: String, error: Value },
    /// The daemon said something strange, or nothing.
    #[error("{method}: no answer: {detail}")]
    Broken { method: String, detail: String },
}

/// A connection.
pub(crate) struct Client {
    stream: BufReader<UnixStream>,
    last_id: u64,
}

impl Client {
    /// Connects.
    pub(crate) fn connect(path: &Path) -> Result<Client, CallError> {
        let unreachable = |source: io::Error| {
            let hint = match source.kind() {
                io::ErrorKind::NotFound => "no daemon: start `pollux serve`, or point --rpc-socket at its socket",
                io::ErrorKind::ConnectionRefused => "the daemon is still starting, or has died",
                io::ErrorKind::PermissionDenied => {
                    "not permitted: be root, the daemon's user or in its --rpc-socket-group"
                }
                _ => "the daemon cannot be reached",
            };
            CallError::Unreachable { path: path.into(), hint, source }
        };
        let stream = UnixStream::connect(path).map_err(unreachable)?;
        stream.set_read_timeout(Some(ANSWER_TIME)).map_err(unreachable)?;
        Ok(Client { stream: BufReader::new(stream), last_id: 0 })
    }

    /// The daemon's process.
    pub(crate) fn daemon(&self) -> io::Result<i32> {
        let peer = rustix::net::sockopt::socket_peercred(self.stream.get_ref())?;
        Ok(peer.pid.as_raw_nonzero().get())
    }

    /// Calls a method.
    pub(crate) fn call(&mut self, method: &str, params: Value) -> Result<Value, CallError> {
        self.last_id += 1;
        let mut request = json!({"jsonrpc": "2.0", "id": self.last_id, "method": method});
        if !params.is_null() {
            request["params"] = params;
        }
        let broken = |detail: String| CallError::Broken { method: method.into(), detail };
        let sent = self.stream.get_mut().write_all(format!("{request}\n").as_bytes());
        // A daemon that has turned us away has hung up, but has said why before.
        match sent {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => return Err(broken(error.to_string())),
            _ => {}
        }
        let mut line = Vec::new();
        let read = (&mut self.stream).take(ANSWER_MAX).read_until(b'\n', &mut line);
        match read {
            Ok(0) => return Err(broken("the daemon hung up".into())),
            Ok(_) => {}
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                let seconds = ANSWER_TIME.as_secs();
                return Err(broken(format!(
                    "the daemon has not answered within {seconds} s; what was asked for may still be done: look before asking again"
                )));
            }
            Err(error) => return Err(broken(error.to_string())),
        }
        let mut answer: Value = serde_json::from_slice(&line).map_err(|error| broken(format!("not JSON: {error}")))?;
        if let Some(error) = answer.get_mut("error") {
            return Err(CallError::Refused { method: method.into(), error: error.take() });
        }
        answer.get_mut("result").map(Value::take).ok_or_else(|| broken("neither result nor error".into()))
    }
}

/// An error object in words: what, why, what to do.
fn describe(error: &Value) -> String {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let message = text(&error["message"]).unwrap_or_else(|| error.to_string());
    match (text(&error["data"]["detail"]), text(&error["data"]["reason"])) {
        (Some(detail), _) => format!("{detail} ({message})"),
        (None, Some(reason)) => format!("{message} ({reason})"),
        (None, None) => message,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_told_in_words() {
        let error = json!({"code": -17, "message": "File exists", "data": {"reason": "exists_same"}});
        assert_eq!(describe(&error), "File exists (exists_same)");
        let error = json!({"message": "File exists", "data": {"reason": "r", "detail": "bdev 'x' exists"}});
        assert_eq!(describe(&error), "bdev 'x' exists (File exists)");
        assert_eq!(describe(&json!({"message": "M"})), "M");
        assert_eq!(describe(&json!(7)), "7");
    }

    #[test]
    fn a_daemon_that_hung_up_first_is_heard_all_the_same() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("s");
        let listener = std::os::unix::net::UnixListener::bind(&path).expect("bound");
        let call = |text: &str| {
            let mut client = Client::connect(&path).expect("connected");
            let (mut daemon, _) = listener.accept().expect("accepted");
            daemon.write_all(text.as_bytes()).expect("written");
            drop(daemon);
            client.call("m", Value::Null).expect_err("nobody is there").to_string()
        };
        let told = call("{\"id\":null,\"error\":{\"code\":-16,\"message\":\"Busy\",\"data\":{\"reason\":\"full\"}}}\n");
        assert_eq!(told, "m: Busy (full)");
        assert_eq!(call(""), "m: no answer: the daemon hung up");
    }

    #[test]
    fn a_daemon_that_is_not_there_is_told_so() {
        let Err(error) = Client::connect(Path::new("/nowhere/rpc.sock")) else { panic!("connected") };
        assert!(error.to_string().contains("pollux serve"), "{error}");
    }
}
