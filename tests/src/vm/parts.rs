//! Where the test VM is, and whether tests that need it run.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context as _, Result, anyhow, bail};

/// The parts of the test VM, as `scripts/guest --print` names them.
#[derive(Clone, Debug)]
pub struct Parts(HashMap<String, String>);

impl Parts {
    fn get(&self, key: &str) -> &str {
        self.0.get(key).map_or("", String::as_str)
    }

    /// A disk image that boots by itself under BIOS and UEFI.
    #[must_use]
    pub fn boot_image(&self) -> PathBuf {
        self.get("BOOT_IMG").into()
    }

    /// Whether the machine runs guests in hardware.
    #[must_use]
    pub fn fast(&self) -> bool {
        self.get("ACCEL") == "kvm"
    }

    /// Whether this QEMU connects a vhost-user-scsi device again: from 8.2 on.
    #[must_use]
    pub fn can_reconnect(&self) -> bool {
        self.get("QEMU_VERSION").parse::<u32>().is_ok_and(|version| version >= 80200)
    }

    /// Whether there is UEFI firmware.
    #[must_use]
    pub fn has_ovmf(&self) -> bool {
        !self.get("OVMF_CODE").is_empty()
    }
}

/// The root of the repository.
pub(super) fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("/"))
}

pub(super) fn script() -> PathBuf {
    repository().join("scripts/guest")
}

/// The test VM, or `None` (with a notice) if tests that need one are to be left out.
///
/// # Errors
/// If `POLLUX_GUEST=required` and there is none, or `POLLUX_GUEST` is nonsense.
pub fn available() -> Result<Option<Parts>> {
    static FOUND: OnceLock<Result<Option<Parts>, String>> = OnceLock::new();
    FOUND.get_or_init(|| find().map_err(|error| format!("{error:#}"))).clone().map_err(|error| anyhow!(error))
}

fn find() -> Result<Option<Parts>> {
    let wish = std::env::var("POLLUX_GUEST").unwrap_or_default();
    match wish.as_str() {
        "skip" => {
            eprintln!("notice: tests with a real guest are left out (POLLUX_GUEST=skip)");
            return Ok(None);
        }
        "" | "required" => {}
        other => bail!("POLLUX_GUEST={other}: say `required` or `skip`, or leave it unset"),
    }
    let output = Command::new(script()).arg("--print").output().context("running scripts/guest --print")?;
    if output.status.success() {
        let text = String::from_utf8(output.stdout).context("what scripts/guest --print says")?;
        return Ok(Some(Parts(parse(&text))));
    }
    let reason = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    if wish == "required" {
        bail!("POLLUX_GUEST=required, but there is no test VM: {reason}");
    }
    eprintln!("notice: tests with a real guest are left out: {reason}");
    Ok(None)
}

fn parse(text: &str) -> HashMap<String, String> {
    text.lines().filter_map(|line| line.split_once('=')).map(|(k, v)| (k.to_owned(), v.to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_first_equals_sign_ends_the_key() {
        let parts = Parts(parse("CMDLINE=console=ttyS0 a=b\nACCEL=tcg\nQEMU_VERSION=70200\nOVMF_CODE=\n"));
        assert_eq!(parts.get("CMDLINE"), "console=ttyS0 a=b");
        assert!(!parts.fast() && !parts.can_reconnect() && !parts.has_ovmf());
        assert!(Parts(parse("QEMU_VERSION=80200")).can_reconnect());
    }
}
