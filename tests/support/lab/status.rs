//! Reads what `spp status --json` says.

use serde_json::Value;

/// The state word of a vhost port.
pub fn vhost_state(status: &Value, vhost: u32) -> Option<String> {
    let name = format!("vhost:{vhost}");
    let mut found = None;
    walk(status, &mut |object| {
        let named = |key: &str| object.get(key).and_then(Value::as_str) == Some(&name);
        if named("name") || named("port") {
            if let Some(state) = object.get("state").and_then(Value::as_str) {
                found.get_or_insert(state.to_owned());
            }
        }
    });
    found
}

/// The sum of all drop counters of one reason, over every port.
pub fn drops(status: &Value, reason: &str) -> u64 {
    let mut sum = 0;
    walk(status, &mut |object| {
        sum += object.get(reason).and_then(Value::as_u64).unwrap_or(0);
    });
    sum
}

fn walk(value: &Value, visit: &mut impl FnMut(&serde_json::Map<String, Value>)) {
    match value {
        Value::Object(object) => {
            visit(object);
            object.values().for_each(|inner| walk(inner, visit));
        }
        Value::Array(items) => items.iter().for_each(|inner| walk(inner, visit)),
        _ => {}
    }
}
