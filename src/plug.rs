//! `spp plug` and `spp unplug`: wiring by hand, on a node without etcd.

use serde_json::json;

use crate::cli::{Plug, Unplug};
use crate::client::Client;
use crate::fail::Failure;
use crate::output;

/// `spp plug`; returns when the wiring is live.
pub fn plug(args: &Plug) -> Result<(), Failure> {
    let mut body = json!({"mac_address": args.mac});
    if let Some(vlan) = args.vlan {
        body["vlan_id"] = vlan.into();
    }
    let answer = Client::new(&args.node.api).put(&format!("/v1/node/plugs/{}", args.vhost), &body)?;
    if args.json {
        return output::json(&answer);
    }
    let network = args.vlan.map_or("a flat network".to_owned(), |vlan| format!("VLAN {vlan}"));
    output::line(&format!("vhost {} plugged: {} on {network}", args.vhost, args.mac))
}

/// `spp unplug`; returns when nothing passes any more.
pub fn unplug(args: &Unplug) -> Result<(), Failure> {
    Client::new(&args.node.api).delete(&format!("/v1/node/plugs/{}", args.vhost))?;
    if args.json {
        return output::json(&json!({"vhost_id": args.vhost, "plugged": false}));
    }
    output::line(&format!("vhost {} unplugged", args.vhost))
}
