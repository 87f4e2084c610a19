//! What survives a restart: bdevs, controllers with their LUNs, and the options that were set. The content of
//! [`Store`](crate::state::Store)'s file.
//!
//! A bdev's record holds everything that was chosen for it (its UUID too, if that was drawn), so that it comes back as the
//! same device to its guests; a controller's record holds its initiator port's name for the same reason.

use std::collections::BTreeMap;

use pollux_bdev::Spec;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::identity::IdentityRecord;

/// Everything that is kept.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Document {
    /// Bdevs in the order of their creation, so that a base comes before what stands on it.
    #[serde(default)]
    pub bdevs: Vec<Spec>,
    /// Controllers in the order of their creation.
    #[serde(default)]
    pub controllers: Vec<ControllerRecord>,
    /// What was chosen for the SCSI units of bdevs, by the bdev's name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub identities: BTreeMap<String, IdentityRecord>,
    /// Parameters of option methods (`bdev_set_options` and the like), by method; kept for `save_config`.
    #[serde(default)]
    pub options: Map<String, Value>,
}

/// A controller.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ControllerRecord {
    /// Its name, and the name of its socket.
    pub name: String,
    /// The cores it was asked to run on; none: all reactors.
    #[serde(default)]
    pub cores: Option<Vec<usize>>,
    /// Its initiator port: 16 hexadecimal digits.
    #[serde(with = "hexadecimal")]
    pub initiator: u64,
    /// Its relative target port identifier; none before it has been made once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub relative_port: Option<u16>,
    /// Whether it listens.
    pub started: bool,
    /// Its LUNs.
    #[serde(default)]
    pub luns: Vec<LunRecord>,
}

/// A LUN of a controller.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LunRecord {
    /// Its target.
    pub target: u8,
    /// Its number.
    pub lun: u16,
    /// The bdev's name.
    pub bdev: String,
    /// Whether the bdev may not be attached elsewhere.
    #[serde(default)]
    pub exclusive: bool,
}

impl Document {
    /// A controller's record.
    #[must_use]
    pub fn controller(&self, name: &str) -> Option<&ControllerRecord> {
        self.controllers.iter().find(|controller| controller.name == name)
    }

    /// The same to change it.
    pub fn controller_mut(&mut self, name: &str) -> Option<&mut ControllerRecord> {
        self.controllers.iter_mut().find(|controller| controller.name == name)
    }

    /// Where a bdev is attached: controller, LUN.
    pub fn attachments<'a>(&'a self, bdev: &'a str) -> impl Iterator<Item = (&'a str, &'a LunRecord)> {
        self.controllers.iter().flat_map(move |controller| {
            let luns = controller.luns.iter().filter(move |lun| lun.bdev == bdev);
            luns.map(move |lun| (controller.name.as_str(), lun))
        })
    }
}

/// Reads 16 hexadecimal digits (fewer are taken as if zeroes stood before them; 0x and separators are not).
#[must_use]
pub fn parse_initiator(text: &str) -> Option<u64> {
    let good = (1..=16).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    good.then(|| u64::from_str_radix(text, 16).ok()).flatten().filter(|&initiator| initiator != 0)
}

mod hexadecimal {
    use serde::{Deserialize, Deserializer, Serializer, de};

    pub(super) fn serialize<S: Serializer>(value: &u64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{value:016x}"))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
        let text = String::deserialize(deserializer)?;
        super::parse_initiator(&text).ok_or_else(|| de::Error::custom(format!("'{text}' is no initiator port name")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_document_comes_back_as_it_was() {
        let document = Document {
            bdevs: Vec::new(),
            controllers: vec![ControllerRecord {
                name: "vm1".into(),
                cores: Some(vec![0, 3]),
                initiator: 0x5001_4050_1234_5678,
                relative_port: Some(3),
                started: true,
                luns: vec![LunRecord { target: 3, lun: 16383, bdev: "disk".into(), exclusive: true }],
            }],
            identities: [("disk".to_owned(), IdentityRecord { serial: Some("S1".into()), ..Default::default() })]
                .into(),
            options: json!({"bdev_set_options": {"bdev_auto_examine": true}}).as_object().cloned().unwrap_or_default(),
        };
        let text = serde_json::to_string(&document).expect("text");
        assert!(text.contains("\"5001405012345678\""), "{text}");
        assert_eq!(serde_json::from_str::<Document>(&text).expect("read"), document);
        assert_eq!(document.attachments("disk").map(|(ctrlr, _)| ctrlr).collect::<Vec<_>>(), ["vm1"]);
        assert!(serde_json::from_str::<Document>(r#"{"disks":[]}"#).is_err());
    }

    #[test]
    fn initiators_are_sixteen_hex_digits() {
        assert_eq!(parse_initiator("5001405012345678"), Some(0x5001_4050_1234_5678));
        for bad in ["", "0", "xyz", "0x12", "+1", "50014050123456789", "5001 4050"] {
            assert_eq!(parse_initiator(bad), None, "{bad}");
        }
    }
}
