//! `bdev_set_scsi_identity`.

use serde::Deserialize;
use serde_json::{Value, json};

use super::done;
use crate::node::Node;
use crate::node::identity::IdentityRecord;
use crate::rpc::table::Answer;

/// Parameters of `bdev_set_scsi_identity`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetScsiIdentity {
    name: String,
    #[serde(default)]
    vendor: Option<String>,
    #[serde(default)]
    product: Option<String>,
    #[serde(default)]
    revision: Option<String>,
    #[serde(default)]
    serial: Option<String>,
    #[serde(default)]
    naa: Option<String>,
    #[serde(default)]
    rotation_rate: Option<u16>,
    /// Bytes.
    #[serde(default)]
    unmap_granularity: Option<u32>,
    #[serde(default)]
    allow_sanitize: Option<bool>,
}

pub(crate) fn set_scsi_identity(node: &Node, params: &SetScsiIdentity) -> Answer {
    let SetScsiIdentity { name, vendor, product, revision, serial, naa, .. } = params.clone();
    let SetScsiIdentity { rotation_rate, unmap_granularity, allow_sanitize, .. } = *params;
    let record =
        IdentityRecord { vendor, product, revision, serial, naa, rotation_rate, unmap_granularity, allow_sanitize };
    done(node.set_identity(&name, record))
}

/// The call that chooses this again.
pub(crate) fn replay((name, record): (&String, &IdentityRecord)) -> Value {
    let mut params = json!(record);
    params["name"] = name.as_str().into();
    json!({"method": "bdev_set_scsi_identity", "params": params})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_replayed_can_be_decoded_and_is_the_same() {
        let record =
            IdentityRecord { vendor: Some("ACME".into()), rotation_rate: Some(1), ..IdentityRecord::default() };
        let call = replay((&"disk".to_owned(), &record));
        assert_eq!(call["params"], json!({"name": "disk", "vendor": "ACME", "rotation_rate": 1}));
        let params: SetScsiIdentity = serde_json::from_value(call["params"].clone()).expect("decoded");
        assert_eq!((params.name.as_str(), params.vendor, params.rotation_rate), ("disk", record.vendor, Some(1)));
    }
}
