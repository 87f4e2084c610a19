//! A device that hands everything to the device below. It does nothing, and shows all that a device has to do.
//!
//! **Read this first if you want to write a block device.** The comments below are for somebody who has never seen
//! this code; the other devices explain only what is special about them.
//!
//! A device is two types. The *device* ([`Passthru`]) is shared by everybody and lives on the control plane: it says
//! what it is like and opens channels. A *channel* (`PassthruChannel`) belongs to one reactor, which is one thread: it
//! moves requests, and needs no locks because nobody else ever touches it.

use std::sync::Arc;

use pollux_core::{
    Alignment, Bdev, Channel, Completion, CopyRange, Cx, Erasure, Extent, Io, IoError, Lane, Next, OpenArgs, OpenError,
    Shape, Tag,
};
use serde_json::{Value, json};

use crate::Device;

/// The device. It stands on another one, its *base*, and knows it only as a [`Bdev`]: it works on a file, on memory, on
/// a split, on another passthru, and on the simulated disk of the tests. The registry has claimed the base before it
/// makes this device, so nobody else writes to it.
pub struct Passthru {
    name: String,
    base_name: String,
    base: Arc<dyn Bdev>,
}

impl Passthru {
    /// A device called `name` on `base`. The names are only for listings.
    pub fn new(name: &str, base_name: &str, base: Arc<dyn Bdev>) -> Self {
        Passthru { name: name.to_owned(), base_name: base_name.to_owned(), base }
    }
}

impl Bdev for Passthru {
    /// What the device is like *now*. Asking the base each time, instead of keeping a copy, means that a base that grows
    /// makes this device grow. A device that changes something (a smaller size, no discard) changes it here, and then
    /// has to keep to it in its channels.
    fn shape(&self) -> Shape {
        self.base.shape()
    }

    /// What is mapped and what reads as zeroes without space behind it. What the base answers is true of us, too.
    fn extent(&self, offset: u64, len: u64) -> Extent {
        self.base.extent(offset, len)
    }

    /// Whether that may wait: then it is asked on helper threads, never on reactors.
    fn extent_waits(&self) -> bool {
        self.base.extent_waits()
    }

    /// What may hold up whoever asks us what is mapped, or has us copy: the same as the base.
    fn lane(&self) -> Option<Lane> {
        self.base.lane()
    }

    fn erasure(&self) -> Erasure {
        self.base.erasure()
    }

    /// Where a range lies for copies that devices make by themselves, past our channels. We may let that happen, because
    /// we do nothing to data; a device that does has to leave this out (then copies are read and written through it).
    fn copy_range(&self, offset: u64, len: u64) -> Option<CopyRange> {
        self.base.copy_range(offset, len)
    }

    /// Opens a way in for one reactor. This runs on the control plane: it may block and allocate, and it is the only
    /// place that may. Everything a request will ever need is taken here; `args.depth` says how many there can be.
    /// A stacked device opens a channel of its base for itself, so the two live on the same reactor.
    fn open(&self, args: OpenArgs) -> Result<Box<dyn Channel>, OpenError> {
        Ok(Box::new(PassthruChannel { base: self.base.open(args)? }))
    }
}

/// The control plane's view: what an operator sees in listings. The names and shapes are SPDK's.
impl Device for Passthru {
    fn product_name(&self) -> &'static str {
        "passthru"
    }

    fn driver_specific(&self) -> Value {
        json!({ "passthru": { "name": self.name, "base_bdev_name": self.base_name } })
    }
}

/// One reactor's way in. A device that does something to requests would keep here a table of what is in flight
/// ([`pollux_core::Slab`]), made in `open` with room for `depth` entries; `delay` is the simplest example.
struct PassthruChannel {
    base: Box<dyn Channel>,
}

impl Channel for PassthruChannel {
    /// How many requests may be in flight. Never more than was asked for in `open`, and never more than the base allows,
    /// because each request of ours becomes one of the base's.
    fn depth(&self) -> u32 {
        self.base.depth()
    }

    /// What memory the device likes best. Data goes by us untouched, so it is the base that knows.
    fn alignment(&self) -> Alignment {
        self.base.alignment()
    }

    /// The first call on the reactor. A device that talks to the kernel registers its files with `cx.ring` here.
    fn attach(&mut self, cx: &mut Cx<'_>) -> Result<(), IoError> {
        self.base.attach(cx)
    }

    /// The last call on the reactor, with nothing in flight: gives back what `attach` took.
    fn detach(&mut self, cx: &mut Cx<'_>) {
        self.base.detach(cx);
    }

    /// Takes a request. Three rules: do not block (the reactor serves many disks), do not complete it here (not even
    /// with an error: put that aside for the next `poll`), and do not fail (there is always room, the submitter keeps
    /// to `depth`). `io.data` points to memory of a guest, which may change at any time: copy from it once, or pass it
    /// on; it stays valid until the completion.
    ///
    /// The tag is the submitter's name for the request. Ours can go down as it is, because the base channel is ours
    /// alone; a device that makes several requests out of one needs names of its own (see `measured`).
    fn submit(&mut self, io: Io, cx: &mut Cx<'_>) {
        self.base.submit(io, cx);
    }

    /// Brings up what has completed, each tag exactly once. A device that has to do something at the end of a request
    /// (check, delay, go on with the next step) lets the base append to a list of its own and goes through that.
    fn poll(&mut self, cx: &mut Cx<'_>, done: &mut Vec<Completion>) {
        self.base.poll(cx, done);
    }

    /// When a poll can find something, which decides whether the reactor may sleep. With nothing of our own in flight
    /// that is what the base says; a device with a timer or finished requests of its own combines the two with
    /// [`Next::or`]. Saying `Idle` with something in flight loses requests: nobody polls an idle channel.
    fn next(&self) -> Next {
        self.base.next()
    }

    /// Asks for an early end. The request still completes through `poll`. A device that holds requests itself ends them
    /// as `Aborted`; what is below, it asks the base to end.
    fn cancel(&mut self, tag: Tag, cx: &mut Cx<'_>) {
        self.base.cancel(tag, cx);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{Rig, model, ram};
    use pollux_core::{IoFlags, Op};

    #[test]
    fn is_its_base_in_every_respect() {
        model::check_cases(8, || (Arc::new(Passthru::new("p", "ram", ram(512, 512))) as Arc<dyn Device>, ()));
        let base = ram(4096, 16);
        let device = Passthru::new("p", "ram", base.clone());
        assert_eq!(device.shape(), base.shape());
        assert_eq!(device.driver_specific(), json!({"passthru": {"name": "p", "base_bdev_name": "ram"}}));
    }

    #[test]
    fn cancels_below() {
        let device = Passthru::new("p", "ram", ram(512, 16));
        let mut rig = Rig::new(&device);
        rig.submit(Io::without_data(3, Op::Discard, IoFlags::empty(), 0, 512));
        rig.cancel(3);
        assert_eq!(rig.finish(), [Completion { tag: 3, result: Err(IoError::Aborted) }]);
    }
}
