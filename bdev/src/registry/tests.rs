//! Names, claims, sharing, and what is missing.

use pollux_core::{IoFlags, Op};
use tempfile::TempDir;

use super::*;
use crate::testing::Rig;
use crate::{DelaySpec, FaultSpec, FileSpec, NullSpec, PassthruSpec, RamSpec, SplitSpec};

fn ram(name: &str) -> Spec {
    Spec::Malloc(RamSpec { name: name.into(), block_size: 512, num_blocks: 64, physical_block_size: None, uuid: None })
}

fn null(name: &str, uuid: Option<Uuid>) -> Spec {
    Spec::Null(NullSpec { name: name.into(), block_size: 512, num_blocks: 64, physical_block_size: None, uuid })
}

fn passthru(name: &str, base: &str) -> Spec {
    Spec::Passthru(PassthruSpec { name: name.into(), base_bdev_name: base.into(), uuid: None })
}

fn split(base: &str, split_count: u32) -> Spec {
    Spec::Split(SplitSpec { base_bdev: base.into(), split_count, split_size_mb: 0, part_blocks: None, uuids: vec![] })
}

fn delay(name: &str, base: &str) -> Spec {
    Spec::Delay(DelaySpec {
        name: name.into(),
        base_bdev_name: base.into(),
        avg_read_latency: 1,
        p99_read_latency: 2,
        avg_write_latency: 3,
        p99_write_latency: 4,
        uuid: None,
    })
}

fn scsi(ctrlr: &str, exclusive: bool) -> FrontEnd {
    FrontEnd { ctrlr: ctrlr.into(), exclusive, kind: FrontEndKind::Scsi }
}

fn names(registry: &Registry) -> Vec<String> {
    registry.list().iter().map(|entry| entry.name().to_owned()).collect()
}

fn reason<T>(result: Result<T, BdevError>) -> &'static str {
    result.err().expect("it is refused").reason()
}

/// A directory for images that come and go.
struct Images(TempDir);

impl Images {
    fn new() -> Self {
        Images(tempfile::tempdir().unwrap())
    }

    fn make(&self, name: &str) {
        let file = std::fs::File::create(self.0.path().join(name)).unwrap();
        file.set_len(1 << 20).unwrap();
    }

    fn remove(&self, name: &str) {
        std::fs::remove_file(self.0.path().join(name)).unwrap();
    }

    fn spec(&self, name: &str) -> Spec {
        Spec::File(FileSpec {
            block_size: Some(512),
            ..FileSpec::new(name, self.0.path().join(name).to_str().unwrap())
        })
    }
}

#[test]
fn a_name_leads_to_one_device() {
    let registry = Registry::new();
    let uuid = Uuid::from_u128(5);
    let entry = registry.create(null("n", Some(uuid))).unwrap().remove(0);
    assert_eq!((entry.name(), entry.uuid(), entry.kind()), ("n", uuid, Kind::Null));
    assert_eq!(entry.aliases(), [uuid.to_string()]);
    for name in ["n", &uuid.to_string(), &uuid.to_string().to_uppercase(), &uuid.simple().to_string()] {
        assert!(Arc::ptr_eq(&registry.get(name).unwrap(), &entry), "{name}");
    }
    assert!(registry.get("N").is_none());
    assert_eq!(reason(registry.create(null("n", Some(uuid)))), "exists_same");
    assert_eq!(reason(registry.create(null("n", None))), "exists_same");
    assert_eq!(reason(registry.create(null("n", Some(Uuid::from_u128(6))))), "exists_different");
    assert_eq!(reason(registry.create(ram("n"))), "exists_different");
    assert_eq!(reason(registry.create(null("other", Some(uuid)))), "exists_different");
    assert_eq!(reason(registry.create(null(&uuid.to_string(), None))), "exists_different");
    assert_eq!(reason(registry.create(null("a/b", None))), "invalid");
    assert_eq!(names(&registry), ["n"]);
}

#[test]
fn ram_disks_get_names_of_their_own() {
    let registry = Registry::new();
    registry.create(ram("Malloc1")).unwrap();
    for wanted in ["Malloc0", "Malloc2"] {
        assert_eq!(registry.create(ram("")).unwrap()[0].name(), wanted);
    }
    assert_eq!(registry.specs()[1].names(), ["Malloc0"]);
}

