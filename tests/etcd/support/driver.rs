//! The control node's side of the keys, step by step as networking-spp's mechanism driver has it.

use std::collections::BTreeMap;

use etcd_client::{Client, Compare, CompareOp, GetOptions, Txn, TxnOp};

use super::until;

/// The keys of one host, from the driver's side.
pub struct Driver {
    pub client: Client,
    pub host: String,
}

impl Driver {
    pub fn new(client: Client, host: &str) -> Driver {
        Driver { client, host: host.into() }
    }

    pub fn key(&self, family: &str, port: &str) -> String {
        format!("/spp/openstack/{family}/{}/{port}", self.host)
    }

    /// `None` -> port id, by compare on the value.
    pub async fn take(&mut self, port: &str, physnet: &str, vhost: u32) -> bool {
        let key = self.key("vhost", &format!("{physnet}/{vhost}"));
        let free = Compare::value(key.clone(), CompareOp::Equal, "None");
        let take = Txn::new().when([free]).and_then([TxnOp::put(key, port, None)]);
        self.client.txn(take).await.unwrap().succeeded()
    }

    pub async fn put(&mut self, family: &str, port: &str, value: impl Into<Vec<u8>>) {
        self.client.put(self.key(family, port), value, None).await.unwrap();
    }

    /// All steps of a bind on a flat or VLAN network.
    pub async fn bind(&mut self, port: &str, (physnet, vhost): (&str, u32), mac: &str, vlan: Option<u16>) {
        assert!(self.take(port, physnet, vhost).await, "vhost {vhost} is not free");
        let vlan = vlan.map_or(String::new(), |vlan| format!(", \"vlan_id\": {vlan}"));
        let value = format!("{{\"vhost_id\": {vhost}, \"mac_address\": \"{mac}\"{vlan}}}");
        self.put("bind_port", port, value).await;
        self.put("action", port, "plug").await;
    }

    /// Unplugs, if there is an action key.
    pub async fn unbind(&mut self, port: &str) {
        if self.get("action", port).await.is_some() {
            self.put("action", port, "unplug").await;
        }
    }

    pub async fn get(&mut self, family: &str, port: &str) -> Option<String> {
        let answer = self.client.get(self.key(family, port), None).await.unwrap();
        answer.kvs().first().map(|kv| kv.value_str().unwrap().to_string())
    }

    pub async fn until_up(&mut self, port: &str) {
        let (client, key) = (self.client.clone(), self.key("port_status", port));
        until(&format!("{port} is up"), || {
            let (mut client, key) = (client.clone(), key.clone());
            async move {
                client
                    .get(key, None)
                    .await
                    .is_ok_and(|a| a.kvs().first().is_some_and(|kv| kv.value() == b"up"))
            }
        })
        .await;
    }

    /// Until no key but a vhost's names the port.
    pub async fn until_gone(&mut self, port: &str) {
        let keys: Vec<String> =
            ["bind_port", "port_status", "action"].map(|family| self.key(family, port)).into();
        let client = self.client.clone();
        until(&format!("{port} is gone"), || {
            let (mut client, keys) = (client.clone(), keys.clone());
            async move {
                let gets: Vec<TxnOp> = keys.into_iter().map(|key| TxnOp::get(key, None)).collect();
                let Ok(answer) = client.txn(Txn::new().and_then(gets)).await else { return false };
                answer
                    .op_responses()
                    .iter()
                    .all(|one| matches!(one, etcd_client::TxnOpResponse::Get(get) if get.count() == 0))
            }
        })
        .await;
    }
}

/// Everything below `prefix`: key -> (value, revision of its last change).
pub async fn dump(client: &mut Client, prefix: &str) -> BTreeMap<String, (String, i64)> {
    let answer = client.get(prefix, Some(GetOptions::new().with_prefix())).await.unwrap();
    let entry = |kv: &etcd_client::KeyValue| {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (text(kv.key()), (text(kv.value()), kv.mod_revision()))
    };
    answer.kvs().iter().map(entry).collect()
}

/// The values alone.
pub async fn values(client: &mut Client, prefix: &str) -> Vec<(String, String)> {
    dump(client, prefix).await.into_iter().map(|(key, (value, _))| (key, value)).collect()
}
