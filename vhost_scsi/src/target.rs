//! The control plane of virtio-scsi: controllers, their sockets, their LUNs.
//!
//! Changes come one at a time (`changes` is held over each, with its waits); listings and sessions look at the
//! controllers without waiting for a change to end. A change talks to every reactor of the controller and returns when
//! all have answered, so what it returns is true on all of them.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, bounded};
use pollux_core::{Bdev, Channel, Helpers, IoStats, OpenArgs, OpenError, Post, PostError};
use pollux_scsi::{LogicalUnit, Path};
use pollux_vhost_user::Server;
pub use pollux_vhost_user::SocketOptions;
use uuid::Uuid;

use crate::LunStats;
use crate::controller::{Controller, LunEntry};
use crate::error::TargetError;
use crate::listing::{ControllerInfo, QueueInfo};
use crate::lun::MAX_LUN;
use crate::message::{Body, ControllerId, Message, Reply, UnitId};
use crate::request::Event;
use crate::session::Factory;

/// Requests in flight on one unit and reactor.
const DEPTH: u32 = 256;
/// How long a reactor may take to answer a message that needs no waiting for I/O.
pub(crate) const ANSWER: Duration = Duration::from_secs(10);
/// How long a change waits for what does not end by itself.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// For requests in flight on a LUN that is taken away, before they are cancelled.
    pub requests: Duration,
    /// For them after that.
    pub cancelled: Duration,
    /// For the sessions of a controller that is deleted by force.
    pub sessions: Duration,
    /// For requests in flight on a queue that is to move; if they do not end, it stays.
    pub moves: Duration,
    /// For requests in flight on a queue whose front end is gone, before they are cancelled.
    pub closed: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Patience {
            requests: Duration::from_secs(2),
            cancelled: Duration::from_secs(30),
            sessions: Duration::from_secs(30),
            moves: Duration::from_millis(20),
            closed: Duration::from_millis(50),
        }
    }
}

/// Makes the counters of a bdev for one more opener.
pub type NewStats = Arc<dyn Fn() -> Arc<IoStats> + Send + Sync>;

/// What a LUN leads to.
#[derive(Clone)]
pub struct Backing {
    /// The bdev's name, for listings.
    pub bdev_name: String,
    /// The unit: one for each bdev, shared by all controllers.
    pub unit: Arc<LogicalUnit>,
    /// The device, unless it is missing.
    pub device: Option<Arc<dyn Bdev>>,
    /// Counters of the bdev.
    pub new_stats: NewStats,
}

/// Where and how controllers listen, and who helps.
#[derive(Clone)]
pub struct TargetOptions {
    /// Where the sockets are.
    pub vhost_dir: PathBuf,
    /// Who may connect.
    pub socket: SocketOptions,
    /// Who does what reactors must not wait for.
    pub helpers: Arc<dyn Helpers>,
}

/// A unit that is open on some reactors.
struct UnitEntry {
    id: UnitId,
    backing: Backing,
    /// LUNs that lead to it, by reactor.
    users: BTreeMap<usize, u32>,
}

type Units = BTreeMap<Uuid, UnitEntry>;

/// All controllers.
pub struct Target {
    post: Arc<dyn Post<Message>>,
    server: Arc<Server>,
    options: TargetOptions,
    controllers: RwLock<BTreeMap<String, Arc<Controller>>>,
    /// Controllers that were ever created.
    count: AtomicU32,
    patience: Arc<RwLock<Patience>>,
    pub(crate) moves: crate::moves::MoveStats,
    pub(crate) hosting: crate::residents::Hosting,
    /// Held over each change.
    changes: Mutex<Units>,
}

impl Target {
    /// A target without controllers.
    #[must_use]
    pub fn new(post: Arc<dyn Post<Message>>, server: Arc<Server>, options: TargetOptions) -> Arc<Target> {
        Arc::new(Target {
            post,
            server,
            options,
            controllers: RwLock::default(),
            count: AtomicU32::new(0),
            patience: Arc::default(),
            moves: crate::moves::MoveStats::default(),
            hosting: crate::residents::Hosting::default(),
            changes: Mutex::default(),
        })
    }

    /// Sets how long changes wait.
    pub fn set_patience(&self, patience: Patience) {
        *self.patience.write().unwrap_or_else(PoisonError::into_inner) = patience;
    }

