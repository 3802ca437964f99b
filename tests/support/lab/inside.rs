//! The static release `spp` as a node inside a machine: started, asked and stopped through its own command line there,
//! with VMs of DPDK's behind it.

use super::echo::{Echo, FRAMES, exchange};
use super::frame::Mac;
use super::machine::Machine;
use super::status::{vhost_state, vhost_waits_for};
use super::testpmd::Testpmd;
use super::wait_for;
use super::wire::Wire;
use serde_json::Value;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(120);

/// Starts `spp run` with these options and waits for its API. What it says is in `spp.log`.
///
/// # Panics
/// If it does not answer.
pub fn start_node(machine: &mut Machine, options: &str) {
    machine.sh(&format!(
        "rm -f /run/spp.exit
         (spp run {options} --fold-cores >>/run/lab/spp.log 2>&1 &
          echo $! >/run/spp.pid; wait $! && echo 0 >/run/spp.exit || echo $? >/run/spp.exit) >/dev/null 2>&1 &"
    ));
    machine.wait_sh("the node's API", PATIENCE, "cat spp.log; spp status");
}

/// Waits until frames can pass these vhost ports.
pub fn wait_running(machine: &mut Machine, vhosts: &[u32]) {
    for vhost in vhosts {
        wait_for("the VMs' rings to run", PATIENCE, || {
            let status = status(machine);
            match vhost_state(&status, *vhost) {
                Some("running") => Ok(()),
                other => Err(format!("vhost:{vhost} is {other:?}, {:?}", vhost_waits_for(&status, *vhost))),
            }
        });
    }
}

/// VMs behind the node's first vhost ports (DPDK's virtio-user) that send every frame back with its addresses swapped;
/// returns when all their rings run.
pub fn start_vms(machine: &mut Machine, n_vms: usize) -> Testpmd {
    let vdev = |n| format!("--vdev net_virtio_user{n},path=/tmp/sock{n},server=1,queues=1");
    let vdevs: Vec<String> = (0..n_vms).map(vdev).collect();
    let eal = format!("--single-file-segments --no-pci {}", vdevs.join(" "));
    let app = "--forward-mode=macswap --port-topology=loop --auto-start --max-pkt-len=9022 --enable-scatter";
    let testpmd = Testpmd::start(machine, "vms", &eal, app);
    wait_running(machine, &(0..n_vms as u32).collect::<Vec<_>>());
    testpmd
}

/// Plugs a VM behind each of two NICs, the second one in a VLAN.
pub fn plug_echoes<'a>(machine: &mut Machine, wires: &'a [Wire; 2]) -> [Echo<'a>; 2] {
    std::array::from_fn(|n| {
        let mac = Mac([0xfa, 0x16, 0x3e, 0, 0, n as u8]);
        let vlan = (n == 1).then_some(100);
        let tag = vlan.map_or(String::new(), |vlan| format!("--vlan {vlan}"));
        machine.sh(&format!("spp plug --vhost {n} --mac {mac} {tag}"));
        Echo { wire: &wires[n], mac, vlan }
    })
}

/// [`exchange`] with all VMs of these NICs (port, names of the card's counters, how many VMs it has), each of which
/// counts every frame once.
pub fn exchange_counted(machine: &mut Machine, echoes: &[Echo<'_>], nics: &[(&str, &[&str], u64)]) {
    let counted: Vec<_> = nics.iter().map(|(port, names, _)| (*port, *names)).collect();
    let more: Vec<u64> = nics.iter().map(|(_, _, n_vms)| n_vms * u64::from(FRAMES)).collect();
    let wanted = Counts::of(machine, &counted).plus(&more);
    exchange(echoes, 46);
    wait_for("the counters", PATIENCE, || match Counts::of(machine, &counted) {
        now if now == wanted => Ok(()),
        now => Err(format!("{now:?}, not {wanted:?}")),
    });
}

/// `spp status --json`.
pub fn status(machine: &mut Machine) -> Value {
    json(machine, "status")
}

/// `spp nic stats PORT --json`.
pub fn nic_stats(machine: &mut Machine, port: &str) -> Value {
    json(machine, &format!("nic stats {port}"))
}

/// What `spp nic list --json` says of one NIC.
pub fn nic_listed(machine: &mut Machine, address: &str) -> Value {
    let nics = json(machine, "nic list");
    let mut rows = nics.as_array().into_iter().flatten();
    rows.find(|nic| nic["address"] == address).unwrap_or_else(|| panic!("no {address}: {nics}")).clone()
}

/// `spp nic list` says that our driver has it, through vfio-pci and behind an IOMMU.
pub fn assert_driven(machine: &mut Machine, address: &str, port: &str, driver: &str) {
    let nic = nic_listed(machine, address);
    assert_eq!((&nic["spp_driver"], &nic["port"]), (&driver.into(), &port.into()), "{nic}");
    assert_eq!((&nic["kernel_driver"], &nic["drivable"]), (&"vfio-pci".into(), &true.into()), "{nic}");
    assert!(nic["iommu_group"].is_u64(), "{nic}");
}

fn json(machine: &mut Machine, command: &str) -> Value {
    let text = machine.sh(&format!("spp {command} --json"));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{command}: {error}: {text}"))
}

/// Waits until `spp nic stats` has this to say of the link.
pub fn wait_nic_link(machine: &mut Machine, port: &str, link: &str) {
    wait_for("the node's word on the link", PATIENCE, || match &nic_stats(machine, port)["link"] {
        now if now == link => Ok(()),
        now => Err(format!("{port} is {now}, not {link}")),
    });
}

/// SIGTERM, which must end it with status 0.
pub fn stop_node(machine: &mut Machine) {
    machine.sh("kill $(cat /run/spp.pid)
         for _ in $(seq 300); do
             [ -s /run/spp.exit ] && exit $(cat /run/spp.exit)
             sleep 0.1
         done
         echo 'still there after SIGTERM'; exit 1");
}

/// What NICs have received and sent since their node started: packets of the queues, then counters of the cards by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Counts(Vec<Vec<u64>>);

impl Counts {
    /// Of these ports, with the names of their cards' counters.
    pub fn of(machine: &mut Machine, nics: &[(&str, &[&str])]) -> Counts {
        let count = |(port, names): &(&str, &[&str])| {
            let stats = nic_stats(machine, port);
            let number = |value: &Value| value.as_u64().unwrap_or_else(|| panic!("{stats}"));
            let queues = [number(&stats["rx"]["packets"]), number(&stats["tx"]["packets"])];
            queues.into_iter().chain(names.iter().map(|name| number(&stats["device"][name]))).collect()
        };
        Counts(nics.iter().map(count).collect())
    }

    /// With so many frames more in each count of each NIC.
    pub fn plus(&self, frames: &[u64]) -> Counts {
        let grown = |(counts, more): (&Vec<u64>, &u64)| counts.iter().map(|count| count + more).collect();
        Counts(self.0.iter().zip(frames).map(grown).collect())
    }
}
