//! The HTTP endpoint: one thread, one connection for each request, and limits on what a client can hold.
//!
//! - A connection that has not sent its request's header in [`HEADER_TIME`] is closed, and any connection after
//!   [`CONNECTION_TIME`], however slowly it reads its answer.
//! - At most [`CONNECTIONS`] are open; further ones wait in the kernel's backlog until one has closed.
//! - Nothing a client sends is kept: request bodies are not read.

use std::convert::Infallible;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{Semaphore, oneshot};

use crate::Exporter;

/// How long a client may take to send a header.
const HEADER_TIME: Duration = Duration::from_secs(5);
/// How long a connection may last.
const CONNECTION_TIME: Duration = Duration::from_secs(30);
/// How many connections may be open.
const CONNECTIONS: usize = 64;
/// The longest header, in bytes.
const HEADER_BYTES: usize = 16 * 1024;
/// How long to wait when no connection can be accepted (no descriptors are left).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

const TEXT: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");
const METRICS: HeaderValue = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");

#[derive(Clone, Copy)]
struct Limits {
    header_time: Duration,
    connection_time: Duration,
    connections: usize,
}

const LIMITS: Limits = Limits { header_time: HEADER_TIME, connection_time: CONNECTION_TIME, connections: CONNECTIONS };

/// The running endpoint. Dropping it stops it.
pub struct Server {
    addr: SocketAddr,
    running: Option<(oneshot::Sender<()>, JoinHandle<()>)>,
}

impl Server {
    pub(crate) fn start(exporter: Arc<Exporter>, listen: SocketAddr) -> io::Result<Self> {
        Self::start_with(exporter, listen, LIMITS)
    }

    fn start_with(exporter: Arc<Exporter>, listen: SocketAddr, limits: Limits) -> io::Result<Self> {
        let listener = TcpListener::bind(listen)?;
        listener.set_nonblocking(true)?;
        let addr = listener.local_addr()?;
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let listener = {
            let _inside = runtime.enter();
            tokio::net::TcpListener::from_std(listener)?
        };
        let (stop, stopped) = oneshot::channel();
        let run = move || run(&runtime, listener, exporter, limits, stopped);
        let thread = thread::Builder::new().name("metrics".to_owned()).spawn(run)?;
        Ok(Server { addr, running: Some((stop, thread)) })
    }

    /// Where it listens: with the real port if it was asked for port 0.
    #[must_use]
    pub const fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Closes all connections and waits for the thread.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        if let Some((stop, thread)) = self.running.take() {
            // Both fail only if the thread has ended by a panic, which it has printed.
            let _ended = stop.send(());
            let _panicked = thread.join();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end();
    }
}

fn run(
    runtime: &Runtime,
    listener: tokio::net::TcpListener,
    exporter: Arc<Exporter>,
    limits: Limits,
    stopped: oneshot::Receiver<()>,
) {
    runtime.block_on(async {
        tokio::select! {
            () = accept(listener, exporter, limits) => (),
            // Also when the sender was dropped.
            _ = stopped => (),
        }
    });
}

