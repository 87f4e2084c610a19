//! What guests have made durable of their disks (reservations with APTPL, saved mode pages, identifying information),
//! on disk: `STATE_DIR/units/UUID.json`, a file for each disk that has something, apart from the configuration, which
//! no guest changes.
//!
//! Invariants: a file holds one complete document, the one last acknowledged to a guest or the one about to be; a file
//! that cannot be understood is never touched before an operator says so, and its disk serves nobody until then,
//! because somebody may be kept from it; a file of which a section cannot be understood is kept beside before it is
//! first written again; only the thread of this file writes, so no reactor waits for the medium; no initiator can have
//! a disk written more often than `REFILL` allows for long.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use pollux_scsi::{Keeper, Save, Sections};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::state::{StateError, failed, make_dir, replace};

const FORMAT: &str = "pollux-unit";
const VERSION: u64 = 1;

/// Saves that an initiator may cause at once, on each disk.
const BURST: u32 = 64;
/// How long until it may cause another one.
const REFILL: Duration = Duration::from_secs(1);

/// The files of all disks.
pub struct UnitFiles {
    dir: PathBuf,
    /// The directory itself.
    medium: File,
    /// What each disk's file holds. Held while a file is written.
    kept: Mutex<HashMap<Uuid, Kept>>,
}

/// What a disk's file holds.
#[derive(Clone, Debug, Default)]
struct Kept {
    sections: Sections,
    /// A section is damaged: the file is kept beside before it is written.
    damaged: bool,
}

/// A disk's file.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    format: String,
    version: u64,
    uuid: Uuid,
    sections: Sections,
}

impl UnitFiles {
    /// The files below a state directory.
    ///
    /// # Errors
    /// What the system says.
    pub fn open(state_dir: &Path) -> Result<UnitFiles, StateError> {
        let dir = state_dir.join("units");
        make_dir(&dir).map_err(failed("create the directory", &dir))?;
        let medium = File::open(&dir).map_err(failed("open", &dir))?;
        Ok(UnitFiles { dir, medium, kept: Mutex::default() })
    }

    /// The file of a disk.
    #[must_use]
    pub fn file(&self, uuid: Uuid) -> PathBuf {
        self.dir.join(format!("{uuid}.json"))
    }

    /// Reads what is kept of a disk.
    ///
    /// # Errors
    /// [`StateError`]; the file is as it was.
    pub fn load(&self, uuid: Uuid) -> Result<Sections, StateError> {
        let file = self.file(uuid);
        let sections = match fs::read(&file) {
            Ok(bytes) => parse(&bytes, uuid, &file)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Sections::new(),
            Err(error) => return Err(failed("read", &file)(error)),
        };
        self.kept().insert(uuid, Kept { sections: sections.clone(), damaged: false });
        Ok(sections)
    }

    /// A section of a disk makes no sense to whom it belongs: whoever writes the file next keeps a copy of it.
    pub fn set_damaged(&self, uuid: Uuid) {
        if let Some(kept) = self.kept().get_mut(&uuid) {
            kept.damaged = true;
        }
    }

    /// Gives a disk's section new content; none: takes it away. When this returns, it is on the medium.
    fn save(&self, uuid: Uuid, section: &str, text: &str) -> Result<(), StateError> {
        let mut kept = self.kept();
        let before = match kept.get(&uuid) {
            Some(Kept { sections, damaged }) => {
                if *damaged {
                    self.copy_aside(uuid)?;
                }
                sections.clone()
            }
            None => {
                self.put_aside(uuid)?;
                Sections::new()
            }
        };
        let mut sections = before.clone();
        if text.is_empty() {
            sections.remove(section);
        } else {
            sections.insert(section.to_owned(), text.to_owned());
        }
        if let Err(error) = self.write(uuid, &sections) {
            // The file is as it was, unless only the directory's sync failed: then this puts it back.
            if let Err(error) = self.write(uuid, &before) {
                tracing::error!(
                    "{} may hold what was refused, and cannot be put back: {error}",
                    self.file(uuid).display()
                );
            }
            return Err(error);
        }
        kept.insert(uuid, Kept { sections, damaged: false });
        Ok(())
    }

