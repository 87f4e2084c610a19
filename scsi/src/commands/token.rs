//! POPULATE TOKEN and WRITE USING TOKEN (SBC-4, clauses 5.11 and 5.53), RECEIVE ROD TOKEN INFORMATION and REPORT ALL ROD
//! TOKENS (SPC-5, clauses 6.28 and 6.33). What tokens are is in [`crate::copy`].

use crate::commands::Call;
use crate::commands::copy::{LID4, find, finish, list_of, put_status, unknown};
use crate::copy::{self, CopyOrder, ListId, State};
use crate::{Action, Inventory, Outcome, Sense, Status};

/// LIST IDENTIFIER of the two that come with a list.
fn list_id(call: &Call<'_>) -> ListId {
    const AT: usize = 6;
    ListId { number: Some(call.cdb.be32(AT)), hold: true }
}

/// POPULATE TOKEN: the CDB.
pub(crate) fn populate(call: &mut Call<'_>, _: &dyn Inventory) -> Result<Action, Sense> {
    list_of(call, copy::LONGEST_RANGES)
}

/// POPULATE TOKEN: the list.
pub(crate) fn populate_list(call: &mut Call<'_>, list: &[u8]) -> Result<Action, Sense> {
    let populate = copy::populate(list, call.geometry)?;
    Ok(Action::Copy(Box::new(CopyOrder::populate(list_id(call), populate))))
}

/// WRITE USING TOKEN: the CDB.
pub(crate) fn write_using(call: &mut Call<'_>, _: &dyn Inventory) -> Result<Action, Sense> {
    list_of(call, copy::LONGEST_RANGES)
}

/// WRITE USING TOKEN: the list.
pub(crate) fn write_using_list(call: &mut Call<'_>, list: &[u8]) -> Result<Action, Sense> {
    let using = copy::use_token(list, call.geometry)?;
    Ok(Action::Copy(Box::new(CopyOrder::use_token(list_id(call), using))))
}

/// RECEIVE ROD TOKEN INFORMATION: how it goes, and the token if one was made.
pub(crate) fn information(call: &mut Call<'_>, _: &dyn Inventory) -> Result<Action, Sense> {
    let copy = find(call, call.cdb.be32(LID4))?;
    if !copy.is_about_tokens() {
        return Err(unknown());
    }
    put_status(call, &copy);
    let well = matches!(copy.state(), State::Ended(Outcome { status: Status::Good, .. }));
    match copy.token().filter(|_| well) {
        Some(token) => {
            // No CSCD descriptor has led to it: the ID in front of it is reserved.
            let len = token.bytes.len() as u32 + 2;
            call.data.put(&len.to_be_bytes());
            call.data.put(&[0; 2]);
            call.data.put(&*token.bytes);
        }
        None => call.data.put(&[0; 4]),
    }
    finish(call)
}

/// REPORT ALL ROD TOKENS: the asking initiator's, without what they are used by.
pub(crate) fn report_all(call: &mut Call<'_>, _: &dyn Inventory) -> Result<Action, Sense> {
    call.data.put(&[0; 8]);
    for token in call.unit.tokens_of(call.path) {
        call.data.put(&token);
    }
    finish(call)
}
