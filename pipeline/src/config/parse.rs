//! From JSON to [`NodeConfig`], field by field, so that an error names the place.

use serde_json::{Map, Value};

use super::{ComponentConfig, ConfigError, DeviceAddr, Form, MAX_VHOSTS, MirrorConfig, NodeConfig, VfConfig};
use crate::cores::CoreMask;
use crate::names::{PortName, clip};

pub(super) fn parse(json: &[u8]) -> Result<NodeConfig, ConfigError> {
    let value: Value =
        serde_json::from_slice(json).map_err(|error| ConfigError::Shape(format!("not JSON: {error}")))?;
    let (form, vfs, mirrors) = match &value {
        Value::Array(vfs) => (Form::List, vfs, &[][..]),
        Value::Object(dict) => {
            let Some(Value::Array(vfs)) = dict.get("vf") else {
                return Err(shape("a dict needs \"vf\" with a list of NICs"));
            };
            let mirrors = match dict.get("mirror") {
                None | Some(Value::Null) => &[][..],
                Some(Value::Array(mirrors)) => mirrors,
                Some(_) => return Err(shape("\"mirror\" is a list of mirrors")),
            };
            (Form::Dict, vfs, mirrors)
        }
        _ => return Err(shape("write a list of NICs, or a dict with \"vf\"")),
    };
    if vfs.is_empty() {
        return Err(shape("there is no NIC in it"));
    }
    let vfs = vfs.iter().enumerate().map(|(i, vf)| parse_vf(i, vf)).collect::<Result<_, _>>()?;
    let mirrors = mirrors.iter().enumerate().map(|(i, m)| parse_mirror(i, m)).collect::<Result<_, _>>()?;
    Ok(NodeConfig { form, vfs, mirrors })
}

fn shape(what: &str) -> ConfigError {
    ConfigError::Shape(what.to_owned())
}

/// One JSON object and how errors call it.
struct Fields<'a> {
    place: String,
    /// In front of the keys in errors: `components[2].`
    prefix: String,
    map: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    fn new(place: &str, prefix: &str, value: &'a Value) -> Result<Fields<'a>, ConfigError> {
        let map = value.as_object();
        let map = map.ok_or_else(|| ConfigError::Shape(format!("{place}: {prefix} is not a dict")))?;
        Ok(Fields { place: place.to_owned(), prefix: prefix.to_owned(), map })
    }

    fn error(&self, key: &str, what: impl Into<String>) -> ConfigError {
        let field = format!("{}{key}", self.prefix);
        ConfigError::Field { nic: self.place.clone(), field, what: what.into() }
    }

    fn get(&self, key: &str) -> Result<&'a Value, ConfigError> {
        self.map.get(key).ok_or_else(|| self.error(key, "missing"))
    }

    fn text(&self, key: &str) -> Result<&'a str, ConfigError> {
        let value = self.get(key)?;
        value.as_str().ok_or_else(|| self.error(key, format!("{} is not a text in quotes", brief(value))))
    }

    fn number(&self, key: &str, allowed: std::ops::RangeInclusive<u64>) -> Result<u64, ConfigError> {
        let value = self.get(key)?;
        let number = value.as_u64().filter(|number| allowed.contains(number));
        let (low, high) = (allowed.start(), allowed.end());
        number.ok_or_else(|| {
            self.error(key, format!("{} is not a whole number from {low} to {high}", brief(value)))
        })
    }

    fn parsed<T: std::str::FromStr<Err: std::fmt::Display>>(&self, key: &str) -> Result<T, ConfigError> {
        self.text(key)?.parse().map_err(|error: T::Err| self.error(key, error.to_string()))
    }

    fn list(&self, key: &str) -> Result<&'a [Value], ConfigError> {
        let value = self.get(key)?;
        let list =
            value.as_array().ok_or_else(|| self.error(key, format!("{} is not a list", brief(value))))?;
        Ok(list)
    }

    fn ports(&self, key: &str) -> Result<Vec<PortName>, ConfigError> {
        let port = |value: &Value| {
            let text =
                value.as_str().ok_or_else(|| self.error(key, format!("{} is not a port", brief(value))))?;
            text.parse().map_err(|error: crate::names::NameError| self.error(key, error.to_string()))
        };
        self.list(key)?.iter().map(port).collect()
    }
}

/// A value for an error, on one line and not too long.
fn brief(value: &Value) -> String {
    match value {
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "a dict".to_owned(),
        Value::String(text) => format!("{:?}", clip(text)),
        other => other.to_string(),
    }
}