    fn write(&self, uuid: Uuid, sections: &Sections) -> Result<(), StateError> {
        let file = self.file(uuid);
        if sections.is_empty() {
            return self.remove_file(&file);
        }
        let document = Document { format: FORMAT.into(), version: VERSION, uuid, sections: sections.clone() };
        let mut text = serde_json::to_vec_pretty(&document).map_err(|error| failed("write", &file)(error.into()))?;
        text.push(b'\n');
        replace(&self.medium, &file, &text)
    }

    fn remove_file(&self, file: &Path) -> Result<(), StateError> {
        match fs::remove_file(file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            removed => removed.map_err(failed("remove", file))?,
        }
        self.medium.sync_all().map_err(failed("sync the directory of", file))
    }

    fn aside(&self, uuid: Uuid) -> PathBuf {
        self.dir.join(format!("{uuid}.json.unreadable"))
    }

    /// A file with a damaged section is about to be written: what is there is kept under another name, too.
    fn copy_aside(&self, uuid: Uuid) -> Result<(), StateError> {
        let (file, aside) = (self.file(uuid), self.aside(uuid));
        let copy = || {
            fs::copy(&file, &aside)?;
            File::open(&aside)?.sync_all()
        };
        copy().map_err(failed("keep a copy of", &file))?;
        tracing::warn!("a copy of {} was kept as {}", file.display(), aside.display());
        Ok(())
    }

    /// A file that could not be read is given up by an operator: it is kept under another name.
    fn put_aside(&self, uuid: Uuid) -> Result<(), StateError> {
        let (file, aside) = (self.file(uuid), self.aside(uuid));
        match fs::rename(&file, &aside) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(failed("put aside", &file)(error)),
            Ok(()) => {
                tracing::warn!("{} was put aside as {}", file.display(), aside.display());
                Ok(())
            }
        }
    }

    /// Forgets a disk that there is no more.
    fn remove(&self, uuid: Uuid) {
        let mut kept = self.kept();
        kept.remove(&uuid);
        if let Err(error) = self.remove_file(&self.file(uuid)) {
            tracing::warn!("what guests kept of a deleted disk stays behind: {error}");
        }
    }

    fn kept(&self) -> MutexGuard<'_, HashMap<Uuid, Kept>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn parse(bytes: &[u8], uuid: Uuid, file: &Path) -> Result<Sections, StateError> {
    let corrupt = |detail: String| StateError::Corrupt { file: file.into(), detail };
    if bytes.iter().all(|byte| byte.is_ascii_whitespace() || *byte == 0) {
        return Err(StateError::Empty(file.into()));
    }
    let value: serde_json::Value = serde_json::from_slice(bytes).map_err(|error| corrupt(error.to_string()))?;
    if let Some(version) = value.get("version").and_then(serde_json::Value::as_u64).filter(|&found| found > VERSION) {
        return Err(StateError::Newer { file: file.into(), version });
    }
    let document: Document = serde_json::from_value(value).map_err(|error| corrupt(error.to_string()))?;
    match document {
        Document { version: VERSION, ref format, uuid: of, sections } if format == FORMAT && of == uuid => Ok(sections),
        _ => Err(corrupt(format!("it is not the file of disk {uuid}"))),
    }
}

/// Saves for all disks, on a thread of its own.
pub struct UnitSaver {
    /// The files.
    pub files: Arc<UnitFiles>,
    orders: Sender<Order>,
}

/// What the thread does, in this order.
#[derive(Debug)]
enum Order {
    Save(Save),
    /// Answers when it is done.
    Remove(Uuid, Sender<()>),
}

impl UnitSaver {
    /// Starts the thread. It ends when nobody is left who could give it anything.
    ///
    /// # Errors
    /// If no thread can be had.
    pub fn start(files: UnitFiles) -> io::Result<UnitSaver> {
        let files = Arc::new(files);
        let (orders, taken) = channel();
        let writer = Arc::clone(&files);
        std::thread::Builder::new().name("units".into()).spawn(move || serve(&writer, &taken))?;
        Ok(UnitSaver { files, orders })
    }

    /// Forgets a disk that there is no more, and of which nothing more will be saved: after what is still to be saved, or
    /// that would make its file anew.
    pub fn remove(&self, uuid: Uuid) {
        let (done, removed) = channel();
        match self.orders.send(Order::Remove(uuid, done)) {
            Ok(()) => drop(removed.recv()),
            // The thread is gone, and nobody saves any more.
            Err(_) => self.files.remove(uuid),
        }
    }