#[test]
fn specs_make_the_same_devices_again() {
    let registry = Registry::new();
    registry.create(ram("r")).unwrap();
    registry.create(split("r", 2)).unwrap();
    registry.create(delay("d", "rp0")).unwrap();
    registry.create(Spec::Fault(FaultSpec::new("d"))).unwrap();
    registry.create(passthru("p", "EE_d")).unwrap();
    registry.create(null("n", None)).unwrap();
    registry.resize("n", 512 * 10).unwrap();
    registry.get("d").unwrap().device().unwrap().as_delay().unwrap().set_latency(LatencyKind::AvgRead, 77);
    assert_eq!(names(&registry), ["r", "rp0", "rp1", "d", "EE_d", "p", "n"]);
    let again = Registry::new();
    for spec in registry.specs() {
        let json = serde_json::to_value(&spec).unwrap();
        assert!(!again.create_or_missing(serde_json::from_value(json).unwrap()).is_empty());
    }
    assert_eq!(again.specs(), registry.specs());
    for (old, new) in registry.list().iter().zip(again.list()) {
        assert_eq!((old.name(), old.uuid(), new.state()), (new.name(), new.uuid(), State::Online));
        assert_eq!(old.device().unwrap().shape(), new.device().unwrap().shape());
    }
    assert_eq!(again.get("n").unwrap().device().unwrap().shape().num_blocks, 10);
    assert_eq!(again.get("d").unwrap().device().unwrap().as_delay().unwrap().latency(LatencyKind::AvgRead), 77);
    assert_eq!(reason(again.create(split("r", 2))), "exists_same");
    assert_eq!(reason(again.create(split("r", 3))), "exists_different");
}

#[test]
fn layers_own_their_base() {
    let registry = Registry::new();
    let base = registry.create(ram("r")).unwrap().remove(0);
    assert_eq!(reason(registry.create(passthru("p", "nobody"))), "not_found");
    registry.create(passthru("p", &base.uuid().to_string())).unwrap();
    assert_eq!(registry.specs()[1].base(), Some("r"), "the base is known by its name");
    assert_eq!(base.claimed_by().as_deref(), Some("p"));
    assert_eq!(base.claim().unwrap().kind, Kind::Passthru);
    for attempt in [registry.create(delay("d", "r")).map(drop), registry.delete("r", None)] {
        assert_eq!(reason(attempt), "in_use");
    }
    let error = registry.attach_frontend("r", scsi("vm1", false)).err().unwrap();
    assert_eq!(error.to_string(), "r is in use by p (passthru)");
    registry.attach_frontend("p", scsi("vm1", false)).unwrap();
    assert_eq!(reason(registry.create(delay("d", "p"))), "in_use");
    let error = registry.delete("p", None).unwrap_err();
    assert_eq!(error.to_string(), "p is in use by controller vm1");
    registry.detach_frontend("p", &scsi("vm1", false)).unwrap();
    registry.delete("p", Some(Kind::Passthru)).unwrap();
    assert_eq!(base.claim(), None);
    registry.delete("r", None).unwrap();
    assert!(base.device().is_none() && registry.list().is_empty());
}

/// What makes commands atomic, ordered or reserved is kept for each exported disk: it is worth something only if nobody
/// reaches the same bytes through another one.
#[test]
fn no_byte_is_exported_through_two_disks() {
    let stacks = || [passthru("s", "r"), split("r", 2), delay("s", "r")];
    for stack in stacks() {
        let registry = Registry::new();
        registry.create(ram("r")).unwrap();
        registry.attach_frontend("r", scsi("vm1", false)).unwrap();
        assert_eq!(reason(registry.create(stack.clone())), "in_use", "a stack on a disk that is exported");
        registry.detach_frontend("r", &scsi("vm1", false)).unwrap();
        let parts = registry.create(stack).unwrap();
        assert_eq!(reason(registry.attach_frontend("r", scsi("vm1", false))), "in_use", "a disk with a stack on it");
        for other in [passthru("o", "r"), delay("o", "r"), split("r", 1)] {
            assert!(registry.create(other).is_err(), "two stacks on one disk");
        }
        // Parts of a split, which have no byte in common, are all there is side by side.
        parts.iter().for_each(|part| drop(registry.attach_frontend(part.name(), scsi("vm1", false)).unwrap()));
    }
}

