//! What the control plane wants of a device beyond the data path.

use pollux_core::Bdev;
use serde_json::Value;

use crate::{BdevError, Delay, Fault, Sg};

/// A block device as the registry holds it. Nothing here is called from a reactor; everything may block.
pub trait Device: Bdev {
    /// SPDK's name for this kind of device.
    fn product_name(&self) -> &'static str;

    /// The member `driver_specific` of `bdev_get_bdevs`, in SPDK's shape.
    fn driver_specific(&self) -> Value;

    /// Which of SPDK's I/O types it does.
    fn supported(&self) -> Supported {
        let shape = self.shape();
        Supported {
            write: !shape.read_only,
            unmap: !shape.read_only && shape.discard.is_some(),
            write_zeroes: !shape.read_only,
        }
    }

    /// What an operator should know about how it works at present.
    fn warnings(&self) -> Vec<String> {
        Vec::new()
    }

    /// Looks at the size of what is below again. Returns whether it has changed.
    ///
    /// # Errors
    /// When it cannot be found out; the size then stays what it was.
    fn rescan(&self) -> Result<bool, BdevError> {
        Ok(false)
    }

    /// Sets the size in bytes.
    ///
    /// # Errors
    /// [`BdevError::Unsupported`] for most devices; [`BdevError::Invalid`] for a size it cannot have.
    fn resize(&self, bytes: u64) -> Result<(), BdevError> {
        let _ = bytes;
        Err(BdevError::Unsupported { name: self.product_name().to_owned(), what: "resize" })
    }

    /// Looks after what is not on any request's way. Called about once a second by a housekeeping thread; may take some
    /// tens of milliseconds.
    fn tend(&self) {}

    /// The controls of a `delay` device.
    fn as_delay(&self) -> Option<&Delay> {
        None
    }

    /// The controls of a `fault` device.
    fn as_fault(&self) -> Option<&Fault> {
        None
    }

    /// What a device for whole SCSI commands says of itself.
    fn as_sg(&self) -> Option<&Sg> {
        None
    }

    /// Whether what is below has gone for good: it has to be opened again if it comes back.
    fn is_lost(&self) -> bool {
        false
    }
}

/// What a device does, of the operations that not every device does. Read, flush, reset and abort they all do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Supported {
    /// Writes.
    pub write: bool,
    /// Discards.
    pub unmap: bool,
    /// Write zeroes.
    pub write_zeroes: bool,
}