    /// What keeps sections of one disk.
    #[must_use]
    pub fn keeper(&self) -> Arc<dyn Keeper> {
        Arc::new(UnitKeeper { orders: self.orders.clone(), budgets: Mutex::default() })
    }
}

fn serve(files: &UnitFiles, orders: &Receiver<Order>) {
    for order in orders {
        let save = match order {
            Order::Save(save) => save,
            Order::Remove(uuid, done) => {
                files.remove(uuid);
                // Nobody need wait for it.
                let _ = done.send(());
                continue;
            }
        };
        let uuid = save.unit().uuid();
        let saved = files.save(uuid, save.section(), save.text());
        if let Err(error) = &saved {
            tracing::error!("what a guest wanted kept of disk {uuid} could not be saved and was refused: {error}");
        }
        save.done(saved.is_ok());
    }
}

/// A disk's keeper.
#[derive(Debug)]
struct UnitKeeper {
    orders: Sender<Order>,
    /// By initiator; there are as many as controllers have been made with.
    budgets: Mutex<HashMap<u64, Budget>>,
}

impl Keeper for UnitKeeper {
    fn admits(&self, initiator: u64) -> bool {
        let mut budgets = self.budgets.lock().unwrap_or_else(PoisonError::into_inner);
        budgets.entry(initiator).or_insert_with(|| Budget::new(Instant::now())).take(Instant::now())
    }

    fn submit(&self, save: Save) {
        // If the thread is gone, the save is dropped, which is told as a failure.
        let _ = self.orders.send(Order::Save(save));
    }
}

/// How many saves an initiator may still cause.
#[derive(Clone, Copy, Debug)]
struct Budget {
    left: u32,
    /// Up to when `left` has been refilled.
    since: Instant,
}

impl Budget {
    const fn new(now: Instant) -> Budget {
        Budget { left: BURST, since: now }
    }

    fn take(&mut self, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.since).as_secs() / REFILL.as_secs();
        let refills = u32::try_from(passed).unwrap_or(BURST).min(BURST);
        if refills > 0 {
            self.left = (self.left + refills).min(BURST);
            self.since = if self.left == BURST { now } else { self.since + REFILL * refills };
        }
        let admitted = self.left > 0;
        self.left = self.left.saturating_sub(1);
        admitted
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pollux_bdev::{Null, NullSpec};
    use pollux_core::Bdev as _;
    use pollux_scsi::{Action, Identity, LogicalUnit, Nexus};

    const UUID: Uuid = Uuid::from_u128(0x1234_5678);

    fn files() -> (tempfile::TempDir, UnitFiles) {
        let dir = tempfile::tempdir().expect("a directory");
        let files = UnitFiles::open(dir.path()).expect("opened");
        (dir, files)
    }

    #[test]
    fn sections_are_kept_apart_and_an_empty_file_goes() {
        let (dir, files) = files();
        assert!(files.load(UUID).expect("new").is_empty());
        files.save(UUID, "a", "one\n").expect("saved");
        files.save(UUID, "b", "two").expect("saved");
        files.save(UUID, "a", "").expect("saved");
        let again = UnitFiles::open(dir.path()).expect("opened");
        let sections = again.load(UUID).expect("there");
        assert_eq!(sections, Sections::from([("b".to_owned(), "two".to_owned())]));
        again.save(UUID, "b", "").expect("saved");
        assert!(!again.file(UUID).exists());
        again.save(UUID, "b", "x").expect("saved");
        again.remove(UUID);
        assert!(!again.file(UUID).exists());
    }