#[test]
fn front_ends_share_unless_one_does_not_want_to() {
    let registry = Registry::new();
    let entry = registry.create(ram("r")).unwrap().remove(0);
    registry.attach_frontend("r", scsi("a", false)).unwrap();
    registry.attach_frontend("r", scsi("a", false)).unwrap();
    registry.attach_frontend("r", scsi("b", false)).unwrap();
    assert_eq!(entry.frontends().len(), 3);
    assert_eq!(reason(registry.attach_frontend("r", scsi("c", true))), "in_use");
    let blk = FrontEnd { kind: FrontEndKind::Blk, ..scsi("c", false) };
    assert_eq!(reason(registry.attach_frontend("r", blk.clone())), "in_use");
    for user in ["a", "b", "a"] {
        registry.detach_frontend("r", &scsi(user, false)).unwrap();
    }
    assert_eq!(reason(registry.detach_frontend("r", &scsi("a", false))), "not_found");
    registry.attach_frontend("r", scsi("c", true)).unwrap();
    let error = registry.attach_frontend("r", scsi("a", false)).err().unwrap();
    assert_eq!(error.to_string(), "r is in use by controller c exclusively");
    registry.detach_frontend("r", &scsi("c", true)).unwrap();
    registry.attach_frontend("r", blk).unwrap();
}

#[test]
fn a_split_goes_as_a_whole() {
    let registry = Registry::new();
    registry.create(ram("r")).unwrap();
    let parts = registry.create(split("r", 3)).unwrap();
    assert!(parts.iter().all(|part| part.device().unwrap().shape().num_blocks == 21));
    assert_eq!(registry.get("r").unwrap().claimed_by().unwrap(), "rp0, rp1, rp2");
    registry.attach_frontend("rp1", scsi("a", false)).unwrap();
    assert_eq!(reason(registry.delete("r", Some(Kind::Split))), "in_use");
    registry.detach_frontend("rp1", &scsi("a", false)).unwrap();
    assert_eq!(reason(registry.delete("r", Some(Kind::Delay))), "not_found");
    registry.delete("r", Some(Kind::Split)).unwrap();
    assert_eq!(names(&registry), ["r"]);
    registry.create(split("r", 2)).unwrap();
    registry.delete("rp1", None).unwrap();
    assert_eq!(names(&registry), ["r"]);
    assert_eq!(reason(registry.create(split("r", 65))), "invalid");
    let sized = |mib| {
        let Spec::Split(spec) = split("r", 1) else { unreachable!() };
        Spec::Split(SplitSpec { split_size_mb: mib, ..spec })
    };
    assert_eq!(reason(registry.create(sized(1))), "invalid");
    assert_eq!(reason(registry.create(sized(u64::MAX))), "invalid");
    assert_eq!(registry.get("r").unwrap().claim(), None, "what was refused has claimed nothing");
}

#[test]
fn a_kind_that_does_not_fit_is_not_found() {
    let registry = Registry::new();
    registry.create(ram("r")).unwrap();
    assert_eq!(reason(registry.delete("r", Some(Kind::File))), "not_found");
    assert_eq!(reason(registry.delete("x", None)), "not_found");
    assert_eq!(reason(registry.resize("r", 512)), "unsupported");
    assert_eq!(reason(registry.rescan("x")), "not_found");
    assert!(!registry.rescan("r").unwrap());
}

