//! Copies by tokens in a Linux guest: `ddpt` and `ddptctl` between disks in memory and in files, compared; and `sg_xcopy`
//! from file to file.
//!
//! `ddpt` 0.97 puts block device range descriptors one byte before their place, of any list, so an address and a number of
//! n in `skip=`, `seek=`, `--pt=` and `--wut=` go out as 256 n (and plain `skip=LBA count=N` is a list without blocks to it).
//! What it sends then is a correct list of other numbers, which is what is compared here; its own counts are wrong.

use anyhow::{Context as _, Result, ensure};
use pollux_tests::daemon::Daemon;
use pollux_tests::vm::{self, Guest, GuestOptions};
use serde_json::json;

const BYTES: u64 = 16 << 20;
/// What one block of `ddpt` 0.97 is.
const BLOCKS: u64 = 256;

struct World {
    daemon: Daemon,
    guest: Guest,
    /// The sg and the disk nodes of a disk in memory and two in files.
    generic: Vec<String>,
    disks: Vec<String>,
}

impl World {
    fn new() -> Result<Self> {
        let daemon = Daemon::start()?;
        daemon.rpc("bdev_malloc_create", json!({"name": "ram", "block_size": 512, "num_blocks": BYTES / 512}))?;
        for name in ["file1", "file2"] {
            let path = daemon.disks_dir().join(name);
            std::fs::File::create(&path)?.set_len(BYTES)?;
            daemon.rpc("bdev_aio_create", json!({"name": name, "filename": path, "block_size": 512}))?;
        }
        daemon.rpc("vhost_create_scsi_controller", json!({"ctrlr": "vm"}))?;
        for (target, bdev) in [(0, "ram"), (1, "file1"), (2, "file2")] {
            let add = json!({"ctrlr": "vm", "scsi_target_num": target, "bdev_name": bdev});
            daemon.rpc("vhost_scsi_controller_add_target", add)?;
        }
        let vhost = vec![(daemon.socket("vm"), 2)];
        let guest = Guest::boot(&GuestOptions { vhost, ..GuestOptions::default() })?;
        let mut world = World { daemon, guest, generic: Vec::new(), disks: Vec::new() };
        world.generic = world.nodes("scsi_generic")?;
        world.disks = world.nodes("block")?;
        world.run("seq -f %511.0f 9000 | head -c 4194304 >/tmp/data")?;
        Ok(world)
    }

    fn nodes(&mut self, kind: &str) -> Result<Vec<String>> {
        let find = format!("for t in 0 1 2; do ls /sys/bus/scsi/devices/*:0:$t:0/{kind}; done");
        let nodes: Vec<_> = self.guest.sh(&find)?.lines().map(|name| format!("/dev/{name}")).collect();
        ensure!(nodes.len() == 3, "three disks have these {kind} nodes: {nodes:?}");
        Ok(nodes)
    }

    /// A command that ends well, with `SG0`, `DISK0` and so on for the nodes; what it says on either output.
    fn run(&mut self, command: &str) -> Result<String> {
        let (status, text) = self.try_run(command)?;
        ensure!(status == 0, "{command}: status {status}\n{text}");
        Ok(text)
    }

    fn try_run(&mut self, command: &str) -> Result<(i32, String)> {
        let mut command = command.to_owned();
        for (at, (generic, disk)) in self.generic.iter().zip(&self.disks).enumerate() {
            command = command.replace(&format!("SG{at}"), generic).replace(&format!("DISK{at}"), disk);
        }
        let text = self.guest.sh(&format!("{{ {command}; }} 2>&1; status=$?; echo; echo $status"))?;
        let text = text.trim_end();
        let (text, status) = text.rsplit_once('\n').unwrap_or(("", text));
        Ok((status.parse()?, text.to_owned()))
    }

    fn fill(&mut self, disk: usize) -> Result<()> {
        self.run(&format!("dd if=/tmp/data of=DISK{disk} bs=1M oflag=direct status=none")).map(drop)
    }

    /// A disk holds, from this block on, these blocks of the data, as `ddpt` counts.
    fn holds(&mut self, disk: usize, at: u64, from: u64, blocks: u64) -> Result<()> {
        let (skip, count) = (at * BLOCKS, blocks * BLOCKS);
        let from = from * BLOCKS;
        self.run(&format!(
            "dd if=/tmp/data of=/tmp/wanted bs=512 skip={from} count={count} status=none; \
             dd if=DISK{disk} bs=512 skip={skip} count={count} iflag=direct status=none | cmp - /tmp/wanted"
        ))
        .map(drop)
        .context("what arrived is not what was there")
    }
}

fn copy_by_tokens(world: &mut World) -> Result<()> {
    let version = world.run("command -v ddpt >/dev/null && ddpt --version")?;
    ensure!(version.contains("0.97"), "these counts are those of ddpt 0.97, not of {version}");
    world.fill(0)?;
    // From memory to a file, and from there to another file: many pieces, then from two ranges.
    world.run("timeout 60 ddpt --odx if=SG0 of=SG1 bs=512 skip=0,16 seek=0,16")?;
    world.holds(1, 0, 0, 16)?;
    world.run("timeout 60 ddpt --odx if=SG1 of=SG2 bs=512 skip=2,3,8,1 seek=7,4")?;
    world.holds(2, 7, 2, 3)?;
    world.holds(2, 10, 8, 1)?;
    // Zeroes.
    world.run("timeout 60 ddpt --odx if=/dev/null rtype=zero of=SG1 bs=512 seek=1,2")?;
    world.run("dd if=DISK1 bs=512 skip=256 count=512 iflag=direct status=none | cmp -n 262144 - /dev/zero")?;
    world.holds(1, 0, 0, 1)?;
    world.holds(1, 3, 3, 13)?;
    // A token that is kept, and used again and again, until somebody writes there.
    world.run("timeout 60 ddptctl --pt=4,4 --rtf=/tmp/token SG0 && timeout 60 ddptctl --poll --rtf=/tmp/token SG0")?;
    let token = world.run("ddptctl --info --rtf=/tmp/token")?;
    ensure!(token.contains("change vulnerable") && token.contains(&format!("{}", 4 * BLOCKS * 512)), "{token}");
    for at in [0, 8] {
        world.run(&format!("timeout 60 ddptctl --wut={at},4 --rtf=/tmp/token SG2 && timeout 60 ddptctl --poll SG2"))?;
        world.holds(2, at, 4, 4)?;
    }
    ensure!(world.run("ddptctl --all_toks SG0")?.contains("headers returned: 1"), "one token lives");
    world.run("dd if=/tmp/data of=DISK0 bs=512 seek=2047 count=1 oflag=direct conv=notrunc status=none")?;
    let (status, text) = world.try_run("timeout 60 ddptctl --wut=0,4 --rtf=/tmp/token SG2")?;
    ensure!(status != 0 && text.contains("token revoked"), "status {status}: {text}");
    Ok(())
}

fn copy_from_file_to_file(world: &mut World) -> Result<()> {
    world.fill(1)?;
    world.run("sg_xcopy if=SG1 of=SG2 bs=512 count=4096 skip=256 seek=512")?;
    world.holds(2, 2, 1, 16)
}

#[test]
fn ddpt_and_sg_xcopy_copy_what_is_there() -> Result<()> {
    if vm::available()?.is_none() {
        return Ok(());
    }
    let mut world = World::new()?;
    let copied = copy_by_tokens(&mut world).and_then(|()| copy_from_file_to_file(&mut world));
    copied.with_context(|| format!("the daemon says:\n{}", world.daemon.log_tail()))
}