    #[test]
    fn what_cannot_be_understood_is_left_alone_until_it_is_given_up() {
        let (_dir, files) = files();
        let other = Uuid::from_u128(1);
        let newer = format!(r#"{{"format":"pollux-unit","version":2,"uuid":"{UUID}","sections":{{}}}}"#);
        let foreign = format!(r#"{{"format":"pollux-unit","version":1,"uuid":"{other}","sections":{{}}}}"#);
        for text in ["", "{\"format\":", "[]", &newer, &foreign] {
            fs::write(files.file(UUID), text).expect("written");
            let error = files.load(UUID).expect_err("not understood");
            assert!(error.to_string().contains(&UUID.to_string()), "{error}");
            assert_eq!(fs::read_to_string(files.file(UUID)).expect("there"), text);
        }
        files.save(UUID, "a", "one").expect("saved");
        let aside = files.file(UUID).with_extension("json.unreadable");
        assert_eq!(fs::read_to_string(aside).expect("put aside"), foreign);
        assert_eq!(files.load(UUID).expect("there").len(), 1);
    }

    #[test]
    fn a_damaged_section_is_kept_beside_and_the_others_stay() {
        let (_dir, files) = files();
        files.load(UUID).expect("new");
        files.save(UUID, "a", "nonsense").expect("saved");
        files.save(UUID, "b", "two").expect("saved");
        let damaged = fs::read_to_string(files.file(UUID)).expect("there");
        files.load(UUID).expect("there");
        files.set_damaged(UUID);
        files.save(UUID, "a", "").expect("saved");
        let aside = files.file(UUID).with_extension("json.unreadable");
        assert_eq!(fs::read_to_string(&aside).expect("a copy"), damaged);
        assert_eq!(files.load(UUID).expect("there"), Sections::from([("b".to_owned(), "two".to_owned())]));
        files.save(UUID, "b", "three").expect("saved");
        assert_eq!(fs::read_to_string(&aside).expect("a copy"), damaged, "once");
    }

    #[test]
    fn a_failed_save_keeps_the_old_content() {
        let (_dir, files) = files();
        files.load(UUID).expect("new");
        files.save(UUID, "a", "old").expect("saved");
        fs::create_dir(files.file(UUID).with_extension("json.new")).expect("in the way");
        assert!(files.save(UUID, "a", "new").is_err());
        assert_eq!(files.load(UUID).expect("there")["a"], "old");
    }

    #[test]
    fn a_budget_is_spent_and_comes_back_slowly() {
        let start = Instant::now();
        let mut budget = Budget::new(start);
        assert_eq!((0..BURST + 5).filter(|_| budget.take(start)).count(), BURST as usize);
        let later = start + REFILL * 3 + REFILL / 2;
        assert_eq!((0..5).filter(|_| budget.take(later)).count(), 3);
        assert!(budget.take(start + REFILL * 4), "what was left of a second counts");
        assert_eq!((0..2 * BURST).filter(|_| budget.take(start + REFILL * 1000)).count(), BURST as usize);
    }

    #[test]
    fn an_operators_clear_takes_the_file_away() {
        let (_dir, files) = files();
        fs::write(files.file(UUID), "damaged").expect("written");
        let saver = UnitSaver::start(files).expect("started");
        let kept = saver.files.load(UUID).ok();
        let unit = LogicalUnit::kept(Identity::from_uuid(UUID, "test"), None, saver.keeper(), kept.as_ref());
        let _path = unit.attach(Nexus::new(1, "c".into(), 1, 0), 0);
        assert!(unit.reservations().unreadable);
        let Action::Save(save) = unit.clear_reservations() else { panic!("it has to be saved") };
        let (tell, told) = channel();
        save.start(Box::new(move |saved| tell.send(saved).expect("the test waits")));
        assert_eq!(told.recv().expect("told").outcome, pollux_scsi::Outcome::GOOD);
        assert!(!unit.reservations().unreadable);
        assert!(!saver.files.file(UUID).exists());
    }

    #[test]
    fn a_deleted_disk_leaves_no_file_whatever_was_still_to_be_saved() {
        let (_dir, files) = files();
        let saver = UnitSaver::start(files).expect("started");
        let kept = saver.files.load(UUID).ok();
        let null = NullSpec { name: "n".into(), block_size: 512, num_blocks: 8, physical_block_size: None, uuid: None };
        let (identity, shape) = (Identity::from_uuid(UUID, "test"), Some(Null::new(&null).shape()));
        let unit = LogicalUnit::kept(identity, shape, saver.keeper(), kept.as_ref());
        let path = unit.attach(Nexus::new(1, "c".into(), 1, 0), 0);
        let (tell, told) = channel();
        // SET IDENTIFYING INFORMATION; the first ones are told of unit attentions.
        let cdb = pollux_scsi::Cdb::from_slice(&[0xA4, 0x06, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0]);
        let label = || unit.execute_out(&path, &cdb, b"a", &mut [0; pollux_scsi::SCRATCH_LEN]);
        let save = (0..5).find_map(|_| if let Action::Save(save) = label() { Some(save) } else { None });
        save.expect("it has to be saved").start(Box::new(move |saved| tell.send(saved).expect("the test waits")));
        saver.remove(UUID);
        assert!(told.try_recv().is_ok(), "what was ordered before is done before");
        assert!(!saver.files.file(UUID).exists());
    }
}