#[test]
fn what_is_missing_comes_back_with_what_stands_on_it() {
    let (images, registry) = (Images::new(), Registry::new());
    images.make("f");
    registry.create(images.spec("f")).unwrap();
    registry.create(split("f", 2)).unwrap();
    registry.create(passthru("p", "fp1")).unwrap();
    let specs = registry.specs();
    let uuids: Vec<_> = registry.list().iter().map(|entry| entry.uuid()).collect();
    drop(registry);
    images.remove("f");

    let registry = Registry::new();
    assert_eq!(reason(registry.create(specs[0].clone())), "no_such_file");
    specs.iter().for_each(|spec| drop(registry.create_or_missing(spec.clone())));
    assert_eq!(names(&registry), ["f", "fp0", "fp1", "p"]);
    let listed = registry.list();
    for entry in &listed {
        assert!(entry.device().is_none());
        assert!(matches!(entry.state(), State::Missing(_)));
    }
    let State::Missing(why) = listed[0].state() else { panic!() };
    assert_eq!(why.reason(), "no_such_file");
    assert_eq!(registry.specs(), specs, "nothing is forgotten");
    assert_eq!(reason(registry.rescan("f")), "missing");
    assert_eq!(reason(registry.delete("f", None)), "in_use");
    assert_eq!(reason(registry.attach_frontend("f", scsi("a", false))), "in_use");
    registry.attach_frontend("p", scsi("a", false)).unwrap();
    assert!(registry.retry_missing().is_empty());

    images.make("f");
    let back = registry.retry_missing();
    assert_eq!(back.iter().map(|entry| entry.name()).collect::<Vec<_>>(), ["f", "fp0", "fp1", "p"]);
    assert!(registry.retry_missing().is_empty());
    let listed = registry.list();
    assert_eq!(listed.iter().map(|entry| entry.uuid()).collect::<Vec<_>>(), uuids);
    let mut rig = Rig::new(&*listed[3].device().unwrap());
    rig.write(0, &[1; 512], IoFlags::empty()).unwrap();
    assert_eq!(listed[0].stats().snapshot().op(Op::Write).ops, 1, "what is below counts it too");
}

#[test]
fn a_base_that_does_not_exist_any_more_is_waited_for() {
    let registry = Registry::new();
    let entries = registry.create_or_missing(passthru("p", "r"));
    assert_eq!(entries.len(), 1);
    assert!(registry.retry_missing().is_empty());
    registry.create(ram("r")).unwrap();
    assert_eq!(registry.retry_missing().len(), 1);
    assert_eq!(registry.get("r").unwrap().claimed_by().as_deref(), Some("p"));
}

#[test]
fn what_others_use_is_not_taken_over_by_what_comes_back() {
    let registry = Registry::new();
    registry.create_or_missing(passthru("p", "r"));
    registry.create(ram("r")).unwrap();
    registry.attach_frontend("r", scsi("a", false)).unwrap();
    assert!(registry.retry_missing().is_empty());
    registry.detach_frontend("r", &scsi("a", false)).unwrap();
    registry.create(delay("d", "r")).unwrap();
    assert!(registry.retry_missing().is_empty());
    assert_eq!(registry.get("r").unwrap().claimed_by().as_deref(), Some("d"));
    registry.delete("d", None).unwrap();
    assert_eq!(registry.retry_missing().len(), 1);
}

#[test]
fn a_saved_spec_that_is_no_good_is_listed_with_the_reason() {
    let registry = Registry::new();
    let odd = Spec::Null(NullSpec {
        name: "n".into(),
        block_size: 520,
        num_blocks: 1,
        physical_block_size: None,
        uuid: None,
    });
    let entry = registry.create_or_missing(odd).remove(0);
    assert!(matches!(entry.state(), State::Missing(BdevError::Invalid { field: "block_size", .. })));
    assert!(registry.create_or_missing(ram("n")).is_empty(), "the name is taken");
    assert!(registry.create_or_missing(split("n", 0)).is_empty());
    assert!(registry.retry_missing().is_empty());
    registry.delete("n", None).unwrap();
}

#[test]
fn sizes_are_looked_at_again() {
    let (images, registry) = (Images::new(), Registry::new());
    images.make("f");
    let entry = registry.create(images.spec("f")).unwrap().remove(0);
    registry.create(passthru("p", "f")).unwrap();
    assert!(!registry.rescan("f").unwrap());
    std::fs::OpenOptions::new().write(true).open(images.0.path().join("f")).unwrap().set_len(2 << 20).unwrap();
    assert!(registry.rescan("f").unwrap());
    for name in ["f", "p"] {
        assert_eq!(registry.get(name).unwrap().device().unwrap().shape().bytes(), 2 << 20);
    }
    drop(entry);
}

