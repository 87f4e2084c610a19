//! The RPC server: accepts, checks who calls, and serves each connection on a thread of its own.
//!
//! A connection costs others nothing: at most [`CONNECTIONS_MAX`] of them, each with at most one request in memory, a time
//! limit for a request that has begun ([`REQUEST_TIME`]) and one for a client that does not take its answers
//! ([`ANSWER_TIME`]). Requests of one connection run in order and are answered in order; batches are answered by an array
//! that is written as it grows, never held in memory.

use std::collections::HashMap;
use std::io::{self, BufWriter, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::error::{RpcError, code, errno};
use super::framing::Framer;
use super::message::{self, Incoming, Message, Request};
use super::peer::Peer;
use super::socket::{Bound, Claim, SocketError};

/// Connections at once, as in SPDK.
pub const CONNECTIONS_MAX: usize = 64;
/// How long a request may take to arrive once it has begun.
pub const REQUEST_TIME: Duration = Duration::from_secs(30);
/// How long a client may leave an answer untaken.
pub const ANSWER_TIME: Duration = Duration::from_secs(30);
/// How long requests in progress may go on when the server stops.
const STOP_TIME: Duration = Duration::from_secs(5);

/// What runs the methods.
pub trait Dispatch: Send + Sync {
    /// Runs one request.
    ///
    /// # Errors
    /// What to answer instead of a result.
    fn call(&self, request: &Request) -> Result<Value, RpcError>;
}

/// A running server.
pub struct Server {
    shared: Arc<Shared>,
    listener: UnixListener,
    accepting: Option<JoinHandle<()>>,
    claim: Option<Claim>,
}

struct Shared {
    dispatch: Arc<dyn Dispatch>,
    group: Option<u32>,
    stopping: AtomicBool,
    connections: Mutex<Connections>,
}

#[derive(Default)]
struct Connections {
    last_id: u64,
    open: HashMap<u64, UnixStream>,
}

impl Shared {
    fn connections(&self) -> MutexGuard<'_, Connections> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Server {
    /// Starts to listen and to answer. `group`: whose members may call beside root and the daemon's own user.
    ///
    /// # Errors
    /// [`SocketError`] if the socket cannot listen or no thread can be started.
    pub fn start(bound: Bound, group: Option<u32>, dispatch: Arc<dyn Dispatch>) -> Result<Server, SocketError> {
        let (listener, claim) = bound.listen()?;
        let system = |source| SocketError::System { what: "serve", path: "the RPC socket".into(), source };
        let shared = Arc::new(Shared {
            dispatch,
            group,
            stopping: AtomicBool::new(false),
            connections: Mutex::new(Connections::default()),
        });
        let accepting = {
            let (shared, listener) = (Arc::clone(&shared), listener.try_clone().map_err(system)?);
            let thread = std::thread::Builder::new().name("rpc-accept".into());
            thread.spawn(move || accept(&shared, &listener)).map_err(system)?
        };
        Ok(Server { shared, listener, accepting: Some(accepting), claim: Some(claim) })
    }

    /// Stops: no new connection, no new request; what is being answered is finished, within a few seconds.
    pub fn stop(mut self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        let _ = rustix::net::shutdown(&self.listener, rustix::net::Shutdown::Both);
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
        drop(self.claim.take());
        for stream in self.shared.connections().open.values() {
            let _ = stream.shutdown(Shutdown::Read);
        }
        let deadline = Instant::now() + STOP_TIME;
        while !self.shared.connections().open.is_empty() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
        for stream in self.shared.connections().open.values() {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

fn accept(shared: &Arc<Shared>, listener: &UnixListener) {
    loop {
        let accepted = listener.accept();
        if shared.stopping.load(Ordering::SeqCst) {
            return;
        }
        match accepted {
            Ok((stream, _)) => admit(shared, stream),
            Err(error) => {
                tracing::warn!("cannot accept an RPC connection: {error}");
                std::thread::sleep(Duration::from_millis(100));
            }
        }
    }
}

/// Checks who is there and whether there is room, and gives it a thread.
fn admit(shared: &Arc<Shared>, stream: UnixStream) {
    match Peer::of(&stream) {
        Ok(peer) if peer.allowed(rustix::process::geteuid().as_raw(), shared.group) => {}
        Ok(peer) => {
            tracing::warn!("RPC connection of pid {} refused: uid {} may not call", peer.pid, peer.uid);
            let error = RpcError::errno(errno::EACCES, "not_permitted");
            return refuse(stream, &error.detail("only root, the daemon's user and --rpc-socket-group may call"));
        }
        Err(error) => return tracing::warn!("RPC connection refused: credentials unknown: {error}"),
    }
    let Some(id) = enter(shared, &stream) else {
        let error = RpcError::errno(errno::EBUSY, "too_many_connections");
        return refuse(stream, &error.detail(format!("{CONNECTIONS_MAX} connections are open; close one")));
    };
    let serving = Arc::clone(shared);
    let thread = std::thread::Builder::new().name("rpc".into()).spawn(move || {
        if let Err(error) = serve(&serving, &stream) {
            tracing::debug!("RPC connection ended: {error}");
        }
        serving.connections().open.remove(&id);
    });
    if let Err(error) = thread {
        tracing::warn!("no thread for an RPC connection: {error}");
        shared.connections().open.remove(&id);
    }
}

fn enter(shared: &Shared, stream: &UnixStream) -> Option<u64> {
    let mut connections = shared.connections();
    if connections.open.len() >= CONNECTIONS_MAX {
        return None;
    }
    let twin = stream.try_clone().ok()?;
    connections.last_id += 1;
    let id = connections.last_id;
    connections.open.insert(id, twin);
    Some(id)
}

/// Says why and hangs up. Never waits: the answer fits into the socket's buffer or is not sent.
fn refuse(mut stream: UnixStream, error: &RpcError) {
    let _ = stream.set_nonblocking(true);
    let text = format!("{}\n", message::response(&Value::Null, &Err(error.clone())));
    let _ = stream.write_all(text.as_bytes());
}

/// One connection, to its end.
fn serve(shared: &Shared, mut stream: &UnixStream) -> io::Result<()> {
    stream.set_write_timeout(Some(ANSWER_TIME))?;
    let mut framer = Framer::new();
    let mut chunk = vec![0; 16 * 1024];
    let mut began: Option<Instant> = None;
    loop {
        stream.set_read_timeout(remaining(began))?;
        let received = match stream.read(&mut chunk) {
            Ok(received) => received,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                let error = fatal("the request did not arrive in time", "request_timeout");
                return answer(stream, &Value::Null, &Err(error));
            }
            Err(error) => return Err(error),
        };
        if received == 0 {
            return end(shared, stream, framer);
        }
        framer.push(&chunk[..received]);
        loop {
            match framer.next_value() {
                Ok(Some(value)) => {
                    if !take(shared, stream, &value)? {
                        return Ok(());
                    }
                    began = None;
                }
                Ok(None) => break,
                Err(error) => {
                    let reason = match error {
                        super::framing::FrameError::TooLarge => "request_too_large",
                        super::framing::FrameError::TooDeep => "request_too_deep",
                        super::framing::FrameError::Unexpected(_) => "parse_error",
                    };
                    answer(stream, &Value::Null, &Err(fatal(&error.to_string(), reason)))?;
                    return linger(stream);
                }
            }
        }
        began = if framer.partial() { began.or_else(|| Some(Instant::now())) } else { None };
    }
}

/// The time left for the request that has begun; zero means "no limit" to the socket, so never zero.
fn remaining(began: Option<Instant>) -> Option<Duration> {
    began.map(|began| REQUEST_TIME.saturating_sub(began.elapsed()).max(Duration::from_millis(1)))
}

fn fatal(detail: &str, reason: &'static str) -> RpcError {
    RpcError::new(code::PARSE_ERROR, "Parse error", reason).detail(detail)
}

/// The client will send no more: what only the end could finish is answered, then the connection is over.
fn end(shared: &Shared, stream: &UnixStream, mut framer: Framer) -> io::Result<()> {
    match framer.rest() {
        Some(rest) => take(shared, stream, &rest).map(drop),
        None => Ok(()),
    }
}

/// Takes what the client still sends for a moment, so that closing does not throw away the error it has not read yet.
fn linger(mut stream: &UnixStream) -> io::Result<()> {
    stream.shutdown(Shutdown::Write)?;
    stream.set_read_timeout(Some(Duration::from_millis(500)))?;
    let deadline = Instant::now() + Duration::from_secs(2);
    let mut chunk = vec![0; 64 * 1024];
    while Instant::now() < deadline && matches!(stream.read(&mut chunk), Ok(received) if received > 0) {}
    Ok(())
}

/// Runs one value of the stream; `false` if the connection is over.
fn take(shared: &Shared, stream: &UnixStream, value: &[u8]) -> io::Result<bool> {
    match message::parse(value) {
        Ok(Message::Single(incoming)) => {
            if let Some((id, outcome)) = run(shared, incoming) {
                answer(stream, &id, &outcome)?;
            }
            Ok(true)
        }
        Ok(Message::Batch(members)) => batch(shared, stream, members).map(|()| true),
        Err(error) => {
            let over = error.code == code::PARSE_ERROR;
            answer(stream, &Value::Null, &Err(error))?;
            Ok(!over)
        }
    }
}

/// Runs a request. Nothing is answered to a notification that went well.
fn run(shared: &Shared, incoming: Incoming) -> Option<(Value, Result<Value, RpcError>)> {
    match incoming {
        Err(refused) => Some((refused.id, Err(refused.error))),
        Ok(request) => {
            let outcome = shared.dispatch.call(&request);
            match request.id {
                Some(id) => Some((id, outcome)),
                None => outcome.err().map(|error| (Value::Null, Err(error))),
            }
        }
    }
}

fn batch(shared: &Shared, stream: &UnixStream, members: Vec<Incoming>) -> io::Result<()> {
    let mut out = BufWriter::new(stream);
    let mut separator = "[";
    for incoming in members {
        if let Some((id, outcome)) = run(shared, incoming) {
            out.write_all(separator.as_bytes())?;
            serde_json::to_writer(&mut out, &message::response(&id, &outcome))?;
            separator = ",";
        }
    }
    if separator == "," {
        out.write_all(b"]\n")?;
    }
    out.flush()
}

fn answer(stream: &UnixStream, id: &Value, outcome: &Result<Value, RpcError>) -> io::Result<()> {
    let mut out = BufWriter::new(stream);
    serde_json::to_writer(&mut out, &message::response(id, outcome))?;
    out.write_all(b"\n")?;
    out.flush()
}

#[cfg(test)]
mod tests {
    use super::super::socket;
    use super::*;
    use serde_json::json;
    use std::io::{BufRead, BufReader};
    use std::path::PathBuf;

    struct Echo;

    impl Dispatch for Echo {
        fn call(&self, request: &Request) -> Result<Value, RpcError> {
            match request.method.as_str() {
                "echo" => Ok(request.params.clone()),
                "big" => Ok(Value::String("x".repeat(8 << 20))),
                _ => Err(RpcError::new(code::METHOD_NOT_FOUND, "Method not found", "method_not_found")),
            }
        }
    }

    struct World {
        _dir: tempfile::TempDir,
        path: PathBuf,
        server: Option<Server>,
    }

    impl World {
        fn new() -> World {
            let dir = tempfile::tempdir().expect("a directory");
            let path = dir.path().join("s");
            let bound = socket::bind(&path, 0o600, None).expect("bound");
            let server = Server::start(bound, None, Arc::new(Echo)).expect("served");
            World { _dir: dir, path, server: Some(server) }
        }

        fn connect(&self) -> BufReader<UnixStream> {
            let stream = UnixStream::connect(&self.path).expect("connected");
            stream.set_read_timeout(Some(Duration::from_secs(20))).expect("set");
            BufReader::new(stream)
        }
    }

    impl Drop for World {
        fn drop(&mut self) {
            self.server.take().expect("once").stop();
            assert!(!self.path.exists());
        }
    }

    fn send(client: &mut BufReader<UnixStream>, text: &str) {
        client.get_mut().write_all(text.as_bytes()).expect("sent");
    }

    fn line(client: &mut BufReader<UnixStream>) -> Value {
        let mut text = String::new();
        client.read_line(&mut text).expect("a line");
        if text.is_empty() {
            return Value::Null;
        }
        serde_json::from_str(&text).expect("json")
    }

    #[test]
    fn pipelined_pretty_and_dribbled_requests_are_answered_in_order() {
        let world = World::new();
        let mut client = world.connect();
        send(
            &mut client,
            "{\"method\":\"echo\",\"id\":1,\"params\":{\"a\":1}}{\n \"method\": \"echo\",\n \"id\": \"z\"\n}",
        );
        assert_eq!(line(&mut client), json!({"jsonrpc":"2.0","id":1,"result":{"a":1}}));
        assert_eq!(line(&mut client), json!({"jsonrpc":"2.0","id":"z","result":null}));
        for byte in "{\"method\":\"nope\",\"id\":3}".chars() {
            send(&mut client, &byte.to_string());
        }
        let error = line(&mut client);
        assert_eq!(error["error"]["code"], -32601);
        assert_eq!(error["error"]["data"]["reason"], "method_not_found");
    }

    #[test]
    fn notifications_are_silent_unless_they_fail() {
        let world = World::new();
        let mut client = world.connect();
        send(&mut client, "{\"method\":\"echo\"}{\"method\":\"nope\"}{\"method\":\"echo\",\"id\":5}");
        assert_eq!(line(&mut client)["error"]["code"], -32601);
        assert_eq!(line(&mut client)["id"], 5);
    }

    #[test]
    fn batches_answer_with_an_array_and_silence_with_nothing() {
        let world = World::new();
        let mut client = world.connect();
        send(&mut client, "[{\"method\":\"echo\"}][{\"method\":\"echo\",\"id\":1},7,{\"method\":\"nope\",\"id\":2}][]");
        let batch = line(&mut client);
        assert_eq!(batch.as_array().map(Vec::len), Some(3));
        assert_eq!((&batch[0]["id"], &batch[1]["error"]["code"]), (&json!(1), &json!(-32600)));
        assert_eq!(line(&mut client)["error"]["code"], -32600);
    }

    #[test]
    fn bad_json_is_answered_and_ends_the_connection() {
        let world = World::new();
        for bad in ["{\"method\":}", "]", "[1,]", "{\"a\" 1}", "GET / HTTP/1.1\r\n\r\n"] {
            let mut client = world.connect();
            send(&mut client, bad);
            assert_eq!(line(&mut client)["error"]["code"], -32700, "{bad}");
            assert_eq!(line(&mut client), Value::Null, "{bad}");
        }
        let mut client = world.connect();
        send(&mut client, "{\"method\":\"ec");
        client.get_ref().shutdown(Shutdown::Write).expect("half closed");
        assert_eq!(line(&mut client)["error"]["code"], -32700);
    }

    #[test]
    fn a_gigabyte_string_gets_a_clear_error() {
        let world = World::new();
        let mut client = world.connect();
        send(&mut client, "{\"method\":\"echo\",\"id\":1,\"params\":{\"s\":\"");
        let mut writer = client.get_ref().try_clone().expect("cloned");
        let flood = std::thread::spawn(move || {
            let chunk = vec![b'x'; 1 << 20];
            for _ in 0..1024 {
                if writer.write_all(&chunk).is_err() {
                    return;
                }
            }
        });
        let error = line(&mut client);
        assert_eq!(error["error"]["data"]["reason"], "request_too_large");
        drop(client);
        flood.join().expect("no panic");
    }

    #[test]
    fn one_connection_too_many_is_told_so() {
        let world = World::new();
        let mut clients: Vec<_> = (0..CONNECTIONS_MAX).map(|_| world.connect()).collect();
        for client in &mut clients {
            send(client, "{\"method\":\"echo\",\"id\":1}");
            assert_eq!(line(client)["id"], 1);
        }
        let mut late = world.connect();
        assert_eq!(line(&mut late)["error"]["data"]["reason"], "too_many_connections");
        clients.pop();
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let mut again = world.connect();
            // It may have been turned away already, and then finds nobody to write to, but can read why.
            let sent = again.get_mut().write_all(b"{\"method\":\"echo\",\"id\":2}");
            let answer = line(&mut again);
            if sent.is_err() {
                assert_eq!(answer["error"]["data"]["reason"], "too_many_connections");
            }
            if answer["id"] == 2 {
                break;
            }
            assert!(Instant::now() < deadline, "the place was never given back");
        }
    }

    #[test]
    fn a_client_that_never_reads_costs_only_itself() {
        let world = World::new();
        let mut deaf = world.connect();
        for id in 0..8 {
            send(&mut deaf, &format!("{{\"method\":\"big\",\"id\":{id}}}"));
        }
        let mut other = world.connect();
        send(&mut other, "{\"method\":\"echo\",\"id\":1}");
        assert_eq!(line(&mut other)["id"], 1);
        drop(deaf);
    }
}
