//! Firmware boots from a Pollux disk: its driver, then a boot loader through it, then Linux on the same device.
//!
//! Emulated CPUs need one adjustment. QEMU keeps the code that it has translated until it sees the guest's memory change,
//! and what another process writes there it does not see. A BIOS boots by loading one sector over another and jumping to
//! the same address, so it would run the first one twice. See [`jump_elsewhere`].

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use pollux_tests::daemon::Daemon;
use pollux_tests::vm::{self, Firmware, Guest, GuestOptions, Parts};
use serde_json::json;

/// Lets the master boot record enter the next sector as 07c0:0000 instead of 0000:7c00: the same byte of memory, but
/// another address to QEMU's table of translated code.
fn jump_elsewhere(image: &Path) -> Result<()> {
    // SYSLINUX's mbr.bin: pop di; pop es; cli; jmp sp. Its boot sector needs none of that.
    const BEFORE: [u8; 5] = [0x5f, 0x07, 0xfa, 0xff, 0xe4];
    const AFTER: [u8; 5] = [0xea, 0x00, 0x00, 0xc0, 0x07];
    let file = File::options().read(true).write(true).open(image)?;
    let mut code = [0; 440];
    file.read_exact_at(&mut code, 0)?;
    let at = code.windows(BEFORE.len()).position(|window| window == BEFORE);
    let at = at.context("the image does not begin with SYSLINUX's master boot record")?;
    Ok(file.write_all_at(&AFTER, at as u64)?)
}

fn boots(parts: &Parts, firmware: Firmware, says: &str) -> Result<()> {
    let mut daemon = Daemon::start()?;
    let image = daemon.disks_dir().join("boot.img");
    std::fs::copy(parts.boot_image(), &image)?;
    if firmware == Firmware::SeaBios && !parts.fast() {
        jump_elsewhere(&image)?;
    }
    daemon.rpc("bdev_aio_create", json!({"name": "boot", "filename": image, "block_size": 512}))?;
    daemon.rpc("bdev_malloc_create", json!({"name": "ram", "block_size": 512, "num_blocks": 8192}))?;
    daemon.rpc("vhost_create_scsi_controller", json!({"ctrlr": "vm"}))?;
    for (target, bdev) in [(0, "boot"), (1, "ram")] {
        let add = json!({"ctrlr": "vm", "scsi_target_num": target, "bdev_name": bdev});
        daemon.rpc("vhost_scsi_controller_add_target", add)?;
    }
    let options = GuestOptions {
        memory_mib: 512,
        vhost: vec![(daemon.socket("vm"), 2)],
        boot_from_scsi: true,
        firmware,
        ..GuestOptions::default()
    };
    let line = Guest::start(&options)?.wait_console("POLLUX-BOOT-", Duration::from_secs(120));
    let line = line.with_context(|| format!("{firmware:?}; the daemon says:\n{}", daemon.log_tail()))?;
    println!("{firmware:?}: {line}");
    let sectors = std::fs::metadata(&image)?.len() / 512;
    for want in ["POLLUX-BOOT-OK", "vendor=POLLUX", &format!("sectors={sectors}"), says] {
        ensure!(line.contains(want), "`{want}` is missing in: {line}");
    }
    ensure!(daemon.metric("pollux_bdev_errors_total", &[])? == 0.0, "{}", daemon.metrics()?);
    ensure!(daemon.is_alive());
    Ok(())
}

#[test]
fn seabios() -> Result<()> {
    let Some(parts) = vm::available()? else { return Ok(()) };
    boots(&parts, Firmware::SeaBios, "firmware=bios")
}

#[test]
fn edk2() -> Result<()> {
    let Some(parts) = vm::available()? else { return Ok(()) };
    if !parts.has_ovmf() {
        println!("notice: no UEFI firmware here, left out");
        return Ok(());
    }
    boots(&parts, Firmware::Ovmf, "firmware=efi")
}