    pub(crate) fn patience(&self) -> Patience {
        *self.patience.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Creates a controller on these reactors. It does not listen yet.
    ///
    /// # Errors
    /// [`TargetError`] says why not.
    pub fn create_controller(&self, name: &str, reactors: Vec<usize>, initiator: u64) -> Result<(), TargetError> {
        self.create_controller_as(name, reactors, initiator, None).map(drop)
    }

    /// The same with a relative target port identifier, which it gets unless another controller has it; without one, it
    /// gets the first that is free. Returns it: registrations are moved by it, and initiators compare it over restarts.
    ///
    /// # Errors
    /// [`TargetError`] says why not.
    pub fn create_controller_as(
        &self,
        name: &str,
        reactors: Vec<usize>,
        initiator: u64,
        relative_port: Option<u16>,
    ) -> Result<u16, TargetError> {
        let _changes = self.change();
        if !is_good_name(name) {
            return Err(TargetError::BadName(name.into()));
        }
        let socket = self.options.vhost_dir.join(name);
        if socket.as_os_str().len() > 107 {
            return Err(TargetError::PathTooLong(socket));
        }
        let mut reactors = if reactors.is_empty() { (0..self.post.reactors()).collect() } else { reactors };
        let mut seen = BTreeSet::new();
        reactors.retain(|&reactor| seen.insert(reactor));
        if let Some(&bad) = reactors.iter().find(|&&reactor| reactor >= self.post.reactors()) {
            return Err(TargetError::NoReactor(bad));
        }
        let mut controllers = self.controllers.write().unwrap_or_else(PoisonError::into_inner);
        if controllers.contains_key(name) {
            return Err(TargetError::ControllerExists(name.into()));
        }
        let place = lowest_free(controllers.values().map(|controller| controller.id.place));
        let id = ControllerId { place, count: self.count.fetch_add(1, Ordering::Relaxed) };
        let used = |port: &u16| controllers.values().any(|controller| controller.relative_port == *port);
        let wanted = relative_port.filter(|port| *port != 0 && !used(port));
        let free = wanted.or_else(|| (1..=u16::MAX).find(|port| !used(port)));
        let port = free.ok_or_else(|| TargetError::NoFreePort(name.into()))?;
        controllers.insert(name.into(), Controller::new(name, id, reactors, (initiator, port), socket));
        Ok(port)
    }

    /// Has a controller listen. Does nothing if it does already.
    ///
    /// # Errors
    /// [`TargetError`] says why not.
    pub fn start_controller(&self, name: &str) -> Result<(), TargetError> {
        let _changes = self.change();
        let controller = self.controller(name)?;
        if controller.state().listener.is_some() {
            return Ok(());
        }
        let (post, patience) = (self.post.clone(), self.patience.clone());
        let factory = Arc::new(Factory { controller: controller.clone(), post, patience });
        let listener = self
            .server
            .listen(&controller.socket, self.options.socket, factory)
            .map_err(|error| TargetError::Socket { path: controller.socket.clone(), error })?;
        controller.state().listener = Some(listener);
        Ok(())
    }

    /// Deletes a controller and takes its LUNs away. While a VM is connected only with `force`, which disconnects it.
    ///
    /// # Errors
    /// [`TargetError`] says why not.
    pub fn delete_controller(&self, name: &str, force: bool) -> Result<(), TargetError> {
        let mut units = self.change();
        let controller = self.controller(name)?;
        if !controller.state().sessions.is_empty() && !force {
            return Err(TargetError::Connected(name.into()));
        }
        let (listener, again) = {
            let mut state = controller.state();
            let again = state.listener.is_none();
            // It does not listen from here on; what is left of its sessions is asked for by the same name.
            state.ending = state.listener.take().or(state.ending);
            (state.ending, again)
        };
        if let Some(listener) = listener {
            self.server.unlisten(listener);
            let long = if again { self.patience().requests } else { self.patience().sessions };
            // Only when the last queue has ended is it safe to give away what its requests were about.
            if !self.server.disconnect(listener, long) || !controller.state().sessions.is_empty() {
                return Err(TargetError::Draining);
            }
            controller.state().ending = None;
        }
        let luns: Vec<_> = controller.state().luns.keys().copied().collect();
        self.take_luns(&mut units, &controller, &luns)?;
        self.controllers.write().unwrap_or_else(PoisonError::into_inner).remove(name);
        Ok(())
    }

    /// Adds a LUN; without a target, at the first that has none. Returns the target.
    ///
    /// # Errors
    /// [`TargetError`] says why not.
    pub fn add_lun(&self, ctrlr: &str, target: Option<u8>, lun: u16, backing: Backing) -> Result<u8, TargetError> {
        let mut units = self.change();
        let controller = self.controller(ctrlr)?;
        if lun > MAX_LUN {
            return Err(TargetError::BadLun(lun));
        }
        let target = free_target(&controller, target, lun)?;
        let bdev_name = backing.bdev_name.clone();
        let logical = backing.unit.clone();
        let unit = self.open_unit(&mut units, &controller, backing)?;
        let nexus = controller.nexus(target);
        let path = logical.attach(nexus.clone(), lun);
        let stats: Vec<_> = controller.reactors.iter().map(|_| Arc::new(LunStats::default())).collect();
        let place = Place { target, lun, unit };
        if let Err(error) = self.add_to_reactors(&controller, place, &path, &stats) {
            // Take it back everywhere; the first error is the one to tell.
            let mut left = Vec::new();
            let hidden = self.hide(&controller, target, lun).and_then(|hidden| {
                let mut hidden = [(target, lun, hidden)];
                let gone = self.await_leaving(&controller, &mut hidden, false);
                left = hidden.into_iter().flat_map(|(_, _, left)| left).collect();
                gone
            });
            if hidden.is_ok() {
                logical.detach(&path);
                let _ = self.close_unit(&mut units, logical.uuid(), &controller.reactors);
            } else {
                // Some reactor still has it: it stays listed, on its way out, until a removal has seen it go.
                let entry = LunEntry { bdev_name, logical, path, stats, leaving: Some(left) };
                controller.state().luns.insert((target, lun), entry);
            }
            return Err(error);
        }
        let entry = LunEntry { bdev_name, logical, path, stats, leaving: None };
        controller.state().luns.insert((target, lun), entry);
        nexus.raise_luns_changed();
        self.send_event(&controller, Event::Added { target, lun });
        Ok(target)
    }

    fn add_to_reactors(
        &self,
        controller: &Controller,
        Place { target, lun, unit }: Place,
        path: &Arc<Path>,
        stats: &[Arc<LunStats>],
    ) -> Result<(), TargetError> {
        let mut answers = Vec::new();
        for (&reactor, stats) in controller.reactors.iter().zip(stats) {
            let (reply, answer) = reply();
            let (path, stats) = (path.clone(), stats.clone());
            self.send(reactor, Body::AddLun { controller: controller.id, target, lun, unit, path, stats, reply })?;
            answers.push(answer);
        }
        for answer in answers {
            if !wait(&answer, ANSWER)? {
                return Err(TargetError::Draining);
            }
        }
        Ok(())
    }

    /// Takes one LUN of a target away, or all. Returns when no request of theirs is in flight any more, with what they
    /// led to.
    ///
    /// # Errors
    /// [`TargetError`] says why not.
    pub fn remove_lun(&self, ctrlr: &str, target: u8, lun: Option<u16>) -> Result<Vec<(u16, String)>, TargetError> {
        let mut units = self.change();
        let controller = self.controller(ctrlr)?;
        let luns: Vec<_> = {
            let state = controller.state();
            let of_target = state.luns.keys().filter(|key| key.0 == target);
            of_target.filter(|key| lun.is_none_or(|lun| key.1 == lun)).copied().collect()
        };
        if luns.is_empty() {
            return Err(TargetError::NoLun { ctrlr: ctrlr.into(), target });
        }
        self.take_luns(&mut units, &controller, &luns)
    }

    /// A unit's device has appeared or gone: the reactors change over to it.
    ///
    /// # Errors
    /// [`TargetError`] says why not.
    pub fn device_changed(&self, unit: &LogicalUnit, device: Option<Arc<dyn Bdev>>) -> Result<(), TargetError> {
        let mut units = self.change();
        let Some(entry) = units.get_mut(&unit.uuid()) else { return Ok(()) };
        entry.backing.device = device;
        let mut answers = Vec::new();
        for &reactor in entry.users.keys() {
            let channel = open_channel(entry, reactor)?;
            let (reply, answer) = reply();
            self.send(reactor, Body::ReplaceChannel { unit: entry.id, channel, reply })?;
            answers.push((reactor, answer));
        }
        let mut came = come_until(&mut answers, Instant::now() + self.patience().requests);
        for (reactor, _) in &answers {
            self.send(*reactor, Body::CancelUnit { unit: entry.id })?;
        }
        came.extend(come_until(&mut answers, Instant::now() + self.patience().cancelled));
        for (_, answer) in &answers {
            // It is too late for it; this says why.
            came.push(wait(answer, Duration::ZERO)?);
        }
        came.into_iter().try_for_each(|changed| changed.map(drop).map_err(TargetError::Attach))
    }

    /// A unit's device is back, and the unit knows what it is like: a format or a sanitize that was interrupted goes on,
    /// whether or not a guest asks for anything.
    pub fn device_is_ready(&self, unit: &LogicalUnit) {
        if unit.is_wipe_due()
            && let Some(entry) = self.change().get(&unit.uuid())
            && let Some(&reactor) = entry.users.keys().next()
        {
            // If it cannot be told now, the next command begins it.
            let _ = self.send(reactor, Body::AdoptWipe { unit: entry.id });
        }
    }

    /// A unit raised a unit attention that its guests should look at now.
    pub fn unit_changed(&self, unit: &LogicalUnit, asc: u8, ascq: u8) {
        for controller in self.all() {
            let luns: Vec<_> = {
                let state = controller.state();
                let of_unit = state.luns.iter().filter(|(_, entry)| entry.logical.uuid() == unit.uuid());
                of_unit.map(|(&key, _)| key).collect()
            };
            for (target, lun) in luns {
                self.send_event(&controller, Event::Changed { target, lun, asc, ascq });
            }
        }
    }

    /// All controllers, by name.
    #[must_use]
    pub fn controllers(&self) -> Vec<ControllerInfo> {
        self.all().iter().map(|controller| ControllerInfo::of(controller)).collect()
    }

    /// The counters of all queues that ever ran.
    #[must_use]
    pub fn queues(&self) -> Vec<QueueInfo> {
        let of = |controller: &Arc<Controller>| {
            let ctrlr = controller.name.clone();
            let queues = controller.all_queue_stats().into_iter();
            queues.map(move |(index, stats)| QueueInfo { ctrlr: ctrlr.clone(), index, stats }).collect::<Vec<_>>()
        };
        self.all().iter().flat_map(of).collect()
    }

    pub(crate) fn all(&self) -> Vec<Arc<Controller>> {
        self.controllers.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    fn change(&self) -> MutexGuard<'_, Units> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn controller(&self, name: &str) -> Result<Arc<Controller>, TargetError> {
        let controllers = self.controllers.read().unwrap_or_else(PoisonError::into_inner);
        controllers.get(name).cloned().ok_or_else(|| TargetError::NoController(name.into()))
    }

    pub(crate) fn reactors(&self) -> usize {
        self.post.reactors()
    }

    pub(crate) fn send(&self, reactor: usize, body: Body) -> Result<(), PostError> {
        self.post.post(reactor, Message(body))
    }

    /// Tells the guest. It would find out by a unit attention, too, so what cannot be posted is not an error.
    fn send_event(&self, controller: &Controller, event: Event) {
        let _ = self.send(controller.reactor_of(1), Body::Event { controller: controller.id, event });
    }

    /// Opens the unit on those of the controller's reactors where it is not yet, and counts one more user on each.
    fn open_unit(&self, units: &mut Units, controller: &Controller, backing: Backing) -> Result<UnitId, TargetError> {
        let id = lowest_free(units.values().map(|entry| entry.id));
        let uuid = backing.unit.uuid();
        let entry = units.entry(uuid).or_insert_with(|| UnitEntry { id, backing, users: BTreeMap::new() });
        let id = entry.id;
        for (at, &reactor) in controller.reactors.iter().enumerate() {
            if let Err(error) = self.open_on(entry, reactor) {
                let opened = &controller.reactors[..at];
                // What has opened is closed again; the first error is the one to tell.
                let _ = self.close_unit(units, uuid, opened);
                return Err(error);
            }
        }
        Ok(id)
    }

    fn open_on(&self, entry: &mut UnitEntry, reactor: usize) -> Result<(), TargetError> {
        if let Some(users) = entry.users.get_mut(&reactor) {
            *users += 1;
            return Ok(());
        }
        let channel = open_channel(entry, reactor)?;
        let (reply, answer) = reply();
        let logical = entry.backing.unit.clone();
        let stats = (entry.backing.new_stats)();
        let (home, helpers) = (self.post.clone(), self.options.helpers.clone());
        self.send(reactor, Body::OpenUnit { unit: entry.id, logical, channel, stats, home, helpers, reply })?;
        let answered = wait(&answer, ANSWER).inspect_err(|_| {
            // It may open yet: then this closes it, since messages keep their order.
            let (nobody, _) = bounded(1);
            let close = Body::CloseUnit { unit: entry.id, reply: Reply::new(nobody) };
            let _ = self.send(reactor, close);
        });
        answered?.map_err(TargetError::Attach)?;
        entry.users.insert(reactor, 1);
        Ok(())
    }

    /// Takes one user off on each of the reactors; where none is left, the unit is closed.
    fn close_unit(&self, units: &mut Units, uuid: Uuid, reactors: &[usize]) -> Result<(), TargetError> {
        let Some(entry) = units.get_mut(&uuid) else { return Ok(()) };
        let mut first = Ok(());
        for reactor in reactors {
            let Some(users) = entry.users.get_mut(reactor) else { continue };
            *users -= 1;
            if *users > 0 {
                continue;
            }
            entry.users.remove(reactor);
            let (reply, answer) = reply();
            let closed = self.send(*reactor, Body::CloseUnit { unit: entry.id, reply }).map_err(TargetError::from);
            let closed =
                closed.and_then(|()| wait(&answer, self.patience().cancelled)?.map(drop).map_err(TargetError::Attach));
            first = first.and(closed);
        }
        if entry.users.is_empty() {
            units.remove(&uuid);
        }
        first
    }

    fn take_luns(
        &self,
        units: &mut Units,
        controller: &Controller,
        luns: &[(u8, u16)],
    ) -> Result<Vec<(u16, String)>, TargetError> {
        // All of them let go first. Where one does not, all stay listed and hidden, and the next call goes on waiting.
        let (mut hidden, mut again) = (Vec::new(), true);
        for &(target, lun) in luns {
            let leaving = controller.state().luns.get_mut(&(target, lun)).and_then(|entry| entry.leaving.take());
            again &= leaving.is_some();
            let leaving = leaving.map_or_else(|| self.hide(controller, target, lun), Ok)?;
            hidden.push((target, lun, leaving));
        }
        let gone = self.await_leaving(controller, &mut hidden, again);
        for (target, lun, leaving) in hidden {
            if let Some(entry) = controller.state().luns.get_mut(&(target, lun)) {
                entry.leaving = Some(leaving);
            }
        }
        gone?;
        let mut taken = Vec::new();
        for &(target, lun) in luns {
            let Some(entry) = controller.state().luns.remove(&(target, lun)) else { continue };
            entry.logical.detach(&entry.path);
            if let Err(error) = self.close_unit(units, entry.logical.uuid(), &controller.reactors) {
                tracing::error!(
                    ctrlr = controller.name,
                    target,
                    lun,
                    "the unit is gone, but its channel is not: {error}"
                );
            }
            controller.nexus(target).raise_luns_changed();
            self.send_event(controller, Event::Removed { target, lun });
            taken.push((lun, entry.bdev_name));
        }
        Ok(taken)
    }

    /// Hides a LUN on all reactors; they answer when nothing of it is in flight.
    fn hide(&self, controller: &Controller, target: u8, lun: u16) -> Result<Leaving, TargetError> {
        let mut leaving = Vec::new();
        for &reactor in &controller.reactors {
            let (reply, answer) = reply();
            self.send(reactor, Body::RemoveLun { controller: controller.id, target, lun, reply })?;
            leaving.push((reactor, answer));
        }
        Ok(leaving)
    }

    /// Waits until nothing of some hidden LUNs is in flight, for all of them and on all reactors together as long as for
    /// one; what takes too long is cancelled. Leaves with each whom it has waited for in vain. Who has waited for them all
    /// before (`again`) is not kept as long: other changes wait meanwhile, and what is left may take hours.
    fn await_leaving(
        &self,
        controller: &Controller,
        hidden: &mut [(u8, u16, Leaving)],
        again: bool,
    ) -> Result<(), TargetError> {
        let await_all = |hidden: &mut [(u8, u16, Leaving)], long| {
            let until = Instant::now() + long;
            hidden.iter_mut().for_each(|(_, _, leaving)| drop(come_until(leaving, until)));
        };
        await_all(hidden, self.patience().requests);
        let cancelled = if again { Duration::ZERO } else { self.patience().cancelled };
        for (target, lun, leaving) in hidden.iter() {
            for (reactor, _) in leaving {
                let cancel = Body::CancelLun { controller: controller.id, target: *target, lun: *lun };
                self.send(*reactor, cancel)?;
            }
        }
        await_all(hidden, cancelled);
        let gone = hidden.iter().all(|(_, _, leaving)| leaving.is_empty());
        if gone { Ok(()) } else { Err(TargetError::Draining) }
    }
}

/// Reactors that have not let a LUN go yet.
type Leaving = Vec<(usize, Receiver<()>)>;

/// Takes the answers that come until then; those that do not are left. However late it is, what has come is taken.
fn come_until<T>(answers: &mut Vec<(usize, Receiver<T>)>, until: Instant) -> Vec<T> {
    let mut come = Vec::new();
    answers.retain(|(_, answer)| match answer.recv_timeout(until.saturating_duration_since(Instant::now())) {
        Ok(value) => {
            come.push(value);
            false
        }
        Err(_) => true,
    });
    come
}

/// Where a LUN is and what it leads to.
#[derive(Clone, Copy)]
struct Place {
    target: u8,
    lun: u16,
    unit: UnitId,
}

fn free_target(controller: &Controller, target: Option<u8>, lun: u16) -> Result<u8, TargetError> {
    let state = controller.state();
    let Some(target) = target else {
        let used = |target: &u8| state.luns.keys().any(|key| key.0 == *target);
        let free = (0..=u8::MAX).find(|target| !used(target));
        return free.ok_or_else(|| TargetError::NoFreeTarget(controller.name.clone()));
    };
    match state.luns.get(&(target, lun)) {
        None => Ok(target),
        Some(entry) => {
            let (ctrlr, bdev) = (controller.name.clone(), entry.bdev_name.clone());
            Err(TargetError::LunExists { ctrlr, target, lun, bdev })
        }
    }
}

fn open_channel(entry: &UnitEntry, reactor: usize) -> Result<Option<Box<dyn Channel>>, TargetError> {
    let seed = u64::from(entry.id) << 32 | reactor as u64;
    let args = OpenArgs { depth: DEPTH, seed };
    match entry.backing.device.as_ref().map(|device| device.open(args)).transpose() {
        // It went away a moment ago: the LUN answers NOT READY until it is back.
        Err(OpenError::Missing) => Ok(None),
        opened => Ok(opened?),
    }
}

/// Whether a controller can be called so.
#[must_use]
pub fn is_good_name(name: &str) -> bool {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    (1..=64).contains(&name.len()) && name.bytes().all(good) && name != "." && name != ".."
}

fn lowest_free(used: impl Iterator<Item = u32>) -> u32 {
    let mut used: Vec<_> = used.collect();
    used.sort_unstable();
    used.iter().enumerate().find(|&(at, &id)| at as u32 != id).map_or(used.len(), |(at, _)| at) as u32
}

pub(crate) fn reply<T>() -> (Reply<T>, Receiver<T>) {
    let (sender, receiver) = bounded(1);
    (Reply::new(sender), receiver)
}

pub(crate) fn wait<T>(answer: &Receiver<T>, long: Duration) -> Result<T, TargetError> {
    answer.recv_timeout(long).map_err(|error| match error {
        crossbeam::channel::RecvTimeoutError::Timeout => TargetError::Draining,
        crossbeam::channel::RecvTimeoutError::Disconnected => TargetError::Post(PostError::Stopped),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_come_is_taken_after_the_deadline_and_the_others_stay() {
        let long_ago = Instant::now();
        let (mut answers, mut senders) = (Vec::new(), Vec::new());
        for reactor in 0..4 {
            let (sender, answer) = bounded(1);
            answers.push((reactor, answer));
            senders.push(sender);
        }
        senders[1].send("b").expect("room");
        senders[3].send("d").expect("room");
        assert_eq!(come_until(&mut answers, long_ago), ["b", "d"]);
        assert_eq!(answers.iter().map(|(reactor, _)| *reactor).collect::<Vec<_>>(), [0, 2]);
        senders[2].send("c").expect("room");
        assert_eq!((come_until(&mut answers, long_ago), answers.len()), (vec!["c"], 1));
    }

    #[test]
    fn names_that_leave_the_directory_are_refused() {
        for bad in ["", ".", "..", "a/b", "../x", "a b", "ä", "a\n", &"x".repeat(65)] {
            assert!(!is_good_name(bad), "{bad:?}");
        }
        for good in ["vm1", "VhostScsi0", "a.b-c_d", "..."] {
            assert!(is_good_name(good), "{good:?}");
        }
    }

    #[test]
    fn the_lowest_free_number_is_taken() {
        assert_eq!(lowest_free([].into_iter()), 0);
        assert_eq!(lowest_free([1, 0, 3].into_iter()), 2);
        assert_eq!(lowest_free([2, 1].into_iter()), 0);
        assert_eq!(lowest_free([0, 1].into_iter()), 2);
    }
}
