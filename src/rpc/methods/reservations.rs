//! What guests have made durable of a disk: `bdev_get_reservations`, `bdev_clear_reservations`, `bdev_reset_mode_pages`.

use pollux_scsi::{RegistrationInfo, ReservationsInfo};
use serde::Deserialize;
use serde_json::{Value, json};

use super::done;
use crate::node::Node;
use crate::rpc::table::Answer;

/// Parameters of all.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Named {
    name: String,
}

pub(crate) fn get(node: &Node, params: &Named) -> Answer {
    node.reservations(&params.name).map(|info| shape(&info)).map_err(|error| error.by_errno())
}

pub(crate) fn clear(node: &Node, params: &Named) -> Answer {
    done(node.clear_reservations(&params.name))
}

pub(crate) fn reset_mode_pages(node: &Node, params: &Named) -> Answer {
    done(node.reset_mode_pages(&params.name))
}

fn shape(info: &ReservationsInfo) -> Value {
    let registration = |known: &RegistrationInfo| {
        json!({
            "initiator": hexadecimal(known.initiator),
            "ctrlr": known.target_port,
            "key": hexadecimal(known.key),
            "holder": known.holder,
        })
    };
    let reserved_by =
        |(initiator, ctrlr): &(u64, String)| json!({"initiator": hexadecimal(*initiator), "ctrlr": ctrlr});
    json!({
        "generation": info.generation,
        "durable": info.durable,
        "type": info.reservation_type.map(type_name),
        "registrations": info.registrations.iter().map(registration).collect::<Vec<_>>(),
        "reserved_by": info.reserved_by.as_ref().map(reserved_by),
        "unreadable": info.unreadable,
    })
}

fn hexadecimal(number: u64) -> String {
    format!("{number:016x}")
}

const fn type_name(code: u8) -> &'static str {
    match code {
        1 => "write_exclusive",
        3 => "exclusive_access",
        5 => "write_exclusive_registrants_only",
        6 => "exclusive_access_registrants_only",
        7 => "write_exclusive_all_registrants",
        _ => "exclusive_access_all_registrants",
    }
}
