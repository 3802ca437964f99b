//! The life of a VM under load, one socket from beginning to end: the machine is reset in the middle of bulk transfers, its driver
//! is unbound and bound again, memory is plugged and unplugged, DPDK's virtio-user takes the socket over from Linux'
//! driver and hands it back. Each time the port comes back, what is transferred arrives whole, two other ports of
//! the node lose no frame, and at the end every packet buffer is where it belongs.

#[path = "support/lab/mod.rs"]
mod lab;

use lab::machine::{Builder, Machine};
use lab::node::{Node, vf};
use lab::process::Daemon;
use lab::transfer::{self, Tools, tcp, udp};
use lab::{Lab, program, skipped, wait_for};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::time::Duration;
use vhost_hostile::backend::{Port, Role};
use vhost_hostile::frontend::{Frontend, Wish};
use vhost_hostile::ring::Layout;
use vhost_hostile::traffic::{NEIGHBOUR_MAC, Traffic, WIRE_MAC};

const PATIENCE: Duration = Duration::from_secs(180);
const MAC: &str = "fa:16:3e:00:00:0a";
const MAC_OF_PEER: &str = "fa:16:3e:00:00:0b";
const VM: &str = "10.77.0.1";
const PEER: &str = "10.77.0.2";
const N_QUEUES: usize = 4;
const BULK_KIB: u64 = 1024;
/// One block of memory as Linux can switch it on and off.
const DIMM_MIB: u32 = 128;

