//! `pollux volume export` and `import`: a stream between the daemon and a file, or standard output or input.
//!
//! The daemon connects to a socket that this process listens at, which has a random abstract name; nobody but the process
//! that answers the RPC is let in. So a file is read and written with the rights of whoever runs this, and a pipe is as
//! good as a file. What comes is checked as it comes, and a file gets its name when it is whole.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use super::CliError;
use super::client::Client;
use super::job;
use super::output::{Output, cell};
use super::progress::Bar;
use super::units::size;
use crate::stream::{Frame, Reader, StreamError, give_name};

/// How often somebody is looked for.
const LOOK: Duration = Duration::from_millis(10);
/// What is copied at once.
const PIECE: usize = 1 << 20;

/// Exports a volume to a file; `-`: to standard output.
pub(crate) fn export(
    client: &mut Client,
    volume: &str,
    since: Option<&str>,
    file: &Path,
    force: bool,
    output: &Output,
) -> Result<(), CliError> {
    let mut target = Target::open(file, force)?;
    let door = Door::open(client)?;
    let mut params = json!({"name": volume, "socket": door.name, "job": true});
    if let Some(since) = since {
        params["from_snapshot_name"] = since.into();
    }
    let id = cell(&client.call("bdev_lvol_export", params)?["job_id"]);
    let received = receive(door.wait_for(client, &id)?, &mut target);
    let ended = job::wait(client, &id, None)?;
    match received {
        // Then the daemon only knows that nobody takes anything any more.
        Err(Broken::Here(error)) => return Err(not_taken(&error)),
        // It knows best why it has sent nothing more.
        received => job::refuse_unless_complete(&ended).and(received.map_err(Broken::told))?,
    }
    target.finish()?;
    if target.is_output() {
        let _ = write!(io::stderr(), "{}", exported(volume, &ended["result"]));
        return Ok(());
    }
    output.show(&ended["result"], |result| exported(volume, result))
}

/// Imports a volume from a file; `-`: from standard input.
pub(crate) fn import(
    client: &mut Client,
    file: &Path,
    (pool, name): (&str, &str),
    read_only: bool,
    output: &Output,
) -> Result<(), CliError> {
    let mut source: Box<dyn Read + Send> = if file == Path::new("-") {
        Box::new(io::stdin())
    } else {
        Box::new(File::open(file).map_err(|error| failed("open", file, &error))?)
    };
    let door = Door::open(client)?;
    let params = json!({"lvs_name": pool, "lvol_name": name, "read_only": read_only, "socket": door.name, "job": true});
    let id = cell(&client.call("bdev_lvol_import", params)?["job_id"]);
    let stream = door.wait_for(client, &id)?;
    // The daemon says what is wrong with what it gets; that it wants no more is not worth a word.
    let sending = thread::spawn(move || {
        let mut stream = stream;
        let sent = copy(&mut source, &mut stream);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        sent
    });
    let ended = job::wait(client, &id, Some("importing"))?;
    if sending.is_finished()
        && let Ok(Err(error)) = sending.join()
        && ended["state"] != "complete"
    {
        return Err(failed("read", file, &error));
    }
    job::refuse_unless_complete(&ended)?;
    output.show(&ended["result"], |uuid| {
        let kind = if read_only { "snapshot" } else { "volume" };
        format!("imported {kind} {pool}/{name} ({})\n", cell(uuid))
    })
}

/// A failure to read; one to write only says that the daemon takes no more.
fn copy(source: &mut dyn Read, stream: &mut UnixStream) -> io::Result<()> {
    let mut piece = vec![0; PIECE];
    loop {
        match source.read(&mut piece) {
            Ok(0) => return Ok(()),
            Ok(count) if stream.write_all(&piece[..count]).is_err() => return Ok(()),
            Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
            _ => {}
        }
    }
}

fn exported(volume: &str, result: &Value) -> String {
    let bytes = |name: &str| size(result[name].as_u64().unwrap_or_default());
    format!(
        "exported {volume}: {} of data and {} of zeroes in {}\n",
        bytes("data_bytes"),
        bytes("zero_bytes"),
        bytes("bytes")
    )
}

/// Where the daemon comes in.
struct Door {
    listener: UnixListener,
    /// As the daemon is told.
    name: String,
    daemon: i32,
}

