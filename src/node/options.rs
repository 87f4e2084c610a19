//! Options that are remembered for `save_config`.

use serde_json::{Map, Value};

use super::{Node, NodeError};

impl Node {
    /// Remembers parameters under a key, over what was remembered there before.
    ///
    /// # Errors
    /// If it cannot be saved.
    pub fn set_option(&self, key: &str, params: Map<String, Value>) -> Result<(), NodeError> {
        let mut changes = self.change();
        let mut next = changes.document.clone();
        let kept = next.options.entry(key).or_insert_with(|| Value::Object(Map::new()));
        match kept {
            Value::Object(kept) => kept.extend(params),
            other => *other = Value::Object(params),
        }
        changes.save_if_new(next)
    }
}
