//! Parameters: JSON to typed structs, as strict as SPDK about names and types, more liberal about "none" (`{}`, `[]`, null
//! and absent are the same, and so are a null member and an absent one).

use serde::de::{DeserializeOwned, Deserializer, Visitor, value::Error as FieldError};
use serde::forward_to_deserialize_any;
use serde_json::{Map, Value};

use super::error::{RpcError, code, strerror};

/// What a method answers to parameters that cannot be decoded. SPDK has no rule; each method has its habit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Habit {
    /// -32602 "Invalid parameters".
    Invalid,
    /// -32603 "spdk_json_decode_object failed": most bdev methods.
    Decode,
    /// -32602 "Invalid argument": the vhost methods and some others.
    Argument,
}

impl Habit {
    /// The error for parameters that are wrong in this way.
    #[must_use]
    pub fn error(self, detail: impl std::fmt::Display) -> RpcError {
        let (code, message) = match self {
            Habit::Invalid => (code::INVALID_PARAMS, "Invalid parameters".to_owned()),
            Habit::Decode => (code::INTERNAL_ERROR, "spdk_json_decode_object failed".to_owned()),
            Habit::Argument => (code::INVALID_PARAMS, strerror(super::error::errno::EINVAL)),
        };
        RpcError::new(code, message, "invalid_parameters").detail(detail)
    }
}

/// The parameters of a method that has none.
#[derive(Debug, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NoParams {}

/// Decodes parameters.
///
/// # Errors
/// The habitual error, with the member and the reason in its detail.
pub fn decode<P: DeserializeOwned>(params: Value, habit: Habit) -> Result<P, RpcError> {
    let members = members(params, habit)?;
    serde_json::from_value(Value::Object(members)).map_err(|error| habit.error(error))
}

/// The members of parameters, without those that are null.
///
/// # Errors
/// The habitual error for anything that is not an object.
pub fn members(params: Value, habit: Habit) -> Result<Map<String, Value>, RpcError> {
    match params {
        Value::Null => Ok(Map::new()),
        Value::Array(members) if members.is_empty() => Ok(Map::new()),
        Value::Object(mut members) => {
            members.retain(|_, value| !value.is_null());
            Ok(members)
        }
        _ => Err(habit.error("parameters are given by name, in an object")),
    }
}

/// The names of the parameters that `P` takes, in order: asks its `Deserialize` implementation.
#[must_use]
pub fn names<P: DeserializeOwned>() -> &'static [&'static str] {
    let mut found: &'static [&'static str] = &[];
    let _ = P::deserialize(Names(&mut found));
    found
}

struct Names<'a>(&'a mut &'static [&'static str]);

impl<'de> Deserializer<'de> for Names<'_> {
    type Error = FieldError;

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        fields: &'static [&'static str],
        _visitor: V,
    ) -> Result<V::Value, FieldError> {
        *self.0 = fields;
        Err(serde::de::Error::custom("only the names are wanted"))
    }

    fn deserialize_any<V: Visitor<'de>>(self, _visitor: V) -> Result<V::Value, FieldError> {
        Err(serde::de::Error::custom("not a struct"))
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;
    use serde_json::json;

    #[derive(Debug, Deserialize, PartialEq)]
    #[serde(deny_unknown_fields)]
    struct Some2 {
        name: String,
        #[serde(default)]
        timeout: Option<u64>,
    }

    #[test]
    fn none_can_be_said_in_four_ways() {
        for none in [Value::Null, json!({}), json!([])] {
            assert!(decode::<NoParams>(none, Habit::Invalid).is_ok());
        }
        assert!(decode::<NoParams>(json!([1]), Habit::Invalid).is_err());
        assert!(decode::<NoParams>(json!({"x": 1}), Habit::Invalid).is_err());
        let some = decode::<Some2>(json!({"name": "a", "timeout": null}), Habit::Decode).expect("good");
        assert_eq!(some, Some2 { name: "a".into(), timeout: None });
    }

    #[test]
    fn what_is_wrong_is_named_in_the_habitual_way() {
        let cases = [
            (json!({}), "name"),
            (json!({"name": 3}), "string"),
            (json!({"name": "a", "tiemout": 3}), "tiemout"),
            (json!({"name": "a", "timeout": -1}), "-1"),
            (json!({"name": "a", "timeout": "1"}), "u64"),
        ];
        for (params, named) in cases {
            let error = decode::<Some2>(params, Habit::Decode).expect_err("bad");
            assert_eq!((error.code, error.message.as_str()), (-32603, "spdk_json_decode_object failed"));
            assert!(error.detail.as_deref().is_some_and(|detail| detail.contains(named)), "{error:?}");
        }
        assert_eq!(Habit::Argument.error("x").message, "Invalid argument");
        assert_eq!(Habit::Invalid.error("x").code, -32602);
    }

    #[test]
    fn names_come_from_the_struct() {
        assert_eq!(names::<Some2>(), ["name", "timeout"]);
        assert!(names::<NoParams>().is_empty());
        assert!(names::<u64>().is_empty());
    }
}
