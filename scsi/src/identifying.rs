//! Identifying information: what an initiator writes on a disk like a label on a case (SPC-5, clause 5.12). It belongs to
//! the unit, is kept apart from its data, and counts only when it is saved.

use std::fmt::Write as _;
use std::sync::Arc;

use crate::keeper::{Save, Saving, Section, Sections};
use crate::text::{from_hexadecimal, to_hexadecimal};
use crate::{Action, Attention, LogicalUnit, Nexus, Outcome, Path, Sense};

/// IDENTIFYING INFORMATION TYPE (SPC-5, table 81).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Any bytes.
    Device = 0x00,
    /// UTF-8 that ends with a zero.
    Text = 0x02,
}

impl Kind {
    pub(crate) const ALL: [Kind; 2] = [Kind::Device, Kind::Text];

    /// The most bytes of it.
    pub(crate) const fn max(self) -> u16 {
        match self {
            Kind::Device => 64,
            Kind::Text => 256,
        }
    }

    const fn word(self) -> &'static str {
        match self {
            Kind::Device => "device",
            Kind::Text => "text",
        }
    }
}

/// A unit's identifying information. As text a line for each that there is: its name, and its bytes in hexadecimal digits.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Identifying {
    device: Arc<[u8]>,
    text: Arc<[u8]>,
}

impl Identifying {
    /// What was kept; `None`: it cannot be read.
    pub(crate) fn restored(kept: Option<&Sections>) -> Option<Identifying> {
        let mut restored = Identifying::default();
        for line in Section::Identifying.of(kept)?.lines() {
            let (word, bytes) = line.split_once(' ')?;
            let kind = Kind::ALL.into_iter().find(|kind| kind.word() == word)?;
            let bytes = from_hexadecimal(bytes).filter(|bytes| (1..=usize::from(kind.max())).contains(&bytes.len()))?;
            let place = restored.of_mut(kind);
            if !place.is_empty() {
                return None;
            }
            *place = bytes.into();
        }
        Some(restored)
    }

    fn to_text(&self) -> String {
        let mut text = String::new();
        for kind in Kind::ALL.into_iter().filter(|kind| !self.of(*kind).is_empty()) {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{} {}", kind.word(), to_hexadecimal(self.of(kind)));
        }
        text
    }

    fn of(&self, kind: Kind) -> &Arc<[u8]> {
        match kind {
            Kind::Device => &self.device,
            Kind::Text => &self.text,
        }
    }

    fn of_mut(&mut self, kind: Kind) -> &mut Arc<[u8]> {
        match kind {
            Kind::Device => &mut self.device,
            Kind::Text => &mut self.text,
        }
    }
}

/// What a unit knows of its identifying information.
#[derive(Debug)]
pub(crate) struct Label {
    /// `None`: what was kept cannot be read. Nothing is reported then, and the next that is set takes its place.
    now: Option<Identifying>,
    saving: Saving<(Identifying, Arc<Nexus>)>,
}

impl Label {
    pub(crate) fn restored(kept: Option<&Sections>) -> Label {
        Label { now: Identifying::restored(kept), saving: Saving::default() }
    }

    pub(crate) fn is_unreadable(&self) -> bool {
        self.now.is_none()
    }

    /// There is nothing.
    pub(crate) fn forget(&mut self) {
        self.now = Some(Identifying::default());
    }
}

impl LogicalUnit {
    /// REPORT IDENTIFYING INFORMATION.
    pub(crate) fn identifying(&self, kind: Kind) -> Arc<[u8]> {
        self.lock().label.now.as_ref().map_or_else(Arc::default, |now| now.of(kind).clone())
    }

    /// SET IDENTIFYING INFORMATION; empty: there is none any more. Every other nexus is told 3Fh/05h when it is saved.
    pub(crate) fn set_identifying(&self, by: &Path, kind: Kind, bytes: &[u8]) -> Action {
        let mut cold = self.lock();
        if cold.label.saving.is_busy() {
            return Action::Done(Outcome::BUSY);
        }
        let mut next = cold.label.now.clone().unwrap_or_default();
        *next.of_mut(kind) = bytes.into();
        if cold.label.now.as_ref() == Some(&next) {
            return Action::Done(Outcome::GOOD);
        }
        // The table has no such command where nothing can be kept.
        let Some((keeper, unit)) = self.keeper().zip(self.this()) else { return Sense::INVALID_OPCODE.into() };
        if !keeper.admits(by.nexus().initiator()) {
            return Action::Done(Outcome::BUSY);
        }
        let text = next.to_text();
        let ticket = cold.label.saving.begin((next, by.nexus().clone()));
        drop(cold);
        Action::Save(Box::new(Save::new(unit, ticket, Section::Identifying, text)))
    }

    /// A change has been saved: it counts now. Whether there is one.
    pub(crate) fn identifying_saved(&self, ticket: u64, saved: bool) -> bool {
        let mut cold = self.lock();
        let Some((next, by)) = cold.label.saving.end(ticket).filter(|_| saved) else { return false };
        cold.label.now = Some(next);
        cold.each_path(|path| {
            if !Arc::ptr_eq(path.nexus(), &by) {
                path.raise(Attention::DeviceIdentifierChanged);
            }
        });
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(text: &str) -> Option<Identifying> {
        Identifying::restored(Some(&Sections::from([("identifying".to_owned(), text.to_owned())])))
    }

    #[test]
    fn what_is_kept_comes_back_and_nothing_else() {
        let text = "device 00ff\ntext 6100\n";
        let both = kept(text).unwrap();
        assert_eq!((&both.of(Kind::Device)[..], &both.of(Kind::Text)[..]), (&[0, 0xFF][..], &b"a\0"[..]));
        assert_eq!(both.to_text(), text);
        assert_eq!(kept("text 6100\n").unwrap().to_text(), "text 6100\n");
        assert_eq!(kept(""), Some(Identifying::default()));
        let long = format!("device {}", "00".repeat(65));
        for wrong in ["device", "device ", "devise 00", "device 0", "device 00\ndevice 00", "text 00 00", "\n", &long] {
            assert_eq!(kept(wrong), None, "{wrong:?}");
        }
        assert_eq!(Identifying::restored(None), None);
    }
}
