//! Two controllers with initiators of their own lead a Linux guest to one disk, as they would two guests: with sg_persist
//! each keeps the other from writing.

use anyhow::{Context as _, Result, ensure};
use pollux_tests::daemon::Daemon;
use pollux_tests::vm::{self, Guest, GuestOptions};
use serde_json::json;

struct World {
    daemon: Daemon,
    guest: Guest,
    /// The disk by one controller and by the other.
    disks: [String; 2],
}

impl World {
    fn new() -> Result<Self> {
        let daemon = Daemon::start()?;
        daemon.rpc("bdev_malloc_create", json!({"name": "shared", "block_size": 512, "num_blocks": 16384}))?;
        for (name, initiator) in [("vm1", "3000000000000001"), ("vm2", "3000000000000002")] {
            daemon.rpc("vhost_create_scsi_controller", json!({"ctrlr": name, "initiator": initiator}))?;
            let add = json!({"ctrlr": name, "scsi_target_num": 0, "bdev_name": "shared"});
            daemon.rpc("vhost_scsi_controller_add_target", add)?;
        }
        let vhost = ["vm1", "vm2"].map(|name| (daemon.socket(name), 1)).into();
        let mut guest = Guest::boot(&GuestOptions { vhost, ..GuestOptions::default() })?;
        let listed = guest.sh("scsi-disks")?;
        let mut disks = listed.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned);
        let disks = [disks.next().context("no disk")?, disks.next().context("one disk")?];
        Ok(World { daemon, guest, disks })
    }

    /// A tool's output; `DISK` is the disk by that controller.
    fn tool(&mut self, of: usize, command: &str, wants: &[&str]) -> Result<String> {
        let text = self.guest.sh(&command.replace("DISK", &self.disks[of]))?;
        for want in wants {
            ensure!(text.contains(want), "{command}: `{want}` is missing in\n{text}");
        }
        Ok(text)
    }

    fn persist(&mut self, of: usize, arguments: &str) -> Result<()> {
        // Whatever is pending is told to this first.
        self.tool(of, "sg_turs DISK; sg_turs DISK; true", &[])?;
        self.tool(of, &format!("sg_persist --no-inquiry --out {arguments} DISK 2>&1"), &[]).map(drop)
    }

    fn may_write(&mut self, of: usize) -> Result<bool> {
        let write =
            "dd if=/dev/zero of=DISK bs=4k count=1 oflag=direct conv=notrunc 2>&1 && echo WRITTEN || echo REFUSED";
        let text = self.tool(of, write, &[])?;
        let read = "dd if=DISK of=/dev/null bs=4k count=1 iflag=direct 2>&1";
        self.tool(of, read, &["4096 bytes"])?;
        Ok(text.contains("WRITTEN"))
    }
}

fn fence(world: &mut World) -> Result<()> {
    ensure!(world.may_write(0)? && world.may_write(1)?);
    world.tool(
        0,
        "sg_persist --no-inquiry --in --report-capabilities DISK",
        &["(PTPL_C): 1", "Write Exclusive, registrants only: 1"],
    )?;
    world.persist(0, "--register --param-sark=0xaaa1 --param-aptpl")?;
    world.persist(0, "--reserve --param-rk=0xaaa1 --prout-type=5")?;
    ensure!(world.may_write(0)? && !world.may_write(1)?, "who is not registered may not write");
    world.persist(1, "--register --param-sark=0xbbb2 --param-aptpl")?;
    ensure!(world.may_write(0)? && world.may_write(1)?, "registrants may");
    world.tool(0, "sg_persist --no-inquiry --in --read-keys DISK", &["0xaaa1", "0xbbb2"])?;
    let status = "sg_persist --no-inquiry --in --read-full-status DISK";
    world.tool(1, status, &["Key=0xaaa1", "<< Reservation holder >>", "SAS address: 0x3000000000000001"])?;
    // The other takes over.
    world.persist(1, "--preempt-abort --param-rk=0xbbb2 --param-sark=0xaaa1 --prout-type=5")?;
    ensure!(!world.may_write(0)? && world.may_write(1)?, "the preempted guest still writes");
    world.tool(
        0,
        "sg_persist --no-inquiry --in --read-reservation DISK",
        &["0xbbb2", "Write Exclusive, registrants only"],
    )?;
    let holder = world.daemon.rpc("bdev_get_reservations", json!({"name": "shared"}))?;
    ensure!(holder["registrations"][0]["key"] == "000000000000bbb2" && holder["durable"] == true, "{holder}");
    world.persist(1, "--release --param-rk=0xbbb2 --prout-type=5")?;
    ensure!(world.may_write(0)? && world.may_write(1)?);
    world.persist(1, "--clear --param-rk=0xbbb2")?;
    world.tool(0, "sg_persist --no-inquiry --in --read-keys DISK", &["there are NO registered reservation keys"])?;
    Ok(())
}

#[test]
fn guests_fence_each_other() -> Result<()> {
    if vm::available()?.is_none() {
        return Ok(());
    }
    let mut world = World::new()?;
    fence(&mut world).with_context(|| format!("the daemon says:\n{}", world.daemon.log_tail()))
}
