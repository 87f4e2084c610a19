//! Under construction: signatures.
#![allow(missing_docs, unused)]
use crate::backend::{BackendFactory, SessionHandle};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Names a socket that a server listens on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ListenerId(u64);

/// Who may connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketOptions {
    /// Permission bits of the socket file.
    pub mode: u32,
    /// Group that owns the socket file; `None`: the process's own.
    pub group: Option<u32>,
}
impl Default for SocketOptions {
    fn default() -> Self {
        SocketOptions { mode: 0o660, group: None }
    }
}
pub struct Server;
impl Server {
    pub fn new() -> io::Result<Arc<Self>> {
        Err(io::ErrorKind::Unsupported.into())
    }
    pub fn listen(
        &self,
        path: &Path,
        options: SocketOptions,
        factory: Arc<dyn BackendFactory>,
    ) -> io::Result<ListenerId> {
        Err(io::ErrorKind::Unsupported.into())
    }
    /// Stops listening and removes the socket file. Sessions live on.
    pub fn unlisten(&self, id: ListenerId) {}
    /// Sessions of a socket.
    pub fn sessions(&self, id: ListenerId) -> Vec<SessionHandle> {
        Vec::new()
    }
    /// Closes all sessions of a socket (listening or not any more) and waits for their ends; `false` if some did not end in time.
    pub fn disconnect(&self, id: ListenerId, timeout: Duration) -> bool {
        true
    }
    /// Stops listening on all sockets, closes all sessions and waits for them.
    pub fn shutdown(&self) {}
}