#[test]
fn a_block_size_that_was_found_is_kept() {
    let (images, registry) = (Images::new(), Registry::new());
    images.make("f");
    let Spec::File(given) = images.spec("f") else { unreachable!() };
    let request = Spec::File(FileSpec { block_size: None, ..given.clone() });
    let shape = |registry: &Registry| registry.get("f").unwrap().device().unwrap().shape();
    registry.create(request.clone()).unwrap();
    let Spec::File(made) = registry.specs().remove(0) else { unreachable!() };
    let found = shape(&registry).block_size;
    assert_eq!((made.block_size, made.found_block_size), (None, Some(found)));
    drop(registry);

    // As if the host had allowed the other one when the disk was made.
    let other = 512 + 4096 - found;
    let saved = serde_json::to_value(Spec::File(FileSpec { found_block_size: Some(other), ..made })).unwrap();
    let restored = || serde_json::from_value::<Spec>(saved.clone()).unwrap();
    let registry = Registry::new();
    images.remove("f");
    registry.create_or_missing(restored());
    images.make("f");
    assert_eq!(registry.retry_missing().len(), 1);
    assert_eq!(shape(&registry).block_size, other);
    registry.reopen("f").unwrap();
    assert_eq!(shape(&registry).block_size, other);
    assert_eq!(registry.specs(), [restored()]);

    let device = registry.get("f").unwrap().device().unwrap();
    assert_eq!(device.driver_specific()["aio"]["block_size_override"], false);
    assert_eq!(reason(registry.create(request)), "exists_same");
    let given = Spec::File(FileSpec { block_size: Some(other), ..given });
    assert_eq!(reason(registry.create(given)), "exists_different");
}

#[test]
fn an_open_file_is_closed_when_its_device_is_deleted_or_opened_again() {
    let (images, registry) = (Images::new(), Registry::new());
    images.make("f");
    let entry = registry.create(images.spec("f")).unwrap().remove(0);
    let Spec::File(spec) = images.spec("f") else { unreachable!() };
    let other = || Spec::File(FileSpec { name: "g".into(), ..spec.clone() });
    assert_eq!(reason(registry.create(other())), "locked");
    registry.reopen("f").unwrap();
    assert_eq!(entry.state(), State::Online);
    registry.attach_frontend("f", scsi("a", false)).unwrap();
    assert_eq!(reason(registry.reopen("f")), "in_use");
    registry.detach_frontend("f", &scsi("a", false)).unwrap();
    images.remove("f");
    assert_eq!(reason(registry.reopen("f")), "no_such_file");
    images.make("f");
    assert_eq!(registry.retry_missing().len(), 1);
    registry.delete("f", None).unwrap();
    registry.create(other()).unwrap();
}

fn placing(uuid: Uuid, alias: &str) -> Placing {
    let spec = NullSpec { name: "n".into(), block_size: 512, num_blocks: 64, physical_block_size: None, uuid: None };
    let device: Arc<dyn crate::Device> = Arc::new(crate::Null::new(&spec));
    let alias = Some(alias.to_owned());
    Placing { uuid, alias, kind: Kind::Lvol, product_name: "Logical Volume", device: Ok(device) }
}

#[test]
fn what_no_spec_has_made_is_a_device_like_any_other() {
    let registry = Registry::new();
    let (uuid, name) = (Uuid::from_u128(5), Uuid::from_u128(5).to_string());
    registry.create(null("n", None)).unwrap();
    let entry = registry.place(placing(uuid, "pool/v")).unwrap();
    assert_eq!(names(&registry), ["n", &name]);
    assert_eq!(entry.aliases(), ["pool/v"]);
    assert!(["pool/v", &name, &name.to_uppercase()].iter().all(|name| registry.get(name).is_some()));
    assert_eq!(registry.specs().len(), 1, "only specs are kept");
    assert_eq!(reason(registry.place(placing(Uuid::from_u128(6), "pool/v"))), "exists_different");
    assert_eq!(reason(registry.create(null(&name, None))), "exists_different");
    assert_eq!(reason(registry.create(null("m", Some(uuid)))), "exists_different");
    registry.set_alias(uuid, "pool/w").unwrap();
    assert!(registry.get("pool/v").is_none() && registry.get("pool/w").is_some());
    registry.create(passthru("p", "pool/w")).unwrap();
    assert_eq!(reason(registry.withdraw(uuid)), "in_use");
    assert_eq!(reason(registry.delete(&name, None)), "not_found", "only who has placed it withdraws it");
    registry.delete("p", None).unwrap();
    registry.withdraw(uuid).unwrap();
    assert!(registry.get(&name).is_none() && entry.device().is_none());
    assert_eq!(reason(registry.withdraw(uuid)), "not_found");
}