fn parse_vf(index: usize, value: &Value) -> Result<VfConfig, ConfigError> {
    let unnamed = format!("NIC {}", index + 1);
    let address = value.get("pci_address").and_then(Value::as_str);
    let place =
        address.map_or(unnamed.clone(), |address| format!("{unnamed} ({})", clip(address).escape_debug()));
    let fields = Fields::new(&place, "it", value).map(|fields| Fields { prefix: String::new(), ..fields })?;
    let address = DeviceAddr::parse(fields.text("pci_address")?);
    let address = address.map_err(|what| fields.error("pci_address", what))?;
    let physical_network = fields.text("physical_network")?;
    check_network(physical_network).map_err(|what| fields.error("physical_network", what))?;
    let num_vhost = fields.number("num_vhost", 1..=u64::from(MAX_VHOSTS))? as u32;
    let core_mask: CoreMask = fields.parsed("core_mask")?;
    let components = match fields.map.get("components") {
        None | Some(Value::Null) => None,
        Some(_) => {
            let list = fields.list("components")?;
            let components =
                list.iter().enumerate().map(|(n, component)| parse_component(&place, n, component));
            Some(components.collect::<Result<_, _>>()?)
        }
    };
    Ok(VfConfig { address, physical_network: physical_network.to_owned(), num_vhost, core_mask, components })
}

/// A physical network's name is part of etcd keys.
fn check_network(name: &str) -> Result<(), String> {
    let fits = (1..=255).contains(&name.len());
    if fits && name.chars().all(|c| c != '/' && !c.is_control() && !c.is_whitespace()) {
        return Ok(());
    }
    Err(format!("{:?} is not a network's name: write one without blanks and slashes", clip(name)))
}

fn parse_component(place: &str, n: usize, value: &Value) -> Result<ComponentConfig, ConfigError> {
    let prefix = format!("components[{n}].");
    let fields = Fields::new(place, prefix.trim_end_matches('.'), value)?;
    let fields = Fields { prefix, ..fields };
    Ok(ComponentConfig {
        core: fields.number("core", 0..=u64::from(u16::MAX))? as usize,
        kind: fields.parsed("type")?,
        name: fields.text("name")?.to_owned(),
        rx: fields.ports("rx_port")?,
        tx: fields.ports("tx_port")?,
    })
}

fn parse_mirror(index: usize, value: &Value) -> Result<MirrorConfig, ConfigError> {
    let place = format!("mirror {index}");
    let fields = Fields::new(&place, "it", value).map(|fields| Fields { prefix: String::new(), ..fields })?;
    let core = fields.number("core", 0..=u64::from(u16::MAX))? as usize;
    let ports = fields.ports("ports")?;
    let rings: Result<[PortName; 2], _> = ports.try_into();
    match rings {
        Ok(ports @ [PortName::Ring(_), PortName::Ring(_)]) => Ok(MirrorConfig { core, ports }),
        _ => Err(fields.error("ports", "write the two rings of the mirror")),
    }
}

/// `<device>#<physical network>#<vhosts>#<core mask>,...`: a device may hold commas, a mask can't.
pub(super) fn mappings(text: &str) -> Result<Vec<VfConfig>, ConfigError> {
    let (mut vfs, mut rest) = (Vec::new(), text.trim());
    while !rest.is_empty() || vfs.is_empty() {
        let (one, after) = split_mapping(rest).ok_or_else(|| {
            ConfigError::Shape(format!("mapping {:?}: write device#network#vhosts#mask", clip(rest)))
        })?;
        let [device, network, vhosts, mask] = one;
        let place = format!("NIC {} ({})", vfs.len() + 1, clip(device).escape_debug());
        let err = |field: &str, what: String| ConfigError::Field {
            nic: place.clone(),
            field: field.to_owned(),
            what,
        };
        check_network(network).map_err(|what| err("physical_network", what))?;
        let num_vhost =
            vhosts.bytes().all(|c| c.is_ascii_digit()).then(|| vhosts.parse::<u32>().ok()).flatten();
        let num_vhost = num_vhost.filter(|n| (1..=MAX_VHOSTS).contains(n)).ok_or_else(|| {
            err("num_vhost", format!("{:?} is not a whole number from 1 to {MAX_VHOSTS}", clip(vhosts)))
        })?;
        vfs.push(VfConfig {
            address: DeviceAddr::parse(device).map_err(|what| err("pci_address", what))?,
            physical_network: network.to_owned(),
            num_vhost,
            core_mask: mask.parse().map_err(|e: crate::cores::MaskError| err("core_mask", e.to_string()))?,
            components: None,
        });
        rest = after;
    }
    Ok(vfs)
}

/// The four fields of the first mapping, and the text behind its comma.
fn split_mapping(text: &str) -> Option<([&str; 4], &str)> {
    let (device, rest) = text.split_once('#')?;
    let (network, rest) = rest.split_once('#')?;
    let (vhosts, rest) = rest.split_once('#')?;
    let (mask, rest, more) = match rest.split_once(',') {
        Some((mask, rest)) => (mask, rest.trim_start(), true),
        None => (rest, "", false),
    };
    let trailing_comma = more && rest.is_empty();
    (!trailing_comma).then_some(([device.trim(), network.trim(), vhosts.trim(), mask.trim()], rest))
}
