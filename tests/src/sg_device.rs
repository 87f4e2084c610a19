//! A SCSI generic device of this machine, asked directly: what a command through Pollux is compared with.

#![allow(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::path::Path;

use anyhow::{Context as _, Result, bail};

const SG_IO: libc::Ioctl = 0x2285;
const PATIENCE_MS: u32 = 60_000;

/// `struct sg_io_hdr`, as the kernel's documentation gives it.
#[repr(C)]
struct Header {
    interface_id: i32,
    direction: i32,
    cdb_len: u8,
    sense_room: u8,
    iovec_count: u16,
    data_len: u32,
    data: *mut u8,
    cdb: *const u8,
    sense: *mut u8,
    timeout: u32,
    flags: u32,
    pack_id: i32,
    user: *mut u8,
    status: u8,
    masked_status: u8,
    message: u8,
    sense_len: u8,
    host_status: u16,
    driver_status: u16,
    residual: i32,
    duration: u32,
    info: u32,
}

/// What the device and its host say to a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Direct {
    /// The device's status byte.
    pub status: u8,
    /// Its sense data.
    pub sense: Vec<u8>,
    /// What the host adapter says.
    pub host_status: u16,
    /// Bytes that were not moved.
    pub residual: i32,
    /// The whole buffer for incoming data.
    pub data: Vec<u8>,
}

/// A device that is open.
pub struct SgDevice(File);

impl SgDevice {
    /// Opens `/dev/sg*`.
    ///
    /// # Errors
    /// If that cannot be opened.
    pub fn open(path: &Path) -> Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(path);
        Ok(SgDevice(file.with_context(|| path.display().to_string())?))
    }

    /// One command, with data in one direction at most.
    ///
    /// # Errors
    /// If the driver does not take it.
    pub fn cdb(&self, cdb: &[u8], out: &[u8], in_len: usize) -> Result<Direct> {
        let mut data = if in_len > 0 { vec![0; in_len] } else { out.to_vec() };
        let mut sense = [0; 96];
        let direction = match (in_len, out.len()) {
            (0, 0) => -1,
            (0, _) => -2,
            _ => -3,
        };
        let mut header = Header {
            interface_id: i32::from(b'S'),
            direction,
            cdb_len: u8::try_from(cdb.len())?,
            sense_room: sense.len() as u8,
            iovec_count: 0,
            data_len: u32::try_from(data.len())?,
            data: data.as_mut_ptr(),
            cdb: cdb.as_ptr(),
            sense: sense.as_mut_ptr(),
            timeout: PATIENCE_MS,
            flags: 0,
            pack_id: 0,
            user: std::ptr::null_mut(),
            status: 0,
            masked_status: 0,
            message: 0,
            sense_len: 0,
            host_status: 0,
            driver_status: 0,
            residual: 0,
            duration: 0,
            info: 0,
        };
        // SAFETY: the header is what the call takes; all that it names lives until the call has returned.
        if unsafe { libc::ioctl(self.0.as_raw_fd(), SG_IO, &raw mut header) } < 0 {
            bail!("SG_IO: {}", std::io::Error::last_os_error());
        }
        if in_len == 0 {
            data.clear();
        }
        let Header { status, sense_len, host_status, residual, .. } = header;
        let sense = sense[..usize::from(sense_len).min(sense.len())].to_vec();
        Ok(Direct { status, sense, host_status, residual, data })
    }
}
