//! Debian's `dpdk-testpmd` inside a lab machine, driven through its prompt.

use super::machine::Machine;
use std::time::Duration;

/// Makes huge pages available to DPDK in the machine.
pub fn reserve_huge_pages(machine: &mut Machine, n_pages_2mib: u32) {
    machine.sh(&format!(
        "echo {n_pages_2mib} >/proc/sys/vm/nr_hugepages
         mkdir -p /dev/hugepages
         mountpoint -q /dev/hugepages || mount -t hugetlbfs none /dev/hugepages"
    ));
}

/// One running testpmd, with its two logical cores on CPU 0 (prompt) and the last CPU (forwarding).
pub struct Testpmd {
    name: String,
}

impl Testpmd {
    /// Starts it and waits for its prompt. `name` is also DPDK's file prefix.
    ///
    /// # Panics
    /// If the prompt does not come; its output is shown.
    pub fn start(machine: &mut Machine, name: &str, eal: &str, app: &str) -> Testpmd {
        // Its standard input is a pipe that stays open: at end of file it would quit.
        machine.sh(&format!(
            "mkfifo /run/{name}.in
             sleep 2147483647 >/run/{name}.in &
             last=$(($(nproc) - 1))
             stdbuf -oL dpdk-testpmd --lcores 0@0,1@$last --file-prefix {name} -m 128 {eal} -- \
                 -i --total-num-mbufs=4096 {app} </run/{name}.in >/run/lab/{name}.log 2>&1 &"
        ));
        let testpmd = Testpmd { name: name.to_owned() };
        machine.wait_sh(
            "testpmd's prompt",
            Duration::from_secs(240),
            &format!("grep -q '^testpmd> ' {name}.log || {{ tail -30 {name}.log; false; }}"),
        );
        testpmd
    }

    /// Types one line at the prompt.
    pub fn type_line(&self, machine: &mut Machine, line: &str) {
        machine.sh(&format!("echo '{line}' >/run/{}.in", self.name));
    }

    /// Everything it has written.
    pub fn log(&self, machine: &mut Machine) -> String {
        machine.sh(&format!("cat {}.log", self.name))
    }
}
