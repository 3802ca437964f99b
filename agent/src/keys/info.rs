//! What the control node asks for, as JSON: the values of bind_port and tap_info.
//!
//! Pure; whatever the bytes, the answer is a value or a reason. Fields nobody knows are ignored, numbers
//! written as text are taken and remarked on.

use std::ops::RangeInclusive;

use serde_json::{Map, Value};
use spp_drivers::MacAddr;

use super::{Name, PortId};
use crate::dataplane::Plug;

/// Longest value worth parsing, in bytes; the real ones have about 80 and 150.
const INFO_MAX_BYTES: usize = 4096;

/// Why a bind_port or tap_info value asks for nothing we can do. The text follows the key's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InfoError {
    /// Longer than any honest value.
    #[error("has {0} bytes")]
    TooLong(usize),
    /// Not a JSON object.
    #[error("is not a JSON object: {0}")]
    NotJson(String),
    /// A field is missing.
    #[error("has no {0}")]
    Missing(&'static str),
    /// A field is of the wrong kind or out of range.
    #[error("has a bad {field}: {value}")]
    Bad {
        /// The field.
        field: &'static str,
        /// Its value, shortened.
        value: String,
    },
}

/// A bind_port value that was understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BindPort {
    /// The wiring it asks for.
    pub plug: Plug,
    /// A number was given as text: accepted, and worth a log line, since the contract has integers.
    pub lenient: bool,
}

impl BindPort {
    /// Reads a bind_port value.
    pub fn parse(value: &[u8]) -> Result<BindPort, InfoError> {
        let mut fields = Fields::parse(value)?;
        let vhost = fields.integer("vhost_id", 0..=u64::from(u32::MAX))?;
        let vhost = vhost.ok_or(InfoError::Missing("vhost_id"))? as u32;
        let mac = fields.required("mac_address", station_mac)?;
        let vlan = fields.integer("vlan_id", 1..=4094)?.map(|vlan| vlan as u16);
        Ok(BindPort { plug: Plug { vhost, mac, vlan }, lenient: fields.lenient })
    }

    /// The value as the mechanism driver writes it.
    pub fn write(plug: &Plug) -> String {
        let vlan = plug.vlan.map_or(String::new(), |vlan| format!(", \"vlan_id\": {vlan}"));
        format!("{{\"mac_address\": \"{}\", \"vhost_id\": {}{vlan}}}", plug.mac, plug.vhost)
    }
}

/// A tap_info value that was understood: frames of one port are copied to another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TapInfo {
    /// The port whose frames are copied.
    pub source_port: PortId,
    /// The port that gets the copies.
    pub service_port: PortId,
    /// The mirror for frames towards the source's guest.
    pub mirror_in: Option<u32>,
    /// The mirror for frames from the source's guest; at least one of the two is there.
    pub mirror_out: Option<u32>,
    /// A number was given as text.
    pub lenient: bool,
}

impl TapInfo {
    /// Reads a tap_info value.
    pub fn parse(value: &[u8]) -> Result<TapInfo, InfoError> {
        let mut fields = Fields::parse(value)?;
        let source_port = fields.required("source_port", port_id)?;
        let service_port = fields.required("service_port", port_id)?;
        let mirror_in = fields.integer("mirror_in", 0..=u64::from(u32::MAX))?.map(|id| id as u32);
        let mirror_out = fields.integer("mirror_out", 0..=u64::from(u32::MAX))?.map(|id| id as u32);
        if mirror_in.is_none() && mirror_out.is_none() {
            return Err(InfoError::Missing("mirror_in and no mirror_out"));
        }
        if mirror_in == mirror_out {
            return Err(fields.bad("mirror_out"));
        }
        if source_port == service_port {
            return Err(fields.bad("service_port"));
        }
        Ok(TapInfo { source_port, service_port, mirror_in, mirror_out, lenient: fields.lenient })
    }

    /// Its mirrors, one or two.
    pub fn mirrors(&self) -> impl Iterator<Item = u32> {
        self.mirror_in.into_iter().chain(self.mirror_out)
    }
}

/// The fields of a value.
struct Fields {
    map: Map<String, Value>,
    lenient: bool,
}

impl Fields {
    fn parse(value: &[u8]) -> Result<Fields, InfoError> {
        if value.len() > INFO_MAX_BYTES {
            return Err(InfoError::TooLong(value.len()));
        }
        let map = serde_json::from_slice(value).map_err(|e| InfoError::NotJson(e.to_string()))?;
        Ok(Fields { map, lenient: false })
    }

    /// A field that says something; null says nothing.
    fn present(&self, field: &str) -> Option<&Value> {
        self.map.get(field).filter(|value| !value.is_null())
    }

    fn bad(&self, field: &'static str) -> InfoError {
        let value = self.present(field).map_or(String::new(), Value::to_string);
        InfoError::Bad { field, value: value.chars().take(64).collect() }
    }

    /// A field that must be there and that `read` understands.
    fn required<T>(&self, field: &'static str, read: impl Fn(&str) -> Option<T>) -> Result<T, InfoError> {
        let value = self.present(field).ok_or(InfoError::Missing(field))?;
        value.as_str().and_then(read).ok_or_else(|| self.bad(field))
    }

    fn integer(&mut self, field: &'static str, range: RangeInclusive<u64>) -> Result<Option<u64>, InfoError> {
        let Some(value) = self.present(field) else { return Ok(None) };
        let as_text = || value.as_str().filter(|s| s.bytes().all(|b| b.is_ascii_digit()))?.parse().ok();
        let (number, lenient) = match value.as_u64() {
            Some(number) => (Some(number), false),
            None => (as_text(), true),
        };
        let number = number.filter(|number| range.contains(number)).ok_or_else(|| self.bad(field))?;
        self.lenient |= lenient;
        Ok(Some(number))
    }
}

/// The MAC of one station: a group address or all zeros cannot be a VM's.
fn station_mac(text: &str) -> Option<MacAddr> {
    let mac: MacAddr = text.parse().ok()?;
    (!mac.is_group() && mac.0 != [0; 6]).then_some(mac)
}

fn port_id(text: &str) -> Option<PortId> {
    Name::new(text).ok()
}
