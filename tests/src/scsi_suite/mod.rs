//! Public suites that judge a SCSI target, and what is expected of them: libiscsi's `iscsi-test-cu` counted honestly
//! ([`Report`]) against a list in the repository ([`List`]), and tools of sg3_utils against a [`Transcript`].
//!
//! The expectations lie in `tests/scsi_suite`. They state what is, not what is wished: a run fails when something gets
//! worse, and just so when something gets better and the list does not say it.

mod list;
mod report;
mod transcript;

pub use list::{Cause, Expected, List};
pub use report::{CONDENSE, Outcome, Report};
pub use transcript::Transcript;
