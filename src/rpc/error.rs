//! What an RPC method answers when it refuses.
//!
//! Code and message are SPDK's for the same condition of the same method (orchestrators match on both, and SPDK is not
//! consistent between methods); `data.reason` is ours: one word per condition, the same in every method, stable.
//! `data.detail` says what exactly and what to do about it.

use serde_json::{Map, Value, json};

/// Codes of JSON-RPC 2.0.
pub mod code {
    /// Bad JSON; the connection is closed after it.
    pub const PARSE_ERROR: i64 = -32700;
    /// Good JSON, but no request.
    pub const INVALID_REQUEST: i64 = -32600;
    /// No such method.
    pub const METHOD_NOT_FOUND: i64 = -32601;
    /// The parameters are refused.
    pub const INVALID_PARAMS: i64 = -32602;
    /// Everything else.
    pub const INTERNAL_ERROR: i64 = -32603;
}

/// System error numbers in answers, by the names of errno(3).
pub mod errno {
    /// No such file or directory.
    pub const ENOENT: i32 = 2;
    /// Input/output error.
    pub const EIO: i32 = 5;
    /// Cannot allocate memory.
    pub const ENOMEM: i32 = 12;
    /// Permission denied.
    pub const EACCES: i32 = 13;
    /// Device or resource busy.
    pub const EBUSY: i32 = 16;
    /// File exists.
    pub const EEXIST: i32 = 17;
    /// No such device.
    pub const ENODEV: i32 = 19;
    /// Invalid argument.
    pub const EINVAL: i32 = 22;
    /// No space left on device.
    pub const ENOSPC: i32 = 28;
    /// File name too long.
    pub const ENAMETOOLONG: i32 = 36;
    /// Operation not supported.
    pub const EOPNOTSUPP: i32 = 95;
    /// Connection timed out.
    pub const ETIMEDOUT: i32 = 110;
    /// Operation already in progress; here: over.
    pub const EALREADY: i32 = 114;
    /// Operation canceled.
    pub const ECANCELED: i32 = 125;
}

/// A refused request.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{message} ({code}, {reason}){}", detail.as_deref().map(|detail| format!(": {detail}")).unwrap_or_default())]
pub struct RpcError {
    /// The number SPDK uses for it.
    pub code: i64,
    /// The text SPDK uses for it.
    pub message: String,
    /// One stable word for the condition.
    pub reason: &'static str,
    /// What exactly, for people.
    pub detail: Option<String>,
}

impl RpcError {
    /// An error of this code, message and reason.
    #[must_use]
    pub fn new(code: i64, message: impl Into<String>, reason: &'static str) -> Self {
        RpcError { code, message: message.into(), reason, detail: None }
    }

    /// `-errno` with the text of strerror(3), as most of SPDK's bdev methods answer.
    #[must_use]
    pub fn errno(errno: i32, reason: &'static str) -> Self {
        Self::new(-i64::from(errno), strerror(errno), reason)
    }

    /// -32602 with the text of strerror(3), as SPDK's vhost methods answer.
    #[must_use]
    pub fn params(errno: i32, reason: &'static str) -> Self {
        Self::new(code::INVALID_PARAMS, strerror(errno), reason)
    }

    /// Adds what exactly went wrong.
    #[must_use]
    pub fn detail(mut self, detail: impl std::fmt::Display) -> Self {
        self.detail = Some(detail.to_string());
        self
    }

    /// The same condition under another code and message.
    #[must_use]
    pub fn recoded(mut self, code: i64, message: impl Into<String>) -> Self {
        self.code = code;
        self.message = message.into();
        self
    }

    /// The `error` member of a response.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let mut data = Map::new();
        data.insert("reason".into(), self.reason.into());
        if let Some(detail) = &self.detail {
            data.insert("detail".into(), detail.as_str().into());
        }
        json!({"code": self.code, "message": self.message, "data": data})
    }
}

/// The text that strerror(3) has for the numbers that are used here.
#[must_use]
pub fn strerror(number: i32) -> String {
    match number {
        errno::ENOENT => "No such file or directory".into(),
        errno::EIO => "Input/output error".into(),
        errno::ENOMEM => "Cannot allocate memory".into(),
        errno::EACCES => "Permission denied".into(),
        errno::EBUSY => "Device or resource busy".into(),
        errno::EEXIST => "File exists".into(),
        errno::ENODEV => "No such device".into(),
        errno::EINVAL => "Invalid argument".into(),
        errno::ENOSPC => "No space left on device".into(),
        errno::ENAMETOOLONG => "File name too long".into(),
        errno::EOPNOTSUPP => "Operation not supported".into(),
        errno::ETIMEDOUT => "Connection timed out".into(),
        other => {
            let text = std::io::Error::from_raw_os_error(other).to_string();
            text.split(" (os error").next().unwrap_or_default().to_owned()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_texts_are_those_of_the_c_library() {
        for number in [2, 5, 12, 13, 16, 17, 19, 22, 28, 36, 95, 110] {
            let theirs = std::io::Error::from_raw_os_error(number).to_string();
            assert_eq!(format!("{} (os error {number})", strerror(number)), theirs);
        }
        assert_eq!(strerror(1), "Operation not permitted");
    }

    #[test]
    fn every_error_carries_a_reason() {
        let error = RpcError::errno(errno::ENODEV, "not_found").detail("no bdev 'x'");
        assert_eq!(
            error.to_json(),
            json!({"code": -19, "message": "No such device",
                   "data": {"reason": "not_found", "detail": "no bdev 'x'"}})
        );
        assert_eq!(RpcError::params(errno::EEXIST, "exists_same").code, -32602);
    }
}
