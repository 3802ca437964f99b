//! From [`NodeConfig`] to the JSON text that devstack would have written, byte for byte: the same key
//! order, and a blank behind each comma and colon.

use std::io;

use serde::Serialize;
use serde_json::ser::Formatter;

use super::{ComponentConfig, ConfigError, Form, MirrorConfig, NodeConfig, VfConfig};
use crate::names::PortName;

/// The document's list: exactly its four keys, in its order.
#[derive(Serialize)]
struct ListVf<'a> {
    num_vhost: u32,
    pci_address: &'a str,
    physical_network: &'a str,
    core_mask: String,
}

/// What devstack's later script writes, in its order.
#[derive(Serialize)]
struct DictVf<'a> {
    physical_network: &'a str,
    pci_address: &'a str,
    num_vhost: u32,
    core_mask: String,
    components: Vec<Component>,
}

#[derive(Serialize)]
struct Component {
    core: usize,
    #[serde(rename = "type")]
    kind: &'static str,
    name: String,
    rx_port: Vec<PortName>,
    tx_port: Vec<PortName>,
}

#[derive(Serialize)]
struct Mirror {
    core: usize,
    ports: [PortName; 2],
}

#[derive(Serialize)]
struct Dict<'a> {
    vf: Vec<DictVf<'a>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    mirror: Vec<Mirror>,
}

impl NodeConfig {
    /// The JSON value of the configuration key. The dict form spells all components out; the list
    /// form has no place for components and mirrors, and a configuration that has them is refused.
    pub fn to_json(&self, form: Form) -> Result<String, ConfigError> {
        match form {
            Form::List => {
                if !self.mirrors.is_empty() || self.vfs.iter().any(|vf| vf.components.is_some()) {
                    return Err(ConfigError::Shape(
                        "the list form can't hold components and mirrors".to_owned(),
                    ));
                }
                Ok(python_json(&self.vfs.iter().map(list_vf).collect::<Vec<_>>()))
            }
            Form::Dict => {
                let vf = self.vfs.iter().enumerate().map(|(i, vf)| self.dict_vf(i, vf));
                let mirror = self.mirrors.iter().map(|&MirrorConfig { core, ports }| Mirror { core, ports });
                Ok(python_json(&Dict { vf: vf.collect::<Result<_, _>>()?, mirror: mirror.collect() }))
            }
        }
    }

    fn dict_vf<'a>(&self, index: usize, vf: &'a VfConfig) -> Result<DictVf<'a>, ConfigError> {
        Ok(DictVf {
            physical_network: &vf.physical_network,
            pci_address: vf.address.text(),
            num_vhost: vf.num_vhost,
            core_mask: vf.core_mask.to_string(),
            components: self.components(index)?.into_iter().map(component).collect(),
        })
    }
}

fn list_vf(vf: &VfConfig) -> ListVf<'_> {
    ListVf {
        num_vhost: vf.num_vhost,
        pci_address: vf.address.text(),
        physical_network: &vf.physical_network,
        core_mask: vf.core_mask.to_string(),
    }
}

fn component(component: ComponentConfig) -> Component {
    let ComponentConfig { core, kind, name, rx, tx } = component;
    Component { core, kind: kind.name(), name, rx_port: rx, tx_port: tx }
}

/// JSON with Python's default separators.
fn python_json(value: &impl Serialize) -> String {
    let mut out = Vec::new();
    let mut serializer = serde_json::Serializer::with_formatter(&mut out, Spaced);
    value.serialize(&mut serializer).expect("strings and numbers always serialise into memory");
    String::from_utf8(out).expect("serde_json writes UTF-8")
}

struct Spaced;

impl Formatter for Spaced {
    fn begin_array_value<W: ?Sized + io::Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }

    fn begin_object_key<W: ?Sized + io::Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        if first { Ok(()) } else { out.write_all(b", ") }
    }

    fn begin_object_value<W: ?Sized + io::Write>(&mut self, out: &mut W) -> io::Result<()> {
        out.write_all(b": ")
    }
}
