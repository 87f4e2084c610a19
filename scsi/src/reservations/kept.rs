//! Reservations as text, to be kept over a restart: a line for each fact, strict when it is read.
//!
//! ```text
//! registration KEY INITIATOR PORT CONTROLLER
//! reservation TYPE [INITIATOR CONTROLLER]
//! ```
//! Numbers are hexadecimal. Only what is durable is kept: the text of anything else is empty.

use std::fmt::Write as _;

use super::out::MOST;
use super::{Kind, Member, NexusName, Registration, Reservation, Reservations};

impl Reservations {
    /// The text of what survives a restart.
    pub(super) fn to_text(&self) -> String {
        let mut text = String::new();
        if !self.durable {
            return text;
        }
        // Writing to a string cannot fail.
        for Registration { member: Member { name, relative_port }, key } in &self.registrations {
            let NexusName { initiator, target_port } = name;
            let _ = writeln!(text, "registration {key:016x} {initiator:016x} {relative_port:04x} {target_port}");
        }
        match &self.reservation {
            Some(Reservation { kind, holder: Some(NexusName { initiator, target_port }) }) => {
                let _ = writeln!(text, "reservation {:x} {initiator:016x} {target_port}", *kind as u8);
            }
            Some(Reservation { kind, holder: None }) => {
                let _ = writeln!(text, "reservation {:x}", *kind as u8);
            }
            None => {}
        }
        text
    }

    /// What the text says; `None` if it is not one that was written here.
    pub(super) fn from_text(text: &str) -> Option<Reservations> {
        let mut kept = Reservations { durable: !text.is_empty(), ..Reservations::default() };
        for line in text.lines() {
            let words: Vec<&str> = line.split(' ').collect();
            match words[..] {
                ["registration", key, initiator, port, target_port] => {
                    let name = name_of(initiator, target_port)?;
                    let member = Member { name, relative_port: u16::try_from(number(port)?).ok()? };
                    let key = number(key).filter(|&key| key != 0)?;
                    if kept.key_of(&member.name).is_some() || kept.registrations.len() >= MOST {
                        return None;
                    }
                    kept.registrations.push(Registration { member, key });
                }
                ["reservation", kind, ref holder @ ..] if kept.reservation.is_none() => {
                    let kind = Kind::from_code(u8::try_from(number(kind)?).ok()?)?;
                    let holder = match holder {
                        [initiator, target_port] => Some(name_of(initiator, target_port)?),
                        [] => None,
                        _ => return None,
                    };
                    kept.reservation = Some(Reservation { kind, holder });
                }
                _ => return None,
            }
        }
        kept.is_sound().then_some(kept)
    }

    /// Whether the invariants of a reservation hold.
    pub(super) fn is_sound(&self) -> bool {
        match &self.reservation {
            None => true,
            Some(Reservation { kind, holder: None }) => kind.is_held_by_all() && !self.registrations.is_empty(),
            Some(Reservation { kind, holder: Some(holder) }) => !kind.is_held_by_all() && self.key_of(holder).is_some(),
        }
    }
}

fn number(text: &str) -> Option<u64> {
    let good = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    good.then(|| u64::from_str_radix(text, 16).ok()).flatten()
}

fn name_of(initiator: &str, target_port: &str) -> Option<NexusName> {
    let target_port = Some(target_port).filter(|name| !name.is_empty())?.to_owned();
    Some(NexusName { initiator: number(initiator)?, target_port })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "registration 00000000000000ab 3000000000000001 0001 vm1\n\
                        registration 0000000000000001 3000000000000002 0002 vm2\n\
                        reservation 5 3000000000000002 vm2\n";

    #[test]
    fn what_is_kept_comes_back() {
        let kept = Reservations::from_text(TEXT).unwrap();
        assert!(kept.durable);
        assert_eq!(kept.generation, 0, "it starts anew");
        assert_eq!(kept.registrations[0].key, 0xAB);
        assert_eq!(kept.to_text(), TEXT);
        let all = TEXT.replace("reservation 5 3000000000000002 vm2", "reservation 8");
        assert_eq!(Reservations::from_text(&all).unwrap().to_text(), all);
        assert_eq!(Reservations { durable: false, ..kept }.to_text(), "");
        assert_eq!(Reservations::from_text(""), Some(Reservations::default()));
    }

    #[test]
    fn what_was_never_written_is_refused() {
        let wrong = [
            "registration",
            "registration 0000000000000000 3000000000000001 0001 vm1",
            "registration 1 3000000000000001 10000 vm1",
            "registration +1 3000000000000001 0001 vm1",
            "registration 1 3000000000000001 0001 ",
            "registration 1 3000000000000001 0001 vm1 more",
            "registration 1 1 1 vm1\nregistration 2 1 1 vm1",
            "reservation 5 3000000000000001 vm1",
            "registration 1 1 1 vm1\nreservation 2 1 vm1",
            "registration 1 1 1 vm1\nreservation 7 1 vm1",
            "registration 1 1 1 vm1\nreservation 5",
            "registration 1 1 1 vm1\nreservation 5 1 vm1\nreservation 5 1 vm1",
            "reservation 7",
            "\n",
            "nonsense",
        ];
        for text in wrong {
            assert_eq!(Reservations::from_text(text), None, "{text:?}");
        }
    }
}
