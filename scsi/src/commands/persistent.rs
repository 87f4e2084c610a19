//! PERSISTENT RESERVE IN and OUT (SPC-5, clauses 6.15 and 6.16), and RESERVE and RELEASE of SPC-2: what lies where in
//! CDBs, parameter lists and answers. What it means is in `reservations`.

use crate::commands::Call;
use crate::reservations::out::{MOST_FOR_OTHERS, Register, full};
use crate::reservations::{Kind, Member, NexusName, Registration, Reservation};
use crate::{Action, Inventory, Sense};

/// The parameter list of all service actions but REGISTER AND MOVE, and the fixed part of that of the latter.
const LIST_LEN: usize = 24;
/// A TransportID of a SAS port (SPC-5, clause 7.6.4.7). The initiator ports here have names of that kind.
const TRANSPORT_ID_LEN: usize = 24;
const SAS: u8 = 0x06;

const REGISTER_AND_IGNORE: u16 = 0x06;
const REGISTER_AND_MOVE: u16 = 0x07;
const PREEMPT_AND_ABORT: u16 = 0x05;

/// READ KEYS.
pub(crate) fn read_keys(call: &mut Call<'_>, _: &dyn Inventory) -> Result<Action, Sense> {
    let Call { unit, data, .. } = call;
    unit.with_reservations(|held| {
        data.put(&held.generation.to_be_bytes());
        data.put(&(held.registrations.len() as u32 * 8).to_be_bytes());
        held.registrations.iter().for_each(|known| data.put(&known.key.to_be_bytes()));
    });
    Ok(answer(call))
}

/// READ RESERVATION. With an all-registrants type there is no single holder, and the key is 0.
pub(crate) fn read_reservation(call: &mut Call<'_>, _: &dyn Inventory) -> Result<Action, Sense> {
    let Call { unit, data, .. } = call;
    unit.with_reservations(|held| {
        data.put(&held.generation.to_be_bytes());
        let Some(Reservation { kind, holder }) = &held.reservation else { return data.put(&[0; 4]) };
        let is_holder = |known: &&Registration| Some(&known.member.name) == holder.as_ref();
        let key = held.registrations.iter().find(is_holder).map_or(0, |known| known.key);
        data.put(&16u32.to_be_bytes());
        data.put(&key.to_be_bytes());
        data.put(&[0, 0, 0, 0, 0, *kind as u8, 0, 0]);
    });
    Ok(answer(call))
}

/// REPORT CAPABILITIES: SPEC_I_PT and ALL_TG_PT, APTPL where something keeps it, all six types.
pub(crate) fn report_capabilities(call: &mut Call<'_>, _: &dyn Inventory) -> Result<Action, Sense> {
    const SIP_C: u8 = 0x08;
    const ATP_C: u8 = 0x04;
    const PTPL_C: u8 = 0x01;
    const TMV: u8 = 0x80;
    const PTPL_A: u8 = 0x01;
    let durable = call.unit.with_reservations(|held| held.durable);
    let kept = if call.unit.keeper().is_some() { PTPL_C } else { 0 };
    let mut types = [0; 2];
    for kind in Kind::ALL {
        types[kind as usize / 8] |= 1 << (kind as u8 % 8);
    }
    let activated = if durable { PTPL_A } else { 0 };
    call.data.put(&[0, 8, SIP_C | ATP_C | kept, TMV | activated, types[0], types[1], 0, 0]);
    Ok(answer(call))
}

/// READ FULL STATUS.
pub(crate) fn read_full_status(call: &mut Call<'_>, _: &dyn Inventory) -> Result<Action, Sense> {
    const R_HOLDER: u8 = 0x01;
    let Call { unit, data, .. } = call;
    unit.with_reservations(|held| {
        data.put(&held.generation.to_be_bytes());
        data.put(&((held.registrations.len() * (24 + TRANSPORT_ID_LEN)) as u32).to_be_bytes());
        for Registration { member, key } in &held.registrations {
            let holds = held.reservation.as_ref().filter(|_| held.is_holder(&member.name));
            let (holder, kind) = holds.map_or((0, 0), |reservation| (R_HOLDER, reservation.kind as u8));
            data.put(&key.to_be_bytes());
            data.put(&[0, 0, 0, 0, holder, kind, 0, 0, 0, 0]);
            data.put(&member.relative_port.to_be_bytes());
            data.put(&(TRANSPORT_ID_LEN as u32).to_be_bytes());
            data.put(&[SAS, 0, 0, 0]);
            data.put(&member.name.initiator.to_be_bytes());
            data.put(&[0; 12]);
        }
    });
    Ok(answer(call))
}