async fn accept(listener: tokio::net::TcpListener, exporter: Arc<Exporter>, limits: Limits) {
    let places = Arc::new(Semaphore::new(limits.connections));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let exporter = Arc::clone(&exporter);
                tokio::spawn(async move {
                    serve(stream, exporter, limits).await;
                    drop(place);
                });
            }
            Err(error) => {
                tracing::warn!("metrics: no connection can be accepted: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn serve(stream: TcpStream, exporter: Arc<Exporter>, limits: Limits) {
    let service = service_fn(move |request: Request<Incoming>| {
        let response = answer(&exporter, request.method(), request.uri().path());
        async move { Ok::<_, Infallible>(response) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header_time)
        .max_buf_size(HEADER_BYTES)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    match tokio::time::timeout(limits.connection_time, connection).await {
        Ok(Ok(())) => (),
        Ok(Err(error)) => tracing::debug!("metrics: connection closed: {error}"),
        Err(_) => tracing::debug!("metrics: connection closed: too slow"),
    }
}

fn answer(exporter: &Exporter, method: &Method, path: &str) -> Response<Full<Bytes>> {
    let known = matches!(path, "/metrics" | "/healthz");
    if !known {
        return response(StatusCode::NOT_FOUND, &TEXT, "not found: there are /metrics and /healthz\n".to_owned());
    }
    if method != Method::GET && method != Method::HEAD {
        let mut refused = response(StatusCode::METHOD_NOT_ALLOWED, &TEXT, "only GET and HEAD\n".to_owned());
        refused.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return refused;
    }
    if path == "/healthz" {
        response(StatusCode::OK, &TEXT, "ok\n".to_owned())
    } else {
        response(StatusCode::OK, &METRICS, exporter.render())
    }
}

fn response(status: StatusCode, kind: &HeaderValue, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, kind.clone());
    response
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpStream;
    use std::time::Instant;

    use super::*;
    use crate::{Sink, Source};

    struct One;

    impl Source for One {
        fn collect(&self, sink: &mut Sink) {
            sink.gauge("pollux_one", "One.", &[("name", "a\"b")], 1.0);
        }
    }

    fn server(limits: Limits) -> Server {
        let exporter = Arc::new(Exporter::new());
        exporter.add(Arc::new(One));
        Server::start_with(exporter, ([127, 0, 0, 1], 0).into(), limits).unwrap()
    }

    fn connect(server: &Server) -> TcpStream {
        let stream = TcpStream::connect(server.addr()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream
    }

    /// Sends bytes, reads until the server closes; status line and the rest.
    fn exchange(server: &Server, request: &str) -> (String, String) {
        let mut stream = connect(server);
        stream.write_all(request.as_bytes()).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        let (status, rest) = text.split_once("\r\n").unwrap_or_else(|| panic!("no answer to {request:?}: {text:?}"));
        (status.to_owned(), rest.to_owned())
    }

    fn get(server: &Server, path: &str) -> (String, String) {
        exchange(server, &format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n"))
    }

    #[test]
    fn metrics_and_health() {
        let server = server(LIMITS);
        let (status, rest) = get(&server, "/metrics");
        assert_eq!(status, "HTTP/1.1 200 OK");
        let (headers, body) = rest.split_once("\r\n\r\n").unwrap();
        assert!(headers.contains("content-type: text/plain; version=0.0.4; charset=utf-8"), "{headers}");
        assert!(headers.contains(&format!("content-length: {}", body.len())), "{headers}");
        assert_eq!(body, "# HELP pollux_one One.\n# TYPE pollux_one gauge\npollux_one{name=\"a\\\"b\"} 1\n");
        assert!(get(&server, "/metrics?name[]=up").1.ends_with(body), "a query changes nothing");
        let (status, rest) = get(&server, "/healthz");
        assert_eq!((status.as_str(), rest.ends_with("\r\n\r\nok\n")), ("HTTP/1.1 200 OK", true));
        let (status, rest) = exchange(&server, "HEAD /metrics HTTP/1.1\r\nHost: a\r\n\r\n");
        assert_eq!((status.as_str(), rest.ends_with("\r\n\r\n")), ("HTTP/1.1 200 OK", true), "no body");
        server.stop();
    }

    #[test]
    fn everything_else_is_refused() {
        let server = server(LIMITS);
        for path in ["/", "/metric", "/metrics/", "/healthz/..", "/metrics%00"] {
            assert_eq!(get(&server, path).0, "HTTP/1.1 404 Not Found", "{path}");
        }
        for method in ["POST", "PUT", "DELETE", "OPTIONS", "BREW"] {
            let (status, rest) = exchange(&server, &format!("{method} /metrics HTTP/1.1\r\nHost: a\r\n\r\n"));
            assert_eq!(status, "HTTP/1.1 405 Method Not Allowed", "{method}");
            assert!(rest.contains("allow: GET, HEAD\r\n"), "{rest}");
        }
        for nonsense in ["nonsense\r\n\r\n", "\u{0}\u{1}\u{2}\r\n\r\n", "GET /metrics HTTP/9.9\r\n\r\n"] {
            assert_eq!(exchange(&server, nonsense).0, "HTTP/1.1 400 Bad Request", "{nonsense:?}");
        }
        assert_eq!(get(&server, "/healthz").0, "HTTP/1.1 200 OK", "it still serves");
    }

    #[test]
    fn endless_headers_are_cut_off() {
        let server = server(LIMITS);
        let mut stream = connect(&server);
        let line = format!("X: {}\r\n", "x".repeat(1000));
        let mut sent = 0;
        let refused = stream.write_all(b"GET /metrics HTTP/1.1\r\n").is_err()
            || (0..1000).any(|_| {
                sent += line.len();
                stream.write_all(line.as_bytes()).is_err()
            });
        // Either the write fails already, or what was read back says so.
        let mut answer = Vec::new();
        let read = stream.read_to_end(&mut answer);
        assert!(refused || read.is_err() || answer.starts_with(b"HTTP/1.1 4"), "{sent} bytes were taken");
        assert_eq!(get(&server, "/healthz").0, "HTTP/1.1 200 OK");
    }

    #[test]
    fn a_client_that_dribbles_is_closed_while_others_are_served() {
        let server = server(Limits { header_time: Duration::from_millis(300), ..LIMITS });
        let mut silent = connect(&server);
        let mut slow = connect(&server);
        slow.write_all(b"GET /metr").unwrap();
        assert_eq!(get(&server, "/metrics").0, "HTTP/1.1 200 OK");
        let start = Instant::now();
        // Read errors (reset) are ends, too; only the read timeout is not.
        let ended = |stream: &mut TcpStream| match stream.read_to_end(&mut Vec::new()) {
            Ok(_) => true,
            Err(error) => error.kind() == io::ErrorKind::ConnectionReset,
        };
        assert!(ended(&mut silent) && ended(&mut slow));
        assert!(start.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn the_number_of_connections_is_limited_and_places_come_back() {
        let limits = Limits { header_time: Duration::from_millis(500), connections: 2, ..LIMITS };
        let server = server(limits);
        let start = Instant::now();
        let _holding = [connect(&server), connect(&server)];
        assert_eq!(get(&server, "/healthz").0, "HTTP/1.1 200 OK");
        assert!(start.elapsed() >= Duration::from_millis(400), "it had to wait for a place");
        let start = Instant::now();
        assert_eq!(get(&server, "/healthz").0, "HTTP/1.1 200 OK");
        assert!(start.elapsed() < Duration::from_millis(400), "the places are free again");
    }

    #[test]
    fn a_connection_does_not_last() {
        let server = server(Limits { connection_time: Duration::from_millis(300), ..LIMITS });
        let mut stream = connect(&server);
        stream.write_all(b"GET /metr").unwrap();
        let start = Instant::now();
        let _closed = stream.read_to_end(&mut Vec::new());
        assert!(start.elapsed() < HEADER_TIME);
    }

    #[test]
    fn stopping_frees_the_address() {
        let first = server(LIMITS);
        let addr = first.addr();
        let exporter = || Arc::new(Exporter::new());
        let error = exporter().serve(addr).err().unwrap();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        let open = connect(&first);
        first.stop();
        assert!(TcpStream::connect(addr).is_err());
        drop(open);
        let second = exporter().serve(addr).unwrap();
        assert_eq!(get(&second, "/metrics").0, "HTTP/1.1 200 OK");
    }
}