impl Door {
    fn open(client: &Client) -> Result<Door, CliError> {
        let name = format!("pollux-{}", uuid::Uuid::new_v4());
        let address = SocketAddr::from_abstract_name(&name);
        let listener = address.and_then(|address| UnixListener::bind_addr(&address)).and_then(|listener| {
            listener.set_nonblocking(true)?;
            Ok(listener)
        });
        let failed = |error| CliError::Failed(format!("cannot make a socket for the daemon: {error}"));
        Ok(Door {
            listener: listener.map_err(failed)?,
            name: format!("@{name}"),
            daemon: client.daemon().map_err(failed)?,
        })
    }

    /// The daemon's connection; or why its job has ended without one.
    fn wait_for(&self, client: &mut Client, id: &str) -> Result<UnixStream, CliError> {
        loop {
            match self.listener.accept() {
                Ok((stream, _)) if is_of(&stream, self.daemon) => {
                    stream.set_nonblocking(false).map_err(CliError::Output)?;
                    return Ok(stream);
                }
                // Somebody else.
                Ok(_) => continue,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(CliError::Failed(format!("the daemon cannot come in: {error}"))),
            }
            let job = client.call("job_get_jobs", json!({ "job_id": id }))?[0].take();
            if job["state"] != "running" {
                job::refuse_unless_complete(&job)?;
                return Err(CliError::Failed("the daemon has not come to its socket".into()));
            }
            thread::sleep(LOOK);
        }
    }
}

fn is_of(stream: &UnixStream, pid: i32) -> bool {
    rustix::net::sockopt::socket_peercred(stream).is_ok_and(|peer| peer.pid.as_raw_nonzero().get() == pid)
}

/// Where an export goes.
enum Target {
    Output(BufWriter<io::Stdout>),
    File { out: BufWriter<File>, partial: PathBuf, path: PathBuf, force: bool },
}

impl Target {
    fn open(path: &Path, force: bool) -> Result<Target, CliError> {
        if path == Path::new("-") {
            return Ok(Target::Output(BufWriter::with_capacity(PIECE, io::stdout())));
        }
        match fs::symlink_metadata(path) {
            Ok(there) if !there.is_file() => {
                return Err(CliError::Usage(format!("{} is no regular file; - writes to a pipe", path.display())));
            }
            Ok(_) if !force => {
                let path = path.display();
                return Err(CliError::Failed(format!("{path} is there already: give another name, or say --force")));
            }
            _ => {}
        }
        let mut partial = path.as_os_str().to_owned();
        // Whoever else exports to this name at the same time writes into a file of its own.
        partial.push(format!(".{}.partial", uuid::Uuid::new_v4().simple()));
        let partial = PathBuf::from(partial);
        let file = OpenOptions::new().write(true).create_new(true).open(&partial);
        let file = file.map_err(|error| failed("create", &partial, &error))?;
        Ok(Target::File { out: BufWriter::with_capacity(PIECE, file), partial, path: path.into(), force })
    }

    const fn is_output(&self) -> bool {
        matches!(self, Target::Output(_))
    }

    /// It is whole.
    fn finish(&mut self) -> Result<(), CliError> {
        match self {
            Target::Output(out) => out.flush().map_err(|error| not_taken(&error)),
            Target::File { out, partial, path, force } => {
                let written = out.flush().and_then(|()| out.get_ref().sync_all());
                let done = written.and_then(|()| give_name(partial, path, *force));
                done.map_err(|error| failed("write", path, &error))
            }
        }
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        if let Target::File { partial, .. } = self {
            // Gone already, if it is whole.
            let _ = fs::remove_file(partial);
        }
    }
}

impl Write for Target {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Target::Output(out) => out.write(bytes),
            Target::File { out, .. } => out.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Target::Output(out) => out.flush(),
            Target::File { out, .. } => out.flush(),
        }
    }
}

/// What is read is written, too.
struct Tee<'a, R> {
    from: R,
    to: &'a mut Target,
    /// Why it cannot be written any further.
    lost: Option<io::Error>,
}

impl<R: Read> Read for Tee<'_, R> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let count = self.from.read(bytes)?;
        self.to.write_all(&bytes[..count]).map_err(|error| {
            let kind = error.kind();
            self.lost = Some(error);
            io::Error::from(kind)
        })?;
        Ok(count)
    }
}

/// Why an export has not arrived.
#[derive(Debug)]
enum Broken {
    /// It cannot be written.
    Here(io::Error),
    /// It has not come whole.
    There(StreamError),
}

impl Broken {
    fn told(self) -> CliError {
        match self {
            Broken::Here(error) => not_taken(&error),
            Broken::There(error) => CliError::Failed(format!("what the daemon has sent is not whole: {error}")),
        }
    }
}