#[test]
fn vm_is_reset_reloads_its_driver_grows_shrinks_and_changes_hands_under_load_and_nobody_else_notices() {
    let name =
        "vm_is_reset_reloads_its_driver_grows_shrinks_and_changes_hands_under_load_and_nobody_else_notices";
    let found = Lab::find().and_then(|lab| Ok((lab, Tools::find()?)));
    let (lab, tools) = match found {
        Ok(found) => found,
        Err(reason) => return skipped(name, &reason),
    };
    let Some(testpmd) = program("dpdk-testpmd") else {
        return skipped(name, "no dpdk-testpmd here, run .ci/setup --tests");
    };
    let dir = tempfile::tempdir().expect("scratch space");
    let mut life = Life::start(&lab, &tools, dir.path());

    life.phase("reset under load", |life| {
        life.vm.reset();
        life.vm.wait_up();
        life.settle();
    });
    life.phase("driver unbound and bound under load", |life| {
        life.vm.sh("device=$(basename $(readlink /sys/class/net/eth0/device))
             echo $device >/sys/bus/virtio/drivers/virtio_net/unbind
             echo $device >/sys/bus/virtio/drivers/virtio_net/bind");
        life.settle();
    });
    life.phase("memory plugged under load", Life::grow);
    life.phase("memory unplugged under load", Life::shrink);
    life.phase("Linux to virtio-user and back", |life| life.change_hands(&lab, &tools, &testpmd));
    life.end();
}

/// The node, the VM, the network's end, and neighbours that pass frames to each other all the time.
struct Life {
    dir: PathBuf,
    node: Node,
    vm: Machine,
    peer: Machine,
    neighbours: Traffic,
}

impl Life {
    fn start(lab: &Lab, tools: &Tools, dir: &Path) -> Life {
        let ports =
            ["sock1", "sock2"].map(|name| Port::new(&dir.join(name), Role::Server).expect("a socket"));
        let wire = dir.join("wire");
        let node = Node::start(dir, &[vf(0, &format!("vhost-user:{}", wire.display()), 3)], None);
        let text = |mac: [u8; 6]| mac.map(|byte| format!("{byte:02x}")).join(":");
        node.plug(0, MAC, None);
        node.plug(1, &text(NEIGHBOUR_MAC), None);
        node.plug(2, &text(WIRE_MAC), None);
        let [one, other] = ports.map(|port| {
            let connection = port.connect(PATIENCE).expect("the node connects");
            Some(Frontend::attach(connection, Wish::new(Layout::Split)).expect("rings run"))
        });
        let neighbours = Traffic::paced(one, other, Duration::from_millis(5));
        let peer = guest(lab, tools, "peer", &wire, "reconnect-ms=500", MAC_OF_PEER).start(dir);
        let vm = vm(lab, tools, dir).start(dir);
        let mut life = Life { dir: dir.to_owned(), node, vm, peer, neighbours };
        life.peer.wait_up();
        set_up(&mut life.peer, PEER);
        // Both ways at once, again and again, whatever becomes of the VM.
        life.peer.sh(&format!(
            "for port in 6001 6002; do
                 (while :; do nc {VM} $port </dev/zero >/dev/null || sleep 0.2 || :; done) >/dev/null 2>&1 &
             done"
        ));
        life.vm.wait_up();
        life.settle();
        life.check("at first");
        life
    }

    /// The VM's driver has its NIC anew: address, queues, and somebody who takes the load.
    fn settle(&mut self) {
        set_up(&mut self.vm, VM);
        self.vm.sh("killall -q nc || true
             for port in 6001 6002; do
                 (while :; do nc -l -p $port </dev/zero >/dev/null || :; done) >/dev/null 2>&1 &
             done");
        self.node.wait_running(0);
    }

    fn phase(&mut self, what: &str, event: impl FnOnce(&mut Life)) {
        println!("--- {what}");
        let before = self.neighbours.arrived();
        event(self);
        self.check(what);
        let passed = self.neighbours.arrived() - before;
        println!("{passed} frames passed between the neighbours, each way");
        assert!(passed > 1000, "{what}: the neighbours' traffic stood");
    }

    /// Frames pass on the VM's port, and its neighbours have lost none.
    fn check(&mut self, what: &str) {
        let bytes = |life: &Life| {
            let port = life.node.vhost(0);
            ["to_guest", "from_guest"].map(|way| port[way]["bytes"].as_u64().expect("a counter"))
        };
        let before = bytes(self);
        wait_for("the load to go on, both ways", PATIENCE, || {
            let now = bytes(self);
            let moved = [now[0] - before[0], now[1] - before[1]];
            if moved.iter().all(|&bytes| bytes > 4 << 20) { Ok(()) } else { Err(format!("{moved:?}")) }
        });
        tcp(&mut self.peer, &mut self.vm, VM, 3);
        tcp(&mut self.vm, &mut self.peer, PEER, 3);
        udp(&mut self.peer, &mut self.vm, VM, 1);
        let port = self.node.vhost(0);
        assert_eq!(port["last_failure"], json!(null), "{what}: {port}");
        assert_eq!(self.neighbours.lost(), 0, "{what}");
        assert_eq!(self.neighbours.broken(), None, "{what}");
    }

    /// MiB the node has mapped of the VM.
    fn shared_mib(&self) -> u64 {
        let port = self.node.vhost(0);
        let regions = port["memory"].as_array().expect("regions");
        regions.iter().map(|region| region["len_bytes"].as_u64().expect("a length")).sum::<u64>() >> 20
    }

    /// Memory comes, and what the node receives for the VM lands there.
    fn grow(&mut self) {
        let before = self.shared_mib();
        let file = self.dir.join("dimm0");
        plug_memory(
            &mut self.vm,
            0,
            json!({"qom-type": "memory-backend-file", "mem-path": file.display().to_string()}),
        );
        wait_for("the node to have the memory", PATIENCE, || match self.shared_mib() - before {
            more if more == u64::from(DIMM_MIB) => Ok(()),
            more => Err(format!("{more} MiB more")),
        });
        // Kernel memory, the receive buffers' too, comes from the highest zone there is: from now on, this one.
        switch_on(&mut self.vm, "online_kernel");
        // A queue goes on with the buffers it had until its traffic has used them up: another connection, another queue.
        let mut port = 7000;
        let n_lines = wait_for("received bytes in the new memory", PATIENCE, || {
            port += 1;
            match self.hold(port, &file) {
                n @ 0..100 => Err(format!("{n} lines; {}", self.vm.sh("grep -A2 zone /proc/zoneinfo"))),
                n => Ok(n),
            }
        });
        println!("{n_lines} lines in the new memory, by connection {}", port - 7000);
    }

    /// Sends the VM lines that nobody there reads: they stay in the buffers that the node has written to, and are nowhere
    /// else. Returns how many are in the file of its new memory. Then they are read, and whole.
    fn hold(&mut self, port: u16, memory: &Path) -> usize {
        const MARKER: &str = "Only the node's own copy loop can have brought this here.";
        self.vm.sh(&format!(
            "tail -f /dev/null 2>/dev/null | nc -l -p {port} >/run/held 2>/dev/null &
             echo $! >/run/holder"
        ));
        self.vm.wait_sh("a listener", PATIENCE, &format!("netstat -ltn | grep -q :{port}"));
        self.vm.sh("kill -STOP $(cat /run/holder)");
        self.peer.sh(&format!("(yes \"{MARKER}\" | head -n 1000 | nc {VM} {port}) >/dev/null 2>&1 &"));
        let held = format!("netstat -tn | grep -q '^tcp *5[0-9][0-9][0-9][0-9] .*:{port}'");
        self.vm.wait_sh("data to wait in the VM", PATIENCE, &held);
        let memory = std::fs::read(memory).expect("a file of the test's own");
        let lines = memory.split(|&byte| byte == b'\n');
        let n_lines = lines.filter(|line| line.ends_with(MARKER.as_bytes())).count();
        self.vm.sh("kill -CONT $(cat /run/holder)");
        let whole = format!("[ $(grep -cx \"{MARKER}\" /run/held) = 1000 ]");
        self.vm.wait_sh("what was held", PATIENCE, &whole);
        self.vm.sh("kill $(cat /run/holder) || true");
        n_lines
    }

    /// More memory comes, which Linux can give up again, and goes.
    fn shrink(&mut self) {
        let before = self.shared_mib();
        plug_memory(&mut self.vm, 1, json!({"qom-type": "memory-backend-memfd", "share": true}));
        switch_on(&mut self.vm, "online_movable");
        assert_eq!(self.shared_mib(), before + u64::from(DIMM_MIB));
        self.vm.qmp().run("device_del", json!({"id": "dimm1"}));
        wait_for("the node to have given the memory back", PATIENCE, || match self.shared_mib() {
            now if now == before => Ok(()),
            now => Err(format!("{now} MiB, {before} before")),
        });
    }

    /// The VM ends; testpmd takes its socket, with other rings, and answers pings; then the VM starts anew.
    fn change_hands(&mut self, lab: &Lab, tools: &Tools, testpmd: &Path) {
        self.vm.kill();
        self.node.wait_state(0, "waiting");
        let socket = self.dir.join("sock0");
        let _ = std::fs::remove_file(&socket);
        let vdev = format!(
            "net_virtio_user0,path={},server=1,mac={MAC},queues=1,packed_vq=0,mrg_rxbuf=1",
            socket.display()
        );
        let prefix = format!("lab{}", std::process::id());
        let args =
            ["-oL", &testpmd.display().to_string(), "--lcores", "0@0,1@1", "--no-pci", "--no-huge", "-m"];
        let args =
            args.into_iter().chain(["256", "--no-telemetry", "--file-prefix", &prefix, "--vdev", &vdev]);
        let args = args.chain(["--", "--no-mlockall", "--total-num-mbufs=8192", "--forward-mode=icmpecho"]);
        let args: Vec<String> = args.chain(["--auto-start", "--stats-period=5"]).map(String::from).collect();
        let log = self.dir.join("testpmd.log");
        let mut dpdk = Daemon::start("testpmd", Path::new("stdbuf"), &args, &log).expect("testpmd starts");
        self.node.wait_running(0);
        let features = self.node.vhost(0)["features"].to_string();
        assert!(!features.contains("ring_packed"), "DPDK's driver has split rings: {features}");
        self.peer.wait_sh("pings answered by DPDK", PATIENCE, &format!("ping -c 5 -W 2 {VM}"));
        dpdk.kill();
        self.node.wait_state(0, "waiting");
        let _ = std::fs::remove_file(&socket);

        self.vm = vm(lab, tools, &self.dir).start(&self.dir);
        self.vm.wait_up();
        self.settle();
        let features = self.node.vhost(0)["features"].to_string();
        assert!(features.contains("ring_packed"), "Linux' driver has packed rings again: {features}");
    }

    /// The node is asked to end, and accounts for every buffer.
    fn end(mut self) {
        assert!(self.neighbours.is_sound());
        self.vm.kill();
        self.peer.kill();
        drop(self.neighbours);
        let log = self.node.stop();
        for trouble in ["did not come back", "packets still out", "panic"] {
            assert!(!log.contains(trouble), "{log}");
        }
    }
}

/// A Linux guest with every offload, four queues and packed rings.
fn guest<'a>(lab: &'a Lab, tools: &Tools, name: &str, socket: &Path, how: &str, mac: &str) -> Builder<'a> {
    tools.put_into(Builder::new(lab, name).cpus(2).module("virtio_net")).qemu_args([
        "-chardev",
        &format!("socket,id=c0,path={},{how}", socket.display()),
        "-netdev",
        &format!("vhost-user,id=n0,chardev=c0,queues={N_QUEUES}"),
        "-device",
        &format!("virtio-net-pci,netdev=n0,mac={mac},romfile=,packed=on,mq=on,vectors=10"),
    ])
}

