//! Which device it is. The numbers of `/dev/sg*` are given in the order in which devices are found, so after a restart, or
//! when a device was pulled, another one may have the same path, and nobody wants to give a guest somebody else's disk.
//! What a device says of itself in INQUIRY is remembered with the bdev and compared whenever it is opened.

use std::fmt::Write as _;
use std::os::fd::AsFd;

use rustix::io::Errno;

use super::raw;

/// How long an INQUIRY may take.
const PATIENCE_MS: u32 = 20_000;
const VPD_SERIAL: u8 = 0x80;
const VPD_IDENTIFICATION: u8 = 0x83;

/// What a device says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    /// PERIPHERAL DEVICE TYPE.
    pub(super) device_type: u8,
    pub(super) vendor: String,
    pub(super) product: String,
    pub(super) revision: String,
    /// What tells it from all other devices, as far as it says something.
    pub(super) name: String,
    /// Whether `name` is no more than the model.
    pub(super) ambiguous: bool,
}

/// Asks a device.
pub(super) fn ask(fd: impl AsFd) -> Result<Identity, Errno> {
    let standard = inquiry(&fd, None)?.ok_or(Errno::IO)?;
    let identification = inquiry(&fd, Some(VPD_IDENTIFICATION))?;
    let serial = inquiry(&fd, Some(VPD_SERIAL))?;
    read(&standard, identification.as_deref(), serial.as_deref()).ok_or(Errno::IO)
}

/// INQUIRY data; `None` if the device has no such page.
fn inquiry(fd: impl AsFd, page: Option<u8>) -> Result<Option<Vec<u8>>, Errno> {
    const LEN: u8 = 252;
    let cdb = [0x12, u8::from(page.is_some()), page.unwrap_or(0), 0, LEN, 0];
    let mut data = vec![0; usize::from(LEN)];
    let (header, len) = raw::ask(fd, &cdb, &mut data, PATIENCE_MS)?;
    if header.status == 0 && header.host_status != 0 {
        return Err(Errno::IO);
    }
    data.truncate(len);
    let good = header.status == 0 && page.is_none_or(|page| data.get(1) == Some(&page));
    Ok(good.then_some(data))
}

/// Makes sense of the answers.
fn read(standard: &[u8], identification: Option<&[u8]>, serial: Option<&[u8]>) -> Option<Identity> {
    let text = |from: usize, to: usize| standard.get(from..to).map(printable).unwrap_or_default();
    let (device_type, qualifier) = (standard.first()? & 0x1F, standard.first()? >> 5);
    if qualifier != 0 {
        return None;
    }
    let (vendor, product, revision) = (text(8, 16), text(16, 32), text(32, 36));
    let serial = serial.and_then(|page| page.get(4..)).map(printable).filter(|serial| !serial.is_empty());
    let named = identification.and_then(designator);
    let ambiguous = named.is_none() && serial.is_none();
    let name = named.unwrap_or_else(|| {
        let serial = serial.map_or_else(String::new, |serial| format!(" {serial}"));
        format!("{vendor} {product}{serial}")
    });
    Some(Identity { device_type, vendor, product, revision, name, ambiguous })
}

fn printable(bytes: &[u8]) -> String {
    let clean = bytes.iter().map(|&byte| if byte.is_ascii_graphic() || byte == b' ' { byte as char } else { ' ' });
    clean.collect::<String>().trim().to_owned()
}

/// The best designator of the logical unit in page 83h: NAA, EUI-64, UUID, SCSI name, T10 vendor, in this order.
fn designator(page: &[u8]) -> Option<String> {
    let len = usize::from(u16::from_be_bytes([*page.get(2)?, *page.get(3)?]));
    let mut rest = page.get(4..)?;
    rest = &rest[..rest.len().min(len)];
    let mut best: Option<(u8, String)> = None;
    while let [_, kind, _, len, more @ ..] = rest {
        let Some(value) = more.get(..usize::from(*len)) else { break };
        rest = &more[usize::from(*len)..];
        let (association, kind) = (kind >> 4 & 3, kind & 0x0F);
        let Some((rank, prefix)) = rank(kind).filter(|_| association == 0 && !value.is_empty()) else { continue };
        if best.as_ref().is_none_or(|(than, _)| rank < *than) {
            best = Some((rank, format!("{prefix}.{}", hex(value))));
        }
    }
    best.map(|(_, name)| name)
}

const fn rank(kind: u8) -> Option<(u8, &'static str)> {
    Some(match kind {
        3 => (0, "naa"),
        2 => (1, "eui"),
        0x0A => (2, "uuid"),
        8 => (3, "name"),
        1 => (4, "t10"),
        _ => return None,
    })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn standard() -> Vec<u8> {
        let mut data = vec![0x01, 0x80, 6, 2, 91, 0, 0, 2];
        data.extend_from_slice(b"Linux   scsi_debug      0191");
        data
    }

    fn page(designators: &[(u8, &[u8])]) -> Vec<u8> {
        let mut page = vec![1, 0x83, 0, 0];
        for (kind, value) in designators {
            page.extend_from_slice(&[1, *kind, 0, value.len() as u8]);
            page.extend_from_slice(value);
        }
        page[3] = (page.len() - 4) as u8;
        page
    }

    #[test]
    fn the_best_name_of_the_unit_is_taken() {
        let all =
            page(&[(0x01, b"LIO x"), (0x13, &[5; 8]), (0x94, &[0, 0, 0, 1]), (0x03, &[0x53, 1, 2]), (0x02, &[9])]);
        let identity = read(&standard(), Some(&all), Some(&[1, 0x80, 0, 2, b'S', b'1'])).expect("it says something");
        assert_eq!((identity.device_type, identity.name.as_str()), (1, "naa.530102"));
        assert_eq!((identity.vendor.as_str(), identity.product.as_str()), ("Linux", "scsi_debug"));
        assert_eq!(identity.revision, "0191");
        let t10 = read(&standard(), Some(&page(&[(0x13, &[5; 8]), (0x01, b"AB")])), None).expect("good");
        assert_eq!((t10.name.as_str(), t10.ambiguous), ("t10.4142", false));
    }

    #[test]
    fn without_a_name_the_serial_number_has_to_do_or_the_model() {
        let serial = read(&standard(), None, Some(&[1, 0x80, 0, 4, b' ', b'X', b'7', 0])).expect("good");
        assert_eq!((serial.name.as_str(), serial.ambiguous), ("Linux scsi_debug X7", false));
        let model = read(&standard(), Some(&page(&[])), None).expect("good");
        assert_eq!((model.name.as_str(), model.ambiguous), ("Linux scsi_debug", true));
    }

    #[test]
    fn nonsense_is_no_device_and_breaks_nothing() {
        assert_eq!(read(&[], None, None), None);
        assert_eq!(read(&[0x7F, 0, 0], None, None), None);
        let odd = read(&[0], Some(&[0, 0x83, 0xFF, 0xFF, 1, 3, 0, 200, 1]), Some(&[0])).expect("a device");
        assert!(odd.ambiguous);
    }
}