/// Takes a stream, and checks all of it.
fn receive(from: impl Read, to: &mut Target) -> Result<(), Broken> {
    let mut bar = Bar::new("exporting");
    let mut tee = Tee { from, to, lost: None };
    let taken = take(&mut tee, &mut bar);
    bar.end();
    match tee.lost {
        Some(error) => Err(Broken::Here(error)),
        None => taken.map_err(Broken::There),
    }
}

fn take(from: impl Read, bar: &mut Bar) -> Result<(), StreamError> {
    let (mut reader, mut done) = (Reader::begin(from)?, 0);
    let all = reader.what().content;
    loop {
        done += match reader.next_frame()? {
            Frame::Data { bytes, .. } => bytes.len() as u64,
            Frame::Zero { len, .. } => len,
            Frame::End(_) => return Ok(()),
        };
        bar.show_bytes(done, all);
    }
}

/// Never as [`CliError::Output`], for which nobody is to blame if the reader has enough: an export is whole or nothing.
fn not_taken(error: &io::Error) -> CliError {
    CliError::Failed(format!("the export cannot be written any further: {error}"))
}

fn failed(what: &str, path: &Path, error: &io::Error) -> CliError {
    CliError::Failed(format!("cannot {what} {}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stream::{Begin, Writer};
    use uuid::Uuid;

    fn stream() -> Vec<u8> {
        let (id, state) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let begin = Begin { stream: id, name: "p/v".into(), bytes: 8192, content: 4096, state, base: None, created: 0 };
        let mut bytes = Vec::new();
        let mut writer = Writer::begin(&mut bytes, &begin).unwrap();
        writer.data(4096, &[7; 4096]).unwrap();
        writer.end().unwrap();
        bytes
    }

    #[test]
    fn a_file_gets_its_name_when_it_is_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("export");
        let torn = &stream()[..100];
        let mut target = Target::open(&path, false).unwrap();
        assert!(receive(torn, &mut target).is_err());
        drop(target);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "nothing is left of a torn one");
        let mut target = Target::open(&path, false).unwrap();
        receive(&stream()[..], &mut target).unwrap();
        assert!(!path.exists());
        target.finish().unwrap();
        drop(target);
        assert_eq!(fs::read(&path).unwrap(), stream());
        assert!(Target::open(&path, false).is_err(), "it is not overwritten by the way");
        assert!(Target::open(&path, true).is_ok() && Target::open(dir.path(), true).is_err());
        assert_eq!(fs::read(&path).unwrap(), stream(), "nor before the new one is whole");
    }

    #[test]
    fn what_cannot_be_written_is_told_as_that() {
        let dir = tempfile::tempdir().unwrap();
        let full = BufWriter::with_capacity(16, OpenOptions::new().write(true).open("/dev/full").unwrap());
        let (partial, path) = (dir.path().join("partial"), dir.path().join("export"));
        let mut target = Target::File { out: full, partial, path, force: false };
        let broken = receive(&stream()[..], &mut target).expect_err("full");
        assert!(matches!(&broken, Broken::Here(error) if error.kind() == io::ErrorKind::StorageFull), "{broken:?}");
        let failed = |error| matches!(error, CliError::Failed(_));
        assert!(
            failed(broken.told()) && failed(not_taken(&io::ErrorKind::BrokenPipe.into())),
            "nobody has enough of it"
        );
        let mut target = Target::open(&dir.path().join("torn"), false).unwrap();
        assert!(matches!(receive(&stream()[..100], &mut target), Err(Broken::There(StreamError::Torn { .. }))));
    }

    #[test]
    fn two_exports_to_one_name_write_into_two_files() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("export");
        let [mut one, mut other] = [(), ()].map(|()| Target::open(&path, false).unwrap());
        receive(&stream()[..], &mut one).unwrap();
        receive(&stream()[..], &mut other).unwrap();
        one.finish().unwrap();
        let told = other.finish().expect_err("the name is taken").to_string();
        assert!(told.contains("File exists"), "{told}");
        drop((one, other));
        assert_eq!(fs::read(&path).unwrap(), stream());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_was_exported_is_told() {
        let result = json!({"bytes": 3 << 20, "data_bytes": 2 << 20, "zero_bytes": 4096});
        assert_eq!(exported("p/v", &result), "exported p/v: 2 MiB of data and 4 KiB of zeroes in 3 MiB\n");
    }
}