fn answer(call: &Call<'_>) -> Action {
    call.data.answer(usize::from(call.cdb.be16(7)))
}

/// PERSISTENT RESERVE OUT: asks for its parameter list.
pub(crate) fn out(call: &mut Call<'_>, _: &dyn Inventory) -> Result<Action, Sense> {
    let len = call.cdb.be32(5) as usize;
    let shortest = if call.cdb.service_action() == REGISTER_AND_MOVE { LIST_LEN + TRANSPORT_ID_LEN } else { LIST_LEN };
    if len < shortest || len > usize::from(u16::MAX) {
        return Err(Sense::LIST_LENGTH);
    }
    Ok(Action::DataOut { len })
}

/// The parameter list of all service actions but REGISTER AND MOVE.
struct List<'a> {
    key: u64,
    action_key: u64,
    spec_i_pt: bool,
    all_tg_pt: bool,
    aptpl: bool,
    /// The length of the TransportIDs, and they themselves.
    more: &'a [u8],
}

impl<'a> List<'a> {
    fn parse(list: &'a [u8]) -> Result<List<'a>, Sense> {
        let (fixed, more) = list.split_at_checked(LIST_LEN).ok_or(Sense::LIST_LENGTH)?;
        let bit = |mask| fixed[20] & mask != 0;
        Ok(List {
            key: be64(fixed, 0),
            action_key: be64(fixed, 8),
            spec_i_pt: bit(0x08),
            all_tg_pt: bit(0x04),
            aptpl: bit(0x01),
            more,
        })
    }
}

/// REGISTER, and REGISTER AND IGNORE EXISTING KEY.
pub(crate) fn register(call: &mut Call<'_>, list: &[u8]) -> Result<Action, Sense> {
    let list = List::parse(list)?;
    let ignores_key = call.cdb.service_action() == REGISTER_AND_IGNORE;
    if list.spec_i_pt && ignores_key {
        return Err(Sense::invalid_parameter(20, Some(3)));
    }
    if list.aptpl && call.unit.keeper().is_none() {
        return Err(Sense::invalid_parameter(20, Some(0)));
    }
    if !list.spec_i_pt && !list.more.is_empty() {
        return Err(Sense::LIST_LENGTH);
    }
    let from = Member::of(call.path.nexus());
    let key = if ignores_key { None } else { Some(list.key) };
    let ids = if list.spec_i_pt { Some(id_list(list.more)?) } else { None };
    // Who is refused in any case has nothing looked up for it.
    if let Err(refusal) = call.unit.with_reservations(|held| held.admits(&from.name, key, ids.is_some())) {
        return Ok(refusal.into());
    }
    let mut initiators = ids.map_or(Ok(Vec::new()), transport_ids)?;
    initiators.sort_unstable();
    initiators.dedup();
    let (elsewhere, of_others) = if list.all_tg_pt { ports_of(call, &from, &initiators) } else { Default::default() };
    let through_this_port = |initiator| {
        let name = NexusName { initiator, target_port: from.name.target_port.clone() };
        Member { name, relative_port: from.relative_port }
    };
    let others: Vec<Member> = initiators.into_iter().map(through_this_port).chain(of_others).collect();
    let asked = Register {
        from: &from,
        key,
        new_key: list.action_key,
        durable: list.aptpl,
        elsewhere: &elsewhere,
        others: list.spec_i_pt.then_some(&others),
    };
    Ok(call.unit.change_reservations(call.path, false, |held| held.register(&asked)))
}

/// As if it came through each target port that the initiators reach the unit by: there are no others for them. The asker's
/// other nexuses, and those of the listed initiators, which are in order.
fn ports_of(call: &Call<'_>, from: &Member, listed: &[u64]) -> (Vec<Member>, Vec<Member>) {
    let own = from.name.initiator;
    let mut nexuses = call.unit.nexuses_of(|initiator| initiator == own || listed.binary_search(&initiator).is_ok());
    nexuses.retain(|member| member.name != from.name);
    nexuses.into_iter().partition(|member| member.name.initiator == own)
}

/// RESERVE, RELEASE, CLEAR, PREEMPT, PREEMPT AND ABORT.
pub(crate) fn reserve(call: &mut Call<'_>, list: &[u8]) -> Result<Action, Sense> {
    let list = List::parse(list)?;
    if list.spec_i_pt {
        return Err(Sense::invalid_parameter(20, Some(3)));
    }
    if !list.more.is_empty() {
        return Err(Sense::LIST_LENGTH);
    }
    let from = NexusName::of(call.path.nexus());
    let action = call.cdb.service_action();
    if action == 3 {
        return Ok(call.unit.change_reservations(call.path, false, |held| held.clear(&from, list.key)));
    }
    let kind = kind_of(call)?;
    let aborts = action == PREEMPT_AND_ABORT;
    Ok(call.unit.change_reservations(call.path, aborts, |held| match action {
        1 => held.reserve(&from, list.key, kind),
        2 => held.release(&from, list.key, kind),
        _ => held.preempt(&from, list.key, list.action_key, kind),
    }))
}

/// SCOPE, which has to be the logical unit, and TYPE.
fn kind_of(call: &Call<'_>) -> Result<Kind, Sense> {
    let byte = call.cdb.byte(2);
    if byte >> 4 != 0 {
        return Err(Sense::invalid_field(2, Some(7)));
    }
    Kind::from_code(byte & 0x0F).ok_or(Sense::invalid_field(2, Some(3)))
}

/// REGISTER AND MOVE.
pub(crate) fn register_and_move(call: &mut Call<'_>, list: &[u8]) -> Result<Action, Sense> {
    const UNREG: u8 = 0x02;
    const APTPL: u8 = 0x01;
    let (fixed, id) = list.split_at_checked(LIST_LEN).ok_or(Sense::LIST_LENGTH)?;
    let (unregister, durable) = (fixed[17] & UNREG != 0, fixed[17] & APTPL != 0);
    if durable && call.unit.keeper().is_none() {
        return Err(Sense::invalid_parameter(17, Some(0)));
    }
    if be32(fixed, 20) as usize != id.len() {
        return Err(Sense::LIST_LENGTH);
    }
    let initiator = transport_id(id, LIST_LEN)?;
    if id.len() != TRANSPORT_ID_LEN {
        return Err(Sense::invalid_parameter(20, None));
    }
    let relative_port = u16::from_be_bytes([fixed[18], fixed[19]]);
    let target_port = call.unit.target_port(relative_port).ok_or(Sense::invalid_parameter(18, None))?;
    let to = Member { name: NexusName { initiator, target_port }, relative_port };
    let from = NexusName::of(call.path.nexus());
    let (key, new_key) = (be64(fixed, 0), be64(fixed, 8));
    let change = call.unit.change_reservations(call.path, false, |held| {
        held.register_and_move(&from, key, &to, new_key, (unregister, durable))
    });
    Ok(change)
}

/// The TransportIDs behind TRANSPORTID PARAMETER DATA LENGTH: not more than can be registered.
fn id_list(more: &[u8]) -> Result<&[u8], Sense> {
    let (len, ids) = more.split_at_checked(4).ok_or(Sense::LIST_LENGTH)?;
    if be32(len, 0) as usize != ids.len() || !ids.len().is_multiple_of(TRANSPORT_ID_LEN) {
        return Err(Sense::invalid_parameter(LIST_LEN as u16, None));
    }
    if ids.len() / TRANSPORT_ID_LEN > MOST_FOR_OTHERS { Err(full()) } else { Ok(ids) }
}

/// The initiator ports of TransportIDs.
fn transport_ids(ids: &[u8]) -> Result<Vec<u64>, Sense> {
    let offset = |number| LIST_LEN + 4 + number * TRANSPORT_ID_LEN;
    ids.chunks_exact(TRANSPORT_ID_LEN).enumerate().map(|(number, id)| transport_id(id, offset(number))).collect()
}

/// The initiator port of a TransportID that lies at `offset` of its list.
fn transport_id(id: &[u8], offset: usize) -> Result<u64, Sense> {
    if id.len() < TRANSPORT_ID_LEN || id[0] & 0xCF != SAS {
        return Err(Sense::invalid_parameter(offset as u16, None));
    }
    Ok(be64(id, 4))
}

/// RESERVE (6) and (10).
pub(crate) fn reserve_classic(call: &mut Call<'_>, _: &dyn Inventory) -> Result<Action, Sense> {
    Ok(Action::Done(call.unit.reserve_classic(call.path)))
}

/// RELEASE (6) and (10).
pub(crate) fn release_classic(call: &mut Call<'_>, _: &dyn Inventory) -> Result<Action, Sense> {
    Ok(Action::Done(call.unit.release_classic(call.path)))
}

fn be64(bytes: &[u8], at: usize) -> u64 {
    bytes[at..at + 8].iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte))
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    bytes[at..at + 4].iter().fold(0, |sum, byte| sum << 8 | u32::from(*byte))
}

#[cfg(test)]
#[path = "persistent_tests.rs"]
mod tests;
