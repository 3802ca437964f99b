//! What the data plane reads as bytes, from files, etcd and the wire: configurations, mappings, core masks, frames. Checked: an answer or an error, never a panic; what was read can be written and read again.

use spp_pipeline::config::{Form, NodeConfig};
use spp_pipeline::cores::CoreMask;
use spp_pipeline::frame;

use crate::Input;

/// The target.
pub fn text(data: &[u8]) {
    let mut input = Input::new(data);
    let which = input.below(4);
    let rest = input.bytes(usize::MAX);
    match which {
        0 => configuration(rest),
        1 => {
            let _ = NodeConfig::from_mappings(&String::from_utf8_lossy(rest));
        }
        2 => {
            let text = String::from_utf8_lossy(rest);
            let _ = text.parse::<CoreMask>();
            let _ = CoreMask::from_list(&text);
        }
        _ => {
            let _ = frame::parse(rest);
        }
    }
}

fn configuration(bytes: &[u8]) {
    let Ok(config) = NodeConfig::parse(bytes) else { return };
    for form in [Form::List, Form::Dict] {
        let Ok(json) = config.to_json(form) else { continue };
        let again = NodeConfig::parse(json.as_bytes()).expect("what was written can be read");
        assert_eq!(again.layout(), config.layout());
    }
}