#[test]
fn what_is_placed_goes_and_comes_back_with_its_users() {
    let registry = Registry::new();
    let (uuid, name) = (Uuid::from_u128(5), Uuid::from_u128(5).to_string());
    let missing = Err(BdevError::not_found("its pool"));
    registry.place(Placing { alias: None, device: missing, ..placing(uuid, "") }).unwrap();
    let entry = registry.attach_frontend(&name, scsi("vm", false)).unwrap();
    assert!(entry.device().is_none());
    registry.create_or_missing(passthru("p", &Uuid::from_u128(6).to_string()));
    registry.place(placing(Uuid::from_u128(6), "pool/below")).unwrap();
    assert_eq!(registry.retry_missing().len(), 1, "what stands on it comes with it");
    let back = registry.place(placing(uuid, "pool/v")).unwrap();
    assert!(Arc::ptr_eq(&back, &entry) && back.device().is_some() && back.frontends().len() == 1);
    registry.displace(uuid, "its pool was closed");
    assert!(entry.device().is_none() && registry.get("pool/v").is_some());
    assert_eq!(reason(registry.withdraw(uuid)), "in_use");
}

#[test]
fn an_owner_that_is_no_device_has_its_base_to_itself() {
    let registry = Registry::new();
    registry.create(ram("r")).unwrap();
    let claim = || Claim { kind: Kind::Pool, by: vec!["pool".into()] };
    assert_eq!(reason(registry.claim("x", claim())), "not_found");
    let base = registry.claim("r", claim()).unwrap();
    assert_eq!(base.claimed_by().as_deref(), Some("pool"));
    assert_eq!(reason(registry.claim("r", claim())), "in_use");
    assert_eq!(reason(registry.create(passthru("p", "r"))), "in_use");
    assert_eq!(reason(registry.attach_frontend("r", scsi("vm", false))), "in_use");
    assert_eq!(reason(registry.delete("r", None)), "in_use");
    registry.unclaim("r", Kind::Lvol);
    assert!(base.claim().is_some(), "somebody else's claim");
    registry.unclaim("r", Kind::Pool);
    registry.create(passthru("p", "r")).unwrap();
}

#[test]
fn those_who_only_read_a_device_have_it_together() {
    let registry = Registry::new();
    registry.create(ram("r")).unwrap();
    let share = |by: &[&str]| registry.share("r", Kind::Clone, by.iter().map(ToString::to_string).collect());
    registry.attach_frontend("r", scsi("vm", false)).unwrap();
    assert_eq!(reason(share(&["p/a"])), "in_use");
    registry.detach_frontend("r", &scsi("vm", false)).unwrap();
    share(&["p/a"]).unwrap();
    share(&["p/a", "q/b"]).unwrap();
    assert_eq!(registry.get("r").unwrap().claimed_by().as_deref(), Some("p/a, q/b"));
    assert_eq!(reason(registry.claim("r", Claim { kind: Kind::Pool, by: vec!["pool".into()] })), "in_use");
    assert_eq!(reason(registry.create(passthru("p", "r"))), "in_use");
    assert_eq!(reason(registry.attach_frontend("r", scsi("vm", false))), "in_use");
    assert_eq!(reason(registry.delete("r", None)), "in_use");
    share(&[]).unwrap();
    registry.create(passthru("p", "r")).unwrap();
    assert_eq!(reason(share(&["p/a"])), "in_use");
    assert_eq!(reason(registry.share("x", Kind::Clone, Vec::new())), "not_found");
}