fn vm<'a>(lab: &'a Lab, tools: &Tools, dir: &Path) -> Builder<'a> {
    guest(lab, tools, "vm", &dir.join("sock0"), "server=on,wait=off", MAC).spare_memory_mib(4 * DIMM_MIB)
}

fn set_up(guest: &mut Machine, address: &str) {
    guest.sh(&format!(
        "ip link set eth0 up
         ip addr add {address}/24 dev eth0
         ethtool -L eth0 combined {N_QUEUES}"
    ));
    transfer::prepare(guest, BULK_KIB);
}

fn plug_memory(vm: &mut Machine, slot: u32, mut backend: serde_json::Value) {
    let mut qmp = vm.qmp();
    backend["id"] = format!("more{slot}").into();
    backend["size"] = (u64::from(DIMM_MIB) << 20).into();
    backend["share"] = true.into();
    qmp.run("object-add", backend);
    let dimm = json!({"driver": "pc-dimm", "id": format!("dimm{slot}"), "memdev": format!("more{slot}")});
    qmp.run("device_add", dimm);
}

/// Linux finds plugged memory by itself, and uses it when it is told to.
fn switch_on(vm: &mut Machine, how: &str) {
    let script = format!(
        "for block in $(grep -l offline /sys/devices/system/memory/memory*/state); do
             echo {how} >$block && exit
         done
         exit 1"
    );
    vm.wait_sh("Linux to see its memory", PATIENCE, &script);
}
