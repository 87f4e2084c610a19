//! JSON-RPC 2.0 requests and responses, as liberal and as strict as SPDK: `jsonrpc` may be absent, `params` may be
//! absent, null, an object or an array, an error is answered even to a notification, and a member that is not known is
//! refused (a misspelt `params` would otherwise run a method without them).

use serde_json::{Map, Value, json};

use super::error::{RpcError, code};

/// One request, checked for form.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// Its method.
    pub method: String,
    /// Its parameters; `Null` if there are none.
    pub params: Value,
    /// What the response is to carry; `None`: a notification.
    pub id: Option<Value>,
}

/// A value from the stream: one request or a batch of them, each good or refused.
#[derive(Clone, Debug, PartialEq)]
pub enum Message {
    /// One.
    Single(Incoming),
    /// An array of them, answered by an array.
    Batch(Vec<Incoming>),
}

/// A request, or the response that refuses it.
pub type Incoming = Result<Request, Box<Refused>>;

/// A value that is no request.
#[derive(Clone, Debug, PartialEq)]
pub struct Refused {
    /// The id, where one could be made out.
    pub id: Value,
    /// Why.
    pub error: RpcError,
}

/// Parses one value.
///
/// # Errors
/// The -32700 or -32600 to answer; after the former the connection ends.
pub fn parse(bytes: &[u8]) -> Result<Message, RpcError> {
    let value: Value = serde_json::from_slice(bytes)
        .map_err(|error| RpcError::new(code::PARSE_ERROR, "Parse error", "parse_error").detail(error))?;
    match value {
        Value::Array(members) if members.is_empty() => Err(invalid("a batch must hold at least one request")),
        Value::Array(members) => Ok(Message::Batch(members.into_iter().map(request).collect())),
        Value::Object(_) => Ok(Message::Single(request(value))),
        _ => Err(invalid("a request is a JSON object, a batch an array of them")),
    }
}

fn invalid(detail: impl std::fmt::Display) -> RpcError {
    RpcError::new(code::INVALID_REQUEST, "Invalid Request", "invalid_request").detail(detail)
}

fn request(value: Value) -> Incoming {
    let Value::Object(mut members) = value else {
        return Err(Box::new(Refused { id: Value::Null, error: invalid("a request is a JSON object") }));
    };
    let id = members.remove("id");
    let echo = match &id {
        Some(id @ (Value::String(_) | Value::Number(_))) => id.clone(),
        _ => Value::Null,
    };
    check(members, id).map_err(|error| Box::new(Refused { id: echo, error }))
}

fn check(mut members: Map<String, Value>, id: Option<Value>) -> Result<Request, RpcError> {
    let id = match id {
        None | Some(Value::Null) => None,
        Some(id @ (Value::String(_) | Value::Number(_))) => Some(id),
        Some(_) => return Err(invalid("id must be a string, a number or null")),
    };
    match members.remove("jsonrpc") {
        None => {}
        Some(Value::String(version)) if version == "2.0" => {}
        Some(other) => return Err(invalid(format!("jsonrpc must be \"2.0\", not {other}"))),
    }
    let method = match members.remove("method") {
        Some(Value::String(method)) => method,
        Some(_) => return Err(invalid("method must be a string")),
        None => return Err(invalid("method is missing")),
    };
    let params = match members.remove("params") {
        None => Value::Null,
        Some(params @ (Value::Null | Value::Object(_) | Value::Array(_))) => params,
        Some(_) => return Err(invalid("params must be an object")),
    };
    if let Some(name) = members.keys().next() {
        return Err(invalid(format!("unknown member '{name}'")));
    }
    Ok(Request { method, params, id })
}

/// The response to a request.
#[must_use]
pub fn response(id: &Value, outcome: &Result<Value, RpcError>) -> Value {
    match outcome {
        Ok(result) => json!({"jsonrpc": "2.0", "id": id, "result": result}),
        Err(error) => json!({"jsonrpc": "2.0", "id": id, "error": error.to_json()}),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn single(text: &str) -> Incoming {
        match parse(text.as_bytes()) {
            Ok(Message::Single(incoming)) => incoming,
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn params_may_be_left_out_in_every_way() {
        for text in [r#"{"method":"m","id":1}"#, r#"{"jsonrpc":"2.0","method":"m","id":1,"params":null}"#] {
            let request = single(text).expect("good");
            assert_eq!((request.params, request.id), (Value::Null, Some(json!(1))));
        }
        assert_eq!(single(r#"{"method":"m","params":{},"id":"a"}"#).expect("good").params, json!({}));
        assert_eq!(single(r#"{"method":"m","params":[]}"#).expect("good").id, None);
        assert_eq!(single(r#"{"method":"m","id":null}"#).expect("good").id, None);
    }

    #[test]
    fn what_is_no_request_is_refused_with_its_id() {
        for (text, id) in [
            (r#"{"id":7}"#, json!(7)),
            (r#"{"method":1,"id":"x"}"#, json!("x")),
            (r#"{"method":"m","id":[]}"#, Value::Null),
            (r#"{"method":"m","id":{},"params":3}"#, Value::Null),
            (r#"{"method":"m","params":3,"id":9}"#, json!(9)),
            (r#"{"method":"m","jsonrpc":"1.0","id":2}"#, json!(2)),
            (r#"{"method":"m","parms":{},"id":2}"#, json!(2)),
        ] {
            let refused = single(text).expect_err("no request");
            assert_eq!((refused.error.code, refused.error.reason), (-32600, "invalid_request"), "{text}");
            assert_eq!(refused.id, id, "{text}");
        }
    }

    #[test]
    fn batches_and_scalars() {
        assert!(matches!(parse(b"[]"), Err(error) if error.code == -32600));
        assert!(matches!(parse(b"3"), Err(error) if error.code == -32600));
        assert!(matches!(parse(b"{"), Err(error) if error.code == -32700));
        assert!(matches!(parse(b"[\"\xff\"]"), Err(error) if error.code == -32700));
        let Ok(Message::Batch(members)) = parse(br#"[{"method":"a","id":1}, 5]"#) else { panic!("a batch") };
        assert!(members[0].is_ok());
        assert!(members[1].is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes);
        }

        #[test]
        fn no_json_makes_it_panic(text in "[\\[{\"a-d:,0-9}\\] ]{0,40}") {
            let _ = parse(text.as_bytes());
        }
    }
}
