//! Firmware boots from a Pollux disk: its driver, then a boot loader through it, then Linux on the same device.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use pollux_tests::daemon::Daemon;
use pollux_tests::vm::{self, Firmware, Guest, GuestOptions, Parts};
use serde_json::json;

fn boots(parts: &Parts, firmware: Firmware, says: &str) -> Result<()> {
    let mut daemon = Daemon::start()?;
    let image = daemon.disks_dir().join("boot.img");
    std::fs::copy(parts.boot_image(), &image)?;
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
